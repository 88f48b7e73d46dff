package p2pnode_test

import (
	"context"
	"io"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// What is published right after a reconnect arrives, or Publish returns an error,
// whichever side has closed the connection and which has opened the next.
func TestAttackPublishRightAfterAReconnect(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	for _, memory := range []bool{true, false} {
		t.Run("memory "+strconv.FormatBool(memory), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := []p2ptest.Option{p2ptest.WithLatency(p2ptest.Fixed(20 * time.Millisecond))}
				if memory {
					opts = append(opts, p2ptest.WithMemoryTransport())
				}
				sim := p2ptest.NewNetwork(t, opts...)
				a, b := sim.Node(t, p2pnode.WithoutDHT()), sim.Node(t, p2pnode.WithoutDHT())
				sub, err := b.Subscribe(t.Context(), "news")
				if err != nil {
					t.Fatal(err)
				}
				connect := func(from, to *p2ptest.Node) {
					if err := from.Connect(t.Context(), to.AddrInfo()); err != nil {
						t.Fatal(err)
					}
				}
				connect(a, b)
				lost, refused := 0, 0
				for i := range 200 {
					from, to := a, b
					if i%2 == 1 {
						from, to = b, a
					}
					if err := a.Publish(t.Context(), "news", []byte("before"), p2pnode.PublishNow()); err != nil {
						t.Fatal(err)
					}
					if err := from.Disconnect(t.Context(), to.ID()); err != nil {
						t.Fatal(err)
					}
					if i%4 > 1 {
						from, to = to, from
					}
					if i%8 > 3 { // before, the other side has not heard of the end
						time.Sleep(time.Duration(i) * time.Millisecond)
					}
					connect(from, to)
					text := strconv.Itoa(i)
					if err := a.Publish(t.Context(), "news", []byte(text)); err != nil {
						refused++
						continue
					}
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					for {
						m, err := sub.Next(ctx)
						if err != nil {
							t.Logf("round %d: lost", i)
							lost++
							break
						}
						if string(m.Data) == text {
							break
						}
					}
					cancel()
				}
				if lost > 0 || refused > 100 {
					t.Errorf("of 200 messages %d were lost, %d refused", lost, refused)
				}
			})
		})
	}
}

// A connection that a peer has opened over QUIC, and lost at once, is closed when the
// peer opens another one: streams to the peer would get no answer on it, until QUIC
// gives it up after half a minute.
func TestAConnectionThatDiedYoungIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		sim.Ready()
		sim.Crash(b)
		sim.Restart(b, p2ptest.NewAddress())
		sim.Ready()
		time.Sleep(4 * time.Second)
		if list := a.Host().Network().ConnsToPeer(b.ID()); len(list) != 1 {
			t.Errorf("%d connections are left", len(list))
		}
	})
}

// The swarm of a peer that dials two addresses cancels one dial, which may leave a
// connection here on which nobody answers. Messages and streams take the other one,
// before identify has failed on it, and after.
func TestAConnectionThatNobodyAnswersIsNotUsed(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]bool{"the older one": true, "the newer one": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				ok := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				sim := p2ptest.NewNetwork(t)
				a := sim.Node(t, p2pnode.WithDialTimeout(time.Second)) // and so long identify may take
				b := sim.Node(t)
				ok(b.Handle("/echo/1.0.0", func(_ context.Context, s network.Stream) error {
					_, err := io.Copy(s, s)
					return err
				}))
				sub, err := b.Subscribe(ctx, "news")
				ok(err)
				abandon := func() {
					at := a.AddrInfo().Addrs[0]
					c, err := b.Host().Network().(*swarm.Swarm).TransportForDialing(at).Dial(ctx, at, a.ID())
					ok(err)
					t.Cleanup(func() { ok(c.Close()) })
					for range 10 { // the swarm prefers a connection with many streams
						s, err := c.OpenStream(ctx)
						ok(err)
						_, err = s.Write([]byte{1}) // the length of a name that does not come
						ok(err)
					}
				}
				use := func() {
					t.Helper()
					begun := time.Now()
					ok(a.Publish(ctx, "news", nil))
					_, err = sub.Next(ctx)
					ok(err)
					s, err := a.OpenStream(ctx, b.ID(), "/echo/1.0.0")
					ok(err)
					_, err = s.Write([]byte{1})
					ok(err)
					_, err = io.ReadFull(s, make([]byte, 1))
					ok(err)
					_, err = a.Ping(ctx, b.ID())
					ok(err)
					ok(s.Close())
					if took := time.Since(begun); took > time.Second {
						t.Errorf("it took %v", took)
					}
					if list := a.Host().Network().ConnsToPeer(b.ID()); len(list) != 2 {
						t.Errorf("%d connections", len(list))
					}
				}
				if first {
					abandon()
				}
				ok(b.Connect(ctx, a.AddrInfo()))
				if !first {
					abandon()
				}
				use()
				time.Sleep(2 * time.Second) // it is closed after 3 seconds
				use()
			})
		})
	}
}
