package p2pnode

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

// Addresses and transports.

// WithListenAddrs sets the multiaddrs to listen on, overriding the default of
// every enabled transport on a free port of all IPv4 and IPv6 interfaces. If an
// address does not bind, [New] fails and reports why; [WithPartialListen]
// relaxes that. Each address needs its transport, see [WithTransports]. TCP and
// WebSocket addresses may name the same port, except with [WithPrivateNetwork].
// It conflicts with [WithoutListening].
func WithListenAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithListenAddrs", func(c *config) error {
		list, err := parseAddrs(addresses, "to listen on none, use WithoutListening", checkListenAddr)
		if err != nil {
			return err
		}
		c.listen = list
		return nil
	}}
}

// WithoutListening makes a node that dials but does not listen. Others can
// still reach it through a relay, see [WithAutoRelay]. It conflicts with the
// options that need a port: [WithListenAddrs], [WithPartialListen],
// [WithAnnounceAddrs], [WithMDNS], [WithPortMapping] and [WithNATTraversal].
func WithoutListening() Option {
	return toggle("WithoutListening", func(c *config) { c.noListen = true })
}

// WithPartialListen lets [New] succeed when some, but not all, of the addresses
// of [WithListenAddrs] fail to bind. Those are logged as warnings and are in
// ListenErrors of [Status]. Off by default, because a node that listens on half
// of what was asked for goes unnoticed.
func WithPartialListen() Option {
	return toggle("WithPartialListen", func(c *config) { c.partialListen = true })
}

// WithAnnounceAddrs sets the addresses that the node announces, overriding the
// default of those it listens on: for a node behind a forwarded port or a DNS
// name. Others must be able to dial them: 0.0.0.0, port 0 or a missing port is
// an error. Circuit addresses are announced in addition.
func WithAnnounceAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithAnnounceAddrs", func(c *config) error {
		list, err := parseAddrs(addresses, "leave the option out to announce the listening addresses", checkAnnounceAddr)
		if err != nil {
			return err
		}
		c.announce = list
		return nil
	}}
}

// WithExtraAnnounceAddrs adds addresses that the node announces alongside those that it
// finds out, for instance the public address of a router whose port is forwarded, next
// to the addresses in the LAN. There are none by default. [WithAnnounceAddrs], which
// replaces all, conflicts with it. The addresses are checked as those are.
func WithExtraAnnounceAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithExtraAnnounceAddrs", func(c *config) error {
		list, err := parseAddrs(addresses, "leave the option out to announce the listening addresses", checkAnnounceAddr)
		if err != nil {
			return err
		}
		for _, a := range list {
			c.announceExtra = addrs.Add(c.announceExtra, a)
		}
		return nil
	}}
}

// WithNoAnnounce adds IP prefixes in which the node has addresses that it does not
// announce, such as 172.17.0.0/16, the bridge of containers, or the prefix of a tunnel:
// peers elsewhere could not dial them, and would try. The node listens there
// nevertheless. There are none by default, because a prefix does not tell whether it is
// a bridge of this machine or the LAN; only IPv6 link-local addresses are never announced.
//
// It applies to addresses of interfaces and those that peers have observed, also with
// port mapping, not to addresses at relays, and not to mDNS, which stays in the
// LAN. [WithAnnounceAddrs], which replaces all addresses, conflicts with it.
func WithNoAnnounce(prefixes ...netip.Prefix) Option {
	prefixes = slices.Clone(prefixes)
	return option{"WithNoAnnounce", func(c *config) error {
		if len(prefixes) == 0 {
			return errors.New("no prefix given")
		}
		for _, p := range prefixes {
			if !p.IsValid() {
				return fmt.Errorf("%v is not a prefix; netip.MustParsePrefix(\"172.17.0.0/16\") makes one", p)
			}
			c.noAnnounce = append(slices.Clip(c.noAnnounce), p.Masked())
		}
		return nil
	}}
}

// WithBrowserTransports adds the transports that browsers speak without a certificate
// of an authority, [TransportWebTransport] and [TransportWebRTCDirect], to those of
// [WithTransports] or the default ones, and listens with them: by default on free
// ports, with [WithListenAddrs] on the UDP ports of its QUIC addresses, unless it has an
// address for that transport. It is off by default, because WebRTC costs memory, and
// other nodes have no use for it. A private network's key cannot be carried: it
// conflicts with [WithPrivateNetwork].
//
// The addresses have hashes of certificates in them (/certhash). Those are derived from
// the identity, so that they are the same after a restart with [WithDataDir],
// [WithIdentityFile] or another fixed identity. That of WebRTC never changes. Of WebTransport there
// are two, the current one and the next, each for almost two weeks, which browsers insist on: an
// address that is older than that is to be asked for again.
// Specifications: github.com/libp2p/specs/tree/master/webtransport and
// github.com/libp2p/specs/blob/master/webrtc/webrtc-direct.md.
func WithBrowserTransports() Option {
	return toggle("WithBrowserTransports", func(c *config) { c.browsers = true })
}

