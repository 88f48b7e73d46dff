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

// ErrLostAtOnce is a dial that succeeded for nothing.
var ErrLostAtOnce = errors.New("the connection was lost at once: the peer may have banned this node, or have no room for it")

// Dialer connects to peers now, whatever failed before.
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
		return err // the swarm would not say why
	}
	// A dial that failed lately makes the swarm refuse the next ones for 5
	// seconds to 5 minutes, with an error that hides why. Who asks here has a
	// reason to, so that is forgotten first.
	d.Host.Forgive(p.ID)
	direct := len(p.Addrs) == 0 || slices.ContainsFunc(p.Addrs, func(a ma.Multiaddr) bool { return !addrs.IsCircuit(a) })
	if !direct {
		// A relayed connection satisfies those who only know relayed
		// addresses; others want a direct one beside it.
		ctx = network.WithAllowLimitedConn(ctx, "p2pnode: only relayed addresses are known")
	}
	err := d.Via.Connect(ctx, p)
	if errors.Is(err, swarm.ErrDialBackoff) {
		// Another dial failed in between. This one is not to fail for it
		// without having tried, and its error is to tell the cause.
		d.Host.Forgive(p.ID)
		if direct { // which the back-off does not hold up
			ctx = network.WithForceDirectDial(ctx, "p2pnode: dial now")
		}
		err = d.Via.Connect(ctx, p)
	}
	if err != nil {
		return err
	}
	// The host says nil even when identify failed because the other side hung
	// up.
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

// Ping measures the round-trip time to a connected peer, also over a limited
// connection.
func (h *Host) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	ctx = network.WithAllowLimitedConn(network.WithNoDial(ctx, "p2pnode: ping"), "p2pnode: ping")
	// The result channel closes when ctx is done; ping writes one more result
	// at most, and stops with it.
	r, ok := <-ping.Ping(ctx, h, id)
	if !ok {
		return 0, context.Cause(ctx)
	}
	return r.RTT, r.Error
}

// ConnectError is a failed connection attempt, told in one line. The swarm's
// own error has a line for each address.
type ConnectError struct {
	ID  peer.ID
	Err error
}

// Unwrap returns Err.
func (e *ConnectError) Unwrap() error { return e.Err }

// Is makes what a gater refuses match errs.ErrBanned: the peer, or every one of
// its addresses.
func (e *ConnectError) Is(target error) bool {
	var de *swarm.DialError
	if target != errs.ErrBanned || !errors.As(e.Err, &de) || len(de.DialErrors) == 0 {
		return false // a refusal says so itself
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

// remoteReason puts into words the code with which the other side closed a
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
		return " (a limit of the other side)"
	case network.ConnGarbageCollected:
		return " (the other side had too many connections)"
	default:
		return ""
	}
}

// namesError says that names resolve to nothing, which the swarm calls having
// no good address.
type namesError struct {
	names []string
	err   error
}

func (e *namesError) Unwrap() error { return e.err }
func (e *namesError) Error() string {
	return fmt.Sprintf("%s resolves to nothing that can be dialed; check the name and the DNS", strings.Join(e.names, ", "))
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

// ClearBackoff lets the next dial of a peer happen, whatever failed before.
func (h *Host) ClearBackoff(id peer.ID) { h.swarm.Backoff().Clear(id) }

// udpCounter is the name of the counter that watches dials over UDP.
const udpCounter = "UDP"

// Forgive lets the next dial of a peer happen, whatever failed before.
//
// When 95 of 100 dials over UDP (or IPv6) have failed, the swarm takes it for
// unusable and lets one dial in 100 through. After an outage of some minutes
// that would keep a node apart for an hour more; with nobody connected, or a
// connection over UDP that shows better, there is nothing to lose by trying.
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
			b.RecordResult(true) // which makes it forget
		}
	}
}

// udpWorks makes the swarm forget what it thinks of UDP, now that there is a
// connection over it. Its own counter does not notice one that the other side
// opened, nor one whose dial was the hundredth after 99 that failed: one success
// in a hundred is too few.
func (h *Host) udpWorks() {
	h.udpGivenUp.Store(false)
	for _, b := range h.blackHoles {
		if b.Name == udpCounter && blocked(b) {
			b.RecordResult(true)
		}
	}
}

// UDPBlocked reports whether dials over UDP fail and no connection uses it: the
// swarm has given UDP up, or had, and was made to forget it with nothing gained.
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
