package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// everything turns on every part of a node that works on loopback. The caller
// closes its bootstrap peer and relay, before a leak check: a broken handshake
// leaves goroutines there until it times out.
func everything(tb testing.TB) (opts []Option, other *Node) {
	tb.Helper()
	needMulticast(tb)
	other, err := New(testContext(tb), loopback(), WithRelayService())
	mustNot(tb, err)
	return []Option{
		loopback(), WithMDNS(), via(other), WithAutoRelay(other.AddrInfo()),
		WithRelayService(), WithHolePunching(), WithMetrics(prometheus.NewRegistry()),
	}, other
}

func TestNewFailingAfterEachPhaseLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for i, p := range phases() {
		t.Run(fmt.Sprintf("%02d-%s", i, p.name), func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			opts, other := everything(t)
			fail := option{"", func(c *config) error {
				c.afterPhase = func(phase string) error {
					if phase == p.name {
						return boom
					}
					return nil
				}
				return nil
			}}
			n, err := New(testContext(t), append(slices.Clone(opts), fail)...)
			var start *StartError
			if n != nil || !errors.As(err, &start) || start.Step != p.name || !errors.Is(err, boom) {
				t.Fatalf("New = %v, %v; want no node and a StartError of %q", n, err, p.name)
			}
			mustNot(t, other.Close())
			goleak.VerifyNone(t, leaktest.Ignored(leaks)...)
		})
	}
}

func TestNewEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	stop := option{"", func(c *config) error {
		c.afterPhase = func(phase string) error {
			if phase == "dht" {
				cancel()
			}
			return nil
		}
		return nil
	}}
	_, err := New(ctx, loopback(), stop)
	var start *StartError
	if !errors.As(err, &start) || start.Step != "pubsub" || !errors.Is(err, context.Canceled) {
		t.Fatalf("New = %v; want a StartError of pubsub by the ended context", err)
	}
}

// The context of New bounds only construction (pitfall 19, of pubsub and older
// DHTs: a context with a timeout ended the node some seconds later).
func TestNewContextDoesNotBoundTheNode(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a, err := New(ctx, loopback())
	mustNot(t, err)
	defer mustClose(t, a)
	cancel()
	b := newNode(t, via(a))
	ready(t, b)
	sub, err := a.Subscribe(testContext(t), "topic")
	mustNot(t, err)
	mustNot(t, b.Publish(testContext(t), "topic", []byte("still here")))
	_, err = sub.Next(testContext(t))
	mustNot(t, err)
}

func TestCloseIsIdempotentAndConcurrent(t *testing.T) {
	n, err := New(testContext(t), loopback())
	mustNot(t, err)
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() { errs[i] = n.Close() })
	}
	wg.Wait()
	for _, err := range append(errs, n.Close()) {
		mustNot(t, err)
	}
}

// Every Close returns the first one's result, also when that was an error.
func TestCloseReturnsTheFirstResult(t *testing.T) {
	n, err := New(testContext(t), loopback())
	mustNot(t, err)
	boom := errors.New("boom")
	n.stack.Push("part", 0, func() error { return boom })
	for range 2 {
		if err := n.Close(); !errors.Is(err, boom) || !strings.Contains(err.Error(), "part: ") {
			t.Fatalf("Close = %v; want the part's error with its name", err)
		}
	}
}

// The error of Close names a part that hangs, and the others close nevertheless.
func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &Node{}
		n.ctx, n.cancel = context.WithCancel(t.Context())
		closed := false
		n.stack.Push("first", closeBudget, func() error { closed = true; return nil })
		release := make(chan struct{})
		n.stack.Push("hanging", closeBudget, func() error { <-release; return nil })
		began := time.Now()
		err := n.Close()
		if took := time.Since(began); took != closeBudget {
			t.Errorf("Close took %v of virtual time, want %v", took, closeBudget)
		}
		if err == nil || !strings.Contains(err.Error(), "hanging: ") || strings.Contains(err.Error(), "first: ") || !closed {
			t.Errorf("Close = %v, first closed: %v", err, closed)
		}
		close(release)
	})
}