// WithTransports sets the transports, overriding the default of [TransportTCP],
// [TransportQUIC] and [TransportWebSocket]. With [WithPrivateNetwork] the
// default lacks [TransportQUIC], which cannot carry the key.
func WithTransports(transports ...Transport) Option {
	transports = slices.Clone(transports)
	return option{"WithTransports", func(c *config) error {
		if len(transports) == 0 {
			return errors.New("no transport given")
		}
		for _, t := range transports {
			if !t.known() {
				return fmt.Errorf("%q is not a transport: choose from %s", string(t), quoteAll(allTransports))
			}
		}
		c.transports = slices.Compact(slices.Sorted(slices.Values(transports)))
		return nil
	}}
}

// WithSecurity sets the security protocols of TCP and WebSocket connections in
// order of preference, overriding libp2p's own default of [SecurityTLS] before
// [SecurityNoise]: with AES in hardware, TLS takes half the CPU. It is an error
// without TCP and WebSocket, because the other transports bring their own
// security.
func WithSecurity(protocols ...Security) Option {
	protocols = slices.Clone(protocols)
	return option{"WithSecurity", func(c *config) error {
		if len(protocols) == 0 {
			return errors.New("no protocol given: without one a connection has no identity")
		}
		for i, s := range protocols {
			if s != SecurityNoise && s != SecurityTLS {
				return fmt.Errorf("%q is not a security protocol: choose from %q and %q", string(s), SecurityTLS, SecurityNoise)
			}
			if slices.Contains(protocols[:i], s) {
				return fmt.Errorf("%q is given twice", s)
			}
		}
		c.security = slices.Clone(protocols)
		return nil
	}}
}

// WithTLSFiles sets the certificate, with the chain of its authority, and the key for
// WebSocket with TLS, as the names of two files in PEM format: to listen on addresses
// like /ip4/0.0.0.0/tcp/443/tls/ws. There is none by default, and browsers need one
// that an authority they know has signed. [New] fails if the files cannot be read or do
// not match.
//
// The files may be replaced while the node runs: a handshake looks at them at most
// once a second, and connections that are open go on. A pair that cannot be used, for
// instance because the key does not match, leaves the old one in use, with one warning
// in the log; it is tried again until it can be used. Files that have just changed get
// 10 seconds to become a pair.
//
// If the certificate is for a DNS name and not for the node's IP addresses, those that
// it announces have the name in them (/tls/sni/<name>/ws): peers verify it. Behind a
// proxy that has the certificate, listen without TLS, on
// /ip4/127.0.0.1/tcp/<port>/ws, and announce /dns4/<name>/tcp/443/tls/ws with
// [WithAnnounceAddrs].
//
// The addresses of [WithListenAddrs], if given, must have one with /tls/ws. A
// certificate in [WithTLSConfig] conflicts with this one; its other fields do not.
func WithTLSFiles(certFile, keyFile string) Option {
	return option{"WithTLSFiles", func(c *config) error {
		if certFile == "" || keyFile == "" {
			return errors.New("the path of the certificate or of the key is empty")
		}
		c.tlsCert, c.tlsKey = certFile, keyFile
		return nil
	}}
}

// WithTLSConfig sets the TLS configuration of WebSocket, overriding the default of
// none. It is for listening, if it has a certificate: in Certificates, from
// GetCertificate or from GetConfigForClient, as golang.org/x/crypto/acme/autocert makes
// one. It is also for dialing such addresses, without ServerName and NextProtos: RootCAs
// are the authorities that may sign the certificates of others, the system's if nil.
// The peer's identity is verified in any case, by the handshake inside. The
// configuration is copied, and its functions are called by many goroutines.
//
// [WithTLSFiles] has the certificate in files. Connections of [SecurityTLS], QUIC and
// the other transports have certificates of their own, which this does not concern.
func WithTLSConfig(conf *tls.Config) Option {
	conf = conf.Clone()
	return option{"WithTLSConfig", func(c *config) error {
		if err := checkTLSConfig(conf); err != nil {
			return err
		}
		c.tls = conf
		return nil
	}}
}

