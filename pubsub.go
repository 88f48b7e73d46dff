package p2pnode

import (
	"context"
	"fmt"
)

// PublishOption configures a call of [Node.Publish]: [PublishNow].
type PublishOption interface{ applyPublish(*publishConfig) }

type publishConfig struct{ now bool }

type publishOption func(*publishConfig)

func (o publishOption) applyPublish(c *publishConfig) { o(c) }

// PublishNow makes [Node.Publish] return at once, with nil even if the topic
// has no peers. By default it waits for one for up to 5 seconds.
func PublishNow() PublishOption { return publishOption(func(c *publishConfig) { c.now = true }) }

// needPubSub guards the methods that use pubsub.
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

// Publish signs data and sends it to the peers subscribed to a topic, and to
// this node's own subscriptions. The node need not be subscribed. If no peer is
// known to be on the topic, Publish waits for one until ctx ends, at most 5
// seconds, and then returns [ErrNoPeers]; [PublishNow] skips the wait. A nil
// error means that the message was handed to at least one peer, not that anyone
// has processed it. Publish keeps no reference to data.
//
// A node that publishes to a topic without a subscription stays on the topic,
// and keeps track of its peers, until 30 seconds after the last message. A
// Publish that fails does not.
//
// Peers connected only through a relay with limits are not on any topic:
// gossipsub does not use such connections. Publish returns [ErrTooLarge] for data above the
// limit of [WithMaxMessageSize], [ErrDisabled] without pubsub, and [ErrClosed]
// after Close. Specification:
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
