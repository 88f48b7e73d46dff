package gossip

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"

	"log/slog"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func until(t *testing.T, f func() bool) {
	t.Helper()
	for ctx := within(t); !f(); runtime.Gosched() {
		must(t, ctx.Err())
	}
}

// account returns a copy of what a router keeps of a peer.
func (r *Router) account(id peer.ID) account {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *r.accountLocked(id)
}

// inspected returns what a router leaves of control messages.
func inspected(t *testing.T, r *Router, from peer.ID, c *pubsub_pb.ControlMessage) *pubsub_pb.ControlMessage {
	t.Helper()
	rpc := &pubsub.RPC{RPC: pubsub_pb.RPC{Control: c}}
	must(t, r.inspect(from, rpc))
	return rpc.Control
}

// What a peer sends in control messages is bounded: what is beyond is dropped,
// counted, and held against the peer.
func TestAttackControlMessagesAreBounded(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	ids := make([]string, 2*idBurst)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	grafts, prunes := make([]*pubsub_pb.ControlGraft, 2*graftBurst), make([]*pubsub_pb.ControlPrune, 2*graftBurst)
	for i := range grafts {
		grafts[i], prunes[i] = &pubsub_pb.ControlGraft{TopicID: topicName("t")}, &pubsub_pb.ControlPrune{TopicID: topicName("t")}
	}
	kept := func(lists ...[]string) (n int) {
		for _, l := range lists {
			n += len(l)
		}
		return n
	}
	empty := make([]*pubsub_pb.ControlIWant, 2*idBurst)
	for i := range empty {
		empty[i] = &pubsub_pb.ControlIWant{}
	}
	for _, c := range []struct {
		name    string
		send    *pubsub_pb.ControlMessage
		left    func(*pubsub_pb.ControlMessage) int
		most    int
		dropped uint64
		points  float64
	}{
		{
			"IHAVE", &pubsub_pb.ControlMessage{Ihave: []*pubsub_pb.ControlIHave{{TopicID: topicName("t"), MessageIDs: slices.Clone(ids)}}},
			func(c *pubsub_pb.ControlMessage) int { return kept(c.Ihave[0].MessageIDs) },
			idBurst - 1, idBurst + 1, (idBurst + 1) * idPoints,
		},
		{
			"IWANT", &pubsub_pb.ControlMessage{Iwant: []*pubsub_pb.ControlIWant{{MessageIDs: slices.Clone(ids)}}},
			func(c *pubsub_pb.ControlMessage) int { return kept(c.Iwant[0].MessageIDs) },
			idBurst - 1, idBurst + 1, (idBurst + 1) * idPoints,
		},
		{
			"IDONTWANT", &pubsub_pb.ControlMessage{Idontwant: []*pubsub_pb.ControlIDontWant{{MessageIDs: slices.Clone(ids)}}},
			func(c *pubsub_pb.ControlMessage) int { return kept(c.Idontwant[0].MessageIDs) },
			idBurst - 1, idBurst + 1, (idBurst + 1) * idPoints,
		},
		{
			"GRAFT", &pubsub_pb.ControlMessage{Graft: grafts},
			func(c *pubsub_pb.ControlMessage) int { return len(c.Graft) },
			graftBurst, graftBurst, graftBurst * graftPoints,
		},
		{
			"PRUNE", &pubsub_pb.ControlMessage{Prune: prunes},
			func(c *pubsub_pb.ControlMessage) int { return len(c.Prune) },
			graftBurst, graftBurst, graftBurst * graftPoints,
		},
	} {
		id := peer.ID(c.name)
		if n := c.left(inspected(t, r, id, c.send)); n != c.most {
			t.Errorf("%s: %d get through, not %d", c.name, n, c.most)
		}
		if a := r.account(id); a.Control != c.dropped || math.Abs(a.points-c.points) > 1e-6 {
			t.Errorf("%s: %d count as dropped, with %v points, not %d with %v", c.name, a.Control, a.points, c.dropped, c.points)
		}
	}

	// Lists without any ID count too; they refill meanwhile.
	id := peer.ID("empty")
	inspected(t, r, id, &pubsub_pb.ControlMessage{Iwant: empty})
	if a := r.account(id); a.Control < idBurst/2 {
		t.Errorf("of %d empty lists, %d count as dropped", len(empty), a.Control)
	}
	// Missing entries, which decode from nothing, cannot harm.
	inspected(t, r, "nil", &pubsub_pb.ControlMessage{
		Ihave: []*pubsub_pb.ControlIHave{nil}, Iwant: []*pubsub_pb.ControlIWant{nil}, Idontwant: []*pubsub_pb.ControlIDontWant{nil},
		Graft: []*pubsub_pb.ControlGraft{nil}, Prune: []*pubsub_pb.ControlPrune{nil},
	})
}

