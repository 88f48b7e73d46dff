package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

const (
	// relayRetry is how often AutoRelay looks at relays that it has no
	// reservation with, and how long it leaves one alone that refused it.
	// Its own 30 seconds and 1 hour are meant for choosing among strangers;
	// here the relays were named.
	relayRetry   = 2 * time.Second
	relayBackoff = 10 * time.Second
)

// relayPart keeps the reservations at the relays that were named.
type relayPart struct {
	relays   []peer.AddrInfo
	announce []ma.Multiaddr
	log      *slog.Logger

	// host is set once, by open, when the node is complete: libp2p wants
	// AutoRelay's peers and the address factory before it makes the host. This
	// is the one place where that circle is cut.
	host   atomic.Pointer[hostPart]
	opened chan struct{}
	asked  chan struct{} // AutoRelay runs: it has asked for candidates
	ask    sync.Once

	update chan struct{}         // a reservation may have changed
	failed atomic.Pointer[error] // why the last request was refused; nil after one that was not
	emit   func(Event)           // set before the host is made; the watcher exists by the time of the first call
}

func newRelay(cfg *config, log *slog.Logger) *relayPart {
	return &relayPart{
		relays: cfg.autoRelays, announce: cfg.announce, log: log,
		opened: make(chan struct{}), asked: make(chan struct{}), update: make(chan struct{}, 1),
	}
}

// settle waits until AutoRelay runs, before the host is closed: when its close
// (v0.51) overtakes its start, what it then starts is never stopped.
func (r *relayPart) settle() {
	if len(r.relays) == 0 {
		return
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-r.asked:
	case <-timer.C:
	}
}

// open hands the complete host over: from now on relays are dialled.
func (r *relayPart) open(h *hostPart) {
	r.host.Store(h)
	close(r.opened)
}

// options are those of the host that concern relays and NATs.
func (r *relayPart) options(cfg *config) []libp2p.Option {
	if cfg.noRelay {
		return append(reachabilityOptions(cfg.reachability), libp2p.DisableRelay())
	}
	// NoListenAddrs would switch the relay client off unless it is named.
	opts := []libp2p.Option{libp2p.EnableRelay()}
	reach := cfg.reachability
	if len(r.relays) > 0 {
		n := len(r.relays)
		opts = append(opts, libp2p.EnableAutoRelayWithPeerSource(r.candidates,
			autorelay.WithNumRelays(n), autorelay.WithMinCandidates(1), autorelay.WithMaxCandidates(n),
			autorelay.WithBootDelay(0), autorelay.WithMinInterval(relayRetry), autorelay.WithBackoff(relayBackoff),
			autorelay.WithMetricsTracer(relayTracer{
				autorelay.NewMetricsTracer(autorelay.WithRegisterer(nopRegisterer{})), r,
			})))
		if reach == network.ReachabilityUnknown {
			// AutoRelay waits for reachability to be known, which on a
			// private network never comes; who names relays knows it.
			reach = network.ReachabilityPrivate
		}
	}
	opts = append(opts, reachabilityOptions(reach)...)
	if cfg.holePunching {
		opts = append(opts, libp2p.EnableHolePunching(holepunch.WithTracer(punchTracer{r})))
	}
	if cfg.portMapping {
		opts = append(opts, libp2p.NATPortMap())
	}
	return opts
}

func reachabilityOptions(r network.Reachability) []libp2p.Option {
	switch r {
	case network.ReachabilityPublic:
		return []libp2p.Option{libp2p.ForceReachabilityPublic()}
	case network.ReachabilityPrivate:
		return []libp2p.Option{libp2p.ForceReachabilityPrivate()}
	default:
		return nil
	}
}

// candidates feeds AutoRelay with the named relays, once the host is complete.
func (r *relayPart) candidates(ctx context.Context, _ int) <-chan peer.AddrInfo {
	r.ask.Do(func() { close(r.asked) })
	ch := make(chan peer.AddrInfo, len(r.relays))
	go func() { // ends with ctx, which AutoRelay's close ends
		defer close(ch)
		select {
		case <-r.opened:
		case <-ctx.Done():
			return
		}
		h := r.host.Load()
		for _, p := range r.relays {
			if !h.direct(p.ID) {
				h.swarm.Backoff().Clear(p.ID)
			}
			ch <- p
		}
	}()
	return ch
}

// reserved reports whether there is a reservation at a relay: AutoRelay
// protects the connections that its reservations stand on.
func (r *relayPart) reserved(h *hostPart, id peer.ID) bool {
	return h.direct(id) && h.ConnManager().IsProtected(id, "autorelay")
}

// lost ends the protection when a relay's connection is gone, which AutoRelay
// (v0.51) does not do: the reservation went with the connection.
func (r *relayPart) lost(id peer.ID) {
	h := r.host.Load()
	if h != nil && slices.ContainsFunc(r.relays, func(p peer.AddrInfo) bool { return p.ID == id }) {
		h.ConnManager().Unprotect(id, "autorelay")
		r.nudge()
	}
}

