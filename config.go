package p2pnode

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"regexp"
	"runtime/debug"
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
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/lan"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// DHTMode says whether a node answers other nodes' DHT queries. [WithDHTMode]
// sets it.
type DHTMode string

// The DHT modes. The default is [DHTModeAutoServer], or [DHTModeAuto] with
// [WithIPFS].
const (
	// DHTModeAutoServer ("auto-server") serves unless the node is known to be
	// unreachable from outside (see [WithReachability] and [WithAutoRelay]).
	DHTModeAutoServer DHTMode = "auto-server"
	// DHTModeAuto ("auto") serves once the node is known to be reachable from
	// outside. On a LAN or a private network that never happens.
	DHTModeAuto DHTMode = "auto"
	// DHTModeServer ("server") always serves.
	DHTModeServer DHTMode = "server"
	// DHTModeClient ("client") never serves.
	DHTModeClient DHTMode = "client"
)

var allDHTModes = []DHTMode{DHTModeAutoServer, DHTModeAuto, DHTModeServer, DHTModeClient}

// Profile is what a node is for: a list of options in a word, for [WithProfile].
type Profile string

// The profiles.
const (
	// ProfileServer ("server") is a node that everybody can dial and that serves the
	// others: WithReachability(network.ReachabilityPublic),
	// WithDHTMode([DHTModeServer]), [WithRelayService], [WithAutoNAT],
	// WithConnLimits(768, 1024).
	ProfileServer Profile = "server"
	// ProfileDesktop ("desktop") is a node behind a home router, which gets through
	// by itself: [WithAutoNAT], [WithRelayDiscovery], [WithHolePunching] and
	// [WithPortMapping], as with [WithNATTraversal].
	ProfileDesktop Profile = "desktop"
	// ProfilePhone ("phone") is a node that serves nobody and saves its battery:
	// WithDHTMode([DHTModeClient]), WithConnLimits(12, 24),
	// WithBootstrapPause(5*time.Minute), [WithRelayDiscovery] and [WithHolePunching].
	ProfilePhone Profile = "phone"
	// ProfileLAN ("lan") is a node that meets the others on its LAN and needs nobody
	// outside: [WithMDNS], WithDHTMode([DHTModeServer]), [WithoutRelay].
	ProfileLAN Profile = "lan"
)

var allProfiles = []Profile{ProfileServer, ProfileDesktop, ProfilePhone, ProfileLAN}

// config is what the options fill in. It is private to [New]: a part receives
// the few values it needs. A field at its zero value is unset.
type config struct {
	// given holds the names of the options given, in order of their first
	// appearance, whatever their values: an explicit default conflicts like any
	// other value.
	given []string

	profile Profile // "": none

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
	announceExtra []ma.Multiaddr
	noAnnounce    []netip.Prefix
	transports    []Transport // nil: the defaults, fewer with a private network
	browsers      bool
	security      []Security
	tls           *tls.Config // nil: none given
	tlsCert       string      // "": no files
	tlsKey        string
	connLow       int
	connHigh      int
	dialTimeout   time.Duration // 0: libp2p's
	userAgent     string
	limits        Limits

	dhtMode     DHTMode // "": derived
	noDHT       bool
	accelerated bool
	validators  map[string]record.Validator
	signed      []string // namespaces
	datastore   datastore.Batching

	tickets           []*ticketContent
	ticketPeers       []peer.AddrInfo // those of the tickets
	bootstrap         []peer.AddrInfo
	persistent        []peer.AddrInfo
	allowed           []peer.ID // nil: all
	banned            []peer.ID
	minPeers          int // -1: derived
	reprovideInterval time.Duration
	recordLifetime    time.Duration
	keepAlive         time.Duration // 0: off
	bootstrapPause    time.Duration // 0: keeper.RoundMax
	bootstrapDNS      []ma.Multiaddr

	mdns        bool
	mdnsService string // "": from the network's name

	rendezvous []Rendezvous

	noRelay      bool
	autoRelays   []peer.AddrInfo
	relayService bool
	relayLimits  RelayLimits
	findRelays   bool
	autoNAT      bool
	relayPeers   []peer.ID // who may make reservations, with relayAccess; nil: all
	relayAccess  func(peer.ID, ma.Multiaddr) bool
	holePunching bool
	portMapping  bool
	reachability network.Reachability

	noPubSub       bool
	maxMessageSize int
	relayedPubSub  int
	pubsubTrace    io.Writer
	scoring        *Scoring // nil: off

	logger  *slog.Logger
	metrics prometheus.Registerer

	libp2pOptions []libp2p.Option
	dhtOptions    []dht.Option
	pubsubOptions []pubsub.Option

	// afterPhase is for tests only: it may fail New after the named phase.
	afterPhase func(phase string) error
}

