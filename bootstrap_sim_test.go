package p2pnode_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// TestBlackHoleDetectionDoesNotKeepANodeApart: after 100 failed dials over UDP
// libp2p lets one in 100 through, so that a node that had no network for half
// an hour would stay without peers for an hour more.
func TestBlackHoleDetectionDoesNotKeepANodeApart(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second: run without -short")
	}
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

// TestBootstrapPeerThatComesBackIsMetSoon: within 2 seconds in the first minute
// of the outage, within the longest backoff later.
func TestBootstrapPeerThatComesBackIsMetSoon(t *testing.T) {
	for _, transport := range []string{"QUIC", "memory"} {
		for _, down := range []time.Duration{time.Second, 5 * time.Second, 33 * time.Second, time.Minute, 10 * time.Minute} {
			if testing.Short() && down != 33*time.Second {
				continue
			}
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
	needs.Time(t)
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
