package p2pnode

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
)

// optionRow is a good or a bad value of an option.
type optionRow struct {
	name string // of the option
	opt  Option
	// What has to be true of the config with a good value, for which fields the
	// option sets; nil for a bad value, whose text TestGoldenOptions keeps.
	check func(*config) bool
}

func somePeer(port string) peer.AddrInfo {
	id, _ := peer.Decode(someID)
	return peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/" + port)}}
}

const (
	someID   = "12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE"
	someAddr = "/ip4/192.0.2.1/tcp/4001/p2p/" + someID
)

// aTicket returns the text of a ticket for a network, the public one if the name is
// empty: with the key if it is wanted, otherwise with its fingerprint.
func aTicket(tb testing.TB, network string, psk []byte, p peer.AddrInfo, opts ...TicketOption) string {
	tb.Helper()
	ticket, err := newTicket(network, psk, p, opts)
	mustNot(tb, err)
	return ticket.Text()
}

func someKey(tb testing.TB) crypto.PrivKey {
	tb.Helper()
	key, err := GenerateKey(KeyEd25519)
	mustNot(tb, err)
	return key
}

func optionRows(t *testing.T) []optionRow {
	key := someKey(t)
	text, err := EncodeKey(key)
	mustNot(t, err)
	psk := bytes.Repeat([]byte{7}, 32)
	reg := prometheus.NewRegistry()
	logger := slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))
	ds := dssync.MutexWrap(datastore.NewMapDatastore())
	long := strings.Repeat("x", 300)
	noID := peer.AddrInfo{Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}}
	junk := peer.AddrInfo{ID: "junk", Addrs: somePeer("1").Addrs}
	textID := peer.AddrInfo{ID: peer.ID(somePeer("1").ID.String()), Addrs: somePeer("1").Addrs}
	noAddr := peer.AddrInfo{ID: somePeer("1").ID}
	roots := x509.NewCertPool()
	mismatched := tlsPair(t, "one.test")
	mismatched.PrivateKey = tlsPair(t, "two.test").PrivateKey
	return []optionRow{
		{name: "WithNetwork", opt: WithNetwork("acme/chat-1.0_x"), check: func(c *config) bool { return c.network == "acme/chat-1.0_x" }},
		{name: "WithNetwork", opt: WithNetwork("")},
		{name: "WithNetwork", opt: WithNetwork("/acme")},
		{name: "WithNetwork", opt: WithNetwork("acme/")},
		{name: "WithNetwork", opt: WithNetwork("a//b")},
		{name: "WithNetwork", opt: WithNetwork("a b")},
		{name: "WithNetwork", opt: WithNetwork(long)},
		{name: "WithNetwork", opt: WithNetwork("ipfs/lan")},
		{name: "WithIPFS", opt: WithIPFS(), check: func(c *config) bool { return c.ipfs }},
		{name: "WithPrivateNetwork", opt: WithPrivateNetwork(psk), check: func(c *config) bool { return bytes.Equal(c.psk, psk) }},
		{name: "WithPrivateNetwork", opt: WithPrivateNetwork(psk[:31])},
		{name: "WithPrivateNetwork", opt: WithPrivateNetwork(nil)},
		{name: "WithPrivateNetwork", opt: WithPrivateNetwork(make([]byte, 32))},
		{name: "WithIdentity", opt: WithIdentity(key), check: func(c *config) bool { return c.key.Equals(key) }},
		{name: "WithIdentity", opt: WithIdentity(nil)},
		{name: "WithIdentityFile", opt: WithIdentityFile("node.key"), check: func(c *config) bool { return c.identityFile == "node.key" }},
		{name: "WithIdentityFile", opt: WithIdentityFile("")},
		{name: "WithDataDir", opt: WithDataDir("data"), check: func(c *config) bool { return c.dataDir == "data" }},
		{name: "WithDataDir", opt: WithDataDir("")},
		{name: "WithIdentityString", opt: WithIdentityString(" " + text + "\n"), check: func(c *config) bool { return c.key.Equals(key) }},
		{name: "WithIdentityString", opt: WithIdentityString("nonsense")},
		{name: "WithIdentityString", opt: WithIdentityString(text[:40])},
		{name: "WithListenAddrs", opt: WithListenAddrs("/ip4/127.0.0.1/tcp/0"), check: func(c *config) bool { return len(c.listen) == 1 }},
		{name: "WithListenAddrs", opt: WithListenAddrs()},
		{name: "WithListenAddrs", opt: WithListenAddrs("127.0.0.1:1")},
		{name: "WithListenAddrs", opt: WithListenAddrs(someAddr)},
		{name: "WithListenAddrs", opt: WithListenAddrs("/unix/run/p2p")},
		{name: "WithListenAddrs", opt: WithListenAddrs("/ip4/127.0.0.1/udp/1")},
		{name: "WithListenAddrs", opt: WithListenAddrs("/ip4/127.0.0.1/tcp/1/quic-v1")},
		{name: "WithListenAddrs", opt: WithListenAddrs("/tcp/4001")},
		{name: "WithListenAddrs", opt: WithListenAddrs("/ip4/127.0.0.1/tcp/70000")},
		{name: "WithListenAddrs", opt: WithListenAddrs("/ip4/localhost/tcp/1")},
		{name: "WithListenAddrs", opt: WithListenAddrs(someAddr + "/p2p-circuit")},
		{name: "WithoutListening", opt: WithoutListening(), check: func(c *config) bool { return c.noListen }},
		{name: "WithPartialListen", opt: WithPartialListen(), check: func(c *config) bool { return c.partialListen }},
		{name: "WithBrowserTransports", opt: WithBrowserTransports(), check: func(c *config) bool { return c.browsers && len(c.enabledTransports()) == 5 }},
		{name: "WithDialTimeout", opt: WithDialTimeout(time.Minute), check: func(c *config) bool { return c.dialTimeout == time.Minute }},
		{name: "WithDialTimeout", opt: WithDialTimeout(time.Millisecond)},
		{name: "WithDialTimeout", opt: WithDialTimeout(time.Hour)},
		{name: "WithNoAnnounce", opt: WithNoAnnounce(netip.MustParsePrefix("172.17.0.1/16")), check: func(c *config) bool {
			return slices.Equal(c.noAnnounce, []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")})
		}},
		{name: "WithNoAnnounce", opt: WithNoAnnounce()},
		{name: "WithNoAnnounce", opt: WithNoAnnounce(netip.Prefix{})},
		{name: "WithExtraAnnounceAddrs", opt: WithExtraAnnounceAddrs("/ip4/192.0.2.9/tcp/1"), check: func(c *config) bool { return len(c.announceExtra) == 1 }},
		{name: "WithExtraAnnounceAddrs", opt: WithExtraAnnounceAddrs()},
		{name: "WithExtraAnnounceAddrs", opt: WithExtraAnnounceAddrs("/ip4/0.0.0.0/tcp/1")},
		{name: "WithTLSFiles", opt: WithTLSFiles("cert.pem", "key.pem"), check: func(c *config) bool { return c.tlsCert == "cert.pem" && c.tlsKey == "key.pem" }},
		{name: "WithTLSFiles", opt: WithTLSFiles("", "key.pem")},
		{name: "WithTLSFiles", opt: WithTLSFiles("cert.pem", "")},
		{name: "WithTLSConfig", opt: WithTLSConfig(&tls.Config{RootCAs: roots}), check: func(c *config) bool { return c.tls.RootCAs == roots && !c.hasCertificate() }},
		{name: "WithTLSConfig", opt: WithTLSConfig(nil)},
		{name: "WithTLSConfig", opt: WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{{}}})},
		{name: "WithTLSConfig", opt: WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{mismatched}})},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/dns4/example.com/tcp/1"), check: func(c *config) bool { return len(c.announce) == 1 }},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs()},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs(someAddr)},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip4/0.0.0.0/tcp/4001")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip6/::/udp/4001/quic-v1")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip4/203.0.113.7/tcp/0")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip4/203.0.113.7")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip4/203.0.113.7/udp/4001")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip4/203.0.113.7/udp/4001/quic")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/p2p-circuit")},
		{name: "WithAnnounceAddrs", opt: WithAnnounceAddrs("/ip6/fe80::1/tcp/4001")},
		{name: "WithTransports", opt: WithTransports(TransportTCP, TransportTCP), check: func(c *config) bool { return slices.Equal(c.transports, []Transport{TransportTCP}) }},
		{name: "WithTransports", opt: WithTransports()},
		{name: "WithTransports", opt: WithTransports("carrier pigeon")},
		{name: "WithSecurity", opt: WithSecurity(SecurityTLS), check: func(c *config) bool { return slices.Equal(c.security, []Security{SecurityTLS}) }},
		{name: "WithSecurity", opt: WithSecurity()},
		{name: "WithSecurity", opt: WithSecurity("plaintext")},
		{name: "WithSecurity", opt: WithSecurity(SecurityTLS, SecurityTLS)},
		{name: "WithConnLimits", opt: WithConnLimits(1, 2), check: func(c *config) bool { return c.connLow == 1 && c.connHigh == 2 }},
		{name: "WithConnLimits", opt: WithConnLimits(0, 2)},
		{name: "WithConnLimits", opt: WithConnLimits(2, 2)},
		{name: "WithConnLimits", opt: WithConnLimits(-2, -1)},
		{name: "WithUserAgent", opt: WithUserAgent("acme/1"), check: func(c *config) bool { return c.userAgent == "acme/1" }},
		{name: "WithUserAgent", opt: WithUserAgent("")},
		{name: "WithUserAgent", opt: WithUserAgent(long)},
		{name: "WithUserAgent", opt: WithUserAgent("a\nb")},
		{name: "WithDHTMode", opt: WithDHTMode(DHTModeClient), check: func(c *config) bool { return c.effectiveDHTMode() == DHTModeClient }},
		{name: "WithDHTMode", opt: WithDHTMode("sometimes")},
		{name: "WithAcceleratedDHT", opt: WithAcceleratedDHT(), check: func(c *config) bool { return c.accelerated }},
		{name: "WithoutDHT", opt: WithoutDHT(), check: func(c *config) bool { return c.noDHT }},
		{name: "WithValidator", opt: WithValidator("app", record.PublicKeyValidator{}), check: func(c *config) bool { return len(c.validators) == 1 }},
		{name: "WithValidator", opt: WithValidator("", record.PublicKeyValidator{})},
		{name: "WithValidator", opt: WithValidator("a/b", record.PublicKeyValidator{})},
		{name: "WithValidator", opt: WithValidator("pk", record.PublicKeyValidator{})},
		{name: "WithValidator", opt: WithValidator("app", nil)},
		{name: "WithSignedRecords", opt: WithSignedRecords("app"), check: func(c *config) bool { return slices.Equal(c.signed, []string{"app"}) }},
		{name: "WithSignedRecords", opt: WithSignedRecords("")},
		{name: "WithSignedRecords", opt: WithSignedRecords("a/b")},
		{name: "WithSignedRecords", opt: WithSignedRecords("ipns")},
		{name: "WithDatastore", opt: WithDatastore(ds), check: func(c *config) bool { return c.datastore == ds }},
		{name: "WithDatastore", opt: WithDatastore(nil)},
		{name: "WithReprovideInterval", opt: WithReprovideInterval(time.Hour), check: func(c *config) bool { return c.reprovideInterval == time.Hour }},
		{name: "WithReprovideInterval", opt: WithReprovideInterval(time.Second)},
		{name: "WithRecordLifetime", opt: WithRecordLifetime(72 * time.Hour), check: func(c *config) bool { return c.recordLifetime == 72*time.Hour }},
		{name: "WithRecordLifetime", opt: WithRecordLifetime(time.Second)},
		{name: "WithTicket", opt: WithTicket(aTicket(t, "acme", psk, somePeer("1"), TicketWithKey())), check: func(c *config) bool {
			return c.network == "acme" && bytes.Equal(c.psk, psk) && len(c.ticketPeers) == 1 && len(c.tickets) == 1
		}},
		{name: "WithTicket", opt: WithTicket("")},
		{name: "WithTicket", opt: WithTicket(someAddr)},
		{name: "WithTicket", opt: WithTicket(aTicket(t, "acme", psk, somePeer("1"), TicketWithKey())[:90])},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers(somePeer("1")), check: func(c *config) bool { return len(c.bootstrap) == 1 }},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers()},
		{name: "WithPersistentPeers", opt: WithPersistentPeers(somePeer("1")), check: func(c *config) bool { return len(c.persistent) == 1 }},
		{name: "WithPersistentPeers", opt: WithPersistentPeers()},
		{name: "WithProfile", opt: WithProfile(ProfilePhone), check: func(c *config) bool { return c.profile == ProfilePhone }},
		{name: "WithProfile", opt: WithProfile("tablet")},
		{name: "WithProfile", opt: WithProfile("")},
		{name: "WithBootstrapPause", opt: WithBootstrapPause(time.Minute), check: func(c *config) bool { return c.bootstrapPause == time.Minute }},
		{name: "WithBootstrapPause", opt: WithBootstrapPause(time.Second - 1)},
		{name: "WithBootstrapPause", opt: WithBootstrapPause(24*time.Hour + 1)},
		{name: "WithKeepAlive", opt: WithKeepAlive(time.Second), check: func(c *config) bool { return c.keepAlive == time.Second }},
		{name: "WithKeepAlive", opt: WithKeepAlive(time.Millisecond)},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dns4/boot.test/tcp/4001", "/dns/boot.test/tcp/4001/ws", "/dns6/boot.test/udp/4001/quic-v1", "/dns4/boot.test/tcp/4001"), check: func(c *config) bool { return len(c.bootstrapDNS) == 3 }},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dns4/boot.test/tcp/443/wss", "/dns/boot.test/tcp/443/tls/ws"), check: func(c *config) bool {
			return len(c.bootstrapDNS) == 2 && c.dials(c.bootstrapDNS[0]) && c.dials(c.bootstrapDNS[1])
		}},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS()},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("boot.test:4001")},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/ip4/192.0.2.1/tcp/4001")},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dnsaddr/boot.test")},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dns4/boot.test/tcp/4001/p2p/" + somePeer("1").ID.String())},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dns4/boot.test")},
		{name: "WithBootstrapDNS", opt: WithBootstrapDNS("/dns4/boot.test/udp/4001/webrtc-direct")},
		{name: "WithLimits", opt: WithLimits(Limits{ConnsPerIP: 3}), check: func(c *config) bool { return c.limits.ConnsPerIP == 3 }},
		{name: "WithLimits", opt: WithLimits(Limits{Streams: -1})},
		{name: "WithLimits", opt: WithLimits(Limits{Streams: 100})},
		{name: "WithLimits", opt: WithLimits(Limits{StreamsPerPeer: 3})},
		{name: "WithLimits", opt: WithLimits(Limits{Memory: 1})},
		{name: "WithLimits", opt: WithLimits(Limits{ValueRecords: 1 << 20}), check: func(c *config) bool {
			providers, values := c.recordBytes()
			return values == 1<<20 && providers >= leastRecords
		}},
		{name: "WithLimits", opt: WithLimits(Limits{ValueRecords: 1})},
		{name: "WithLimits", opt: WithLimits(Limits{ConnsPerIP: 1 << 30})},
		{name: "WithLimits", opt: WithLimits(Limits{})},
		{name: "WithAllowedPeers", opt: WithAllowedPeers(somePeer("1").ID), check: func(c *config) bool { return len(c.allowed) == 1 }},
		{name: "WithAllowedPeers", opt: WithAllowedPeers()},
		{name: "WithAllowedPeers", opt: WithAllowedPeers("")},
		{name: "WithBannedPeers", opt: WithBannedPeers(somePeer("1").ID), check: func(c *config) bool { return len(c.banned) == 1 }},
		{name: "WithBannedPeers", opt: WithBannedPeers()},
		{name: "WithAllowedPeers", opt: WithAllowedPeers(textID.ID)},
		{name: "WithBannedPeers", opt: WithBannedPeers("")},
		{name: "WithBannedPeers", opt: WithBannedPeers(textID.ID)},
		{name: "WithPersistentPeers", opt: WithPersistentPeers(noID)},
		{name: "WithPersistentPeers", opt: WithPersistentPeers(noAddr)},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers(noID)},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers(noAddr)},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers(junk)},
		{name: "WithBootstrapPeers", opt: WithBootstrapPeers(textID)},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs("/ip4/0.0.0.0/tcp/4001/p2p/" + somePeer("1").ID.String())},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs("/ip6/::/udp/4001/quic-v1/p2p/" + somePeer("1").ID.String())},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs("/ip4/192.0.2.1/tcp/0/p2p/" + somePeer("1").ID.String())},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs(someAddr), check: func(c *config) bool { return len(c.bootstrap) == 1 }},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs()},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs("/ip4/192.0.2.1/tcp/1")},
		{name: "WithBootstrapAddrs", opt: WithBootstrapAddrs("nonsense", "more")},
		{name: "WithMinPeers", opt: WithMinPeers(3), check: func(c *config) bool { return c.minPeers == 3 }},
		{name: "WithMinPeers", opt: WithMinPeers(-1)},
		{name: "WithMDNS", opt: WithMDNS(), check: func(c *config) bool { return c.mdns && c.mdnsService == "" }},
		{name: "WithMDNSService", opt: WithMDNSService("_p2p._udp"), check: func(c *config) bool { return c.mdnsService == "_p2p._udp" }},
		{name: "WithMDNSService", opt: WithMDNSService("p2p")},
		{name: "WithRendezvous", opt: WithRendezvous("room", 3), check: func(c *config) bool { return slices.Equal(c.rendezvous, []Rendezvous{{"room", 3}}) }},
		{name: "WithRendezvous", opt: WithRendezvous("", 3)},
		{name: "WithRendezvous", opt: WithRendezvous("room", 0)},
		{name: "WithRendezvous", opt: WithRendezvous("room", 129)},
		{name: "WithoutRelay", opt: WithoutRelay(), check: func(c *config) bool { return c.noRelay }},
		{name: "WithAutoRelay", opt: WithAutoRelay(somePeer("1")), check: func(c *config) bool { return len(c.autoRelays) == 1 }},
		{name: "WithAutoRelay", opt: WithAutoRelay()},
		{name: "WithAutoRelay", opt: WithAutoRelay(noAddr)},
		{name: "WithRelayDiscovery", opt: WithRelayDiscovery(), check: func(c *config) bool { return c.findRelays }},
		{name: "WithRelayService", opt: WithRelayService(), check: func(c *config) bool { return c.relayService }},
		{name: "WithRelayLimits", opt: WithRelayLimits(RelayLimits{Circuits: 3}), check: func(c *config) bool { return c.relayService && c.relayLimits.Circuits == 3 }},
		{name: "WithRelayLimits", opt: WithRelayLimits(RelayLimits{Data: -1})},
		{name: "WithRelayLimits", opt: WithRelayLimits(RelayLimits{ReservationTTL: time.Minute})},
		{name: "WithRelayLimits", opt: WithRelayLimits(RelayLimits{ReservationsPerIP: 9, ReservationsPerASN: 8})},
		{name: "WithRelayPeers", opt: WithRelayPeers(otherID(t)), check: func(c *config) bool { return c.relayService && len(c.relayPeers) == 1 }},
		{name: "WithRelayPeers", opt: WithRelayPeers()},
		{name: "WithRelayAccess", opt: WithRelayAccess(func(peer.ID, ma.Multiaddr) bool { return true }), check: func(c *config) bool { return c.relayService && c.relayAccess != nil }},
		{name: "WithRelayAccess", opt: WithRelayAccess(nil)},
		{name: "WithRelayLimits", opt: WithRelayLimits(RelayLimits{Unlimited: true, Duration: time.Second})},
		{name: "WithHolePunching", opt: WithHolePunching(), check: func(c *config) bool { return c.holePunching }},
		{name: "WithAutoNAT", opt: WithAutoNAT(), check: func(c *config) bool { return c.autoNAT }},
		{name: "WithNATTraversal", opt: WithNATTraversal(), check: func(c *config) bool { return c.autoNAT && c.findRelays && c.holePunching && c.portMapping }},
		{name: "WithPortMapping", opt: WithPortMapping(), check: func(c *config) bool { return c.portMapping }},
		{name: "WithReachability", opt: WithReachability(network.ReachabilityPublic), check: func(c *config) bool { return c.reachability == network.ReachabilityPublic }},
		{name: "WithReachability", opt: WithReachability(network.ReachabilityUnknown)},
		{name: "WithoutPubSub", opt: WithoutPubSub(), check: func(c *config) bool { return c.noPubSub }},
		{name: "WithMaxMessageSize", opt: WithMaxMessageSize(1 << 16), check: func(c *config) bool { return c.maxMessageSize == 1<<16 }},
		{name: "WithMaxMessageSize", opt: WithMaxMessageSize(10)},
		{name: "WithMaxMessageSize", opt: WithMaxMessageSize(1<<30 + 1)},
		{name: "WithRelayedPubSub", opt: WithRelayedPubSub(16 << 10), check: func(c *config) bool { return c.relayedPubSub == 16<<10 }},
		{name: "WithRelayedPubSub", opt: WithRelayedPubSub(100)},
		{name: "WithPubSubTrace", opt: WithPubSubTrace(io.Discard), check: func(c *config) bool { return c.pubsubTrace == io.Discard }},
		{name: "WithPubSubTrace", opt: WithPubSubTrace(nil)},
		{name: "WithPeerScoring", opt: WithPeerScoring(ScoringLarge()), check: func(c *config) bool { return *c.scoring == ScoringLarge() }},
		{name: "WithPeerScoring", opt: WithPeerScoring(Scoring{Nodes: -1})},
		{name: "WithPeerScoring", opt: WithPeerScoring(Scoring{Rate: math.NaN()})},
		{name: "WithPeerScoring", opt: WithPeerScoring(Scoring{Rate: 2e6})},
		{name: "WithPeerScoring", opt: WithPeerScoring(Scoring{PeersPerIP: -1})},
		{name: "WithLogger", opt: WithLogger(logger), check: func(c *config) bool { return c.logger == logger }},
		{name: "WithLogger", opt: WithLogger(nil)},
		{name: "WithMetrics", opt: WithMetrics(reg), check: func(c *config) bool { return c.metrics == reg }},
		{name: "WithMetrics", opt: WithMetrics(nil)},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.Ping(false)), check: func(c *config) bool { return len(c.libp2pOptions) == 1 }},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.Ping(true), nil)},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.Identity(key))},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/1"))},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.PrivateNetwork(psk))},
		{name: "WithLibp2pOptions", opt: WithLibp2pOptions(libp2p.EnableAutoRelayWithStaticRelays([]peer.AddrInfo{somePeer("1")}))},
		{name: "WithDHTOptions", opt: WithDHTOptions(dht.Concurrency(3)), check: func(c *config) bool { return len(c.dhtOptions) == 1 }},
		{name: "WithPubSubOptions", opt: WithPubSubOptions(pubsub.WithFloodPublish(false)), check: func(c *config) bool { return len(c.pubsubOptions) == 1 }},
	}
}

