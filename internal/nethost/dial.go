package nethost

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
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
	if err := d.Refusal(p.ID); err != nil {
		return &ConnectError{ID: p.ID, Err: err, why: err.Error()} // the swarm would not say why
	}
	begun := time.Now()
	if err := d.connect(ctx, p); err != nil {
		return d.explain(p, begun, err)
	}
	return nil
}

// ConnectAnyway is Connect, but if the peer has dialed at the same moment, and both
// dials failed for that, it waits for the peer's next one or dials again.
func (d Dialer) ConnectAnyway(ctx context.Context, p peer.AddrInfo) error {
	err := d.Connect(ctx, p)
	if err == nil || ctx.Err() != nil || !d.collided(err) {
		return err
	}
	if d.yield(ctx, p.ID) {
		return nil
	}
	return d.Connect(ctx, p)
}

// lookups is the key of the peers that have been looked up for a dial.
type lookups struct{}

// LookedUp reports whether a peer has been looked up for the same dial before: what
// was found could not be dialed.
func LookedUp(ctx context.Context, id peer.ID) bool {
	made, _ := ctx.Value(lookups{}).(*sync.Map)
	if made == nil {
		return false
	}
	_, again := made.LoadOrStore(id, true)
	return again
}

// connect dials a peer, again if it has found a connection that was lost at once and
// that no dial of this node has opened meanwhile. A peer that dials two addresses closes
// one of its connections when it has the other, which may not be here yet. A peer that
// hangs up on a dial of this node is not dialed again.
func (d Dialer) connect(ctx context.Context, p peer.AddrInfo) error {
	w := d.Host.dials.watch(p.ID)
	defer d.Host.dials.unwatch(w)
	for again := false; ; again = true {
		// The host returns nil even if identify failed because the other side hung up.
		if err := d.dial(ctx, p); err != nil || d.Host.Connected(p.ID) {
			return err
		}
		if again || w.dialed.Load() || ctx.Err() != nil {
			return ErrLostAtOnce
		}
	}
}

// dials tells those who connect to a peer whether a dial of this node has opened a
// connection to it meanwhile.
type dials struct {
	mu      sync.Mutex
	watches map[*dialWatch]bool // guarded by mu
}

type dialWatch struct {
	id     peer.ID
	dialed atomic.Bool
}

func (d *dials) watch(id peer.ID) *dialWatch {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watches == nil {
		d.watches = make(map[*dialWatch]bool)
	}
	w := &dialWatch{id: id}
	d.watches[w] = true
	return w
}

func (d *dials) unwatch(w *dialWatch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.watches, w)
}

