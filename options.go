package p2pnode

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Option configures a [Node]; see [New]. Options apply in the order given: one
// that "sets" a value overrides an earlier one of the same name, one that
// "adds" accumulates. Slices passed to an option are copied, a nil Option is
// skipped, and one Option may be used for any number of nodes, concurrently.
type Option interface{ apply(*config) error }

// option implements Option. Its name prefixes the option's errors.
type option struct {
	name string
	set  func(*config) error
}

func (o option) apply(c *config) error {
	c.give(o.name)
	if err := o.set(c); err != nil {
		return &OptionError{Option: o.name, Err: err}
	}
	return nil
}

// toggle returns an option without a value.
func toggle(name string, set func(*config)) Option {
	return option{name, func(c *config) error {
		set(c)
		return nil
	}}
}

// ValidateOptions reports what [New] would reject in the options, without
// starting anything: all problems at once, joined, each an [*OptionError].
// [OptionErrors] takes the joined error apart. It looks at no files or ports.
func ValidateOptions(opts ...Option) error {
	_, err := newConfig(opts)
	return err
}

// newConfig applies the options in order and checks the result. It returns all
// problems at once: those of single options first, in the order given, then
// those between options, in the order of the tables in validate.go.
func newConfig(opts []Option) (*config, error) {
	cfg := defaultConfig()
	var errs []error
	for _, opt := range opts {
		if opt == nil {
			continue
		}
		if err := opt.apply(cfg); err != nil {
			errs = append(errs, err)
		}
	}
	if err := cfg.applyProfile(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, cfg.validate()...)...); err != nil {
		return nil, err
	}
	return cfg, nil
}

// WithProfile sets what the node is for, and with it the defaults of several options:
// those that the profile lists. Every option that is given wins over the profile,
// before it or after it, and leaves out what it conflicts with: ProfileDesktop with
// [WithoutRelay] finds no relays, but maps a port. There is none by default, because
// what a node is for is a decision. [Describe] tells the outcome.
func WithProfile(p Profile) Option {
	return option{"WithProfile", func(c *config) error {
		if p.options() == nil {
			return fmt.Errorf("unknown profile %q; known are %q", string(p), allProfiles)
		}
		c.profile = p
		return nil
	}}
}

// options returns what the profile stands for; nil if it is unknown.
func (p Profile) options() []Option {
	switch p {
	case ProfileServer:
		return []Option{
			WithReachability(network.ReachabilityPublic), WithDHTMode(DHTModeServer), WithRelayService(), WithAutoNAT(), WithConnLimits(768, 1024),
		}
	case ProfileDesktop:
		return []Option{WithAutoNAT(), WithRelayDiscovery(), WithHolePunching(), WithPortMapping()}
	case ProfilePhone:
		return []Option{
			WithDHTMode(DHTModeClient), WithConnLimits(12, 24), WithBootstrapPause(5 * time.Minute), WithRelayDiscovery(), WithHolePunching(),
		}
	case ProfileLAN:
		return []Option{WithMDNS(), WithDHTMode(DHTModeServer), WithoutRelay()}
	default:
		return nil
	}
}

// applyProfile applies those options of the profile that neither were given with
// another value nor conflict with one that was.
func (c *config) applyProfile() error {
	for _, o := range c.profile.options() {
		o := o.(option) // as all in these lists
		if c.has(o.name) || c.ruledOut(o.name) {
			continue
		}
		if err := o.set(c); err != nil {
			return &OptionError{Option: o.name, Err: err}
		}
	}
	return nil
}

// The network.

// WithNetwork sets the name of the application's network, overriding the
// default of "p2pnode". Peers of different networks may connect, but never mix
// in the DHT (protocol /<name>/kad/1.0.0), in rendezvous ([Node.Advertise]), or
// on the LAN (the mDNS service name). A name has up to 128 letters, digits and
// -_./ characters.
//
// WithNetwork("ipfs") is a network of your own whose DHT kubo and js-libp2p
// peers understand; names that begin with "ipfs/" are reserved for it. The
// public network is [WithIPFS], which conflicts with this option.
func WithNetwork(name string) Option {
	return option{"WithNetwork", func(c *config) error {
		if err := checkNetwork(name); err != nil {
			return err
		}
		c.network = name
		return nil
	}}
}

// WithIPFS joins the public IPFS network: the Amino DHT and the LAN DHT next to
// it, the network's bootstrap peers unless others are configured, and the
// standard mDNS service name with [WithMDNS]. Off by default, because a node on
// a public network serves strangers.
//
// The public DHT gets only public addresses of the node, and a private address
// is dialed only if the application names the peer, or mDNS or a peer of the LAN
// does. Identify tells whoever connects all addresses that the node announces,
// as everywhere in libp2p: with [WithAnnounceAddrs] private ones are not among
// them, but then peers on the LAN do not learn them either.
//
// It conflicts with [WithNetwork], [WithPrivateNetwork], [WithValidator] and
// [WithoutDHT].
func WithIPFS() Option { return toggle("WithIPFS", func(c *config) { c.ipfs = true }) }

