package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// Message is a message that was published to a topic.
type Message struct {
	Author peer.ID // who signed it
	From   peer.ID // the neighbor that it came from; the node itself for its own
	Topic  string
	Data   []byte // shared with the other subscriptions of the node: do not modify
	ID     string // unique to the message, not printable

	// Lost is how many messages the subscription dropped just before this one,
	// because its reader was too slow. Subscription.Dropped is the total.
	Lost uint64
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
			return optionErrorf("SubscribeBuffer", "%d messages: at least one must fit", n)
		}
		c.buffer = n
		return nil
	})
}

// Subscribe subscribes the node to a topic. Each subscription, also of the
// same topic, gets every message from then on, the node's own ones included.
// What one author publishes arrives in order from a direct neighbor, unless a
// validator of the application's runs; over several hops there is no order.
// The ctx bounds the call alone: the subscription lives until its Close or the
// node's. A wrong option is an [OptionError]. It returns [ErrDisabled] without
// pubsub and [ErrClosed] after Close.
func (n *Node) Subscribe(ctx context.Context, topic string, opts ...SubscribeOption) (*Subscription, error) {
	if err := n.needPubSub(); err != nil {
		return nil, err
	}
	cfg := subscribeConfig{buffer: subscriptionBuffer}
	err := ctx.Err()
	for _, o := range opts {
		if o != nil && err == nil {
			err = o.applySubscribe(&cfg)
		}
	}
	if err == nil {
		var s *gossip.Subscription
		if s, err = n.pubsub.Subscribe(ctx, topic, cfg.buffer); err == nil {
			return &Subscription{s}, nil
		}
	}
	return nil, n.fail(fmt.Errorf("subscribe to %q: %w", topic, err))
}

// Subscription is one reader of a topic. Its methods are safe for concurrent
// use; messages read by one caller are not seen by another.
type Subscription struct{ sub *gossip.Subscription }

// Topic returns the topic's name.
func (s *Subscription) Topic() string { return s.sub.Topic() }

// Dropped returns how many messages this subscription has lost because its
// reader was too slow. The oldest ones are lost first. Message.Lost tells of
// them where they are missing.
func (s *Subscription) Dropped() uint64 { return s.sub.Dropped() }

// Next waits for the next message. It returns [ErrClosed] after Close of the
// subscription or of the node, and ctx's error when ctx ends first.
func (s *Subscription) Next(ctx context.Context) (*Message, error) {
	m, lost, err := s.sub.Next(ctx)
	if err != nil {
		return nil, err
	}
	author := m.ReceivedFrom
	if string(m.From) != string(author) { // otherwise spare the copy
		author = m.GetFrom()
	}
	return &Message{Author: author, From: m.ReceivedFrom, Topic: s.sub.Topic(), Data: m.Data, ID: m.ID, Lost: lost}, nil
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

// Close ends the subscription: calls of Next return [ErrClosed]. The node leaves
// the topic with its last subscription, unless it has published to it within
// the last 30 seconds: then it unsubscribes and leaves later. It may be called
// more than once, and returns nil.
func (s *Subscription) Close() error {
	s.sub.Close()
	return nil
}
