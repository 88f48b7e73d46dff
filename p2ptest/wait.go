package p2ptest

import (
	"context"
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

// searchPause is how long Found waits before it searches again.
const searchPause = time.Second

// Waiter waits for something to be so, without sleeping: most waits end in the
// very moment, virtual or real, in which it is (what gives no event, such as a
// routing table, is looked at every 20 ms; in networks of more than 50 peers
// all waits end within a millisecond). When the limit passes first
// the test fails with what was missing and a line about each node concerned;
// the Status of all nodes goes to a file, whose path it tells.
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
	if err := w.wait(check); err != nil {
		w.fail(what, err)
	}
}

// wait waits until check returns nil, or returns its last error at the limit.
func (w Waiter) wait(check func() error) error {
	deadline := time.Now().Add(w.limit)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w.net.mu.Lock()
		changed, large := w.net.changed, len(w.net.order) > largeNetwork
		w.net.mu.Unlock()
		err := check()
		left := time.Until(deadline)
		if err == nil || left <= 0 {
			return err
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

// Ready waits until every given node, or every node without any given, is
// ready in the sense of Node.WaitReady.
func (w Waiter) Ready(who ...Selector) {
	w.net.tb.Helper()
	list := w.net.pick("Ready", runningNodes, orAll(who)...)
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	for _, m := range list {
		if err := m.node.Load().WaitReady(ctx); err != nil {
			w.fail(fmt.Sprintf("%s ready", m.name), err, m)
		}
	}
}

// Connected waits until each pair of a peer of a and one of b has a connection,
// relayed or direct, that both know of.
func (w Waiter) Connected(a, b Selector) {
	w.net.tb.Helper()
	w.links("Connected", a, b, true)
}

// Disconnected waits until in each pair of a peer of a and one of b neither
// thinks that it is connected to the other. After a cut that takes 30 to 45 seconds.
func (w Waiter) Disconnected(a, b Selector) {
	w.net.tb.Helper()
	w.links("Disconnected", a, b, false)
}

func (w Waiter) links(call string, a, b Selector, want bool) {
	w.net.tb.Helper()
	list := w.net.couples(call, a, b)
	what := map[bool]string{true: "connected to", false: "disconnected from"}[want]
	if len(list) == 1 {
		what = fmt.Sprintf("%s %s %s", list[0][0].name, what, list[0][1].name)
	} else {
		what = fmt.Sprintf("%d pairs, each %s the other", len(list), what)
	}
	var pair [2]*member // that is not as wanted
	err := w.wait(func() error {
		for _, pair = range list {
			if err := errors.Join(w.net.sees(pair[0], pair[1], want), w.net.sees(pair[1], pair[0], want)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.fail(what, err, pair[:]...)
	}
}

// sees reports whether a thinks that it is connected to b. One that does not
// run is connected to nobody.
func (n *Network) sees(a, b *member, want bool) error {
	connected := false
	if nw := n.swarm(a); nw != nil {
		switch nw.Connectedness(b.id) {
		case network.Connected, network.Limited:
			connected = true
		}
	}
	switch {
	case connected == want:
		return nil
	case want:
		return fmt.Errorf("%s has no connection to %s", a.name, b.name)
	default:
		return fmt.Errorf("%s still has a connection to %s", a.name, b.name)
	}
}

// swarm returns the network of a peer that runs, or nil.
func (n *Network) swarm(m *member) network.Network {
	if m.raw != nil {
		return m.raw.Network()
	}
	if node := n.running(m); node != nil {
		return node.Host().Network()
	}
	return nil
}

// running returns the node of a member that has one and has not crashed.
func (n *Network) running(m *member) *p2pnode.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m.gone {
		return nil
	}
	return m.node.Load()
}

// RoutingTable waits until the routing table of each peer holds at least so
// many others.
func (w Waiter) RoutingTable(who Selector, atLeast int) {
	w.net.tb.Helper()
	for _, m := range w.net.pick("RoutingTable", everybody, who) {
		if m.raw == nil && !m.settings.DHT {
			w.net.tb.Fatalf("p2ptest: RoutingTable: %s has no DHT; leave WithoutDHT out", m.name)
		}
		err := w.wait(func() error {
			got := 0
			for _, d := range w.net.dhts(m) {
				got = max(got, d.RoutingTable().Size())
			}
			if got < atLeast {
				return fmt.Errorf("there are %d", got)
			}
			return nil
		})
		if err != nil {
			w.fail(fmt.Sprintf("%d peers in the routing table of %s", atLeast, m.name), err, m)
		}
	}
}

// Subscribed waits until each of the nodes, or of all nodes without any given,
// is subscribed to the topic, and every two of them that are connected know it
// of each other.
func (w Waiter) Subscribed(topic string, who ...Selector) {
	w.net.tb.Helper()
	list := w.net.pick("Subscribed", runningNodes, orAll(who)...)
	var concerned []*member
	err := w.wait(func() error {
		concerned = nil
		known := make(map[peer.ID]map[peer.ID]bool)
		for _, m := range list {
			s := m.node.Load().Status()
			i := slices.IndexFunc(s.Topics, func(t p2pnode.TopicStatus) bool { return t.Name == topic && t.Subscriptions > 0 })
			if i < 0 {
				concerned = []*member{m}
				return fmt.Errorf("%s is not subscribed", m.name)
			}
			known[m.id] = make(map[peer.ID]bool)
			for _, id := range s.Topics[i].Peers {
				known[m.id][id] = true
			}
		}
		for _, m := range list {
			for _, p := range m.node.Load().Host().Network().Peers() {
				if known[p] != nil && !known[m.id][p] {
					concerned = []*member{m, w.net.known(p)}
					return fmt.Errorf("%s does not know that %s is", m.name, w.net.name(p))
				}
			}
		}
		return nil
	})
	if err != nil {
		w.fail(fmt.Sprintf("%d nodes subscribed to %q", len(list), topic), err, concerned...)
	}
}

// Meshed waits until the gossipsub meshes of the given peers, who all have to
// join the topic, hang together: a message of one then reaches all. Without any
// given it is about all running peers that have joined, at least two.
func (w Waiter) Meshed(topic string, who ...Selector) {
	w.net.tb.Helper()
	given := len(who) > 0
	var list []*member
	if given {
		list = w.net.pick("Meshed", everybody, who...)
	}
	var concerned []*member
	err := w.wait(func() error {
		if !given {
			list = w.net.pick("Meshed", everybody, All())
		}
		concerned = nil
		links := make(map[peer.ID][]peer.ID)
		for _, m := range list {
			peers, joined := m.mesh.peers(topic)
			switch {
			case joined && (m.raw != nil || w.net.running(m) != nil):
				links[w.net.id(m)] = peers
			case given:
				concerned = []*member{m}
				return fmt.Errorf("%s has not joined it", m.name)
			}
		}
		if len(links) < 2 {
			return fmt.Errorf("%d peers have joined it", len(links))
		}
		reached := component(links)
		for _, m := range list {
			if _, joined := links[w.net.id(m)]; joined && !reached[w.net.id(m)] {
				concerned = append(concerned, m)
			}
		}
		if len(concerned) > 0 {
			return fmt.Errorf("it is in pieces: one has %d of the %d peers that have joined", len(reached), len(links))
		}
		return nil
	})
	if err != nil {
		w.fail(fmt.Sprintf("mesh of topic %q", topic), err, concerned...)
	}
}

// component returns the peers that hang together with one of them. A link
// counts when both ends have it: the mesh is symmetric once it is settled.
func component(links map[peer.ID][]peer.ID) map[peer.ID]bool {
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
	return seen
}

// Delivered waits for the next n messages of a subscription and returns them.
// Take returns those that are there already.
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

// Take returns the messages that a subscription has received and nobody has
// read, without waiting.
func Take(sub *p2pnode.Subscription) []*p2pnode.Message {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Next looks for a message before it looks at its context
	var list []*p2pnode.Message
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return list
		}
		list = append(list, m)
	}
}

// Provided waits until somebody other than the provider itself holds a
// provider record for the CID, and returns who does.
func (w Waiter) Provided(c cid.Cid) []peer.ID {
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

// Found waits until each searcher finds all of the providers of the CID, or
// anybody but itself without any given. It searches again when a search ends
// without them.
func (w Waiter) Found(searchers Selector, c cid.Cid, providers ...Selector) {
	w.net.tb.Helper()
	var wanted []*member
	if len(providers) > 0 {
		wanted = w.net.pick("Found", everybody, providers...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	for _, m := range w.net.pick("Found", runningNodes, searchers) {
		for {
			err := search(ctx, m, c, wanted)
			if err == nil {
				break
			}
			select {
			case <-time.After(searchPause):
			case <-ctx.Done():
				w.fail(fmt.Sprintf("providers of %s found by %s", c, m.name), err, append([]*member{m}, wanted...)...)
			}
		}
	}
}

// search says what one search for providers does not find.
func search(ctx context.Context, m *member, c cid.Cid, wanted []*member) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(map[peer.ID]bool)
	var last error
	for p, err := range m.node.Load().FindProviders(ctx, c) {
		if err != nil {
			last = err
			continue
		}
		found[p.ID] = found[p.ID] || p.ID != m.id
		missing := slices.ContainsFunc(wanted, func(p *member) bool { return !found[p.id] })
		if !missing && (len(wanted) > 0 || found[p.ID]) {
			return nil
		}
	}
	var names []string
	for _, p := range wanted {
		if !found[p.id] {
			names = append(names, p.name)
		}
	}
	if names == nil {
		names = []string{"anybody"}
	}
	return errors.Join(fmt.Errorf("the last search did not find %s", strings.Join(names, ", ")), last)
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
	if m.raw != nil {
		if m.raw.DHT == nil { // a hostile peer
			return nil
		}
		return []*dht.IpfsDHT{m.raw.DHT}
	}
	node := n.running(m)
	if node == nil {
		return nil
	}
	switch d := node.DHT().(type) {
	case *dht.IpfsDHT:
		return []*dht.IpfsDHT{d}
	case *dual.DHT:
		return []*dht.IpfsDHT{d.WAN, d.LAN}
	default:
		return nil
	}
}