// WithPrivateNetwork sets the 32-byte pre-shared key of a private network:
// peers without it cannot get past the handshake. Off by default. Only TCP and
// WebSocket can carry it: the other transports are switched off, and naming one
// is an error. [LoadOrCreateSwarmKey] reads the key from a swarm.key file, and
// PrivateNetwork in [Status] is its fingerprint. Specification:
// github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md.
func WithPrivateNetwork(psk pnet.PSK) Option {
	psk = slices.Clone(psk)
	return option{"WithPrivateNetwork", func(c *config) error {
		if err := checkKey(psk); err != nil {
			return err
		}
		c.psk = psk
		return nil
	}}
}

// WithTicket joins the network of a ticket, which [Node.Ticket] of a node there
// returns as text: it sets the name of the network, as [WithNetwork] does, and the key of a
// private network if the ticket has it, as [WithPrivateNetwork] does, and adds the
// ticket's peers as bootstrap peers, as [WithBootstrapPeers] does. By default there
// is none. Several tickets of one network add up. [ParseTicket] shows what a ticket
// holds.
//
// Whoever made the ticket chooses whom the node dials. WithNetwork with another
// name and WithPrivateNetwork with another key conflict with it, and so does a
// ticket of another network. A ticket of a private network that does not have the
// key needs WithPrivateNetwork, and one of the public network [WithIPFS].
func WithTicket(s string) Option {
	return option{"WithTicket", func(c *config) error {
		t, err := parseTicket(s)
		if err != nil {
			return err
		}
		// What has an option of its own stays: validate.go compares the two.
		if !t.public && !c.has("WithNetwork") {
			c.network = t.network
		}
		if t.secret && !c.has("WithPrivateNetwork") {
			c.psk = t.key()
		}
		c.tickets = append(c.tickets, t)
		c.ticketPeers = addrs.Merge(slices.Concat(c.ticketPeers, t.peers)...)
		return nil
	}}
}

// Identity and storage.

// WithIdentity sets the private key from which the node derives its peer ID,
// overriding the default of a fresh Ed25519 key. It replaces [WithIdentityFile]
// and [WithIdentityString]: the last of the three wins.
func WithIdentity(key crypto.PrivKey) Option {
	return option{"WithIdentity", func(c *config) error {
		if _, err := peerID(key); err != nil {
			return err
		}
		c.key, c.identityFile = key, ""
		return nil
	}}
}

// WithIdentityFile sets the file that holds the private key, overriding the
// default of a fresh key at each start. If the file does not exist, [New]
// creates it with mode 0600 and an Ed25519 key; it never writes to an existing
// one. A file that others may read, or that does not hold a key, fails [New]
// and is left untouched; a mounted secret of mode 0440 is accepted. It replaces
// [WithIdentity] and [WithIdentityString]: the last of the three wins.
func WithIdentityFile(path string) Option {
	return option{"WithIdentityFile", func(c *config) error {
		if path == "" {
			return errors.New("the path is empty")
		}
		c.key, c.identityFile = nil, path
		return nil
	}}
}

// WithIdentityString sets the private key from its text form, overriding the
// default of a fresh key. The text is the base64 of the marshaled key, as
// [EncodeKey] returns it and kubo stores it. It replaces [WithIdentity] and
// [WithIdentityFile]: the last of the three wins.
func WithIdentityString(s string) Option {
	return option{"WithIdentityString", func(c *config) error {
		key, err := decodeKey(s)
		if err != nil {
			return err
		}
		c.key, c.identityFile = key, ""
		return nil
	}}
}

// WithDataDir sets the directory for what the node needs again after a restart:
// its identity, peers and bans. There is none by default. [New] creates it with
// mode 0700 if absent, and locks it until Close or the end of the process. It
// fails if another node has the directory, in this process or another, if the
// directory cannot be written to, or if everybody can write to it. The identity
// is in the file identity.key, made at the first start, unless [WithIdentity],
// [WithIdentityFile] or [WithIdentityString] sets another.
//
// Every 10 minutes, and at Close, the node saves the peers that it was directly
// connected to for 5 minutes, that left since, or, at Close, that are
// connected; until it has saved any, it looks every minute for peers connected
// for 30 seconds. It keeps at most 100 peers, 20 of them from one IPv4 /16 or
// IPv6 /32, each for a week after it was last connected. After a restart it
// dials them next to its bootstrap peers while it has too few peers, and each
// once, 8 at a time, when it has enough but fewer than [WithConnLimits] starts
// trimming to; while fewer than 20 peers are connected, those that are missing
// again every 1 to 10 minutes. With [WithMinPeers] of 0 it dials them only
// while the DHT's routing table is empty.
//
// Bans of [Node.BanPeer] and [Node.BanSubnet] are saved when they change.
//
// The file dht.db holds what the node provides, puts and advertises, which it goes
// on announcing after a restart, and the DHT records that it holds for other nodes, unless
// [WithDatastore] sets another place. What [Node.Provide] and [Node.ProvideMany]
// have acknowledged survives a crash. Of a damaged file the entries that are whole
// are used. If the file cannot be opened, the node keeps these in memory, and says
// so in Warnings of [Status].
//
// A damaged file of peers or bans is set aside, not overwritten, and reported
// in Warnings of [Status] and by [Node.Diagnose]; the node starts without its
// content, so banned peers are let in. A file that cannot be read for now is
// reported the same way and left alone: what would replace it is not saved, and
// [Node.BanPeer] or [Node.Close] returns an error. A damaged identity fails
// [New].
func WithDataDir(dir string) Option {
	return option{"WithDataDir", func(c *config) error {
		if dir == "" {
			return errors.New("the path is empty")
		}
		c.dataDir = dir
		return nil
	}}
}

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

