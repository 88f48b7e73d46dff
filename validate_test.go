package p2pnode

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
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
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

// explicitDefaults has each option with its default value, if there is one: a
// default that is set explicitly must not count as unset.
func explicitDefaults(t *testing.T) map[string]Option {
	c := defaultConfig()
	key := someKey(t)
	text, err := EncodeKey(key)
	mustNot(t, err)
	return map[string]Option{
		"WithNetwork":            WithNetwork(c.network),
		"WithIPFS":               WithIPFS(),
		"WithPrivateNetwork":     WithPrivateNetwork([]byte(strings.Repeat("k", 32))),
		"WithIdentity":           WithIdentity(key),
		"WithIdentityFile":       WithIdentityFile("node.key"),
		"WithIdentityString":     WithIdentityString(text),
		"WithDataDir":            WithDataDir("data"),
		"WithListenAddrs":        WithListenAddrs("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"),
		"WithoutListening":       WithoutListening(),
		"WithPartialListen":      WithPartialListen(),
		"WithTLSFiles":           WithTLSFiles("cert.pem", "key.pem"),
		"WithBrowserTransports":  WithBrowserTransports(),
		"WithDialTimeout":        WithDialTimeout(15 * time.Second),
		"WithNoAnnounce":         WithNoAnnounce(netip.MustParsePrefix("172.17.0.0/16")),
		"WithExtraAnnounceAddrs": WithExtraAnnounceAddrs("/ip4/192.0.2.9/tcp/1"),
		"WithTLSConfig":          WithTLSConfig(&tls.Config{RootCAs: x509.NewCertPool()}),
		"WithAnnounceAddrs":      WithAnnounceAddrs("/ip4/192.0.2.9/tcp/1"),
		"WithTransports":         WithTransports(TransportTCP, TransportWebSocket),
		"WithSecurity":           WithSecurity(c.security...),
		"WithUserAgent":          WithUserAgent(c.userAgent),
		"WithReachability":       WithReachability(network.ReachabilityPrivate),
		"WithPortMapping":        WithPortMapping(),
		"WithConnLimits":         WithConnLimits(c.connLow, c.connHigh),
		"WithLimits":             WithLimits(Limits{Conns: 2 * c.connHigh}),
		"WithAllowedPeers":       WithAllowedPeers(somePeer("1").ID),
		"WithBannedPeers":        WithBannedPeers(otherID(t)),
		"WithBootstrapPeers":     WithBootstrapPeers(somePeer("1")),
		"WithBootstrapAddrs":     WithBootstrapAddrs(someAddr),
		"WithBootstrapDNS":       WithBootstrapDNS("/dns4/boot.test/tcp/4001"),
		"WithTicket":             WithTicket(aTicket(t, c.network, nil, somePeer("1"))),
		"WithPersistentPeers":    WithPersistentPeers(somePeer("1")),
		"WithMinPeers":           WithMinPeers(c.effectiveMinPeers()),
		"WithKeepAlive":          WithKeepAlive(time.Minute),
		"WithProfile":            WithProfile(ProfileDesktop),
		"WithBootstrapPause":     WithBootstrapPause(keeper.RoundMax),
		"WithMDNS":               WithMDNS(),
		"WithMDNSService":        WithMDNSService(c.mdnsServiceName()),
		"WithoutRelay":           WithoutRelay(),
		"WithAutoRelay":          WithAutoRelay(somePeer("1")),
		"WithRelayDiscovery":     WithRelayDiscovery(),
		"WithRelayService":       WithRelayService(),
		"WithRelayLimits":        WithRelayLimits(RelayLimits{}),
		"WithRelayPeers":         WithRelayPeers(somePeer("1").ID),
		"WithRelayAccess":        WithRelayAccess(func(peer.ID, ma.Multiaddr) bool { return true }),
		"WithHolePunching":       WithHolePunching(),
		"WithAutoNAT":            WithAutoNAT(),
		"WithNATTraversal":       WithNATTraversal(),
		"WithDHTMode":            WithDHTMode(c.effectiveDHTMode()),
		"WithAcceleratedDHT":     WithAcceleratedDHT(),
		"WithoutDHT":             WithoutDHT(),
		"WithValidator":          WithValidator("app", record.PublicKeyValidator{}),
		"WithSignedRecords":      WithSignedRecords("signed"),
		"WithReprovideInterval":  WithReprovideInterval(22 * time.Hour),
		"WithRecordLifetime":     WithRecordLifetime(48 * time.Hour),
		"WithDatastore":          WithDatastore(dssync.MutexWrap(datastore.NewMapDatastore())),
		"WithoutPubSub":          WithoutPubSub(),
		"WithRendezvous":         WithRendezvous("room", 3),
		"WithMaxMessageSize":     WithMaxMessageSize(c.maxMessageSize),
		"WithRelayedPubSub":      WithRelayedPubSub(16 << 10),
		"WithPubSubTrace":        WithPubSubTrace(io.Discard),
		"WithPeerScoring":        WithPeerScoring(ScoringSmall()),
		"WithLogger":             WithLogger(slog.New(slog.DiscardHandler)),
		"WithMetrics":            WithMetrics(prometheus.NewRegistry()),
		"WithLibp2pOptions":      WithLibp2pOptions(libp2p.Ping(true)),
		"WithDHTOptions":         WithDHTOptions(dht.Concurrency(10)),
		"WithPubSubOptions":      WithPubSubOptions(pubsub.WithFloodPublish(true)),
	}
}