func TestAttackChangesOfTopicsAreBounded(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	const id = peer.ID("stranger")
	subs := make([]*pubsub_pb.RPC_SubOpts, 2*topicBurst)
	for i := range subs {
		yes := i%2 == 0
		subs[i] = &pubsub_pb.RPC_SubOpts{Topicid: topicName("t"), Subscribe: &yes}
	}
	accepted, err := r.streams.filter.FilterIncomingSubscriptions(id, subs)
	must(t, err)
	if len(accepted) != topicBurst {
		t.Errorf("%d changes are accepted, not %d", len(accepted), topicBurst)
	}
	if a := r.account(id); a.Topics != topicBurst || math.Abs(a.points-topicBurst*refusedPoints) > 1e-6 {
		t.Errorf("%d count as refused, with %v points", a.Topics, a.points)
	}
}

// A peer cannot keep a node from grafting it for longer than an hour, whatever it
// says.
func TestAttackPruneBackoffIsBounded(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	sub, err := r.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	defer sub.Close()
	for _, ask := range []uint64{10, 3600, 3601, math.MaxUint64} {
		id := peer.ID(fmt.Sprint(ask))
		before := time.Now()
		c := inspected(t, r, id, &pubsub_pb.ControlMessage{Prune: []*pubsub_pb.ControlPrune{{TopicID: topicName("t"), Backoff: &ask}}})
		want := min(ask, 3600)
		if got := c.Prune[0].GetBackoff(); got != want {
			t.Errorf("of %d seconds, %d get through", ask, got)
		}
		r.mu.Lock()
		p := r.pruned[edge{id, "t"}]
		r.mu.Unlock()
		if d := p.until.Sub(before).Round(time.Second) - time.Duration(want)*time.Second; d < 0 || d > 30*time.Second {
			t.Errorf("of %d seconds, %v are remembered", ask, p.until.Sub(before))
		}
	}
	// Nothing is remembered of topics that the node is not on.
	inspected(t, r, "x", &pubsub_pb.ControlMessage{Prune: []*pubsub_pb.ControlPrune{{TopicID: topicName("another")}}})
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.pruned); n != 4 {
		t.Errorf("%d prunes are remembered", n)
	}
}

// named returns an entry of a prune: a peer with a signed record of addresses.
func named(t *testing.T, h host.Host, addrs []ma.Multiaddr) *pubsub_pb.PeerInfo {
	t.Helper()
	env, err := record.Seal(peer.PeerRecordFromAddrInfo(peer.AddrInfo{ID: h.ID(), Addrs: addrs}), h.Peerstore().PrivKey(h.ID()))
	must(t, err)
	b, err := env.Marshal()
	must(t, err)
	return &pubsub_pb.PeerInfo{PeerID: []byte(h.ID()), SignedPeerRecord: b}
}

