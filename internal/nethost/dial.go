package nethost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// ErrLostAtOnce is returned for a dial that succeeded, but whose connection was
// lost at once.
var ErrLostAtOnce = errors.New("the connection was lost at once: the peer may have banned this node, or be full")

// Dialer connects to peers immediately, whatever failed before.
type Dialer struct {
	Host    *Host
	Via     host.Host           // what looks up peers without known addresses; often Host itself
	Refusal func(peer.ID) error // why a peer is not dialed; nil when it may be
}

// Connect makes sure that there is a connection to a peer. Every error is a
// [ConnectError].
func (d Dialer) Connect(ctx context.Context, p peer.AddrInfo) error {
	if err := d.connect(ctx, p); err != nil {
		return &ConnectError{ID: p.ID, Err: nameless(err, p.Addrs)}
	}
	return nil
}

func (d Dialer) connect(ctx context.Context, p peer.AddrInfo) error {
	if err := d.Refusal(p.ID); err != nil {
		return err // the swarm would not report why
	}
	// After a failed dial the swarm refuses the next ones for 5 seconds to 5
	// minutes, with an error that hides why. Callers here have a reason to dial,
	// so forget that first.
	d.Host.Forgive(p.ID)
	direct := len(p.Addrs) == 0 || slices.ContainsFunc(p.Addrs, func(a ma.Multiaddr) bool { return !addrs.IsCircuit(a) })
	if !direct {
		// A relayed connection satisfies callers who know only circuit addresses;
		// others want a direct one in addition.
		ctx = network.WithAllowLimitedConn(ctx, "p2pnode: only relayed addresses are known")
	}
	err := d.Via.Connect(ctx, p)
	if errors.Is(err, swarm.ErrDialBackoff) {
		// Another dial failed in between. This one must try nevertheless, and
		// return the cause.
		d.Host.Forgive(p.ID)
		if direct { // the back-off does not apply to it
			ctx = network.WithForceDirectDial(ctx, "p2pnode: dial now")
		}
		err = d.Via.Connect(ctx, p)
	}
	if err != nil {
		return err
	}
	// The host returns nil even if identify failed because the other side hung up.
	if !d.Host.Connected(p.ID) {
		return ErrLostAtOnce
	}
	return nil
}

// Ping measures the round-trip time to a peer, connecting first if needed.
func (d Dialer) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	if !d.Host.Connected(id) {
		if err := d.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
			return 0, err
		}
	}
	return d.Host.Ping(ctx, id)
}

// Ping measures the round-trip time to a connected peer, even over a limited
// connection.
func (h *Host) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	ctx = network.WithAllowLimitedConn(network.WithNoDial(ctx, "p2pnode: ping"), "p2pnode: ping")
	// The result channel closes when ctx ends; ping writes at most one more
	// result.
	r, ok := <-ping.Ping(ctx, h, id)
	if !ok {
		return 0, context.Cause(ctx)
	}
	return r.RTT, r.Error
}

// ConnectError is a failed connection attempt. Its text is one line; the
// swarm's own error has a line for each address.
type ConnectError struct {
	ID  peer.ID
	Err error
}

// Unwrap returns Err.
func (e *ConnectError) Unwrap() error { return e.Err }

// Is makes a gater's refusal match errs.ErrBanned: of the peer, or of all of
// its addresses.
func (e *ConnectError) Is(target error) bool {
	var de *swarm.DialError
	if target != errs.ErrBanned || !errors.As(e.Err, &de) || len(de.DialErrors) == 0 {
		return false // a refusal matches by itself
	}
	for _, te := range de.DialErrors {
		if !errors.Is(te.Cause, swarm.ErrGaterDisallowedConnection) {
			return false
		}
	}
	return true
}

