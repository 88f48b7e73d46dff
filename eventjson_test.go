package p2pnode

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// someEvents are one of each type, filled.
func someEvents(t testing.TB) []Event {
	key, err := GenerateKey(KeyEd25519)
	mustNot(t, err)
	id, err := PeerID(key)
	mustNot(t, err)
	c, err := CIDOf(strings.NewReader("x"))
	mustNot(t, err)
	at := EventTime{someTime}
	addrs := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}
	return []Event{
		EventPeerConnected{at, filledPeer(id)},
		EventPeerDisconnected{at, id},
		EventPathChanged{at, filledPeer(id), ma.StringCast("/ip4/192.0.2.1/tcp/1")},
		EventPeerFound{at, id, addrs, "mdns"},
		EventAddrsChanged{at, addrs},
		EventReachabilityChanged{at, ReachabilityPrivate},
		EventAddrReachabilityChanged{at, ma.StringCast("/ip4/192.0.2.1/tcp/1"), ReachabilityPublic},
		EventPortMapped{at, "tcp", 4001, netip.MustParseAddrPort("192.0.2.1:5001")},
		EventPortUnmapped{at, "udp", 4001, netip.MustParseAddrPort("192.0.2.1:5001")},
		EventDHTModeChanged{at, true},
		EventBootstrapRound{at, someRound(id)},
		EventRelayReserved{at, id, RelayFound},
		EventRelayLost{at, id, RelayNamed},
		EventHolePunched{at, id, time.Second, errors.New("timeout")},
		EventHolePunched{at, id, time.Second, nil},
		EventProvided{at, c, time.Second, errors.New("nobody")},
		EventProvideProgress{at, 100, 7},
		EventTopicPeerJoined{at, "t", id},
		EventTopicPeerLeft{at, "t", id},
		EventTopicHealth{at, "t", TopicHealthThin},
		EventPeerDeaf{at, id},
		EventPeerGraylisted{at, id, -120.5},
		EventPeerForgiven{at, id, -3},
		EventLimitReached{at, "Conns", 3},
		EventBanned{at, Ban{Peer: id, Until: someTime, Reason: "spam"}},
		EventUnbanned{at, "", netip.MustParsePrefix("192.0.2.0/24")},
		EventsLost{at, 7},
	}
}

func filledPeer(id peer.ID) Peer {
	return Peer{
		ID: id, Addr: ma.StringCast("/ip4/192.0.2.1/tcp/1"), Transport: "tcp", Relayed: true, Direction: "inbound",
		Latency: time.Millisecond, Since: someTime, LastSeen: someTime, Agent: "b", Protocols: []protocol.ID{"/x"},
	}
}

func someRound(id peer.ID) BootstrapRound {
	return BootstrapRound{
		At: someTime, Took: time.Second, Connected: []peer.ID{id}, Peers: 2,
		Failed: []DialFailure{{id, errors.New("connect: timeout")}},
	}
}

func TestEventsRoundTripThroughJSON(t *testing.T) {
	seen := make(map[string]bool)
	for _, ev := range someEvents(t) {
		text, err := json.Marshal(ev)
		mustNot(t, err)
		back, err := UnmarshalEvent(text)
		if err != nil || !reflect.DeepEqual(back, ev) {
			t.Errorf("%T: %s is read as %+v, %v", ev, text, back, err)
			continue
		}
		if !back.When().Equal(someTime) {
			t.Errorf("%T: at %v", ev, back.When())
		}
		var head struct{ Type string }
		mustNot(t, json.Unmarshal(text, &head))
		seen[head.Type] = true
	}
	if len(seen) != len(eventReaders) {
		t.Errorf("%d types are written, and %d are read", len(seen), len(eventReaders))
	}
	for _, text := range []string{``, `{}`, `{"type":"soon"}`, `{"type":"banned","ban":7}`, `{"type":"reachability-changed","reachability":"so so"}`} {
		if ev, err := UnmarshalEvent([]byte(text)); err == nil {
			t.Errorf("%s is read as %+v", text, ev)
		}
	}
}

// What is read is written and read again as the same.
func FuzzUnmarshalEvent(f *testing.F) {
	for _, ev := range someEvents(f) {
		text, err := json.Marshal(ev)
		mustNot(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ev, err := UnmarshalEvent(text)
		if err != nil {
			return
		}
		once, err := json.Marshal(ev)
		if err != nil {
			return // a time beyond the year 9999, an invalid peer ID
		}
		again, err := UnmarshalEvent(once)
		if err != nil {
			t.Fatalf("%s is written as %s: %v", text, once, err)
		}
		if twice, err := json.Marshal(again); err != nil || string(twice) != string(once) {
			t.Fatalf("%s, then %s: %v", once, twice, err)
		}
	})
}

// EventsWithState begins with the current state.
func TestEventsWithState(t *testing.T) {
	a, b := pair(t)
	subscribe(t, a, "t")
	subscribe(t, b, "t")
	connected, joined, addrs := 0, 0, 0
	for ev := range a.Events(testContext(t), EventsWithState()) {
		switch ev := ev.(type) {
		case EventPeerConnected:
			if connected++; ev.Peer.ID != b.ID() || ev.At.IsZero() {
				t.Errorf("%+v", ev)
			}
		case EventTopicPeerJoined:
			if joined++; ev.ID != b.ID() || ev.Topic != "t" {
				t.Errorf("%+v", ev)
			}
		case EventAddrsChanged:
			addrs++
		}
		if connected == 1 && joined == 1 && addrs > 0 {
			return
		}
	}
	t.Errorf("%d connected, %d joined, %d with addresses", connected, joined, addrs)
}
