package p2pnode

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// reachable waits until a node announces a relayed address, or none.
func reachable(tb testing.TB, n *Node, want bool) {
	tb.Helper()
	events := n.Events(testContext(tb))
	has := func() bool { return slices.ContainsFunc(n.Addrs(), addrs.IsCircuit) }
	if has() == want {
		return
	}
	for ev := range events {
		if _, ok := ev.(EventAddrsChanged); ok && has() == want {
			return
		}
	}
	tb.Fatalf("announces %v; relayed should be %v; relays: %+v", n.Addrs(), want, n.Status().Relays)
}

func hiddenNode(tb testing.TB, relays ...*Node) *Node {
	tb.Helper()
	opts := []Option{WithoutListening(), WithoutDHT()}
	for _, r := range relays {
		opts = append(opts, WithAutoRelay(r.AddrInfo()))
	}
	n, err := New(testContext(tb), opts...)
	mustNot(tb, err)
	tb.Cleanup(func() { mustNot(tb, n.Close()) })
	serveEcho(n)
	return n
}

// On a private network reachability stays unknown: configured relays work
// immediately nevertheless, on both sides, and on private addresses (pitfalls 25,
// 26, 63).
func TestPitfall25RelayWorksAtOnceOnAPrivateNetwork(t *testing.T) {
	relay, dialer := newNode(t, WithRelayService()), newNode(t)
	hidden := hiddenNode(t, relay)
	reachable(t, hidden, true)
	if s := hidden.Status(); len(s.Relays) != 1 || !s.Relays[0].Reserved || s.Relays[0].ID != relay.ID() || s.Reachability != ReachabilityPrivate {
		t.Errorf("Status has %+v and reachability %s", s.Relays, s.Reachability)
	}
	mustNot(t, dialer.Connect(testContext(t), hidden.AddrInfo()))
	mustNot(t, echo(t, dialer, hidden.ID(), []byte("through the relay")))
	for _, p := range dialer.Peers() {
		if p.ID == hidden.ID() && (!p.Relayed || !addrs.IsCircuit(p.Addr)) {
			t.Errorf("the dialer sees %+v", p)
		}
	}
	// A second Connect finds the relayed connection good enough.
	mustNot(t, dialer.Connect(testContext(t), hidden.AddrInfo()))
	// The hidden node can open streams too (pitfalls 27 and 56).
	serveEcho(dialer)
	mustNot(t, echo(t, hidden, dialer.ID(), []byte("and back")))
}

func TestRelayThatRestartsIsUsedAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	key := someKey(t)
	start := func(addr string) *Node {
		n, err := New(testContext(t), WithIdentity(key), WithListenAddrs(addr), WithRelayService())
		mustNot(t, err)
		return n
	}
	first := start("/ip4/127.0.0.1/tcp/0")
	addr := first.base.ListenAddrs()[0].String()
	hidden := hiddenNode(t, first)
	reachable(t, hidden, true)
	mustNot(t, first.Close())
	reachable(t, hidden, false)
	second := start(addr)
	defer mustClose(t, second)
	reachable(t, hidden, true)
	dialer := newNode(t)
	mustNot(t, dialer.Connect(testContext(t), hidden.AddrInfo()))
}

func TestTwoRelays(t *testing.T) {
	r1, r2 := newNode(t, WithRelayService()), newNode(t, WithRelayService())
	hidden := hiddenNode(t, r1, r2)
	for ev := range hidden.Events(testContext(t), EventsWithState()) {
		if _, ok := ev.(EventAddrsChanged); !ok {
			continue
		}
		if s := hidden.Status(); s.Relays[0].Reserved && s.Relays[1].Reserved {
			break
		}
	}
	for _, r := range []*Node{r1, r2} {
		if !slices.ContainsFunc(hidden.Addrs(), func(a ma.Multiaddr) bool { return strings.Contains(a.String(), r.ID().String()+"/p2p-circuit") }) {
			t.Errorf("no address through %s among %v", r.ID(), hidden.Addrs())
		}
	}
}

