package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// connectError is a failed connection attempt, told in one line. The swarm's
// own error has a line for each address.
type connectError struct {
	id  peer.ID
	err error
}

func (e *connectError) Unwrap() error { return e.err }

// Is makes what a gater refuses match ErrBanned: the peer, or every one of its
// addresses.
func (e *connectError) Is(target error) bool {
	var de *swarm.DialError
	if target != ErrBanned || !errors.As(e.err, &de) || len(de.DialErrors) == 0 {
		return false // a refusal says so itself
	}
	for _, te := range de.DialErrors {
		if !errors.Is(te.Cause, swarm.ErrGaterDisallowedConnection) {
			return false
		}
	}
	return true
}

func (e *connectError) Error() string {
	what := "connect to " + e.id.String() + ": "
	var de *swarm.DialError
	if !errors.As(e.err, &de) {
		return what + e.err.Error()
	}
	var why []string
	if de.Cause != nil && (len(de.DialErrors) == 0 || !errors.Is(de.Cause, swarm.ErrAllDialsFailed)) {
		why = append(why, de.Cause.Error())
	}
	for _, te := range de.DialErrors {
		text := strings.ReplaceAll(te.Cause.Error(), "\n", " ")
		if errors.Is(te.Cause, swarm.ErrGaterDisallowedConnection) {
			text = "its subnet is blocked (see Blocks), or a gater of WithLibp2pOptions refuses it"
		}
		text += remoteReason(te.Cause)
		why = append(why, te.Address.String()+": "+text)
	}
	return what + strings.Join(why, "; ")
}

// remoteReason says in words what the other side gave for a reason in numbers
// when it closed a connection; see the libp2p spec on error codes.
func remoteReason(err error) string {
	ce, ok := errors.AsType[*network.ConnError](err)
	if !ok || !ce.Remote {
		return ""
	}
	switch ce.ErrorCode {
	case network.ConnGated:
		return " (the other side has blocked this node, or does not allow it)"
	case network.ConnResourceLimitExceeded, network.ConnRateLimited:
		return " (a limit of the other side)"
	case network.ConnGarbageCollected:
		return " (the other side had too many connections)"
	default:
		return ""
	}
}

// connect dials a peer now. A dial that failed lately makes the swarm refuse
// the next ones for 5 seconds to 5 minutes, with an error that hides why; who
// asks here has a reason to, so that is forgotten first.
func (n *Node) connect(ctx context.Context, p peer.AddrInfo) error {
	if r := n.access.refusal(p.ID); r != nil {
		return r // the swarm would not say why
	}
	n.base.forgive(p.ID)
	// A relayed connection satisfies those who only know relayed addresses;
	// others want a direct one beside it.
	if len(p.Addrs) > 0 && !slices.ContainsFunc(p.Addrs, func(a ma.Multiaddr) bool { return !addrs.IsCircuit(a) }) {
		ctx = network.WithAllowLimitedConn(ctx, "p2pnode: only relayed addresses are known")
	}
	err := n.host.Connect(ctx, p)
	// Other dials may fail in between, and their errors would not be told.
	for tries := 0; errors.Is(err, swarm.ErrDialBackoff) && tries < 10; tries++ {
		n.base.forgive(p.ID)
		err = n.host.Connect(ctx, p)
	}
	if err != nil {
		return err
	}
	// The host says so even when identify has failed because the other side
	// hung up.
	if !n.base.isConnected(p.ID) {
		return errLostAtOnce
	}
	return nil
}

// errLostAtOnce is a dial that succeeded for nothing.
var errLostAtOnce = errors.New("the connection was lost again at once: the peer may have blocked this node, or have no room for it")

// forgive lets the next dial of a peer happen, whatever failed before.
func (h *hostPart) forgive(id peer.ID) {
	h.swarm.Backoff().Clear(id)
	if len(h.swarm.Peers()) > 0 {
		return
	}
	// When 95 of 100 dials over UDP (or IPv6) have failed, the swarm takes it
	// for unusable and lets one dial in 100 through. After an outage of some
	// minutes that would keep a node apart for an hour more; with nobody
	// connected there is nothing to lose by trying.
	for _, b := range h.blackHoles {
		if b.State().String() == "Blocked" {
			if b.Name == "UDP" {
				h.udpGivenUp.Store(true)
			}
			b.RecordResult(true) // which makes it forget
		}
	}
}

// Connect makes sure that there is a connection to a peer, dialling the given
// addresses and those known already; without any, the peer is looked up in the
// DHT. An address through a relay, /…/p2p/<relay>/p2p-circuit, works like any
// other. It returns once the peer is identified. Earlier failed attempts do
// not hold it back. It returns ErrClosed after Close, ErrBanned for a peer that
// Block or WithAllowedPeers shuts out, and otherwise an error with the reason for
// every address. A peer that hangs up at once, as one does that has blocked this
// node, is an error too.
func (n *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	if err := p.ID.Validate(); err != nil {
		return fmt.Errorf("p2pnode: connect: no peer ID given: %w", err)
	}
	if p.ID == n.id {
		return fmt.Errorf("p2pnode: connect: %s is this node itself", p.ID)
	}
	ctx, done := n.bind(ctx)
	defer done()
	if err := n.connect(ctx, p); err != nil {
		return n.fail(&connectError{p.ID, err})
	}
	return nil
}

