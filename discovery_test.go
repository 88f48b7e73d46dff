package p2pnode

import (
	"context"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/routing"
)

func membersOf(tb testing.TB, n *Node, namespace string) []peer.ID {
	tb.Helper()
	var ids []peer.ID
	for p, err := range n.FindPeers(testContext(tb), namespace) {
		mustNot(tb, err)
		ids = append(ids, p.ID)
	}
	return ids
}

func TestRendezvous(t *testing.T) {
	_, others := star(t, 3)
	mustNot(t, others[0].Advertise(testContext(t), "room"))
	mustNot(t, others[1].Advertise(testContext(t), "another room"))
	if got := membersOf(t, others[2], "room"); len(got) != 1 || got[0] != others[0].ID() {
		t.Errorf("in the room: %v", got)
	}
	if got := membersOf(t, others[0], "room"); len(got) != 0 {
		t.Errorf("it found itself: %v", got)
	}
	if err := others[0].Advertise(testContext(t), ""); !errors.Is(err, errNoNamespace) {
		t.Errorf("an empty namespace is advertised: %v", err)
	}
	if err := last(others[0].FindPeers(testContext(t), "")); !errors.Is(err, errNoNamespace) {
		t.Errorf("an empty namespace is searched: %v", err)
	}
}

// The node repeats a failed announcement (pitfall 4): the first attempt fails,
// and one succeeds once a peer has connected.
func TestPitfall04AdvertiseGoesOn(t *testing.T) {
	lone := newNode(t)
	first := make(chan error, 1)
	go func() { first <- lone.Advertise(testContext(t), "room") }()
	late := newNode(t, via(lone))
	ready(t, late)
	err := <-first
	if err != nil && !errors.Is(err, ErrNoPeers) {
		t.Fatal(err)
	}
	mustNot(t, waitFor(t, func() bool { return len(membersOf(t, late, "room")) == 1 }))
}

// The context bounds the first attempt, not the announcing.
func TestAdvertiseOutlivesItsContext(t *testing.T) {
	lone := newNode(t)
	if err := lone.Advertise(ended(), "room"); !errors.Is(err, context.Canceled) {
		t.Errorf("Advertise = %v", err)
	}
	late := newNode(t, via(lone))
	ready(t, late)
	mustNot(t, waitFor(t, func() bool { return len(membersOf(t, late, "room")) == 1 }))
}

// Both directions with go-libp2p's own rendezvous.
func TestMeetsAHandAssembledRendezvous(t *testing.T) {
	raw, info := rawPeer(t)
	n := newNode(t, WithNetwork("ipfs"), WithBootstrapPeers(info))
	ready(t, n)
	ctx := testContext(t)
	mustNot(t, waitFor(t, func() bool { return raw.RoutingTable().Size() > 0 }))
	rendezvous := routing.NewRoutingDiscovery(raw)
	mustNot(t, n.Advertise(ctx, "from us"))
	found, err := rendezvous.FindPeers(ctx, "from us")
	mustNot(t, err)
	seen := false
	for p := range found {
		seen = seen || p.ID == n.ID()
	}
	if !seen {
		t.Error("the raw peer does not find the node")
	}
	_, err = rendezvous.Advertise(ctx, "from them")
	mustNot(t, err)
	if got := membersOf(t, n, "from them"); len(got) != 1 || got[0] != info.ID {
		t.Errorf("found %v", got)
	}
}
