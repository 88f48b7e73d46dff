package p2pnode_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Bootstrap peers can be added to a node that was told of none, and removed.
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
