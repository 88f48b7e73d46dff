package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// behindRouters starts two nodes, each behind a router of its own, that punch holes
// and have a relay without limits.
func behindRouters(t *testing.T, sim *p2ptest.Network, opts ...p2pnode.Option) (a, b *p2ptest.Node) {
	relay := sim.Node(t, p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: true}))
	opts = append(opts, p2pnode.WithBootstrapPeers(relay.AddrInfo()), p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching())
	return sim.NAT(p2ptest.PortRestricted).Node(t, opts...), sim.NAT(p2ptest.PortRestricted).Node(t, opts...)
}

// TestPeersShowTheDirectConnectionBesideARelayedOneWithoutLimits: a relay
// without limits makes relayed connections that libp2p does not call limited.
func TestPeersShowTheDirectConnectionBesideARelayedOneWithoutLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a, b := behindRouters(t, sim)
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

// pathsOf records the events about the connections to a peer: how it is connected,
// and how it was.
func pathsOf(ctx context.Context, n *p2ptest.Node, id peer.ID, opts ...p2pnode.EventsOption) func() string {
	word := func(a ma.Multiaddr) string {
		if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
			return "relayed"
		}
		return "direct"
	}
	var mu sync.Mutex
	var list []string
	events := n.Events(ctx, opts...)
	go func() {
		for ev := range events {
			text := ""
			switch ev := ev.(type) {
			case p2pnode.EventPeerConnected:
				if ev.Peer.ID == id {
					text = word(ev.Peer.Addr)
				}
			case p2pnode.EventPathChanged:
				if ev.Peer.ID == id {
					text = word(ev.Was) + " to " + word(ev.Peer.Addr)
				}
			case p2pnode.EventPeerDisconnected:
				if ev.ID == id {
					text = "gone"
				}
			}
			if text != "" {
				mu.Lock()
				list = append(list, text)
				mu.Unlock()
			}
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(list, ", ")
	}
}

// Events tell when a direct connection takes the place of a relayed one, and when the
// relayed one is what is left.
func TestPathChangesAreTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a, b := behindRouters(t, sim, p2pnode.WithoutDHT()) // which would dial what it finds
		if err := b.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // hole punching waits for an observed address
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ofA, ofB := pathsOf(ctx, a, b.ID()), pathsOf(ctx, b, a.ID())
		are := func(when, want string) {
			t.Helper()
			if ofA() != want || ofB() != want {
				t.Errorf("%s: %q and %q, want %q", when, ofA(), ofB(), want)
			}
		}
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		want := "relayed, relayed to direct"
		are("after hole punching", want)
		if late := pathsOf(ctx, a, b.ID(), p2pnode.EventsWithState()); true {
			synctest.Wait()
			if late() != want {
				t.Errorf("who asks for the state is told %q, want %q", late(), want)
			}
		}

		for _, c := range a.Host().Network().ConnsToPeer(b.ID()) {
			if _, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err != nil {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(time.Second)
		want += ", direct to relayed"
		are("after the direct connection closed", want)

		if err := a.Disconnect(t.Context(), b.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want += ", gone"
		are("after Disconnect", want)
		if late := pathsOf(ctx, a, b.ID(), p2pnode.EventsWithState()); true {
			synctest.Wait()
			if late() != "" {
				t.Errorf("the state of a peer that is gone is %q", late())
			}
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
