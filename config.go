package p2pnode

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"

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
)

// config is what the options fill in. It is private to New: a part receives
// the few values it needs. A field that stays at its zero value is unset.
type config struct {
	network string
	ipfs    bool
	psk     pnet.PSK

	key          crypto.PrivKey
	identityFile string
	dataDir      string

	listen        []ma.Multiaddr // nil: one per default transport and IP version
	noListen      bool
	partialListen bool
	announce      []ma.Multiaddr
	transports    []Transport // nil: the defaults, fewer with a private network
	security      []Security
	connLow       int
	connHigh      int
	userAgent     string
	limits        Limits

	dhtMode    DHTMode // "": derived
	noDHT      bool
	validators map[string]record.Validator
	datastore  datastore.Batching

	bootstrap  []peer.AddrInfo
	persistent []peer.AddrInfo
	allowed    []peer.ID // nil: all
	blocked    []peer.ID
	minPeers   int // -1: derived

	mdns        bool
	mdnsService string // "": from the network's name

	noRelay      bool
	autoRelays   []peer.AddrInfo
	relayService bool
	relayLimits  RelayLimits
	holePunching bool
	portMapping  bool
	reachability network.Reachability

	noPubSub       bool
	maxMessageSize int

	logger  *slog.Logger
	metrics prometheus.Registerer

	libp2pOptions []libp2p.Option
	dhtOptions    []dht.Option
	pubsubOptions []pubsub.Option

	// afterPhase is for tests alone: it may fail New after the named phase.
	afterPhase func(phase string) error
}

// The defaults that stand in the table of defaults in doc.go and README.md.
const (
	defaultNetwork        = "p2pnode"
	defaultConnLow        = 160
	defaultConnHigh       = 192
	defaultMaxMessageSize = 1 << 20
)

// defaultConfig is the only place with default values.
func defaultConfig() *config {
	return &config{
		network:        defaultNetwork,
		security:       []Security{SecurityNoise, SecurityTLS},
		connLow:        defaultConnLow,
		connHigh:       defaultConnHigh,
		userAgent:      defaultUserAgent(),
		minPeers:       -1,
		maxMessageSize: defaultMaxMessageSize,
		logger:         slog.New(slog.DiscardHandler),
	}
}

// newConfig applies the options in order and checks the result. It returns
// all problems at once.
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

// validateDials checks that the peers which the node is told to dial have an
// address that it can dial.
func (c *config) validateDials(fail func(option, format string, args ...any)) {
	can := func(a ma.Multiaddr) bool {
		switch kind := addrs.KindOf(a); kind {
		case addrs.Unknown: // a name that stands for addresses, or somebody's own transport
			return true
		case addrs.Circuit:
			return !c.noRelay
		default:
			return slices.Contains(c.enabledTransports(), Transport(kind))
		}
	}
	for option, peers := range map[string][]peer.AddrInfo{
		"WithBootstrapPeers": c.bootstrap, "WithPersistentPeers": c.persistent, "WithAutoRelay": c.autoRelays,
	} {
		for _, p := range peers {
			if slices.ContainsFunc(p.Addrs, can) {
				continue
			}
			way := "name another address, or the transport with WithTransports"
			if c.psk != nil {
				way = "name a TCP or WebSocket address: the others cannot carry the key of WithPrivateNetwork"
			}
			fail(option, "%s has no address that the transports %v can dial, only %v; %s", p.ID, c.enabledTransports(), p.Addrs, way)
		}
	}
}