// WithUserAgent sets the name that the node gives its peers in identify, 1 to
// 256 characters, overriding the default of "p2pnode" with the module's version
// if known.
func WithUserAgent(s string) Option {
	return option{"WithUserAgent", func(c *config) error {
		if s == "" || len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%q: use 1 to 256 characters, none of them a control character", s)
		}
		c.userAgent = s
		return nil
	}}
}

// WithReachability sets whether others can dial this node, public or private,
// overriding the default of finding out by AutoNAT, which on a private network
// never concludes. A public node makes no reservations, so public conflicts
// with [WithAutoRelay]; it listens, so public conflicts with
// [WithoutListening].
func WithReachability(r network.Reachability) Option {
	return option{"WithReachability", func(c *config) error {
		if r != network.ReachabilityPublic && r != network.ReachabilityPrivate {
			return fmt.Errorf("%s cannot be forced: choose network.ReachabilityPublic or network.ReachabilityPrivate, or leave the option out", r)
		}
		c.reachability = r
		return nil
	}}
}

// WithPortMapping asks the router to forward the ports on which the node listens over
// IPv4, by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP, whichever the router answers
// first. Off by default, because it changes the router's settings.
//
// The mappings last a minute or two, are renewed every 20 seconds, and are removed by
// Close. After a move to another network the node looks for a router again, and while
// there is none, once a minute. PortMapping of [Status] shows what the router says;
// [EventPortMapped] and [EventPortUnmapped] report changes. Only with [WithAutoNAT],
// too, does the node find out whether the router tells the truth: without it, a mapped
// address is announced unseen.
func WithPortMapping() Option {
	return toggle("WithPortMapping", func(c *config) { c.portMapping = true })
}

// Limits and access.

// WithConnLimits sets the watermarks of the connection manager, overriding the
// default of 160 and 192: above high, it closes the least useful connections
// until low remain. It spares connections younger than 20 seconds and protected
// peers.
func WithConnLimits(low, high int) Option {
	return option{"WithConnLimits", func(c *config) error {
		if low <= 0 || high <= low || high > limits.Max {
			return fmt.Errorf("low %d and high %d: they must satisfy 0 < low < high <= %d", low, high, limits.Max)
		}
		c.connLow, c.connHigh = low, high
		return nil
	}}
}

// WithDialTimeout sets how long the dial of one address may take, with its handshakes,
// and how long identify may take, overriding libp2p's default of 15 seconds, or 5 for
// private addresses and for identify: from 1 second to 5 minutes. Raise it where a
// round trip takes seconds, as over satellites or radio, on both sides of the link. Calls that dial have
// a deadline of their own, that of their context.
func WithDialTimeout(d time.Duration) Option {
	return option{"WithDialTimeout", func(c *config) error {
		if d < time.Second || d > 5*time.Minute {
			return fmt.Errorf("%v: it must be 1 second to 5 minutes", d)
		}
		c.dialTimeout = d
		return nil
	}}
}

// WithLimits sets the limits of libp2p's resource manager, field by field: a
// zero field of [Limits] keeps its default, or the value of an earlier
// WithLimits. What a limit refuses is counted in [Status] and by [WithMetrics],
// except records of the DHT, and reported by [EventLimitReached]; the first refusal
// is logged (except by Memory), and the error on this side names the limit. On a
// network of your
// own, private and loopback addresses are not limited per IP, because a cluster
// often shares one.
func WithLimits(l Limits) Option {
	return option{"WithLimits", func(c *config) error {
		if err := limits.Limits(l).Check(); err != nil {
			return err
		}
		c.limits = Limits(limits.Limits(l).Or(limits.Limits(c.limits)))
		return nil
	}}
}

// WithAllowedPeers adds peers that the node may deal with, overriding the
// default of all peers. Other peers are not dialed, accepted or relayed for,
// and their messages are dropped. [Node.Allow] and [Node.Disallow] change the
// list at run time. Bootstrap peers, persistent peers and relays must be on it;
// peers of [WithBannedPeers] must not.
func WithAllowedPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithAllowedPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.allowed = slices.Concat(c.allowed, ids)
		return nil
	}}
}

// WithBannedPeers adds peers that the node bans for good: they are not dialed,
// accepted or relayed for, and their messages are dropped. [Node.BanPeer] does
// the same at run time, also for a limited time, and [Node.UnbanPeer] ends
// both.
func WithBannedPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithBannedPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.banned = slices.Concat(c.banned, ids)
		return nil
	}}
}
