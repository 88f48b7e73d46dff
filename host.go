package p2pnode

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// connGrace is how long a new connection is spared from trimming.
const connGrace = 20 * time.Second

// closePatience is how long the host's close may wait for its peers.
const closePatience = time.Second

// hostPart is the libp2p host with what was made for it.
type hostPart struct {
	host.Host
	swarm      *swarm.Swarm
	blackHoles []*swarm.BlackHoleSuccessCounter
	udpGivenUp atomic.Bool // by the swarm before forgive, and no connection over UDP since
}

// newHost builds a host that does not listen yet: the parts on top of it
// register their protocols first, and each address is then bound by itself,
// so that each has its own error. relayOptions come from relay.go.
func newHost(cfg *config, key crypto.PrivKey, relayOptions []libp2p.Option, factory func([]ma.Multiaddr) []ma.Multiaddr, gate libp2p.Option, refused *refusals) (_ *hostPart, err error) {
	// A libp2p.New that fails does not close what it was given, so what it
	// is given is made here and closed here.
	var made []io.Closer
	defer func() {
		if err != nil {
			for _, c := range slices.Backward(made) {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	limits, err := newResourceManager(cfg, refused)
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	made = append(made, limits)
	conns, err := connmgr.NewConnManager(cfg.connLow, cfg.connHigh, connmgr.WithGracePeriod(connGrace))
	if err != nil {
		return nil, fmt.Errorf("connection manager: %w", err)
	}
	made = append(made, conns)
	peers, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, fmt.Errorf("peerstore: %w", err)
	}
	made = append(made, peers)

	// As libp2p has them by default; made here to be within reach of forgive.
	udp := &swarm.BlackHoleSuccessCounter{N: 100, MinSuccesses: 5, Name: "UDP"}
	ip6 := &swarm.BlackHoleSuccessCounter{N: 100, MinSuccesses: 5, Name: "IPv6"}
	opts := hostOptions(cfg, key)
	opts = append(opts,
		libp2p.UDPBlackHoleSuccessCounter(udp),
		libp2p.IPv6BlackHoleSuccessCounter(ip6),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionManager(conns),
		libp2p.Peerstore(peers),
		libp2p.AddrsFactory(factory),
	)
	opts = append(opts, relayOptions...)
	opts = append(opts, cfg.libp2pOptions...)
	opts = append(opts, gate) // in front of one of the application's
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, err
	}
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the network is a %T, not a swarm: an option of WithLibp2pOptions replaced it", h.Network()), h.Close())
	}
	part := &hostPart{Host: h, swarm: sw, blackHoles: []*swarm.BlackHoleSuccessCounter{udp, ip6}}
	sw.Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if _, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_UDP); err == nil && !addrs.IsCircuit(c.RemoteMultiaddr()) {
			part.udpGivenUp.Store(false)
		}
	}})
	return part, nil
}

// hostOptions turns the config into libp2p options. It starts nothing.
func hostOptions(cfg *config, key crypto.PrivKey) []libp2p.Option {
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(cfg.userAgent),
		libp2p.NoListenAddrs,
		libp2p.NoTransports,
		noUpstreamMetrics,
	}
	for _, t := range cfg.enabledTransports() {
		opts = append(opts, libp2p.Transport(transportConstructors[t]))
	}
	for _, s := range cfg.security {
		switch s {
		case SecurityNoise:
			opts = append(opts, libp2p.Security(noise.ID, noise.New))
		case SecurityTLS:
			opts = append(opts, libp2p.Security(libp2ptls.ID, libp2ptls.New))
		}
	}
	if cfg.psk != nil {
		opts = append(opts, libp2p.PrivateNetwork(cfg.psk))
	}
	return opts
}

var transportConstructors = map[Transport]any{
	TransportTCP:          tcp.NewTCPTransport,
	TransportQUIC:         quic.NewTransport,
	TransportWebSocket:    websocket.New,
	TransportWebTransport: newWebTransport,
	TransportWebRTCDirect: webrtc.New,
}

// noUpstreamMetrics keeps libp2p's collectors out of every registry. They are
// process-wide: two hosts on two registries would each show the sum of both.
// DisableMetrics alone leaves the event bus registering in the default
// registry, hence the registerer that does nothing.
func noUpstreamMetrics(cfg *libp2p.Config) error {
	cfg.DisableMetrics = true
	cfg.PrometheusRegisterer = nopRegisterer{}
	return nil
}

type nopRegisterer struct{}

func (nopRegisterer) Register(prometheus.Collector) error  { return nil }
func (nopRegisterer) MustRegister(...prometheus.Collector) {}
func (nopRegisterer) Unregister(prometheus.Collector) bool { return false }

