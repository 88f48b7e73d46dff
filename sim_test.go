package p2pnode_test

import (
	"context"
	"flag"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Events tell of reservations, of hole punches, and of announcements.
func TestEventsTellOfRelaysHolePunchesAndProvides(t *testing.T) {
	needs.Time(t)
	for _, kind := range []p2ptest.NATKind{p2ptest.PortRestricted, p2ptest.Symmetric} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				relay := sim.Node(t, p2pnode.WithRelayService())
				opts := []p2pnode.Option{p2pnode.WithBootstrapPeers(relay.AddrInfo()), p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching()}
				a := sim.NAT(kind).Node(t, opts...)
				b := sim.NAT(kind).Node(t, opts...)
				var mu sync.Mutex
				var reserved, lost, provided, unprovided int
				var punches []p2pnode.EventHolePunched
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				events := b.Events(ctx)
				go func() {
					for ev := range events {
						mu.Lock()
						switch ev := ev.(type) {
						case p2pnode.EventRelayReserved:
							if ev.ID == relay.ID() {
								reserved++
							}
						case p2pnode.EventRelayLost:
							lost++
						case p2pnode.EventHolePunched:
							if ev.ID == a.ID() {
								punches = append(punches, ev)
							}
						case p2pnode.EventProvided:
							if ev.Err == nil {
								provided++
							} else {
								unprovided++
							}
						}
						mu.Unlock()
					}
				}()
				if err := b.WaitReady(t.Context(), p2pnode.StageReachable, p2pnode.StageRouting); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				c, err := p2pnode.CIDOf(strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Provide(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if err := relay.Close(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				mu.Lock()
				defer mu.Unlock()
				if reserved != 1 || lost != 1 || provided != 1 || unprovided != 0 {
					t.Errorf("%d reservations, %d lost, %d provides, %d that failed", reserved, lost, provided, unprovided)
				}
				if len(punches) == 0 {
					t.Fatal("no hole punch is told of")
				}
				if last := punches[len(punches)-1]; (last.Err == nil) != (kind == p2ptest.PortRestricted) || last.Took <= 0 {
					t.Errorf("the last of %d attempts: %+v", len(punches), last)
				}
			})
		})
	}
}

// TestNetworksOfTwoNamesNeverMix: on the same bootstrap peers, two applications
// share neither routing tables nor records nor rendezvous.
func TestNetworksOfTwoNamesNeverMix(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		bootA := sim.Node(t, p2pnode.WithNetwork("a"))
		bootB := sim.Node(t, p2pnode.WithNetwork("b"))
		boots := p2pnode.WithBootstrapPeers(bootA.AddrInfo(), bootB.AddrInfo())
		var a, b []*p2ptest.Node
		for range 4 {
			a = append(a, sim.Node(t, p2pnode.WithNetwork("a"), boots))
			b = append(b, sim.Node(t, p2pnode.WithNetwork("b"), boots))
		}
		sim.Ready()
		time.Sleep(time.Minute)
		ids := func(list []*p2ptest.Node, more ...*p2ptest.Node) (out []peer.ID) {
			for _, n := range append(more, list...) {
				out = append(out, n.ID())
			}
			return out
		}
		for _, side := range []struct {
			nodes []*p2ptest.Node
			own   []peer.ID
		}{{a, ids(a, bootA)}, {b, ids(b, bootB)}} {
			for _, n := range side.nodes {
				table := n.DHT().(*dht.IpfsDHT).RoutingTable().ListPeers()
				if len(table) == 0 {
					t.Error("an empty table shows nothing")
				}
				for _, id := range table {
					if !slices.Contains(side.own, id) {
						t.Errorf("%s of the other network is in a routing table", id)
					}
				}
			}
		}
		c, err := p2pnode.CIDOf(strings.NewReader("shared"))
		if err != nil {
			t.Fatal(err)
		}
		if err := a[0].Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := a[0].Advertise(t.Context(), "room"); err != nil {
			t.Fatal(err)
		}
		found := func(n *p2ptest.Node) (list []peer.ID) {
			for ai := range n.FindProviders(t.Context(), c) {
				list = append(list, ai.ID)
			}
			for ai := range n.FindPeers(t.Context(), "room") {
				list = append(list, ai.ID)
			}
			return list
		}
		if got := found(a[3]); len(got) != 2 {
			t.Errorf("its own network finds %v", got)
		}
		if got := found(b[3]); len(got) != 0 {
			t.Errorf("the other network finds %v", got)
		}
	})
}

// TestAThousandTimesAloneLeaveNothing loses and regains all peers a thousand times,
// or two hundred without -long. Afterwards there are as many goroutines as after a
// few cycles, and the heap is as large, except that gossipsub (v0.17) never
// cancels the context that it makes for each stream to a peer, about 1 KB, until
// the node closes.
func TestAThousandTimesAloneLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	if raced.Detector {
		t.Skip("too many goroutines come and go for the race detector: run it without -race")
	}
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		n := nodes[2]
		subscribed, err := n.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		c, err := p2pnode.CIDOf(strings.NewReader("kept"))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		cycle := func() {
			for _, p := range n.Host().Network().Peers() {
				if err := n.Host().Network().ClosePeer(p); err != nil {
					t.Fatal(err)
				}
			}
			sim.Isolate(n)
			time.Sleep(5 * time.Second)
			sim.Heal()
			sim.Connected(n, nodes[0])
			time.Sleep(5 * time.Second)
		}
		measure := func() (goroutines int, heap uint64) {
			time.Sleep(5 * time.Minute) // whatever has a timeout ends
			synctest.Wait()
			runtime.GC()
			runtime.GC()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			return runtime.NumGoroutine(), mem.HeapAlloc
		}
		first, more := 20, 180
		if flag.Lookup("long").Value.String() == "true" { // of main_test.go
			first, more = 50, 950
		}
		for range first {
			cycle()
		}
		goroutines, heap := measure()
		for range more {
			cycle()
		}
		again, grown := measure()
		t.Logf("%d goroutines and %d KB before, %d and %d KB after", goroutines, heap>>10, again, grown>>10)
		if again > goroutines+20 {
			t.Errorf("%d goroutines after %d cycles, %d after %d more", goroutines, first, again, more)
		}
		kept := uint64(more) * 2 * 3 << 9 // 1.5 KB for each of two peers
		if grown > heap+kept {
			t.Errorf("%d KB of heap after %d cycles, %d KB after %d more", heap>>10, first, grown>>10, more)
		}
		if err := subscribed.Close(); err != nil {
			t.Error(err)
		}
	})
}
