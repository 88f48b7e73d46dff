package p2ptest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
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
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// recorder is a test that may fail: it records its messages, and runs its
// cleanups at its end.
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

// failing runs f as a test that must fail, and returns its messages.
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
		wait func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node)
		says []string
	}{
		{"Ready", func(_ testing.TB, w p2ptest.Waiter, a, _ *p2ptest.Node) { w.Ready(a) },
			[]string{"node 0 ready", "not ready", "0 of at least 1 peers"}},
		{"Connected", func(_ testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) { w.Connected(a, b) },
			[]string{"node 0 connected to node 1", "node 0 has no connection to node 1", "node 1 has no connection to node 0"}},
		{"Disconnected", func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) {
			if err := a.Connect(tb.Context(), b.AddrInfo()); err != nil {
				tb.Fatalf("%v", err)
			}
			w.Disconnected(a, b)
		}, []string{"node 0 disconnected from node 1", "node 0 still has a connection to node 1"}},
		{"RoutingTable", func(_ testing.TB, w p2ptest.Waiter, a, _ *p2ptest.Node) { w.RoutingTable(a, 3) },
			[]string{"3 peers in the routing table of node 0", "there are 0"}},
		{"Subscribed", func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) {
			subscribeAll(tb, "news", p2ptest.Nodes{a})
			w.Subscribed("news", a, b)
		}, []string{`2 nodes subscribed to "news"`, "node 1 is not subscribed"}},
		{"Meshed", func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) {
			subscribeAll(tb, "news", p2ptest.Nodes{a, b})
			w.Meshed("news")
		}, []string{`mesh of topic "news"`, "one part has 1 of the 2 peers"}},
		{"Meshed without members", func(_ testing.TB, w p2ptest.Waiter, _, _ *p2ptest.Node) { w.Meshed("news") },
			[]string{"0 peers have joined the topic"}},
		{"Delivered", func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) {
			sub := subscribeAll(tb, "news", p2ptest.Nodes{a})[0]
			if err := a.Publish(tb.Context(), "news", []byte("one"), p2pnode.PublishNow()); err != nil {
				tb.Fatalf("%v", err)
			}
			w.Delivered(sub, 2)
		}, []string{`2 messages of "news"`, "there were 1"}},
		{"Provided", func(tb testing.TB, w p2ptest.Waiter, _, _ *p2ptest.Node) {
			w.Provided(cidOf(tb, "nobody has it"))
		}, []string{"provider record of bafk", "no peer holds one"}},
		{"Found", func(tb testing.TB, w p2ptest.Waiter, a, b *p2ptest.Node) {
			w.Found(a, cidOf(tb, "nobody has it"), b)
		}, []string{"found by node 0", "did not find node 1"}},
		{"Until", func(_ testing.TB, w p2ptest.Waiter, _, _ *p2ptest.Node) {
			w.Until("the end of time", func() error { return errors.New("not yet") })
		}, []string{"the end of time", "not yet"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir) // where the file goes, outside Windows
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				text := failing(t, func(tb testing.TB) {
					sim := p2ptest.NewNetwork(tb, p2ptest.WithSeed(42))
					a := sim.Node(tb, p2pnode.WithMinPeers(1))
					b := sim.Node(tb)
					c.wait(tb, sim.Within(10*time.Second), a, b)
				})
				wants(t, text, append(c.says, "not within 10s", "-p2ptest.seed=42", " (12D3Koo")...)
				if lines := strings.Count(text, "\n"); lines > 8 {
					t.Errorf("%d lines:\n%s", lines, text)
				}
				fields := strings.Fields(text[:strings.LastIndex(text, "\np2ptest: the seed was")])
				file, err := os.ReadFile(fields[len(fields)-1])
				mustNot(t, err)
				var report struct {
					Test  string
					Seed  uint64
					Peers []struct {
						Name, State string
						Status      *p2pnode.Status
					}
				}
				mustNot(t, json.Unmarshal(file, &report))
				if report.Test != t.Name() || report.Seed != 42 || len(report.Peers) != 2 {
					t.Fatalf("the file has %s", file)
				}
				for i, p := range report.Peers {
					if p.Name != fmt.Sprint("node ", i) || p.State != "running" || p.Status == nil {
						t.Errorf("the file says of peer %d %+v", i, p)
					}
				}
				if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
					t.Errorf("failed after %v, want 10s", took)
				}
			})
		})
	}
}

