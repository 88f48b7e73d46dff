package p2ptest

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Selector selects peers of a network. The methods for links, faults and waits
// take one:
//
//	*Node, *RawNode, *Hostile  this peer
//	Nodes                      a group: what Network.Nodes returns, or a part of it, as in nodes[:5]
//	Peers(a, raw, nodes[3:])   all peers that these select
//	IDs(id)                    the peers with these IDs
//	All()                      all peers of the network
//
// A method with two selectors acts on each pair of a peer of the first and
// another of the second. A peer that is not on the network fails the test, and
// so does a selector without peers.
type Selector interface {
	// pick returns the peers. Invalid ones fail the test.
	pick(n *Network, of scope) []*member
}

// scope is what All selects in a call.
type scope int

const (
	everybody scope = iota
	libraryNodes
	runningNodes
)

// Nodes is a group of nodes, in the order of their creation. It is a [Selector].
type Nodes []*Node

func (g Nodes) pick(n *Network, of scope) (list []*member) {
	for _, node := range g {
		list = append(list, node.pick(n, of)...)
	}
	return list
}

func (node *Node) pick(n *Network, _ scope) []*member {
	n.tb.Helper()
	switch {
	case node == nil:
		n.tb.Fatalf("p2ptest: a nil *Node selects no peer")
	case node.net != n:
		n.tb.Fatalf("p2ptest: %s (%s) is not a peer of this network, but of another", node, node.ID())
	}
	return []*member{node.m}
}

func (r *RawNode) pick(n *Network, of scope) []*member {
	n.tb.Helper()
	if r == nil {
		n.tb.Fatalf("p2ptest: a nil *RawNode selects no peer")
		return nil
	}
	return IDs(r.ID()).pick(n, of)
}

func (a *Hostile) pick(n *Network, of scope) []*member {
	n.tb.Helper()
	if a == nil {
		n.tb.Fatalf("p2ptest: a nil *Hostile selects no peer")
		return nil
	}
	return IDs(a.ID()).pick(n, of)
}

type union []Selector

// Peers selects what all of the given selectors name, each peer once.
func Peers(who ...Selector) Selector { return union(slices.Clone(who)) }

func (u union) pick(n *Network, of scope) (list []*member) {
	n.tb.Helper()
	for _, s := range u {
		if s == nil {
			n.tb.Fatalf("p2ptest: a nil Selector selects no peer")
		}
		list = append(list, s.pick(n, of)...)
	}
	return list
}

type byID []peer.ID

// IDs selects peers by their IDs.
func IDs(ids ...peer.ID) Selector { return byID(slices.Clone(ids)) }

func (ids byID) pick(n *Network, _ scope) (list []*member) {
	n.tb.Helper()
	for _, id := range ids {
		m := n.known(id)
		if m == nil {
			n.tb.Fatalf("p2ptest: %s is not a peer of this network", id)
		}
		list = append(list, m)
	}
	return list
}

type all struct{}

// All selects all peers that are on the network at the time of the call. Methods
// for nodes of the library then act only on those, without crashed ones if they
// need running nodes.
func All() Selector { return all{} }

func (all) pick(n *Network, of scope) (list []*member) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.order {
		node := m.node.Load()
		switch {
		case of == everybody && (m.raw != nil || node != nil),
			of == libraryNodes && node != nil,
			of == runningNodes && node != nil && !m.gone:
			list = append(list, m)
		}
	}
	return list
}

// known returns the peer with an ID, or nil.
func (n *Network) known(id peer.ID) *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.members[id]
}

// pick resolves the selectors of a call, each peer once.
func (n *Network) pick(call string, of scope, who ...Selector) []*member {
	n.tb.Helper()
	var list []*member
	seen := make(map[*member]bool)
	for _, m := range Peers(who...).pick(n, of) {
		if of != everybody && m.raw != nil {
			n.tb.Fatalf("p2ptest: %s: %s is not a node of the library", call, m.name)
		}
		if !seen[m] {
			seen[m] = true
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		n.tb.Fatalf("p2ptest: %s: the selector selects no peers", call)
	}
	return list
}

// orAll returns who, or without selectors All.
func orAll(who []Selector) []Selector {
	if len(who) == 0 {
		return []Selector{All()}
	}
	return who
}

// one resolves the selector of a call about a single peer.
func (n *Network) one(call string, who Selector) *member {
	n.tb.Helper()
	list := n.pick(call, everybody, who)
	if len(list) > 1 {
		n.tb.Fatalf("p2ptest: %s: the selector selects %d peers; select one", call, len(list))
	}
	return list[0]
}

// couples returns the ordered pairs of a peer of a and another of b.
func (n *Network) couples(call string, a, b Selector) (list [][2]*member) {
	n.tb.Helper()
	others := n.pick(call, everybody, b)
	for _, x := range n.pick(call, everybody, a) {
		for _, y := range others {
			if x != y {
				list = append(list, [2]*member{x, y})
			}
		}
	}
	if len(list) == 0 {
		n.tb.Fatalf("p2ptest: %s: both selectors select only the same peer; select two", call)
	}
	return list
}
