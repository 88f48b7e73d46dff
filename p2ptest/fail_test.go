package p2ptest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// recorder is a test that may fail: it keeps what it was told, and runs its
// cleanups when it is done.
type recorder struct {
	testing.TB
	text     bytes.Buffer
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Failed() bool     { return r.failed }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) Logf(format string, args ...any) { fmt.Fprintf(&r.text, format+"\n", args...) }

func (r *recorder) Errorf(format string, args ...any) {
	r.failed = true
	r.Logf(format, args...)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failing runs f as a test that has to fail, and returns what it said.
func failing(t *testing.T, f func(tb testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	if !r.failed {
		t.Error("the test has not failed")
	}
	return r.text.String()
}

// wants checks that a text has all parts.
func wants(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

func TestWaitsFailWithWhatIsMissingAndTheStatusOfAll(t *testing.T) {
	for _, c := range []struct {
		name string
		wait func(tb testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node)
		says []string
	}{
		{"Ready", func(_ testing.TB, w p2ptest.Waiter, a, _ *p2pnode.Node) { w.Ready(a) },
			[]string{"node 0 ready", "not ready", "0 of at least 1 peers"}},
		{"Connected", func(_ testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node) { w.Connected(a, b) },
			[]string{"node 0 connected to node 1", "node 0 has no connection to node 1", "node 1 has no connection to node 0"}},
		{"Disconnected", func(tb testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node) {
			if err := a.Connect(tb.Context(), b.AddrInfo()); err != nil {
				tb.Fatalf("%v", err)
			}
			w.Disconnected(a, b)
		}, []string{"node 0 disconnected from node 1", "node 0 still has a connection to node 1"}},
		{"RoutingTable", func(_ testing.TB, w p2ptest.Waiter, a, _ *p2pnode.Node) { w.RoutingTable(a, 3) },
			[]string{"3 peers in the routing table of node 0", "there are 0"}},
		{"Subscribed", func(tb testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node) {
			subscribeAll(tb, "news", []*p2pnode.Node{a})
			w.Subscribed("news", a, b)
		}, []string{`2 nodes subscribed to "news"`, "node 1 is not subscribed"}},
		{"Meshed", func(tb testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node) {
			subscribeAll(tb, "news", []*p2pnode.Node{a, b})
			w.Meshed("news")
		}, []string{`mesh of topic "news"`, "one has 1 of the 2 peers"}},
		{"Meshed without members", func(_ testing.TB, w p2ptest.Waiter, _, _ *p2pnode.Node) { w.Meshed("news") },
			[]string{"0 peers have joined it"}},
		{"Delivered", func(tb testing.TB, w p2ptest.Waiter, a, b *p2pnode.Node) {
			sub := subscribeAll(tb, "news", []*p2pnode.Node{a})[0]
			if err := a.Publish(tb.Context(), "news", []byte("one"), p2pnode.PublishNow()); err != nil {
				tb.Fatalf("%v", err)
			}
			w.Delivered(sub, 2)
		}, []string{`2 messages of "news"`, "there were 1"}},
		{"Provided", func(tb testing.TB, w p2ptest.Waiter, _, _ *p2pnode.Node) {
			w.EventProvided(cidOf(tb, "nobody has it"))
		}, []string{"provider record of bafk", "nobody holds one"}},
		{"Until", func(_ testing.TB, w p2ptest.Waiter, _, _ *p2pnode.Node) {
			w.Until("the end of time", func() error { return errors.New("not yet") })
		}, []string{"the end of time", "not yet"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				text := failing(t, func(tb testing.TB) {
					net := p2ptest.NewNetwork(tb, p2ptest.WithSeed(42))
					a := net.Node(tb, p2pnode.WithMinPeers(1))
					b := net.Node(tb)
					c.wait(tb, net.Within(10*time.Second), a, b)
				})
				wants(t, text, append(c.says,
					"not within 10s", "-p2ptest.seed=42",
					"node 0 (12D3Koo", `"reachability":"Unknown"`, "node 1 (12D3Koo")...)
				if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
					t.Errorf("failed after %v, want 10s", took)
				}
			})
		})
	}
}

