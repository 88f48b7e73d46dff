package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

const (
	topic = "simulate"
	// stagger is the time between two starts. New connections are protected from
	// trimming for 20 seconds, so a longer start means fewer at a time.
	stagger    = 200 * time.Millisecond
	downtime   = 30 * time.Second // of a crashed node
	findLimit  = 30 * time.Second // how long a search may take
	deliverFor = 10 * time.Second // how long a message may take to reach all nodes
)

// result is the result of one network. Times are virtual: the time to join in
// seconds, others in milliseconds.
type result struct {
	Nodes          int     `json:"nodes"`
	TablesFilled   float64 `json:"tablesFilledSeconds"`
	Found          float64 `json:"foundShare"`
	FindTime       spread  `json:"findMilliseconds"`
	LookupHops     float64 `json:"lookupHops"`
	LookupRequests float64 `json:"lookupRequests"`
	Reached        float64 `json:"reachedShare"`
	DeliverTime    spread  `json:"deliverMilliseconds"`
	GossipHops     float64 `json:"gossipHops"`
	Copies         float64 `json:"copiesPerMessage"`
	Duplicates     float64 `json:"duplicatesPerMessage"`
	Connections    float64 `json:"connections"`
	Queries        float64 `json:"queriesWhileJoining"`
	Crashes        int     `json:"crashes"`
}

