package p2ptest

import (
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// NATKind is how a NAT maps ports and filters packets, in the terms of RFC
// 3489.
type NATKind = simhost.NATKind

// The kinds of NATs, with the behaviour in the terms of RFC 4787.
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
// behind. What is behind it gets out; in comes what its kind lets in. It
// forgets a mapping 5 minutes after the last packet out.
type NAT struct {
	net    *Network
	nat    *simhost.NAT
	kind   NATKind
	placed bool // guarded by net.mu
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
func (t *NAT) Node(tb testing.TB, opts ...p2pnode.Option) *p2pnode.Node {
	tb.Helper()
	return t.net.node(tb, t.machine, opts)
}

// machine adds a machine behind the NAT. All behind one share its link and
// region; behind a firewall each has its own.
func (t *NAT) machine() *simhost.Machine {
	m := t.nat.NewMachine()
	if t.kind == Firewall || !t.placed {
		t.placed = true
		t.net.place(m)
	}
	return m
}