// newResourceManager scales libp2p's default limits to the machine and fits
// them to the connection manager. On an application's own network, peers on
// private addresses do not share the per-address limits: there a whole
// cluster often stands behind one address, and the refused ones would see no
// more than a broken handshake.
func newResourceManager(cfg *config, refused *refusals) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	limits := scaling.AutoScale()
	partial := limits.ToPartialLimitConfig()
	// Trimming starts at the high watermark: connections must be possible
	// well beyond it, or new peers are refused instead of old ones trimmed.
	atLeast(2*cfg.connHigh, &partial.System.Conns, &partial.System.ConnsInbound, &partial.System.ConnsOutbound)

	cfg.limits.applyTo(&partial)
	opts := append(cfg.limits.perIP(), rcmgr.WithMetricsDisabled(), rcmgr.WithMetrics(memoryReporter{refused}))
	// A peer that is lost is dialled once a second or so for the first minute
	// (bootstrap.go), and libp2p's 16 connections at once and one every 5
	// seconds, to or from an address, would refuse that on both sides.
	limiter := &rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{GracePeriod: time.Minute}}
	limiter.SubnetRateLimiter.IPv4SubnetLimits, limiter.SubnetRateLimiter.IPv6SubnetLimits = cfg.limits.rates()
	if !cfg.ipfs {
		var v4, v6 []rcmgr.NetworkPrefixLimit
		for _, p := range privatePrefixes {
			limit := rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt}
			if p.Addr().Is4() {
				v4 = append(v4, limit)
			} else {
				v6 = append(v6, limit)
			}
			limiter.NetworkPrefixLimits = append(limiter.NetworkPrefixLimits, rate.PrefixLimit{Prefix: p})
		}
		opts = append(opts, rcmgr.WithNetworkPrefixLimit(v4, v6))
	}
	if cfg.ipfs {
		for _, p := range privatePrefixes {
			if p.Addr().IsLoopback() {
				limiter.NetworkPrefixLimits = append(limiter.NetworkPrefixLimits, rate.PrefixLimit{Prefix: p})
			}
		}
	}
	opts = append(opts, rcmgr.WithConnRateLimiters(limiter))
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(partial.Build(limits)), opts...)
	if err != nil {
		return nil, err
	}
	state, ok := m.(rcmgr.ResourceManagerState)
	if !ok { // libp2p's own has it
		return nil, errors.Join(fmt.Errorf("a %T does not tell its state", m), m.Close())
	}
	return limitedManager{m, state, refused}, nil
}

// privatePrefixes are the address ranges that are not routed on the Internet:
// loopback, RFC 1918, RFC 6598, link-local and unique local.
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
}

// ListenError tells why the node does not listen on an address.
type ListenError struct {
	Addr ma.Multiaddr
	Err  error
}

func (e *ListenError) Error() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("cannot listen on %s: the port is in use by another program or node (%v)", e.Addr, e.Err)
	}
	return fmt.Sprintf("cannot listen on %s: %v", e.Addr, e.Err)
}

// Unwrap returns Err.
func (e *ListenError) Unwrap() error { return e.Err }

// listen binds the addresses, each by itself, and returns those that did not.
func (h *hostPart) listen(list []ma.Multiaddr) []*ListenError {
	// WebTransport and WebRTC share the UDP port of a QUIC listener when it
	// stands first.
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b ma.Multiaddr) int {
		return listenOrder[addrs.KindOf(a)] - listenOrder[addrs.KindOf(b)]
	})
	var failed []*ListenError
	for _, a := range list {
		err := portFree(a)
		if err == nil {
			err = h.swarm.AddListenAddr(a)
		}
		if err != nil {
			failed = append(failed, &ListenError{Addr: a, Err: err})
		}
	}
	return failed
}

// listenAddrs are the addresses that are bound. The relay client counts as a
// listener to the swarm; it is none here.
func (h *hostPart) listenAddrs() []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(h.swarm.ListenAddresses()), addrs.IsCircuit)
}

var listenOrder = map[addrs.Kind]int{addrs.QUIC: 0, addrs.WebTransport: 1, addrs.WebRTCDirect: 2}

// portFree finds out whether somebody listens on a TCP address already.
// Libp2p binds TCP ports with SO_REUSEPORT, with which two nodes on one port
// both succeed and each gets a random half of the other's connections.
func portFree(a ma.Multiaddr) error {
	if addrs.KindOf(a) != addrs.TCP {
		return nil
	}
	netw, hostport, err := manet.DialArgs(a)
	if err != nil || strings.HasSuffix(hostport, ":0") {
		return nil // the transport itself says what is wrong with it
	}
	l, err := net.Listen(netw, hostport)
	if err != nil {
		return err
	}
	return l.Close()
}

// checkListening decides whether what could not be bound fails New: never
// less than one address, and all of them unless the user said otherwise or
// this machine lacks an IP version of the default addresses.
func checkListening(cfg *config, failed []*ListenError) error {
	list, defaults := cfg.listenAddrs()
	var errs []error
	for _, f := range failed {
		missingIP6 := defaults && addrs.IsIP6(f.Addr) && !errors.Is(f, syscall.EADDRINUSE)
		if !cfg.partialListen && !missingIP6 || len(failed) == len(list) {
			errs = append(errs, f)
		}
	}
	return errors.Join(errs...)
}

// close closes the host. Libp2p (v0.51) stops its services first and its
// connections last, and AutoRelay's stop waits for the answer to a request that
// it has sent: for a minute, when the relay is silent. So the connections go
// when it has taken too long. Not at once: AutoRelay would still take it for a
// loss of relays, and look for others.
func (h *hostPart) close() error {
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
	err := h.Close()
	close(closed)
	wg.Wait()
	return err
}