// The limits of a relay take effect (pitfall 29).
func TestPitfall29RelayLimits(t *testing.T) {
	needs.Time(t)
	large := bytes.Repeat([]byte("x"), 1<<20)
	dialer := newNode(t)
	tight := hiddenNode(t, newNode(t, WithRelayService()))
	reachable(t, tight, true)
	mustNot(t, dialer.Connect(testContext(t), tight.AddrInfo()))
	if err := echo(t, dialer, tight.ID(), large); err == nil {
		t.Error("1 MiB went over a relay that allows 128 KiB")
	}
	free := hiddenNode(t, newNode(t, WithRelayLimits(RelayLimits{Unlimited: true})))
	reachable(t, free, true)
	mustNot(t, dialer.Connect(testContext(t), free.AddrInfo()))
	mustNot(t, echo(t, dialer, free.ID(), large))

	full := newNode(t, WithRelayLimits(RelayLimits{Reservations: 1}))
	reachable(t, hiddenNode(t, full), true)
	second := hiddenNode(t, full)
	mustNot(t, waitFor(t, func() bool { return second.base.Direct(full.ID()) }))
	if second.Status().Relays[0].Reserved {
		t.Error("a relay for one took two")
	}
	mustNot(t, waitFor(t, func() bool { return full.Status().RelayService.Refused[RelayRefusedReservations] > 0 }))
	if s := full.Status().RelayService; s.Reservations != 1 || s.Circuits != 0 {
		t.Errorf("%+v", s)
	}
}

// Who may make reservations is up to the options; who may be relayed is not.
func TestRelayPeersAndRelayAccess(t *testing.T) {
	key, other := someKey(t), someKey(t)
	id, err := PeerID(key)
	mustNot(t, err)
	second, err := PeerID(other)
	mustNot(t, err)
	relay := newNode(t, WithRelayPeers(id), WithRelayAccess(func(p peer.ID, a ma.Multiaddr) bool { return p == second && addrs.KindOf(a) != addrs.Circuit }))
	behind := func(opts ...Option) *Node {
		n, err := New(testContext(t), append(opts, WithoutListening(), WithoutDHT(), WithAutoRelay(relay.AddrInfo()))...)
		mustNot(t, err)
		t.Cleanup(func() { mustClose(t, n) })
		return n
	}
	listed := behind(WithIdentity(key))
	serveEcho(listed)
	mustNot(t, listed.WaitReady(testContext(t), StageReachable))
	mustNot(t, behind(WithIdentity(other)).WaitReady(testContext(t), StageReachable))
	stranger := behind()
	mustNot(t, waitFor(t, func() bool { return relay.Status().RelayService.Refused[RelayRefusedAccess] > 0 }))
	mustNot(t, waitFor(t, func() bool { return strings.Contains(stranger.Status().Relays[0].Missing, "PERMISSION_DENIED") }))
	mustNot(t, stranger.Connect(testContext(t), listed.AddrInfo()))
	mustNot(t, echo(t, stranger, listed.ID(), []byte("by the relay that refused")))
	s := relay.Status().RelayService
	if s.Reservations != 2 || s.Circuits != 1 || s.Bytes == 0 {
		t.Errorf("%+v", s)
	}
}

// Topics do not use relayed connections with limits, which Status and Diagnose
// say, unless both sides are told to, and then for small messages.
func TestTopicsOverRelaysWithLimits(t *testing.T) {
	topics := func(relayed bool) (a, b *Node) {
		relay := newNode(t, WithRelayService())
		opts := []Option{WithoutListening(), WithoutDHT(), WithAutoRelay(relay.AddrInfo())}
		var more []Option
		if relayed {
			more = []Option{WithRelayedPubSub(2 << 10)}
		}
		hidden, err := New(testContext(t), append(opts, more...)...)
		mustNot(t, err)
		t.Cleanup(func() { mustClose(t, hidden) })
		reachable(t, hidden, true)
		dialer := newNode(t, more...)
		mustNot(t, dialer.Connect(testContext(t), hidden.AddrInfo()))
		return dialer, hidden
	}

	a, b := topics(false)
	subscribe(t, b, "news")
	topic, err := a.Topic("news")
	mustNot(t, err)
	defer mustClose(t, topic)
	if p, ok := a.Peer(b.ID()); !ok || !p.Limited || !p.Relayed {
		t.Errorf("%+v", p)
	}
	found, err := a.Diagnose(testContext(t))
	mustNot(t, err)
	if !slices.ContainsFunc(found, func(f Finding) bool {
		return f.Kind == FindingNotOverRelays && strings.Contains(f.What, b.ID().String())
	}) {
		t.Errorf("Diagnose finds %v", found)
	}
	if len(topic.Peers()) != 0 {
		t.Error("a topic uses a relayed connection with limits, unasked")
	}

	a, b = topics(true)
	sub := subscribe(t, b, "news")
	mustNot(t, a.Publish(testContext(t), "news", []byte("small")))
	if m, err := sub.Next(testContext(t)); err != nil || string(m.Data) != "small" {
		t.Errorf("%v, %v", m, err)
	}
	if err := a.Publish(testContext(t), "news", make([]byte, 4<<10), PublishWait(time.Millisecond)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large message: %v", err)
	}
	mustNot(t, a.Publish(testContext(t), "news", make([]byte, 4<<10), PublishNow()))
	mustNot(t, a.Publish(testContext(t), "news", []byte("small again")))
	if m, err := sub.Next(testContext(t)); err != nil || string(m.Data) != "small again" {
		t.Errorf("%v, %v", m, err)
	}
	if n := a.pubsub.Counts().Unsent; n != 1 {
		t.Errorf("%d messages count as unsent", n)
	}
	if s := a.Status().Topics[0]; !slices.Equal(s.Relayed, []peer.ID{b.ID()}) {
		t.Errorf("Status has %+v", s)
	}
	found, err = a.Diagnose(testContext(t))
	mustNot(t, err)
	if slices.ContainsFunc(found, func(f Finding) bool { return f.Kind == FindingNotOverRelays }) {
		t.Errorf("Diagnose finds %v", found)
	}
}