// Finding peers and staying connected.

// WithBootstrapPeers adds peers through which the node enters its network and
// returns to it. While fewer peers are connected than [WithMinPeers] asks for,
// or the DHT's routing table is empty, the node dials all that are missing in
// rounds: at once, then every 400 to 800 milliseconds for the first minute,
// then after delays that grow from 1 to 30 seconds, forever. A change of the
// machine's addresses or a wake from sleep starts over.
//
// With enough peers, it dials a missing bootstrap peer every 1 to 10 minutes,
// or every 30 seconds with fewer than 4 peers and no bootstrap peer among them,
// and one that it has just lost as quickly as above for a minute, unless the
// peer keeps hanging up. With [WithMinPeers] of 0 it does neither. The node's
// own ID is left out, so that one list serves all nodes. [ParsePeers] reads the
// text form; [Node.AddBootstrapPeers] and [Node.RemoveBootstrapPeers] change
// the list at run time.
func WithBootstrapPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithBootstrapPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.bootstrap })
}

// WithBootstrapAddrs is [WithBootstrapPeers] for multiaddrs, each ending in the
// peer's ID: /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…
func WithBootstrapAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithBootstrapAddrs", func(c *config) error {
		if len(addresses) == 0 {
			return errors.New("no address given")
		}
		peers, err := parsePeers("%w", addresses)
		if err != nil {
			return err
		}
		if err := checkPeers(peers); err != nil {
			return err
		}
		c.bootstrap = addrs.Merge(slices.Concat(c.bootstrap, peers)...)
		return nil
	}}
}

// WithBootstrapDNS adds DNS names of bootstrap peers, without their IDs:
// /dns4/<name>/tcp/4001, with dns, dns4 or dns6, for TCP, QUIC (quic-v1) or
// WebSocket. Use it for a cluster's name with many, changing hosts, such as a
// headless service of Kubernetes. In each round of dialing, the node resolves
// the names, dials up to 32 addresses of each, and adds the peers that answer as
// bootstrap peers, as [Node.AddBootstrapPeers] does; [EventPeerFound] reports
// them with the source "dns". The node knows up to 64 at a time, and removes
// those that are neither found again nor connected.
//
// Nothing checks the IDs, so whoever controls the name, or the network path to
// its addresses, chooses the peers. Use it with [WithPrivateNetwork], so that
// only holders of the key can answer, or with [WithAllowedPeers], which leaves
// out all other peers. If you know the IDs, use [WithBootstrapAddrs], which also
// takes names.
func WithBootstrapDNS(names ...string) Option {
	names = slices.Clone(names)
	return option{"WithBootstrapDNS", func(c *config) error {
		list, err := parseAddrs(names, "name one like /dns4/<name>/tcp/4001", checkNameAddr)
		if err != nil {
			return err
		}
		for _, a := range list {
			c.bootstrapDNS = addrs.Add(c.bootstrapDNS, a)
		}
		return nil
	}}
}

// WithPersistentPeers adds peers that the node keeps connected for their own
// sake, however many others it has. It dials each at start and whenever it is
// lost: for a minute every 400 to 800 milliseconds, then with jittered delays
// that grow from 5 seconds to 10 minutes, forever. It never trims their
// connections. A connection that closes within a minute counts as a failed
// dial, except for the first three in a row. A change of the machine's
// addresses, a wake from sleep and the end of a ban start over.
//
// [Node.AddPersistentPeers] and [Node.RemovePersistentPeers] change the list at
// run time, and [Status] reports on it. The node's own ID is left out.
func WithPersistentPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithPersistentPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.persistent })
}