// Of the peers that a prune names, only those are dialed that are signed, short,
// few, and let through by the gate, and only on the word of a peer that has earned
// it.
func TestAttackPeersOfAPruneGoThroughTheGate(t *testing.T) {
	needs.Time(t)
	type heard struct {
		teller, id peer.ID
		addrs      int
	}
	var asked []heard
	allow := true
	scoring := func(trusted bool) func(*Config) {
		return func(c *Config) {
			c.Scoring = &Scoring{Nodes: 1000, Rate: 1, PeerExchange: true, Trusted: func(peer.ID) bool { return trusted }}
			c.Learned = func(teller network.Conn, id peer.ID, addrs [][]byte) [][]byte {
				asked = append(asked, heard{teller.RemotePeer(), id, len(addrs)})
				if allow {
					return addrs
				}
				return nil
			}
			c.Graylisted, c.Forgiven = func(peer.ID, float64) {}, func(peer.ID, float64) {}
		}
	}
	r, other, teller := newRouter(t, newHost(t), scoring(true)), newRouter(t, newHost(t), scoring(false)), newRouter(t, newHost(t), nil)
	from := teller.cfg.Host.ID()
	connect(t, teller.cfg.Host, r.cfg.Host)
	connect(t, teller.cfg.Host, other.cfg.Host)
	scored := func(r *Router) func() bool { return func() bool { return len(r.Scores()) > 0 } }
	until(t, scored(r))
	until(t, scored(other))

	good, liar := newHost(t), newHost(t)
	var many []ma.Multiaddr
	for i := range 2000 {
		many = append(many, ma.StringCast(fmt.Sprintf("/ip4/10.0.%d.%d/tcp/4001", i/256, i%256)))
	}
	lie := named(t, liar, liar.Addrs())
	lie.PeerID = []byte(good.ID())
	list := func() []*pubsub_pb.PeerInfo {
		return []*pubsub_pb.PeerInfo{
			nil, {}, {PeerID: []byte(good.ID())}, lie,
			{PeerID: bytes.Repeat([]byte("x"), maxNamedID+1), SignedPeerRecord: []byte("x")},
			{PeerID: []byte(good.ID()), SignedPeerRecord: []byte("no record")},
			named(t, r.cfg.Host, r.cfg.Host.Addrs()), named(t, liar, many), named(t, good, good.Addrs()),
		}
	}
	left := func(r *Router, list []*pubsub_pb.PeerInfo) []*pubsub_pb.PeerInfo {
		t.Helper()
		asked = nil
		return inspected(t, r, from, &pubsub_pb.ControlMessage{Prune: []*pubsub_pb.ControlPrune{{TopicID: topicName("t"), Peers: list}}}).Prune[0].Peers
	}
	if l := left(r, list()); len(l) != 1 || peer.ID(l[0].PeerID) != good.ID() {
		t.Errorf("%d peers are left: %v", len(l), l)
	}
	if want := []heard{{from, good.ID(), len(good.Addrs())}}; !slices.Equal(asked, want) {
		t.Errorf("the gate is asked %v, not %v", asked, want)
	}
	if l := left(other, list()); len(l) != 0 || len(asked) != 0 {
		t.Errorf("on the word of a peer without merit %d peers are dialed, and the gate is asked %v", len(l), asked)
	}
	long := slices.Repeat([]*pubsub_pb.PeerInfo{named(t, good, good.Addrs())}, 3*prunePeers)
	if l := left(r, long); len(l) != prunePeers || len(asked) != prunePeers {
		t.Errorf("of %d peers %d are left, and the gate is asked for %d", 3*prunePeers, len(l), len(asked))
	}
	allow = false
	if l := left(r, list()); len(l) != 0 || len(asked) != 1 {
		t.Errorf("%d peers get past the gate, which is asked for %d", len(l), len(asked))
	}
}