func TestBadInputFailsNamingTheOption(t *testing.T) {
	within := func(f func(tb testing.TB, sim *p2ptest.Network)) func(testing.TB) {
		return func(tb testing.TB) { f(tb, p2ptest.NewNetwork(tb)) }
	}
	node := func(opts ...p2pnode.Option) func(testing.TB) {
		return within(func(tb testing.TB, sim *p2ptest.Network) { sim.Node(tb, opts...) })
	}
	network := func(opts ...p2ptest.Option) func(testing.TB) {
		return func(tb testing.TB) { p2ptest.NewNetwork(tb, opts...) }
	}
	latency := func(l p2ptest.Latency) func(testing.TB) { return network(p2ptest.WithLatency(l)) }
	nodes := func(n int, opts ...p2ptest.NodesOption) func(testing.TB) {
		return within(func(tb testing.TB, sim *p2ptest.Network) { sim.Nodes(tb, n, opts...) })
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
		{"WithIdentity: node 0 and node 1 are both", within(func(tb testing.TB, sim *p2ptest.Network) {
			key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
			if err != nil {
				tb.Fatalf("%v", err)
			}
			sim.Nodes(tb, 2, p2ptest.Use(p2pnode.WithIdentity(key)))
		})},
		{"WithConnLimits", node(p2pnode.WithConnLimits(9, 3))},
		{"WithDHTMode: ", node(p2pnode.WithoutDHT(), p2pnode.WithDHTMode(p2pnode.DHTModeServer))},

		{"Nodes: 0 nodes", nodes(0)},
		{"Nodes: -1 nodes", nodes(-1)},
		{"Random: each of 4 nodes cannot know 4 others", nodes(4, p2ptest.Random(4))},
		{"Random: each of 4 nodes cannot know 0 others", nodes(4, p2ptest.Random(0))},
		{"Clusters: cannot divide 3 nodes into 4 clusters", nodes(3, p2ptest.Clusters(4, 1))},
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

		{"SetLink: loss", within(func(tb testing.TB, sim *p2ptest.Network) { sim.SetLink(sim.Node(tb), p2ptest.Link{Loss: -1}) })},
		{"SetPath: latency", within(func(tb testing.TB, sim *p2ptest.Network) {
			sim.SetPath(sim.Node(tb), sim.Node(tb), p2ptest.Path{Latency: -1})
		})},
		{"SetRegion: \"Atlantis\" is not one of the regions", within(func(tb testing.TB, sim *p2ptest.Network) { sim.SetRegion(sim.Node(tb), "Atlantis") })},
		{"SetDNS: \"example\" is neither", within(func(_ testing.TB, sim *p2ptest.Network) { sim.SetDNS("x.test", "example") })},
		{"Suspend: 0s", within(func(tb testing.TB, sim *p2ptest.Network) { sim.Suspend(sim.Node(tb), 0) })},
		{"Partition: no groups", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Partition() })},
		{"is in group 0 and in group 1", within(func(tb testing.TB, sim *p2ptest.Network) {
			n := sim.Node(tb)
			sim.Partition(n, p2ptest.Peers(n))
		})},
		{"is not a peer of this network, but of another", within(func(tb testing.TB, sim *p2ptest.Network) { sim.Isolate(p2ptest.NewNetwork(tb).Node(tb)) })},
		{"a nil Selector", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate(nil) })},
		{"a nil *Node", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate((*p2ptest.Node)(nil)) })},
		{"a nil *RawNode", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate((*p2ptest.RawNode)(nil)) })},
		{"a nil *Hostile", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate((*p2ptest.Hostile)(nil)) })},
		{"is not a peer of this network", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate(p2ptest.IDs("who")) })},
		{"Isolate: the selector selects no peers", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Isolate(p2ptest.All()) })},
		{"Crash: raw 0 is not a node of the library", within(func(tb testing.TB, sim *p2ptest.Network) { sim.Crash(sim.Raw(tb)) })},
		{"Addr: the selector selects 2 peers", within(func(tb testing.TB, sim *p2ptest.Network) { sim.Addr(sim.Nodes(tb, 2)) })},
		{"Connected: both selectors select only the same peer", within(func(tb testing.TB, sim *p2ptest.Network) {
			n := sim.Node(tb)
			sim.Connected(n, n)
		})},
		{"Crash: node 0 has already crashed", within(func(tb testing.TB, sim *p2ptest.Network) {
			n := sim.Node(tb)
			sim.Crash(n)
			sim.Crash(n)
		})},
		{"Churn: a crash every 0s", within(func(tb testing.TB, sim *p2ptest.Network) { sim.Churn(sim.Node(tb), 0, 1, nil) })},
		{"Churn: the selector selects no peers", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Churn(p2ptest.Nodes{}, 1, 1, nil) })},
		{"NAT: invalid kind 17", within(func(_ testing.TB, sim *p2ptest.Network) { sim.NAT(17) })},
		{"NAT: WithMemoryTransport", func(tb testing.TB) {
			p2ptest.NewNetwork(tb, p2ptest.WithMemoryTransport()).NAT(p2ptest.FullCone)
		}},
		{"RoutingTable: node 0 has no DHT", within(func(tb testing.TB, sim *p2ptest.Network) {
			sim.RoutingTable(sim.Node(tb, p2pnode.WithoutDHT()), 1)
		})},
		{"Within: -1s", within(func(_ testing.TB, sim *p2ptest.Network) { sim.Within(-time.Second) })},
	} {
		t.Run(c.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { wants(t, failing(t, c.f), c.says) })
		})
	}
}

