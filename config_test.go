package p2pnode

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Options that contradict each other are rejected, with both named.
func TestValidateRelations(t *testing.T) {
	psk := WithPrivateNetwork(bytes.Repeat([]byte{7}, 32))
	relay := WithAutoRelay(somePeer("1"))
	ds := WithDatastore(dssync.MutexWrap(datastore.NewMapDatastore()))
	valid := WithValidator("app", record.PublicKeyValidator{})
	with := func(addr string) peer.AddrInfo {
		return peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{ma.StringCast(addr)}}
	}
	overQUIC, byName := with("/ip4/192.0.2.1/udp/1/quic-v1"), with("/dnsaddr/example.test")
	byRelay := with("/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + somePeer("1").ID.String() + "/p2p-circuit")
	for _, row := range []struct {
		name string
		opts []Option
		says []string // empty: accepted
	}{
		{"ipfs and a network", []Option{WithIPFS(), WithNetwork("x")}, []string{"WithIPFS", "WithNetwork"}},
		{"ipfs and a key", []Option{WithIPFS(), psk}, []string{"WithIPFS", "WithPrivateNetwork"}},
		{"ipfs and a validator", []Option{WithIPFS(), valid}, []string{"WithValidator", "WithNetwork"}},
		{"network ipfs and a validator", []Option{WithNetwork("ipfs"), valid}, []string{"WithValidator", "WithNetwork"}},
		{"another network and a validator", []Option{WithNetwork("x"), valid}, nil},
		{"ipfs without DHT", []Option{WithIPFS(), WithoutDHT()}, []string{"WithoutDHT", "WithIPFS"}},

		{"pitfall 31: a key and QUIC", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1")}, []string{"WithPrivateNetwork", "WithListenAddrs", "quic", "/tcp/"}},
		{"a key and WebTransport", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1/webtransport")}, []string{"WithPrivateNetwork", "webtransport"}},
		{"a key and WebRTC", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/udp/1/webrtc-direct")}, []string{"WithPrivateNetwork", "webrtc-direct"}},
		{"a key and QUIC enabled", []Option{psk, WithTransports(TransportTCP, TransportQUIC)}, []string{"WithPrivateNetwork", "WithTransports", "quic"}},
		{"a key and TCP and WebSocket", []Option{psk, WithListenAddrs("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/tcp/2/ws")}, nil},
		{"a key alone", []Option{psk}, nil},

		{"a transport that is not enabled", []Option{WithTransports(TransportTCP), WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1")}, []string{"WithListenAddrs", "WithTransports(TransportQUIC)"}},
		{"WebTransport, which is off", []Option{WithListenAddrs("/ip4/0.0.0.0/udp/1/quic-v1/webtransport")}, []string{"WithListenAddrs", "TransportWebTransport"}},
		{"WebRTC, which is off", []Option{WithListenAddrs("/ip4/0.0.0.0/udp/1/webrtc-direct")}, []string{"TransportWebRTCDirect"}},
		{"WebSocket without TCP", []Option{WithTransports(TransportWebSocket), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws")}, nil},

		{"a bootstrap peer over QUIC for TCP", []Option{WithTransports(TransportTCP), WithBootstrapPeers(overQUIC)}, []string{"WithBootstrapPeers", "/udp/1/quic-v1", "WithTransports"}},
		{"a persistent peer over QUIC with a key", []Option{psk, WithPersistentPeers(overQUIC)}, []string{"WithPersistentPeers", "WithPrivateNetwork"}},
		{"a relay by a relay without the client", []Option{WithoutRelay(), WithBootstrapPeers(byRelay)}, []string{"WithBootstrapPeers", "p2p-circuit"}},
		{"a bootstrap peer by a relay", []Option{WithBootstrapPeers(byRelay)}, nil},
		{"a bootstrap peer with both", []Option{psk, WithBootstrapPeers(overQUIC, somePeer("1"))}, nil},
		{"a bootstrap peer by name", []Option{psk, WithBootstrapPeers(byName)}, nil},

		{"listening and not", []Option{WithoutListening(), WithListenAddrs("/ip4/0.0.0.0/tcp/1")}, []string{"WithoutListening", "WithListenAddrs"}},
		{"not listening, partially", []Option{WithoutListening(), WithPartialListen()}, []string{"WithPartialListen", "WithoutListening"}},
		{"no port to map", []Option{WithoutListening(), WithPortMapping()}, []string{"WithPortMapping", "WithoutListening"}},
		{"nothing to announce by mDNS", []Option{WithoutListening(), WithMDNS()}, []string{"WithMDNS", "WithoutListening"}},
		{"mDNS announces WebSocket not", []Option{WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws")}, []string{"WithMDNS", "WithListenAddrs"}},
		{"mDNS announces TCP", []Option{WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/1/ws", "/ip4/0.0.0.0/tcp/1")}, nil},

		{"pitfall 28: hole punching without relay", []Option{WithHolePunching(), WithoutRelay()}, []string{"WithHolePunching", "WithoutRelay"}},
		{"reservations without relay", []Option{relay, WithoutRelay()}, []string{"WithAutoRelay", "WithoutRelay"}},
		{"relay service without relay", []Option{WithRelayService(), WithoutRelay()}, []string{"WithRelayService", "WithoutRelay"}},
		{"reservations of a public node", []Option{relay, WithReachability(network.ReachabilityPublic)}, []string{"WithAutoRelay", "WithReachability"}},
		{"reservations of a private node", []Option{relay, WithReachability(network.ReachabilityPrivate)}, nil},

		{"a DHT option without DHT", []Option{WithoutDHT(), WithDHTOptions(dht.Concurrency(1))}, []string{"WithDHTOptions", "WithoutDHT"}},
		{"a validator without DHT", []Option{WithoutDHT(), valid}, []string{"WithValidator", "WithoutDHT"}},
		{"a datastore without DHT", []Option{WithoutDHT(), ds}, []string{"WithDatastore", "WithoutDHT"}},
		{"a mode without DHT", []Option{WithoutDHT(), WithDHTMode(DHTModeAutoServer)}, []string{"WithDHTMode", "WithoutDHT"}},
		{"a pubsub option without pubsub", []Option{WithoutPubSub(), WithPubSubOptions(pubsub.WithFloodPublish(true))}, []string{"WithPubSubOptions", "WithoutPubSub"}},
		{"a message size without pubsub", []Option{WithoutPubSub(), WithMaxMessageSize(1 << 16)}, []string{"WithMaxMessageSize", "WithoutPubSub"}},
		{"more peers than connections", []Option{WithMinPeers(11), WithConnLimits(5, 10)}, []string{"WithMinPeers", "WithConnLimits"}},
		{"limits of a resource manager of its own", []Option{WithLimits(Limits{Streams: 500}), WithLibp2pOptions(libp2p.ResourceManager(&network.NullResourceManager{}))}, []string{"WithLimits", "WithLibp2pOptions"}},
		{"a user agent twice", []Option{WithUserAgent("a"), WithLibp2pOptions(libp2p.UserAgent("b"))}, []string{"WithUserAgent", "WithLibp2pOptions"}},
		{"port mapping twice", []Option{WithPortMapping(), WithLibp2pOptions(libp2p.NATPortMap())}, []string{"WithPortMapping", "WithLibp2pOptions"}},
		{"limits beside another option of libp2p", []Option{WithLimits(Limits{Streams: 500}), WithLibp2pOptions(libp2p.UserAgent("b"))}, nil},
		{"as many peers as connections", []Option{WithMinPeers(10), WithConnLimits(5, 10)}, nil},
	} {
		err := ValidateOptions(row.opts...)
		if len(row.says) == 0 {
			if err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
			continue
		}
		var oe *OptionError
		if !errors.As(err, &oe) {
			t.Errorf("%s: accepted, or no OptionError: %v", row.name, err)
			continue
		}
		for _, word := range row.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not stand in %q", row.name, word, err)
			}
		}
		// New says the same, before it starts anything.
		if n, nerr := New(testContext(t), row.opts...); n != nil || nerr == nil || nerr.Error() != err.Error() {
			t.Errorf("%s: New says %v, ValidateOptions %v", row.name, nerr, err)
		}
	}
}

// All problems come back at once, bad values and bad relations.
func TestAllProblemsAtOnce(t *testing.T) {
	err := ValidateOptions(WithNetwork(""), WithMinPeers(-1), WithHolePunching(), WithoutRelay(), WithRelayService())
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		t.Fatalf("not joined: %v", err)
	}
	var names []string
	for _, e := range joined.Unwrap() {
		var oe *OptionError
		if errors.As(e, &oe) {
			names = append(names, oe.Option)
		}
	}
	if got := strings.Join(names, " "); got != "WithNetwork WithMinPeers WithHolePunching WithRelayService" {
		t.Errorf("reported: %s", got)
	}
}

func TestDerivedSettings(t *testing.T) {
	build := func(opts ...Option) *config {
		c, err := newConfig(opts)
		mustNot(t, err)
		return c
	}
	boot := WithBootstrapPeers(somePeer("1"))
	for _, row := range []struct {
		opts []Option
		want int
	}{{nil, 0}, {[]Option{boot}, 1}, {[]Option{WithMDNS()}, 1}, {[]Option{boot, WithMinPeers(0)}, 0}, {[]Option{WithMinPeers(4)}, 4}} {
		if got := build(row.opts...).effectiveMinPeers(); got != row.want {
			t.Errorf("minimum of peers %d, want %d", got, row.want)
		}
	}
	private := build(WithPrivateNetwork(bytes.Repeat([]byte{7}, 32)))
	list, defaults := private.listenAddrs()
	if !defaults || len(list) != 4 {
		t.Errorf("a private network listens on %v", list)
	}
	if list, _ := build(WithoutListening()).listenAddrs(); list != nil {
		t.Errorf("WithoutListening listens on %v", list)
	}
	if c := build(WithIPFS()); c.effectiveDHTMode() != DHTModeAuto || c.protocolPrefix() != "/ipfs" || c.mdnsServiceName() != "_p2p._udp" || len(c.bootstrapPeers()) < 4 {
		t.Errorf("the public network: %s %s %s and %d bootstrap peers", c.effectiveDHTMode(), c.protocolPrefix(), c.mdnsServiceName(), len(c.bootstrapPeers()))
	}
	if c := build(WithIPFS(), boot, WithDHTMode(DHTModeServer)); len(c.bootstrapPeers()) != 1 || c.effectiveDHTMode() != DHTModeServer {
		t.Error("the public network's defaults override what was given")
	}
}

// Networks never share an mDNS service name, and each name is a DNS label.
func TestMDNSServiceNamesDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, network := range []string{"p2pnode", "a", "A", "a.b", "a-b", "a/b", "a_b", strings.Repeat("x", 41), strings.Repeat("x", 42), strings.Repeat("y", 128)} {
		c, err := newConfig([]Option{WithNetwork(network)})
		mustNot(t, err)
		name := c.mdnsServiceName()
		if other, ok := seen[strings.ToLower(name)]; ok {
			t.Errorf("%q and %q share the service name %s", network, other, name)
		}
		seen[strings.ToLower(name)] = network
		if !mdnsName.MatchString(name) {
			t.Errorf("%q gives the service name %q", network, name)
		}
	}
}
