package p2pnode

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Option configures a [Node]. Options apply in the order given: one that "sets"
// a value overrides an earlier one of its name, one that "adds" accumulates.
// Slices given to an option are copied, a nil Option is skipped, and one value
// serves any number of nodes.
type Option interface{ apply(*config) error }

// option is the one implementation of Option: the name appears in its errors.
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

// toggle is an option without a value.
func toggle(name string, set func(*config)) Option {
	return option{name, func(c *config) error {
		set(c)
		return nil
	}}
}

// ValidateOptions reports what [New] would find wrong with the options, without
// starting anything: all problems at once, each an [*OptionError], joined.
// [OptionErrors] takes them apart. It does not look at files or ports.
func ValidateOptions(opts ...Option) error {
	_, err := newConfig(opts)
	return err
}

// newConfig applies the options in order and checks the result. It returns
// all problems at once: those of single options first, in the order given,
// then those between options, in the order of the tables in validate.go.
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
	if err := errors.Join(append(errs, cfg.validate()...)...); err != nil {
		return nil, err
	}
	return cfg, nil
}

// The network.

// WithNetwork sets the name of the application's network, overriding the
// default of "p2pnode". Peers of different networks may connect, but they
// never mix in the DHT (protocol /<name>/kad/1.0.0), in rendezvous, which lives
// in the DHT, or on the LAN (the mDNS service name). Letters, digits and -_./
// are allowed, up to 128 characters. WithNetwork("ipfs") gives a DHT that kubo
// and js-libp2p peers on a network of your own understand, and reserves the
// names that begin with "ipfs/"; the public network is [WithIPFS], with which it
// cannot be combined.
func WithNetwork(name string) Option {
	return option{"WithNetwork", func(c *config) error {
		switch {
		case !networkName.MatchString(name) || len(name) > 128:
			return fmt.Errorf("%q is not a network name: use letters, digits and -_./, neither starting nor ending with a slash, at most 128 characters", name)
		case strings.HasPrefix(name, "ipfs/"):
			return fmt.Errorf("%q would mix with the network \"ipfs\", whose DHT on the LAN is /ipfs/lan; choose a name that does not begin with \"ipfs/\"", name)
		}
		c.network = name
		return nil
	}}
}

// WithIPFS joins the public IPFS network: the Amino DHT and beside it the DHT
// of the LAN, the network's bootstrap peers unless others are configured, and
// the standard mDNS service name if [WithMDNS] is given. Off by default, because
// a node on a public network serves strangers. It cannot be combined with
// [WithNetwork], [WithPrivateNetwork], [WithValidator] or [WithoutDHT].
func WithIPFS() Option { return toggle("WithIPFS", func(c *config) { c.ipfs = true }) }

// WithPrivateNetwork sets the 32-byte pre-shared key of a private network: a
// peer without it cannot get past the handshake. Off by default. Only TCP and
// WebSocket can carry it, so the other transports are off then, and naming one
// is an error. [LoadOrCreateSwarmKey] reads the key from a swarm.key file, and
// PrivateNetwork in [Status] is its fingerprint. Specification:
// github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md.
func WithPrivateNetwork(psk pnet.PSK) Option {
	psk = slices.Clone(psk)
	return option{"WithPrivateNetwork", func(c *config) error {
		if len(psk) != pskSize {
			return fmt.Errorf("the key has %d bytes, not %d; LoadOrCreateSwarmKey reads a swarm.key file, and DecodeSwarmKey its content", len(psk), pskSize)
		}
		if !slices.ContainsFunc(psk, func(b byte) bool { return b != 0 }) {
			return errors.New("every byte of the key is 0: it was never filled in")
		}
		c.psk = psk
		return nil
	}}
}

// Identity and storage.

// WithIdentity sets the private key that the node's peer ID is derived from,
// overriding the default of a fresh Ed25519 key. Of WithIdentity,
// [WithIdentityFile] and [WithIdentityString] the last one given counts.
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
// default of a fresh key at each start. The file is created, with mode 0600 and
// an Ed25519 key, when it does not exist, and is never written again. One that
// others may read, or that does not hold a key, fails [New] and stays untouched;
// a mounted secret of mode 0440 is accepted. [WithIdentity] tells which option
// counts.
func WithIdentityFile(path string) Option {
	return option{"WithIdentityFile", func(c *config) error {
		if path == "" {
			return errors.New("the path is empty")
		}
		c.key, c.identityFile = nil, path
		return nil
	}}
}

