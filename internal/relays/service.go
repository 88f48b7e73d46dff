package relays

import (
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

const (
	// MinTTL is the shortest lifetime of a reservation: clients look once a minute
	// which of theirs end within two.
	MinTTL = 2 * time.Minute
	// tellEvery is how often refusals for one reason are logged.
	tellEvery = time.Minute
)

// Limits bounds what a relay gives away. A zero field keeps libp2p's default.
type Limits struct {
	Reservations       int
	ReservationsPerIP  int
	ReservationsPerASN int
	ReservationTTL     time.Duration
	Circuits           int
	Duration           time.Duration
	Data               int64
	Unlimited          bool // lifts Duration and Data
}

// resources turns the limits into libp2p's.
func (l Limits) resources() relay.Resources {
	rc := relay.DefaultResources()
	setIf(&rc.MaxReservations, l.Reservations)
	setIf(&rc.MaxReservationsPerIP, l.ReservationsPerIP)
	rc.MaxReservationsPerASN = max(rc.MaxReservationsPerASN, rc.MaxReservationsPerIP)
	setIf(&rc.MaxReservationsPerASN, l.ReservationsPerASN)
	setIf(&rc.ReservationTTL, l.ReservationTTL)
	setIf(&rc.MaxCircuits, l.Circuits)
	setIf(&rc.Limit.Duration, l.Duration)
	setIf(&rc.Limit.Data, l.Data)
	if l.Unlimited {
		rc.Limit = nil
	}
	return rc
}

// ServiceConfig configures a [Service].
type ServiceConfig struct {
	Limits Limits
	// ACL is the node's list of who is allowed and banned.
	ACL relay.ACLFilter
	// Access reports whether a peer that the list admits may make a reservation;
	// nil means all may.
	Access func(peer.ID, ma.Multiaddr) bool
	// AnyAddr makes the relay announce its private addresses in reservations too: on
	// a private network there may be no others.
	AnyAddr bool
	Log     *slog.Logger
}

// Refusal is why the relay service refused something.
type Refusal string

// The reasons.
const (
	RefusedAccess        Refusal = "access"
	RefusedReservations  Refusal = "reservations"
	RefusedNoReservation Refusal = "no-reservation"
	RefusedCircuits      Refusal = "circuits"
	RefusedUnreachable   Refusal = "unreachable"
	RefusedMalformed     Refusal = "malformed"
)

// Service is a relay. It is safe for concurrent use.
type Service struct {
	*relay.Relay
	cfg ServiceConfig

	bytes   atomic.Uint64
	mu      sync.Mutex
	counts  Counts                // but Bytes; guarded by mu
	told    map[Refusal]time.Time // when it was last logged; guarded by mu
	pending map[Refusal]uint64    // refusals that were not logged yet; guarded by mu
}

// Counts is what a relay gives away now, and what it has since it started.
type Counts struct {
	Reservations, Circuits int
	Bytes                  uint64
	Refused                map[Refusal]uint64
}

// Serve runs a relay until its Close. Libp2p's own option would start it only
// once the node is known to be public, which on a private network never
// happens.
func Serve(h *nethost.Host, cfg ServiceConfig) (*Service, error) {
	s := &Service{cfg: cfg, told: make(map[Refusal]time.Time), pending: make(map[Refusal]uint64)}
	s.counts.Refused = make(map[Refusal]uint64)
	opts := []relay.Option{relay.WithResources(cfg.Limits.resources()), relay.WithACL(acl{s}), relay.WithMetricsTracer(serviceTracer{s})}
	if cfg.AnyAddr {
		opts = append(opts, relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }))
	}
	var err error
	if s.Relay, err = relay.New(h, opts...); err != nil {
		return nil, err
	}
	return s, nil
}

func setIf[T int | int64 | time.Duration](dst *T, v T) {
	if v > 0 {
		*dst = v
	}
}

