package p2pnode

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

// Settings is the result of a set of options: what was given, the defaults, and
// what follows from both. [Describe] returns it. It holds no secret, shares
// nothing with the options, and marshals to JSON and back.
type Settings struct {
	// Given holds the names of the options given, each once, in order of their
	// first appearance. Of options that replace each other, such as
	// [WithIdentity] and [WithIdentityFile], it holds only the last.
	Given []string `json:"given,omitempty"`

	// Profile is that of [WithProfile]; empty without one. What it stands for is in the
	// other fields.
	Profile Profile `json:"profile,omitempty"`

	// Network is the name of [WithNetwork] or [WithTicket]; "ipfs" with [WithIPFS].
	Network string `json:"network"`
	// Public is true with [WithIPFS]: the node joins the public network.
	Public bool `json:"public"`
	// PrivateNetwork is a fingerprint of the key of [WithPrivateNetwork], or of
	// [WithTicket], the same as in [Status]; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`

	// ID is the peer ID if the options hold the key: with [WithIdentity] and
	// [WithIdentityString]. It is empty for a key in a file, which is not read,
	// and for a fresh key.
	ID peer.ID `json:"id,omitempty"`
	// IdentityFile is the path of [WithIdentityFile].
	IdentityFile string `json:"identityFile,omitempty"`
	// DataDir is the path of [WithDataDir].
	DataDir string `json:"dataDir,omitempty"`

	// ListenAddrs are the addresses to bind, those of [WithListenAddrs] or the
	// default ones; nil with [WithoutListening].
	ListenAddrs []ma.Multiaddr `json:"listenAddrs,omitempty"`
	// PartialListen is true with [WithPartialListen].
	PartialListen bool `json:"partialListen"`
	// AnnounceAddrs are those of [WithAnnounceAddrs]; nil means the addresses
	// that the node listens on.
	AnnounceAddrs []ma.Multiaddr `json:"announceAddrs,omitempty"`
	// ExtraAnnounceAddrs are those of [WithExtraAnnounceAddrs].
	ExtraAnnounceAddrs []ma.Multiaddr `json:"extraAnnounceAddrs,omitempty"`
	// NoAnnounce are the prefixes of [WithNoAnnounce].
	NoAnnounce []netip.Prefix `json:"noAnnounce,omitempty"`
	// Transports are the enabled ones.
	Transports []Transport `json:"transports"`
	// Security are the protocols for TCP and WebSocket, the preferred one first.
	Security []Security `json:"security"`
	// TLSCertFile and TLSKeyFile are the paths of [WithTLSFiles].
	TLSCertFile string `json:"tlsCertFile,omitempty"`
	TLSKeyFile  string `json:"tlsKeyFile,omitempty"`
	// TLSConfig is true with [WithTLSConfig].
	TLSConfig bool `json:"tlsConfig,omitempty"`
	// UserAgent is the name that the node gives its peers.
	UserAgent string `json:"userAgent"`

	// ConnsLow and ConnsHigh are the watermarks of [WithConnLimits].
	ConnsLow  int `json:"connsLow"`
	ConnsHigh int `json:"connsHigh"`
	// DialTimeout is that of [WithDialTimeout], in nanoseconds in JSON; 0 for
	// libp2p's.
	DialTimeout time.Duration `json:"dialTimeout,omitempty"`
	// Limits are those of [WithLimits], all calls merged. A zero field stands
	// for its default, which for some depends on the machine.
	Limits Limits `json:"limits"`

	// DHT is false with [WithoutDHT]; the DHT fields below are then empty.
	DHT bool `json:"dht"`
	// DHTMode is that of [WithDHTMode], or the network's default.
	DHTMode DHTMode `json:"dhtMode,omitempty"`
	// DHTProtocols are the protocol IDs of the DHT.
	DHTProtocols []protocol.ID `json:"dhtProtocols,omitempty"`
	// AcceleratedDHT is true with [WithAcceleratedDHT].
	AcceleratedDHT bool `json:"acceleratedDHT,omitempty"`
	// Validators are the namespaces of [WithValidator] and [WithSignedRecords],
	// sorted, without the built-in ones.
	Validators []string `json:"validators,omitempty"`
	// Datastore is true with [WithDatastore].
	Datastore bool `json:"datastore"`
	// ReprovideInterval is how often what is provided is announced again;
	// nanoseconds in JSON.
	ReprovideInterval time.Duration `json:"reprovideInterval,omitempty"`
	// RecordLifetime is how long the node keeps the provider records of other peers;
	// nanoseconds in JSON.
	RecordLifetime time.Duration `json:"recordLifetime,omitempty"`

	// MinPeers is that of [WithMinPeers], or its default: 1 with bootstrap
	// peers, persistent peers or mDNS, otherwise 0.
	MinPeers int `json:"minPeers"`
	// Bootstrap holds the peers of [WithBootstrapPeers], [WithBootstrapAddrs] and
	// [WithTicket], or the public network's with [WithIPFS] alone.
	Bootstrap []peer.AddrInfo `json:"bootstrap,omitempty"`
	// KeepAlive is the interval of [WithKeepAlive], in nanoseconds in JSON; 0 if
	// off.
	KeepAlive time.Duration `json:"keepAlive,omitempty"`
	// BootstrapPause is that of [WithBootstrapPause], in nanoseconds in JSON.
	BootstrapPause time.Duration `json:"bootstrapPause"`
	// BootstrapDNS holds the names of [WithBootstrapDNS].
	BootstrapDNS []ma.Multiaddr `json:"bootstrapDNS,omitempty"`
	// Persistent holds those of [WithPersistentPeers].
	Persistent []peer.AddrInfo `json:"persistent,omitempty"`
	// Allowed holds those of [WithAllowedPeers]; nil if all peers are.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Banned holds those of [WithBannedPeers].
	Banned []peer.ID `json:"banned,omitempty"`

	// MDNS is true with [WithMDNS].
	MDNS bool `json:"mdns"`
	// MDNSService is the mDNS service name; empty without mDNS.
	MDNSService string `json:"mdnsService,omitempty"`

	// Rendezvous are the namespaces of [WithRendezvous].
	Rendezvous []Rendezvous `json:"rendezvous,omitempty"`
	// Relay is false with [WithoutRelay]: the node then neither dials through
	// relays nor is reached through them.
	Relay bool `json:"relay"`
	// AutoRelays are the relays of [WithAutoRelay].
	AutoRelays []peer.AddrInfo `json:"autoRelays,omitempty"`
	// RelayService is true with [WithRelayService].
	RelayService bool `json:"relayService"`
	// RelayLimits are those of the relay service. A zero field stands for its
	// default; all are zero without the service.
	RelayLimits RelayLimits `json:"relayLimits,omitzero"`
	// RelayPeers are those of [WithRelayPeers]. They are all that may make
	// reservations, unless RelayAccess is true; nil if the option is not given.
	RelayPeers []peer.ID `json:"relayPeers,omitempty"`
	// RelayAccess is true with [WithRelayAccess].
	RelayAccess bool `json:"relayAccess,omitempty"`
	// HolePunching is true with [WithHolePunching].
	HolePunching bool `json:"holePunching"`
	// PortMapping is true with [WithPortMapping].
	PortMapping bool `json:"portMapping"`
	// RelayDiscovery is true if the node finds relays by itself, as with
	// [WithNATTraversal].
	RelayDiscovery bool `json:"relayDiscovery,omitempty"`
	// AutoNAT is true with [WithAutoNAT] and [WithNATTraversal].
	AutoNAT bool `json:"autoNAT,omitempty"`
	// Reachability is what the node assumes at its start: that of
	// [WithReachability], private with [WithAutoRelay] and without [WithAutoNAT],
	// and otherwise unknown until AutoNAT finds out.
	Reachability network.Reachability `json:"reachability"`

	// PubSub is false with [WithoutPubSub]; MaxMessageSize is then 0.
	PubSub bool `json:"pubsub"`
	// MaxMessageSize is the limit of a pubsub message on the wire, in bytes.
	MaxMessageSize int `json:"maxMessageSize,omitempty"`
	// RelayedPubSub is the limit of a message over a relayed connection with limits;
	// 0 without [WithRelayedPubSub].
	RelayedPubSub int `json:"relayedPubSub,omitempty"`
	// PubSubTrace is true with [WithPubSubTrace].
	PubSubTrace bool `json:"pubsubTrace,omitempty"`
	// Scoring is that of [WithPeerScoring]; nil without. A pubsub.WithPeerScore in
	// [WithPubSubOptions] is not known here.
	Scoring *Scoring `json:"scoring,omitempty"`

	// Logging is true with [WithLogger].
	Logging bool `json:"logging"`
	// Metrics is true with [WithMetrics].
	Metrics bool `json:"metrics"`
}

