package p2pnode_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Two nodes behind symmetric NATs stay connected through a relay, whatever they try,
// and have there what its limits admit: content that is provided and found, streams
// of which each ends with the relay's limit, and topics that ask for it.
func TestNodesThatHaveRelaysAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		servers := sim.Nodes(t, 4, p2ptest.Use(p2pnode.WithProfile(p2pnode.ProfileServer)))
		opts := []p2pnode.Option{
			p2pnode.WithBootstrapPeers(servers[0].AddrInfo(), servers[1].AddrInfo(), servers[2].AddrInfo(), servers[3].AddrInfo()),
			p2pnode.WithNATTraversal(), p2pnode.WithRelayedPubSub(2 << 10),
		}
		a, b := sim.NAT(p2ptest.Symmetric).Node(t, opts...), sim.NAT(p2ptest.Symmetric).Node(t, opts...)
		for _, n := range []*p2ptest.Node{a, b} {
			if err := n.WaitReady(t.Context(), p2pnode.StageReachable, p2pnode.StageRouting); err != nil {
				t.Fatal(err)
			}
		}
		const echo = "/echo/1"
		if err := a.Handle(echo, func(_ context.Context, s network.Stream) error {
			_, err := io.Copy(s, s)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // the verdict is there, and the node a DHT client

		c := contents(t, 1)[0]
		if err := a.Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		found := false
		for ai, err := range b.FindProviders(t.Context(), c) {
			if err != nil {
				t.Fatal(err)
			}
			if ai.ID != a.ID() {
				continue
			}
			found = true
			for _, addr := range ai.Addrs {
				if _, err := addr.ValueForProtocol(ma.P_CIRCUIT); err != nil && !manet.IsPrivateAddr(addr) {
					t.Errorf("an address that leads nowhere is found: %v", addr) // those of the LAN lead somewhere there
				}
			}
			if err := b.Connect(t.Context(), ai); err != nil {
				t.Fatal(err)
			}
		}
		if !found {
			t.Fatal("what a node behind a relay provides is not found")
		}
		s, err := b.OpenStream(t.Context(), a.ID(), echo)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("one")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}

		sub, err := a.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Publish(t.Context(), "news", []byte("text")); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.Next(t.Context()); err != nil || string(m.Data) != "text" {
			t.Errorf("Next = %v, %v", m, err)
		}
		if err := b.Publish(t.Context(), "news", make([]byte, 3<<10)); !errors.Is(err, p2pnode.ErrTooLarge) {
			t.Errorf("a message above what relays get: %v", err)
		}

		time.Sleep(30 * time.Second) // hole punching has given up
		if p, ok := b.Peer(a.ID()); !ok || !p.Relayed || !p.Limited {
			t.Errorf("after hole punching: %+v", p)
		}
		time.Sleep(3 * time.Minute)
		_, err = s.Write([]byte("two"))
		if err == nil {
			_, err = io.ReadFull(s, make([]byte, 3))
		}
		if err == nil {
			t.Error("a stream outlasts the relay's limit of two minutes")
		}
		if _, err := b.OpenStream(t.Context(), a.ID(), echo); err != nil { // which connects again
			t.Errorf("OpenStream after the limit: %v", err)
		}
	})
}
