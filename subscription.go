package p2pnode

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
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
	// Value is what a [TopicValidator] of this node has set, or the [PublishValue] of
	// a message of the node's own; nil without. The node's subscriptions share it.
	Value any

	// Lost is how many messages the subscription dropped just before this one
	// because its reader was too slow. [Subscription.Dropped] is the total.
	Lost uint64
}

// messageOf converts a message of the router.
func messageOf(m *pubsub.Message, lost uint64) *Message {
	author := m.ReceivedFrom
	if string(m.From) != string(author) { // otherwise spare the copy
		author = m.GetFrom()
	}
	return &Message{
		Author: author, From: m.ReceivedFrom, Topic: m.GetTopic(), Data: m.Data, ID: m.ID,
		Value: gossip.ValueOf(m), Lost: lost,
	}
}

// SubscribeOption configures a call of [Node.Subscribe] or [Topic.Subscribe]:
// [SubscribeBuffer], [SubscribeBufferBytes], [SubscribeDropNewest],
// [SubscribeWait], [SubscribeOthers].
type SubscribeOption interface {
	applySubscribe(*gossip.Reading) error
}

type subscribeOption func(*gossip.Reading) error

func (o subscribeOption) applySubscribe(c *gossip.Reading) error { return o(c) }

func reading(opts []SubscribeOption) (gossip.Reading, error) {
	cfg := gossip.Reading{Buffer: subscriptionBuffer}
	err := inTurn(opts, func(o SubscribeOption) error { return o.applySubscribe(&cfg) })
	return cfg, err
}

// SubscribeBuffer sets how many messages wait for [Subscription.Next] before
// the oldest are dropped, at least 1, overriding the default of 1024. See also
// [SubscribeBufferBytes].
func SubscribeBuffer(n int) SubscribeOption {
	return subscribeOption(func(c *gossip.Reading) error {
		if n < 1 {
			return optionErrorf("SubscribeBuffer", "%d messages: it must be at least 1", n)
		}
		c.Buffer = n
		return nil
	})
}

// SubscribeBufferBytes sets how many bytes of messages wait for
// [Subscription.Next], overriding PubSubQueue of [Limits]. A single message may
// take more. All subscriptions together stay within PubSub of [Limits].
func SubscribeBufferBytes(n int64) SubscribeOption {
	return subscribeOption(func(c *gossip.Reading) error {
		if n < 1 {
			return optionErrorf("SubscribeBufferBytes", "%d bytes: it must be at least 1", n)
		}
		c.Bytes = n
		return nil
	})
}

// SubscribeDropNewest makes a subscription with a full buffer drop the messages
// that arrive, overriding the default of dropping the oldest unread ones. The last
// of [SubscribeDropNewest] and [SubscribeWait] counts.
func SubscribeDropNewest() SubscribeOption {
	return subscribeOption(func(c *gossip.Reading) error {
		c.DropNewest, c.Wait = true, 0
		return nil
	})
}

// SubscribeWait makes messages that arrive at a full buffer wait for room, each up
// to d, before they are dropped, overriding the default of dropping the oldest
// unread ones at once. They hold up nothing else, and count toward
// [SubscribeBufferBytes]: beyond it, they are dropped at once.
func SubscribeWait(d time.Duration) SubscribeOption {
	return subscribeOption(func(c *gossip.Reading) error {
		if d <= 0 {
			return optionErrorf("SubscribeWait", "%v: it must be positive", d)
		}
		c.DropNewest, c.Wait = false, d
		return nil
	})
}

// SubscribeOthers leaves out the messages that this node publishes, which a
// subscription receives by default.
func SubscribeOthers() SubscribeOption {
	return subscribeOption(func(c *gossip.Reading) error {
		c.SkipOwn = true
		return nil
	})
}

// Subscription reads one topic; [Node.Subscribe] returns it. Its methods are
// safe for concurrent use; each message goes to one of the callers.
type Subscription struct {
	sub *gossip.Subscription

	forward sync.Once // makes c
	c       <-chan *Message
}

// Topic returns the topic's name.
func (s *Subscription) Topic() string { return s.sub.Topic() }

// Dropped returns how many messages this subscription has dropped because its
// reader was too slow. Lost in [Message] shows where they are
// missing.
func (s *Subscription) Dropped() uint64 { return s.sub.Dropped() }

// Next waits for the next message. It returns [ErrClosed] once the subscription
// or the node is closed, and ctx's error when ctx ends first.
func (s *Subscription) Next(ctx context.Context) (*Message, error) {
	m, lost, err := s.sub.Next(ctx)
	if err != nil {
		return nil, err
	}
	return messageOf(m, lost), nil
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

// C returns a channel of the messages, for a select, which is closed once the
// subscription or the node is closed. Every call returns the same channel. A
// message that waits in it is one more than [SubscribeBuffer] sets; it is no
// longer returned by [Subscription.Next].
func (s *Subscription) C() <-chan *Message {
	s.forward.Do(func() { s.c = gossip.Forward(s.sub, messageOf) })
	return s.c
}

// Done returns a channel that is closed once the subscription or the node is
// closed: what hands messages on, and waits for somebody to take them, ends with it.
func (s *Subscription) Done() <-chan struct{} { return s.sub.Done() }

// Close ends the subscription and returns nil: calls of [Subscription.Next]
// return [ErrClosed]. The node leaves the topic with its last subscription, or,
// if it has just published to it, 30 seconds after the last message. Close may
// be called more than once.
func (s *Subscription) Close() error {
	s.sub.Close()
	return nil
}
