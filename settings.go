package p2pnode

import (
	"maps"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Settings are what a set of options comes to: what was given, the defaults, and
// what follows from both. [Describe] returns them. They hold no secret, share
// nothing with the options, and marshal to JSON and back.
type Settings struct {
	// Given has the names of the options that were given, each once, in order of
	// their first appearance. Of options that replace each other, such as
	// [WithIdentity] and [WithIdentityFile], only the last is in it.
	Given []string `json:"given,omitempty"`

	// Network is the name of [WithNetwork]; "ipfs" with [WithIPFS].
	Network string `json:"network"`
	// Public is true with [WithIPFS]: the node joins the public network.
	Public bool `json:"public"`
	// PrivateNetwork is a fingerprint of the key of [WithPrivateNetwork], the same
	// as in [Status]; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`

	// ID is the peer ID, where the options hold the key: with [WithIdentity] and
	// [WithIdentityString]. It is empty for a key in a file, which is not
	// looked at, and for a fresh one.
	ID peer.ID `json:"id,omitempty"`
	// IdentityFile is the path of [WithIdentityFile].
	IdentityFile string `json:"identityFile,omitempty"`
	// DataDir is the path of [WithDataDir].
	DataDir string `json:"dataDir,omitempty"`

	// ListenAddrs are the addresses that the node will bind, those of
	// [WithListenAddrs] or the default ones; nil with [WithoutListening].
	ListenAddrs []ma.Multiaddr `json:"listenAddrs,omitempty"`
	// PartialListen is true with [WithPartialListen].
	PartialListen bool `json:"partialListen"`
	// AnnounceAddrs are those of [WithAnnounceAddrs]; nil for the addresses that
	// the node listens on.
	AnnounceAddrs []ma.Multiaddr `json:"announceAddrs,omitempty"`
	// Transports are those enabled.
	Transports []Transport `json:"transports"`
	// Security are the protocols for TCP and WebSocket, the preferred one first.
	Security []Security `json:"security"`
	// UserAgent is what the node calls itself toward its peers.
	UserAgent string `json:"userAgent"`

	// ConnsLow and ConnsHigh are the watermarks of [WithConnLimits].
	ConnsLow  int `json:"connsLow"`
	ConnsHigh int `json:"connsHigh"`
	// Limits are those of [WithLimits], all calls of it added up. A zero field
	// stands for its default, which for some depends on the machine.
	Limits Limits `json:"limits"`

	// DHT is false with [WithoutDHT]; the fields below are empty then.
	DHT bool `json:"dht"`
	// DHTMode is that of [WithDHTMode], or what fits the network.
	DHTMode DHTMode `json:"dhtMode,omitempty"`
	// DHTProtocols are the protocol IDs of the DHT.
	DHTProtocols []protocol.ID `json:"dhtProtocols,omitempty"`
	// Validators are the namespaces of [WithValidator], sorted, without those
	// that every node has.
	Validators []string `json:"validators,omitempty"`
	// Datastore is true with [WithDatastore].
	Datastore bool `json:"datastore"`

	// MinPeers is that of [WithMinPeers], or its default: 1 where something says
	// where to find peers, otherwise 0.
	MinPeers int `json:"minPeers"`
	// Bootstrap are the peers of [WithBootstrapPeers] and [WithBootstrapAddrs], or
	// those of the public network with [WithIPFS] alone.
	Bootstrap []peer.AddrInfo `json:"bootstrap,omitempty"`
	// Persistent are those of [WithPersistentPeers].
	Persistent []peer.AddrInfo `json:"persistent,omitempty"`
	// Allowed are those of [WithAllowedPeers]; nil when all are.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Banned are those of [WithBannedPeers].
	Banned []peer.ID `json:"banned,omitempty"`

	// MDNS is true with [WithMDNS].
	MDNS bool `json:"mdns"`
	// MDNSService is the service name on the LAN; empty without mDNS.
	MDNSService string `json:"mdnsService,omitempty"`

	// Relay is false with [WithoutRelay]: the node then neither dials through
	// relays nor is reached through them.
	Relay bool `json:"relay"`
	// AutoRelays are the relays of [WithAutoRelay].
	AutoRelays []peer.AddrInfo `json:"autoRelays,omitempty"`
	// RelayService is true with [WithRelayService].
	RelayService bool `json:"relayService"`
	// RelayLimits are those of the relay service. A zero field stands for its
	// default, and all are zero without the service.
	RelayLimits RelayLimits `json:"relayLimits,omitzero"`
	// HolePunching is true with [WithHolePunching].
	HolePunching bool `json:"holePunching"`
	// PortMapping is true with [WithPortMapping].
	PortMapping bool `json:"portMapping"`
	// Reachability is what the node takes for known from the start: that of
	// [WithReachability], private with [WithAutoRelay] alone, and otherwise
	// unknown, which AutoNAT may change.
	Reachability network.Reachability `json:"reachability"`

	// PubSub is false with [WithoutPubSub]; MaxMessageSize is 0 then.
	PubSub bool `json:"pubsub"`
	// MaxMessageSize is the limit of a pubsub message in bytes.
	MaxMessageSize int `json:"maxMessageSize,omitempty"`

	// Logging is true with [WithLogger].
	Logging bool `json:"logging"`
	// Metrics is true with [WithMetrics].
	Metrics bool `json:"metrics"`
}

// Describe returns the settings that [New] would start a node with, and what it
// would find wrong with the options, as [ValidateOptions] does; the Settings are
// empty then. It starts nothing and looks at no files.
func Describe(opts ...Option) (Settings, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return Settings{}, err
	}
	return cfg.settings(), nil
}

// settings are the effective settings, none of them shared with the config.
func (c *config) settings() Settings {
	listen, _ := c.listenAddrs()
	s := Settings{
		Given:          slices.Clone(c.given),
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
		UserAgent:      c.userAgent,
		ConnsLow:       c.connLow,
		ConnsHigh:      c.connHigh,
		Limits:         c.limits,
		DHT:            !c.noDHT,
		DHTProtocols:   c.dhtProtocols(),
		Validators:     slices.Sorted(maps.Keys(c.validators)),
		Datastore:      c.datastore != nil,
		MinPeers:       c.effectiveMinPeers(),
		Bootstrap:      addrs.Merge(c.bootstrapPeers()...),
		Persistent:     addrs.Merge(c.persistent...),
		Allowed:        slices.Clone(c.allowed),
		Banned:         slices.Clone(c.banned),
		MDNS:           c.mdns,
		Relay:          !c.noRelay,
		AutoRelays:     addrs.Merge(c.autoRelays...),
		RelayService:   c.relayService,
		RelayLimits:    c.relayLimits,
		HolePunching:   c.holePunching,
		PortMapping:    c.portMapping,
		Reachability:   c.effectiveReachability(),
		PubSub:         !c.noPubSub,
		Logging:        c.has("WithLogger"),
		Metrics:        c.metrics != nil,
	}
	if c.key != nil {
		s.ID, _ = PeerID(c.key) // the option has made sure that it has one
	}
	if s.DHT {
		s.DHTMode = c.effectiveDHTMode()
	}
	if s.MDNS {
		s.MDNSService = c.mdnsServiceName()
	}
	if s.PubSub {
		s.MaxMessageSize = c.maxMessageSize
	}
	return s
}
