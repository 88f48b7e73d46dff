package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Message is a message that was published to a topic.
type Message struct {
	Author peer.ID // who signed it
	From   peer.ID // the neighbour that it came from; the node itself for its own
	Topic  string
	Data   []byte // shared with the other subscriptions of the node: do not modify
	ID     string // unique to the message, not printable
}

// SubscribeOption changes one Subscribe.
type SubscribeOption interface {
	applySubscribe(*subscribeConfig) error
}

type subscribeConfig struct{ buffer int }

type subscribeOption func(*subscribeConfig) error

func (o subscribeOption) applySubscribe(c *subscribeConfig) error { return o(c) }

// SubscribeBuffer sets how many messages wait for Next before the oldest are
// dropped, overriding the default of 1024.
func SubscribeBuffer(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 {
			return fmt.Errorf("SubscribeBuffer: %d messages: at least one must fit", n)
		}
		c.buffer = n
		return nil
	})
}

// Subscribe subscribes the node to a topic. Each subscription, also of the
// same topic, gets every message from then on, the node's own ones included.
// The ctx bounds the call alone: the subscription lives until its Close or the
// node's. It returns ErrDisabled without pubsub and ErrClosed after Close.
func (n *Node) Subscribe(ctx context.Context, topic string, opts ...SubscribeOption) (*Subscription, error) {
	if err := n.needPubSub(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("p2pnode: subscribe to %q: %w", topic, err)
	}
	cfg := subscribeConfig{buffer: subscriptionBuffer}
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o.applySubscribe(&cfg); err != nil {
			return nil, fmt.Errorf("p2pnode: subscribe to %q: %w", topic, err)
		}
	}
	t, err := n.pubsub.join(topic)
	if err == nil {
		var s *Subscription
		if s, err = n.pubsub.subscribe(t, cfg.buffer); err == nil {
			return s, nil
		}
	}
	return nil, n.fail(fmt.Errorf("subscribe to %q: %w", topic, err))
}

// Subscription is one reader of a topic. Its methods are safe for concurrent
// use; messages read by one caller are not seen by another.
type Subscription struct {
	part   *pubsubPart
	topic  *topic
	buffer int

	wake chan struct{}
	done chan struct{}
	once sync.Once

	mu      sync.Mutex
	ring    []*Message // guarded by mu; grows up to buffer
	head, n int        // guarded by mu
	dropped atomic.Uint64
}

// push adds a message, at the cost of the oldest one when the buffer is full.
func (s *Subscription) push(m *Message) {
	s.mu.Lock()
	if s.n == len(s.ring) {
		s.growLocked()
	}
	if s.n == len(s.ring) {
		s.ring[s.head] = nil
		s.head = (s.head + 1) % len(s.ring)
		s.n--
		s.dropped.Add(1)
		s.part.dropped.Add(1)
	}
	s.ring[(s.head+s.n)%len(s.ring)] = m
	s.n++
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Subscription) growLocked() {
	size := min(max(2*len(s.ring), 16), s.buffer)
	if size == len(s.ring) {
		return
	}
	ring := make([]*Message, size)
	for i := range s.n {
		ring[i] = s.ring[(s.head+i)%len(s.ring)]
	}
	s.ring, s.head = ring, 0
}

// pop takes the oldest message; more tells that others are waiting.
func (s *Subscription) pop() (m *Message, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return nil, false
	}
	m = s.ring[s.head]
	s.ring[s.head] = nil
	s.head = (s.head + 1) % len(s.ring)
	s.n--
	return m, s.n > 0
}

// Topic returns the topic's name.
func (s *Subscription) Topic() string { return s.topic.name }

// Dropped returns how many messages this subscription has lost because its
// reader was too slow. The oldest ones are lost first.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Next waits for the next message. It returns ErrClosed after Close of the
// subscription or of the node, and ctx's error when ctx ends first.
func (s *Subscription) Next(ctx context.Context) (*Message, error) {
	for {
		select {
		case <-s.done:
			return nil, ErrClosed
		default:
		}
		m, more := s.pop()
		if m != nil {
			if more { // another reader may be waiting
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}
			return m, nil
		}
		select {
		case <-s.wake:
		case <-s.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Messages returns an iterator over the messages. It ends without an error
// when the subscription or the node is closed, and with ctx's error when ctx
// ends.
func (s *Subscription) Messages(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := s.Next(ctx)
			if errors.Is(err, ErrClosed) {
				return
			}
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Close ends the subscription: calls of Next return ErrClosed. The node leaves
// the topic with its last subscription. It may be called more than once, and
// returns nil.
func (s *Subscription) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.topic.drop(s)
	})
	return nil
}