func otherID(t *testing.T) peer.ID {
	id, err := PeerID(someKey(t))
	mustNot(t, err)
	return id
}

// Of all pairs of options those conflict that cannot mean anything together, in
// either order, and no others.
func TestEveryPairOfOptions(t *testing.T) {
	options := explicitDefaults(t)
	// Pairs that are refused for their values, which are those above.
	refused := map[[2]string]string{
		{"WithIPFS", "WithValidator"}:                  "WithValidator",
		{"WithIPFS", "WithSignedRecords"}:              "WithSignedRecords",
		{"WithIPFS", "WithAllowedPeers"}:               "WithIPFS", // the public bootstrap peers are not among them
		{"WithoutListening", "WithAnnounceAddrs"}:      "WithAnnounceAddrs",
		{"WithIPFS", "WithTicket"}:                     "WithTicket",
		{"WithPrivateNetwork", "WithTicket"}:           "WithTicket",
		{"WithListenAddrs", "WithTLSFiles"}:            "WithTLSFiles",
		{"WithBrowserTransports", "WithListenAddrs"}:   "WithBrowserTransports",
		{"WithExtraAnnounceAddrs", "WithoutListening"}: "WithExtraAnnounceAddrs",
	}
	for _, c := range conflicts {
		refused[[2]string{c.option, c.with}] = c.option
	}
	names := slices.Sorted(maps.Keys(options))
	for i, a := range names {
		for _, b := range names[i+1:] {
			want := refused[[2]string{a, b}] + refused[[2]string{b, a}]
			for _, opts := range [][]Option{{options[a], options[b]}, {options[b], options[a]}} {
				if a == "WithPartialListen" || b == "WithPartialListen" {
					// By itself it has nothing to say, and with WithoutListening neither.
					if a != "WithListenAddrs" && a != "WithoutListening" && b != "WithoutListening" {
						listen := options["WithListenAddrs"]
						if a == "WithTLSFiles" || b == "WithTLSFiles" {
							listen = WithListenAddrs("/ip4/0.0.0.0/tcp/443/tls/ws")
						}
						if a == "WithBrowserTransports" || b == "WithBrowserTransports" {
							listen = WithListenAddrs("/ip4/0.0.0.0/udp/0/quic-v1")
						}
						opts = append(opts, listen)
					}
				}
				if other := a + b; a == "WithAcceleratedDHT" || b == "WithAcceleratedDHT" {
					// By itself it is refused, so it cannot be with what rules out WithIPFS.
					other = strings.Replace(other, "WithAcceleratedDHT", "", 1)
					if refused[[2]string{"WithIPFS", other}]+refused[[2]string{other, "WithIPFS"}] != "" && other != "WithoutDHT" {
						if ValidateOptions(opts...) == nil || ValidateOptions(append(opts, options["WithIPFS"])...) == nil {
							t.Errorf("%s and %s are accepted", a, b)
						}
						continue
					}
					if other != "WithoutDHT" {
						opts = append(opts, options["WithIPFS"])
					}
				}
				err := ValidateOptions(opts...)
				var got string
				for _, e := range OptionErrors(err) {
					if e.Option == a || e.Option == b {
						got = e.Option
					}
					for _, name := range []string{a, b} {
						if !strings.Contains(e.Error(), name) {
							t.Errorf("%s and %s: %q does not name %s", a, b, e, name)
						}
					}
				}
				if got != want {
					t.Errorf("%s and %s: refused as %q, want %q: %v", a, b, got, want, err)
				}
			}
		}
	}
}

