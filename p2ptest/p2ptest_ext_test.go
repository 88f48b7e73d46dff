package p2ptest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// via makes a node join the network through another.
func via(n *p2ptest.Node) p2pnode.Option { return p2pnode.WithBootstrapPeers(n.AddrInfo()) }

func mustNot(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// subscribeAll subscribes every node to a topic.
func subscribeAll(tb testing.TB, topic string, nodes p2ptest.Nodes) []*p2pnode.Subscription {
	tb.Helper()
	subs := make([]*p2pnode.Subscription, len(nodes))
	for i, n := range nodes {
		sub, err := n.Subscribe(context.Background(), topic)
		mustNot(tb, err)
		subs[i] = sub
	}
	return subs
}

// publish sends one message and checks that every subscription gets it. It
// returns how long that took.
func publish(tb testing.TB, sim *p2ptest.Network, from *p2ptest.Node, topic, text string, subs []*p2pnode.Subscription) time.Duration {
	tb.Helper()
	begun := time.Now()
	mustNot(tb, from.Publish(context.Background(), topic, []byte(text)))
	for _, sub := range subs {
		if m := sim.Delivered(sub, 1)[0]; string(m.Data) != text {
			tb.Fatalf("got %q, want %q", m.Data, text)
		}
	}
	return time.Since(begun)
}

func cidOf(tb testing.TB, text string) cid.Cid {
	tb.Helper()
	c, err := p2pnode.CIDOf(strings.NewReader(text))
	mustNot(tb, err)
	return c
}

// finds reports whether a node finds the provider of a CID.
func finds(n *p2ptest.Node, c cid.Cid, provider peer.ID) bool {
	for ai, err := range n.FindProviders(context.Background(), c) {

		if err == nil && ai.ID == provider {
			return true
		}
	}
	return false
}

// crowded skips a test with too many nodes for the race detector, which ends the
// process at 8,128 goroutines, and sometimes, by a failed check of its own, at
// far fewer if many start and end. The check script runs these tests without it.
func crowded(t *testing.T) {
	t.Helper()
	if raced.Detector {
		t.Skip("too many goroutines for the race detector: run it without -race")
	}
}

// slow skips a test that takes more than a second.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second: run it without -short")
	}
}

// bothTransports runs a test in virtual time over QUIC and in memory.
func bothTransports(t *testing.T, f func(t *testing.T, opts ...p2ptest.Option)) {
	t.Run("QUIC", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t) })
	})
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, p2ptest.WithMemoryTransport()) })
	})
}

func TestDeliveryTimeOfATwoNodeLinkIsExact(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		const latency = 70 * time.Millisecond
		sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Fixed(latency)))...)
		a := sim.Node(t)
		b := sim.Node(t, via(a))
		sim.Ready()
		subs := subscribeAll(t, "news", p2ptest.Nodes{a, b})
		sim.Meshed("news")
		if took := publish(t, sim, a, "news", "now", subs); took != latency {
			t.Errorf("delivered after %v, want after %v", took, latency)
		}
		rtt, err := a.Ping(t.Context(), b.ID())
		mustNot(t, err)
		if rtt != 2*latency {
			t.Errorf("ping took %v, want %v", rtt, 2*latency)
		}

		// Changed while it runs.
		sim.SetPath(a, b, p2ptest.Path{Latency: 5 * time.Millisecond})
		if took := publish(t, sim, b, "news", "nearer", subs); took != 5*time.Millisecond {
			t.Errorf("delivered after %v over the new path, want 5ms", took)
		}
		sim.SetLink(a, p2ptest.Link{Latency: 40 * time.Millisecond})
		if took := publish(t, sim, a, "news", "slower", subs); took != 45*time.Millisecond {
			t.Errorf("delivered after %v over the new link, want 45ms", took)
		}
	})
}