// maxMeet bounds how many members of a group a node keeps connected.
const maxMeet = 128

// The values in the tables of defaults, docs/defaults.md and doc.go.
const (
	defaultNetwork        = "p2pnode"
	defaultConnLow        = 160
	defaultConnHigh       = 192
	defaultMaxMessageSize = 1 << 20
	publishWait           = 5 * time.Second
	messageOverhead       = gossip.MessageOverhead
	// subscriptionBuffer is how many messages wait for Next by default.
	subscriptionBuffer = 1024
	// leastRecords is the default bound of provider records, and that of value
	// records, on a small machine.
	leastRecords = 64 << 20
)

// defaultConfig holds all default values.
func defaultConfig() *config {
	return &config{
		network:           defaultNetwork,
		security:          []Security{SecurityTLS, SecurityNoise},
		connLow:           defaultConnLow,
		connHigh:          defaultConnHigh,
		userAgent:         defaultUserAgent(),
		minPeers:          -1,
		reprovideInterval: kad.AnnounceInterval,
		recordLifetime:    kad.RecordLifetime,
		maxMessageSize:    defaultMaxMessageSize,
		logger:            slog.New(slog.DiscardHandler),
	}
}

// has reports whether an option was given.
func (c *config) has(option string) bool { return slices.Contains(c.given, option) }

// give records that an option was given. Of options that set the same value,
// only the last counts.
func (c *config) give(option string) {
	for _, group := range replacing {
		if slices.Contains(group, option) {
			c.given = slices.DeleteFunc(c.given, func(o string) bool { return slices.Contains(group, o) })
		}
	}
	if !c.has(option) {
		c.given = append(c.given, option)
	}
}

// replacing lists the groups of options that set the same value.
var replacing = [][]string{
	{"WithIdentity", "WithIdentityFile", "WithIdentityString"},
}

// keyOption replaces WithPrivateNetwork in a text by WithTicket if that is where
// the key of the private network comes from.
func (c *config) keyOption(text string) string {
	if c.psk == nil || c.has("WithPrivateNetwork") {
		return text
	}
	return strings.ReplaceAll(text, "WithPrivateNetwork", "WithTicket")
}

// namespaces yields those of DHT records that options add.
func (c *config) namespaces(yield func(string) bool) {
	for _, list := range []iter.Seq[string]{maps.Keys(c.validators), slices.Values(c.signed)} {
		for namespace := range list {
			if !yield(namespace) {
				return
			}
		}
	}
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

// dhtProtocols are the protocols that the DHT speaks: two where kubo nodes have
// two, for the Internet and the LAN; none without a DHT.
func (c *config) dhtProtocols() []protocol.ID {
	switch {
	case c.noDHT:
		return nil
	case c.usesAminoDHT():
		return []protocol.ID{"/ipfs/kad/1.0.0", "/ipfs/lan/kad/1.0.0"}
	default:
		return []protocol.ID{protocol.ID(c.protocolPrefix()) + "/kad/1.0.0"}
	}
}

// effectiveDHTMode is the mode of [WithDHTMode], or the network's default.
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

// browserTransports are those of [WithBrowserTransports].
var browserTransports = []Transport{TransportWebTransport, TransportWebRTCDirect}

// enabledTransports are those of [WithTransports], or the network's defaults, and
// those of [WithBrowserTransports].
func (c *config) enabledTransports() []Transport {
	list := c.chosenTransports()
	if c.browsers && c.psk == nil {
		for _, t := range browserTransports {
			if !slices.Contains(list, t) {
				list = append(slices.Clip(list), t)
			}
		}
	}
	return list
}

func (c *config) chosenTransports() []Transport {
	switch {
	case c.transports != nil:
		return c.transports
	case c.psk != nil:
		return []Transport{TransportTCP, TransportWebSocket}
	default:
		return []Transport{TransportTCP, TransportQUIC, TransportWebSocket}
	}
}

// listenAddrs returns the addresses to listen on, and whether they are the
// defaults, which may include an IP version that this machine lacks.
func (c *config) listenAddrs() (list []ma.Multiaddr, defaults bool) {
	if c.noListen {
		return nil, false
	}
	if c.listen != nil {
		return slices.Concat(c.listen, c.browserAddrs()), false
	}
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		for _, t := range c.enabledTransports() {
			list = append(list, ma.StringCast(ip+t.anyPort()))
			if t == TransportWebSocket && c.hasCertificate() {
				list = append(list, ma.StringCast(ip+"/tcp/0/tls/ws"))
			}
		}
	}
	return list, true
}

