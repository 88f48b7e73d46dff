package p2pnode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/certs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/portmap"
	"github.com/go-p2pnode/p2pnode/internal/reach"
	"github.com/go-p2pnode/p2pnode/internal/relays"
)

func startHost(n *Node) (err error) {
	cfg := n.cfg
	n.access = access.New(access.Config{
		Allowed: cfg.allowed, Banned: cfg.banned, Store: n.data.store(), Now: time.Now, Log: n.log,
	})
	n.relay = relays.New(relays.Config{
		Disabled: cfg.noRelay, Relays: cfg.autoRelays, Announce: cfg.announce, Extra: cfg.announceExtra, Hidden: cfg.noAnnounce,
		Discover: cfg.findRelays, HolePunching: cfg.holePunching,
		Reserved: func(id peer.ID, from relays.Source) {
			n.watch.emit(EventRelayReserved{ID: id, Source: RelaySource(from)})
			n.watch.change.Notify()
		},
		Lost: func(id peer.ID, from relays.Source) {
			n.watch.emit(EventRelayLost{ID: id, Source: RelaySource(from)})
			n.watch.change.Notify()
		},
		Punched: func(id peer.ID, took time.Duration, err error) {
			n.watch.emit(EventHolePunched{ID: id, Took: took, Err: causes.Cleaned(err)})
		},
		Log: n.log, Self: n.id, Change: &n.watch.change,
		Dial:    func(ctx context.Context, ai peer.AddrInfo) error { return n.dialer.Connect(ctx, ai) },
		Welcome: func(id peer.ID) bool { return n.access.Allows(id) && !n.keeper.Released(id) },
		Reach:   func() network.Reachability { return relayReachability(n) },
		Search: func(ctx context.Context) iter.Seq2[peer.AddrInfo, error] {
			return findRelays(ctx, n)
		},
	})
	services := append(n.relay.Options(), reach.Options(cfg.effectiveReachability(), cfg.autoNAT)...)
	if cfg.portMapping {
		services = append(services, mapPorts(n))
	}
	if cfg.metrics != nil {
		n.bandwidth = metrics.NewBandwidthCounter()
		services = append(services, libp2p.BandwidthReporter(n.bandwidth))
	}
	host := nethost.Config{
		Key: n.key, UserAgent: cfg.userAgent, Public: cfg.ipfs,
		Transports: cfg.transportKinds(), Security: cfg.securityProtocols(), PSK: cfg.psk,
		ConnLow: cfg.connLow, ConnHigh: cfg.connHigh, Listen: cfg.listen, DialTimeout: cfg.dialTimeout,
		PeerStreams: limits.Limits(cfg.limits).PeerStreams(cfg.ipfs), AlsoTCP: cfg.holePunching,
		NewLimits: func() (network.ResourceManager, error) {
			n.limits, err = limits.New(limits.Config{
				Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: n.log,
				Reached: func(limit string, refused uint64) { n.watch.emit(EventLimitReached{Limit: limit, Refused: refused}) },
			})
			return n.limits, err
		},
		AddrsFactory: func(list []ma.Multiaddr) []ma.Multiaddr {
			if t := n.reach.Load(); t != nil {
				list = t.Announce(list)
			}
			return n.relay.Announce(list)
		},
		Gater: gater(n), AutoNAT: cfg.autoNAT, Services: services, Options: cfg.libp2pOptions,
	}
	if err := setTLS(&host, cfg, n.log); err != nil {
		return err
	}
	if n.base, err = nethost.New(host); err != nil {
		return tlsError(cfg, err)
	}
	n.stack.Push("host", closeBudget, n.base.Close)
	n.base.Given(cfg.autoRelays...)
	n.host = nethost.Facing(n.base, n.base)
	n.dialer = nethost.Dialer{Host: n.base, Via: n.base, Refusal: n.access.Refusal}
	return nil
}

// mapPorts is the host's option for port mapping.
func mapPorts(n *Node) libp2p.Option {
	return libp2p.NATManager(func(on network.Network) basichost.NATManager {
		n.ports = portmap.Start(portmap.Config{
			Listen: on.ListenAddresses, Log: n.log,
			Changed: func(m portmap.Mapping, mapped bool) {
				if mapped {
					n.watch.emit(EventPortMapped{Protocol: m.Protocol, Port: m.Port, External: m.External})
				} else {
					n.watch.emit(EventPortUnmapped{Protocol: m.Protocol, Port: m.Port, External: m.External})
				}
				n.watch.change.Notify()
			},
		})
		listens := func(network.Network, ma.Multiaddr) { n.ports.Look() }
		on.Notify(&network.NotifyBundle{ListenF: listens, ListenCloseF: listens})
		// The host closes it too, but not if it cannot be made.
		n.stack.Push("port mapping", closeBudget, n.ports.Close)
		return n.ports
	})
}

// setTLS sets the host's TLS for WebSocket. It reads the files of WithTLSFiles.
func setTLS(to *nethost.Config, c *config, log *slog.Logger) error {
	conf := c.tls
	if conf != nil {
		dial := conf.Clone()
		// These are the listener's.
		dial.ServerName, dial.NextProtos = "", nil
		to.DialTLS = dial
	}
	if !c.hasCertificate() {
		return nil
	}
	to.TLS = conf.Clone() // nil stays nil
	current := func() *tls.Certificate { return nil }
	if c.tlsCert != "" {
		files, err := certs.Open(c.tlsCert, c.tlsKey, log)
		if err != nil {
			return &OptionError{Option: "WithTLSFiles", Err: err}
		}
		if to.TLS == nil {
			to.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		to.TLS.GetCertificate = files.Get
		current = files.Current
	} else if len(conf.Certificates) > 0 {
		current = func() *tls.Certificate { return &conf.Certificates[0] }
	}
	to.ServerName = func(ip net.IP) string {
		if pair := current(); pair != nil {
			return certs.Name(pair, ip)
		}
		return ""
	}
	if pair := current(); pair != nil {
		if leaf, err := x509.ParseCertificate(pair.Certificate[0]); err == nil && time.Now().After(leaf.NotAfter) {
			log.Warn("certificate has expired: nobody can dial WebSocket with TLS", "at", leaf.NotAfter)
		}
	}
	return nil
}

// tlsError files an error of the host's start under its option.
func tlsError(c *config, err error) error {
	if !errors.Is(err, nethost.ErrWebSocketReplaced) {
		return err
	}
	option := "WithTLSConfig"
	if c.tlsCert != "" {
		option = "WithTLSFiles"
	}
	return &OptionError{Option: option, Err: nethost.ErrWebSocketReplaced}
}

// gater puts the list in front of the application's connection gater.
func gater(n *Node) func(connmgr.ConnectionGater) connmgr.ConnectionGater {
	return func(next connmgr.ConnectionGater) connmgr.ConnectionGater {
		g := access.Gater{List: n.access, Next: next}
		if n.limits != nil {
			g.Accepting = n.limits.Accepting
		}
		return g
	}
}

func startListening(n *Node) error {
	list, _ := n.cfg.listenAddrs()
	for _, f := range n.base.Listen(list) {
		n.log.Warn("not listening", "addr", f.Addr, "err", f.Err)
		n.listenErrors = append(n.listenErrors, &ListenError{Addr: f.Addr, Err: f.Err})
	}
	if err := checkListening(n.cfg, n.listenErrors); err != nil {
		return err
	}
	n.relay.Open(n.base)
	return nil
}

// checkListening decides whether addresses that did not bind fail New. At least
// one must bind, and all of them unless [WithPartialListen] is given or the
// machine lacks an IP version of the default addresses.
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
