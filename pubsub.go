package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// publishWait is how long Publish waits for the first peer on a topic.
	publishWait = 5 * time.Second
	// messageOverhead is what a message takes on the wire beside its data:
	// author, sequence number, signature, key and topic.
	messageOverhead = 1 << 10
	// subscriptionBuffer is how many messages wait for Next by default.
	subscriptionBuffer = 1024
	// outboundQueue is how many messages wait for the connection to a peer:
	// gossipsub's own 32 are less than a burst over a slow link, and what does
	// not fit is dropped. The messages are shared by the queues of all peers.
	outboundQueue = 512
	// validateQueue is how many messages wait for their signatures to be
	// checked; gossipsub's own 32 are less than a burst.
	validateQueue = 1024
	// pumpBuffer is how many messages wait between gossipsub and the pump
	// that deals them out; the pump never blocks, so this covers a burst.
	pumpBuffer = 1024
)

// PublishOption changes one Publish.
type PublishOption interface{ applyPublish(*publishConfig) }

type publishConfig struct{ now bool }

type publishOption func(*publishConfig)

func (o publishOption) applyPublish(c *publishConfig) { o(c) }

// PublishNow publishes at once and returns nil even when nobody but the node's
// own subscriptions is there to get the message.
func PublishNow() PublishOption { return publishOption(func(c *publishConfig) { c.now = true }) }

// pubsubPart is the node's gossipsub router and its topics. A topic is joined
// once, on first use, however many subscriptions and publishers it has: a
// second join is an error to the router.
type pubsubPart struct {
	*pubsub.PubSub
	self  peer.ID
	log   *slog.Logger
	group *lifecycle.Group
	limit int // of a message's data

	changed func() // somebody is there to send to; must not wait

	// topics are those joined, by name. The map is replaced, never changed: it
	// is read without mu, also from the router's own loop, which join waits
	// for while it holds mu.
	topics atomic.Pointer[map[string]*topic]
	mu     sync.Mutex // serialises join and close
	closed bool       // guarded by mu

	// linkMu is taken in the router's loop too: nothing is called under it.
	linkMu sync.Mutex
	links  map[peer.ID]bool // peers that the router has a stream to; guarded by linkMu

	published, delivered, dropped, unsent, overrun atomic.Uint64
}

// topic is a joined topic.
type topic struct {
	*pubsub.Topic
	name string

	events  *pubsub.TopicEventHandler
	members map[peer.ID]bool // guarded by pubsubPart.linkMu
	peers   atomic.Int64     // how many members the router can send to
	came    signal.Signal    // peers has grown

	mu   sync.Mutex // serialises changes of feed
	feed atomic.Pointer[feed]
}

// feed is an upstream subscription and those that it feeds. It is replaced as
// a whole, never changed.
type feed struct {
	up   *pubsub.Subscription
	subs []*Subscription
}

// newPubSub starts gossipsub. The router has no Close: it lives as long as the
// group's context, and its goroutines end shortly after.
func newPubSub(cfg *config, h *hostPart, group *lifecycle.Group, blacklist pubsub.Blacklist, changed func()) (*pubsubPart, error) {
	p := &pubsubPart{
		self: h.ID(), log: cfg.logger, group: group,
		limit: cfg.maxMessageSize - messageOverhead, changed: changed,
		links: make(map[peer.ID]bool),
	}
	p.topics.Store(&map[string]*topic{})
	opts := append([]pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMaxMessageSize(cfg.maxMessageSize),
		// A node's own messages go to every peer on the topic, not only to
		// its mesh, which stays empty until the next heartbeat: without this
		// what is published in the first second after a peer came is lost.
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerOutboundQueueSize(outboundQueue),
		pubsub.WithValidateQueueSize(validateQueue),
		pubsub.WithBlacklist(blacklist),
		pubsub.WithRawTracer(tracer{p}),
	}, cfg.pubsubOptions...)
	ps, err := pubsub.NewGossipSub(group.Context(), h, opts...)
	if err != nil {
		return nil, err
	}
	p.PubSub = ps
	return p, nil
}

// close leaves the topics, so that the neighbours learn of it, and ends the
// router.
func (p *pubsubPart) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for _, t := range p.all() {
		t.closeSubs()
		t.events.Cancel()
		if err := t.Close(); err != nil {
			p.log.Debug("leaving a topic", "topic", t.name, "err", err)
		}
	}
	return p.group.Close()
}

// all returns the joined topics, sorted by name.
func (p *pubsubPart) all() []*topic {
	list := slices.Collect(maps.Values(*p.topics.Load()))
	slices.SortFunc(list, func(a, b *topic) int { return strings.Compare(a.name, b.name) })
	return list
}