// addPeers returns an option that adds peers to a list of the config.
func addPeers(name string, peers []peer.AddrInfo, list func(*config) *[]peer.AddrInfo) Option {
	peers = addrs.Merge(peers...)
	return option{name, func(c *config) error {
		if err := checkPeers(peers); err != nil {
			return err
		}
		*list(c) = addrs.Merge(slices.Concat(*list(c), peers)...)
		return nil
	}}
}

// WithKeepAlive pings each connected peer at an interval of at least a second,
// and closes the connections of peers that do not answer within 5 seconds.
// [Peer].LastSeen includes the last answer. By default the node pings peers only
// after it has woken from sleep or its addresses have changed.
//
// Use it to notice dead peers sooner. Without it, TCP notices a crashed process
// immediately, because the peer's system closes the connection, but QUIC only
// after 15 to 45 seconds. Neither notices a machine that loses power or its
// network any sooner.
func WithKeepAlive(interval time.Duration) Option {
	return option{"WithKeepAlive", func(c *config) error {
		if interval < time.Second {
			return fmt.Errorf("%v: the interval must be at least a second", interval)
		}
		c.keepAlive = interval
		return nil
	}}
}

// WithBootstrapPause sets the longest pause between rounds in which a node that lacks
// peers dials its bootstrap and saved peers, overriding the default of 30 seconds: from
// 1 second to a day. The pauses grow to it from a second, once the node has been without
// them for a minute. A change of the network, or of the clock, starts a round at once.
// A long one saves a battery; what it costs is time until a peer that was away for
// long is found again.
func WithBootstrapPause(longest time.Duration) Option {
	return option{"WithBootstrapPause", func(c *config) error {
		if longest < keeper.RoundMin || longest > 24*time.Hour {
			return fmt.Errorf("%v: the longest pause must be 1 second to 24 hours", longest)
		}
		c.bootstrapPause = longest
		return nil
	}}
}

// WithMinPeers sets the minimum number of connected peers, overriding the default
// of 1 with bootstrap peers, persistent peers or mDNS, and 0 without. The default
// follows changes at run time: it becomes 1 with the first peer of
// [Node.AddBootstrapPeers] or [Node.AddPersistentPeers].
//
// While fewer peers are connected, the node dials its bootstrap and saved peers,
// and [Node.WaitReady] waits. A node with saved peers ([WithDataDir]) looks for
// one peer even with the default of 0. With an explicit 0, it dials bootstrap and
// saved peers only while the DHT's routing table is empty, and without a DHT
// never.
func WithMinPeers(n int) Option {
	return option{"WithMinPeers", func(c *config) error {
		if n < 0 {
			return fmt.Errorf("%d is negative", n)
		}
		c.minPeers = n
		return nil
	}}
}

// WithMDNS announces the node on the LAN by multicast DNS, and dials the peers
// of its network that it discovers there. Off by default, because it reveals the
// node to everybody on the LAN. Of two peers that discover each other, the one
// with the lower ID dials immediately, the other after 1 to 2 seconds; delays
// then grow from 1 to 30 seconds, until the peer has not announced itself for 10
// minutes. The node remembers up to 512 discovered peers and dials 16 at a time.
//
// The service name derives from [WithNetwork]; [WithMDNSService] sets another.
// mDNS announces TCP and QUIC addresses only, so the node must listen on one.
// If mDNS cannot start, [New] fails. Specification:
// github.com/libp2p/specs/blob/master/discovery/mdns.md.
func WithMDNS() Option { return toggle("WithMDNS", func(c *config) { c.mdns = true }) }

// WithMDNSService is [WithMDNS] with the given service name, such as
// "_myapp._udp", overriding the one that derives from [WithNetwork].
// "_p2p._udp" is what other implementations use.
func WithMDNSService(name string) Option {
	return option{"WithMDNSService", func(c *config) error {
		if !mdnsName.MatchString(name) {
			return fmt.Errorf("%q is not a service name: use a form like \"_myapp._udp\", with at most 63 characters before the dot", name)
		}
		c.mdns, c.mdnsService = true, name
		return nil
	}}
}

// Relays and NATs.

// WithoutRelay switches the relay client off: the node neither dials through
// relays nor is reached through them. It conflicts with [WithAutoRelay],
// [WithRelayService], [WithRelayLimits], [WithRelayPeers], [WithRelayAccess],
// [WithHolePunching] and [WithNATTraversal].
func WithoutRelay() Option { return toggle("WithoutRelay", func(c *config) { c.noRelay = true }) }

// WithAutoRelay adds relays at which the node keeps reservations, so that
// others reach it through them, and announces its circuit addresses there. It
// implies that the node cannot be reached otherwise: unless [WithReachability]
// or [WithAutoNAT] is given, its reachability is private, and in
// [DHTModeAutoServer] it is a DHT client. [Node.AddRelays] and [Node.RemoveRelays] change the list at run time.
// The node's own ID is left out. Specification:
// github.com/libp2p/specs/tree/master/relay.
func WithAutoRelay(relays ...peer.AddrInfo) Option {
	return addPeers("WithAutoRelay", relays, func(c *config) *[]peer.AddrInfo { return &c.autoRelays })
}