func (e *ConnectError) Error() string {
	what := "connect to " + e.ID.String() + ": "
	var de *swarm.DialError
	if !errors.As(e.Err, &de) {
		return what + e.Err.Error()
	}
	var why []string
	if de.Cause != nil && (len(de.DialErrors) == 0 || !errors.Is(de.Cause, swarm.ErrAllDialsFailed)) {
		why = append(why, de.Cause.Error())
	}
	for _, te := range de.DialErrors {
		text := strings.ReplaceAll(te.Cause.Error(), "\n", " ")
		if errors.Is(te.Cause, swarm.ErrGaterDisallowedConnection) {
			text = "its subnet is banned (see Bans), or a gater of WithLibp2pOptions refuses it"
		}
		text += remoteReason(te.Cause)
		why = append(why, te.Address.String()+": "+text)
	}
	if names, ok := errors.AsType[*namesError](e.Err); ok {
		why = append(why, names.Error())
	}
	return what + strings.Join(why, "; ")
}

// remoteReason describes the code with which the other side closed a
// connection; see github.com/libp2p/specs/blob/master/error-codes.
func remoteReason(err error) string {
	ce, ok := errors.AsType[*network.ConnError](err)
	if !ok || !ce.Remote {
		return ""
	}
	switch ce.ErrorCode {
	case network.ConnGated:
		return " (the other side has banned this node, or does not allow it)"
	case network.ConnResourceLimitExceeded, network.ConnRateLimited:
		return " (the other side reached a limit)"
	case network.ConnGarbageCollected:
		return " (the other side had too many connections)"
	default:
		return ""
	}
}

// namesError reports that DNS names do not resolve, which the swarm reports as
// having no good address.
type namesError struct {
	names []string
	err   error
}

func (e *namesError) Unwrap() error { return e.err }
func (e *namesError) Error() string {
	return fmt.Sprintf("%s does not resolve to an address that can be dialed; check the name and the DNS", strings.Join(e.names, ", "))
}

func nameless(err error, list []ma.Multiaddr) error {
	if !errors.Is(err, swarm.ErrNoGoodAddresses) || len(list) == 0 {
		return err
	}
	var names []string
	for _, a := range list {
		if !madns.Matches(a) {
			return err // it has other addresses
		}
		names = append(names, a.String())
	}
	return &namesError{names, err}
}

// ClearBackoff lets the next dial of a peer proceed, whatever failed before.
func (h *Host) ClearBackoff(id peer.ID) { h.swarm.Backoff().Clear(id) }

// udpCounter is the name of the swarm's counter of dials over UDP.
const udpCounter = "UDP"

// Forgive lets the next dial of a peer proceed, whatever failed before.
//
// When 95 of 100 dials over UDP (or IPv6) have failed, the swarm considers it
// unusable and lets one dial in 100 through. After an outage of some minutes
// that would keep a node isolated for another hour; with no peer connected, or
// a connection over UDP that proves otherwise, there is nothing to lose by
// trying.
func (h *Host) Forgive(id peer.ID) {
	h.ClearBackoff(id)
	if conns := h.swarm.Conns(); len(conns) > 0 && !slices.ContainsFunc(conns, overUDP) {
		return
	}
	for _, b := range h.blackHoles {
		if blocked(b) {
			if b.Name == udpCounter {
				h.udpGivenUp.Store(true)
			}
			b.RecordResult(true) // this resets it
		}
	}
}

// udpWorks resets the swarm's judgment of UDP, now that there is a connection
// over it. The swarm's own counter notices neither a connection that the other
// side opened, nor one whose dial was the hundredth after 99 failures: one
// success in a hundred is too few.
func (h *Host) udpWorks() {
	h.udpGivenUp.Store(false)
	for _, b := range h.blackHoles {
		if b.Name == udpCounter && blocked(b) {
			b.RecordResult(true)
		}
	}
}

// UDPBlocked reports whether dials over UDP fail and no connection uses it: the
// swarm considers UDP unusable, or did until a reset that led to nothing.
func (h *Host) UDPBlocked() bool {
	given := h.udpGivenUp.Load()
	for _, b := range h.blackHoles {
		given = given || b.Name == udpCounter && blocked(b)
	}
	return given && !slices.ContainsFunc(h.swarm.Conns(), overUDP)
}

func blocked(b *swarm.BlackHoleSuccessCounter) bool { return b.State().String() == "Blocked" }

func overUDP(c network.Conn) bool {
	_, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_UDP)
	return err == nil && !addrs.IsCircuit(c.RemoteMultiaddr())
}
