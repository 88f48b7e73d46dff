package p2pnode_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// The tests of this file run whole nodes on a simulated network, in virtual
// time.

// TestBlackHoleDetectionDoesNotKeepANodeApart: after 100 failed dials over UDP
// libp2p lets one in 100 through, so that a node that had no network for half
// an hour would stay without peers for an hour more.
func TestBlackHoleDetectionDoesNotKeepANodeApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 2)
		sim.Ready()
		sim.Isolate(nodes[1])
		time.Sleep(3 * time.Hour) // some 300 dials
		sim.Heal()
		begun := time.Now()
		sim.Within(time.Minute).Connected(nodes[0], nodes[1])
		if took := time.Since(begun); took > 36*time.Second {
			t.Errorf("connected again after %v, want within the longest backoff and one dial", took)
		}
	})
}

// TestPeersShowTheDirectConnectionBesideARelayedOneWithoutLimits: a relay
// without limits makes relayed connections that libp2p does not call limited.
func TestPeersShowTheDirectConnectionBesideARelayedOneWithoutLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: true}))
		opts := []p2pnode.Option{
			p2pnode.WithBootstrapPeers(relay.AddrInfo()), p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching(),
		}
		a := sim.NAT(p2ptest.PortRestricted).Node(t, opts...)
		b := sim.NAT(p2ptest.PortRestricted).Node(t, opts...)
		sim.Ready()
		sim.Until("a reservation", func() error {
			if !b.Status().Relays[0].Reserved {
				return errors.New("there is none")
			}
			return nil
		})
		time.Sleep(time.Second) // hole punching waits for an observed address
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		sim.Until("a direct connection", func() error {
			for _, p := range a.Peers() {
				if p.ID == b.ID() && !p.Relayed {
					return nil
				}
			}
			return errors.New("the connection is relayed")
		})
	})
}

// TestBootstrapPeerThatComesBackIsMetSoon: within 2 seconds in the first minute
// of the outage, within the longest backoff later.
func TestBootstrapPeerThatComesBackIsMetSoon(t *testing.T) {
	for _, transport := range []string{"QUIC", "memory"} {
		for _, down := range []time.Duration{time.Second, 5 * time.Second, 33 * time.Second, time.Minute, 10 * time.Minute} {
			t.Run(transport+" "+down.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var opts []p2ptest.Option
					if transport == "memory" {
						opts = append(opts, p2ptest.WithMemoryTransport())
					}
					sim := p2ptest.NewNetwork(t, opts...)
					nodes := sim.Nodes(t, 3, p2ptest.Use(p2pnode.WithoutDHT()))
					sim.Ready()
					if err := nodes[0].Close(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(down)
					boot := nodes[0]
					sim.Restart(boot)
					back := time.Now()
					sim.Connected(nodes[1], boot)
					sim.Connected(nodes[2], boot)
					limit := 2 * time.Second
					if down > time.Minute {
						limit = 30*time.Second + 5*time.Second // the longest backoff, and a current dial
					}
					if took := time.Since(back); took > limit {
						t.Errorf("connected again %v after the return", took)
					}
				})
			})
		}
	}
}

// TestBootstrapPeerThatStartedAfreshIsFoundByThoseWhoHaveOthers restarts a
// bootstrap peer, which knows no peers, while the others have each other and have
// forgotten it: nodes that join through it would form a separate network.
func TestBootstrapPeerThatStartedAfreshIsFoundByThoseWhoHaveOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		join := p2pnode.WithBootstrapPeers(boot.AddrInfo())
		a, b := sim.Node(t, join), sim.Node(t, join)
		sim.RoutingTable(a, 2)
		sim.RoutingTable(b, 2)
		sim.Crash(boot)
		for _, n := range []*p2ptest.Node{a, b} { // a query that fails drops it from the tables
			sim.Disconnected(n, boot)
			if _, err := n.GetValue(t.Context(), "/pk/nobody"); err == nil {
				t.Fatal("found")
			}
		}
		time.Sleep(time.Minute)
		sim.Restart(boot)
		late := sim.Node(t, join)
		sim.Within(11*time.Minute).Connected(a, boot)
		sim.Within(11*time.Minute).Connected(b, boot)
		if err := late.Provide(t.Context(), must(p2pnode.CIDOf(strings.NewReader("x")))); err != nil {
			t.Fatal(err)
		}
		for p, err := range a.FindProviders(t.Context(), must(p2pnode.CIDOf(strings.NewReader("x")))) {
			if err != nil || p.ID != late.ID() {
				t.Errorf("%v, %v", p, err)
			}
		}
	})
}