// blockedCalls returns all calls that can block, so that they block: the node
// knows no peers, except that it is connected to other, which never answers.
func blockedCalls(t *testing.T, n *Node) map[string]func() error {
	ctx := testContext(t)
	c := mustCID(t, "nobody has this")
	key, value := pkRecord(t)
	sub, err := n.Subscribe(ctx, "silent")
	mustNot(t, err)
	iterSub, err := n.Subscribe(ctx, "silent too")
	mustNot(t, err)
	l, err := n.Listen("/nobody/1.0.0")
	mustNot(t, err)
	return map[string]func() error{
		"Next": func() error { _, err := sub.Next(ctx); return err },
		"Messages": func() error {
			for _, err := range iterSub.Messages(ctx) {
				return fmt.Errorf("yielded %w", err)
			}
			return ErrClosed // it ends by itself
		},
		"Publish":     func() error { return n.Publish(ctx, "nobody", nil) },
		"WaitReady":   func() error { return n.WaitReady(ctx) },
		"Accept":      func() error { _, err := l.Accept(); return err },
		"Provide":     func() error { return n.Provide(ctx, c) },
		"PutValue":    func() error { return n.PutValue(ctx, key, value) },
		"PublishName": func() error { return n.PublishName(ctx, "/ipfs/bafkqaaa") },
		"Advertise":   func() error { return n.Advertise(ctx, "namespace") },
		"FindProviders": func() error {
			for _, err := range n.FindProviders(ctx, c) {
				return err
			}
			return errors.New("ended without an error")
		},
		"FindPeers": func() error {
			for _, err := range n.FindPeers(ctx, "namespace") {
				return err
			}
			return errors.New("ended without an error")
		},
		"Events": func() error {
			for ev := range n.Events(ctx) {
				t.Logf("event while waiting: %T", ev)
			}
			return ErrClosed // it ends by itself
		},
	}
}

// Close wakes every call that waits.
func TestCloseWakesBlockedCalls(t *testing.T) {
	n, err := New(testContext(t), loopback(), WithMinPeers(3))
	mustNot(t, err)
	defer mustClose(t, n)

	// A peer whose port answers nothing keeps Connect, Ping, OpenStream and
	// FindPeer waiting in the handshake.
	deaf, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	defer deaf.Close()
	silent, err := ParsePeers(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", deaf.Addr().(*net.TCPAddr).Port, mustKeyID(t)))
	mustNot(t, err)
	n.base.Peerstore().AddAddrs(silent[0].ID, silent[0].Addrs, time.Hour)

	ctx := testContext(t)
	calls := blockedCalls(t, n)
	calls["Connect"] = func() error { return n.Connect(ctx, silent[0]) }
	calls["Ping"] = func() error { _, err := n.Ping(ctx, silent[0].ID); return err }
	calls["OpenStream"] = func() error { _, err := n.OpenStream(ctx, silent[0].ID, "/echo"); return err }
	calls["Dial"] = func() error { _, err := n.Dial(ctx, silent[0].ID, "/echo"); return err }

	type result struct {
		call string
		err  error
	}
	results := make(chan result, len(calls))
	var entered sync.WaitGroup
	for name, call := range calls {
		entered.Add(1)
		go func() {
			entered.Done()
			results <- result{name, call()}
		}()
	}
	entered.Wait()
	for range 100 { // let them get to where they wait; Close may come earlier too
		runtime.Gosched()
	}
	select {
	case r := <-results:
		t.Fatalf("%s did not wait: %v", r.call, r.err)
	default:
	}
	mustNot(t, n.Close())
	for range calls {
		select {
		case r := <-results:
			if !errors.Is(r.err, ErrClosed) || !errors.Is(r.err, net.ErrClosed) {
				t.Errorf("%s = %v, want ErrClosed", r.call, r.err)
			}
		case <-ctx.Done():
			t.Fatal("a call still waits after Close")
		}
	}
}

// After Close every method returns ErrClosed or does nothing.
func TestMethodsAfterClose(t *testing.T) {
	n, err := New(testContext(t), loopback())
	mustNot(t, err)
	id := n.ID()
	mustNot(t, n.Close())
	for name, call := range blockedCallsClosed(t, n) {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", name, err)
		}
	}
	if n.ID() != id || n.Addrs() != nil || n.Peers() != nil || n.AddrInfo().ID != id || len(n.AddrInfo().Addrs) != 0 {
		t.Error("accessors after Close: want the ID and nothing else")
	}
	if s := n.Status(); !s.Closed || s.ID != id {
		t.Errorf("Status after Close = %+v", s)
	}
	for range n.Events(testContext(t)) {
		t.Error("an event after Close")
	}
}

