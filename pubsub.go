package p2pnode

import (
	"context"
	"fmt"
)

// PublishOption changes one Publish.
type PublishOption interface{ applyPublish(*publishConfig) }

type publishConfig struct{ now bool }

type publishOption func(*publishConfig)

func (o publishOption) applyPublish(c *publishConfig) { o(c) }

// PublishNow publishes at once and returns nil even when nobody but the node's
// own subscriptions is there to get the message.
func PublishNow() PublishOption { return publishOption(func(c *publishConfig) { c.now = true }) }

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
// ctx ends, 5 seconds at most, and then returns [ErrNoPeers]; the option
// [PublishNow] skips that. A nil error means that the message was handed to at
// least one peer, not that anyone has processed it.
//
// A node that publishes to a topic without a subscription of its own keeps the
// topic, and what it knows of the peers there, until 30 seconds after the last
// message. A Publish that fails keeps nothing.
//
// Peers that are reached through a relay only are not on any topic: gossipsub
// does not use relayed connections. Data above the limit of [WithMaxMessageSize]
// is refused with [ErrTooLarge]. It returns [ErrDisabled] without pubsub and
// [ErrClosed] after Close. It keeps no reference to data. Specification:
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
	if err := n.pubsub.Publish(ctx, topic, data, cfg.now); err != nil {
		return n.fail(fmt.Errorf("publish to %q: %w", topic, err))
	}
	return nil
}