// TestBootstrapIsContentWithNobody: a node that wants none does not look for any.
func TestBootstrapIsContentWithNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
		boot := sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithMinPeers(0))
		time.Sleep(time.Hour)
		if got := len(n.Peers()); got != 0 {
			t.Errorf("%d peers", got)
		}
	})
}

// TestNamesAreResolvedAgainInEachRound: a bootstrap peer that moved is found
// under its name.
func TestNamesAreResolvedAgainInEachRound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		id := boot.ID().String()
		sim.SetDNS("boot.test", "192.0.2.1") // where nobody is
		byIP := sim.Node(t, p2pnode.WithBootstrapAddrs("/dns4/boot.test/udp/4001/quic-v1/p2p/"+id))
		sim.SetDNS("seeds.test", "/ip4/192.0.2.1/udp/4001/quic-v1/p2p/"+id)
		byList := sim.Node(t, p2pnode.WithBootstrapAddrs("/dnsaddr/seeds.test/p2p/"+id))
		unknown := sim.Node(t, p2pnode.WithBootstrapAddrs("/dns4/later.test/udp/4001/quic-v1/p2p/"+id))
		time.Sleep(20 * time.Second)
		if n := len(boot.Peers()); n != 0 {
			t.Fatalf("%d nodes are connected: the test shows nothing", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := unknown.WaitReady(ctx)
		cancel()
		if missing := missingStages(err); len(missing) == 0 || !strings.Contains(missing[0].Why, "/dns4/later.test") {
			t.Errorf("a name that resolves to nothing: %v", err)
		}
		if r := unknown.Status().Bootstrap; r == nil || len(r.Failed) != 1 || !errors.Is(r.Failed[0].Err, swarm.ErrNoGoodAddresses) {
			t.Errorf("a name that resolves to nothing: the round is %+v", r)
		}
		sim.SetDNS("boot.test", sim.Addr(boot).String())
		sim.SetDNS("seeds.test", boot.Addrs()[0].String())
		sim.SetDNS("later.test", sim.Addr(boot).String())
		for _, n := range []*p2ptest.Node{byIP, byList, unknown} {
			sim.Within(10*time.Second).Connected(n, boot)
		}
	})
}

// TestSavedPeersBringANodeBackWithEveryBootstrapPeerDead: within 2 seconds,
// after an orderly end and after a crash.
func TestSavedPeersBringANodeBackWithEveryBootstrapPeerDead(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	for _, c := range []struct {
		name  string
		crash bool
		after time.Duration
	}{{"restarted", false, time.Minute}, {"crashed", true, 11 * time.Minute}, {"crashed early", true, 2 * time.Minute}} {
		t.Run(c.name, func(t *testing.T) {
			crash := c.crash
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				nodes := sim.Nodes(t, 6)
				n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo(), nodes[1].AddrInfo()), p2pnode.WithDataDir(dir))
				sim.Ready()
				sim.RoutingTable(n, 6)
				time.Sleep(c.after)
				if crash {
					sim.Crash(n)
				}
				sim.Crash(nodes[0], nodes[1])
				begun := time.Now()
				sim.Restart(n)
				if !crash {
					begun = time.Now() // its Close came before
				}
				sim.Until("peers", func() error {
					if len(n.Peers()) == 0 {
						return errors.New("there are none")
					}
					return nil
				})
				if took := time.Since(begun); took > 2*time.Second {
					t.Errorf("it has peers after %v", took)
				}
				sim.Ready(n)
			})
		})
	}
}

// TestPeersReachedByARelayAreNotSaved includes a relay without limits, whose
// connections are not marked as limited.
func TestPeersReachedByARelayAreNotSaved(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
		relay := sim.Node(t, p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: true}))
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()))
		if err := hidden.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		n := sim.Node(t, p2pnode.WithBootstrapPeers(relay.AddrInfo()), p2pnode.WithDataDir(dir))
		if err := n.Connect(t.Context(), hidden.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		// It may announce more than relayed addresses.
		n.Host().Peerstore().AddAddr(hidden.ID(), ma.StringCast("/ip4/16.9.9.9/udp/1/quic-v1"), time.Hour)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "peers"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), relay.ID().String()) || strings.Contains(string(text), hidden.ID().String()) {
			t.Errorf("saved are: %s", text)
		}
	})
}