func TestOptionsOfANodeComeAfterTheNetworks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithUserAgent("all"), p2pnode.WithoutPubSub()))
		a := sim.Node(t)
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		mustNot(t, err)
		b := sim.Node(t, p2pnode.WithUserAgent("one"), p2pnode.WithoutDHT(), p2pnode.WithIdentity(key), p2pnode.WithoutListening(), via(a))
		sim.Connected(a, b)
		id, err := p2pnode.PeerID(key)
		mustNot(t, err)
		if b.ID() != id {
			t.Errorf("its ID is %s, not the one given", b.ID())
		}
		sim.Until("names", func() error {
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
	for range 2 { // goroutines of the first bubble must not affect the second
		synctest.Test(t, func(t *testing.T) {
			sim := p2ptest.NewNetwork(t)
			reg := prometheus.NewRegistry()
			a := sim.Node(t, p2pnode.WithMetrics(reg))
			b := sim.Node(t, via(a))
			sim.Ready(b)
			if families, err := reg.Gather(); err != nil || len(families) == 0 {
				t.Errorf("%d families, %v", len(families), err)
			}
		})
	}
}

func TestLeakedGoroutinesFailTheTest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		text := failing(t, func(tb testing.TB) {
			sim := p2ptest.NewNetwork(tb)
			sim.Node(tb, p2pnode.WithLibp2pOptions(func(*libp2p.Config) error {
				go func() { <-release }()
				return nil
			}))
		})
		close(release)
		wants(t, text, "goroutines of closed nodes are still running", "TestLeakedGoroutinesFailTheTest")
	})
}

func TestErrorOfCloseFailsTheTest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text := failing(t, func(tb testing.TB) {
			sim := p2ptest.NewNetwork(tb)
			n := sim.Node(tb)
			block := make(chan struct{})
			err := n.Handle("/stuck", func(_ context.Context, _ network.Stream) error {
				<-block // ignores its context: Close stops waiting after 5 seconds
				return nil
			})
			if err != nil {
				tb.Fatalf("%v", err)
			}
			other := sim.Node(tb, via(n))
			sim.Ready(other)
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
			sim := p2ptest.NewNetwork(t, p2ptest.WithSeed(seed), p2ptest.WithLatency(p2ptest.Uniform(time.Millisecond, 90*time.Millisecond)))
			if sim.Seed() != seed {
				t.Errorf("the seed is %d", sim.Seed())
			}
			nodes := sim.Nodes(t, 4, p2ptest.Random(2))
			sim.Ready()
			for _, n := range nodes {
				text += n.AddrInfo().String()
				rtt, err := nodes[0].Ping(t.Context(), nodes[len(nodes)-1].ID())
				mustNot(t, err)
				text += rtt.String() + " "
			}
			text += fmt.Sprint(sim.Rand("x").Uint64(), sim.Rand("y").Uint64())
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
			if c.n > 4 {
				needs.Time(t)
			}
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				// Without a DHT nodes find no other peers.
				nodes := sim.Nodes(t, c.n, c.shape, p2ptest.Use(p2pnode.WithoutDHT()))
				time.Sleep(5 * time.Second)
				if got := edges(nodes); got != c.want {
					t.Errorf("connected are %q, want %q", got, c.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithSeed(1))
		var started []int
		nodes := sim.Nodes(t, 20, p2ptest.Random(3), p2ptest.Use(p2pnode.WithoutDHT()),
			p2ptest.Started(func(i int, _ *p2ptest.Node) { started = append(started, i) }))
		if len(started) != 20 || started[19] != 19 {
			t.Errorf("told of the start of %v", started)
		}
		sim.Ready(nodes[1:])
		time.Sleep(5 * time.Second)
		subs := subscribeAll(t, "news", nodes)
		sim.Subscribed("news")
		sim.Meshed("news")
		publish(t, sim, nodes[19], "news", "all hang together", subs)
		for i, n := range nodes {
			if got := len(n.Peers()); got < 3 {
				t.Errorf("node %d has %d peers, want at least the 3 that it knows", i, got)
			}
		}
	})
}

