package p2pnode

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

// Limits bound what others can make a node do. A field that is zero keeps its
// default, which for those in all is scaled to the memory and the open files of
// the machine, as libp2p does it. What is beyond a limit is refused, at once,
// with an error on this side; WithConnLimits, in contrast, is where connections
// begin to be trimmed, and should be well below Conns.
type Limits struct {
	Conns          int   // connections in all, at least twice the upper limit of WithConnLimits; half as many may be in their handshakes
	ConnsPerPeer   int   // connections with one peer; the default is 8
	ConnsPerIP     int   // connections with one IPv4 address or IPv6 /56; the default is 8
	ConnRatePerIP  int   // new connections a second with one of those, after 64 (or four times as many) at once; the default is 1
	Streams        int   // streams in all, at least 128; an eighth of them may be waiting for their protocol
	StreamsPerPeer int   // streams with one peer, of one protocol or of several, at least 16: the node itself has some
	Memory         int64 // bytes for the buffers of connections and streams, in all, at least 16 MiB
}

// What a limit can be: below, the node's own parts do not work; above, sums
// would overflow.
const (
	minStreams        = 128
	minStreamsPerPeer = 16
	minMemory         = 16 << 20
	maxLimit          = 100_000_000
)

func (l Limits) check() error {
	if l == (Limits{}) {
		return errors.New("no limit is given; zero means its default")
	}
	for _, f := range []struct {
		name            string
		value, min, max int64
	}{
		{"Conns", int64(l.Conns), 1, maxLimit},
		{"ConnsPerPeer", int64(l.ConnsPerPeer), 1, maxLimit},
		{"ConnsPerIP", int64(l.ConnsPerIP), 1, maxLimit},
		{"ConnRatePerIP", int64(l.ConnRatePerIP), 1, maxLimit},
		{"Streams", int64(l.Streams), minStreams, maxLimit},
		{"StreamsPerPeer", int64(l.StreamsPerPeer), minStreamsPerPeer, maxLimit},
		{"Memory", l.Memory, minMemory, math.MaxInt64},
	} {
		if f.value != 0 && (f.value < f.min || f.value > f.max) {
			return fmt.Errorf("%s is %d: it must be 0, for its default, or from %d to %d", f.name, f.value, f.min, f.max)
		}
	}
	return nil
}

// applyTo puts the limits into those of the resource manager, which has many
// more: those that would stand in the way of a limit that was raised make room.
func (l Limits) applyTo(p *rcmgr.PartialLimitConfig) {
	set := func(n int, fields ...*rcmgr.LimitVal) {
		for _, f := range fields {
			if n > 0 {
				*f = rcmgr.LimitVal(n)
			}
		}
	}
	conns := func(r *rcmgr.ResourceLimits) []*rcmgr.LimitVal {
		return []*rcmgr.LimitVal{&r.Conns, &r.ConnsInbound, &r.ConnsOutbound}
	}
	streams := func(r *rcmgr.ResourceLimits) []*rcmgr.LimitVal {
		return []*rcmgr.LimitVal{&r.Streams, &r.StreamsInbound, &r.StreamsOutbound}
	}
	set(l.Conns, conns(&p.System)...)
	atLeast(l.Conns/2, conns(&p.Transient)...)
	set(l.ConnsPerPeer, conns(&p.PeerDefault)...)
	set(l.Streams, streams(&p.System)...)
	atLeast(l.Streams/8, streams(&p.Transient)...)
	atLeast(l.Streams, streams(&p.ProtocolDefault)...)
	set(l.StreamsPerPeer, streams(&p.PeerDefault)...)
	atLeast(l.StreamsPerPeer, streams(&p.ProtocolPeerDefault)...)
	if l.Memory > 0 {
		p.System.Memory = rcmgr.LimitVal64(l.Memory)
	}
}

// atLeast raises limits that are below n.
func atLeast(n int, fields ...*rcmgr.LimitVal) {
	for _, f := range fields {
		if *f > 0 && int(*f) < n { // the others stand for something else
			*f = rcmgr.LimitVal(n)
		}
	}
}