// WithRelayDiscovery makes the node use relays that nobody has named, while others
// cannot dial it: connected peers that offer to relay, and relays that advertise
// themselves in the DHT, as nodes with [WithRelayService] do. With those of
// [WithAutoRelay], which come first, it keeps reservations at two. It uses none once
// it is known to be public, and when its reachability stays unknown, it takes that
// for private after 3 seconds with peers. Off by default, because strangers then see
// who talks to the node, and when.
//
// Before a relay that was found is announced, and every 10 minutes, the node dials
// itself through it: one that takes reservations and does not relay is replaced.
// Relays are pinged every 4 seconds, so that one that crashes is replaced within 15.
// It conflicts with [WithoutRelay].
func WithRelayDiscovery() Option {
	return toggle("WithRelayDiscovery", func(c *config) { c.findRelays = true })
}

// WithRelayService lets others make reservations at this node and be reached
// through it, immediately and whatever its own reachability. Off by default,
// because it spends the node's bandwidth on others; [WithRelayLimits] bounds
// that, and [WithRelayPeers] and [WithRelayAccess] choose who may. Status has what
// it gives away and refuses.
func WithRelayService() Option {
	return toggle("WithRelayService", func(c *config) { c.relayService = true })
}

// WithRelayLimits is [WithRelayService] with the given limits, overriding
// libp2p's defaults, which [RelayLimits] lists. It sets them.
func WithRelayLimits(l RelayLimits) Option {
	return option{"WithRelayLimits", func(c *config) error {
		if err := l.check(); err != nil {
			return err
		}
		c.relayService, c.relayLimits = true, l
		return nil
	}}
}

// WithRelayPeers is [WithRelayService] for the given peers, overriding the
// default of all: only they may make reservations. It adds peers. Anybody may be
// relayed to them, unless banned or not allowed. With [WithRelayAccess] in
// addition, a peer needs one of the two.
func WithRelayPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithRelayPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.relayService, c.relayPeers = true, slices.Concat(c.relayPeers, ids)
		return nil
	}}
}

// WithRelayAccess is [WithRelayService] for the peers that may returns true for,
// overriding the default of all. It gets the peer and its address, with each
// request for a reservation and each renewal, about once an hour. It must be safe
// for concurrent use and return soon; if it panics, the request is refused. The
// lists of [WithAllowedPeers], [WithBannedPeers] and [Node.BanPeer] come first.
func WithRelayAccess(may func(id peer.ID, addr ma.Multiaddr) bool) Option {
	return option{"WithRelayAccess", func(c *config) error {
		if may == nil {
			return errors.New("the function is nil; leave the option out to let everybody make reservations")
		}
		c.relayService, c.relayAccess = true, may
		return nil
	}}
}

// WithAutoNAT makes the node ask its peers whether they can dial its addresses, and
// dial theirs when they ask (AutoNAT version 2). Off by default, because it makes the
// node dial addresses that strangers name, and tells its peers all of its own.
//
// An address is taken for reachable, or not, once two more peers say the one than the
// other; a single peer is believed after 10 seconds. That takes seconds for a
// reachable address and up to 20 seconds for others, and is checked every 5 to 10
// minutes. Only peers of the widest reach count: those on the LAN do not while there are
// others. See AddrReachability of [Status], [EventAddrReachabilityChanged] and
// [EventReachabilityChanged]. A node that cannot be reached stops serving the DHT until
// it can ([EventDHTModeChanged]), except in [DHTModeServer]. With [WithReachability] the
// node believes that instead. Specification:
// github.com/libp2p/specs/blob/master/autonat/autonat-v2.md.
func WithAutoNAT() Option { return toggle("WithAutoNAT", func(c *config) { c.autoNAT = true }) }

// WithNATTraversal is what a node behind a NAT needs to be reached, in one word:
// [WithAutoNAT], relays that the node finds by itself next to those of
// [WithAutoRelay], [WithHolePunching] and [WithPortMapping]. Off by default, for the
// reasons of each. It conflicts with [WithoutRelay] and [WithoutListening].
func WithNATTraversal() Option {
	return toggle("WithNATTraversal", func(c *config) {
		c.autoNAT, c.findRelays, c.holePunching, c.portMapping = true, true, true, true
	})
}

// WithHolePunching lets two nodes behind NATs that are connected through a
// relay try to connect directly (DCUtR): three times at once, and again after
// pauses of 15 seconds, which grow to 10 minutes, while they remain relayed. Off by
// default, because it makes the node dial addresses that strangers name. Of several peers it dials one over TCP
// instead of QUIC, to learn its address there. Specification:
// github.com/libp2p/specs/blob/master/relay/DCUtR.md.
func WithHolePunching() Option {
	return toggle("WithHolePunching", func(c *config) { c.holePunching = true })
}

