package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// requests counts what DHT servers are asked, by whom, but for questions of nodes
// about themselves: the sweeping provider checks in that way whether it has peers.
type requests struct {
	mu    sync.Mutex
	count map[peer.ID]map[pb.Message_MessageType]int // guarded by mu
}

// counted is an option of those who are asked.
func (r *requests) counted() p2pnode.Option {
	return p2pnode.WithDHTOptions(dht.OnRequestHook(func(_ context.Context, s network.Stream, m *pb.Message) {
		r.mu.Lock()
		defer r.mu.Unlock()
		from := s.Conn().RemotePeer()
		if r.count == nil {
			r.count = make(map[peer.ID]map[pb.Message_MessageType]int)
		}
		if r.count[from] == nil {
			r.count[from] = make(map[pb.Message_MessageType]int)
		}
		if m.GetType() != pb.Message_FIND_NODE || string(m.GetKey()) != string(from) {
			r.count[from][m.GetType()]++
		}
	}))
}

// of returns what some nodes have asked.
func (r *requests) of(nodes ...*p2ptest.Node) map[pb.Message_MessageType]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[pb.Message_MessageType]int)
	for _, n := range nodes {
		for kind, count := range r.count[n.ID()] {
			all[kind] += count
		}
	}
	return all
}

// sum returns what all nodes have asked.
func (r *requests) sum() map[pb.Message_MessageType]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[pb.Message_MessageType]int)
	for _, asked := range r.count {
		for kind, count := range asked {
			all[kind] += count
		}
	}
	return all
}

// publicServers returns servers of a simulated public network that has settled.
func publicServers(tb testing.TB, sim *p2ptest.Network, n int, opts ...p2pnode.Option) p2ptest.Nodes {
	tb.Helper()
	nodes := p2ptest.Nodes{sim.Node(tb, append(onPublicAlone(tb), opts...)...)}
	for range n - 1 {
		nodes = append(nodes, sim.Node(tb, append(onPublic(nodes[0].AddrInfo()), opts...)...))
	}
	sim.RoutingTable(nodes, 1)
	time.Sleep(time.Minute)
	return nodes
}

// onPublicAlone returns the options of its first node, which knows nobody.
func onPublicAlone(tb testing.TB) []p2pnode.Option {
	tb.Helper()
	return onPublic(peer.AddrInfo{ID: strangeID(tb), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/99.1.2.3/udp/4001/quic-v1")}})
}

// announcer returns the options of a node that provides much.
func announcer(boot *p2ptest.Node, more ...p2pnode.Option) []p2pnode.Option {
	return append(onPublic(boot.AddrInfo()), more...)
}

// awaitCrawl waits until the first crawl of a node has ended.
func awaitCrawl(tb testing.TB, n *p2ptest.Node) {
	tb.Helper()
	for range 3600 {
		if n.Status().DHT.Accelerated.Ready {
			return
		}
		time.Sleep(time.Second)
	}
	tb.Fatalf("no crawl has ended: %+v", n.Status().DHT.Accelerated)
}

// Before the first crawl ends, an accelerated node announces as any other does;
// afterwards it takes no lookups. What it announces is found.
func TestAcceleratedNodeAnnouncesWithoutLookups(t *testing.T) {
	raced.Skip(t)
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	const size = 24
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		var asked requests
		nodes := publicServers(t, sim, size, asked.counted())
		// Without the refreshes of its table, every question about others is a lookup's.
		n := sim.Node(t, announcer(nodes[0], p2pnode.WithAcceleratedDHT(), p2pnode.WithDHTOptions(dht.DisableAutoRefresh()))...)
		sim.RoutingTable(n, 1)
		if st := n.Status().DHT.Accelerated; st == nil || st.Ready || st.Peers != 0 {
			t.Errorf("before the first crawl: %+v", st)
		}
		early := cidOf(t, "early")
		if err := n.Provide(t.Context(), early); err != nil {
			t.Fatal(err)
		}
		if n.Status().DHT.Accelerated.Ready {
			t.Error("the first crawl has ended already: this test shows nothing")
		}
		awaitCrawl(t, n)
		if st := n.Status().DHT.Accelerated; st.Peers != size {
			t.Errorf("the crawl found %d servers of %d", st.Peers, size)
		}
		list := contents(t, 50)
		if err := n.ProvideMany(t.Context(), slices.Values(list[:1])); err != nil {
			t.Fatal(err)
		}
		before := asked.of(n)
		one := cidOf(t, "one")
		if err := n.Provide(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		if err := n.ProvideMany(t.Context(), slices.Values(list)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // ProvideMany returns when each record has one holder
		after := asked.of(n)
		if got := after[pb.Message_FIND_NODE] - before[pb.Message_FIND_NODE]; got != 0 {
			t.Errorf("%d questions for closer peers", got)
		}
		if got := after[pb.Message_ADD_PROVIDER] - before[pb.Message_ADD_PROVIDER]; got < 20*len(list) {
			t.Errorf("%d records of %d were sent", got, 20*len(list))
		}
		for _, c := range append(list, early, one) {
			if !findsProvider(t, nodes[size/2], n, c) {
				t.Errorf("%s is not found", c)
			}
		}
		if st := nodes[1].Status().DHT; st.Accelerated != nil {
			t.Errorf("a node without the option: %+v", st.Accelerated)
		}
	})
}

// With fewer servers than a record goes to, lookups go on.
func TestAcceleratedNodeInASmallNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		nodes := publicServers(t, sim, 4)
		n := sim.Node(t, announcer(nodes[0], p2pnode.WithAcceleratedDHT())...)
		sim.RoutingTable(n, 1)
		time.Sleep(10 * time.Minute)
		if st := n.Status().DHT.Accelerated; st.Ready || st.Peers != 4 {
			t.Errorf("after a crawl of 4 servers: %+v", st)
		}
		c := cidOf(t, "x")
		if err := n.Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if !findsProvider(t, nodes[3], n, c) {
			t.Error("it is not found")
		}
	})
}