// validate checks the relations between options. Each option has checked its
// own value already.
func (c *config) validate() []error {
	var errs []error
	fail := func(option, format string, args ...any) {
		errs = append(errs, optionErrorf(option, format, args...))
	}

	if c.ipfs {
		if c.network != defaultNetwork {
			fail("WithIPFS", "the public network has its own protocol names, so WithNetwork(%q) cannot apply; drop one of the two (WithNetwork(\"ipfs\") meets kubo and js peers on a network of your own)", c.network)
		}
		if c.psk != nil {
			fail("WithIPFS", "no peer of the public network has your key of WithPrivateNetwork; drop one of the two")
		}
	}
	if c.usesAminoDHT() && len(c.validators) > 0 {
		fail("WithValidator", "a DHT with the protocol prefix /ipfs accepts /pk and /ipns records only; drop WithValidator, or name a network of your own with WithNetwork")
	}

	if c.psk != nil {
		for _, t := range c.transports {
			if !t.canPrivate() {
				fail("WithPrivateNetwork", "%s cannot carry a pre-shared key, so WithTransports must not name it; TCP and WebSocket can", t)
			}
		}
		for _, a := range c.listen {
			if t := Transport(addrs.KindOf(a)); t.known() && !t.canPrivate() {
				fail("WithPrivateNetwork", "%s cannot carry a pre-shared key, so WithListenAddrs must not name %s; listen on /ip4/0.0.0.0/tcp/<port>, with /ws behind it for WebSocket", t, a)
			}
		}
	}
	for _, a := range c.listen {
		t := Transport(addrs.KindOf(a))
		if c.psk != nil && t.known() && !t.canPrivate() {
			continue // said above
		}
		if !slices.Contains(c.enabledTransports(), t) {
			fail("WithListenAddrs", "%s needs the transport %s, which is not enabled; add it with WithTransports(%s)", a, t, t.constant())
		}
	}
	if c.noListen {
		if c.listen != nil {
			fail("WithoutListening", "WithListenAddrs names addresses to listen on; drop one of the two")
		}
		if c.partialListen {
			fail("WithPartialListen", "there is nothing to listen on with WithoutListening; drop one of the two")
		}
		if c.mdns {
			fail("WithMDNS", "there is no address to announce with WithoutListening; drop one of the two")
		}
		if c.portMapping {
			fail("WithPortMapping", "there is no port to map with WithoutListening; drop one of the two")
		}
	}

	if c.mdns && c.listen != nil && !slices.ContainsFunc(c.listen, announcedByMDNS) {
		fail("WithMDNS", "it announces TCP and QUIC addresses only, and WithListenAddrs names none; add one, such as /ip4/0.0.0.0/tcp/0")
	}

	if c.noRelay {
		if c.holePunching {
			fail("WithHolePunching", "hole punching is arranged over a relayed connection; drop WithoutRelay")
		}
		if len(c.autoRelays) > 0 {
			fail("WithAutoRelay", "a reservation needs the relay client; drop WithoutRelay")
		}
		if c.relayService {
			fail("WithRelayService", "WithoutRelay switches relaying off altogether; drop one of the two")
		}
	}
	if len(c.autoRelays) > 0 && c.reachability == network.ReachabilityPublic {
		fail("WithAutoRelay", "a node that says it is reachable, with WithReachability(network.ReachabilityPublic), makes no reservations; drop one of the two")
	}

	if c.noDHT {
		if c.ipfs {
			fail("WithoutDHT", "the public network is its DHT; drop WithIPFS or WithoutDHT")
		}
		for name, set := range map[string]bool{
			"WithValidator":  len(c.validators) > 0,
			"WithDatastore":  c.datastore != nil,
			"WithDHTOptions": len(c.dhtOptions) > 0,
			"WithDHTMode":    c.dhtMode != "",
		} {
			if set {
				fail(name, "it configures the DHT that WithoutDHT switches off; drop one of the two")
			}
		}
	}
	if c.noPubSub {
		if len(c.pubsubOptions) > 0 {
			fail("WithPubSubOptions", "it configures the pubsub that WithoutPubSub switches off; drop one of the two")
		}
		if c.maxMessageSize != defaultMaxMessageSize {
			fail("WithMaxMessageSize", "it configures the pubsub that WithoutPubSub switches off; drop one of the two")
		}
	}
	if c.limits.Conns > 0 && c.limits.Conns < 2*c.connHigh {
		fail("WithLimits", "%d connections in all are less than twice the %d at which WithConnLimits starts to trim: new ones would be refused instead of old ones trimmed; raise the limit, or lower the other one", c.limits.Conns, c.connHigh)
	}
	if c.minPeers > c.connHigh {
		fail("WithMinPeers", "%d peers are more than the %d connections at which WithConnLimits starts to trim; raise the limit or lower the minimum", c.minPeers, c.connHigh)
	}
	c.validateAccess(fail)
	c.validateDials(fail)
	slices.SortStableFunc(errs, func(a, b error) int { return cmpErrors(a, b) })
	return errs
}