func TestOptions(t *testing.T) {
	for _, row := range optionRows(t) {
		cfg := defaultConfig()
		err := row.opt.apply(cfg)
		switch {
		case row.check != nil && err != nil:
			t.Errorf("%s: %v", row.name, err)
		case row.check != nil && !row.check(cfg):
			t.Errorf("%s: no effect", row.name)
		case row.check == nil:
			for what, err := range map[string]error{"apply": err, "ValidateOptions": ValidateOptions(row.opt)} {
				if list := OptionErrors(err); len(list) != 1 || list[0].Option != row.name {
					t.Errorf("%s of a bad %s = %v, want one error of that option", what, row.name, err)
				}
			}
		}
	}
}

// Every exported option has a row with a good value in the table.
func TestEveryOptionIsInTheTable(t *testing.T) {
	good := map[string]bool{}
	for _, row := range optionRows(t) {
		good[row.name] = good[row.name] || row.check != nil
	}
	for _, name := range optionNames(t) {
		if !good[name] {
			t.Errorf("%s has no row in the table of options", name)
		}
	}
}

// optionNames are the names of all exported options.
func optionNames(t *testing.T) []string {
	files, err := filepath.Glob("*.go")
	mustNot(t, err)
	var names []string
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		mustNot(t, err)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "With") {
				names = append(names, f.Name.Name)
			}
		}
	}
	if len(names) < 40 {
		t.Fatalf("only %d options found", len(names))
	}
	return names
}