// Describe returns the settings that [New] would start a node with. If the
// options are invalid, it returns the error of [ValidateOptions] and empty
// Settings. It starts nothing and looks at no files.
func Describe(opts ...Option) (Settings, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return Settings{}, err
	}
	return cfg.settings(), nil
}

// settings returns the effective settings, sharing nothing with the config.
func (c *config) settings() Settings {
	listen, _ := c.listenAddrs()
	s := Settings{
		Given:          slices.Clone(c.given),
		Profile:        c.profile,
		Network:        c.protocolPrefix()[1:],
		Public:         c.ipfs,
		PrivateNetwork: fingerprint(c.psk),
		IdentityFile:   c.identityFile,
		DataDir:        c.dataDir,
		ListenAddrs:    slices.Clone(listen),
		PartialListen:  c.partialListen,
		AnnounceAddrs:  slices.Clone(c.announce),
		Transports:     slices.Clone(c.enabledTransports()),
		Security:       slices.Clone(c.security),
		TLSCertFile:    c.tlsCert,
		TLSKeyFile:     c.tlsKey,
		TLSConfig:      c.tls != nil,
		UserAgent:      c.userAgent,
		DialTimeout:    c.dialTimeout,
		NoAnnounce:     slices.Clone(c.noAnnounce),

		ExtraAnnounceAddrs: slices.Clone(c.announceExtra),
		ConnsLow:           c.connLow,
		ConnsHigh:          c.connHigh,
		Limits:             c.limits,
		DHT:                !c.noDHT,
		DHTProtocols:       c.dhtProtocols(),
		Validators:         slices.Sorted(c.namespaces),
		Datastore:          c.datastore != nil,
		MinPeers:           c.effectiveMinPeers(),
		KeepAlive:          c.keepAlive,
		BootstrapPause:     cmp.Or(c.bootstrapPause, keeper.RoundMax),
		Bootstrap:          addrs.Merge(c.bootstrapPeers()...),
		BootstrapDNS:       slices.Clone(c.bootstrapDNS),
		Persistent:         addrs.Merge(c.persistent...),
		Allowed:            slices.Clone(c.allowed),
		Banned:             slices.Clone(c.banned),
		MDNS:               c.mdns,
		Rendezvous:         slices.Clone(c.rendezvous),
		Relay:              !c.noRelay,
		AutoRelays:         addrs.Merge(c.autoRelays...),
		RelayService:       c.relayService,
		RelayLimits:        c.relayLimits,
		RelayPeers:         slices.Clone(c.relayPeers),
		RelayAccess:        c.relayAccess != nil,
		HolePunching:       c.holePunching,
		PortMapping:        c.portMapping,
		RelayDiscovery:     c.findRelays,
		AutoNAT:            c.autoNAT,
		Reachability:       c.effectiveReachability(),
		PubSub:             !c.noPubSub,
		Logging:            c.has("WithLogger"),
		Metrics:            c.metrics != nil,
	}
	if c.key != nil {
		s.ID, _ = PeerID(c.key) // the option has checked that it has one
	}
	if s.DHT {
		s.DHTMode, s.AcceleratedDHT = c.effectiveDHTMode(), c.accelerated
		s.ReprovideInterval, s.RecordLifetime = c.reprovideInterval, c.recordLifetime
	}
	if s.MDNS {
		s.MDNSService = c.mdnsServiceName()
	}
	if s.PubSub && c.scoring != nil {
		scoring := *c.scoring
		s.Scoring = &scoring
	}
	if s.PubSub {
		s.MaxMessageSize, s.RelayedPubSub, s.PubSubTrace = c.maxMessageSize, c.relayedPubSub, c.pubsubTrace != nil
	}
	return s
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
// those between options, in the order of the tables in conflicts.go and validate.go.
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