// addrsFactory decides what the node announces: the addresses it was told to,
// or those it listens on, and in either case those through its relays.
// AutoRelay itself announces relays with public addresses only, so that on a
// private network a reservation would stand that nobody learns of.
func (r *relayPart) addrsFactory(list []ma.Multiaddr) []ma.Multiaddr {
	var out []ma.Multiaddr
	if r.announce != nil {
		out = slices.Clone(r.announce)
		for _, a := range list {
			if addrs.IsCircuit(a) {
				out = append(out, a)
			}
		}
	} else {
		out = slices.Clone(list)
	}
	h := r.host.Load()
	if h == nil {
		return out
	}
	for _, a := range r.circuitAddrs(h) {
		if !ma.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// circuitAddrs are this node's addresses through the relays that it has a
// reservation with.
func (r *relayPart) circuitAddrs(h *hostPart) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, p := range r.relays {
		if !r.reserved(h, p.ID) {
			continue
		}
		circuit := ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", p.ID))
		for _, a := range h.Peerstore().Addrs(p.ID) {
			if !addrs.IsCircuit(a) {
				out = append(out, a.Encapsulate(circuit))
			}
		}
	}
	return out
}

func (r *relayPart) nudge() {
	select {
	case r.update <- struct{}{}:
	default:
	}
}

// follow makes the host look at its addresses again when a reservation
// changed, instead of at its next 5-second tick. The event is the one by which
// AutoRelay announces relays; its addresses are the ones addrsFactory adds.
func (r *relayPart) follow(group *lifecycle.Group, h *hostPart) error {
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return err
	}
	started := group.Go(func(ctx context.Context) {
		defer emitter.Close()
		held := make(map[peer.ID]bool)
		for {
			select {
			case <-r.update:
				for _, p := range r.relays {
					switch now := r.reserved(h, p.ID); {
					case now && !held[p.ID]:
						r.emit(EventRelayReserved{p.ID})
						held[p.ID] = true
					case !now && held[p.ID]:
						r.emit(EventRelayLost{p.ID})
						held[p.ID] = false
					}
				}
				list := r.circuitAddrs(h)
				r.log.Info("relay reservations changed", "addrs", len(list))
				if err := emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: list}); err != nil {
					r.log.Warn("announcing relayed addresses", "err", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if !started {
		return emitter.Close()
	}
	return nil
}

// relayTracer hears when AutoRelay got, lost or failed to get a reservation.
// Upstream's own tracer, which counts for nobody here, carries the methods
// whose types are not exported.
type relayTracer struct {
	autorelay.MetricsTracer
	r *relayPart
}

func (t relayTracer) ReservationEnded(int) { t.r.nudge() }
func (t relayTracer) ReservationRequestFinished(_ bool, err error) {
	if err == nil {
		t.r.failed.Store(nil)
	} else {
		t.r.failed.Store(&err)
	}
	t.r.nudge()
}

// missing says why there is no reservation at a relay.
func (r *relayPart) missing(h *hostPart, id peer.ID) string {
	if !h.direct(id) {
		return "it is not connected"
	}
	protos, err := h.Peerstore().GetProtocols(id)
	switch {
	case err != nil || len(protos) == 0:
		return "it has not said yet what it speaks"
	case !slices.Contains(protos, proto.ProtoIDv2Hop):
		return fmt.Sprintf("it is no relay: it does not offer %s", proto.ProtoIDv2Hop)
	}
	if err := r.failed.Load(); err != nil {
		return "the last request failed: " + (*err).Error() // at this relay, or at another
	}
	return "it has not answered yet"
}

// punchTracer turns the end of an attempt to punch a hole into an event.
type punchTracer struct{ r *relayPart }

func (t punchTracer) Trace(ev *holepunch.Event) {
	end, ok := ev.Evt.(*holepunch.EndHolePunchEvt)
	if !ok {
		return
	}
	result := EventHolePunched{ID: ev.Remote, Took: end.EllapsedTime}
	if !end.Success {
		result.Err = errors.New(strings.ReplaceAll(end.Error, "\n", " "))
	}
	t.r.log.Info("hole punch", "peer", result.ID, "took", result.Took, "err", result.Err)
	t.r.emit(result)
}

// startRelayService runs a relay. Libp2p's own option would start it only once
// the node is known to be public, which on a private network never happens.
func startRelayService(cfg *config, h *hostPart, acl relay.ACLFilter) (*relay.Relay, error) {
	rc := relay.DefaultResources()
	l := cfg.relayLimits
	setIf(&rc.MaxReservations, l.Reservations)
	setIf(&rc.MaxReservationsPerIP, l.ReservationsPerIP)
	rc.MaxReservationsPerASN = max(rc.MaxReservationsPerASN, rc.MaxReservationsPerIP)
	setIf(&rc.MaxCircuits, l.Circuits)
	setIf(&rc.Limit.Duration, l.Duration)
	setIf(&rc.Limit.Data, l.Data)
	if l.Unlimited {
		rc.Limit = nil
	}
	opts := []relay.Option{relay.WithResources(rc), relay.WithACL(acl)}
	if !cfg.ipfs {
		// Tell those who reserve the private addresses of this relay too:
		// on a network of one's own there may be no others.
		opts = append(opts, relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }))
	}
	return relay.New(h, opts...)
}

func setIf[T int | int64 | time.Duration](dst *T, v T) {
	if v > 0 {
		*dst = v
	}
}

func (l RelayLimits) check() error {
	switch {
	case l.Reservations < 0, l.ReservationsPerIP < 0, l.Circuits < 0, l.Duration < 0, l.Data < 0:
		return fmt.Errorf("%+v: a limit is negative; zero means its default", l)
	case l.Unlimited && (l.Duration != 0 || l.Data != 0):
		return errors.New("with Unlimited, which lifts Duration and Data, neither can be set")
	}
	return nil
}

// RelayLimits bounds what a relay gives away. A zero field means its default.
type RelayLimits struct {
	// Reservations is how many peers can hold one; default 128.
	Reservations int
	// ReservationsPerIP is how many of them from one IP address; default 8.
	ReservationsPerIP int
	// Circuits is how many connections each can have open; default 16.
	Circuits int
	// Duration is how long a relayed connection may last; default 2 minutes.
	Duration time.Duration
	// Data is how many bytes it may carry each way; default 131072.
	Data int64
	// Unlimited lifts Duration and Data, which must be zero then.
	Unlimited bool
}
