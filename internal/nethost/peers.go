package nethost

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
)

// Peer describes a connected peer by its best connection at one moment.
type Peer struct {
	ID        peer.ID
	Addr      ma.Multiaddr
	Transport string
	Relayed   bool
	Limited   bool // all connections run through relays with limits
	Direction network.Direction
	Latency   time.Duration
	Since     time.Time
	LastSeen  time.Time // when the connection opened, or the peer last answered
	Agent     string
	Protocols []protocol.ID
}

// Peers describes the connected peers, sorted by ID.
func (h *Host) Peers() []Peer {
	ids := h.swarm.Peers()
	list := make([]Peer, 0, len(ids))
	for _, id := range ids {
		if p, ok := h.Peer(id); ok {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b Peer) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// Peer describes one connected peer by its best connection: direct before
// relayed, then the oldest. It reports whether there is one.
func (h *Host) Peer(id peer.ID) (Peer, bool) {
	best := h.best(id)
	if best == nil {
		return Peer{}, false
	}
	p := Peer{
		ID:        id,
		Addr:      best.RemoteMultiaddr(),
		Transport: best.ConnState().Transport,
		Since:     best.Stat().Opened,
		Relayed:   addrs.IsCircuit(best.RemoteMultiaddr()),
		Limited:   !h.Direct(id),
		Direction: best.Stat().Direction,
		Latency:   h.Peerstore().LatencyEWMA(id),
	}
	p.LastSeen = p.Since
	if v, err := h.Peerstore().Get(id, answered); err == nil {
		if at, _ := v.(time.Time); at.After(p.Since) {
			p.LastSeen = at
		}
	}
	if v, err := h.Peerstore().Get(id, "AgentVersion"); err == nil {
		agent, _ := v.(string)
		p.Agent = causes.Clean(agent)
	}
	p.Protocols = h.Protocols(id)
	for i, protocolID := range p.Protocols {
		p.Protocols[i] = protocol.ID(causes.Clean(string(protocolID)))
	}
	return p, true
}

// best returns the best open connection to a peer, nil without one.
func (h *Host) best(id peer.ID) network.Conn {
	conns := slices.DeleteFunc(h.swarm.ConnsToPeer(id), network.Conn.IsClosed)
	if len(conns) == 0 {
		return nil
	}
	return slices.MinFunc(conns, func(a, b network.Conn) int {
		// Not by Limited: connections through a relay without limits are not.
		if x, y := addrs.IsCircuit(a.RemoteMultiaddr()), addrs.IsCircuit(b.RemoteMultiaddr()); x != y {
			if y {
				return -1
			}
			return 1
		}
		return a.Stat().Opened.Compare(b.Stat().Opened)
	})
}

// PeerIDs returns the connected peers.
func (h *Host) PeerIDs() []peer.ID { return h.swarm.Peers() }

// PeerCount returns how many peers are connected.
func (h *Host) PeerCount() int { return len(h.swarm.Peers()) }

// ConnCount returns how many connections are open.
func (h *Host) ConnCount() int { return len(h.swarm.Conns()) }

// Connected reports whether there is a connection, direct or relayed.
func (h *Host) Connected(id peer.ID) bool {
	switch h.swarm.Connectedness(id) {
	case network.Connected, network.Limited:
		return true
	default:
		return false
	}
}

// Direct reports whether there is a connection that is not limited.
func (h *Host) Direct(id peer.ID) bool { return h.swarm.Connectedness(id) == network.Connected }

// OpenedAt returns when the oldest connection to a peer was opened, zero
// without one.
func (h *Host) OpenedAt(id peer.ID) (at time.Time) {
	for _, c := range h.swarm.ConnsToPeer(id) {
		if o := c.Stat().Opened; !c.IsClosed() && (at.IsZero() || o.Before(at)) {
			at = o
		}
	}
	return at
}

// ConnectedFor reports whether a connection to the peer is at least that old.
func (h *Host) ConnectedFor(id peer.ID, age time.Duration) bool {
	at := h.OpenedAt(id)
	return !at.IsZero() && time.Since(at) >= age
}

// Conn is one open connection.
type Conn struct {
	Addr     ma.Multiaddr // of the other side
	Relayed  bool
	Outbound bool
	Opened   time.Time
}

// Conns returns the open connections to a peer.
func (h *Host) Conns(id peer.ID) []Conn {
	var list []Conn
	for _, c := range h.swarm.ConnsToPeer(id) {
		if !c.IsClosed() {
			a := c.RemoteMultiaddr()
			list = append(list, Conn{a, addrs.IsCircuit(a), c.Stat().Direction == network.DirOutbound, c.Stat().Opened})
		}
	}
	return list
}

// KnownAddrs returns the addresses of a peer in the address book.
func (h *Host) KnownAddrs(id peer.ID) []ma.Multiaddr { return h.Peerstore().Addrs(id) }

// Protect protects a peer from trimming under a tag, or no longer.
func (h *Host) Protect(id peer.ID, tag string, on bool) {
	if on {
		h.ConnManager().Protect(id, tag)
	} else {
		h.ConnManager().Unprotect(id, tag)
	}
}

// Disconnect closes the connections to a peer.
func (h *Host) Disconnect(id peer.ID) error { return h.swarm.ClosePeer(id) }

// CloseConns closes the connections that keep refuses, with the code for a
// gater's refusal. It returns those that could not be closed.
func (h *Host) CloseConns(keep func(peer.ID, ma.Multiaddr) bool) (failed map[peer.ID]error) {
	for _, c := range h.swarm.Conns() {
		if keep(c.RemotePeer(), c.RemoteMultiaddr()) {
			continue
		}
		if err := c.CloseWithError(network.ConnGated); err != nil {
			if failed == nil {
				failed = make(map[peer.ID]error)
			}
			failed[c.RemotePeer()] = err
		}
	}
	return failed
}

// Identified returns what is closed when a connection is identified, nil if
// nobody knows.
func (h *Host) Identified(c network.Conn) <-chan struct{} {
	ids, ok := h.Host.(interface{ IDService() identify.IDService })
	if !ok {
		return nil
	}
	return ids.IDService().IdentifyWait(c)
}

// AwaitIdentify waits until a connected peer is identified: before that its addresses
// and protocols are not known.
func (h *Host) AwaitIdentify(ctx context.Context, id peer.ID) { h.awaitIdentify(ctx, id) }

// awaitIdentify reports whether one of the connections is still open: otherwise there
// may be others by now, or ctx has ended.
func (h *Host) awaitIdentify(ctx context.Context, id peer.ID) (open bool) {
	return h.identified(ctx, h.swarm.ConnsToPeer(id)) != nil
}

// Protocols returns what a peer says that it speaks, sorted; nil before it has.
func (h *Host) Protocols(id peer.ID) []protocol.ID {
	protos, err := h.Peerstore().GetProtocols(id)
	if err != nil {
		return nil
	}
	slices.Sort(protos)
	return protos
}

// SignedAt returns when a peer signed its addresses, by its clock.
func (h *Host) SignedAt(id peer.ID) (at time.Time, ok bool) {
	book, ok := peerstore.GetCertifiedAddrBook(h.Peerstore())
	if !ok {
		return time.Time{}, false
	}
	envelope := book.GetPeerRecord(id)
	if envelope == nil {
		return time.Time{}, false
	}
	rec, err := envelope.Record()
	if err != nil {
		return time.Time{}, false
	}
	r, ok := rec.(*peer.PeerRecord)
	if !ok || r.Seq > math.MaxInt64 {
		return time.Time{}, false
	}
	return time.Unix(0, int64(r.Seq)), true
}
