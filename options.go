package p2pnode

import (
	"errors"
	"log/slog"
	"slices"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
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