func TestBandwidthLimitsHowFastDataArrives(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Fixed(10*time.Millisecond)))...)
		a := sim.Node(t)
		b := sim.Node(t, via(a))
		sim.Ready()
		const size = 1 << 20
		received := make(chan time.Time, 1)
		mustNot(t, b.Handle("/sink", func(_ context.Context, s network.Stream) error {
			n, err := io.Copy(io.Discard, s)
			if n == size {
				received <- time.Now()
			}
			return err
		}))
		for _, c := range []struct {
			name string
			node *p2ptest.Node
			link p2ptest.Link
		}{
			{"up", a, p2ptest.Link{Up: 8 * p2ptest.Mbit}},
			{"down", b, p2ptest.Link{Down: 8 * p2ptest.Mbit}},
		} {
			sim.SetLink(c.node, c.link)
			s, err := a.OpenStream(t.Context(), b.ID(), "/sink")
			mustNot(t, err)
			begun := time.Now()
			if _, err := s.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			mustNot(t, s.Close())
			// 1 MiB at 1 MB/s, and what the protocols add.
			if took := (<-received).Sub(begun); took < 1040*time.Millisecond || took > 1500*time.Millisecond {
				t.Errorf("%s: %d bytes took %v at 8 Mbit", c.name, size, took)
			}
			sim.SetLink(c.node, p2ptest.Link{})
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	slow(t)
	crowded(t)
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		n := size(12, 30)
		nodes := sim.Nodes(t, n)
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Subscribed("news")
		sim.Meshed("news")
		publish(t, sim, nodes[3], "news", "one world", subs)

		left, right := nodes[:n/2], nodes[n/2:]
		sim.Partition(left, right)
		sim.Within(time.Minute).Disconnected(left, right)
		sim.Meshed("news", left)
		sim.Meshed("news", right)
		publish(t, sim, left[5], "news", "left", subs[:n/2])
		publish(t, sim, right[5], "news", "right", subs[n/2:])
		for _, half := range []p2ptest.Nodes{left, right} {
			c := cidOf(t, fmt.Sprint(half[0].ID()))
			mustNot(t, half[2].Provide(t.Context(), c))
			sim.Found(half[4], c, half[2])
		}

		sim.Heal()
		// Nothing reports that the partition has ended. Each half has all the peers
		// that it wants, so only the DHT crosses the former partition: it checks its
		// routing table, with peers on the other side, every 10 minutes.
		took := untilOneReachesAll(t, left[3], subs, 11*time.Minute)
		t.Logf("one message reached all %v after healing", took)
	})
}

// untilOneReachesAll publishes a message every 10 seconds until one of them
// has reached every subscription, and returns how long that took.
func untilOneReachesAll(t *testing.T, from *p2ptest.Node, subs []*p2pnode.Subscription, limit time.Duration) time.Duration {
	t.Helper()
	begun := time.Now()
	got := make(map[string]int)
	for i := 0; time.Since(begun) < limit; i++ {
		mustNot(t, from.Publish(t.Context(), "news", fmt.Append(nil, "attempt ", i)))
		time.Sleep(10 * time.Second)
		for _, sub := range subs {
			for _, m := range p2ptest.Take(sub) {
				if got[string(m.Data)]++; got[string(m.Data)] == len(subs) {
					return time.Since(begun)
				}
			}
		}
	}
	t.Fatalf("no message has reached all %d subscriptions within %v: %v", len(subs), limit, got)
	return 0
}

func TestNewcomerJoinsThroughAnotherPeerAfterTheBootstrapNodeCrashed(t *testing.T) {
	slow(t)
	crowded(t)
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 12)
		sim.Ready()
		sim.RoutingTable(nodes, 8)
		subs := subscribeAll(t, "news", nodes)
		sim.Crash(nodes[0])

		newcomer := sim.Node(t, p2pnode.WithBootstrapPeers(sim.AddrInfo(nodes[0])), via(nodes[5]))
		begun := time.Now()
		sim.Ready(newcomer)
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("ready after %v: the dead bootstrap peer has held it up", took)
		}
		sim.RoutingTable(newcomer, 8)
		sub, err := newcomer.Subscribe(t.Context(), "news")
		mustNot(t, err)
		sim.Meshed("news")
		publish(t, sim, nodes[9], "news", "welcome", append(subs[1:], sub))
	})
}

func TestContentIsFoundAfterThirtyPercentCrashed(t *testing.T) {
	slow(t)
	crowded(t)
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(p2pnode.WithConnLimits(32, 96)))
		count := size(30, 100)
		nodes := sim.Nodes(t, count, p2ptest.Random(3), p2ptest.Stagger(50*time.Millisecond))
		sim.Ready()
		sim.RoutingTable(nodes, 20)
		provider := nodes[count/3]
		var cids []cid.Cid
		for i := range 5 {
			c := cidOf(t, fmt.Sprint("content ", i))
			mustNot(t, provider.Provide(t.Context(), c))
			sim.Within(time.Minute).Until("the last copies", func() error { // Provide returns with the first
				if holders := sim.Provided(c); len(holders) < 10 {
					return fmt.Errorf("%d peers hold the record of %s", len(holders), c)
				}
				return nil
			})
			cids = append(cids, c)
		}

		var crashed, left p2ptest.Nodes
		for _, i := range sim.Rand("crash").Perm(len(nodes)) {
			switch n := nodes[i]; {
			case n == provider:
			case len(crashed) < count*3/10:
				crashed = append(crashed, n)
			default:
				left = append(left, n)
			}
		}
		sim.Crash(crashed)
		for i, n := range left[:size(8, 20)] {
			if !finds(n, cids[i%len(cids)], provider.ID()) {
				t.Errorf("node %d does not find it", i)
			}
		}
	})
}

