package p2pnode

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// A status with everything filled reads back from its JSON form, also what
// failed.
func TestStatusRoundTripsThroughJSON(t *testing.T) {
	p := somePeer("1")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	failed := errors.New("connection refused")
	s := Status{
		ID: p.ID, Network: "/acme", Addrs: p.Addrs, ListenAddrs: p.Addrs,
		ListenErrors: []*ListenError{{Addr: p.Addrs[0], Err: failed}}, Reachability: ReachabilityPrivate,
		AddrReachability: []AddrReachability{{Addr: p.Addrs[0], Reachability: ReachabilityPublic}},
		PortMapping: &PortMappingStatus{Router: true, Missing: "why", Mappings: []PortMapping{{
			Protocol: "udp", Port: 4001, External: netip.MustParseAddrPort("192.0.2.1:5001"), Reachability: ReachabilityPublic,
		}}},
		Peers: []Peer{{
			ID: p.ID, Addr: p.Addrs[0], Transport: "tcp", Relayed: true, Direction: "inbound", Latency: time.Second,
			Since: at, LastSeen: at, Agent: "x", Protocols: []protocol.ID{"/x"},
		}},
		DHT: &DHTStatus{Mode: DHTModeAuto, Server: true, Peers: 7, Provides: 5, Pending: 2, NextReprovide: at, ProvideFailures: 3, Accelerated: &AcceleratedStatus{Ready: true, Peers: 9}}, Topics: []TopicStatus{{Name: "t", Peers: []peer.ID{p.ID}, Subscriptions: 2, Overrun: 3}},
		Bootstrap:      &BootstrapRound{At: at, Took: time.Second, Connected: []peer.ID{p.ID}, Failed: []DialFailure{{p.ID, failed}}, Peers: 1},
		Scores:         []PeerScore{{ID: p.ID, Score: -101, Graylisted: true}},
		Relays:         []RelayStatus{{ID: p.ID, Source: RelayFound, Reserved: true, Missing: "why"}},
		RelayService:   &RelayServiceStatus{Reservations: 1, Circuits: 2, Bytes: 3, Refused: map[RelayRefusal]uint64{RelayRefusedCircuits: 4}},
		Persistent:     []PersistentStatus{{ID: p.ID, Connected: true, Failures: 3, LastError: "why", NextDial: at}},
		PrivateNetwork: "fingerprint",
		Bans:           []Ban{{Peer: p.ID, Until: at, Reason: "spam"}, {Subnet: netip.MustParsePrefix("192.0.2.0/24")}},
		Allowed:        []peer.ID{p.ID}, Refused: Refused{Conns: 1, Services: 2}, HandshakesFailed: 9, HandlersFailed: 10, Warnings: []string{"damaged"}, Closed: true,
	}
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the test does not fill %s", v.Type().Field(i).Name)
		}
	}
	text, err := json.Marshal(s)
	mustNot(t, err)
	var back Status
	mustNot(t, json.Unmarshal(text, &back))
	if !reflect.DeepEqual(s, back) {
		again, _ := json.Marshal(back)
		t.Errorf("%s\nreads back as\n%s", text, again)
	}
	// The status of a node, with peers and without.
	for _, n := range []*Node{newNode(t), newNode(t, WithBootstrapPeers(somePeer("2")), WithAutoRelay(somePeer("3")))} {
		status := n.Status()
		text, err := json.Marshal(status)
		mustNot(t, err)
		var back Status
		mustNot(t, json.Unmarshal(text, &back))
		again, err := json.Marshal(back)
		mustNot(t, err)
		if string(again) != string(text) || len(back.Addrs) == 0 || !ma.Multiaddr.Equal(back.Addrs[0], status.Addrs[0]) {
			t.Errorf("%s\nreads back as\n%s", text, again)
		}
	}
}