// The DHT.

// WithDHTMode sets the mode of the DHT, overriding the default of
// [DHTModeAutoServer]. With [WithIPFS] the default is [DHTModeAuto]: the public
// network asks nodes not to serve before they know that they are reachable.
func WithDHTMode(mode DHTMode) Option {
	return option{"WithDHTMode", func(c *config) error {
		if !slices.Contains(allDHTModes, mode) {
			return fmt.Errorf("%q is not a mode: choose from %s", string(mode), quoteAll(allDHTModes))
		}
		c.dhtMode = mode
		return nil
	}}
}

// WithoutDHT switches the DHT off. The methods for content, records and
// rendezvous then return [ErrDisabled]. It conflicts with the options that
// configure the DHT.
func WithoutDHT() Option { return toggle("WithoutDHT", func(c *config) { c.noDHT = true }) }

// WithAcceleratedDHT makes the node crawl the public DHT once an hour, and announce
// without lookups: it then knows which servers are closest to any key. Off by
// default: a crawl asks every server 16 questions, with some 10,000 servers 160,000 in
// an hour. A lookup asks about 30, and [Node.ProvideMany] takes one for all CIDs of
// a region. So it pays for those who call [Node.Provide] thousands of times an hour,
// and for those to whom the delay of a lookup matters more than its cost.
//
// The first crawl begins when the node has peers; until it ends, and whenever the
// last one is more than an hour old, found fewer than 20 servers or far fewer than the
// one before, or was given up after 45 minutes or 65,536 peers, the node looks peers up as it does without.
// Status().DHT.Accelerated tells. A crawl connects to 100 servers at a time,
// and closes the connections that nothing else uses when they have answered. Searches
// take lookups as before.
//
// It needs [WithIPFS], and conflicts with [WithoutDHT].
func WithAcceleratedDHT() Option {
	return toggle("WithAcceleratedDHT", func(c *config) { c.accelerated = true })
}

// WithValidator adds a validator for DHT records whose keys start with
// /<namespace>/, in addition to those for /pk and /ipns. Records of a namespace
// without a validator are refused. All nodes of the network need the same ones.
// The network "ipfs" accepts no others. For records that only their owner can write,
// there is [WithSignedRecords].
func WithValidator(namespace string, v record.Validator) Option {
	return option{"WithValidator", func(c *config) error {
		if err := checkNamespace(c, namespace); err != nil {
			return err
		}
		if isNil(v) {
			return fmt.Errorf("the validator of %q is nil", namespace)
		}
		if c.validators == nil {
			c.validators = make(map[string]record.Validator)
		}
		c.validators[namespace] = v
		return nil
	}}
}

// WithSignedRecords adds a namespace of signed records, for [Node.PutSigned] and
// [Node.GetSigned]: under a key /<namespace>/<peer ID> only that peer can write.
// It comes with the validator, which checks the signature, the expiry and the size,
// and prefers the highest sequence number. All nodes of the network need the same
// namespaces. Like [WithValidator], it is not for the network "ipfs".
func WithSignedRecords(namespace string) Option {
	return option{"WithSignedRecords", func(c *config) error {
		if err := checkNamespace(c, namespace); err != nil {
			return err
		}
		c.signed = append(c.signed, namespace)
		return nil
	}}
}

// checkNamespace checks a namespace of DHT records that an option adds.
func checkNamespace(c *config, namespace string) error {
	switch {
	case namespace == "" || strings.ContainsRune(namespace, '/'):
		return fmt.Errorf("%q is not a namespace: for keys like /app/name use \"app\"", namespace)
	case namespace == "pk" || namespace == "ipns":
		return fmt.Errorf("%q has a built-in validator, which cannot be replaced", namespace)
	case c.validators[namespace] != nil || slices.Contains(c.signed, namespace):
		return fmt.Errorf("%q already has a validator", namespace)
	}
	return nil
}

// WithDatastore sets where the DHT keeps the records it holds for others and what
// the node itself provides, puts and advertises, overriding the default of memory. The caller owns the
// store: close it after the node.
func WithDatastore(ds datastore.Batching) Option {
	return option{"WithDatastore", func(c *config) error {
		if isNil(ds) {
			return errors.New("the datastore is nil; leave the option out for one in memory")
		}
		c.datastore = ds
		return nil
	}}
}

// WithReprovideInterval sets how often what is provided is announced again,
// overriding the default of 22 hours: at least a minute, and less than
// [WithRecordLifetime], or 48 hours, less an eighth for delays.
func WithReprovideInterval(interval time.Duration) Option {
	return option{"WithReprovideInterval", func(c *config) error {
		if interval < time.Minute {
			return fmt.Errorf("%v: the interval must be at least a minute", interval)
		}
		c.reprovideInterval = interval
		return nil
	}}
}