func TestEveryMessageArrivesInSpiteOfLoss(t *testing.T) {
	slow(t)
	crowded(t)
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLink(p2ptest.Link{Loss: 0.05, Jitter: 5 * time.Millisecond}))...)
		nodes := sim.Nodes(t, 10)
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Subscribed("news")
		sim.Meshed("news")
		const messages = 50
		for i := range messages {
			mustNot(t, nodes[i%10].Publish(t.Context(), "news", fmt.Append(nil, i)))
		}
		for i, sub := range subs {
			seen := make(map[string]bool)
			for _, m := range sim.Delivered(sub, messages) {
				seen[string(m.Data)] = true
			}
			if len(seen) != messages || sub.Dropped() != 0 {
				t.Errorf("node %d got %d of %d messages and dropped %d", i, len(seen), messages, sub.Dropped())
			}
		}
		if lost := sim.Traffic().Lost; len(opts) == 0 && lost == 0 {
			t.Error("nothing was lost: the test shows nothing")
		}
	})
}

func TestHolePunching(t *testing.T) {
	for _, c := range []struct {
		a, b   p2ptest.NATKind
		direct bool
	}{
		{p2ptest.PortRestricted, p2ptest.PortRestricted, true},
		{p2ptest.RestrictedCone, p2ptest.PortRestricted, true},
		{p2ptest.FullCone, p2ptest.Symmetric, true},
		{p2ptest.Firewall, p2ptest.Firewall, true},
		{p2ptest.Firewall, p2ptest.PortRestricted, true},
		{p2ptest.Symmetric, p2ptest.Symmetric, false},
		{p2ptest.Symmetric, p2ptest.PortRestricted, false},
	} {
		t.Run(fmt.Sprint(c.a, " and ", c.b), func(t *testing.T) {
			if c.a != c.b {
				needs.Time(t)
			}
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				relay := sim.Node(t, p2pnode.WithRelayService())
				opts := []p2pnode.Option{p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching(), via(relay)}
				a, b := sim.NAT(c.a).Node(t, opts...), sim.NAT(c.b).Node(t, opts...)
				sim.Ready()
				sim.Until("reservations", func() error {
					for _, n := range []*p2ptest.Node{a, b} {
						if !n.Status().Relays[0].Reserved {
							return fmt.Errorf("%s has none", n.ID())
						}
					}
					return nil
				})
				time.Sleep(time.Second) // hole punching waits for an observed address
				mustNot(t, b.Handle("/echo", func(_ context.Context, s network.Stream) error {
					_, err := io.Copy(s, s)
					return err
				}))

				mustNot(t, a.Connect(t.Context(), b.AddrInfo()))
				sim.Connected(a, b)
				time.Sleep(30 * time.Second) // three attempts of 5 seconds
				direct := func(n *p2ptest.Node, other peer.ID) bool {
					for _, p := range n.Peers() {
						if p.ID == other {
							return !p.Relayed
						}
					}
					return false
				}
				if x, y := direct(a, b.ID()), direct(b, a.ID()); x != c.direct || y != c.direct {
					t.Errorf("direct connection: %v on one side, %v on the other, want %v", x, y, c.direct)
				}

				// In either case they can talk.
				ctx := network.WithAllowLimitedConn(t.Context(), "test")
				s, err := a.OpenStream(ctx, b.ID(), "/echo")
				mustNot(t, err)
				_, err = s.Write([]byte("hello"))
				mustNot(t, err)
				mustNot(t, s.CloseWrite())
				if got, err := io.ReadAll(s); err != nil || string(got) != "hello" {
					t.Errorf("echo: %q, %v", got, err)
				}
			})
		})
	}
}

func TestNATLetsInOnlyWhatItsKindAllows(t *testing.T) {
	for _, c := range []struct {
		kind p2ptest.NATKind
		open bool // whether a stranger can dial the mapped address
	}{
		{p2ptest.FullCone, true}, {p2ptest.RestrictedCone, false}, {p2ptest.PortRestricted, false},
		{p2ptest.Symmetric, false}, {p2ptest.Firewall, false},
	} {
		t.Run(fmt.Sprint(c.kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				public, stranger := sim.Node(t), sim.Node(t)
				inside := sim.NAT(c.kind).Node(t, via(public))
				sim.Ready()
				// As the public node sees it.
				conns := public.Host().Network().ConnsToPeer(inside.ID())
				seen := peer.AddrInfo{ID: inside.ID(), Addrs: []ma.Multiaddr{conns[0].RemoteMultiaddr()}}
				err := stranger.Connect(t.Context(), seen)
				if (err == nil) != c.open {
					t.Errorf("dialing %s: %v, want success: %v", seen.Addrs[0], err, c.open)
				}
			})
		})
	}
}

func TestNodesBehindOneNATReachEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nat := sim.NAT(p2ptest.Symmetric)
		a, b := nat.Node(t), nat.Node(t)
		mustNot(t, a.Connect(t.Context(), b.AddrInfo()))
		other := sim.NAT(p2ptest.FullCone).Node(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := other.Connect(ctx, a.AddrInfo()); err == nil {
			t.Error("a private address is reached from elsewhere")
		}
	})
}

func TestNodeReconnectsByItselfAfterAnHourOfSuspension(t *testing.T) {
	slow(t)
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 5)
		sim.Ready()
		laptop := nodes[3]
		sim.Suspend(laptop, time.Hour)
		time.Sleep(time.Hour - time.Second)
		if peers := laptop.Peers(); len(peers) > 0 {
			t.Fatalf("%d peers are connected in the middle of the suspension", len(peers))
		}
		time.Sleep(time.Second)
		awake := time.Now()
		sim.Until("somebody to talk to", func() error {
			if len(laptop.Peers()) == 0 {
				return errors.New("the suspended node has no connection")
			}
			return nil
		})
		// The current dial ends within 5 seconds, and the next one starts within the
		// 30 of the longest backoff.
		if took := time.Since(awake); took > 36*time.Second {
			t.Errorf("reconnected after %v", took)
		} else {
			t.Logf("reconnected after %v", took)
		}
		sim.Ready(laptop)
	})
}

func TestRestartKeepsIdentityAddressAndData(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		a := sim.Node(t)
		b := sim.Node(t, via(a))
		sim.Ready()
		c := cidOf(t, "kept")
		mustNot(t, b.Provide(t.Context(), c))
		if holders := sim.Provided(c); len(holders) != 1 || holders[0] != a.ID() {
			t.Fatalf("%v hold the record, want %s", holders, a.ID())
		}
		sim.Crash(a)
		if err := a.Publish(t.Context(), "x", nil); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("publish on a crashed node: %v", err)
		}
		before, where := a.ID(), sim.AddrInfo(a)
		sim.Restart(a)
		if a.ID() != before || sim.AddrInfo(a).String() != where.String() || a.AddrInfo().String() != where.String() {
			t.Errorf("it is %s now, and was %s", a.AddrInfo(), where)
		}
		if holders := sim.Provided(c); len(holders) != 1 || holders[0] != a.ID() {
			t.Errorf("%v hold the record after the restart, want %s", holders, a.ID())
		}
		sim.Within(time.Minute).Connected(a, b)

		old := b.Current()
		sim.Restart(b) // one that runs
		if b.ID() != old.ID() || b.Current() == old || !old.Status().Closed || b.Status().Closed {
			t.Error("restarting a running node has not replaced it")
		}
		sim.Ready(b)
	})
}

func TestIsolateIsSilentAndHealEndsIt(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		sim.Isolate(nodes[2], nodes[2])
		begun := time.Now()
		sim.Disconnected(nodes[0], nodes[2])
		if took := time.Since(begun); took < 15*time.Second || took > 46*time.Second {
			t.Errorf("the cut shows after %v; connections time out after 30s", took)
		}
		sim.Heal()
		sim.Connected(nodes[0], nodes[2])
	})
}

func TestRawPeersTakePart(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		raw := sim.Raw(t, p2ptest.RawConnect(nodes[0].AddrInfo()))
		sim.RoutingTable(nodes[0], 3)
		sim.Until("the raw peer's table", func() error {
			if raw.DHT.RoutingTable().Size() == 0 {
				return errors.New("it is empty")
			}
			return nil
		})
		topic, err := raw.PubSub.Join("news")
		mustNot(t, err)
		theirs, err := topic.Subscribe()
		mustNot(t, err)
		defer theirs.Cancel()
		subs := subscribeAll(t, "news", nodes)
		sim.Meshed("news")
		publish(t, sim, nodes[2], "news", "hello", subs)
		m, err := theirs.Next(t.Context())
		mustNot(t, err)
		if string(m.Data) != "hello" {
			t.Errorf("the raw peer got %q", m.Data)
		}
		mustNot(t, topic.Publish(t.Context(), []byte("hello yourself")))
		for _, sub := range subs {
			sim.Delivered(sub, 1)
		}
		c := cidOf(t, "theirs")
		mustNot(t, raw.DHT.Provide(t.Context(), c, true))
		if !finds(nodes[1], c, raw.ID()) {
			t.Error("what the raw peer provides is not found")
		}
	})
}
