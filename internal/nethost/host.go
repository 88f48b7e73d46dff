// Package nethost is the libp2p host of a node, and the only package that reads
// its swarm: building, listening, dialing, connected peers, closing.
package nethost

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	libp2pconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// connGrace is how long a new connection is protected from trimming.
	connGrace = 20 * time.Second
	// closePatience is how long the host's close may wait for its peers.
	closePatience = time.Second
)

// Security names a security protocol of the stream transports.
type Security string

// The security protocols.
const (
	Noise Security = "noise"
	TLS   Security = "tls"
)

// Config configures a [Host].
type Config struct {
	Key        crypto.PrivKey
	UserAgent  string
	Transports []addrs.Kind
	Security   []Security // in order of preference
	PSK        pnet.PSK
	// TLS is for WebSocket listeners, nil without a certificate, and DialTLS for
	// dialing them, nil for the system's roots.
	TLS, DialTLS *tls.Config
	// ServerName returns the name that the certificate of TLS has instead of an IP
	// address; "" for none. Nil is "" always.
	ServerName func(net.IP) string
	ConnLow    int // of the connection manager
	ConnHigh   int
	Listen     []ma.Multiaddr // what Listen is to bind
	// DialTimeout bounds the dial of an address, and identify; 0 for libp2p's limits.
	DialTimeout time.Duration
	// PeerStreams is how many streams a peer may open over QUIC, if that is
	// more than libp2p's 256.
	PeerStreams int
	// Public is for the public network, where nobody is led into private ones.
	Public bool
	// AlsoTCP makes sure that one of several peers is dialed over TCP, which leaves
	// some connection for learning the address that TCP has behind a NAT.
	AlsoTCP bool
	// NewLimits makes the resource manager. It is not called if Options set one.
	NewLimits func() (network.ResourceManager, error)
	// AddrsFactory turns the listening addresses into those announced. One of
	// Options is applied before it.
	AddrsFactory func([]ma.Multiaddr) []ma.Multiaddr
	// Gater wraps the connection gater of Options, nil without one.
	Gater func(next connmgr.ConnectionGater) connmgr.ConnectionGater
	// Services are options of the host for relays, reachability and metrics.
	Services []libp2p.Option
	// AutoNAT is for a host that asks and tells others which addresses can be reached.
	AutoNAT bool
	// Options are the application's. Their parts replace ours.
	Options []libp2p.Option
}

// Host is a libp2p host with the parts made for it. It is safe for concurrent
// use.
type Host struct {
	host.Host
	swarm      *swarm.Swarm
	blackHoles []*swarm.BlackHoleSuccessCounter
	udpGivenUp atomic.Bool // by the swarm before forgive, and no connection over UDP since
	gate       *gate
	failures   failures // of dials, and of names
	ranker     ranker
	names      resolver
	transports *transports
	made       *libp2p.Config // how the host was made; nil without AutoNAT
	observed   observers
	contacts   contacts
	dials      dials
	answers    answers
	interfaces interfaces
	checks     checks
	nat        atomic.Pointer[basichost.NATManager] // nil without port mapping
	sockets    bool                                 // its transports are on the machine's network
	private    bool                                 // it has the key of a private network
	sharesTCP  bool                                 // TCP and WebSocket share ports
	announces  atomic.Bool                          // Listen has come to its last address

	identifyTimeout time.Duration // 0 for libp2p's
}

