package p2ptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
)

// waitStep is how often a waiting method looks for what gives no event, such
// as the growth of a routing table or a provider record.
const waitStep = 20 * time.Millisecond

// largeNetwork is from how many peers on a waiting method looks once a
// millisecond at most, and not at every event.
const largeNetwork = 50

// fullStatus is up to how many nodes a failed wait prints whole.
const fullStatus = 16

// Waiter waits for something to be so, without sleeping: most waits end in the
// very moment, virtual or real, in which it is (what gives no event, such as a
// routing table, is looked at every 20 ms; in networks of more than 50 peers
// all waits end within a millisecond). When the limit passes first
// the test fails, with what was missing and the Status of every node.
//
// Network has a Waiter with its limit; Within makes another one.
type Waiter struct {
	net   *Network
	limit time.Duration
}

// Within returns a Waiter with another limit.
func (w Waiter) Within(limit time.Duration) Waiter {
	w.net.tb.Helper()
	if limit <= 0 {
		w.net.tb.Fatalf("p2ptest: Within: %v is no time to wait", limit)
	}
	w.limit = limit
	return w
}

// Until waits until check returns nil. It is called whenever something
// happened on a node, and every 20 ms; it must not wait itself.
func (w Waiter) Until(what string, check func() error) {
	w.net.tb.Helper()
	deadline := time.Now().Add(w.limit)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w.net.mu.Lock()
		changed, large := w.net.changed, len(w.net.order) > largeNetwork
		w.net.mu.Unlock()
		err := check()
		if err == nil {
			return
		}
		left := time.Until(deadline)
		if left <= 0 {
			w.fail(what, err)
		}
		timer.Reset(min(left, waitStep))
		select {
		case <-changed:
			if large {
				time.Sleep(time.Millisecond)
			}
		case <-timer.C:
		}
	}
}

// fail ends the test with what was waited for and how everybody is.
func (w Waiter) fail(what string, err error) {
	w.net.tb.Helper()
	w.net.tb.Fatalf("p2ptest: %s: not within %v: %v\n%s", what, w.limit, err, w.net.Report())
}

