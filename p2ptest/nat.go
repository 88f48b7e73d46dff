package p2ptest

import (
	"sync"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// NATKind is how a NAT maps ports and filters packets. The names are those of
// RFC 3489.
type NATKind = simhost.NATKind

// The kinds of NATs, with their behavior in the terms of RFC 4787.
const (
	// Firewall does not translate, and lets in only replies: packets from an
	// address and port to which the node has sent. Nodes behind it reach each other.
	Firewall = simhost.Firewall
	// FullCone maps endpoint-independently and does not filter.
	FullCone = simhost.FullCone
	// RestrictedCone maps endpoint-independently and filters by address.
	RestrictedCone = simhost.RestrictedCone
	// PortRestricted maps endpoint-independently and filters by address and
	// port, as most home routers do.
	PortRestricted = simhost.PortRestricted
	// Symmetric maps each destination to another port, and filters by address and
	// port. Hole punching fails between two of them.
	Symmetric = simhost.Symmetric
)

// NAT is a network address translator, or a firewall, in front of nodes. All
// packets get out; its kind decides which get in. All nodes behind a NAT share
// its public address, link and region; behind a firewall each has its own. A NAT
// maps to other ports than those inside, does not hairpin, and drops a mapping 5
// minutes after the last outgoing packet.
type NAT struct {
	net  *Network
	nat  *simhost.NAT
	kind NATKind

	mu     sync.Mutex
	placed bool // guarded by mu
}

// NAT adds a NAT to the network. With [WithMemoryTransport], which has no
// packets, it fails the test.
func (n *Network) NAT(kind NATKind) *NAT {
	n.tb.Helper()
	switch {
	case n.cfg.memory:
		n.tb.Fatalf("p2ptest: NAT: WithMemoryTransport has no packets to translate; leave it out")
	case kind < Firewall || kind > Symmetric:
		n.tb.Fatalf("p2ptest: NAT: invalid kind %d; use Firewall, FullCone, RestrictedCone, PortRestricted or Symmetric", kind)
	}
	return &NAT{net: n, nat: n.sim.NewNAT(kind), kind: kind}
}

// Node adds a node behind the NAT, otherwise like [Network.Node].
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

// Machine is a computer with one public address and any number of nodes, each on
// its own port, from 4001 on, and all over one link. Packets between them take
// no time. A crash, a cut or a partition affects single nodes, not the machine.
type Machine struct {
	net *Network

	mu    sync.Mutex
	first *simhost.Machine // guarded by mu
}

// Machine adds a machine to the network.
func (n *Network) Machine() *Machine { return &Machine{net: n} }

// Node adds a node on the machine, otherwise like [Network.Node]. [NewAddress]
// moves a node away from it.
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
