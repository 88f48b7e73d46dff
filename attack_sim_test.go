package p2pnode_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

const gossipID = "/meshsub/1.1.0"

// assault is an attack on pubsub: what each attacker writes to each node, every
// tenth of a second.
type assault struct {
	name string
	// grays is false for attacks that no score can tell from an honest peer; why says
	// what bounds them.
	grays bool
	why   string
	// eclipse makes two attackers for each honest node attack one node only, before
	// it joins the topic.
	eclipse bool
	size    int // of an honest message, in bytes
	burst   int // how many messages the honest nodes send at once, at least one each
	// write sends a tick of the attack on a stream that is so many ticks old.
	write func(a *attacker, s network.Stream, tick int) error
	// read reads what a node sends; nil discards it.
	read func(ctx context.Context, a *attacker, s network.Stream)
}

// attacker is a hostile peer with a stream to each node.
type attacker struct {
	*p2ptest.Hostile
	mu     sync.Mutex
	number uint64   // guarded by mu
	copies [][]byte // of messages that it has heard; guarded by mu
	force  int      // how much of a flood it sends at once
	wrote  atomic.Int64
	heard  atomic.Int64 // bytes that nodes have sent it
}

func (a *attacker) send(s network.Stream, rpc *pubsub_pb.RPC) error {
	var b bytes.Buffer
	if _, err := protodelim.MarshalTo(&b, rpc); err != nil {
		return err
	}
	return a.raw(s, b.Bytes())
}

func (a *attacker) raw(s network.Stream, b []byte) error {
	n, err := s.Write(b)
	a.wrote.Add(int64(n))
	return err
}

// count returns a number that the attacker has not used yet.
func (a *attacker) count() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	return a.number
}

// forged returns a message with an invalid signature.
func (a *attacker) forged(data []byte) *pubsub_pb.Message {
	topic := "news"
	return &pubsub_pb.Message{
		From: []byte(a.ID()), Data: data, Seqno: binary.BigEndian.AppendUint64(nil, a.count()), Topic: &topic, Signature: make([]byte, 64),
	}
}

var assaults = []assault{
	{
		name: "invalid signatures", grays: true,
		write: func(a *attacker, s network.Stream, _ int) error {
			return a.send(s, &pubsub_pb.RPC{Publish: []*pubsub_pb.Message{a.forged([]byte("x")), a.forged([]byte("x"))}})
		},
	},
	{
		name: "control floods", grays: true,
		write: func(a *attacker, s network.Stream, _ int) error {
			topic, ids := "news", make([]string, 500*a.force)
			for i := range ids {
				ids[i] = string(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano())+uint64(i)))
			}
			c := &pubsub_pb.ControlMessage{
				Ihave: []*pubsub_pb.ControlIHave{{TopicID: &topic, MessageIDs: ids}}, Iwant: []*pubsub_pb.ControlIWant{{MessageIDs: ids}},
			}
			for range 100 {
				c.Graft = append(c.Graft, &pubsub_pb.ControlGraft{TopicID: &topic})
				c.Prune = append(c.Prune, &pubsub_pb.ControlPrune{TopicID: &topic})
			}
			return a.send(s, &pubsub_pb.RPC{Control: c})
		},
	},
	{
		name: "oversized", grays: true,
		write: func(a *attacker, s network.Stream, _ int) error {
			return a.raw(s, append(binary.AppendUvarint(nil, 8<<20), make([]byte, 100)...))
		},
	},
	{
		name: "subscription floods", grays: true,
		write: func(a *attacker, s network.Stream, _ int) error {
			rpc, yes := &pubsub_pb.RPC{}, true
			for range 500 * a.force {
				name := fmt.Sprintf("topic %d", a.count())
				rpc.Subscriptions = append(rpc.Subscriptions, &pubsub_pb.RPC_SubOpts{Topicid: &name, Subscribe: &yes})
			}
			return a.send(s, rpc)
		},
	},
	{
		name: "replay", why: "a repetition costs a look-up, and is not sent on; 30,000 at once and a few hundred a second are what an honest peer may send that was cut off",
		read: func(_ context.Context, a *attacker, s network.Stream) {
			for {
				rpc := &pubsub_pb.RPC{}
				if err := (protodelim.UnmarshalOptions{}).UnmarshalFrom(byteReader{s, a}, rpc); err != nil {
					return
				}
				a.mu.Lock()
				for _, m := range rpc.Publish {
					if b, err := proto.Marshal(m); err == nil && len(a.copies) < 50 {
						a.copies = append(a.copies, b)
					}
				}
				a.mu.Unlock()
			}
		},
		write: func(a *attacker, s network.Stream, _ int) error {
			a.mu.Lock()
			list := slices.Clone(a.copies)
			a.mu.Unlock()
			rpc := &pubsub_pb.RPC{}
			for _, b := range list {
				m := &pubsub_pb.Message{}
				if err := proto.Unmarshal(b, m); err != nil {
					return err
				}
				rpc.Publish = append(rpc.Publish, m)
			}
			return a.send(s, rpc)
		},
	},
	{
		name: "eclipse", eclipse: true, why: "a silent peer in the mesh breaks no rule; authors send to all peers, two of the mesh are dialed, and others tell what there is each second",
		write: func(a *attacker, s network.Stream, tick int) error {
			topic := "news"
			if tick == 20 { // the victim has joined
				return a.send(s, &pubsub_pb.RPC{Control: &pubsub_pb.ControlMessage{Graft: []*pubsub_pb.ControlGraft{{TopicID: &topic}}}})
			}
			return nil
		},
	},
	{
		name: "a reader that never reads", why: "what waits for it is bounded in bytes, and no message for others waits behind it",
		read: func(ctx context.Context, _ *attacker, _ network.Stream) { <-ctx.Done() },
		size: 64 << 10, burst: 12,
		write: func(*attacker, network.Stream, int) error { return nil },
	},
}