// Report describes every peer of the network: the Status of each node, whole
// for up to 16 nodes and in a line for more.
func (n *Network) Report() string {
	n.mu.Lock()
	members := slices.Clone(n.order)
	n.mu.Unlock()
	var b strings.Builder
	for _, m := range members {
		n.mu.Lock()
		node, gone, id := m.node, m.gone, m.id
		n.mu.Unlock()
		fmt.Fprintf(&b, "%s (%s at %s): ", m.name, id, m.machine.IP())
		switch {
		case m.raw != nil:
			fmt.Fprintf(&b, "not of the library, %d peers\n", len(m.raw.Network().Peers()))
		case node == nil:
			b.WriteString("not started\n")
		case gone:
			b.WriteString("crashed\n")
		case len(members) <= fullStatus:
			text, err := json.Marshal(node.Status())
			if err != nil {
				text = []byte(err.Error())
			}
			fmt.Fprintf(&b, "%s\n", text)
		default:
			s := node.Status()
			fmt.Fprintf(&b, "%d peers", len(s.Peers))
			if s.DHT != nil {
				fmt.Fprintf(&b, ", %d in the routing table", s.DHT.Peers)
			}
			for _, t := range s.Topics {
				fmt.Fprintf(&b, ", topic %q with %d peers", t.Name, len(t.Peers))
			}
			if s.Bootstrap != nil {
				fmt.Fprintf(&b, ", last bootstrap round: %d connected, %d failed", len(s.Bootstrap.Connected), len(s.Bootstrap.Failed))
			}
			if s.Closed {
				b.WriteString(", closed")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// Ready waits until every given node, or every node without any given, is
// ready in the sense of Node.WaitReady.
func (w Waiter) Ready(nodes ...*p2pnode.Node) {
	w.net.tb.Helper()
	if len(nodes) == 0 {
		nodes = w.net.nodes()
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	for _, node := range nodes {
		if err := node.WaitReady(ctx); err != nil {
			w.fail(fmt.Sprintf("%s ready", w.net.member(node).name), err)
		}
	}
}

// Connected waits until two peers have a connection, relayed or direct, that
// both know of.
func (w Waiter) Connected(a, b Peer) {
	w.net.tb.Helper()
	w.Until(fmt.Sprintf("%s connected to %s", w.net.member(a).name, w.net.member(b).name), func() error {
		return errors.Join(w.net.sees(a, b, true), w.net.sees(b, a, true))
	})
}

// Disconnected waits until neither of two peers thinks that it is connected to
// the other. After a cut that takes 30 seconds.
func (w Waiter) Disconnected(a, b Peer) {
	w.net.tb.Helper()
	w.Until(fmt.Sprintf("%s disconnected from %s", w.net.member(a).name, w.net.member(b).name), func() error {
		return errors.Join(w.net.sees(a, b, false), w.net.sees(b, a, false))
	})
}

// sees reports whether a thinks that it is connected to b. One that does not
// run is connected to nobody.
func (n *Network) sees(a, b Peer, want bool) error {
	m := n.member(a)
	nw := n.swarm(m)
	connected := false
	if nw != nil {
		switch nw.Connectedness(b.ID()) {
		case network.Connected, network.Limited:
			connected = true
		}
	}
	if connected == want {
		return nil
	}
	if want {
		return fmt.Errorf("%s has no connection to %s", m.name, n.member(b).name)
	}
	return fmt.Errorf("%s still has a connection to %s", m.name, n.member(b).name)
}

func (n *Network) swarm(m *member) network.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case m.raw != nil:
		return m.raw.Network()
	case m.node == nil || m.gone:
		return nil
	default:
		return m.node.Host().Network()
	}
}

// RoutingTable waits until a node's routing table holds at least so many
// peers.
func (w Waiter) RoutingTable(node *p2pnode.Node, atLeast int) {
	w.net.tb.Helper()
	name := w.net.member(node).name
	if node.DHT() == nil {
		w.net.tb.Fatalf("p2ptest: RoutingTable: %s has no DHT; leave WithoutDHT out", name)
	}
	w.Until(fmt.Sprintf("%d peers in the routing table of %s", atLeast, name), func() error {
		got := 0
		for _, d := range w.net.dhts(w.net.member(node)) {
			got = max(got, d.RoutingTable().Size())
		}
		if got < atLeast {
			return fmt.Errorf("there are %d", got)
		}
		return nil
	})
}

// Subscribed waits until each of the nodes is subscribed to the topic and
// every two of them that are connected know it of each other. Without nodes it
// is about all of the network.
func (w Waiter) Subscribed(topic string, nodes ...*p2pnode.Node) {
	w.net.tb.Helper()
	if len(nodes) == 0 {
		nodes = w.net.nodes()
	}
	w.Until(fmt.Sprintf("%d nodes subscribed to %q", len(nodes), topic), func() error {
		known := make(map[peer.ID]map[peer.ID]bool)
		for _, node := range nodes {
			m := w.net.member(node)
			s := node.Status()
			i := slices.IndexFunc(s.Topics, func(t p2pnode.TopicStatus) bool { return t.Name == topic && t.Subscriptions > 0 })
			if i < 0 {
				return fmt.Errorf("%s is not subscribed", m.name)
			}
			known[node.ID()] = make(map[peer.ID]bool)
			for _, id := range s.Topics[i].Peers {
				known[node.ID()][id] = true
			}
		}
		for _, node := range nodes {
			for _, p := range node.Host().Network().Peers() {
				if known[p] != nil && !known[node.ID()][p] {
					return fmt.Errorf("%s does not know that %s is", w.net.member(node).name, w.net.member(byID(p)).name)
				}
			}
		}
		return nil
	})
}

// Meshed waits until the gossipsub meshes of all running peers that are
// subscribed to the topic hang together, so that a message of one reaches all.
// Fewer than two subscribers are no mesh.
func (w Waiter) Meshed(topic string) {
	w.net.tb.Helper()
	w.Until(fmt.Sprintf("mesh of topic %q", topic), func() error {
		w.net.mu.Lock()
		members := slices.Clone(w.net.order)
		w.net.mu.Unlock()
		links := make(map[peer.ID][]peer.ID)
		for _, m := range members {
			w.net.mu.Lock()
			id, running := m.id, m.raw != nil || m.node != nil && !m.gone
			w.net.mu.Unlock()
			if peers, joined := m.mesh.peers(topic); running && joined {
				links[id] = peers
			}
		}
		if len(links) < 2 {
			return fmt.Errorf("%d peers have joined it", len(links))
		}
		if reached := component(links); reached < len(links) {
			return fmt.Errorf("it is in pieces: one has %d of the %d peers that have joined", reached, len(links))
		}
		return nil
	})
}

// component counts the peers that hang together with the first one. A link
// counts when both ends have it: the mesh is symmetric once it is settled.
func component(links map[peer.ID][]peer.ID) int {
	var todo []peer.ID
	for id := range links {
		todo = append(todo, id)
		break
	}
	seen := map[peer.ID]bool{todo[0]: true}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		for _, next := range links[id] {
			if !seen[next] && slices.Contains(links[next], id) {
				seen[next] = true
				todo = append(todo, next)
			}
		}
	}
	return len(seen)
}

// Delivered waits for the next n messages of a subscription and returns them.
func (w Waiter) Delivered(sub *p2pnode.Subscription, n int) []*p2pnode.Message {
	w.net.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	var list []*p2pnode.Message
	for len(list) < n {
		m, err := sub.Next(ctx)
		if err != nil {
			w.fail(fmt.Sprintf("%d messages of %q", n, sub.Topic()), fmt.Errorf("there were %d: %w", len(list), err))
			return list
		}
		list = append(list, m)
	}
	return list
}

// EventProvided waits until somebody other than the provider itself holds a
// provider record for the CID, and returns who does.
func (w Waiter) EventProvided(c cid.Cid) []peer.ID {
	w.net.tb.Helper()
	var holders []peer.ID
	w.Until(fmt.Sprintf("provider record of %s", c), func() error {
		holders = w.net.holders(c)
		if len(holders) == 0 {
			return errors.New("nobody holds one")
		}
		return nil
	})
	return holders
}

// holders are the running peers whose store has a record of somebody else.
func (n *Network) holders(c cid.Cid) []peer.ID {
	n.mu.Lock()
	members := slices.Clone(n.order)
	n.mu.Unlock()
	var list []peer.ID
	for _, m := range members {
		for _, d := range n.dhts(m) {
			providers, err := d.ProviderStore().GetProviders(context.Background(), c.Hash())
			if err == nil && slices.ContainsFunc(providers, func(p peer.AddrInfo) bool { return p.ID != m.id }) {
				list = append(list, m.id)
				break
			}
		}
	}
	return list
}

// dhts are those that a running peer has.
func (n *Network) dhts(m *member) []*dht.IpfsDHT {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case m.raw != nil:
		return []*dht.IpfsDHT{m.raw.DHT}
	case m.node == nil || m.gone:
		return nil
	}
	switch d := m.node.DHT().(type) {
	case *dht.IpfsDHT:
		return []*dht.IpfsDHT{d}
	case *dual.DHT:
		return []*dht.IpfsDHT{d.WAN, d.LAN}
	default:
		return nil
	}
}