// Every field of config is changed by some option in the table, so that no
// setting exists that cannot be set or is not tested.
func TestEveryConfigFieldHasAnOption(t *testing.T) {
	exempt := map[string]string{"afterPhase": "lets tests fail New after a phase"}
	changed := map[string]bool{}
	zero := reflect.ValueOf(*defaultConfig())
	for _, row := range optionRows(t) {
		cfg := defaultConfig()
		if row.check == nil || row.opt.apply(cfg) != nil {
			continue
		}
		v := reflect.ValueOf(*cfg)
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			switch v.Field(i).Kind() {
			case reflect.Slice, reflect.Map:
				changed[name] = changed[name] || v.Field(i).Len() != zero.Field(i).Len()
			case reflect.Func:
				changed[name] = changed[name] || v.Field(i).IsNil() != zero.Field(i).IsNil()
			case reflect.Interface, reflect.Pointer:
				changed[name] = changed[name] || v.Field(i).IsNil() != zero.Field(i).IsNil() || (!v.Field(i).IsNil() && v.Field(i).Elem() != zero.Field(i).Elem())
			default:
				changed[name] = changed[name] || !v.Field(i).Equal(zero.Field(i))
			}
		}
	}
	for i := range zero.NumField() {
		name := zero.Type().Field(i).Name
		if !changed[name] && exempt[name] == "" {
			t.Errorf("no option in the table changes config.%s", name)
		}
	}
}