// WithRecordLifetime sets how long the node keeps the provider records of other
// peers, overriding the default of 48 hours: at least a minute. The nodes of a
// network should agree on it. The public network does: it conflicts with
// [WithIPFS].
func WithRecordLifetime(lifetime time.Duration) Option {
	return option{"WithRecordLifetime", func(c *config) error {
		if lifetime < time.Minute {
			return fmt.Errorf("%v: the lifetime must be at least a minute", lifetime)
		}
		c.recordLifetime = lifetime
		return nil
	}}
}

// WithRendezvous adds a namespace under which the node looks for peers: it
// advertises itself, as [Node.Advertise] does, searches for others that do, and
// keeps n of them connected, chosen by chance among all, whoever is connected
// already. By default there is none. One that is lost is replaced, and every 10
// minutes one is exchanged for another. While there are fewer than n it searches
// again, after 5 seconds at first and 2 minutes at most. It begins when the node has
// DHT peers, for instance those of [WithBootstrapPeers].
//
// The peers are protected from trimming; together they may be no more than the
// lower of [WithConnLimits]. [Node.StopAdvertising] does not end it, and it does not
// outlast the node's run, also with a data directory. Peers that [Node.Disconnect]
// has hung up on are left alone until [Node.Connect]. Each peer that is found and not
// connected is reported by [EventPeerFound]. [TopicDiscovery] does the same for the
// members of a topic.
func WithRendezvous(namespace string, n int) Option {
	return option{"WithRendezvous", func(c *config) error {
		switch {
		case checkRoom(namespace) != nil:
			return checkRoom(namespace)
		case n < 1 || n > maxMeet:
			return fmt.Errorf("%d peers for %s: it must be 1 to %d", n, quoted(namespace), maxMeet)
		case slices.ContainsFunc(c.rendezvous, func(r Rendezvous) bool { return r.Namespace == namespace }):
			return fmt.Errorf("the namespace %s is given twice", quoted(namespace))
		}
		c.rendezvous = append(slices.Clip(c.rendezvous), Rendezvous{namespace, n})
		return nil
	}}
}

// PubSub.

// WithoutPubSub switches pubsub off: [Node.Publish] and [Node.Subscribe] return
// [ErrDisabled]. It conflicts with [WithMaxMessageSize], [WithPeerScoring] and
// [WithPubSubOptions].
func WithoutPubSub() Option { return toggle("WithoutPubSub", func(c *config) { c.noPubSub = true }) }

// WithMaxMessageSize sets how many bytes a pubsub message may take on the wire,
// overriding the default of 1 MiB. The message's data may take 1 KiB less (a
// little more than that with an RSA identity of 4096 bits), and the topic's name less. All
// nodes of the network need the same limit: a peer that receives a larger
// message resets the stream.
func WithMaxMessageSize(n int) Option {
	return option{"WithMaxMessageSize", func(c *config) error {
		if n < 2*messageOverhead || n > 1<<30 {
			return fmt.Errorf("%d bytes: it must be %d to %d", n, 2*messageOverhead, 1<<30)
		}
		c.maxMessageSize = n
		return nil
	}}
}

// WithRelayedPubSub lets topics use relayed connections with limits, for messages
// that take up to maxBytes on the wire, of which a message takes 1 KiB besides its
// data. Larger ones are not sent over them: [Node.Publish] returns [ErrTooLarge] if
// they would reach too few peers otherwise, and those sent on for others are counted
// as unsent. By default topics do not use such connections at all, as in
// gossipsub, because a relay ends them after 128 KiB or 2 minutes, by default, and
// counts what topics say about themselves too. Both sides need the option. Relayed
// connections without limits carry all messages in any case.
func WithRelayedPubSub(maxBytes int) Option {
	return option{"WithRelayedPubSub", func(c *config) error {
		if maxBytes < messageOverhead {
			return fmt.Errorf("%d bytes: it must be at least %d, which a message takes besides its data", maxBytes, messageOverhead)
		}
		c.relayedPubSub = maxBytes
		return nil
	}}
}

// WithPeerScoring makes the node score its pubsub peers, overriding the default of
// not; bounds on what a peer may send hold in any case. Peers lose points for invalid
// signatures, floods of control messages, topics beyond the bounds, malformed and
// oversized messages, and floods of repetitions, and gain some for messages that
// they deliver first. A peer with less than 0 leaves the mesh, and one with less
// than -100 is graylisted: nothing of it is heard, and nothing is sent to it, until
// its score recovers. See [Status].Scores, [EventPeerGraylisted] and
// [FindingGraylisted].
//
// It conflicts with pubsub.WithPeerScore in [WithPubSubOptions].
func WithPeerScoring(s Scoring) Option {
	return option{"WithPeerScoring", func(c *config) error {
		if err := s.check(); err != nil {
			return err
		}
		c.scoring = &s
		return nil
	}}
}