// TestPeersTellHowTheyAreConnected checks what Peers reports: direct or relayed
// connections, their transports and times, and protocols.
func TestPeersTellHowTheyAreConnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayService())
		// Without a DHT: filling its table it may well dial the other directly.
		behind := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithoutDHT(), p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithUserAgent("hidden/1"))
		if err := behind.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		n := sim.Node(t, p2pnode.WithBootstrapPeers(relay.AddrInfo()))
		sim.Ready(n)
		time.Sleep(time.Minute)
		begun := time.Now()
		if err := n.Connect(t.Context(), behind.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for _, p := range n.Peers() {
			direct := p.ID == relay.ID()
			transport, agent := "p2p-circuit", "hidden/1"
			if direct {
				transport, agent = "quic-v1", "p2pnode"
			}
			if p.Relayed == direct || p.Transport != transport || p.Agent != agent || p.Direction != "outbound" ||
				p.Since.Before(begun) != direct || p.Since.After(begun.Add(2*time.Second)) ||
				!slices.Contains(p.Protocols, "/ipfs/ping/1.0.0") || !slices.IsSorted(p.Protocols) {
				t.Errorf("%+v", p)
			}
		}
		if len(n.Peers()) != 2 {
			t.Errorf("%d peers", len(n.Peers()))
		}
	})
}

// TestEventsTellOfRelaysHolePunchesAndProvides.
func TestEventsTellOfRelaysHolePunchesAndProvides(t *testing.T) {
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

// TestStreamsSurviveAShortCut: a stream over a path that is cut for less than
// the 30 seconds of QUIC's idle timeout delivers everything.
func TestStreamsSurviveAShortCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 2)
		sim.Ready()
		got := make(chan string, 1)
		err := nodes[0].Handle("/sink", func(_ context.Context, s network.Stream) error {
			data, err := io.ReadAll(s)
			got <- string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := nodes[1].OpenStream(t.Context(), nodes[0].ID(), "/sink")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("before, ")); err != nil {
			t.Fatal(err)
		}
		sim.Isolate(nodes[1])
		if _, err := s.Write([]byte("during")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		sim.Heal()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if text := <-got; text != "before, during" {
			t.Errorf("got %q", text)
		}
	})
}

// Of peers that came once and left, nothing is kept for good (kubo#3532).
func TestPeersThatLeftAreForgotten(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		server := sim.Node(t)
		for range 3 {
			var list p2ptest.Nodes
			for range 10 {
				n := sim.Node(t, p2pnode.WithMinPeers(0))
				if err := n.Connect(t.Context(), server.AddrInfo()); err != nil {
					t.Fatal(err)
				}
				list = append(list, n)
			}
			time.Sleep(time.Minute)
			sim.Crash(list)
			time.Sleep(time.Minute)
		}
		time.Sleep(3 * time.Hour)
		if kept := len(server.Host().Peerstore().Peers()) - 1; kept > 0 {
			t.Errorf("3 hours after 30 peers left, %d are in the peerstore", kept)
		}
	})
}

// With a keep-alive a peer that crashed is noticed within the interval and the 5
// seconds that it has to answer; without, QUIC needs 15 to 45 seconds.
func TestKeepAliveNoticesACrash(t *testing.T) {
	t.Parallel()
	for _, alive := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			sim := p2ptest.NewNetwork(t)
			var opts []p2pnode.Option
			if alive {
				opts = append(opts, p2pnode.WithKeepAlive(5*time.Second))
			}
			n := sim.Node(t, opts...)
			other := sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo()))
			sim.Connected(n, other)
			conn := n.Host().Network().ConnsToPeer(other.ID())[0]
			time.Sleep(10 * time.Minute)
			if conn.IsClosed() {
				t.Error("the connection of a living peer is closed")
			}
			p, _ := n.Peer(other.ID())
			if age := time.Since(p.LastSeen); alive && age > 6*time.Second || !alive && age < 9*time.Minute {
				t.Errorf("keep-alive %t: last seen %v ago", alive, age)
			}
			sim.Crash(other)
			begun := time.Now()
			sim.Disconnected(n, other)
			if took := time.Since(begun); alive && took > 10*time.Second || !alive && took < 14*time.Second || took > 46*time.Second {
				t.Errorf("keep-alive %t: noticed after %v", alive, took)
			}
		})
	}
}