func TestWithoutRelayRefusesRelayedAddresses(t *testing.T) {
	relay := newNode(t, WithRelayService())
	hidden := hiddenNode(t, relay)
	reachable(t, hidden, true)
	n := newNode(t, WithoutRelay())
	if err := n.Connect(testContext(t), peer.AddrInfo{ID: hidden.ID(), Addrs: hidden.AddrInfo().Addrs}); err == nil {
		t.Error("a node without relay dialed through one")
	}
}

func TestReachabilityIsToldAndShown(t *testing.T) {
	for r, text := range map[network.Reachability]Reachability{network.ReachabilityPublic: ReachabilityPublic, network.ReachabilityPrivate: ReachabilityPrivate} {
		n := newNode(t, WithReachability(r), WithHolePunching())
		mustNot(t, waitFor(t, func() bool { return n.Status().Reachability == text }))
	}
}

// One list of relays or bootstrap peers does for all of them: a node leaves
// itself out.
func TestANodeLeavesItselfOut(t *testing.T) {
	key := someKey(t)
	id, err := PeerID(key)
	mustNot(t, err)
	me := peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
	other := somePeer("1")
	n := newNode(t, WithIdentity(key), WithAutoRelay(me, other), WithBootstrapPeers(me, other), WithPersistentPeers(me, other))
	if s := n.Status(); len(s.Relays) != 1 || s.Relays[0].ID != other.ID || len(s.Persistent) != 1 || s.Persistent[0].ID != other.ID || len(n.cfg.bootstrap) != 1 {
		t.Errorf("%+v, %+v, %v", s.Relays, s.Persistent, n.cfg.bootstrap)
	}
}

// A relay that does not answer a request for a reservation delays Close only until
// the connection is closed.
func TestSilentRelayDoesNotHoldUpClose(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	relay := newNode(t, WithoutDHT(), WithoutPubSub())
	asked, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	relay.base.SetStreamHandler(proto.ProtoIDv2Hop, func(s network.Stream) {
		once.Do(func() { close(asked) })
		<-end
		_ = s.Reset()
	})
	defer close(end)
	n, err := New(testContext(t), WithoutListening(), WithoutDHT(), WithoutPubSub(), WithAutoRelay(relay.AddrInfo()))
	mustNot(t, err)
	select {
	case <-asked:
	case <-testContext(t).Done():
		t.Error("the relay was not asked")
	}
	mustNot(t, n.Close())
}

// A relay serves whatever its own reachability is.
func TestRelayServiceRunsWhateverTheReachability(t *testing.T) {
	for _, r := range []network.Reachability{network.ReachabilityPrivate, network.ReachabilityPublic} {
		hidden := hiddenNode(t, newNode(t, WithRelayService(), WithReachability(r)))
		if err := hidden.WaitReady(testContext(t), StageReachable); err != nil {
			t.Errorf("a relay with reachability %s gives no reservation: %v", r, err)
		}
	}
}

// The application's own options for hole punching replace the node's, which then does
// not punch again, and closes as any other.
func TestHolePunchingOfTheApplicationReplacesTheNodes(t *testing.T) {
	n := newNode(t, WithHolePunching(), WithLibp2pOptions(libp2p.EnableHolePunching()))
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