// The tables name options that exist, and a finding names all of them.
func TestTablesOfRelations(t *testing.T) {
	options := explicitDefaults(t)
	for _, name := range optionNames(t) {
		if options[name] == nil {
			t.Errorf("%s is not among the pairs", name)
		}
	}
	for _, c := range conflicts {
		if options[c.option] == nil || options[c.with] == nil || !strings.Contains(c.text, c.with) {
			t.Errorf("%+v: a name that is no option, or that the text lacks", c)
		}
	}
	for _, r := range relations {
		for i, name := range r.with {
			if options[name] == nil || i > 0 && !strings.Contains(r.text, name) {
				t.Errorf("%v: %s is no option, or the text lacks it: %q", r.with, name, r.text)
			}
		}
	}
}

// Every relation is reported, under the right option, and without others.
func TestEveryRelation(t *testing.T) {
	seen := make(map[string]bool)
	for _, row := range relationRows(t) {
		err := ValidateOptions(row.opts...)
		list := OptionErrors(err)
		if len(list) != 1 || list[0].Option != row.option {
			t.Errorf("%s: want one finding of %s, got %v", row.name, row.option, err)
			continue
		}
		if strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: the text lacks a value: %v", row.name, err)
		}
		for i, r := range relations {
			if r.with[0] == row.option {
				cfg := defaultConfig()
				for _, o := range row.opts {
					mustNot(t, o.apply(cfg))
				}
				r.find(cfg, func(args ...any) { seen[fmt.Sprint(i)] = true })
			}
		}
		// New returns the same error, before it starts anything.
		if n, nerr := New(testContext(t), row.opts...); n != nil || nerr == nil || nerr.Error() != err.Error() {
			t.Errorf("%s: New says %v, ValidateOptions %v", row.name, nerr, err)
		}
	}
	for i, r := range relations {
		// The public bootstrap peers are several, by name: TestEveryPairOfOptions.
		if !seen[fmt.Sprint(i)] && r.with[0] != "WithIPFS" && !slices.Equal(r.with, []string{"WithAutoRelay", "WithoutRelay"}) {
			t.Errorf("no row for the relation of %v: %s", r.with, r.text)
		}
	}
}

type relationRow struct {
	name, option string
	opts         []Option
}

