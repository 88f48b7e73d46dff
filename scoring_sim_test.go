package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// scoreWatch keeps the lowest score that nodes give each other, looked at each
// second of virtual time.
type scoreWatch struct {
	mu     sync.Mutex
	lowest float64 // guarded by mu
	whose  string  // guarded by mu
	gray   int     // guarded by mu
	looks  int     // guarded by mu
	phase  string  // guarded by mu
}

func (w *scoreWatch) enter(phase string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = phase
}

func watchScores(t *testing.T, nodes []*p2ptest.Node) (w *scoreWatch, stop func()) {
	w = &scoreWatch{lowest: math.Inf(1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for i, n := range nodes {
				for _, s := range n.Status().Scores {
					w.mu.Lock()
					w.looks++
					if s.Score < w.lowest {
						w.lowest, w.whose = s.Score, fmt.Sprintf("%s, seen by node %d: %s", s.ID, i, w.phase)
					}
					if s.Graylisted {
						w.gray++
					}
					w.mu.Unlock()
				}
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
	return w, func() { cancel(); wg.Wait() }
}

// handedBack counts the messages of an author that others send to it.
type handedBack struct {
	author peer.ID // set before anything is published
	n      atomic.Int64
}

// Trace counts messages whose ID begins with "author".
func (h *handedBack) Trace(e *pubsub_pb.TraceEvent) {
	if e.GetType() != pubsub_pb.TraceEvent_SEND_RPC || string(e.GetSendRPC().GetSendTo()) != string(h.author) {
		return
	}
	for _, m := range e.GetSendRPC().GetMeta().GetMessages() {
		if strings.HasPrefix(string(m.GetMessageID()), "author") {
			h.n.Add(1)
		}
	}
}

// An author that restarts asks for its own messages where the IDs of a topic do not
// tell whose they are. Those who send them keep their scores, and it does not
// receive them.
func TestHonestPeersHandMessagesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		back := &handedBack{}
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(),
			p2ptest.WithNodeOptions(p2pnode.WithPeerScoring(p2pnode.ScoringSmall()), p2pnode.WithPubSubOptions(pubsub.WithEventTracer(back))))
		nodes := sim.Nodes(t, 16) // more than a mesh has: those outside are told what there is
		sim.Ready()
		back.author = nodes[4].ID()
		byData := p2pnode.TopicMessageID(func(m *p2pnode.Message) string { return string(m.Data) })
		var author *p2pnode.Topic
		for i, n := range nodes {
			if topic, _ := topicOf(t, n, byData); i == 4 {
				author = topic
			}
		}
		sim.Subscribed("news", nodes)
		sim.Meshed("news")
		w, stop := watchScores(t, nodes)
		for round := range 2 {
			for i := range 20 {
				publishTo(t, author, fmt.Sprint("author ", round, i))
			}
			time.Sleep(500 * time.Millisecond) // they are still news after the restart
			sim.Restart(nodes[4])
			var sub *p2pnode.Subscription
			author, sub = topicOf(t, nodes[4], byData)
			time.Sleep(15 * time.Second) // longer than a promise to send a message lasts
			if list := p2ptest.Take(sub); len(list) > 0 {
				t.Errorf("the author has received %d of its messages", len(list))
			}
		}
		stop()
		t.Logf("lowest score %.2f (%s), %d messages handed back", w.lowest, w.whose, back.n.Load())
		if back.n.Load() == 0 {
			t.Error("nobody has sent the author a message of its own: the test shows nothing")
		}
		if w.looks == 0 || w.gray > 0 || w.lowest < 0 {
			t.Errorf("%d scores, the lowest is %.2f (%s); %d are graylisted", w.looks, w.lowest, w.whose, w.gray)
		}
	})
}

