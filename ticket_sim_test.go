package p2pnode_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// ticketOf returns the text of a node's ticket.
func ticketOf(t *testing.T, n *p2ptest.Node, opts ...p2pnode.TicketOption) string {
	t.Helper()
	made, err := n.Ticket(opts...)
	if err != nil {
		t.Fatal(err)
	}
	return made.Text()
}

// A ticket is all that a node needs to join: the network's name and a peer, which
// it dials until that answers, and again when it is lost.
func TestTwoNodesMeetByTicketAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a := sim.Node(t, p2pnode.WithNetwork("acme"))
		text := ticketOf(t, a)
		sim.Isolate(a) // not there when the other starts
		b := sim.Node(t, p2pnode.WithTicket(text))
		time.Sleep(time.Minute)
		sim.Disconnected(a, b)
		sim.Heal()
		sim.Connected(a, b)
		sim.Ready()
		if s := b.Status(); s.Network != "/acme" {
			t.Errorf("it joined %q", s.Network)
		}
		sub, err := a.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Publish(t.Context(), "news", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if m, err := sub.Next(t.Context()); err != nil || string(m.Data) != "hello" {
			t.Errorf("%q, %v", m.Data, err)
		}
		// Who joined by a ticket makes tickets for others.
		c := sim.Node(t, p2pnode.WithTicket(ticketOf(t, b)))
		sim.Connected(c, b)
		// Lost peers of a ticket are dialed again.
		sim.Isolate(a)
		time.Sleep(2 * time.Minute)
		sim.Heal()
		sim.Connected(a, b)
	})
}

// The ticket of a node behind a NAT has its addresses at its relays.
func TestTicketOverARelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relays := []*p2ptest.Node{sim.Node(t, p2pnode.WithRelayService()), sim.Node(t, p2pnode.WithRelayService())}
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithNetwork("acme"), p2pnode.WithAutoRelay(relays[0].AddrInfo(), relays[1].AddrInfo()))
		events := hidden.Events(t.Context(), p2pnode.EventsWithState())
		for ev := range events {
			if _, ok := ev.(p2pnode.EventAddrsChanged); ok {
				if s := hidden.Status(); s.Relays[0].Reserved && s.Relays[1].Reserved {
					break
				}
			}
		}
		text := ticketOf(t, hidden)
		made, err := p2pnode.ParseTicket(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range relays {
			if !slices.ContainsFunc(made.Peers()[0].Addrs, func(a ma.Multiaddr) bool {
				return addrs.IsCircuit(a) && strings.Contains(a.String(), r.ID().String())
			}) {
				t.Errorf("%v has no address through %s", made.Peers(), r.ID())
			}
		}
		joiner := sim.NAT(p2ptest.PortRestricted).Node(t, p2pnode.WithTicket(text))
		sim.Connected(joiner, hidden)
		p, ok := joiner.Peer(hidden.ID())
		if !ok || !p.Relayed {
			t.Errorf("met %+v", p)
		}
		// One relay less: the ticket has the other.
		sim.Crash(relays[0])
		late := sim.Node(t, p2pnode.WithTicket(text))
		sim.Connected(late, hidden)
	})
}