// WithIdentityString sets the private key from its text form, the base64 of
// the marshaled key as [EncodeKey] makes it and as kubo keeps it, overriding the
// default of a fresh key. [WithIdentity] tells which option counts.
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

// WithDataDir sets the directory in which the node keeps what it needs again
// after a restart, overriding the default of none. It is created with mode 0700
// if absent, and locked: [New] fails while another node has it, in this process
// or another, when it cannot be written to, and when everybody can write to it.
// The identity lives in the file identity.key there, made at the first start,
// unless [WithIdentity], [WithIdentityFile] or [WithIdentityString] gives another.
//
// Peers that were connected directly for 5 minutes are saved every 10 minutes
// (the first ones after half a minute, within a minute), and all that are
// connected at Close: at most 100, of them 20 of one IPv4 /16 or IPv6 /32, each
// for a week. At the next start the node dials them beside its bootstrap peers;
// when it was given none and no [WithMinPeers], until one of them is connected.
// The bans of [Node.BanPeer] and [Node.BanSubnet] are kept here too.
//
// A damaged file of these is set aside, never replaced, and reported in Warnings
// of [Status] and by [Node.Diagnose]; the node starts without what it held, which
// for bans means that those peers are let in. A damaged identity, in contrast, is
// an error. A file that cannot be read for now is reported in the same way and
// left as it is: what would replace it is not saved, and BanPeer or Close
// returns that. The lock ends with Close, and with the process.
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

// WithListenAddrs sets the addresses to listen on, in the multiaddr notation,
// overriding the default of every enabled transport on a free port of all IPv4
// and IPv6 interfaces. Each address must bind, or [New] fails and says which one
// did not and why; [WithPartialListen] relaxes that. Each needs its transport,
// see [WithTransports]. It cannot be combined with [WithoutListening].
func WithListenAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithListenAddrs", func(c *config) error {
		list, err := parseAddrs(addresses, "WithoutListening is the way not to listen", checkListenAddr)
		if err != nil {
			return err
		}
		c.listen = list
		return nil
	}}
}

// WithoutListening makes a node that dials and is not dialed: it opens no
// listening port. Others can still reach it through a relay, see
// [WithAutoRelay]. Options that need a port conflict with it: [WithListenAddrs],
// [WithPartialListen], [WithAnnounceAddrs], [WithMDNS] and [WithPortMapping].
func WithoutListening() Option {
	return toggle("WithoutListening", func(c *config) { c.noListen = true })
}

// WithPartialListen accepts that some, but not all, of the addresses of
// [WithListenAddrs] do not bind. Those that did not are in ListenErrors of
// [Status] and logged as warnings. Off by default, because a node that listens
// on half of what was asked for is found out late.
func WithPartialListen() Option {
	return toggle("WithPartialListen", func(c *config) { c.partialListen = true })
}

// WithAnnounceAddrs sets the addresses that the node tells others, overriding
// the default of those it listens on: for a node behind a forwarded port or a
// name. Relayed addresses are still announced beside them.
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

// WithTransports sets the transports, overriding the default of
// [TransportTCP], [TransportQUIC] and [TransportWebSocket] (without QUIC with
// [WithPrivateNetwork], which it cannot carry).
func WithTransports(transports ...Transport) Option {
	transports = slices.Clone(transports)
	return option{"WithTransports", func(c *config) error {
		if len(transports) == 0 {
			return errors.New("no transport given")
		}
		for _, t := range transports {
			if !t.known() {
				return fmt.Errorf("%q is not a transport: choose of %s", string(t), quoteAll(allTransports))
			}
		}
		c.transports = slices.Compact(slices.Sorted(slices.Values(transports)))
		return nil
	}}
}

// WithSecurity sets the security protocols of TCP and WebSocket connections in
// order of preference, overriding the default of [SecurityTLS] and then
// [SecurityNoise], which is libp2p's own: with AES in hardware TLS takes half
// the CPU. Without TCP and WebSocket it is an error, because the other
// transports bring their own security.
func WithSecurity(protocols ...Security) Option {
	protocols = slices.Clone(protocols)
	return option{"WithSecurity", func(c *config) error {
		if len(protocols) == 0 {
			return errors.New("no protocol given: a connection without one would have no identity")
		}
		for i, s := range protocols {
			if s != SecurityNoise && s != SecurityTLS {
				return fmt.Errorf("%q is not a security protocol: choose of %q and %q", string(s), SecurityTLS, SecurityNoise)
			}
			if slices.Contains(protocols[:i], s) {
				return fmt.Errorf("%q is named twice", s)
			}
		}
		c.security = slices.Clone(protocols)
		return nil
	}}
}