// WithPubSubTrace writes an account of what pubsub does to w, overriding the default
// of none: a line of JSON for each message that is published, received, sent,
// rejected or delivered, and each change of the mesh, in the form of gossipsub's
// JSON tracer. It is for finding out why a message did not arrive; the lines name
// peers and topics, and hold no data of messages. Writing does not hold up messages: when
// 16,384 lines wait for w, the oldest are dropped, and a line says how many. The
// first error ends the trace, with a warning in the log.
func WithPubSubTrace(w io.Writer) Option {
	return option{"WithPubSubTrace", func(c *config) error {
		if isNil(w) {
			return errors.New("the writer is nil; leave the option out for no trace")
		}
		c.pubsubTrace = w
		return nil
	}}
}

// Logging and metrics.

// WithLogger sets the logger, overriding the default of none: a library is
// silent unless asked. The node logs changes of its state at level Info, each
// round of an outage at Debug, and never a key. The underlying libraries have
// their own process-wide logging, which this does not affect.
//
// A handler that does not return holds up nothing for more than 100 milliseconds:
// 1,024 lines wait for it, further ones are dropped, and a line says how many once it
// returns. [Node.Close] waits 5 seconds for it. Handle is called by one goroutine.
func WithLogger(l *slog.Logger) Option {
	return option{"WithLogger", func(c *config) error {
		if l == nil {
			return errors.New("the logger is nil; leave the option out for silence")
		}
		c.logger = l
		return nil
	}}
}

// WithMetrics sets where the node registers its metrics, all named p2pnode_…,
// overriding the default of nowhere. They carry the label peer_id, so that any
// number of nodes can share a registerer. [Node.Close] unregisters them.
func WithMetrics(reg prometheus.Registerer) Option {
	return option{"WithMetrics", func(c *config) error {
		if isNil(reg) {
			return errors.New("the registerer is nil; leave the option out for no metrics")
		}
		c.metrics = reg
		return nil
	}}
}

// Escape hatches.

// WithLibp2pOptions adds options for libp2p.New, for what has no option here.
// What they set replaces the node's own part: transports (those of the same
// protocol), security, connection manager, peerstore, resource manager. An
// option here that configures a replaced part conflicts, such as [WithLimits]
// with a resource manager. An address factory is applied to the listen
// addresses before the announced ones are chosen, and a connection gater is
// asked after the list of bans. Libp2p closes what it is given when the node
// closes. Identity, listen addresses, relays and the key of a private network
// have options here, and are errors in this one.
func WithLibp2pOptions(opts ...libp2p.Option) Option {
	opts = slices.Clone(opts)
	return option{"WithLibp2pOptions", func(c *config) error {
		if err := checkNoneNil(opts); err != nil {
			return err
		}
		all := slices.Concat(c.libp2pOptions, opts)
		theirs, err := nethost.Probe(all)
		switch {
		case err != nil:
			return err
		case slices.ContainsFunc([]any{theirs.ConnectionGater, theirs.ConnManager, theirs.Peerstore, theirs.ResourceManager}, func(part any) bool { return part != nil && isNil(part) }):
			return errors.New("the connection gater, connection manager, peerstore or resource manager is a nil pointer; leave it out")
		case theirs.PeerKey != nil:
			return errors.New("set the identity with WithIdentity, WithIdentityFile or WithDataDir, not with libp2p.Identity")
		case len(theirs.ListenAddrs) > 0:
			return errors.New("set the listen addresses with WithListenAddrs, not with libp2p.ListenAddrs")
		case theirs.PSK != nil:
			return errors.New("set the key of a private network with WithPrivateNetwork, not with libp2p.PrivateNetwork")
		case theirs.EnableAutoRelay:
			return errors.New("name relays with WithAutoRelay, not with libp2p.EnableAutoRelay")
		}
		c.libp2pOptions = all
		return nil
	}}
}

// WithDHTOptions adds options for the DHT, or with [WithIPFS] for both DHTs.
// They apply after the node's own.
func WithDHTOptions(opts ...dht.Option) Option {
	opts = slices.Clone(opts)
	return option{"WithDHTOptions", func(c *config) error {
		if err := checkNoneNil(opts); err != nil {
			return err
		}
		c.dhtOptions = slices.Concat(c.dhtOptions, opts)
		return nil
	}}
}

// WithPubSubOptions adds options for pubsub. They apply after the node's own. An
// inspector of RPCs replaces the one that bounds the messages that wait for
// validation (see [Limits]) and what control messages contain.
func WithPubSubOptions(opts ...pubsub.Option) Option {
	opts = slices.Clone(opts)
	return option{"WithPubSubOptions", func(c *config) error {
		if err := checkNoneNil(opts); err != nil {
			return err
		}
		c.pubsubOptions = slices.Concat(c.pubsubOptions, opts)
		return nil
	}}
}
