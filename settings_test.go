package p2pnode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

func TestDescribeSaysWhatTheOptionsComeTo(t *testing.T) {
	key := someKey(t)
	id, err := PeerID(key)
	mustNot(t, err)
	psk := bytes.Repeat([]byte{7}, 32)
	describe := func(opts ...Option) Settings {
		t.Helper()
		s, err := Describe(opts...)
		mustNot(t, err)
		return s
	}

	s := describe()
	if s.Given != nil || s.Network != "p2pnode" || !s.DHT || s.DHTMode != DHTModeAutoServer || !slices.Equal(s.DHTProtocols, []protocol.ID{"/p2pnode/kad/1.0.0"}) ||
		len(s.ListenAddrs) != 6 || s.MinPeers != 0 || s.MDNSService != "" || !s.Relay || !s.PubSub || s.MaxMessageSize != 1<<20 || s.ID != "" {
		t.Errorf("the defaults: %+v", s)
	}
	s = describe(WithIdentityFile("file"), WithIdentity(key), WithNetwork("acme"), WithMDNS(), WithAutoRelay(somePeer("1")), WithPrivateNetwork(psk))
	if s.ID != id || s.IdentityFile != "" || s.MDNSService != "_p2pnode-acme._udp" || s.MinPeers != 1 || s.Reachability != network.ReachabilityPrivate ||
		len(s.AutoRelays) != 1 || s.PrivateNetwork != fingerprint(psk) || !slices.Equal(s.Transports, []Transport{TransportTCP, TransportWebSocket}) ||
		!slices.Equal(s.Given, []string{"WithIdentity", "WithNetwork", "WithMDNS", "WithAutoRelay", "WithPrivateNetwork"}) {
		t.Errorf("a private network: %+v", s)
	}
	s = describe(WithIPFS(), WithoutListening(), WithoutPubSub())
	if s.Network != "ipfs" || !s.Public || s.DHTMode != DHTModeAuto || len(s.Bootstrap) < 4 || len(s.DHTProtocols) != 2 || s.ListenAddrs != nil || s.PubSub || s.MaxMessageSize != 0 {
		t.Errorf("the public network: %+v", s)
	}
	s = describe(WithoutDHT(), WithoutRelay())
	if s.DHT || s.DHTMode != "" || s.DHTProtocols != nil || s.Relay {
		t.Errorf("without DHT and relay: %+v", s)
	}
	if s, err := Describe(WithMinPeers(-1)); len(OptionErrors(err)) != 1 || !reflect.ValueOf(s).IsZero() {
		t.Errorf("a bad option: %+v, %v", s, err)
	}
}

// The settings share no memory with the options, and come back from JSON.
func TestSettingsAreACopy(t *testing.T) {
	boot := somePeer("1")
	opts := []Option{
		WithBootstrapPeers(boot), WithListenAddrs("/ip4/127.0.0.1/tcp/1"), WithAllowedPeers(boot.ID), WithIdentity(someKey(t)),
		WithMDNS(), WithAutoRelay(boot), WithRelayService(), WithLimits(Limits{ConnsPerIP: 3}), WithUserAgent("acme/1"),
	}
	first, err := Describe(opts...)
	mustNot(t, err)
	first.ListenAddrs[0], first.Bootstrap[0].Addrs[0], first.Allowed[0], first.Transports[0] = nil, nil, "", ""
	second, err := Describe(opts...)
	mustNot(t, err)
	if second.ListenAddrs[0] == nil || second.Bootstrap[0].Addrs[0] == nil || second.Allowed[0] == "" || second.Transports[0] == "" {
		t.Errorf("a second Describe saw changes of the first one's result: %+v", second)
	}
	b, err := json.Marshal(second)
	mustNot(t, err)
	var again Settings
	mustNot(t, json.Unmarshal(b, &again))
	if !reflect.DeepEqual(again, second) {
		t.Errorf("%+v came back from JSON as %+v", second, again)
	}
}

// The settings contain no secret and no part of one.
func TestSettingsHoldNoSecrets(t *testing.T) {
	key := someKey(t)
	text, err := EncodeKey(key)
	mustNot(t, err)
	psk := []byte("0123456789abcdefghijklmnopqrstuv")
	s, err := Describe(WithIdentityString(text), WithPrivateNetwork(psk))
	mustNot(t, err)
	b, err := json.Marshal(s)
	mustNot(t, err)
	raw, err := key.Raw()
	mustNot(t, err)
	for _, said := range []string{string(b), fmt.Sprintf("%+v", s)} {
		for _, secret := range []string{text, string(psk), fmt.Sprintf("%x", psk), fmt.Sprintf("%x", raw[:32])} {
			for i := 0; i+8 <= len(secret); i++ {
				if strings.Contains(said, secret[i:i+8]) {
					t.Fatalf("a secret stands in %s", said)
				}
			}
		}
	}
}

// The DHT protocols of Describe are those of a node.
func TestDescribedDHTProtocolsAreSpoken(t *testing.T) {
	for _, opts := range [][]Option{{WithNetwork("acme/chat"), WithDHTMode(DHTModeServer)}, {WithNetwork("ipfs"), WithDHTMode(DHTModeServer)}} {
		n := newNode(t, opts...)
		s, err := Describe(opts...)
		mustNot(t, err)
		spoken := n.Host().Mux().Protocols()
		for _, p := range s.DHTProtocols {
			if !slices.Contains(spoken, p) {
				t.Errorf("%s is not among %v", p, spoken)
			}
		}
	}
}

func TestOptionErrors(t *testing.T) {
	one, two := &OptionError{"WithA", errors.New("a")}, &OptionError{"WithB", errors.New("b")}
	for _, row := range []struct {
		err  error
		want []*OptionError
	}{
		{nil, nil},
		{errors.New("another"), nil},
		{one, []*OptionError{one}},
		{errors.Join(one, errors.New("another"), two), []*OptionError{one, two}},
		{&StartError{"identity", fmt.Errorf("wrapped: %w", errors.Join(two, one))}, []*OptionError{two, one}},
	} {
		if got := OptionErrors(row.err); !slices.Equal(got, row.want) {
			t.Errorf("OptionErrors(%v) = %v", row.err, got)
		}
	}
}

// Every option shows in the settings, in addition to its name. Options of the
// libraries underneath cannot be inspected.
func TestEveryOptionShowsInSettings(t *testing.T) {
	opaque := map[string]bool{"WithLibp2pOptions": true, "WithDHTOptions": true, "WithPubSubOptions": true}
	plain := defaultConfig().settings()
	for _, row := range optionRows(t) {
		cfg := defaultConfig()
		if row.check == nil || row.opt.apply(cfg) != nil {
			continue
		}
		s := cfg.settings()
		if !slices.Equal(s.Given, []string{row.name}) {
			t.Errorf("%s: given are %v", row.name, s.Given)
		}
		s.Given = nil
		if reflect.DeepEqual(s, plain) != opaque[row.name] {
			t.Errorf("%s: the settings are %+v", row.name, s)
		}
	}
}