func TestOptionsKeepNoReferenceToTheirArguments(t *testing.T) {
	addrs := []string{"/ip4/127.0.0.1/tcp/1"}
	psk := bytes.Repeat([]byte{7}, 32)
	peers := []peer.AddrInfo{somePeer("1")}
	transports := []Transport{TransportTCP}
	listen, private, boot, trans := WithListenAddrs(addrs...), WithPrivateNetwork(psk), WithBootstrapPeers(peers...), WithTransports(transports...)
	addrs[0], psk[0], peers[0].Addrs[0], transports[0] = "nonsense", 0, nil, "nonsense"
	cfg, err := newConfig([]Option{listen, private, boot, trans})
	mustNot(t, err)
	if cfg.psk[0] != 7 || cfg.bootstrap[0].Addrs[0] == nil || cfg.transports[0] != TransportTCP {
		t.Error("an option saw a later change of its argument")
	}
	// One option value serves any number of nodes.
	again, err := newConfig([]Option{listen, private, boot, boot, trans})
	mustNot(t, err)
	again.listen[0] = nil
	if cfg.listen[0] == nil || len(again.bootstrap) != 1 {
		t.Error("two configs from one option share memory")
	}
}

func TestOptionsSetOrAdd(t *testing.T) {
	cfg, err := newConfig([]Option{
		nil,
		WithNetwork("one"), WithNetwork("two"),
		WithBootstrapAddrs(someAddr), WithBootstrapPeers(somePeer("2")),
		WithIdentityFile("x"), WithIdentity(someKey(t)),
		WithLibp2pOptions(libp2p.Ping(true)), WithLibp2pOptions(libp2p.Ping(false)),
	})
	mustNot(t, err)
	if cfg.network != "two" || cfg.identityFile != "" {
		t.Error("the last one does not count")
	}
	if len(cfg.bootstrap) != 1 || len(cfg.bootstrap[0].Addrs) != 2 || len(cfg.libp2pOptions) != 2 {
		t.Errorf("they do not add up: %v", cfg.bootstrap)
	}
	one := WithValidator("a", record.PublicKeyValidator{})
	if list := OptionErrors(ValidateOptions(one, one)); len(list) != 1 || list[0].Option != "WithValidator" {
		t.Errorf("two validators for a namespace: %v", list)
	}
	if list := OptionErrors(ValidateOptions(one, WithSignedRecords("a"))); len(list) != 1 || list[0].Option != "WithSignedRecords" {
		t.Errorf("two validators for a namespace: %v", list)
	}
}