// WithUserAgent sets the name that the node gives itself toward its peers,
// overriding the default of "p2pnode" with the module's version if known. It has
// 1 to 256 characters.
func WithUserAgent(s string) Option {
	return option{"WithUserAgent", func(c *config) error {
		if s == "" || len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%q: it must have 1 to 256 characters, none of them a control character", s)
		}
		c.userAgent = s
		return nil
	}}
}

// WithReachability sets whether others can dial this node, public or private,
// overriding the default of finding that out (AutoNAT), which on a private
// network never comes to a result. A public node makes no reservations, so
// public conflicts with [WithAutoRelay], and it listens, so it conflicts with
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

// WithPortMapping asks the router for a port on its public address, by UPnP
// or NAT-PMP. Off by default, because it changes the router's settings.
func WithPortMapping() Option {
	return toggle("WithPortMapping", func(c *config) { c.portMapping = true })
}

// Limits, and who is let in.

// WithConnLimits sets the watermarks of the connection manager, overriding the
// default of 160 and 192: above high, connections of little use are closed
// until low remain. Connections younger than 20 seconds and protected peers
// are spared.
func WithConnLimits(low, high int) Option {
	return option{"WithConnLimits", func(c *config) error {
		if low <= 0 || high <= low || high > limits.Max {
			return fmt.Errorf("low %d and high %d: they must be 0 < low < high <= %d", low, high, limits.Max)
		}
		c.connLow, c.connHigh = low, high
		return nil
	}}
}

// WithLimits sets the limits of libp2p's resource manager, field by field: a
// zero field of [Limits] keeps its default, or the value of an earlier
// WithLimits. What a limit refuses is counted in [Status] and by [WithMetrics],
// told to the logger the first time (but for Memory), and the error on this side
// names the limit. On a network of one's own, private and loopback addresses are
// not limited per IP, as a cluster often stands behind one.
func WithLimits(l Limits) Option {
	return option{"WithLimits", func(c *config) error {
		if err := limits.Limits(l).Check(); err != nil {
			return err
		}
		c.limits = Limits(limits.Limits(l).Or(limits.Limits(c.limits)))
		return nil
	}}
}

// WithAllowedPeers adds peers that the node has to do with, overriding the
// default of all. With it, nobody else is dialed, accepted, relayed for or
// heard on a topic. [Node.Allow] and [Node.Disallow] change it while the node
// runs. Bootstrap peers, persistent peers and relays that are not among them are
// an error, and so are peers of [WithBannedPeers].
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

// WithBannedPeers adds peers that the node has nothing to do with, for good:
// they are neither dialed nor accepted, relayed for, or heard on a topic.
// [Node.BanPeer] does the same while the node runs, also for a time, and
// [Node.UnbanPeer] ends both.
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

// Finding peers, and staying connected.

// WithBootstrapPeers adds peers through which the node enters its network and
// comes back to it. All are dialed at start, and again, with growing delays,
// whenever fewer peers are connected than [WithMinPeers] asks for; with enough
// peers those that are missing are dialed after a minute and then at distances
// that grow to 10 minutes. The node's own ID among them is left out, so that one
// list serves all nodes. See [ParsePeers] for the text form.
func WithBootstrapPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithBootstrapPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.bootstrap })
}

// WithBootstrapAddrs is [WithBootstrapPeers] for addresses in the multiaddr
// notation, each ending in the peer's ID: /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…
func WithBootstrapAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithBootstrapAddrs", func(c *config) error {
		if len(addresses) == 0 {
			return errors.New("no address given")
		}
		peers, err := ParsePeers(addresses...)
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

// WithPersistentPeers adds peers that the node keeps connected: each is dialed
// at start and whenever it is lost, again and again with jittered delays that
// grow from 5 seconds to 10 minutes, and is never trimmed. A connection that
// stands for less than a minute counts as a failed dial. Unlike bootstrap
// peers, which are there to enter the network, they are wanted for themselves.
// [Node.AddPersistentPeers] and [Node.RemovePersistentPeers] change them while
// the node runs, and [Status] lists them.
func WithPersistentPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithPersistentPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.persistent })
}