// What honest nodes go through costs none of them a score below 0, under which a
// peer leaves the mesh: restarts, a partition, a slow link, a burst, and a rolling
// upgrade of a validator. Afterwards all messages arrive.
func TestHonestPeersKeepTheirScores(t *testing.T) {
	raced.Skip(t)
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(p2pnode.WithPeerScoring(p2pnode.ScoringSmall())))
		nodes := sim.Nodes(t, 8)
		sim.Ready()
		subs := make([]*p2pnode.Subscription, len(nodes))
		join := func(i int) {
			t.Helper()
			sub, err := nodes[i].Subscribe(t.Context(), "news", p2pnode.SubscribeBuffer(10_000))
			if err != nil {
				t.Fatal(err)
			}
			subs[i] = sub
		}
		for i := range nodes {
			join(i)
		}
		sim.Subscribed("news", nodes)
		w, stop := watchScores(t, nodes)
		publish := func(n *p2ptest.Node, count int) {
			t.Helper()
			for i := range count {
				if err := n.Publish(t.Context(), "news", fmt.Append(nil, time.Now(), i)); err != nil && !errors.Is(err, p2pnode.ErrClosed) {
					t.Error(err)
				}
			}
		}
		life := func(phase string, seconds int) {
			t.Helper()
			w.enter(phase)
			for range seconds {
				publish(nodes[0], 1)
				publish(nodes[7], 1)
				time.Sleep(time.Second)
			}
		}
		life("at first", 10)
		for i := 1; i < 4; i++ {
			w.enter("a restart")
			sim.Restart(nodes[i])
			join(i)
			life("after a restart", 3)
		}
		// One that publishes itself gets its own messages back.
		publish(nodes[4], 20)
		sim.Restart(nodes[4])
		join(4)
		life("after the restart of an author", 10)

		sim.Partition(nodes[:4], nodes[4:])
		life("a partition", 30)
		sim.Heal()
		sim.Connected(nodes[:4], nodes[4:])
		life("after a partition", 20)

		sim.SetLink(nodes[5], p2ptest.Link{Latency: 2 * time.Second})
		life("a slow link", 20)
		w.enter("a burst")
		publish(nodes[6], 500)
		life("after a burst", 10)
		sim.SetLink(nodes[5], p2ptest.Link{})

		life("the end", 5)
		for _, s := range subs {
			p2ptest.Take(s)
		}
		publish(nodes[2], 100)
		for _, s := range subs {
			sim.Delivered(s, 100)
		}
		stop()
		t.Logf("lowest score %.2f (%s)", w.lowest, w.whose)
		if w.looks == 0 || w.gray > 0 || w.lowest < 0 {
			t.Errorf("%d scores, the lowest is %.2f (%s); %d are graylisted", w.looks, w.lowest, w.whose, w.gray)
		}
	})
}

// During an upgrade the nodes of one version send what the validators of the other
// reject. It costs them at most a place in the mesh, and messages that both accept
// arrive everywhere.
func TestValidatorsOfTwoVersionsGraylistNobody(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	rounds := 60
	if raced.Detector {
		rounds = 10
	}
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(p2pnode.WithPeerScoring(p2pnode.ScoringSmall())))
		nodes := sim.Nodes(t, 8)
		sim.Ready()
		var topics []*p2pnode.Topic
		var subs []*p2pnode.Subscription
		for i, n := range nodes {
			old := i < 4
			topic, sub := topicOf(t, n, p2pnode.TopicValidator(func(_ context.Context, m *p2pnode.Message) error {
				if old && strings.HasPrefix(string(m.Data), "new") {
					return errors.New("unknown version")
				}
				return nil
			}))
			topics, subs = append(topics, topic), append(subs, sub)
		}
		sim.Subscribed("news", nodes)
		w, stop := watchScores(t, nodes)
		for i := range rounds {
			for _, topic := range topics[4:] {
				for j := range 5 {
					publishTo(t, topic, fmt.Sprint("new ", i, j))
				}
			}
			time.Sleep(time.Second)
		}
		for _, s := range subs {
			p2ptest.Take(s)
		}
		publishTo(t, topics[7], "both")
		publishTo(t, topics[0], "both")
		for _, s := range subs {
			sim.Delivered(s, 2)
		}
		stop()
		t.Logf("lowest score %.2f (%s)", w.lowest, w.whose)
		// 10 is all that rejected messages cost.
		if w.looks == 0 || w.gray > 0 || w.lowest < -10 {
			t.Errorf("%d scores, the lowest is %.2f (%s); %d are graylisted", w.looks, w.lowest, w.whose, w.gray)
		}
	})
}

// An application has its own scores, or the node's.
func TestOwnScoresAreAnOptionError(t *testing.T) {
	p := p2pnode.ScoringSmall().Params()
	p.Peer.AppSpecificScore = func(peer.ID) float64 { return 0 }
	_, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithPeerScoring(p2pnode.ScoringSmall()),
		p2pnode.WithPubSubOptions(pubsub.WithPeerScore(p.Peer, p.Thresholds)))
	var wrong *p2pnode.OptionError
	if !errors.As(err, &wrong) || wrong.Option != "WithPeerScoring" {
		t.Errorf("New = %v", err)
	}
}