// New builds a host that does not listen yet: the parts on top of it register
// their protocols first, and Listen then binds each address separately, so that
// each has its own error. On error nothing is left running.
func New(cfg Config) (_ *Host, err error) {
	theirs, err := Probe(cfg.Options)
	if err != nil {
		return nil, err
	}
	// A libp2p.New that fails closes neither what it was given, nor the swarm and
	// the host that it has already made.
	var made []io.Closer
	done := false
	defer func() {
		if !done { // an error, or a panic in one of the application's callbacks
			for _, c := range slices.Backward(made) {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	opts, ours, err := cfg.options(theirs, &made)
	if err != nil {
		return nil, err
	}
	part := &Host{private: cfg.PSK != nil, transports: ours, sockets: len(theirs.Transports)+len(theirs.QUICReuse) == 0}
	if cfg.AlsoTCP {
		ours.ranker = &part.ranker
	}
	part.gate = newGate(cfg.Public, part)
	if !theirs.CustomUDPBlackHoleSuccessCounter {
		part.blackHoles = append(part.blackHoles, &swarm.BlackHoleSuccessCounter{N: 100, MinSuccesses: 5, Name: udpCounter})
		opts = append(opts, libp2p.UDPBlackHoleSuccessCounter(part.blackHoles[0]))
	}
	if !theirs.CustomIPv6BlackHoleSuccessCounter {
		counter := &swarm.BlackHoleSuccessCounter{N: 100, MinSuccesses: 5, Name: "IPv6"}
		part.blackHoles = append(part.blackHoles, counter)
		opts = append(opts, libp2p.IPv6BlackHoleSuccessCounter(counter))
	}
	shared, _ := SharedTCP(cfg.Listen)
	part.sharesTCP = theirs.ShareTCPListener || shared != nil
	if part.sharesTCP {
		// Only where it is asked for: what comes on such a port is read before it
		// is known what it is for.
		opts = append(opts, libp2p.ShareTCPListener())
	}
	opts = append(opts, cfg.Services...)
	opts = append(opts, cfg.Options...)
	opts = append(opts, cfg.compose(theirs, part))
	if cfg.AutoNAT {
		opts = append(opts, part.observed.option(), func(c *libp2p.Config) error {
			kept := *c
			if kept.Muxers == nil {
				if err := libp2p.DefaultMuxers(&kept); err != nil {
					return err
				}
			}
			part.made = &kept
			return nil
		})
	}
	if len(cfg.Options) > 0 { // without, nothing fails that late, and a host costs 5 % less
		opts = append(opts, keepTrack(&made))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, err
	}
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the network is a %T, not a swarm: an option of WithLibp2pOptions replaced it", h.Network()), h.Close())
	}
	part.Host, part.swarm = h, sw
	if part.sockets {
		part.interfaces.first, _ = netAddrs() // with an error, the first look is a change
	}
	if cfg.DialTimeout > 0 {
		identifyWithin(h, cfg.DialTimeout)
		part.identifyTimeout = cfg.DialTimeout
	}
	sw.Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			part.gate.reached(c.RemotePeer())
			part.contacts.connected(c)
			part.dials.connected(c)
			if overUDP(c) {
				part.udpWorks()
			}
		},
		DisconnectedF: func(_ network.Network, c network.Conn) { part.answers.forget(c) },
	})
	done = true
	return part, nil
}

// Probe applies options to an empty configuration, to find out what they set.
func Probe(opts []libp2p.Option) (*config.Config, error) {
	probe := &config.Config{}
	if err := probe.Apply(opts...); err != nil {
		return nil, err
	}
	return probe, nil
}

// options turns the configuration into libp2p options, leaving out what theirs
// sets. It adds what must be closed if libp2p.New fails to closers.
func (cfg Config) options(theirs *config.Config, closers *[]io.Closer) ([]libp2p.Option, *transports, error) {
	opts := []libp2p.Option{
		libp2p.Identity(cfg.Key),
		libp2p.NoListenAddrs,
		NoMetrics,
	}
	if theirs.UserAgent == "" {
		opts = append(opts, libp2p.UserAgent(cfg.UserAgent))
	}
	if theirs.ResourceManager == nil {
		limits, err := cfg.NewLimits()
		if err != nil {
			return nil, nil, fmt.Errorf("resource manager: %w", err)
		}
		*closers = append(*closers, limits)
		opts = append(opts, libp2p.ResourceManager(limits))
	}
	if theirs.ConnManager == nil {
		conns, err := libp2pconnmgr.NewConnManager(cfg.ConnLow, cfg.ConnHigh, libp2pconnmgr.WithGracePeriod(connGrace))
		if err != nil {
			return nil, nil, fmt.Errorf("connection manager: %w", err)
		}
		*closers = append(*closers, conns)
		opts = append(opts, libp2p.ConnectionManager(conns))
	}
	if theirs.Peerstore == nil {
		peers, err := pstoremem.NewPeerstore()
		if err != nil {
			return nil, nil, fmt.Errorf("peerstore: %w", err)
		}
		*closers = append(*closers, peers)
		opts = append(opts, libp2p.Peerstore(peers))
	}
	if len(theirs.Transports)+len(cfg.Transports) == 0 {
		opts = append(opts, libp2p.NoTransports)
	}
	made := &transports{streams: cfg.PeerStreams, dial: cfg.DialTimeout, tls: cfg.TLS, dialTLS: cfg.DialTLS}
	for _, kind := range cfg.Transports {
		opts = append(opts, made.option(kind))
	}
	if len(theirs.Transports) > 0 {
		opts = append(opts, made.yield())
	}
	if len(theirs.SecurityTransports) == 0 && !theirs.Insecure {
		for _, s := range cfg.Security {
			switch s {
			case Noise:
				opts = append(opts, libp2p.Security(noise.ID, noise.New))
			case TLS:
				opts = append(opts, libp2p.Security(libp2ptls.ID, libp2ptls.New))
			}
		}
	}
	if cfg.PSK != nil {
		opts = append(opts, libp2p.PrivateNetwork(cfg.PSK))
	}
	return opts, made, nil
}

