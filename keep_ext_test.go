package p2pnode_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Bootstrap peers can be added to a node without any, and removed.
func TestBootstrapPeersAddedAndRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot, n := sim.Node(t), sim.Node(t)
		if err := n.AddBootstrapPeers(boot.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		sim.Within(2*time.Second).Connected(n, boot)
		if err := n.RemoveBootstrapPeers(boot.ID()); err != nil {
			t.Error(err)
		}
		if err := n.RemoveBootstrapPeers(boot.ID()); err == nil {
			t.Error("a bootstrap peer is removed twice")
		}
		if _, ok := n.Peer(boot.ID()); !ok {
			t.Error("removing a bootstrap peer closed its connection")
		}
		for what, err := range map[string]error{
			"itself": n.AddBootstrapPeers(n.AddrInfo()), "nobody": n.AddBootstrapPeers(),
		} {
			if err == nil {
				t.Errorf("%s is added as a bootstrap peer", what)
			}
		}
		if err := n.BanPeer(boot.ID(), time.Time{}, ""); err != nil {
			t.Fatal(err)
		}
		if err := n.AddBootstrapPeers(boot.AddrInfo()); !errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("a banned bootstrap peer: %v", err)
		}
	})
}

// Disconnect hangs up on a bootstrap peer until Connect asks for it again, and
// on a persistent one until the node dials it again.
func TestDisconnect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot, friend := sim.Node(t), sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithPersistentPeers(friend.AddrInfo()))
		sim.Connected(n, boot)
		sim.Connected(n, friend)
		if err := n.Disconnect(t.Context(), boot.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if _, ok := n.Peer(boot.ID()); ok {
			t.Error("the node dialed a peer that it had hung up on")
		}
		if err := n.Connect(t.Context(), boot.AddrInfo()); err != nil {
			t.Error(err)
		}
		if err := n.Disconnect(t.Context(), friend.ID()); err != nil {
			t.Fatal(err)
		}
		sim.Within(time.Minute).Connected(n, friend)
		if err := n.Disconnect(t.Context(), ""); err == nil {
			t.Error("nobody is disconnected")
		}
		if err := n.Disconnect(t.Context(), n.ID()); err != nil {
			t.Errorf("a peer that is not connected: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.Disconnect(t.Context(), boot.ID()); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// After its first bootstrap peer is added at run time, a node wants one peer, as
// with WithBootstrapPeers: WaitReady waits for it.
func TestBootstrapPeersAddedAreWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot, n := sim.Node(t), sim.Node(t)
		where := sim.AddrInfo(boot)
		sim.Crash(boot)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.WaitReady(ctx); err != nil {
			t.Errorf("alone: %v", err)
		}
		if err := n.AddBootstrapPeers(where); err != nil {
			t.Fatal(err)
		}
		missing, _ := errors.AsType[*p2pnode.NotReadyError](n.WaitReady(ctx))
		if missing == nil || len(missing.Missing) != 2 || missing.Missing[0].Stage != p2pnode.StageConnected || missing.Missing[1].Stage != p2pnode.StageRouting {
			t.Errorf("with a bootstrap peer: %v", missing)
		}
		sim.Restart(boot)
		if err := n.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
		if err := n.RemoveBootstrapPeers(boot.ID()); err != nil {
			t.Error(err)
		}
		sim.Crash(boot)
		sim.Disconnected(n, boot)
		if err := n.WaitReady(ctx); err != nil {
			t.Errorf("alone again: %v", err)
		}
	})
}

// EventPeerFound reports discovered peers with the source.
func TestPeersFoundAreReported(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithDataDir(t.TempDir()))
		// A server in the same table would be connected again by the search itself.
		other := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		sim.Ready()
		found := func(n *p2ptest.Node) <-chan p2pnode.EventPeerFound {
			list := make(chan p2pnode.EventPeerFound, 10)
			events := n.Events(t.Context())
			go func() {
				defer close(list)
				for ev := range events {
					if f, ok := ev.(p2pnode.EventPeerFound); ok {
						list <- f
					}
				}
			}()
			return list
		}
		expect := func(list <-chan p2pnode.EventPeerFound, source string) {
			t.Helper()
			time.Sleep(time.Second) // a dial returns when the peer is identified
			select {
			case f := <-list:
				if f.ID != other.ID() || f.Source != source || len(f.Addrs) == 0 {
					t.Errorf("found %+v", f)
				}
			default:
				t.Errorf("no peer is found by %s", source)
			}
			if len(list) > 0 {
				t.Errorf("%d more", len(list))
			}
		}
		search := func() {
			t.Helper()
			for ai, err := range n.FindPeers(t.Context(), "cats") {
				if err != nil || ai.ID != other.ID() {
					t.Errorf("%v, %v", ai, err)
				}
			}
		}

		if err := other.Advertise(t.Context(), "cats"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // it announces to n too
		if err := n.Disconnect(t.Context(), other.ID()); err != nil {
			t.Fatal(err)
		}
		sim.Disconnected(n, other)
		list := found(n)
		search()
		expect(list, "rendezvous")
		if err := n.Connect(t.Context(), sim.AddrInfo(other)); err != nil {
			t.Fatal(err)
		}
		search() // a connected peer is not found
		synctest.Wait()
		if len(list) > 0 {
			t.Errorf("a connected peer is found: %+v", <-list)
		}

		// It comes back without its bootstrap peer, and the other is saved.
		time.Sleep(time.Hour)
		sim.Crash(boot)
		sim.Restart(n)
		list = found(n)
		sim.Connected(n, other)
		expect(list, "saved")
	})
}
