package access

import (
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Gater is the list as libp2p's connection gater, in front of one that the
// application gave.
//
// An incoming connection is refused when it is upgraded, not when it is
// secured: by then the resource manager knows whose it is, so that it does not
// count as a failed handshake, and the other side is told why.
type Gater struct {
	List *List
	Next connmgr.ConnectionGater // nil without one
}

// InterceptPeerDial decides about dialing a peer.
func (g Gater) InterceptPeerDial(id peer.ID) bool {
	return g.List.Allows(id) && (g.Next == nil || g.Next.InterceptPeerDial(id))
}

// InterceptAddrDial decides about dialing an address.
func (g Gater) InterceptAddrDial(id peer.ID, addr ma.Multiaddr) bool {
	return g.List.AllowsAddr(addr) && (g.Next == nil || g.Next.InterceptAddrDial(id, addr))
}

// InterceptAccept decides about an incoming connection of an unknown peer.
func (g Gater) InterceptAccept(c network.ConnMultiaddrs) bool {
	return g.List.AllowsAddr(c.RemoteMultiaddr()) && (g.Next == nil || g.Next.InterceptAccept(c))
}

// InterceptSecured decides about a connection whose peer is known.
func (g Gater) InterceptSecured(dir network.Direction, id peer.ID, c network.ConnMultiaddrs) bool {
	return dir == network.DirInbound || g.secured(dir, id, c)
}

func (g Gater) secured(dir network.Direction, id peer.ID, c network.ConnMultiaddrs) bool {
	return g.List.Allows(id) && g.List.AllowsAddr(c.RemoteMultiaddr()) && (g.Next == nil || g.Next.InterceptSecured(dir, id, c))
}

// InterceptUpgraded decides about a connection that is about to be used.
func (g Gater) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	if !g.List.Allows(c.RemotePeer()) || !g.List.AllowsAddr(c.RemoteMultiaddr()) {
		return false, 0
	}
	if dir := c.Stat().Direction; dir == network.DirInbound && !g.secured(dir, c.RemotePeer(), c) {
		return false, 0
	}
	if g.Next == nil {
		return true, 0
	}
	return g.Next.InterceptUpgraded(c)
}

// AllowReserve and AllowConnect are the relay service's questions.
func (l *List) AllowReserve(id peer.ID, addr ma.Multiaddr) bool {
	return l.Allows(id) && l.AllowsAddr(addr)
}

// AllowConnect decides about relaying between two peers.
func (l *List) AllowConnect(src peer.ID, addr ma.Multiaddr, dst peer.ID) bool {
	return l.Allows(src) && l.AllowsAddr(addr) && l.Allows(dst)
}

// Blacklist is the list as gossipsub's: messages of authors who are shut out
// are dropped, whoever passes them on.
type Blacklist struct{ List *List }

// Add does nothing: a ban is the way.
func (Blacklist) Add(peer.ID) bool { return false }

// Contains reports whether a peer is shut out.
func (b Blacklist) Contains(id peer.ID) bool { return !b.List.Allows(id) }
