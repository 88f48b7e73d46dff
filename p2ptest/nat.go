package p2ptest

import (
	"sync"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// NATKind is how a NAT maps ports and filters packets, in the terms of RFC
// 3489.
type NATKind = simhost.NATKind

// The kinds of NATs, with the behavior in the terms of RFC 4787.
const (
	// Firewall translates nothing and lets in what answers: packets from an
	// address and port that were sent to.
	Firewall = simhost.Firewall
	// FullCone maps endpoint-independently and lets everything in.
	FullCone = simhost.FullCone
	// RestrictedCone maps endpoint-independently and filters by address.
	RestrictedCone = simhost.RestrictedCone
	// PortRestricted maps endpoint-independently and filters by address and
	// port, as most home routers do.
	PortRestricted = simhost.PortRestricted
	// Symmetric shows every destination another port, and filters by address
	// and port. Hole punching fails between two of them.
	Symmetric = simhost.Symmetric
)

// NAT is a network address translator, or a firewall, that nodes can stand
// behind. What is behind it gets out; in comes what its kind lets in. All nodes
// behind one share its public address, its link and its region; behind a
// firewall each has its own. It forgets a mapping 5 minutes after the last
// packet out.
type NAT struct {
	net  *Network
	nat  *simhost.NAT
	kind NATKind

	mu     sync.Mutex
	placed bool // guarded by mu
}

// NAT adds a NAT to the network. On one with WithMemoryTransport, which has no
// packets, it fails the test.
func (n *Network) NAT(kind NATKind) *NAT {
	n.tb.Helper()
	switch {
	case n.cfg.memory:
		n.tb.Fatalf("p2ptest: NAT: WithMemoryTransport carries no packets that could be translated; leave it out")
	case kind < Firewall || kind > Symmetric:
		n.tb.Fatalf("p2ptest: NAT: there is no kind %d; use Firewall, FullCone, RestrictedCone, PortRestricted or Symmetric", kind)
	}
	return &NAT{net: n, nat: n.sim.NewNAT(kind), kind: kind}
}

// Node adds a node behind the NAT, as Network.Node does in the open.
func (t *NAT) Node(tb testing.TB, opts ...p2pnode.Option) *Node {
	tb.Helper()
	return t.net.node(tb, t.machine, opts)
}

// machine adds a machine behind the NAT.
func (t *NAT) machine() *simhost.Machine {
	m := t.nat.NewMachine()
	t.mu.Lock()
	first := !t.placed
	t.placed = true
	t.mu.Unlock()
	if first || t.kind == Firewall {
		t.net.place(m)
	}
	return m
}

// Machine is a computer with one public address, on which any number of nodes
// run: on ports of their own, from 4001 on, over one link. Between them packets
// take no time. A crash, a cut or a partition is about one of the nodes, not
// about the machine.
type Machine struct {
	net *Network

	mu    sync.Mutex
	first *simhost.Machine // guarded by mu
}

// Machine adds a machine to the network.
func (n *Network) Machine() *Machine { return &Machine{net: n} }

// Node adds a node on the machine, as Network.Node does on one of its own.
// NewAddress takes a node off it.
func (h *Machine) Node(tb testing.TB, opts ...p2pnode.Option) *Node {
	tb.Helper()
	node := h.net.node(tb, h.machine, opts)
	node.m.elsewhere = h.net.public
	return node
}

func (h *Machine) machine() *simhost.Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first == nil {
		h.first = h.net.public()
		return h.first
	}
	return h.first.NewNeighbor()
}