// perIP are the limits of connections with one address.
func (l Limits) perIP() []rcmgr.Option {
	if l.ConnsPerIP == 0 {
		return nil
	}
	return []rcmgr.Option{rcmgr.WithLimitPerSubnet(
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.ConnsPerIP}},
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: l.ConnsPerIP}, {PrefixLength: 48, ConnCount: 8 * l.ConnsPerIP}},
	)}
}

// rates are the limits of new connections with one address: for IPv4, for IPv6.
func (l Limits) rates() (v4, v6 []rate.SubnetLimit) {
	rps := float64(max(l.ConnRatePerIP, 1))
	burst := max(64, 4*l.ConnRatePerIP)
	one := rate.Limit{RPS: rps, Burst: burst}
	return []rate.SubnetLimit{{PrefixLength: 32, Limit: one}},
		[]rate.SubnetLimit{{PrefixLength: 56, Limit: one}, {PrefixLength: 48, Limit: rate.Limit{RPS: 2 * rps, Burst: 5 * burst}}}
}

// limitedManager is the resource manager, with errors that say which limit it
// was and what to do.
type limitedManager struct {
	network.ResourceManager
	rcmgr.ResourceManagerState // for who asks the host for its resource manager
	*refusals
}

func (m limitedManager) OpenConnection(dir network.Direction, usesFile bool, addr ma.Multiaddr) (network.ConnManagementScope, error) {
	s, err := m.ResourceManager.OpenConnection(dir, usesFile, addr)
	if err != nil {
		return nil, m.explain(err, true)
	}
	return &limitedConn{ConnManagementScope: s, refusals: m.refusals, incoming: dir == network.DirInbound, addr: addr}, nil
}

func (m limitedManager) OpenStream(id peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.ResourceManager.OpenStream(id, dir)
	if err != nil {
		return nil, m.explain(err, false)
	}
	return limitedStream{s, m.refusals}, nil
}

// limitedConn and limitedStream are what was opened; some limits come later,
// when it is known whose connection it is and what the stream is for.
type limitedConn struct {
	network.ConnManagementScope
	*refusals
	incoming bool
	addr     ma.Multiaddr
	known    atomic.Bool // whose it is
	done     atomic.Bool
}

func (c *limitedConn) SetPeer(id peer.ID) error {
	c.known.Store(true)
	return c.explain(c.ConnManagementScope.SetPeer(id), true)
}

func (c *limitedConn) Done() {
	c.ConnManagementScope.Done()
	if c.incoming && c.done.CompareAndSwap(false, true) && c.ended(c.addr, c.known.Load()) {
		c.log.Debug("an incoming connection ended in its handshake", "addr", c.addr)
	}
}

// ended counts an incoming connection that ended in its handshake: not one
// whose peer was known and shut out, nor one that has come further.
func (r *refusals) ended(addr ma.Multiaddr, known bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := socket(addr)
	gated := r.gated[key]
	delete(r.gated, key)
	if gated || known {
		return false
	}
	r.handshakes++
	r.lastBroken = time.Now()
	return true
}

// shutOut notes that the gater refuses an incoming connection whose peer is
// known, which the resource manager is not always told before it ends.
func (r *refusals) shutOut(addr ma.Multiaddr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.gated) >= maxGated { // of those that had been told
		clear(r.gated)
	}
	r.gated[socket(addr)] = true
}

// maxGated bounds what is noted of refused connections that are about to end.
const maxGated = 1024

// socket is an address as far as its port.
func socket(addr ma.Multiaddr) string { return addr[:min(2, len(addr))].String() }

// broken returns how many incoming connections have ended in their handshake,
// and whether one did in the time before now.
func (r *refusals) broken(d time.Duration) (n uint64, lately bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handshakes, !r.lastBroken.IsZero() && time.Since(r.lastBroken) < d
}

type limitedStream struct {
	network.StreamManagementScope
	*refusals
}

func (s limitedStream) SetProtocol(id protocol.ID) error {
	return s.explain(s.StreamManagementScope.SetProtocol(id), false)
}

func (s limitedStream) SetService(name string) error {
	return s.explain(s.StreamManagementScope.SetService(name), false)
}