// Counts returns what the relay gives away, and what it has refused by reason.
func (s *Service) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	// Libp2p reports a reservation after it has released its lock, and so perhaps
	// after its end.
	c.Reservations, c.Circuits = max(0, c.Reservations), max(0, c.Circuits)
	c.Refused, c.Bytes = maps.Clone(c.Refused), s.bytes.Load()
	return c
}

// refused counts a refusal. For each reason it logs the first, and then at most
// one line a minute, with how many there were.
func (s *Service) refused(why Refusal) {
	now := time.Now()
	s.mu.Lock()
	s.counts.Refused[why]++
	s.pending[why]++
	count := s.pending[why]
	due := now.Sub(s.told[why]) >= tellEvery
	if due {
		s.told[why] = now
		delete(s.pending, why)
	}
	s.mu.Unlock()
	if !due {
		return
	}
	switch why {
	case RefusedReservations, RefusedCircuits:
		s.cfg.Log.Warn("relay service is full", "limit", why, "refused", count)
	default:
		s.cfg.Log.Debug("relay service refuses", "reason", why, "refused", count)
	}
}

// acl decides who may use the relay.
type acl struct{ s *Service }

// AllowReserve reports whether a peer may make a reservation. The application's
// function may panic.
func (a acl) AllowReserve(id peer.ID, addr ma.Multiaddr) (ok bool) {
	if !a.s.cfg.ACL.AllowReserve(id, addr) {
		return false
	}
	if a.s.cfg.Access == nil {
		return true
	}
	defer func() {
		if p := recover(); p != nil {
			a.s.cfg.Log.Warn("the function that decides who may make a reservation panicked", "peer", id, "panic", p)
			ok = false
		}
	}()
	return a.s.cfg.Access(id, addr)
}

// AllowConnect reports whether a peer may be relayed to another.
func (a acl) AllowConnect(src peer.ID, addr ma.Multiaddr, dst peer.ID) bool {
	return a.s.cfg.ACL.AllowConnect(src, addr, dst)
}

// serviceTracer counts what the relay does.
type serviceTracer struct{ s *Service }

func (t serviceTracer) count(add func(*Counts)) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	add(&t.s.counts)
}

func (serviceTracer) RelayStatus(bool) {}

func (t serviceTracer) ConnectionOpened() { t.count(func(c *Counts) { c.Circuits++ }) }

func (t serviceTracer) ConnectionClosed(time.Duration) { t.count(func(c *Counts) { c.Circuits-- }) }

func (t serviceTracer) ReservationAllowed(renewal bool) {
	if !renewal {
		t.count(func(c *Counts) { c.Reservations++ })
	}
}

func (t serviceTracer) ReservationClosed(n int) { t.count(func(c *Counts) { c.Reservations -= n }) }

func (t serviceTracer) BytesTransferred(n int) { t.s.bytes.Add(uint64(n)) }

func (t serviceTracer) ReservationRequestHandled(status pb.Status) {
	switch status {
	case pb.Status_OK, pb.Status_CONNECTION_FAILED: // the peer has gone
	case pb.Status_PERMISSION_DENIED:
		t.s.refused(RefusedAccess)
	case pb.Status_RESERVATION_REFUSED, pb.Status_RESOURCE_LIMIT_EXCEEDED:
		t.s.refused(RefusedReservations)
	default:
		t.s.refused(RefusedMalformed)
	}
}

func (t serviceTracer) ConnectionRequestHandled(status pb.Status) {
	switch status {
	case pb.Status_OK:
	case pb.Status_PERMISSION_DENIED:
		t.s.refused(RefusedAccess)
	case pb.Status_NO_RESERVATION:
		t.s.refused(RefusedNoReservation)
	case pb.Status_RESOURCE_LIMIT_EXCEEDED:
		t.s.refused(RefusedCircuits)
	case pb.Status_CONNECTION_FAILED:
		t.s.refused(RefusedUnreachable)
	default:
		t.s.refused(RefusedMalformed)
	}
}