// addPeers is an option that adds peers to a list of the config.
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

// WithMinPeers sets how many connected peers the node wants at least: below
// that it dials its bootstrap peers again, and [Node.WaitReady] waits. It
// overrides the default of 1 with bootstrap peers, persistent peers or mDNS, and
// 0 without any of them. With 0, bootstrap peers are dialed only while the DHT's
// routing table is empty, and without a DHT not at all.
func WithMinPeers(n int) Option {
	return option{"WithMinPeers", func(c *config) error {
		if n < 0 {
			return fmt.Errorf("%d is negative", n)
		}
		c.minPeers = n
		return nil
	}}
}

// WithMDNS finds the peers of the network on the LAN and is found by them, by
// multicast DNS. Off by default, because it tells everybody on the LAN that the
// node is there. The service name comes from [WithNetwork]; [WithMDNSService]
// sets another. A failure to start is an error from [New]. It announces TCP and
// QUIC addresses, so it needs one to listen on. Specification:
// github.com/libp2p/specs/blob/master/discovery/mdns.md.
func WithMDNS() Option { return toggle("WithMDNS", func(c *config) { c.mdns = true }) }

// WithMDNSService is [WithMDNS] with a service name of its own, such as
// "_myapp._udp", overriding the default that comes from [WithNetwork].
// "_p2p._udp" is what other implementations use.
func WithMDNSService(name string) Option {
	return option{"WithMDNSService", func(c *config) error {
		if !mdnsName.MatchString(name) {
			return fmt.Errorf("%q is not a service name: it looks like \"_myapp._udp\", at most 63 characters before the dot", name)
		}
		c.mdns, c.mdnsService = true, name
		return nil
	}}
}

// Relays and NATs.

// WithoutRelay switches the relay client off: the node neither dials through
// relays nor is reached through them. [WithAutoRelay], [WithRelayService] and
// [WithHolePunching] conflict with it.
func WithoutRelay() Option { return toggle("WithoutRelay", func(c *config) { c.noRelay = true }) }

// WithAutoRelay adds relays at which the node keeps reservations, so that
// others reach it through them, and announces the addresses that follow. It
// says that the node is not reachable otherwise: unless [WithReachability]
// says more, its reachability is private, and in [DHTModeAutoServer] it is a
// DHT client. Specification: github.com/libp2p/specs/tree/master/relay.
func WithAutoRelay(relays ...peer.AddrInfo) Option {
	return addPeers("WithAutoRelay", relays, func(c *config) *[]peer.AddrInfo { return &c.autoRelays })
}

// WithRelayService lets others reserve a place at this node and be reached
// through it, at once and whatever the node's own reachability. Off by default,
// because it spends the node's bandwidth on others. [WithRelayLimits] bounds
// that.
func WithRelayService() Option {
	return toggle("WithRelayService", func(c *config) { c.relayService = true })
}

// WithRelayLimits is [WithRelayService] with limits of its own, overriding
// libp2p's defaults, which [RelayLimits] names.
func WithRelayLimits(l RelayLimits) Option {
	return option{"WithRelayLimits", func(c *config) error {
		if err := l.check(); err != nil {
			return err
		}
		c.relayService, c.relayLimits = true, l
		return nil
	}}
}

// WithHolePunching lets two nodes behind NATs that are connected through a
// relay try to get a direct connection, both ways (DCUtR). Off by default,
// because it makes a node dial addresses that strangers name. Specification:
// github.com/libp2p/specs/blob/master/relay/DCUtR.md.
func WithHolePunching() Option {
	return toggle("WithHolePunching", func(c *config) { c.holePunching = true })
}

// The DHT.

// WithDHTMode sets the mode of the DHT, overriding the default of
// [DHTModeAutoServer], which with [WithIPFS] is [DHTModeAuto]: the public network
// asks its members not to serve before they know that they are reachable.
func WithDHTMode(mode DHTMode) Option {
	return option{"WithDHTMode", func(c *config) error {
		if !slices.Contains(allDHTModes, mode) {
			return fmt.Errorf("%q is not a mode: choose of %s", string(mode), quoteAll(allDHTModes))
		}
		c.dhtMode = mode
		return nil
	}}
}