// simulate runs one network. Between steps it calls goOn, which ends the test if
// the user has interrupted it.
func (s *settings) simulate(t *testing.T, n int, progress *status, goOn func()) result {
	ctx := t.Context()
	var queries atomic.Int64
	copies := &copyCounter{}
	opts := []p2ptest.Option{
		p2ptest.WithSeed(s.Seed), p2ptest.WithLatency(s.latency), p2ptest.WithLink(p2ptest.Link{Loss: s.Loss}),
		p2ptest.WithNodeOptions(
			p2pnode.WithConnLimits(s.Low, s.High),
			p2pnode.WithPubSubOptions(pubsub.WithRawTracer(copies)),
		),
	}
	shape := p2ptest.Random(min(3, n-1))
	if s.Lookups > 0 {
		opts = append(opts, p2ptest.WithNodeOptions(p2pnode.WithDHTOptions(dht.BucketSize(s.Bucket), dht.Concurrency(s.Alpha),
			dht.OnRequestHook(func(context.Context, network.Stream, *dhtpb.Message) { queries.Add(1) }))))
	} else {
		shape = p2ptest.Random(min(s.Low/2, n-1))
		opts = append(opts, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
	}
	switch s.Scores {
	case "small":
		opts = append(opts, p2ptest.WithNodeOptions(p2pnode.WithPeerScoring(p2pnode.ScoringSmall())))
	case "large":
		opts = append(opts, p2ptest.WithNodeOptions(p2pnode.WithPeerScoring(p2pnode.ScoringLarge())))
	}
	if s.Transport == "memory" {
		opts = append(opts, p2ptest.WithMemoryTransport())
	}
	sim := p2ptest.NewNetwork(t, opts...)
	chance := sim.Rand("simulate")
	r := result{Nodes: n}

	begun := time.Now()
	nodes := sim.Nodes(t, n, shape, p2ptest.Stagger(stagger),
		p2ptest.Started(func(i int, _ *p2ptest.Node) {
			goOn()
			progress.set("%d nodes: starting, %d so far", n, i+1)
		}))
	sim.Ready()
	for i, node := range nodes {
		if s.Lookups == 0 {
			break
		}
		goOn()
		progress.set("%d nodes: filling routing tables, %v of virtual time, %d ready", n, time.Since(begun).Round(time.Second), i)
		sim.RoutingTable(node, min(s.Bucket, n-1)*3/4)
	}
	r.TablesFilled = time.Since(begun).Seconds()
	r.Queries = float64(queries.Load()) / float64(n)

	members := &members{deliveries: make(map[string]map[peer.ID]delivery)}
	defer members.wg.Wait()
	for _, node := range nodes {
		mustNot(t, members.add(node.Current()))
	}
	sim.Meshed(topic)
	var crashes atomic.Int64
	stopChurn := func() {}
	if s.Churn > 0 {
		stopChurn = sim.Churn(nodes, time.Duration(float64(time.Minute)/s.Churn), downtime, func(again *p2ptest.Node) {
			crashes.Add(1)
			mustNot(t, members.add(again.Current()))
		})
	}
	running := func() *p2ptest.Node {
		for {
			if node := nodes[chance.IntN(n)]; !node.Status().Closed {
				return node
			}
		}
	}

	var findTimes []time.Duration
	var hops, requests []int
	for i := range s.Lookups {
		goOn()
		progress.set("%d nodes: lookup %d of %d", n, i+1, s.Lookups)
		c, err := p2pnode.CIDOf(strings.NewReader(fmt.Sprint("content ", i)))
		mustNot(t, err)
		provider := running()
		provideCtx, cancel := context.WithTimeout(ctx, findLimit)
		err = provider.Provide(provideCtx, c)
		cancel()
		if err != nil && s.Churn == 0 && s.Loss == 0 {
			t.Errorf("%d nodes: %v", n, err)
		}
		seeker := running()
		for seeker.ID() == provider.ID() {
			seeker = running()
		}
		l := find(ctx, seeker, c, provider.ID())
		if l.found {
			findTimes = append(findTimes, l.took)
			hops, requests = append(hops, l.hops), append(requests, l.requests)
		}
	}
	r.Found = float64(len(findTimes)) / float64(max(s.Lookups, 1))
	r.FindTime, r.LookupHops, r.LookupRequests = spreadOf(findTimes), mean(hops), mean(requests)

	// Publish messages from random nodes, and let each settle.
	before, repeated := copies.received.Load(), copies.repeated.Load()
	expected, reached := 0, 0
	var deliveries []time.Duration
	var gossipHops []int
	for i := range s.Messages {
		goOn()
		progress.set("%d nodes: message %d of %d", n, i+1, s.Messages)
		text := fmt.Sprint("message ", i)
		there := members.running()
		publisher := running()
		sent := time.Now()
		mustNot(t, publisher.Publish(ctx, topic, []byte(text), p2pnode.PublishNow()))
		time.Sleep(deliverFor)
		got := members.take(text)
		for id, d := range got {
			if id == publisher.ID() {
				continue
			}
			deliveries = append(deliveries, d.at.Sub(sent))
			if h := way(got, publisher.ID(), id); h > 0 {
				gossipHops = append(gossipHops, h)
			}
		}
		for _, node := range there { // those that did not crash meanwhile
			if node.ID() == publisher.ID() || node.Status().Closed {
				continue
			}
			expected++
			if _, ok := got[node.ID()]; ok {
				reached++
			}
		}
	}
	stopChurn()
	r.Reached = float64(reached) / float64(max(expected, 1))
	r.DeliverTime, r.GossipHops = spreadOf(deliveries), mean(gossipHops)
	each := float64(s.Messages) * float64(n)
	r.Copies = float64(copies.received.Load()-before) / each
	r.Duplicates = float64(copies.repeated.Load()-repeated) / each
	conns := 0
	for _, node := range nodes {
		conns += len(node.Peers())
	}
	r.Connections = float64(conns) / float64(n)
	r.Crashes = int(crashes.Load())
	progress.set("%d nodes: closing", n)
	return r
}

func mustNot(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lookup is a search for a provider.
type lookup struct {
	found    bool
	took     time.Duration
	hops     int // the longest chain of queried peers, each returned by the one before
	requests int // the number of queried peers
}

func find(ctx context.Context, node *p2ptest.Node, c cid.Cid, provider peer.ID) (l lookup) {
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	ctx, events := dht.RegisterForLookupEvents(ctx)
	var mu sync.Mutex
	depth := make(map[peer.ID]int)
	longest, asked := 0, 0
	go func() { // ends with ctx
		for ev := range events {
			mu.Lock()
			if r := ev.Request; r != nil {
				for _, p := range r.Waiting {
					asked++
					longest = max(longest, depth[p.Peer])
				}
			}
			if r := ev.Response; r != nil && r.Cause != nil {
				for _, p := range r.Heard {
					if _, known := depth[p.Peer]; !known {
						depth[p.Peer] = depth[r.Cause.Peer] + 1
					}
				}
			}
			mu.Unlock()
		}
	}()
	begun := time.Now()
	for ai, err := range node.FindProviders(ctx, c) {
		if err == nil && ai.ID == provider {
			mu.Lock()
			l = lookup{found: true, took: time.Since(begun), hops: longest, requests: asked}
			mu.Unlock()
			break
		}
	}
	return l
}

// members are the subscribers of the topic and the messages that reached them.
type members struct {
	wg sync.WaitGroup

	mu         sync.Mutex
	runs       []*p2pnode.Node                 // guarded by mu
	deliveries map[string]map[peer.ID]delivery // by text and receiver; guarded by mu
}

type delivery struct {
	at   time.Time
	from peer.ID
}

// add subscribes a node and records its messages until it closes.
func (m *members) add(node *p2pnode.Node) error {
	sub, err := node.Subscribe(context.Background(), topic)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.runs = append(m.runs, node)
	m.mu.Unlock()
	go func() { // ends when the node closes
		for msg := range sub.Messages(context.Background()) {
			m.mu.Lock()
			text := string(msg.Data)
			if m.deliveries[text] == nil {
				m.deliveries[text] = make(map[peer.ID]delivery)
			}
			m.deliveries[text][node.ID()] = delivery{time.Now(), msg.From}
			m.mu.Unlock()
		}
	}()
	return nil
}

// running returns the subscribers that are running.
func (m *members) running() []*p2pnode.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*p2pnode.Node
	for _, node := range m.runs {
		if !node.Status().Closed {
			list = append(list, node)
		}
	}
	return list
}

func (m *members) take(text string) map[peer.ID]delivery {
	m.mu.Lock()
	defer m.mu.Unlock()
	got := m.deliveries[text]
	delete(m.deliveries, text)
	return got
}

// way returns the number of hops that a message took to a node; 0 if part of its
// path is unknown.
func way(got map[peer.ID]delivery, publisher, to peer.ID) int {
	for hops := 1; hops <= len(got); hops++ {
		d, ok := got[to]
		switch {
		case !ok:
			return 0
		case d.from == publisher:
			return hops
		}
		to = d.from
	}
	return 0
}

// copyCounter counts the messages that routers received.
type copyCounter struct {
	received atomic.Int64 // all of them
	repeated atomic.Int64 // those that a router had already
}

func (c *copyCounter) DeliverMessage(m *pubsub.Message) {
	if !m.Local {
		c.received.Add(1)
	}
}

func (c *copyCounter) DuplicateMessage(*pubsub.Message) {
	c.received.Add(1)
	c.repeated.Add(1)
}

// The rest of pubsub.RawTracer.
func (*copyCounter) OnNewOutboundStream(peer.ID, protocol.ID)             {}
func (*copyCounter) OnClosedOutboundStream(peer.ID)                       {}
func (*copyCounter) Join(string)                                          {}
func (*copyCounter) Leave(string)                                         {}
func (*copyCounter) Graft(peer.ID, string)                                {}
func (*copyCounter) Prune(peer.ID, string)                                {}
func (*copyCounter) ValidateMessage(*pubsub.Message)                      {}
func (*copyCounter) RejectMessage(*pubsub.Message, string)                {}
func (*copyCounter) ThrottlePeer(peer.ID)                                 {}
func (*copyCounter) RecvRPC(*pubsub.RPC)                                  {}
func (*copyCounter) SendRPC(*pubsub.RPC, peer.ID)                         {}
func (*copyCounter) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
func (*copyCounter) DropRPC(*pubsub.RPC, peer.ID)                         {}
func (*copyCounter) UndeliverableMessage(*pubsub.Message)                 {}