// announcedByMDNS reports whether mDNS tells others of an address: it leaves
// out those that are for browsers.
func announcedByMDNS(a ma.Multiaddr) bool {
	k := addrs.KindOf(a)
	return k == addrs.TCP || k == addrs.QUIC
}

// cmpErrors orders the findings of validate by option, because some of them
// come out of a map.
func cmpErrors(a, b error) int {
	var x, y *OptionError
	if errors.As(a, &x) && errors.As(b, &y) && x.Option != y.Option {
		if x.Option < y.Option {
			return -1
		}
		return 1
	}
	return 0
}

// usesAminoDHT reports whether the DHT speaks /ipfs/kad/1.0.0, for which the
// DHT itself insists on its standard records.
func (c *config) usesAminoDHT() bool { return c.ipfs || c.network == "ipfs" }

// protocolPrefix is what the DHT's protocol starts with.
func (c *config) protocolPrefix() string {
	if c.ipfs {
		return "/ipfs"
	}
	return "/" + c.network
}

// effectiveDHTMode is the mode of WithDHTMode, or else what fits the network.
func (c *config) effectiveDHTMode() DHTMode {
	switch {
	case c.dhtMode != "":
		return c.dhtMode
	case c.ipfs:
		return DHTModeAuto
	default:
		return DHTModeAutoServer
	}
}

// enabledTransports are those of WithTransports, or else the defaults that
// fit the network.
func (c *config) enabledTransports() []Transport {
	switch {
	case c.transports != nil:
		return c.transports
	case c.psk != nil:
		return []Transport{TransportTCP, TransportWebSocket}
	default:
		return []Transport{TransportTCP, TransportQUIC, TransportWebSocket}
	}
}

// listenAddrs are the addresses to listen on, and whether they are the
// defaults: those may lack an IP version that this machine does not have.
func (c *config) listenAddrs() (list []ma.Multiaddr, defaults bool) {
	if c.noListen {
		return nil, false
	}
	if c.listen != nil {
		return c.listen, false
	}
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		for _, t := range c.enabledTransports() {
			list = append(list, ma.StringCast(ip+t.anyPort()))
		}
	}
	return list, true
}

// effectiveMinPeers is the minimum of WithMinPeers: by default one, when there
// is somebody to look for.
func (c *config) effectiveMinPeers() int {
	if c.minPeers >= 0 {
		return c.minPeers
	}
	if c.looksForPeers() {
		return 1
	}
	return 0
}

// looksForPeers reports whether the node was told where to find others.
func (c *config) looksForPeers() bool {
	return len(c.bootstrapPeers()) > 0 || len(c.persistent) > 0 || c.mdns
}

// bootstrapPeers are the configured ones, and on the public network its own
// ones when none are configured.
func (c *config) bootstrapPeers() []peer.AddrInfo {
	if len(c.bootstrap) == 0 && c.ipfs {
		return dht.GetDefaultBootstrapPeerAddrInfos()
	}
	return c.bootstrap
}

// plainLabel matches the network names that can stand in a DNS label as they
// are; the others are hashed.
var plainLabel = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// mdnsServiceName is the name under which the node and others of its network
// meet on the LAN.
func (c *config) mdnsServiceName() string {
	switch {
	case c.mdnsService != "":
		return c.mdnsService
	case c.ipfs:
		return standardMDNSService
	case plainLabel.MatchString(c.network):
		return fmt.Sprintf("_p2pnode-%s._udp", c.network)
	default:
		return fmt.Sprintf("_p2pnode-%s._udp", shortHash(c.network))
	}
}