// Points halve in ten seconds, soft ones in a minute, and those cost at most a
// place in the mesh.
func TestOffensesDecay(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	a := &account{points: 100, soft: 50}
	r.accounts["x"] = a
	if s := r.score("x"); s != -105 {
		t.Errorf("the score is %v", s)
	}
	for range 10 {
		a.decay(wasteRate)
	}
	if a.points < 49 || a.points > 51 {
		t.Errorf("after 10 seconds %v of 100 points are left", a.points)
	}
	for range 50 {
		a.decay(wasteRate)
	}
	if a.soft < 24 || a.soft > 26 {
		t.Errorf("after a minute %v of 50 soft points are left", a.soft)
	}
	a.points, a.soft = 0, 1e9
	if s := r.score("x"); s != -softMax || s <= gossipThreshold {
		t.Errorf("any number of soft points costs %v", s)
	}
	a.points, a.soft = 1e9, 0
	a.decay(wasteRate)
	if a.points > pointsMax {
		t.Errorf("%v points: it would take hours to lose them", a.points)
	}
	if s := r.score("stranger"); s != 0 {
		t.Errorf("a stranger has a score of %v", s)
	}
}

// Useless messages may come as fast as an honest peer sends them that was cut off,
// and what is beyond counts.
func TestUselessMessagesCountBeyondABurst(t *testing.T) {
	a := &account{wasted: wasteBurst}
	for range 1000 {
		a.wasted += wasteRate
		a.decay(wasteRate)
	}
	if a.points != 0 {
		t.Errorf("%v points for what is allowed", a.points)
	}
	a.wasted = wasteBurst + wasteRate + 1000
	if a.decay(wasteRate); a.points != 1000*wastePoints || a.wasted != wasteBurst {
		t.Errorf("%v points for 1000 messages, %v are left", a.points, a.wasted)
	}
}

// A peer of which gossipsub keeps no score, as it refuses the node's stream, is
// graylisted for forged messages, is not heard then except for its topics, and is
// forgiven.
func TestAttackForgedMessagesOfAPeerWithoutScore(t *testing.T) {
	told := make(chan string, 10)
	r := newRouter(t, newHost(t), func(c *Config) {
		c.Graylisted = func(id peer.ID, score float64) { told <- fmt.Sprint(id == "x", score < graylistThreshold) }
		c.Forgiven = func(id peer.ID, score float64) { told <- fmt.Sprint("forgiven ", id == "x") }
	})
	r.scoring = true // without gossipsub's own seconds
	next := func() string {
		select {
		case s := <-told:
			return s
		case <-within(t).Done():
			return "nothing"
		}
	}
	for range 20 {
		r.unscored("x")
	}
	r.scored(nil)
	if got := next(); got != "true true" {
		t.Fatalf("told: %s", got)
	}
	rpc := func() *pubsub.RPC {
		return &pubsub.RPC{RPC: pubsub_pb.RPC{
			Publish: []*pubsub_pb.Message{signed(t, r.cfg.Host, "t", 1)}, Control: &pubsub_pb.ControlMessage{},
			Subscriptions: []*pubsub_pb.RPC_SubOpts{{Topicid: topicName("t")}},
		}}
	}
	if m := rpc(); r.inspect("x", m) != nil || m.Publish != nil || m.Control != nil || len(m.Subscriptions) != 1 {
		t.Errorf("of a graylisted peer is left: %v", m)
	}
	seconds := 0
	for ; r.isGray("x"); seconds++ {
		if seconds > 60 {
			t.Fatal("the peer is not forgiven in a minute")
		}
		r.scored(nil)
	}
	if seconds < 5 || seconds > 15 {
		t.Errorf("the peer is forgiven after %d seconds", seconds)
	}
	if got := next(); got != "forgiven true" {
		t.Errorf("told: %s", got)
	}
	if m := rpc(); r.inspect("x", m) != nil || m.Control == nil {
		t.Error("a peer that was forgiven is not heard")
	}
}

