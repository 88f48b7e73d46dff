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

// waitStep is how often a waiting method checks for changes without an event,
// such as the growth of a routing table or a new provider record.
const waitStep = 20 * time.Millisecond

// largeNetwork is the number of peers above which a waiting method checks at
// most once a millisecond, and not at every event.
const largeNetwork = 50

// searchPause is how long Found waits before it searches again.
const searchPause = time.Second

// Waiter waits for conditions without sleeping. Most waits end at the very
// moment, virtual or real, at which the condition is met. Conditions without an
// event, such as the size of a routing table, are checked every 20 ms; in
// networks of more than 50 peers, all waits may end a millisecond late.
//
// If the limit passes first, the test fails with what is missing, a line about
// each node concerned, and the path of a file with the Status of all nodes.
//
// [Network] embeds a Waiter with the limit of [WithWaitLimit]; [Waiter.Within]
// returns one with another limit.
type Waiter struct {
	net   *Network
	limit time.Duration
}

// Within returns a Waiter with another limit, which must be positive.
func (w Waiter) Within(limit time.Duration) Waiter {
	w.net.tb.Helper()
	if limit <= 0 {
		w.net.tb.Fatalf("p2ptest: Within: %v is not positive", limit)
	}
	w.limit = limit
	return w
}

// Until waits until check returns nil. It calls check after every event on a
// node, and every 20 ms; check must not block. what names the condition in the
// message of a failed test.
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

// Ready waits until the given nodes are ready, as [p2pnode.Node.WaitReady] does.
// Without arguments it waits for all running nodes.
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

// Connected waits until, in each pair of a peer of a and one of b, each is
// connected to the other, relayed or directly.
func (w Waiter) Connected(a, b Selector) {
	w.net.tb.Helper()
	w.links("Connected", a, b, true)
}

// Disconnected waits until, in each pair of a peer of a and one of b, neither
// is connected to the other. After a cut that takes 30 to 45 seconds.
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
	var pair [2]*member // the one that is missing
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

// sees returns an error unless a's view of its connection to b is as wanted. A
// peer that does not run has no connections.
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

// RoutingTable waits until the routing table of each peer has at least atLeast
// peers. A node without a DHT fails the test.
func (w Waiter) RoutingTable(who Selector, atLeast int) {
	w.net.tb.Helper()
	for _, m := range w.net.pick("RoutingTable", everybody, who) {
		if m.raw == nil && !m.settings.DHT {
			w.net.tb.Fatalf("p2ptest: RoutingTable: %s has no DHT; remove WithoutDHT", m.name)
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

// Subscribed waits until each of the given nodes is subscribed to the topic, and
// any two of them that are connected know it of each other. Without nodes it
// waits for all running nodes.
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
					return fmt.Errorf("%s does not know that %s is subscribed", m.name, w.net.name(p))
				}
			}
		}
		return nil
	})
	if err != nil {
		w.fail(fmt.Sprintf("%d nodes subscribed to %q", len(list), topic), err, concerned...)
	}
}

// Meshed waits until the gossipsub mesh of the topic connects all given peers,
// so that a message of one reaches all; each must join the topic. Without peers
// it waits for all running peers that have joined, at least two.
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
				return fmt.Errorf("%s has not joined the topic", m.name)
			}
		}
		if len(links) < 2 {
			return fmt.Errorf("%d peers have joined the topic, want at least 2", len(links))
		}
		reached := component(links)
		for _, m := range list {
			if _, joined := links[w.net.id(m)]; joined && !reached[w.net.id(m)] {
				concerned = append(concerned, m)
			}
		}
		if len(concerned) > 0 {
			return fmt.Errorf("the mesh is divided: one part has %d of the %d peers that have joined", len(reached), len(links))
		}
		return nil
	})
	if err != nil {
		w.fail(fmt.Sprintf("mesh of topic %q", topic), err, concerned...)
	}
}

// component returns the peers that the mesh connects to one of them. It counts a
// link only if both ends have it: a settled mesh is symmetric.
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
// [Take] returns those that have already arrived.
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

// Take returns the messages that a subscription has received and that have not
// been read, without waiting.
func Take(sub *p2pnode.Subscription) []*p2pnode.Message {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Next checks for a message before it checks its context
	var list []*p2pnode.Message
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return list
		}
		list = append(list, m)
	}
}

// Provided waits until a peer other than the provider itself holds a provider
// record for the CID, and returns all peers that do.
func (w Waiter) Provided(c cid.Cid) []peer.ID {
	w.net.tb.Helper()
	var holders []peer.ID
	w.Until(fmt.Sprintf("provider record of %s", c), func() error {
		holders = w.net.holders(c)
		if len(holders) == 0 {
			return errors.New("no peer holds one")
		}
		return nil
	})
	return holders
}

// Found waits until a search of each searcher finds all given providers of the
// CID, or without any given, one other than itself. If a search does not, Found
// starts the next one a second later.
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

// search searches for providers once. Its error names those that it did not
// find.
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
		names = []string{"a provider"}
	}
	return errors.Join(fmt.Errorf("the last search did not find %s", strings.Join(names, ", ")), last)
}

// holders returns the running peers whose store has a record of another peer.
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

// dhts returns the DHTs of a running peer.
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