// No error contains a secret or a part of one.
func TestErrorsHoldNoSecrets(t *testing.T) {
	text, err := EncodeKey(someKey(t))
	mustNot(t, err)
	psk := "0123456789abcdefghijklmnopqrstu"
	for _, opt := range []Option{
		WithIdentityString(text[:len(text)-8]), WithIdentityString(text + "!"), WithIdentityString(text + text),
		WithPrivateNetwork([]byte(psk)),
	} {
		err := ValidateOptions(opt)
		if err == nil {
			t.Fatal("accepted")
		}
		for _, secret := range []string{text, psk} {
			for i := 0; i+8 <= len(secret); i++ {
				if strings.Contains(err.Error(), secret[i:i+8]) {
					t.Fatalf("a secret stands in the error %q", err)
				}
			}
		}
	}
}

func TestParsePeers(t *testing.T) {
	got, err := ParsePeers(someAddr, "/ip4/192.0.2.2/tcp/1/p2p/"+someID)
	mustNot(t, err)
	if len(got) != 1 || len(got[0].Addrs) != 2 || got[0].ID.String() != someID {
		t.Errorf("ParsePeers = %v", got)
	}
	_, err = ParsePeers("x", someAddr, "/ip4/1.2.3.4/tcp/1")
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 2 {
		t.Errorf("ParsePeers with two bad addresses = %v", err)
	}
	if got, err := ParsePeers(); err != nil || got != nil {
		t.Errorf("ParsePeers of nothing = %v, %v", got, err)
	}
}