// byteReader counts what an attacker reads.
type byteReader struct {
	s network.Stream
	a *attacker
}

func (r byteReader) Read(p []byte) (int, error) {
	n, err := r.s.Read(p)
	r.a.heard.Add(int64(n))
	return n, err
}

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// siege is the result of an attack.
type siege struct {
	sent, arrived int
	gray          time.Duration // until every node had graylisted every attacker it hears; -1 for never
	lowest        float64       // score of an honest peer
	wrote, heard  int64         // bytes that attackers got rid of, and that nodes sent them
	share         float64       // the largest of attackers among the peers of the first node
	mesh, honest  int           // the most attackers in its mesh, and the fewest honest nodes then
	alone         int           // for how many seconds no honest node was in its mesh
	heap          uint64        // per honest node, all included
}

// besiege lets attackers attack for a while, and honest nodes publish.
func besiege(t *testing.T, what assault, honest, hostile int, opts ...p2pnode.Option) (r siege) {
	t.Helper()
	ticks, force := 80, 1 // 8 seconds
	if longRun() {
		ticks, force = 120, 4
	}
	sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithLatency(p2ptest.Fixed(20*time.Millisecond)),
		p2ptest.WithNodeOptions(append(opts, p2pnode.WithLimits(p2pnode.Limits{PubSub: 64 << 20, PubSubQueue: 2 << 20}))...))
	nodes := sim.Nodes(t, honest)
	sim.Ready()
	if what.eclipse { // the victim is the one that has dialed most of the others
		slices.SortFunc(nodes, func(a, b *p2ptest.Node) int { return outbound(b) - outbound(a) })
	}
	subs := make([]*p2pnode.Subscription, len(nodes))
	join := func(i int) {
		sub, err := nodes[i].Subscribe(t.Context(), "news", p2pnode.SubscribeBuffer(10_000))
		if err != nil {
			t.Fatal(err)
		}
		subs[i] = sub
	}
	late := 0
	if what.eclipse {
		late = 1
	}
	for i := range nodes[late:] {
		join(late + i)
	}
	sim.Subscribed("news", nodes[late:])
	time.Sleep(5 * time.Second)
	evil := make(map[peer.ID]bool)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	victims := nodes
	if what.eclipse {
		hostile, victims = 2*honest, nodes[:1]
	}
	var attackers []*attacker
	for range hostile {
		a := &attacker{Hostile: sim.Hostile(t), force: force}
		attackers = append(attackers, a)
		evil[a.ID()] = true
		a.SetStreamHandler(gossipID, func(s network.Stream) {
			go func() { <-ctx.Done(); _ = s.Reset() }()
			if what.read != nil {
				what.read(ctx, a, s)
				return
			}
			_, _ = io.Copy(io.Discard, byteReader{s, a})
		})
		for _, n := range victims {
			wg.Go(func() { a.attack(ctx, n.AddrInfo(), what, ticks) })
		}
	}
	if what.eclipse {
		time.Sleep(time.Second)
		join(0)
		time.Sleep(2 * time.Second)
	}
	r.gray, r.lowest = -1, math.Inf(1)
	grayed := make(map[[2]peer.ID]bool)
	seen := make([]map[string]bool, len(subs))
	for i := range seen {
		seen[i] = make(map[string]bool)
	}
	drain := func() {
		for i, sub := range subs {
			for _, m := range p2ptest.Take(sub) {
				if key := string(m.Author) + string(m.Data[:8]); !evil[m.Author] && !seen[i][key] {
					seen[i][key] = true
					r.arrived++
				}
			}
		}
	}
	begun := time.Now()
	for range ticks / 10 {
		for _, n := range nodes {
			for range max(what.burst/honest, 1) {
				data := make([]byte, max(what.size, 1000))
				binary.BigEndian.PutUint64(data, uint64(r.sent))
				if err := n.Publish(t.Context(), "news", data); err != nil {
					t.Error(err)
				}
				r.sent++
			}
		}
		time.Sleep(time.Second)
		drain()
		hostiles, of := 0, 0
		for _, topic := range nodes[0].Status().Topics {
			bad := 0
			for _, id := range topic.Mesh {
				if evil[id] {
					bad++
				}
			}
			good := len(topic.Mesh) - bad
			if bad > r.mesh || bad == r.mesh && good < r.honest {
				r.mesh, r.honest = bad, good
			}
			if good == 0 {
				r.alone++
			}
			for _, id := range topic.Peers {
				of++
				if evil[id] {
					hostiles++
				}
			}
		}
		if of > 0 {
			r.share = max(r.share, float64(hostiles)/float64(of))
		}
		for _, n := range nodes {
			for _, s := range n.Status().Scores {
				switch {
				case !evil[s.ID]:
					r.lowest = min(r.lowest, s.Score)
				case s.Graylisted:
					grayed[[2]peer.ID{n.ID(), s.ID}] = true
				}
			}
		}
		if r.gray < 0 && len(grayed) == len(victims)*hostile {
			r.gray = time.Since(begun)
		}
	}
	time.Sleep(5 * time.Second)
	drain()
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.heap = mem.HeapAlloc / uint64(honest)
	cancel()
	wg.Wait()
	for _, a := range attackers {
		r.wrote += a.wrote.Load()
		r.heard += a.heard.Load()
	}
	return r
}

