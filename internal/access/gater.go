package access

import (
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Gater is the list as a libp2p connection gater, in front of the
// application's, if any.
//
// It refuses an incoming connection when it is upgraded, not when it is
// secured: by then the resource manager knows the peer, so that the connection
// does not count as a failed handshake, and the other side learns the reason.
type Gater struct {
	List *List
	Next connmgr.ConnectionGater // nil without one
	// Accepting is told of incoming connections that are let in; it may be nil.
	Accepting func(network.ConnMultiaddrs)
}

// InterceptPeerDial decides about dialing a peer.
func (g Gater) InterceptPeerDial(id peer.ID) bool {
	return g.List.Allows(id) && (g.Next == nil || g.Next.InterceptPeerDial(id))
}

// InterceptAddrDial decides about dialing an address.
func (g Gater) InterceptAddrDial(id peer.ID, addr ma.Multiaddr) bool {
	return g.List.AllowsAddr(addr) && (g.Next == nil || g.Next.InterceptAddrDial(id, addr))
}

// InterceptAccept decides about an incoming connection whose peer is not known
// yet.
func (g Gater) InterceptAccept(c network.ConnMultiaddrs) bool {
	ok := g.List.AllowsAddr(c.RemoteMultiaddr()) && (g.Next == nil || g.Next.InterceptAccept(c))
	if ok && g.Accepting != nil {
		g.Accepting(c)
	}
	return ok
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

// AllowReserve reports whether a peer may make a reservation at the relay
// service.
func (l *List) AllowReserve(id peer.ID, addr ma.Multiaddr) bool {
	return l.Allows(id) && l.AllowsAddr(addr)
}

// AllowConnect reports whether the relay service may relay between two peers.
func (l *List) AllowConnect(src peer.ID, addr ma.Multiaddr, dst peer.ID) bool {
	return l.Allows(src) && l.AllowsAddr(addr) && l.Allows(dst)
}

// Blacklist is the list as gossipsub's: messages by banned authors are dropped,
// whoever forwards them.
type Blacklist struct{ List *List }

// Add does nothing: use a ban.
func (Blacklist) Add(peer.ID) bool { return false }

// Contains reports whether a peer is refused.
func (b Blacklist) Contains(id peer.ID) bool { return !b.List.Allows(id) }