// WithoutDHT switches the DHT off, and with it the methods for content, records,
// and rendezvous, which return [ErrDisabled]. The options that configure the DHT
// conflict with it.
func WithoutDHT() Option { return toggle("WithoutDHT", func(c *config) { c.noDHT = true }) }

// WithValidator adds a validator for DHT records whose key starts with
// /<namespace>/, beside those for /pk and /ipns. Without one for its
// namespace a record is refused. Every node of the network needs the same ones.
// The network "ipfs" accepts no others.
func WithValidator(namespace string, v record.Validator) Option {
	return option{"WithValidator", func(c *config) error {
		switch {
		case namespace == "" || strings.ContainsRune(namespace, '/'):
			return fmt.Errorf("%q is not a namespace: for keys like /app/name it is \"app\"", namespace)
		case namespace == "pk" || namespace == "ipns":
			return fmt.Errorf("records of %q have their own validator, which cannot be replaced", namespace)
		case isNil(v):
			return fmt.Errorf("the validator of %q is nil", namespace)
		case c.validators[namespace] != nil:
			return fmt.Errorf("%q has a validator already", namespace)
		}
		if c.validators == nil {
			c.validators = make(map[string]record.Validator)
		}
		c.validators[namespace] = v
		return nil
	}}
}

// WithDatastore sets where the DHT keeps the records that it holds for others,
// overriding the default of memory. The store stays the caller's: close it
// after the node.
func WithDatastore(ds datastore.Batching) Option {
	return option{"WithDatastore", func(c *config) error {
		if isNil(ds) {
			return errors.New("the datastore is nil; leave the option out for one in memory")
		}
		c.datastore = ds
		return nil
	}}
}

// PubSub.

// WithoutPubSub switches pubsub off: [Node.Publish] and [Node.Subscribe] return
// [ErrDisabled]. [WithMaxMessageSize] and [WithPubSubOptions] conflict with it.
func WithoutPubSub() Option { return toggle("WithoutPubSub", func(c *config) { c.noPubSub = true }) }

// WithMaxMessageSize sets how many bytes a pubsub message may take on the
// wire, overriding the default of 1 MiB. The message's data may be 1 KiB less.
// Every node of the network needs the same limit: a peer that gets a larger
// message cuts the stream.
func WithMaxMessageSize(n int) Option {
	return option{"WithMaxMessageSize", func(c *config) error {
		if n < 2*messageOverhead || n > 1<<30 {
			return fmt.Errorf("%d bytes: it must be %d to %d", n, 2*messageOverhead, 1<<30)
		}
		c.maxMessageSize = n
		return nil
	}}
}

// Logging and metrics.

// WithLogger sets where the node logs, overriding the default of nowhere: a
// library is silent unless asked. A change of state is logged at level Info, a
// round of an outage at Debug, and a key never. The libraries underneath have
// their own process-wide logging, which this does not touch.
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
// number of nodes can share a registerer, and are unregistered by Close.
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
// What they set takes the place of the node's own part: transports (those of
// the same protocol), security, connection manager, peerstore, resource
// manager. An option here that configures a part so replaced, such as
// [WithLimits] beside a resource manager, is a conflict. An address factory is
// applied to the listening addresses before the announced ones are chosen, and a
// connection gater is asked after the list of bans. Libp2p closes what it is
// given when the node closes. Identity, listen addresses, relays and the key of
// a private network have options here, and are an error in this one.
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
		case theirs.PeerKey != nil:
			return errors.New("the identity of a node is set by WithIdentity, WithIdentityFile or WithDataDir, not by libp2p.Identity")
		case len(theirs.ListenAddrs) > 0:
			return errors.New("the addresses to listen on are set by WithListenAddrs, not by libp2p.ListenAddrs")
		case theirs.PSK != nil:
			return errors.New("the key of a private network is set by WithPrivateNetwork, not by libp2p.PrivateNetwork")
		case theirs.EnableAutoRelay:
			return errors.New("reservations at relays are set by WithAutoRelay, not by libp2p.EnableAutoRelay")
		}
		c.libp2pOptions = all
		return nil
	}}
}

// WithDHTOptions adds options for the DHT, or with [WithIPFS] for both. They
// apply after the node's own ones.
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

// WithPubSubOptions adds options for pubsub. They apply after the node's own
// ones.
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