// outbound returns to how many of its peers a node has dialed the connection.
func outbound(n *p2ptest.Node) (count int) {
	for _, p := range n.Status().Peers {
		if p.Direction == "outbound" {
			count++
		}
	}
	return count
}

// attack writes to one node.
func (a *attacker) attack(ctx context.Context, victim peer.AddrInfo, what assault, ticks int) {
	var s network.Stream
	age := 0
	for range ticks {
		if ctx.Err() != nil {
			break
		}
		if s == nil {
			if a.Connect(ctx, victim) == nil {
				if s, _ = a.NewStream(ctx, victim.ID, gossipID); s != nil {
					age = 0
					topic, yes := "news", true
					_ = a.send(s, &pubsub_pb.RPC{Subscriptions: []*pubsub_pb.RPC_SubOpts{{Topicid: &topic, Subscribe: &yes}}})
				}
			}
		}
		if s != nil {
			_ = s.SetWriteDeadline(time.Now().Add(time.Second))
			err := what.write(a, s, age)
			if age++; err != nil {
				_ = s.Reset()
				s = nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if s != nil {
		_ = s.Reset()
	}
}

// An attack loses no message of honest nodes, whether or not there are scores. With
// them, who attacks is graylisted within ten seconds where scores are the defense,
// and no honest peer has a score below 0.
func TestAttackPubSubUnderSiege(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	honest, hostile := 6, 3
	if longRun() {
		honest, hostile = 20, 10
	}
	for i, what := range assaults {
		for _, scoring := range []bool{true, false} {
			if raced.Detector && (i > 1 || !scoring) { // which takes minutes: .ci/run has all of them without it
				continue
			}
			name := what.name + ", unscored"
			if scoring {
				name = what.name + ", scored"
			}
			t.Run(name, func(t *testing.T) {
				if !longRun() { // one at a time for the heap
					t.Parallel()
				}
				synctest.Test(t, func(t *testing.T) {
					var opts []p2pnode.Option
					if scoring {
						opts = append(opts, p2pnode.WithPeerScoring(p2pnode.ScoringSmall()))
					}
					r := besiege(t, what, honest, hostile, opts...)
					t.Logf("arrived %d of %d, graylisted after %v, lowest honest score %.1f, attackers wrote %d KiB and were sent %d KiB, heap %d KiB a node, %.2f of the peers hostile, the mesh at worst %d to %d, for %d s without an honest node",
						r.arrived, r.sent*honest, r.gray, r.lowest, r.wrote>>10, r.heard>>10, r.heap>>10, r.share, r.mesh, r.honest, r.alone)
					if r.arrived != r.sent*honest {
						t.Errorf("%d of %d messages arrived", r.arrived, r.sent*honest)
					}
					if scoring && what.grays && (r.gray < 0 || r.gray > 10*time.Second) {
						t.Errorf("all attackers were graylisted after %v", r.gray)
					}
					if what.eclipse && r.share < 0.6 {
						t.Errorf("of the peers of the victim %v were attackers: that is no eclipse", r.share)
					}
					// Gossipsub grafts two that the node has dialed, of at least three, but
					// not while one of them has just pruned it.
					if what.eclipse && r.honest < 1 {
						t.Errorf("all %d in the victim's mesh were attackers", r.mesh)
					}
					if scoring && (r.lowest < 0 || math.IsInf(r.lowest, 1)) {
						t.Errorf("the lowest score of an honest peer was %v", r.lowest)
					}
				})
			})
		}
	}
}