// Scores of the application's own conflict with those of the node.
func TestOwnScoresConflict(t *testing.T) {
	s := Scoring{Nodes: 20, Rate: 1}
	own := pubsub.WithPeerScore(s.Peer(func(peer.ID) float64 { return 0 }), s.Thresholds())
	inspect := pubsub.WithPeerScoreInspect(func(map[peer.ID]float64) {}, time.Second)
	for _, c := range []struct {
		name    string
		scoring *Scoring
		opts    []pubsub.Option
		want    error
	}{
		{"own", nil, []pubsub.Option{own}, nil},
		{"own, inspected", nil, []pubsub.Option{own, inspect}, nil},
		{"both", &s, []pubsub.Option{own}, ErrOwnScore},
		{"both, inspected", &s, []pubsub.Option{own, inspect}, ErrOwnScore},
		{"inspected", &s, []pubsub.Option{inspect}, errOwnInspect},
		{"neither", &s, []pubsub.Option{pubsub.WithFloodPublish(true)}, nil},
	} {
		cfg := Config{
			Host: newHost(t), Blacklist: pubsub.NewMapBlacklist(), MaxMessageSize: 1 << 20, QueueBytes: 8 << 20, TotalBytes: 64 << 20,
			Log: slog.New(slog.DiscardHandler), Options: c.opts, Scoring: c.scoring,
			Graylisted: func(peer.ID, float64) {}, Forgiven: func(peer.ID, float64) {},
		}
		r, err := New(context.Background(), cfg)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, not %v", c.name, err, c.want)
		}
		if err == nil {
			must(t, r.Close())
		}
	}
}

// Gossipsub accepts the parameters that are computed, whatever the network: it
// checks them where they are used only.
func TestComputedParametersAreValid(t *testing.T) {
	rates := []float64{math.SmallestNonzeroFloat64, 1e-9, 0.01, 1, 20, 1e3, 1e6}
	for _, nodes := range []int{1, 2, 3, 7, 20, 21, 1000, math.MaxInt} {
		for _, perIP := range []int{0, 1, 5, math.MaxInt32} {
			r := newRouter(t, newHost(t), func(c *Config) {
				c.Scoring = &Scoring{Nodes: nodes, Rate: 1, PeersPerIP: perIP}
				c.Graylisted, c.Forgiven = func(peer.ID, float64) {}, func(peer.ID, float64) {}
			})
			for _, rate := range rates {
				h, err := r.Open(within(t), fmt.Sprint(rate), Opening{Spec: Spec{Rate: rate}})
				if err != nil {
					t.Errorf("%d nodes, a rate of %v: %v", nodes, rate, err)
					continue
				}
				h.Close()
			}
			must(t, r.Close())
		}
	}
	for _, nodes := range []int{1, 2, 7, 1000} {
		for _, rate := range rates {
			// Nobody gets more for merits than the cap, and who delivers his share gets
			// half of what the best can.
			p := Scoring{Nodes: nodes, Rate: rate}.Topic(rate)
			best := p.FirstMessageDeliveriesWeight * p.FirstMessageDeliveriesCap
			if math.Abs(best-firstMax) > 1e-6 || p.TimeInMeshWeight*p.TimeInMeshCap > meshMax+1e-9 {
				t.Errorf("%d nodes, a rate of %v: merits of %v", nodes, rate, best)
			}
		}
	}
}

