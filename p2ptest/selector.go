package p2ptest

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Selector names peers of a network. Links, faults and waits all take it:
//
//	*Node, *RawNode, *Hostile  this peer
//	Nodes                      a group: what Network.Nodes returns, or a part of it, as in nodes[:5]
//	Peers(a, raw, nodes[3:])   what all of these name
//	IDs(id)                    the peers with these IDs
//	All()                      everybody on the network
//
// A call with two selectors is about each pair of one peer of the first and
// another of the second. A peer that is not on the network fails the test, and
// so does a selector that names nobody.
type Selector interface {
	// pick returns the peers; it fails the test where there are none such.
	pick(n *Network, of scope) []*member
}

// scope is what All stands for in a call.
type scope int

const (
	everybody scope = iota
	libraryNodes
	runningNodes
)

// Nodes is a group of nodes, in the order of their creation.
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
		n.tb.Fatalf("p2ptest: a nil *Node names no peer of this network")
	case node.net != n:
		n.tb.Fatalf("p2ptest: %s (%s) is no peer of this network, but of another", node, node.ID())
	}
	return []*member{node.m}
}

func (r *RawNode) pick(n *Network, of scope) []*member {
	n.tb.Helper()
	if r == nil {
		n.tb.Fatalf("p2ptest: a nil *RawNode names no peer of this network")
		return nil
	}
	return IDs(r.ID()).pick(n, of)
}

func (a *Hostile) pick(n *Network, of scope) []*member {
	n.tb.Helper()
	if a == nil {
		n.tb.Fatalf("p2ptest: a nil *Hostile names no peer of this network")
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
			n.tb.Fatalf("p2ptest: a nil Selector names no peer of this network")
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
			n.tb.Fatalf("p2ptest: %s is no peer of this network", id)
		}
		list = append(list, m)
	}
	return list
}

type all struct{}

// All selects everybody who is on the network when the call is made: for
// calls about nodes of the library those, also crashed ones where that makes
// sense, and no others.
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
		n.tb.Fatalf("p2ptest: %s: the selector names nobody", call)
	}
	return list
}

// orAll is what a call without selectors is about.
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
		n.tb.Fatalf("p2ptest: %s: the selector names %d peers, and the call is about one", call, len(list))
	}
	return list[0]
}

// couples are the ordered pairs of one of each, of different peers.
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
		n.tb.Fatalf("p2ptest: %s: both selectors name the same peer, which makes no pair", call)
	}
	return list
}
