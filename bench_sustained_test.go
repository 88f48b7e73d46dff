package p2pnode

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
)

const (
	sustainedAddr = "/ip4/127.0.0.1/tcp/0"
	// inFlight is how many messages are on their way to a subscriber at most: half of
	// what the queues of the raw router hold, so that none is lost.
	inFlight = 16
)

// BenchmarkSustained publishes as fast as all subscribers read, over loopback TCP:
// one publisher, connected to each of them. CPU time is that of all nodes.
func BenchmarkSustained(b *testing.B) {
	for _, subs := range []int{1, 10, 50} {
		b.Run(fmt.Sprintf("subs=%d/impl=p2pnode", subs), func(b *testing.B) {
			start := func() *Node {
				n, err := New(context.Background(), WithListenAddrs(sustainedAddr), WithoutDHT())
				mustNot(b, err)
				b.Cleanup(func() { mustNot(b, n.Close()) })
				return n
			}
			from, ctx := start(), context.Background()
			out, err := from.Topic("t")
			mustNot(b, err)
			var next []func(context.Context) error
			for range subs {
				to := start()
				sub, err := to.Subscribe(ctx, "t")
				mustNot(b, err)
				mustNot(b, to.Connect(ctx, from.AddrInfo()))
				next = append(next, func(ctx context.Context) error { _, err := sub.Next(ctx); return err })
			}
			mustNot(b, waitFor(b, func() bool { return len(out.Peers()) == subs }))
			sustain(b, func(data []byte) error { return out.Publish(ctx, data) }, next)
		})
		b.Run(fmt.Sprintf("subs=%d/impl=raw", subs), func(b *testing.B) {
			start := func() *rawNode {
				n, err := newRawRouter(sustainedAddr)
				mustNot(b, err)
				b.Cleanup(func() { mustNot(b, n.close()) })
				return n
			}
			from, ctx := start(), context.Background()
			out, err := from.ps.Join("t")
			mustNot(b, err)
			var next []func(context.Context) error
			for range subs {
				to := start()
				in, err := to.ps.Join("t")
				mustNot(b, err)
				sub, err := in.Subscribe()
				mustNot(b, err)
				mustNot(b, to.host.Connect(ctx, addrInfoOf(from.host)))
				next = append(next, func(ctx context.Context) error { _, err := sub.Next(ctx); return err })
			}
			mustNot(b, waitFor(b, func() bool { return len(out.ListPeers()) == subs }))
			sustain(b, func(data []byte) error { return out.Publish(ctx, data) }, next)
		})
	}
}

// sustain publishes messages of 1 KiB and reads them with all of next.
func sustain(b *testing.B, publish func([]byte) error, next []func(context.Context) error) {
	b.Helper()
	data := make([]byte, 1<<10)
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	credits := make([]chan struct{}, len(next))
	for i, next := range next {
		credits[i] = make(chan struct{}, inFlight)
		for range inFlight {
			credits[i] <- struct{}{}
		}
		readers.Go(func() {
			for next(ctx) == nil {
				credits[i] <- struct{}{}
			}
		})
	}
	lost := 0
	patience := time.NewTimer(time.Hour)
	// credit takes one of a subscriber's, and counts a message as lost that has not
	// come in ten seconds.
	credit := func(c chan struct{}) {
		select {
		case <-c:
			return
		default:
		}
		patience.Reset(10 * time.Second)
		select {
		case <-c:
		case <-patience.C:
			lost++
		}
	}
	round := func() {
		for _, c := range credits {
			credit(c)
		}
		mustNot(b, publish(data))
	}
	for range 2 * inFlight { // warm up
		round()
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	for range b.N {
		round()
	}
	for _, c := range credits { // until all have come
		for range inFlight {
			credit(c)
		}
	}
	b.StopTimer()
	cpu = cpuTime() - cpu
	messages := float64(b.N)
	b.ReportMetric(messages/b.Elapsed().Seconds(), "msgs/s")
	b.ReportMetric(float64(lost)/messages, "lost/msg")
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/messages, "cpu-us/msg")
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/messages/float64(len(next)), "cpu-us/delivery")
}

// BenchmarkSignature is the floor of what a message costs: one signature by its
// author, and one check by each who reads it.
func BenchmarkSignature(b *testing.B) {
	key, public, err := crypto.GenerateEd25519Key(rand.Reader)
	mustNot(b, err)
	data := make([]byte, 1<<10+100)
	signature, err := key.Sign(data)
	mustNot(b, err)
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			cpu := cpuTime()
			for b.Loop() {
				f()
			}
			b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
		})
	}
	run("sign", func() {
		_, err := key.Sign(data)
		mustNot(b, err)
	})
	run("verify", func() {
		ok, err := public.Verify(data, signature)
		mustNot(b, err)
		if !ok {
			b.Fatal("the signature is invalid")
		}
	})
}