// compose sets what wraps the application's own part.
func (cfg Config) compose(theirs *config.Config, h *Host) libp2p.Option {
	h.names = resolver{&h.failures, theirs.MultiaddrResolver}
	if theirs.MultiaddrResolver == nil {
		h.names.MultiaddrDNSResolver = swarm.ResolverFromMaDNS{Resolver: madns.DefaultResolver}
	}
	return func(c *config.Config) error {
		next := cfg.Gater(theirs.ConnectionGater)
		if next == nil {
			all, err := conngater.NewBasicConnectionGater(nil) // it lets everything pass
			if err != nil {
				return err
			}
			next = all
		}
		c.ConnectionGater = gated{next, h.gate, &h.contacts}
		c.AddrsFactory = func(list []ma.Multiaddr) []ma.Multiaddr {
			if !h.announces.Load() {
				return nil // one change of the addresses, instead of one for each listener
			}
			list = h.current(list)
			if own := theirs.AddrsFactory; own != nil {
				// Do not announce addresses that cannot be dialed.
				list = slices.DeleteFunc(slices.Clone(own(list)), func(a ma.Multiaddr) bool { return addrs.Undialable(a) != nil })
			}
			return cfg.AddrsFactory(cfg.named(list))
		}
		c.MultiaddrResolver = h.names
		if inner := c.NATManager; inner != nil {
			c.NATManager = func(n network.Network) basichost.NATManager {
				m := inner(n)
				h.nat.Store(&m)
				return m
			}
		}
		ours := []swarm.Option{swarm.WithMetricsTracer(tracer{&h.failures})}
		if d := cfg.DialTimeout; d > 0 {
			ours = append(ours, swarm.WithDialTimeout(d), swarm.WithDialTimeoutLocal(d))
		}
		h.ranker.networks = h.networks
		if cfg.AlsoTCP {
			h.ranker.swarm = func() network.Network { return h.swarm } // nothing dials before there is one
		}
		ours = append(ours, swarm.WithDialRanker(h.ranker.rank))
		c.SwarmOpts = append(ours, theirs.SwarmOpts...)
		return nil
	}
}

// named returns addresses for WebSocket with TLS with the name that a peer has to ask
// for, where the certificate is not for the IP address: nobody could dial them without.
func (cfg Config) named(list []ma.Multiaddr) []ma.Multiaddr {
	if cfg.ServerName == nil {
		return list
	}
	list = slices.Clone(list)
	for i, a := range list {
		at := slices.IndexFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_TLS })
		if at < 0 || at+1 >= len(a) || a[at+1].Protocol().Code != ma.P_WS {
			continue
		}
		ip, err := manet.ToIP(a)
		if err != nil {
			continue // it begins with a name
		}
		if sni, err := ma.NewComponent("sni", cfg.ServerName(ip)); err == nil && sni.Value() != "" {
			list[i] = slices.Insert(slices.Clone(a), at+1, *sni)
		}
	}
	return list
}

// keepTrack notes what libp2p.New makes that runs goroutines, in order of
// making: when it fails later (v0.51), it closes none of it.
func keepTrack(made *[]io.Closer) libp2p.Option {
	return libp2p.WithFxOption(
		fx.Decorate(func(c *quicreuse.ConnManager) *quicreuse.ConnManager { *made = append(*made, c); return c }),
		fx.Decorate(func(s *swarm.Swarm) *swarm.Swarm { *made = append(*made, s); return s }),
		fx.Decorate(func(h *basichost.BasicHost) *basichost.BasicHost { *made = append(*made, h); return h }),
	)
}

// NoMetrics keeps libp2p's collectors out of every registry. They are
// process-wide: two hosts on two registries would each show the sum of both.
// DisableMetrics alone leaves the event bus registering in the default
// registry, hence the registerer that does nothing.
func NoMetrics(cfg *libp2p.Config) error {
	cfg.DisableMetrics = true
	cfg.PrometheusRegisterer = NopRegisterer{}
	return nil
}

// NopRegisterer registers nothing.
type NopRegisterer struct{}

// Register does nothing.
func (NopRegisterer) Register(prometheus.Collector) error { return nil }

// MustRegister does nothing.
func (NopRegisterer) MustRegister(...prometheus.Collector) {}

// Unregister does nothing.
func (NopRegisterer) Unregister(prometheus.Collector) bool { return false }

// Close closes the host. Libp2p (v0.51) stops its services first and its
// connections last, and AutoRelay's stop waits for the reply to a pending
// request: for a minute, if the relay is silent. So Close closes the
// connections if the services take too long; not at once, because AutoRelay
// would consider the relays lost and look for others.
func (h *Host) Close() error {
	closed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		timer := time.NewTimer(closePatience)
		defer timer.Stop()
		select {
		case <-closed:
		case <-timer.C:
			for _, c := range h.swarm.Conns() {
				wg.Go(func() { _ = c.Close() }) // the swarm's close ignores the error too
			}
		}
	})
	err := h.Host.Close()
	close(closed)
	wg.Wait()
	return err
}