// A crawl with nobody there waits for somebody, and does not keep Close waiting.
func TestAcceleratedNodeWithNobodyThere(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		gone := sim.Node(t, onPublicAlone(t)...)
		at := gone.AddrInfo()
		sim.Crash(gone)
		n := sim.Node(t, append(onPublic(at), p2pnode.WithAcceleratedDHT())...)
		time.Sleep(3 * time.Hour)
		if st := n.Status().DHT.Accelerated; st == nil || st.Ready || st.Peers != 0 {
			t.Errorf("alone: %+v", st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := n.Provide(ctx, cidOf(t, "x")); !errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("Provide = %v", err)
		}
		begun := time.Now()
		if err := n.Close(); err != nil || time.Since(begun) > time.Second {
			t.Errorf("Close = %v after %v", err, time.Since(begun))
		}
	})
}

// Close during a crawl ends it at once, also while it waits for silent servers, and
// leaves nothing: the test's bubble would not end.
func TestAcceleratedNodeClosesDuringACrawl(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		nodes := publicServers(t, sim, 12)
		for _, after := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
			n := sim.Node(t, announcer(nodes[0], p2pnode.WithAcceleratedDHT())...)
			sim.RoutingTable(n, 1)
			if after == time.Second {
				sim.Crash(nodes[4:]) // dials of these last
			}
			time.Sleep(after)
			if st := n.Status().DHT.Accelerated; st.Peers > 0 {
				t.Errorf("after %v the crawl has ended: %+v", after, st)
			}
			begun := time.Now()
			if err := n.Close(); err != nil || time.Since(begun) > time.Second {
				t.Errorf("Close after %v: %v, took %v", after, err, time.Since(begun))
			}
		}
	})
}

// BenchmarkAcceleratedProvideMany counts, on a simulated public network of 100
// servers, what a node asks them for each of 1,000 CIDs that it announces, with and
// without the accelerated client, and for one CID by itself.
func BenchmarkAcceleratedProvideMany(b *testing.B) {
	const servers, keys, single = 100, 1000, 20
	for name, opts := range map[string][]p2pnode.Option{"lookups": nil, "accelerated": {p2pnode.WithAcceleratedDHT()}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p2ptest.Run(b.Name(), func(t *testing.T) {
					sim := quiet(t)
					var asked requests
					n := sim.Node(t, append(announcer(publicServers(t, sim, servers, asked.counted())[0], p2pnode.WithDHTOptions(dht.DisableAutoRefresh())), opts...)...)
					sim.RoutingTable(n, 1)
					if len(opts) > 0 {
						begun := asked.of(n)[pb.Message_FIND_NODE]
						awaitCrawl(t, n)
						b.ReportMetric(float64(asked.of(n)[pb.Message_FIND_NODE]-begun), "crawl")
					}
					time.Sleep(5 * time.Minute)
					report := func(what string, per int, do func()) {
						before := asked.of(n)
						do()
						time.Sleep(5 * time.Minute)
						after := asked.of(n)
						for _, kind := range []pb.Message_MessageType{pb.Message_FIND_NODE, pb.Message_ADD_PROVIDER, pb.Message_GET_PROVIDERS} {
							b.ReportMetric(float64(after[kind]-before[kind])/float64(per), what+kind.String())
						}
					}
					list := contents(t, keys+single)
					report("many-", keys, func() {
						if err := n.ProvideMany(t.Context(), slices.Values(list[:keys])); err != nil {
							t.Fatal(err)
						}
					})
					report("one-", single, func() {
						for _, c := range list[keys:] {
							if err := n.Provide(t.Context(), c); err != nil {
								t.Fatal(err)
							}
						}
					})
				})
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