// refusals counts what limits refuse.
type refusals struct {
	log *slog.Logger

	mu    sync.Mutex
	count map[string]uint64 // by the field of Limits; guarded by mu
	last  time.Time         // guarded by mu
	// handshakes are incoming connections that ended before it was known whose
	// they are, and lastBroken when one did last; guarded by mu.
	handshakes uint64
	lastBroken time.Time
	gated      map[string]bool // remote sockets of incoming connections; guarded by mu
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, count: make(map[string]uint64), gated: make(map[string]bool)}
}

// explain says in an error which limit it was, and counts it. The resource
// manager has no types for most of its errors, so it goes by their texts, which
// name the scope: "system", "transient", "peer:…", "protocol:….peer:…".
func (r *refusals) explain(err error, conn bool) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	_, memory := errors.AsType[*rcmgr.ErrMemoryLimitExceeded](err)
	in := func(s string) bool { return strings.Contains(text, s) }
	var limit, field, do string
	switch {
	case in("rate limit"):
		limit, field = "new connections with one address", "ConnRatePerIP"
	case in("per ip"):
		limit, field = "connections with one address", "ConnsPerIP"
	case !errors.Is(err, network.ErrResourceLimitExceeded):
		return err
	case memory:
		return nameMemory(err) // memoryReporter has counted it
	case in("file descriptor"):
		limit, field, do = "open files", "files", "raise what the process may open (ulimit -n), of which it is a part"
	case in("service:"):
		limit, field, do = "streams of a service of libp2p's own", "services", "it has no option"
	case conn && in("peer:"):
		limit, field = "connections with one peer", "ConnsPerPeer"
	case conn:
		limit, field = "connections in all", "Conns"
	case in("peer:"):
		limit, field = "streams with one peer", "StreamsPerPeer"
	default:
		limit, field = "streams in all", "Streams"
	}
	if do == "" {
		do = fmt.Sprintf("WithLimits(Limits{%s: …}) raises it", field)
	}
	if r.record(field) {
		r.log.Warn("a limit refuses connections or streams; from now on they are counted in Status", "limit", limit, "do", do, "err", err)
	}
	return fmt.Errorf("%w (the limit of %s; %s)", err, limit, do)
}

// record counts a refusal. It reports whether it was the first of its limit.
func (r *refusals) record(field string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[field]++
	r.last = time.Now()
	return r.count[field] == 1
}

// nameMemory says in an error that came through a transport which limit it was.
func nameMemory(err error) error {
	if _, memory := errors.AsType[*rcmgr.ErrMemoryLimitExceeded](err); !memory || strings.Contains(err.Error(), "WithLimits(") {
		return err
	}
	return fmt.Errorf("%w (the limit of memory; WithLimits(Limits{Memory: …}) raises it)", err)
}

// since reports whether a limit has refused something in the time before now.
func (r *refusals) since(d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.last.IsZero() && time.Since(r.last) < d
}

// memoryReporter counts the buffers that the limit of memory refuses: they are
// asked for deep inside the transports, which make do with less or give up.
type memoryReporter struct{ *refusals }

// BlockMemory is called under locks of the resource manager: it does no more
// than count.
func (r memoryReporter) BlockMemory(int) { r.record("Memory") }

func (memoryReporter) AllowConn(network.Direction, bool)      {}
func (memoryReporter) BlockConn(network.Direction, bool)      {}
func (memoryReporter) AllowStream(peer.ID, network.Direction) {}
func (memoryReporter) BlockStream(peer.ID, network.Direction) {}
func (memoryReporter) AllowPeer(peer.ID)                      {}
func (memoryReporter) BlockPeer(peer.ID)                      {}
func (memoryReporter) AllowProtocol(protocol.ID)              {}
func (memoryReporter) BlockProtocol(protocol.ID)              {}
func (memoryReporter) BlockProtocolPeer(protocol.ID, peer.ID) {}
func (memoryReporter) AllowService(string)                    {}
func (memoryReporter) BlockService(string)                    {}
func (memoryReporter) BlockServicePeer(string, peer.ID)       {}
func (memoryReporter) AllowMemory(int)                        {}

// byLimit returns how much each limit has refused, nil when none has.
func (r *refusals) byLimit() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.count) == 0 {
		return nil
	}
	return maps.Clone(r.count)
}

func (r *refusals) total() (sum uint64) {
	for _, n := range r.byLimit() {
		sum += n
	}
	return sum
}