// browserAddrs are the addresses that WithBrowserTransports adds to those of
// WithListenAddrs: on the ports of QUIC, for each transport that has none there.
func (c *config) browserAddrs() []ma.Multiaddr {
	if !c.browsers {
		return nil
	}
	var list []ma.Multiaddr
	for _, t := range browserTransports {
		if slices.ContainsFunc(c.listen, func(a ma.Multiaddr) bool { return addrs.KindOf(a) == addrs.Kind(t) }) {
			continue
		}
		for _, a := range c.listen {
			if addrs.KindOf(a) == addrs.QUIC {
				port := a[: len(a)-1 : len(a)-1] // without /quic-v1
				list = append(list, port.Encapsulate(ma.StringCast(t.onUDP())))
			}
		}
	}
	return list
}

// transportKinds are the enabled transports as the host names them.
func (c *config) transportKinds() []addrs.Kind {
	var kinds []addrs.Kind
	for _, t := range c.enabledTransports() {
		kinds = append(kinds, addrs.Kind(t))
	}
	return kinds
}

// securityProtocols are those of [WithSecurity] as the host names them.
func (c *config) securityProtocols() []nethost.Security {
	var list []nethost.Security
	for _, s := range c.security {
		list = append(list, nethost.Security(s))
	}
	return list
}

// hasCertificate reports whether the options bring a certificate to listen with.
func (c *config) hasCertificate() bool { return c.tlsCert != "" || givesCertificate(c.tls) }

// pubsubBytes bounds the pubsub messages that wait: in one queue, and in all.
func (c *config) pubsubBytes() (queue, total int64) {
	queue = cmp.Or(c.limits.PubSubQueue, max(8<<20, 4*int64(c.maxMessageSize)))
	return queue, cmp.Or(c.limits.PubSub, max(limits.Memory()/32, 4*queue))
}

// recordBytes bounds the records of others: those of providers, and values.
func (c *config) recordBytes() (providers, values int64) {
	most := max(limits.Memory()/32, leastRecords)
	return cmp.Or(c.limits.ProviderRecords, most), cmp.Or(c.limits.ValueRecords, most)
}

// effectiveMinPeers returns the minimum of [WithMinPeers], or 1 if the options set
// where to find peers.
func (c *config) effectiveMinPeers() int {
	if c.minPeers >= 0 {
		return c.minPeers
	}
	if c.looksForPeers() {
		return 1
	}
	return 0
}

// effectiveReachability is that of [WithReachability]. Otherwise it is to be found
// out with AutoNAT, and private with relays alone: whoever names relays knows it,
// and nothing would ever find it out.
func (c *config) effectiveReachability() network.Reachability {
	if c.reachability == network.ReachabilityUnknown && len(c.autoRelays) > 0 && !c.autoNAT {
		return network.ReachabilityPrivate
	}
	return c.reachability
}

// relayAdmits returns who may make reservations at the relay service; nil means
// all may.
func (c *config) relayAdmits() func(peer.ID, ma.Multiaddr) bool {
	switch peers, may := c.relayPeers, c.relayAccess; {
	case peers == nil:
		return may
	default:
		return func(id peer.ID, a ma.Multiaddr) bool {
			return slices.Contains(peers, id) || may != nil && may(id, a)
		}
	}
}

// looksForPeers reports whether the options set where to find peers.
func (c *config) looksForPeers() bool {
	return len(c.bootstrapPeers())+len(c.bootstrapDNS) > 0 || len(c.persistent) > 0 || c.mdns
}

// bootstrapPeers are the configured ones, or on the public network its own.
func (c *config) bootstrapPeers() []peer.AddrInfo {
	if len(c.ticketPeers)+len(c.bootstrap)+len(c.bootstrapDNS) == 0 && c.ipfs {
		return dht.GetDefaultBootstrapPeerAddrInfos()
	}
	if len(c.ticketPeers) > 0 {
		return addrs.Merge(slices.Concat(c.bootstrap, c.ticketPeers)...)
	}
	return c.bootstrap
}

// plainLabel matches network names that are valid in a DNS label; others are
// hashed.
var plainLabel = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// mdnsServiceName is the mDNS service name of the node's network.
func (c *config) mdnsServiceName() string {
	switch {
	case c.mdnsService != "":
		return c.mdnsService
	case c.ipfs:
		return lan.StandardService
	case plainLabel.MatchString(c.network):
		return fmt.Sprintf("_p2pnode-%s._udp", c.network)
	default:
		return fmt.Sprintf("_p2pnode-%s._udp", shortHash(c.network))
	}
}

// defaultUserAgent is "p2pnode" with the module's version, if the build knows
// it.
func defaultUserAgent() string {
	const module = "github.com/go-p2pnode/p2pnode"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == module && m.Version != "" && m.Version != "(devel)" {
				return "p2pnode/" + m.Version
			}
		}
	}
	return "p2pnode"
}

// shortHash returns a short name for any string.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