func TestBadInputFailsNamingTheOption(t *testing.T) {
	within := func(f func(tb testing.TB, net *p2ptest.Network)) func(testing.TB) {
		return func(tb testing.TB) { f(tb, p2ptest.NewNetwork(tb)) }
	}
	node := func(opts ...p2pnode.Option) func(testing.TB) {
		return within(func(tb testing.TB, net *p2ptest.Network) { net.Node(tb, opts...) })
	}
	network := func(opts ...p2ptest.Option) func(testing.TB) {
		return func(tb testing.TB) { p2ptest.NewNetwork(tb, opts...) }
	}
	latency := func(l p2ptest.Latency) func(testing.TB) { return network(p2ptest.WithLatency(l)) }
	nodes := func(n int, opts ...p2ptest.NodesOption) func(testing.TB) {
		return within(func(tb testing.TB, net *p2ptest.Network) { net.Nodes(tb, n, opts...) })
	}
	psk := make(pnet.PSK, 32)
	psk[0] = 1
	for _, c := range []struct {
		says string
		f    func(testing.TB)
	}{
		{"WithMDNS needs real sockets", node(p2pnode.WithMDNS())},
		{"WithPortMapping needs a real router", node(p2pnode.WithPortMapping())},
		{"WithListenAddrs needs real sockets", node(p2pnode.WithListenAddrs("/ip4/127.0.0.1/udp/0/quic-v1"))},
		{"WithTransports leaves out QUIC", node(p2pnode.WithTransports(p2pnode.TransportTCP))},
		{"WithPrivateNetwork needs TCP", node(p2pnode.WithPrivateNetwork(psk))},
		{"WithIPFS joins the public network", node(p2pnode.WithIPFS())},
		{"WithIdentity: node 0 and node 1 are both", within(func(tb testing.TB, net *p2ptest.Network) {
			key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
			if err != nil {
				tb.Fatalf("%v", err)
			}
			net.Nodes(tb, 2, p2ptest.Use(p2pnode.WithIdentity(key)))
		})},
		{"WithConnLimits", node(p2pnode.WithConnLimits(9, 3))},
		{"WithDHTMode: ", node(p2pnode.WithoutDHT(), p2pnode.WithDHTMode(p2pnode.DHTModeServer))},

		{"Nodes: 0 nodes", nodes(0)},
		{"Nodes: -1 nodes", nodes(-1)},
		{"Random: each of 4 nodes cannot know 4 others", nodes(4, p2ptest.Random(4))},
		{"Random: each of 4 nodes cannot know 0 others", nodes(4, p2ptest.Random(0))},
		{"Clusters: 3 nodes make no 4 clusters", nodes(3, p2ptest.Clusters(4, 1))},
		{"Clusters: 9 bridges", nodes(6, p2ptest.Clusters(2, 9))},
		{"Stagger: -1s", nodes(2, p2ptest.Stagger(-time.Second))},

		{"WithLatency: latency of -1ns", latency(p2ptest.Fixed(-1))},
		{"WithLatency: latency of 1h0m0s", latency(p2ptest.Fixed(time.Hour))},
		{"WithLatency: Uniform: from 2s to 1s", latency(p2ptest.Uniform(2*time.Second, time.Second))},
		{"WithLatency: latency of -1s", latency(p2ptest.Normal(time.Second, -time.Second))},
		{"WithLatency: LatencyFunc", latency(p2ptest.LatencyFunc(nil))},
		{"WithLatency: the zero Latency", latency(p2ptest.Latency{})},
		{"WithLatency: Matrix: no regions", latency(p2ptest.Matrix(nil, nil))},
		{"WithLatency: Matrix: 2 regions, but 1 rows", latency(p2ptest.Matrix([]string{"a", "b"}, [][]time.Duration{{1, 2}}))},
		{"WithLatency: Matrix: 1 regions, but 2 round trips", latency(p2ptest.Matrix([]string{"a"}, [][]time.Duration{{1, 2}}))},
		{"WithLatency: Matrix: a to a: latency", latency(p2ptest.Matrix([]string{"a"}, [][]time.Duration{{-2}}))},
		{"WithLatency: Matrix: a region is named twice", latency(p2ptest.Matrix([]string{"a", "a"}, [][]time.Duration{{1, 2}, {3, 4}}))},
		{"WithWaitLimit: -1s", network(p2ptest.WithWaitLimit(-time.Second))},
		{"WithLink: loss of 1.5", network(p2ptest.WithLink(p2ptest.Link{Loss: 1.5}))},
		{"WithLink: loss of NaN", network(p2ptest.WithLink(p2ptest.Link{Loss: math.NaN()}))},
		{"WithLink: bandwidth of -1 up", network(p2ptest.WithLink(p2ptest.Link{Up: -1}))},
		{"WithLink: bandwidth of 10 up", network(p2ptest.WithLink(p2ptest.Link{Up: 10}))},
		{"WithLink: jitter of -1s", network(p2ptest.WithLink(p2ptest.Link{Jitter: -time.Second}))},
		{"WithLink: MTU of 5 bytes", network(p2ptest.WithLink(p2ptest.Link{MTU: 5}))},
		// All at once.
		{"WithWaitLimit: 0s", network(p2ptest.WithLink(p2ptest.Link{MTU: 5}), p2ptest.WithWaitLimit(0))},

		{"SetLink: loss", within(func(tb testing.TB, net *p2ptest.Network) { net.SetLink(net.Node(tb), p2ptest.Link{Loss: -1}) })},
		{"SetPath: latency", within(func(tb testing.TB, net *p2ptest.Network) {
			net.SetPath(net.Node(tb), net.Node(tb), p2ptest.Path{Latency: -1})
		})},
		{"SetRegion: \"Atlantis\" is none", within(func(tb testing.TB, net *p2ptest.Network) { net.SetRegion(net.Node(tb), "Atlantis") })},
		{"SetDNS: \"example\" is neither", within(func(_ testing.TB, net *p2ptest.Network) { net.SetDNS("x.test", "example") })},
		{"Suspend: 0s", within(func(tb testing.TB, net *p2ptest.Network) { net.Suspend(net.Node(tb), 0) })},
		{"Partition: no groups", within(func(_ testing.TB, net *p2ptest.Network) { net.Partition() })},
		{"is in group 0 and in group 1", within(func(tb testing.TB, net *p2ptest.Network) {
			n := []*p2pnode.Node{net.Node(tb)}
			net.Partition(n, n)
		})},
		{"is no peer of this network", within(func(tb testing.TB, net *p2ptest.Network) { net.Isolate(p2ptest.NewNetwork(tb).Node(tb)) })},
		{"nil stands for no peer", within(func(_ testing.TB, net *p2ptest.Network) { net.Isolate(nil) })},
		{"does not run any more", within(func(tb testing.TB, net *p2ptest.Network) {
			n := net.Node(tb)
			net.Crash(n)
			net.Crash(n)
		})},
		{"Churn: 0 nodes", within(func(_ testing.TB, net *p2ptest.Network) { net.Churn(nil, 1, 1, nil) })},
		{"NAT: there is no kind 17", within(func(_ testing.TB, net *p2ptest.Network) { net.NAT(17) })},
		{"NAT: WithMemoryTransport", func(tb testing.TB) {
			p2ptest.NewNetwork(tb, p2ptest.WithMemoryTransport()).NAT(p2ptest.FullCone)
		}},
		{"RoutingTable: node 0 has no DHT", within(func(tb testing.TB, net *p2ptest.Network) {
			net.RoutingTable(net.Node(tb, p2pnode.WithoutDHT()), 1)
		})},
		{"Within: -1s", within(func(_ testing.TB, net *p2ptest.Network) { net.Within(-time.Second) })},
	} {
		t.Run(c.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { wants(t, failing(t, c.f), c.says) })
		})
	}
}

func TestOptionsOfANodeComeAfterTheNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithUserAgent("all"), p2pnode.WithoutPubSub()))
		a := net.Node(t)
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		mustNot(t, err)
		b := net.Node(t, p2pnode.WithUserAgent("one"), p2pnode.WithoutDHT(), p2pnode.WithIdentity(key), p2pnode.WithoutListening(), via(a))
		net.Connected(a, b)
		id, err := p2pnode.PeerID(key)
		mustNot(t, err)
		if b.ID() != id {
			t.Errorf("its ID is %s, not the one given", b.ID())
		}
		net.Until("names", func() error {
			if x, y := a.Peers()[0].Agent, b.Peers()[0].Agent; x != "one" || y != "all" {
				return fmt.Errorf("they call themselves %q and %q", x, y)
			}
			return nil
		})
		if len(b.Addrs()) != 0 {
			t.Errorf("a node that does not listen announces %v", b.Addrs())
		}
	})
}

func TestMetricsWorkInVirtualTime(t *testing.T) {
	for range 2 { // what the first bubble starts must not be in the way of the second
		synctest.Test(t, func(t *testing.T) {
			net := p2ptest.NewNetwork(t)
			reg := prometheus.NewRegistry()
			a := net.Node(t, p2pnode.WithMetrics(reg))
			b := net.Node(t, via(a))
			net.Ready(b)
			if families, err := reg.Gather(); err != nil || len(families) == 0 {
				t.Errorf("%d families, %v", len(families), err)
			}
		})
	}
}

func TestLeakedGoroutinesFailTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		text := failing(t, func(tb testing.TB) {
			net := p2ptest.NewNetwork(tb)
			net.Node(tb, p2pnode.WithLibp2pOptions(func(*libp2p.Config) error {
				go func() { <-release }()
				return nil
			}))
		})
		close(release)
		wants(t, text, "goroutines of closed nodes are left", "TestLeakedGoroutinesFailTheTest")
	})
}

func TestErrorOfCloseFailsTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := failing(t, func(tb testing.TB) {
			net := p2ptest.NewNetwork(tb)
			n := net.Node(tb)
			block := make(chan struct{})
			err := n.Handle("/stuck", func(_ context.Context, _ network.Stream) error {
				<-block // in spite of its context: Close gives it up after 5 seconds
				return nil
			})
			if err != nil {
				tb.Fatal(err)
			}
			other := net.Node(tb, via(n))
			net.Ready(other)
			s, err := other.OpenStream(tb.Context(), n.ID(), "/stuck")
			if err != nil {
				tb.Fatalf("%v", err)
			}
			_, _ = s.Write([]byte("x"))
			time.AfterFunc(time.Minute, func() { close(block) })
			time.Sleep(time.Second)
		})
		wants(t, text, "node 0: p2pnode: close: stream handlers")
		time.Sleep(time.Minute)
	})
}

func TestSeedDecidesIdentitiesAddressesAndPaths(t *testing.T) {
	build := func(seed uint64) (text string) {
		synctest.Test(t, func(t *testing.T) {
			net := p2ptest.NewNetwork(t, p2ptest.WithSeed(seed), p2ptest.WithLatency(p2ptest.Uniform(time.Millisecond, 90*time.Millisecond)))
			if net.Seed() != seed {
				t.Errorf("the seed is %d", net.Seed())
			}
			nodes := net.Nodes(t, 4, p2ptest.Random(2))
			net.Ready()
			for _, n := range nodes {
				text += n.AddrInfo().String()
				rtt, err := nodes[0].Ping(t.Context(), nodes[len(nodes)-1].ID())
				mustNot(t, err)
				text += rtt.String() + " "
			}
			text += fmt.Sprint(net.Rand("x").Uint64(), net.Rand("y").Uint64())
		})
		return text
	}
	first := build(7)
	if again := build(7); again != first {
		t.Errorf("one seed, two networks:\n%s\n%s", first, again)
	}
	if other := build(8); other == first {
		t.Error("another seed makes no difference")
	}
}

