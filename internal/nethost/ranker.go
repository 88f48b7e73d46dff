package nethost

import (
	"cmp"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// tcpFirst is how far behind TCP the other transports begin, when TCP is to win.
	tcpFirst = time.Second
	// tcpAgain is how long a dial that preferred TCP may take, or have failed, before
	// another one does.
	tcpAgain = 30 * time.Second
	// together is within what time dials of several peers are simultaneous.
	together = 5 * time.Second
)

// ranker orders the addresses of a peer that is dialed as the swarm does, QUIC before
// TCP, but for two things. The addresses of networks that this machine is in come first:
// the swarm dials private and public ones at the same time, and a peer nearby would get
// a connection for each of both.
//
// And where holes are to be punched, one of several peers is connected over TCP: its
// public TCP addresses come before all others. A node behind a NAT knows its outer
// addresses from what its peers see. With connections only over QUIC it does not know
// where it can be reached over TCP, and no hole can be punched for a peer behind a
// firewall that drops UDP.
type ranker struct {
	networks func() []*net.IPNet    // those that this machine is in
	swarm    func() network.Network // nil if no holes are punched

	mu    sync.Mutex
	last  ma.Multiaddr // an address of the last peer dialed; guarded by mu
	at    time.Time    // when; guarded by mu
	tried time.Time    // when TCP was last preferred; guarded by mu
}

// rank implements network.DialRanker.
func (r *ranker) rank(list []ma.Multiaddr) []network.AddrDelay {
	ranked := r.nearFirst(list)
	if r.swarm == nil || !r.prefersTCP(list) {
		return ranked
	}
	for i, a := range ranked {
		if onGlobal(a.Addr, addrs.TCP) {
			ranked[i].Delay = 0
		} else {
			ranked[i].Delay += tcpFirst
		}
	}
	return byDelay(ranked)
}

func byDelay(ranked []network.AddrDelay) []network.AddrDelay {
	slices.SortStableFunc(ranked, func(a, b network.AddrDelay) int { return cmp.Compare(a.Delay, b.Delay) })
	return ranked
}

// nearFirst ranks addresses as the swarm does, but lets others wait for those nearby, if
// there are any, as a second private one waits for the first. A handshake with a peer
// there takes a few milliseconds.
func (r *ranker) nearFirst(list []ma.Multiaddr) []network.AddrDelay {
	networks := sync.OnceValue(r.networks)
	var near, rest []ma.Multiaddr
	for _, a := range list {
		if isNear(a, networks) {
			near = append(near, a)
		} else {
			rest = append(rest, a)
		}
	}
	ranked := swarm.DefaultDialRanker(near)
	for _, a := range swarm.DefaultDialRanker(rest) {
		if len(near) > 0 {
			a.Delay += swarm.PrivateQUICDelay
		}
		ranked = append(ranked, a)
	}
	return byDelay(ranked)
}

// isNear reports whether an address is this machine's own, or a private one of a network
// that it is in.
func isNear(a ma.Multiaddr, networks func() []*net.IPNet) bool {
	if addrs.IsCircuit(a) {
		return false
	}
	switch addrs.ReachOf(a) {
	case addrs.Loopback:
		return true
	case addrs.Private, addrs.LinkLocal:
		ip := net.IP(ipOf(a).AsSlice())
		return slices.ContainsFunc(networks(), func(n *net.IPNet) bool { return n.Contains(ip) })
	default:
		return false
	}
}

// prefersTCP reports whether the peer with these addresses is to be dialed over TCP
// first: it has both, and others are connected over QUIC, or being dialed.
func (r *ranker) prefersTCP(list []ma.Multiaddr) bool {
	tcp := slices.IndexFunc(list, func(a ma.Multiaddr) bool { return onGlobal(a, addrs.TCP) })
	if tcp < 0 || !slices.ContainsFunc(list, func(a ma.Multiaddr) bool { return onGlobal(a, addrs.QUIC) }) {
		return false
	}
	now := time.Now()
	r.mu.Lock()
	others := r.last != nil && !r.last.Equal(list[tcp]) && now.Sub(r.at) < together
	r.last, r.at = list[tcp], now
	waits := !r.tried.IsZero() && now.Sub(r.tried) < tcpAgain
	r.mu.Unlock()
	if waits {
		return false
	}
	if r.knowsTCP() {
		return false
	}
	for _, c := range r.swarm().Conns() {
		others = others || c.Stat().Direction == network.DirOutbound && onGlobal(c.RemoteMultiaddr(), addrs.QUIC)
	}
	if others {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tried = now
	}
	return others
}

// knowsTCP reports whether a peer on the public network tells the node where it can be
// reached over TCP: it is connected to a port at which the node listens.
func (r *ranker) knowsTCP() bool {
	ports := make(map[string]bool)
	for _, a := range r.swarm().ListenAddresses() {
		if port, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			ports[port] = true
		}
	}
	for _, c := range r.swarm().Conns() {
		if c.Stat().Direction != network.DirOutbound || !onGlobal(c.RemoteMultiaddr(), addrs.TCP) {
			continue
		}
		if port, err := c.LocalMultiaddr().ValueForProtocol(ma.P_TCP); err == nil && ports[port] {
			return true
		}
	}
	return false
}

// onGlobal reports whether an address is of a kind, and of the public network.
func onGlobal(a ma.Multiaddr, kind addrs.Kind) bool {
	return addrs.KindOf(a) == kind && addrs.ReachOf(a) == addrs.Global
}