// Ping measures the round-trip time to a peer, connecting first if needed, by
// the protocol /ipfs/ping/1.0.0. It returns ErrClosed after Close.
func (n *Node) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	if n.closed() {
		return 0, ErrClosed
	}
	ctx, done := n.bind(ctx)
	defer done()
	if id == n.id {
		return 0, fmt.Errorf("p2pnode: ping: %s is this node itself", id)
	}
	// The result channel closes when ctx is done; ping writes one more result
	// at most, and stops with it.
	r, ok := <-ping.Ping(ctx, n.host, id)
	switch {
	case !ok:
		return 0, n.fail(fmt.Errorf("ping %s: %w", id, context.Cause(ctx)))
	case r.Error != nil:
		return 0, n.fail(fmt.Errorf("ping %s: %w", id, r.Error))
	}
	return r.RTT, nil
}

// Peer describes a connected peer at one moment.
type Peer struct {
	ID        peer.ID       `json:"id"`
	Addr      ma.Multiaddr  `json:"addr"`              // the far end of the best connection
	Transport string        `json:"transport"`         // of that connection, such as "quic-v1", "tcp" or "p2p-circuit"
	Relayed   bool          `json:"relayed"`           // there is no direct connection
	Direction string        `json:"direction"`         // "inbound" or "outbound"
	Latency   time.Duration `json:"latency,omitempty"` // moving average, in nanoseconds; 0 when not measured yet
	Since     time.Time     `json:"since"`             // when that connection was opened
	Agent     string        `json:"agent,omitempty"`   // what the peer calls itself
	// Protocols are those that the peer says it speaks, sorted. They are empty
	// until it is identified.
	Protocols []protocol.ID `json:"protocols,omitempty"`
}

// Peers returns the connected peers, sorted by ID. After Close it returns nil.
func (n *Node) Peers() []Peer {
	if n.closed() {
		return nil
	}
	return n.base.peers()
}

func (h *hostPart) peers() []Peer {
	ids := h.swarm.Peers()
	list := make([]Peer, 0, len(ids))
	for _, id := range ids {
		if p, ok := h.peer(id); ok {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b Peer) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// peer describes one connected peer by its best connection: direct before
// relayed, then the oldest.
func (h *hostPart) peer(id peer.ID) (Peer, bool) {
	conns := slices.DeleteFunc(h.swarm.ConnsToPeer(id), network.Conn.IsClosed)
	if len(conns) == 0 {
		return Peer{}, false
	}
	best := slices.MinFunc(conns, func(a, b network.Conn) int {
		// Not by Limited: a relay without limits makes relayed connections
		// that are not.
		if x, y := addrs.IsCircuit(a.RemoteMultiaddr()), addrs.IsCircuit(b.RemoteMultiaddr()); x != y {
			if y {
				return -1
			}
			return 1
		}
		return a.Stat().Opened.Compare(b.Stat().Opened)
	})
	p := Peer{
		ID:        id,
		Addr:      best.RemoteMultiaddr(),
		Transport: best.ConnState().Transport,
		Since:     best.Stat().Opened,
		Relayed:   addrs.IsCircuit(best.RemoteMultiaddr()),
		Direction: strings.ToLower(best.Stat().Direction.String()),
		Latency:   h.Peerstore().LatencyEWMA(id),
	}
	if v, err := h.Peerstore().Get(id, "AgentVersion"); err == nil {
		p.Agent, _ = v.(string)
	}
	if protos, err := h.Peerstore().GetProtocols(id); err == nil {
		slices.Sort(protos)
		p.Protocols = protos
	}
	return p, true
}

// isConnected reports whether there is a connection, direct or relayed.
func (h *hostPart) isConnected(id peer.ID) bool {
	switch h.swarm.Connectedness(id) {
	case network.Connected, network.Limited:
		return true
	default:
		return false
	}
}

// opened is when the oldest connection to a peer was opened, zero without one.
func (h *hostPart) opened(id peer.ID) (at time.Time) {
	for _, c := range h.swarm.ConnsToPeer(id) {
		if o := c.Stat().Opened; !c.IsClosed() && (at.IsZero() || o.Before(at)) {
			at = o
		}
	}
	return at
}

// connectedFor reports whether there is a connection of that age, direct or
// relayed.
func (h *hostPart) connectedFor(id peer.ID, age time.Duration) bool {
	at := h.opened(id)
	return !at.IsZero() && time.Since(at) >= age
}

// keepForBootstrap and keepPersistent spare a peer from trimming, or no longer.
func (h *hostPart) keepForBootstrap(id peer.ID, on bool) { h.protect(id, "p2pnode-bootstrap", on) }
func (h *hostPart) keepPersistent(id peer.ID, on bool)   { h.protect(id, "p2pnode-persistent", on) }

func (h *hostPart) protect(id peer.ID, tag string, on bool) {
	if on {
		h.ConnManager().Protect(id, tag)
	} else {
		h.ConnManager().Unprotect(id, tag)
	}
}

// direct reports whether there is a connection that is not relayed.
func (h *hostPart) direct(id peer.ID) bool {
	return h.swarm.Connectedness(id) == network.Connected
}