func (d *dials) connected(c network.Conn) {
	if c.Stat().Direction != network.DirOutbound {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.watches {
		if w.id == c.RemotePeer() {
			w.dialed.Store(true)
		}
	}
}

func (d Dialer) dial(ctx context.Context, p peer.AddrInfo) error {
	ctx = context.WithValue(ctx, lookups{}, new(sync.Map))
	// After a failed dial the swarm refuses the next ones for 5 seconds to 5
	// minutes, with an error that hides why. Callers here have a reason to dial,
	// so forget that first.
	d.Host.Forgive(p.ID)
	p.Addrs = forDialing(p.Addrs)
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
	// The relay client (v0.51) fails a dial while another one to the same peer is under
	// way, whatever becomes of that: its dialer may have given up.
	for i := 0; overtaken(err); i++ {
		if d.Host.Connected(p.ID) {
			return nil
		}
		if i == maxOvertaken {
			break
		}
		d.Host.Forgive(p.ID)
		err = d.Via.Connect(ctx, p)
	}
	return err
}

// maxOvertaken is how often a dial is made again that another one has overtaken.
const maxOvertaken = 3

// overtaken reports whether a dial failed because others through the same relays were
// under way.
func overtaken(err error) (all bool) {
	var de *swarm.DialError
	if !errors.As(err, &de) {
		return false
	}
	for _, t := range de.DialErrors {
		if addrs.IsCircuit(t.Address) {
			if all = causes.Overtaken(t.Cause); !all {
				return false
			}
		}
	}
	return all
}

// yieldFor is how long a node waits for the connection of a peer whose dial has met
// its own.
const yieldFor = time.Second

// collided reports whether a dial may have failed because the peer dialed at the same
// moment. Dials over TCP come from the listen port, so both are one connection then
// (a simultaneous open), on which both sides begin the handshake.
func (d Dialer) collided(err error) bool {
	listens := slices.ContainsFunc(d.Host.ListenAddrs(), func(a ma.Multiaddr) bool { return addrs.KindOf(a) == addrs.TCP })
	var de *swarm.DialError
	return listens && errors.As(err, &de) && slices.ContainsFunc(de.DialErrors, func(t swarm.TransportError) bool {
		return addrs.KindOf(t.Address) == addrs.TCP && causes.Collided(t.Cause)
	})
}

// yield reports whether a peer gets connected by a dial of its own. Of the two
// sides, the one with the lower ID dials again at once, the other one waits.
func (d Dialer) yield(ctx context.Context, id peer.ID) bool {
	if d.Host.ID() < id {
		return d.Host.Connected(id)
	}
	came := make(chan struct{}, 1)
	watch := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == id {
			select {
			case came <- struct{}{}:
			default:
			}
		}
	}}
	d.Host.Network().Notify(watch)
	defer d.Host.Network().StopNotify(watch)
	timer := time.NewTimer(yieldFor)
	defer timer.Stop()
	for !d.Host.Connected(id) {
		select {
		case <-came:
		case <-timer.C:
			return d.Host.Connected(id)
		case <-ctx.Done():
			return d.Host.Connected(id)
		}
	}
	return true
}

// errNotIdentified is returned for a peer that is connected, but of which nothing is
// known.
var errNotIdentified = errors.New("it is connected, but does not answer identify (/ipfs/id/1.0.0): its protocols are not known, and nothing will work with it")

// ConnectAndIdentify is ConnectAnyway, and waits until the peer is identified. It is an
// error if that fails, or if the peer hangs up before. If the connection is lost that
// ConnectAnyway has found, it connects again.
func (d Dialer) ConnectAndIdentify(ctx context.Context, p peer.AddrInfo) error {
	w := d.Host.dials.watch(p.ID)
	defer d.Host.dials.unwatch(w)
	for again := false; ; again = true {
		if err := d.ConnectAnyway(ctx, p); err != nil {
			return err
		}
		err := d.CheckIdentified(ctx, p.ID)
		if !errors.Is(err, ErrLostAtOnce) || again || w.dialed.Load() || ctx.Err() != nil {
			return err
		}
	}
}

// CheckIdentified waits until a connected peer is identified, and returns an error if
// that has failed.
func (d Dialer) CheckIdentified(ctx context.Context, id peer.ID) error {
	open := d.Host.awaitIdentify(ctx, id)
	for !open && d.Host.Connected(id) && ctx.Err() == nil { // the peer has closed one, and another one came later
		open = d.Host.awaitIdentify(ctx, id)
	}
	var err error
	switch {
	case len(d.Host.Protocols(id)) > 0:
		return nil
	case !d.Host.Connected(id):
		err = ErrLostAtOnce
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		err = errNotIdentified
	}
	return &ConnectError{ID: id, Err: err, why: err.Error()}
}

// Ping measures the round-trip time to a peer, connecting first if needed.
func (d Dialer) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	if !d.Host.Connected(id) {
		if err := d.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	took, err := d.Host.Ping(ctx, id)
	return took, d.Explain(id, begun, err)
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
	if r.Error == nil {
		_ = h.Peerstore().Put(id, answered, time.Now()) // if it fails, only Peer.LastSeen is missing
	}
	return r.RTT, r.Error
}

// answered is the key under which the peerstore has when a peer
// last answered Ping or CloseDead.
const answered = "p2pnode: answered"

// ClearBackoff lets the next dial of a peer happen, whatever failed before.
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