// Two routers of a process score by their own parameters, each on its own.
func TestRoutersScoreOnTheirOwn(t *testing.T) {
	needs.Time(t)
	gray := make(chan peer.ID, 10)
	scoring := func(s Scoring) func(*Config) {
		return func(c *Config) {
			c.Scoring = &s
			c.Graylisted, c.Forgiven = func(id peer.ID, _ float64) { gray <- id }, func(peer.ID, float64) {}
		}
	}
	a := newRouter(t, newHost(t), scoring(Scoring{Nodes: 2, Rate: 1000, Trusted: func(peer.ID) bool { return true }}))
	b := newRouter(t, newHost(t), scoring(Scoring{Nodes: 1000, Rate: 1, PeersPerIP: 5}))
	for _, r := range []*Router{a, b} {
		sub, err := r.Subscribe(within(t), "t", Reading{Buffer: 8})
		must(t, err)
		defer sub.Close()
	}
	connect(t, a.cfg.Host, b.cfg.Host)
	score := func(r, of *Router) (PeerScore, bool) {
		for _, s := range r.Scores() {
			if s.ID == of.cfg.Host.ID() {
				return s, true
			}
		}
		return PeerScore{}, false
	}
	until(t, func() bool { s, ok := score(a, b); return ok && s.Score >= trustBonus })
	until(t, func() bool { s, ok := score(b, a); return ok && s.Score < trustBonus })
	for range 100 {
		a.malformed(b.cfg.Host.ID())
	}
	select {
	case id := <-gray:
		if id != b.cfg.Host.ID() {
			t.Error("the wrong peer is graylisted")
		}
	case <-within(t).Done():
		t.Fatal("nobody is graylisted")
	}
	if s, _ := score(b, a); s.Graylisted || s.Score < 0 {
		t.Errorf("the peer has %+v", s)
	}
	if top, _ := a.Topic("t"); len(top.Peers) != 0 {
		t.Error("a graylisted peer counts as reached")
	}
}

// A peer that has restarted does not know that it was pruned: its graft is answered
// and does not reach gossipsub, which would hold it against the peer. That of a
// peer that knows does.
func TestGraftsAfterARestartAreNoOffense(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	sub, err := r.Subscribe(within(t), "t", Reading{Buffer: 8})
	must(t, err)
	defer sub.Close()
	h := newHost(t)
	prunes := make(chan *pubsub_pb.ControlPrune, 10)
	h.SetStreamHandler("/meshsub/1.1.0", func(s network.Stream) {
		for read := bufio.NewReader(s); ; {
			rpc := &pubsub_pb.RPC{}
			if protodelim.UnmarshalFrom(read, rpc) != nil {
				return
			}
			for _, p := range rpc.GetControl().GetPrune() {
				prunes <- p
			}
		}
	})
	connect(t, h, r.cfg.Host)
	speak := func() network.Stream {
		t.Helper()
		old := r.streams.bornAt(h.ID())
		s, err := h.NewStream(within(t), r.cfg.Host.ID(), "/meshsub/1.1.0")
		must(t, err)
		yes := true
		_, err = protodelim.MarshalTo(s, &pubsub_pb.RPC{Subscriptions: []*pubsub_pb.RPC_SubOpts{{Topicid: topicName("t"), Subscribe: &yes}}})
		must(t, err)
		until(t, func() bool { return r.streams.bornAt(h.ID()).After(old) })
		return s
	}
	graft := func() int {
		t.Helper()
		return len(inspected(t, r, h.ID(), &pubsub_pb.ControlMessage{Graft: []*pubsub_pb.ControlGraft{{TopicID: topicName("t")}}}).Graft)
	}
	s := speak()
	until(t, func() bool { top, _ := r.Topic("t"); return len(top.Peers) == 1 })
	if graft() != 1 {
		t.Error("the graft of a peer that nobody pruned is left out")
	}
	inspected(t, r, h.ID(), &pubsub_pb.ControlMessage{Prune: []*pubsub_pb.ControlPrune{{TopicID: topicName("t")}}})
	if graft() != 1 {
		t.Error("the graft of a peer that knows of the prune is left out")
	}
	must(t, s.Reset())
	speak()
	if graft() != 0 {
		t.Error("the graft of a peer that has restarted reaches gossipsub")
	}
	select {
	case p := <-prunes:
		if p.GetTopicID() != "t" || p.GetBackoff() == 0 || p.GetBackoff() > 60 {
			t.Errorf("the answer is %v", p)
		}
	case <-within(t).Done():
		t.Error("the peer is not told again that it was pruned")
	}
	if a := r.account(h.ID()); a.points != 0 {
		t.Errorf("it costs %v points", a.points)
	}
}