func blockedCallsClosed(t *testing.T, n *Node) map[string]func() error {
	ctx := testContext(t)
	c := mustCID(t, "anything")
	other := peer.AddrInfo{ID: mustKeyID(t)}
	return map[string]func() error{
		"Connect":    func() error { return n.Connect(ctx, other) },
		"Handle":     func() error { return n.Handle("/x", func(context.Context, network.Stream) error { return nil }) },
		"Unhandle":   func() error { return n.Unhandle("/x") },
		"Ping":       func() error { _, err := n.Ping(ctx, other.ID); return err },
		"OpenStream": func() error { _, err := n.OpenStream(ctx, other.ID, "/x"); return err },
		"Dial":       func() error { _, err := n.Dial(ctx, other.ID, "/x"); return err },
		"Listen":     func() error { _, err := n.Listen("/x"); return err },
		"WaitReady":  func() error { return n.WaitReady(ctx) },
		"Provide":    func() error { return n.Provide(ctx, c) },
		"FindProviders": func() error {
			for _, err := range n.FindProviders(ctx, c) {
				return err
			}
			return nil
		},
		"FindPeer":        func() error { _, err := n.FindPeer(ctx, other.ID); return err },
		"PutValue":        func() error { return n.PutValue(ctx, "/pk/x", nil) },
		"GetValue":        func() error { _, err := n.GetValue(ctx, "/pk/x"); return err },
		"Advertise":       func() error { return n.Advertise(ctx, "namespace") },
		"StopAdvertising": func() error { return n.StopAdvertising(ctx, "namespace") },
		"FindPeers": func() error {
			for _, err := range n.FindPeers(ctx, "namespace") {
				return err
			}
			return nil
		},
		"Ticket":    func() error { return result(n.Ticket()) },
		"Publish":   func() error { return n.Publish(ctx, "topic", nil) },
		"Subscribe": func() error { _, err := n.Subscribe(ctx, "topic"); return err },
	}
}

// Fifty nodes, opened and closed, leave no goroutine (pitfall 35). There are
// fifty with -long alone: their 1,225 connections take seconds of processor time,
// and a minute under the race detector, where there are ten. Otherwise there are twenty.
func TestPitfall35FiftyNodesLeaveNothing(t *testing.T) {
	others := 49
	switch {
	case testing.Short():
		others = 4
	case raced.Detector:
		others = 9
	case !*long:
		others = 19
	}
	leaks := goleak.IgnoreCurrent()
	boot, err := New(testContext(t), loopback(), WithRelayService())
	mustNot(t, err)
	nodes := []*Node{boot}
	for range others {
		n, err := New(testContext(t), WithListenAddrs("/ip4/127.0.0.1/tcp/0"), via(boot))
		mustNot(t, err)
		nodes = append(nodes, n)
	}
	ready(t, nodes[1:]...)
	for _, n := range nodes {
		// A part that takes more than 5 seconds, on a busy machine, goes on to close.
		if err := n.Close(); err != nil && !strings.Contains(err.Error(), "still closing") {
			t.Error(err)
		}
	}
	if waitFor(t, func() bool { return goleak.Find(leaktest.Ignored(leaks)...) == nil }) != nil {
		t.Error(goleak.Find(leaktest.Ignored(leaks)...))
	}
}

// New and Close, again and again, with everything on.
func TestOpenCloseCycles(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	opts, other := everything(t)
	for range 5 {
		n, err := New(testContext(t), opts...)
		mustNot(t, err)
		mustNot(t, n.Close())
	}
	mustNot(t, other.Close())
	goleak.VerifyNone(t, leaktest.Ignored(leaks)...)
}

// Two nodes with different settings in one process do not influence each other.
func TestManyNodesInOneProcess(t *testing.T) {
	a := newNode(t, WithNetwork("one"), WithUserAgent("a"), WithMaxMessageSize(4096))
	b := newNode(t, WithNetwork("two"), WithUserAgent("b"), WithoutDHT())
	ctx := testContext(t)
	mustNot(t, a.Connect(ctx, b.AddrInfo()))
	if got := a.Peers()[0].Agent; got != "b" {
		t.Errorf("agent of b = %q", got)
	}
	if err := a.Publish(ctx, "t", make([]byte, 5000), PublishNow()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("publish beyond a's limit = %v", err)
	}
	mustNot(t, b.Publish(ctx, "t", make([]byte, 5000), PublishNow()))
}

func TestEscapeHatches(t *testing.T) {
	n := newNode(t)
	if n.Host().ID() != n.ID() || n.DHT() == nil || n.PubSub() == nil {
		t.Error("a part is missing")
	}
	bare := newNode(t, WithoutDHT(), WithoutPubSub())
	if bare.DHT() != nil || bare.PubSub() != nil {
		t.Error("a part that is off is there")
	}
}

func mustCID(tb testing.TB, content string) cid.Cid {
	tb.Helper()
	c, err := CIDOf(strings.NewReader(content))
	mustNot(tb, err)
	return c
}

// mustKeyID returns a peer ID without a peer.
func mustKeyID(tb testing.TB) peer.ID {
	tb.Helper()
	key, err := GenerateKey(KeyEd25519)
	mustNot(tb, err)
	id, err := PeerID(key)
	mustNot(tb, err)
	return id
}