// edges lists the connected pairs by index.
func edges(nodes p2ptest.Nodes) string {
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
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Regions()))...)
		nodes := sim.Nodes(t, 7)
		sim.Ready()
		if a, b := sim.Site(nodes[0]).Region, sim.Site(nodes[6]).Region; a != p2ptest.NorthAmerica || b != a {
			t.Errorf("the first is in %q, the seventh in %q", a, b)
		}
		ping := func(want time.Duration) {
			t.Helper()
			if rtt, err := nodes[1].Ping(t.Context(), nodes[0].ID()); err != nil || rtt != want {
				t.Errorf("ping: %v, %v, want %v", rtt, err, want)
			}
		}
		ping(124 * time.Millisecond) // Europe to North America
		sim.SetRegion(nodes[1], p2ptest.Australia)
		ping(189 * time.Millisecond)
	})
}

func TestNamesAreThoseOfTheNetworkAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a := sim.Node(t)
		sim.SetDNS("a.test", sim.Addr(a).String())
		sim.SetDNS("boot.test", a.Addrs()[0].String())
		for _, addr := range []string{"/dns4/a.test/udp/4001/quic-v1/p2p/" + a.ID().String(), "/dnsaddr/boot.test/p2p/" + a.ID().String()} {
			b := sim.Node(t, p2pnode.WithBootstrapAddrs(addr))
			sim.Ready(b)
			sim.Connected(a, b)
		}
		lost := sim.Node(t)
		infos, err := p2pnode.ParsePeers("/dns4/example.com/udp/4001/quic-v1/p2p/" + a.ID().String())
		mustNot(t, err)
		if err := lost.Connect(t.Context(), peer.AddrInfo{ID: a.ID(), Addrs: infos[0].Addrs}); err == nil {
			t.Error("a name of the real DNS is resolved")
		}
	})
}

func TestChurnKeepsTheNetworkGoing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	crowded(t)
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := sim.Nodes(t, 10)
		sim.Ready()
		first := make([]*p2pnode.Node, len(nodes))
		for i, n := range nodes {
			first[i] = n.Current()
		}
		var called atomic.Int64
		stop := sim.Churn(nodes[1:], 5*time.Second, 10*time.Second, func(*p2ptest.Node) { called.Add(1) })
		time.Sleep(2 * time.Minute)
		stop()
		restarted := 0
		for i, n := range nodes {
			if n.Current() != first[i] {
				restarted++
			}
		}
		if restarted < 5 || int(called.Load()) < restarted {
			t.Errorf("%d of 9 nodes were restarted within 24 crashes, and told of %d times", restarted, called.Load())
		}
		sim.Ready()
	})
}

func TestRealTimeWorksToo(t *testing.T) {
	bothReal := func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithLatency(p2ptest.Fixed(time.Millisecond)))...)
		nodes := sim.Nodes(t, 4)
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Subscribed("news")
		sim.Meshed("news")
		publish(t, sim, nodes[3], "news", "really", subs)
		sim.Crash(nodes[2])
		sim.Restart(nodes[2])
		sim.Ready(nodes[2])
	}
	t.Run("QUIC", func(t *testing.T) { bothReal(t) })
	t.Run("memory", func(t *testing.T) { bothReal(t, p2ptest.WithMemoryTransport()) })
}