// topic returns a joined topic, or nil.
func (p *pubsubPart) topic(name string) *topic { return (*p.topics.Load())[name] }

// join returns the topic, joining it if needed.
func (p *pubsubPart) join(name string) (*topic, error) {
	if t := p.topic(name); t != nil {
		return t, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if t := p.topic(name); t != nil {
		return t, nil
	}
	joined, err := p.Join(name)
	if err != nil {
		return nil, err
	}
	t := &topic{Topic: joined, name: name, members: make(map[peer.ID]bool)}
	if t.events, err = joined.EventHandler(); err != nil {
		return nil, errors.Join(err, joined.Close())
	}
	topics := maps.Clone(*p.topics.Load())
	topics[name] = t
	p.topics.Store(&topics)
	p.group.Go(func(ctx context.Context) { p.follow(ctx, t) })
	return t, nil
}

// follow keeps count of the peers on a topic. A peer counts when the router
// has a stream to it: one that is heard of earlier, by its own stream, would
// not get what is sent at that moment, and nobody would notice.
func (p *pubsubPart) follow(ctx context.Context, t *topic) {
	for {
		ev, err := t.events.NextPeerEvent(ctx)
		if err != nil {
			return
		}
		p.linkMu.Lock()
		switch ev.Type {
		case pubsub.PeerJoin:
			t.members[ev.Peer] = true
		case pubsub.PeerLeave:
			delete(t.members, ev.Peer)
		}
		p.countLocked(t)
		p.linkMu.Unlock()
	}
}

// link notes that the router has, or no longer has, a stream to a peer.
func (p *pubsubPart) link(id peer.ID, up bool) {
	p.linkMu.Lock()
	defer p.linkMu.Unlock()
	if up {
		p.links[id] = true
	} else {
		delete(p.links, id)
	}
	for _, t := range *p.topics.Load() {
		if t.members[id] {
			p.countLocked(t)
		}
	}
}

func (p *pubsubPart) countLocked(t *topic) {
	n := int64(0)
	for id := range t.members {
		if p.links[id] {
			n++
		}
	}
	if t.peers.Swap(n) < n {
		t.came.Notify()
		p.changed()
	}
}

// subscribe adds a subscription. The first one of a topic subscribes the node.
func (p *pubsubPart) subscribe(t *topic, buffer int) (*Subscription, error) {
	s := &Subscription{
		part: p, topic: t, buffer: buffer,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.feed.Load()
	if f == nil {
		up, err := t.Subscribe(pubsub.WithBufferSize(pumpBuffer))
		if err != nil {
			return nil, err
		}
		f = &feed{up: up}
		if !p.group.Go(func(ctx context.Context) { p.pump(ctx, t, up) }) {
			up.Cancel()
			return nil, ErrClosed
		}
	}
	t.feed.Store(&feed{up: f.up, subs: append(slices.Clip(f.subs), s)})
	return s, nil
}

// drop removes a subscription. The node unsubscribes with its last one.
func (t *topic) drop(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.feed.Load()
	if f == nil {
		return
	}
	left := slices.DeleteFunc(slices.Clone(f.subs), func(o *Subscription) bool { return o == s })
	if len(left) > 0 {
		t.feed.Store(&feed{up: f.up, subs: left})
		return
	}
	t.feed.Store(nil)
	f.up.Cancel()
}

// pump deals a topic's messages out to its subscriptions. It may outlive its
// feed for a moment: then a new one has its own pump.
func (p *pubsubPart) pump(ctx context.Context, t *topic, up *pubsub.Subscription) {
	for {
		m, err := up.Next(ctx)
		if err != nil {
			return
		}
		f := t.feed.Load()
		if f == nil || f.up != up {
			continue
		}
		p.delivered.Add(1)
		author := m.ReceivedFrom
		if string(m.From) != string(author) { // otherwise spare the copy
			author = m.GetFrom()
		}
		msg := &Message{Author: author, From: m.ReceivedFrom, Topic: t.name, Data: m.Data, ID: m.ID}
		for _, s := range f.subs {
			s.push(msg)
		}
	}
}

func (t *topic) closeSubs() {
	t.mu.Lock()
	f := t.feed.Swap(nil)
	t.mu.Unlock()
	if f == nil {
		return
	}
	for _, s := range f.subs {
		s.once.Do(func() { close(s.done) })
	}
	f.up.Cancel()
}

// needPubSub is the guard of the methods that use pubsub.
func (n *Node) needPubSub() error {
	switch {
	case n.closed():
		return ErrClosed
	case n.pubsub == nil:
		return disabled("pubsub", "leave WithoutPubSub out")
	default:
		return nil
	}
}

// Publish sends data, signed, to the peers that are subscribed to a topic, and
// to this node's own subscriptions. The topic need not be subscribed to. When
// no peer is known to be on the topic, Publish waits for the first one until
// ctx ends, 5 seconds at most, and then returns ErrNoPeers; the option
// PublishNow skips that. A nil error means that the message was handed to at
// least one peer, not that anyone has processed it.
//
// Peers that are reached through a relay only are not on any topic: gossipsub
// does not use relayed connections. Data above the limit of WithMaxMessageSize
// is refused with ErrTooLarge. It returns ErrDisabled without pubsub and
// ErrClosed after Close. It keeps no reference to data. Specification:
// github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.1.md.
func (n *Node) Publish(ctx context.Context, topic string, data []byte, opts ...PublishOption) error {
	if err := n.needPubSub(); err != nil {
		return err
	}
	var cfg publishConfig
	for _, o := range opts {
		if o != nil {
			o.applyPublish(&cfg)
		}
	}
	if len(data) > n.pubsub.limit-len(topic) {
		return fmt.Errorf("p2pnode: publish to %q: %w: %d bytes, with at most %d; raise WithMaxMessageSize on every node, or publish where to fetch it", topic, ErrTooLarge, len(data), n.pubsub.limit-len(topic))
	}
	t, err := n.pubsub.join(topic)
	if err != nil {
		return n.fail(fmt.Errorf("publish to %q: %w", topic, err))
	}
	if !cfg.now && t.peers.Load() == 0 {
		if err := n.awaitTopicPeer(ctx, t); err != nil {
			return n.fail(fmt.Errorf("publish to %q: %w", topic, err))
		}
	}
	if err := t.Publish(ctx, slices.Clone(data)); err != nil {
		return n.fail(fmt.Errorf("publish to %q: %w", topic, err))
	}
	n.pubsub.published.Add(1)
	return nil
}

// awaitTopicPeer waits for the first peer on a topic.
func (n *Node) awaitTopicPeer(ctx context.Context, t *topic) error {
	timer := time.NewTimer(publishWait)
	defer timer.Stop()
	for {
		came := t.came.Wait()
		if t.peers.Load() > 0 {
			return nil
		}
		var why error
		select {
		case <-came:
			continue
		case <-n.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			why = ctx.Err()
		case <-timer.C:
			why = fmt.Errorf("waited %v", publishWait)
		}
		return fmt.Errorf("%w on the topic, %d connected (%w); subscribe elsewhere first, or use PublishNow",
			ErrNoPeers, len(n.base.swarm.Peers()), why)
	}
}

// tracer hears from the router what it tells in no other way. It runs in the
// router's loop and must not wait.
type tracer struct{ p *pubsubPart }

func (d tracer) OnNewOutboundStream(id peer.ID, _ protocol.ID) { d.p.link(id, true) }
func (d tracer) OnClosedOutboundStream(id peer.ID)             { d.p.link(id, false) }

// UndeliverableMessage counts a message that the router had to drop because a
// pump was too far behind, for every subscription of the topic.
func (d tracer) UndeliverableMessage(m *pubsub.Message) {
	t := d.p.topic(m.GetTopic())
	if t == nil {
		return
	}
	f := t.feed.Load()
	if f == nil {
		return
	}
	for _, s := range f.subs {
		s.dropped.Add(1)
		d.p.dropped.Add(1)
	}
}

// RejectMessage counts the messages that were dropped unchecked because too
// many came at once.
func (d tracer) RejectMessage(m *pubsub.Message, reason string) {
	if reason == pubsub.RejectValidationQueueFull || reason == pubsub.RejectValidationThrottled {
		d.p.overrun.Add(1)
		d.p.log.Warn("message dropped: too many came at once", "topic", m.GetTopic(), "from", m.ReceivedFrom)
	}
}

// DropRPC counts the messages that a peer does not get because it, or the
// connection to it, is too slow.
func (d tracer) DropRPC(rpc *pubsub.RPC, id peer.ID) {
	if n := len(rpc.GetPublish()); n > 0 {
		d.p.unsent.Add(uint64(n))
		d.p.log.Warn("messages not sent: too many wait for the peer", "peer", id, "messages", n)
	}
}

// The rest of pubsub.RawTracer.
func (tracer) Join(string)                                          {}
func (tracer) Leave(string)                                         {}
func (tracer) Graft(peer.ID, string)                                {}
func (tracer) Prune(peer.ID, string)                                {}
func (tracer) ValidateMessage(*pubsub.Message)                      {}
func (tracer) DeliverMessage(*pubsub.Message)                       {}
func (tracer) DuplicateMessage(*pubsub.Message)                     {}
func (tracer) ThrottlePeer(peer.ID)                                 {}
func (tracer) RecvRPC(*pubsub.RPC)                                  {}
func (tracer) SendRPC(*pubsub.RPC, peer.ID)                         {}
func (tracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