func TestShapesSayWhoKnowsWhom(t *testing.T) {
	crowded(t)
	for _, c := range []struct {
		name  string
		shape p2ptest.Shape
		n     int
		want  string
	}{
		{"star", p2ptest.Star(), 4, "01 02 03"},
		{"ring", p2ptest.Ring(), 4, "01 03 12 23"},
		{"clusters", p2ptest.Clusters(2, 1), 6, "01 02 03 34 35"},
		{"two bridges", p2ptest.Clusters(2, 2), 6, "01 02 03 14 34 35"},
		{"one node", p2ptest.Ring(), 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := p2ptest.NewNetwork(t)
				// Without a DHT nobody finds more than he was told.
				nodes := net.Nodes(t, c.n, c.shape, p2ptest.Use(p2pnode.WithoutDHT()))
				time.Sleep(5 * time.Second)
				if got := edges(nodes); got != c.want {
					t.Errorf("connected are %q, want %q", got, c.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t, p2ptest.WithSeed(1))
		var started []int
		nodes := net.Nodes(t, 20, p2ptest.Random(3), p2ptest.Use(p2pnode.WithoutDHT()),
			p2ptest.Started(func(i int, _ *p2pnode.Node) { started = append(started, i) }))
		if len(started) != 20 || started[19] != 19 {
			t.Errorf("told of the start of %v", started)
		}
		net.Ready(nodes[1:]...)
		time.Sleep(5 * time.Second)
		subs := subscribeAll(t, "news", nodes)
		net.Subscribed("news")
		net.Meshed("news")
		publish(t, net, nodes[19], "news", "all hang together", subs)
		for i, n := range nodes {
			if got := len(n.Peers()); got < 3 {
				t.Errorf("node %d has %d peers, want at least the 3 that it knows", i, got)
			}
		}
	})
}

// edges lists who is connected with whom, by index.
func edges(nodes []*p2pnode.Node) string {
	var list []string
	for i, a := range nodes {
		for j, b := range nodes[i+1:] {
			for _, p := range a.Peers() {
				if p.ID == b.ID() {
					list = append(list, fmt.Sprintf("%d%d", i, i+1+j))
				}
			}
		}
	}
	return strings.Join(list, " ")
}

func TestRegionsPlaceNodesInTurn(t *testing.T) {
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		net := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Regions()))...)
		nodes := net.Nodes(t, 7)
		net.Ready()
		if a, b := net.Site(nodes[0]).Region, net.Site(nodes[6]).Region; a != p2ptest.NorthAmerica || b != a {
			t.Errorf("the first is in %q, the seventh in %q", a, b)
		}
		ping := func(want time.Duration) {
			t.Helper()
			if rtt, err := nodes[1].Ping(t.Context(), nodes[0].ID()); err != nil || rtt != want {
				t.Errorf("ping: %v, %v, want %v", rtt, err, want)
			}
		}
		ping(124 * time.Millisecond) // Europe to North America
		net.SetRegion(nodes[1], p2ptest.Australia)
		ping(189 * time.Millisecond)
	})
}

func TestNamesAreThoseOfTheNetworkAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		a := net.Node(t)
		net.SetDNS("a.test", net.Addr(a).String())
		net.SetDNS("boot.test", a.Addrs()[0].String())
		for _, addr := range []string{"/dns4/a.test/udp/4001/quic-v1/p2p/" + a.ID().String(), "/dnsaddr/boot.test/p2p/" + a.ID().String()} {
			b := net.Node(t, p2pnode.WithBootstrapAddrs(addr))
			net.Ready(b)
			net.Connected(a, b)
		}
		lost := net.Node(t)
		infos, err := p2pnode.ParsePeers("/dns4/example.com/udp/4001/quic-v1/p2p/" + a.ID().String())
		mustNot(t, err)
		if err := lost.Connect(t.Context(), peer.AddrInfo{ID: a.ID(), Addrs: infos[0].Addrs}); err == nil {
			t.Error("a name of the real DNS is resolved")
		}
	})
}

func TestChurnKeepsTheNetworkGoing(t *testing.T) {
	crowded(t)
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := net.Nodes(t, 10)
		net.Ready()
		var called atomic.Int64
		stop := net.Churn(nodes[1:], 5*time.Second, 10*time.Second, func(*p2pnode.Node) { called.Add(1) })
		time.Sleep(2 * time.Minute)
		stop()
		restarted := 0
		for _, n := range nodes {
			if net.Current(n) != n {
				restarted++
			}
		}
		if restarted < 5 || int(called.Load()) < restarted {
			t.Errorf("%d of 9 nodes were restarted within 24 crashes, and told of %d times", restarted, called.Load())
		}
		net.Ready()
	})
}

func TestRealTimeWorksToo(t *testing.T) {
	bothReal := func(t *testing.T, opts ...p2ptest.Option) {
		net := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Fixed(time.Millisecond)))...)
		nodes := net.Nodes(t, 4)
		net.Ready()
		subs := subscribeAll(t, "news", nodes)
		net.Subscribed("news")
		net.Meshed("news")
		publish(t, net, nodes[3], "news", "really", subs)
		net.Crash(nodes[2])
		net.Ready(net.Restart(nodes[2]))
	}
	t.Run("QUIC", func(t *testing.T) { bothReal(t) })
	t.Run("memory", func(t *testing.T) { bothReal(t, p2ptest.WithMemoryTransport()) })
}
