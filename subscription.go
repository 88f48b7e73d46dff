package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// Message is a message published to a topic.
type Message struct {
	// Author is the peer that signed the message.
	Author peer.ID
	// From is the neighbor that sent it to this node; the node itself for its own
	// messages.
	From peer.ID
	// Topic is the topic's name.
	Topic string
	// Data is shared with the node's other subscriptions: do not modify it.
	Data []byte
	// ID is unique to the message, and not printable.
	ID string

	// Lost is how many messages the subscription dropped just before this one
	// because its reader was too slow. [Subscription.Dropped] is the total.
	Lost uint64
}

// SubscribeOption configures a call of [Node.Subscribe]: [SubscribeBuffer].
type SubscribeOption interface {
	applySubscribe(*subscribeConfig) error
}

type subscribeConfig struct{ buffer int }

type subscribeOption func(*subscribeConfig) error

func (o subscribeOption) applySubscribe(c *subscribeConfig) error { return o(c) }

// SubscribeBuffer sets how many messages wait for [Subscription.Next] before
// the oldest are dropped, at least 1, overriding the default of 1024.
func SubscribeBuffer(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 {
			return optionErrorf("SubscribeBuffer", "%d messages: it must be at least 1", n)
		}
		c.buffer = n
		return nil
	})
}

// Subscribe subscribes the node to a topic. Every subscription, even of the
// same topic, receives every message from then on, including the node's own.
// One author's messages arrive in order from a direct neighbor, unless the
// application has a pubsub validator; over several hops there is no order. The
// ctx bounds the call only: the subscription lasts until [Subscription.Close]
// or [Node.Close]. An invalid option is an [OptionError]. It returns
// [ErrDisabled] without pubsub and [ErrClosed] after Close.
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

// Subscription reads one topic; [Node.Subscribe] returns it. Its methods are
// safe for concurrent use; each message goes to one of the callers.
type Subscription struct{ sub *gossip.Subscription }

// Topic returns the topic's name.
func (s *Subscription) Topic() string { return s.sub.Topic() }

// Dropped returns how many messages this subscription has dropped because its
// reader was too slow, the oldest first. Lost in [Message] shows where they are
// missing.
func (s *Subscription) Dropped() uint64 { return s.sub.Dropped() }

// Next waits for the next message. It returns [ErrClosed] once the subscription
// or the node is closed, and ctx's error when ctx ends first.
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

// Messages iterates over the messages. The loop ends without an error when the
// subscription or the node is closed, and with ctx's error when ctx ends.
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

// Close ends the subscription and returns nil: calls of [Subscription.Next]
// return [ErrClosed]. The node leaves the topic with its last subscription, or,
// if it has just published to it, 30 seconds after the last message. Close may
// be called more than once.
func (s *Subscription) Close() error {
	s.sub.Close()
	return nil
}