// relationRows have options that break one relation each: at least one row for
// each of them.
func relationRows(t *testing.T) []relationRow {
	psk := WithPrivateNetwork([]byte(strings.Repeat("k", 32)))
	tcp, quic := WithTransports(TransportTCP), WithTransports(TransportQUIC)
	at := func(addr string) peer.AddrInfo {
		return peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{ma.StringCast(addr)}}
	}
	valid := WithValidator("app", record.PublicKeyValidator{})
	public := WithReachability(network.ReachabilityPublic)
	rows := []relationRow{
		{"a validator on the public network", "WithValidator", []Option{WithIPFS(), valid}},
		{"a crawl of a network of one's own", "WithAcceleratedDHT", []Option{WithAcceleratedDHT()}},
		{"signed records on the network ipfs", "WithSignedRecords", []Option{WithNetwork("ipfs"), WithSignedRecords("app")}},
		{"announced after the records are gone", "WithReprovideInterval", []Option{WithReprovideInterval(45 * time.Hour)}},
		{"records that do not last", "WithReprovideInterval", []Option{WithRecordLifetime(time.Hour)}},
		{"a validator on the network ipfs", "WithValidator", []Option{WithNetwork("ipfs"), valid}},
		{"pitfall 31: a key and QUIC", "WithPrivateNetwork", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1")}},
		{"a key and a shared port", "WithPrivateNetwork", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/tcp/1/ws")}},
		{"a key and WebTransport", "WithPrivateNetwork", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1/webtransport")}},
		{"a key and WebRTC", "WithPrivateNetwork", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/webrtc-direct")}},
		{"more peers by rendezvous than are kept", "WithRendezvous", []Option{WithRendezvous("a", 3), WithRendezvous("b", 3), WithConnLimits(5, 10)}},
		{"a queue smaller than a message", "WithLimits", []Option{WithLimits(Limits{PubSubQueue: 1 << 20}), WithMaxMessageSize(2 << 20)}},
		{"a queue larger than all together", "WithLimits", []Option{WithLimits(Limits{PubSub: 1 << 20})}},
		{"a key and QUIC enabled", "WithPrivateNetwork", []Option{psk, WithTransports(TransportTCP, TransportQUIC)}},
		{"a transport that is not enabled", "WithListenAddrs", []Option{tcp, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1")}},
		{"WebTransport, which is off", "WithListenAddrs", []Option{WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1/webtransport")}},
		{"a certificate for WebSocket, which is off", "WithTLSConfig", []Option{tcp, WithTLSConfig(&tls.Config{})}},
		{"certificate files for WebSocket, which is off", "WithTLSFiles", []Option{quic, WithTLSFiles("cert.pem", "key.pem")}},
		{"a certificate that nobody gets", "WithTLSFiles", []Option{WithTLSFiles("cert.pem", "key.pem"), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws")}},
		{"browsers, and no port for them", "WithBrowserTransports", []Option{WithBrowserTransports(), WithListenAddrs("/ip4/0.0.0.0/tcp/1")}},
		{"more announced and not listened on", "WithExtraAnnounceAddrs", []Option{WithoutListening(), WithExtraAnnounceAddrs("/ip4/192.0.2.1/tcp/1")}},
		{"two certificates", "WithTLSFiles", []Option{WithTLSFiles("cert.pem", "key.pem"), WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{tlsPair(t, "one.test")}})}},
		{"WebSocket with TLS and no certificate", "WithListenAddrs", []Option{WithTLSConfig(&tls.Config{RootCAs: x509.NewCertPool()}), WithListenAddrs("/ip4/0.0.0.0/tcp/443/wss")}},
		{"security for nothing", "WithSecurity", []Option{quic, WithSecurity(SecurityTLS)}},
		{"a part of nothing", "WithPartialListen", []Option{WithPartialListen()}},
		{"announced and not listened on", "WithAnnounceAddrs", []Option{WithoutListening(), WithAnnounceAddrs("/ip4/192.0.2.1/tcp/1")}},
		{"public and not listening", "WithReachability", []Option{WithoutListening(), public}},
		{"mDNS for WebSocket alone", "WithMDNS", []Option{WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws")}},
		{"mDNS without its transports", "WithMDNS", []Option{WithMDNS(), WithTransports(TransportWebSocket)}},
		{"reservations of a public node", "WithAutoRelay", []Option{WithAutoRelay(somePeer("1")), public}},
		{"fewer connections than stay untrimmed", "WithLimits", []Option{WithLimits(Limits{Conns: 19}), WithConnLimits(5, 10)}},
		{"more peers than connections", "WithMinPeers", []Option{WithMinPeers(11), WithConnLimits(5, 10)}},
		{"a name for QUIC with a key", "WithBootstrapDNS", []Option{psk, WithBootstrapDNS("/dns4/boot.test/udp/4001/quic-v1")}},
		{"a name for QUIC without QUIC", "WithBootstrapDNS", []Option{tcp, WithBootstrapDNS("/dns4/boot.test/udp/4001/quic-v1")}},
		{"reservations for a banned peer", "WithRelayPeers", []Option{WithRelayPeers(somePeer("1").ID), WithBannedPeers(somePeer("1").ID)}},
		{"reservations for a peer that is not allowed", "WithRelayPeers", []Option{WithRelayPeers(otherID(t)), WithAllowedPeers(somePeer("1").ID)}},
		{"banned and allowed", "WithBannedPeers", []Option{WithAllowedPeers(somePeer("1").ID), WithBannedPeers(somePeer("1").ID)}},
	}
	for option, with := range map[string]func(peer.AddrInfo) Option{
		"WithBootstrapPeers":  func(p peer.AddrInfo) Option { return WithBootstrapPeers(p) },
		"WithBootstrapAddrs":  func(p peer.AddrInfo) Option { return WithBootstrapAddrs(p.Addrs[0].String() + "/p2p/" + p.ID.String()) },
		"WithPersistentPeers": func(p peer.AddrInfo) Option { return WithPersistentPeers(p) },
		"WithAutoRelay":       func(p peer.AddrInfo) Option { return WithAutoRelay(p) },
	} {
		overQUIC := with(at("/ip4/192.0.2.1/udp/1/quic-v1"))
		rows = append(rows, relationRow{option + ": of a kind that no transport dials", option, []Option{with(at("/ip4/192.0.2.1/udp/1/utp"))}})
		rows = append(rows,
			relationRow{option + ": banned", option, []Option{with(somePeer("1")), WithBannedPeers(somePeer("1").ID)}},
			relationRow{option + ": not allowed", option, []Option{with(somePeer("1")), WithAllowedPeers(otherID(t))}},
			relationRow{option + ": QUIC with a key", option, []Option{overQUIC, psk}},
			relationRow{option + ": QUIC for TCP", option, []Option{overQUIC, tcp}},
		)
		if option != "WithAutoRelay" {
			byRelay := with(at("/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + otherID(t).String() + "/p2p-circuit"))
			rows = append(rows, relationRow{option + ": by a relay without the client", option, []Option{byRelay, WithoutRelay()}})
		}
	}
	key, byQUIC := []byte(strings.Repeat("k", 32)), at("/ip4/192.0.2.1/udp/1/quic-v1")
	plain := WithTicket(aTicket(t, "acme", nil, somePeer("1")))
	secret := WithTicket(aTicket(t, "acme", key, somePeer("1"), TicketWithKey()))
	marked := WithTicket(aTicket(t, "acme", key, somePeer("1")))
	amino := WithTicket(aTicket(t, "", nil, somePeer("1")))
	rows = append(rows, []relationRow{
		{"tickets of two networks", "WithTicket", []Option{plain, WithTicket(aTicket(t, "other", nil, somePeer("1")))}},
		{"a ticket with a key and one for a network without", "WithTicket", []Option{secret, plain}},
		{"a ticket of the public network and another", "WithTicket", []Option{plain, amino}},
		{"a ticket for another network", "WithTicket", []Option{plain, WithNetwork("other")}},
		{"another network than the ticket's", "WithTicket", []Option{WithNetwork("p2pnode"), plain}},
		{"a ticket and the public network", "WithTicket", []Option{plain, WithIPFS()}},
		{"a ticket with a key and the public network", "WithTicket", []Option{secret, WithIPFS()}},
		{"a ticket of the public network by itself", "WithTicket", []Option{amino}},
		{"a ticket without its key", "WithTicket", []Option{marked}},
		{"a ticket with another key", "WithTicket", []Option{secret, WithPrivateNetwork([]byte(strings.Repeat("K", 32)))}},
		{"another key before the ticket", "WithTicket", []Option{WithPrivateNetwork([]byte(strings.Repeat("K", 32))), secret}},
		{"another key than the one left out", "WithTicket", []Option{marked, WithPrivateNetwork([]byte(strings.Repeat("K", 32)))}},
		{"a key for a network without", "WithTicket", []Option{plain, psk}},
		{"a ticket: banned", "WithTicket", []Option{plain, WithBannedPeers(somePeer("1").ID)}},
		{"a ticket: not allowed", "WithTicket", []Option{plain, WithAllowedPeers(otherID(t))}},
		{"a ticket: QUIC with a key", "WithTicket", []Option{WithTicket(aTicket(t, "acme", key, byQUIC)), psk}},
		{"a ticket: QUIC with its own key", "WithTicket", []Option{WithTicket(aTicket(t, "acme", key, byQUIC, TicketWithKey()))}},
		{"a ticket: QUIC for TCP", "WithTicket", []Option{WithTicket(aTicket(t, "acme", nil, byQUIC)), tcp}},
		{"a ticket: by a relay without the client", "WithTicket", []Option{
			WithTicket(aTicket(t, "acme", nil, at("/ip4/192.0.2.1/udp/1/quic-v1/p2p/"+otherID(t).String()+"/p2p-circuit"))), WithoutRelay(),
		}},
		{"the key of a ticket and QUIC", "WithTicket", []Option{secret, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1")}},
		{"the key of a ticket and a peer by QUIC", "WithPersistentPeers", []Option{secret, WithPersistentPeers(byQUIC)}},
	}...)
	return append(rows, replacedRows(t)...)
}

// replacedRows are the parts of WithLibp2pOptions that options do not reach.
func replacedRows(t *testing.T) []relationRow {
	conns, err := connmgr.NewConnManager(10, 20)
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, conns) })
	given := explicitDefaults(t)
	var rows []relationRow
	for _, r := range []struct {
		option string
		theirs libp2p.Option
	}{
		{"WithLimits", libp2p.ResourceManager(&network.NullResourceManager{})},
		{"WithConnLimits", libp2p.ConnectionManager(conns)},
		{"WithSecurity", libp2p.Security(noise.ID, noise.New)},
		{"WithUserAgent", libp2p.UserAgent("acme")},
		{"WithReachability", libp2p.ForceReachabilityPublic()},
		{"WithPortMapping", libp2p.NATPortMap()},
		{"WithMetrics", libp2p.BandwidthReporter(metrics.NewBandwidthCounter())},
	} {
		rows = append(rows, relationRow{r.option + ": brought by WithLibp2pOptions", r.option, []Option{given[r.option], WithLibp2pOptions(r.theirs)}})
	}
	return rows
}

// An address that cannot be dialed is an error that names the option and how to
// write it.
func TestAddressesThatNobodyCanDial(t *testing.T) {
	for option, with := range map[string]func(peer.AddrInfo) Option{
		"WithBootstrapPeers":  func(p peer.AddrInfo) Option { return WithBootstrapPeers(p) },
		"WithBootstrapAddrs":  func(p peer.AddrInfo) Option { return WithBootstrapAddrs(p.Addrs[0].String() + "/p2p/" + p.ID.String()) },
		"WithPersistentPeers": func(p peer.AddrInfo) Option { return WithPersistentPeers(p) },
		"WithAutoRelay":       func(p peer.AddrInfo) Option { return WithAutoRelay(p) },
	} {
		for addr, want := range map[string]string{
			"/ip4/192.0.2.1/udp/1/quic": "/quic-v1", "/ip4/192.0.2.1": "no port", "/ip4/192.0.2.1/udp/1": "/quic-v1", "/p2p-circuit": "names no relay",
			"/ip4/0.0.0.0/tcp/1": "every interface", "/ip4/192.0.2.1/tcp/0": "any port", "/ip6/fe80::1/tcp/1": "link-local",
		} {
			p := peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{ma.StringCast(addr)}}
			list := OptionErrors(ValidateOptions(with(p)))
			if len(list) != 1 || list[0].Option != option || !strings.Contains(list[0].Error(), want) {
				t.Errorf("%s with %s: %v, want one error with %q", option, addr, list, want)
			}
		}
	}
}

// What only looks like a contradiction is accepted.
func TestRelationsThatHold(t *testing.T) {
	psk := WithPrivateNetwork([]byte(strings.Repeat("k", 32)))
	one := somePeer("1")
	overQUIC := peer.AddrInfo{ID: one.ID, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/1/quic-v1")}}
	byName := peer.AddrInfo{ID: one.ID, Addrs: []ma.Multiaddr{ma.StringCast("/dnsaddr/example.test")}}
	byRelay := peer.AddrInfo{ID: one.ID, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + otherID(t).String() + "/p2p-circuit")}}
	for name, opts := range map[string][]Option{
		"a validator on another network":          {WithNetwork("x"), WithValidator("app", record.PublicKeyValidator{})},
		"a key, TCP and WebSocket":                {psk, WithListenAddrs("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/tcp/2/ws")},
		"a key alone":                             {psk},
		"browsers without QUIC":                   {WithBrowserTransports(), WithTransports(TransportTCP), WithListenAddrs("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/udp/1/webrtc-direct")},
		"roots beside certificate files":          {WithTLSConfig(&tls.Config{RootCAs: x509.NewCertPool()}), WithTLSFiles("cert.pem", "key.pem"), WithListenAddrs("/ip4/0.0.0.0/tcp/443/tls/sni/node.test/ws")},
		"WebSocket without TCP":                   {WithTransports(TransportWebSocket), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws")},
		"a bootstrap peer by a relay":             {WithBootstrapPeers(byRelay)},
		"a bootstrap peer with both":              {psk, WithBootstrapPeers(overQUIC, one)},
		"a bootstrap peer by name":                {psk, WithBootstrapPeers(byName)},
		"mDNS with one address for it":            {WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws", "/ip4/0.0.0.0/tcp/1")},
		"reservations of a private node":          {WithAutoRelay(one), WithReachability(network.ReachabilityPrivate)},
		"as many peers as connections":            {WithMinPeers(10), WithConnLimits(5, 10)},
		"limits beside another option of libp2p":  {WithLimits(Limits{Streams: 500}), WithLibp2pOptions(libp2p.UserAgent("b"))},
		"one announced for a transport of libp2p": {WithoutListening(), WithAnnounceAddrs("/ip4/192.0.2.1/tcp/1"), WithLibp2pOptions(libp2p.Ping(true))},
	} {
		if err := ValidateOptions(opts...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A nil among the options of a library underneath is found before anything
// starts.
func TestNilOptionsOfLibraries(t *testing.T) {
	for name, opt := range map[string]Option{
		"WithLibp2pOptions":  WithLibp2pOptions(libp2p.Ping(true), nil),
		"WithDHTOptions":     WithDHTOptions(nil),
		"WithPubSubOptions":  WithPubSubOptions(pubsub.WithFloodPublish(true), nil),
		"WithIdentity":       WithIdentity((*crypto.Ed25519PrivateKey)(nil)),
		"WithBootstrapPeers": WithBootstrapPeers(peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{nil}}),
		"WithMetrics":        WithMetrics((*prometheus.Registry)(nil)),
	} {
		_, err := New(testContext(t), loopback(), nil, opt)
		if list := OptionErrors(err); len(list) != 1 || list[0].Option != name {
			t.Errorf("%s with nil: %v", name, err)
		}
	}
}
