package limits

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Config configures a [Manager].
type Config struct {
	Limits Limits
	// ConnHigh is where the connection manager starts trimming. The limits must be
	// well above it, or new peers are refused instead of old ones trimmed.
	ConnHigh int
	// Public is for the public IPFS network. It keeps libp2p's default of streams
	// per peer, and makes private addresses, except loopback, subject to the limits
	// per address. On an application's own network a whole cluster often shares one
	// of them, and refused peers would only see a broken handshake.
	Public bool
	// Reached is called for the first refusal by each limit except Memory, and at
	// most once a minute for further ones, with the field of Limits, "files" or
	// "services", and how much it has refused so far. It must not block; it may be
	// nil.
	Reached func(limit string, refused uint64)
	Log     *slog.Logger
}

// Manager is libp2p's resource manager, with errors that name the limit. Its
// methods are safe for concurrent use.
type Manager struct {
	network.ResourceManager
	rcmgr.ResourceManagerState // for those who ask the host for its resource manager
	c                          *counter
	silent                     *silent
}

// New scales libp2p's default limits to the machine and adapts them to cfg.
func New(cfg Config) (*Manager, error) {
	if cfg.Reached == nil {
		cfg.Reached = func(string, uint64) {}
	}
	c := &counter{log: cfg.Log, reached: cfg.Reached, told: make(map[string]time.Time)}
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	limits := scaling.AutoScale()
	partial := limits.ToPartialLimitConfig()
	atLeast(2*cfg.ConnHigh, &partial.System.Conns, &partial.System.ConnsInbound, &partial.System.ConnsOutbound)
	cfg.Limits.applyTo(&partial, cfg.Public)

	opts := append(cfg.Limits.perIP(), rcmgr.WithMetricsDisabled(), rcmgr.WithMetrics(memoryReporter{c}))
	// A lost peer is dialed about once a second for the first minute. Libp2p's
	// limit per address, 16 connections at once and one every 5 seconds, would
	// refuse that on both sides.
	limiter := &rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{GracePeriod: time.Minute}}
	limiter.SubnetRateLimiter.IPv4SubnetLimits, limiter.SubnetRateLimiter.IPv6SubnetLimits = cfg.Limits.rates()
	var v4, v6 []rcmgr.NetworkPrefixLimit
	for _, p := range addrs.PrivatePrefixes() {
		if !cfg.Public || p.Addr().IsLoopback() {
			limiter.NetworkPrefixLimits = append(limiter.NetworkPrefixLimits, rate.PrefixLimit{Prefix: p})
		}
		limit := rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt}
		if p.Addr().Is4() {
			v4 = append(v4, limit)
		} else {
			v6 = append(v6, limit)
		}
	}
	if !cfg.Public {
		opts = append(opts, rcmgr.WithNetworkPrefixLimit(v4, v6))
	}
	opts = append(opts, rcmgr.WithConnRateLimiters(limiter))
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(partial.Build(limits)), opts...)
	if err != nil {
		return nil, err
	}
	state, ok := m.(rcmgr.ResourceManagerState)
	if !ok { // libp2p's own has it
		return nil, errors.Join(fmt.Errorf("a %T does not report its state", m), m.Close())
	}
	return &Manager{m, state, c, newSilent()}, nil
}

// Counts returns how much each limit has refused so far.
func (m *Manager) Counts() Counts {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.counts
}

// LastRefusal returns when a limit last refused something, zero for never.
func (m *Manager) LastRefusal() time.Time {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.last
}

// Handshakes returns how many incoming connections failed in their handshake.
func (m *Manager) Handshakes() Handshakes {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.handshakes
}

// Accepting is told of each incoming connection that a connection gater lets in.
// Libp2p opens its scope next.
func (m *Manager) Accepting(c network.ConnMultiaddrs) {
	if raw, ok := c.(net.Conn); ok { // those over UDP have made their handshakes
		m.silent.accept(raw, c.RemoteMultiaddr())
	}
}

// relayed and dialed stand for the addresses of relayed connections, which have no IP
// of their own. Upstream's rate of new connections makes one address of all those
// without, so that what the node dials is in the one range that no rate bounds.
var (
	relayed = ma.StringCast("/p2p-circuit")
	dialed  = ma.StringCast("/ip4/127.0.0.1/p2p-circuit")
)

// OpenConnection opens a scope for a connection, as libp2p's does. If a limit
// refuses it, a silent connection is closed in its place, and counts as refused.
func (m *Manager) OpenConnection(dir network.Direction, usesFile bool, addr ma.Multiaddr) (network.ConnManagementScope, error) {
	var raw net.Conn
	if dir == network.DirInbound {
		raw = m.silent.take(addr)
	}
	endpoint := addr
	if addrs.IsCircuit(addr) {
		// Upstream counts a relayed connection for the IP of the relay, so that a relay is
		// good for seven peers.
		endpoint = relayed
		if dir == network.DirOutbound {
			endpoint = dialed
		}
	}
	s, err := m.ResourceManager.OpenConnection(dir, usesFile, endpoint)
	if err != nil {
		err = m.c.explain(err, true)
		if !m.silent.makeRoom(addr, err) {
			return nil, err
		}
		if s, err = m.ResourceManager.OpenConnection(dir, usesFile, endpoint); err != nil {
			return nil, m.c.explain(err, true)
		}
	}
	c := &conn{ConnManagementScope: s, m: m, incoming: dir == network.DirInbound, addr: addr, raw: raw, from: originOf(addr)}
	if raw != nil {
		m.silent.enter(c)
	}
	return c, nil
}

// OpenStream opens a scope for a stream, as libp2p's does.
func (m *Manager) OpenStream(id peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.ResourceManager.OpenStream(id, dir)
	if err != nil {
		return nil, m.c.explain(err, false)
	}
	return stream{s, m.c}, nil
}

// conn and stream are opened scopes: some limits apply later, when the peer of
// the connection and the protocol of the stream are known.
type conn struct {
	network.ConnManagementScope
	m        *Manager
	incoming bool
	addr     ma.Multiaddr
	raw      net.Conn // of an incoming connection over TCP
	from     origin
	known    atomic.Bool // whose it is
	done     atomic.Bool
}

func (s *conn) SetPeer(id peer.ID) error {
	s.known.Store(true)
	s.m.silent.leave(s)
	return s.m.c.explain(s.ConnManagementScope.SetPeer(id), true)
}

// Done counts an incoming connection that ends before its peer is known.
func (s *conn) Done() {
	s.m.silent.leave(s)
	s.ConnManagementScope.Done()
	if s.incoming && s.done.CompareAndSwap(false, true) && !s.known.Load() {
		s.m.c.handshakeFailed()
		s.m.c.log.Debug("incoming connection failed in its handshake", "addr", s.addr)
	}
}

type stream struct {
	network.StreamManagementScope
	c *counter
}

func (s stream) SetProtocol(id protocol.ID) error {
	return s.c.explain(s.StreamManagementScope.SetProtocol(id), false)
}

func (s stream) SetService(name string) error {
	return s.c.explain(s.StreamManagementScope.SetService(name), false)
}
