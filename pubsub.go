package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// PublishOption configures a call of [Node.Publish] or [Topic.Publish]:
// [PublishMinPeers], [PublishWait], [PublishNow], [PublishValue], [PublishNoCopy].
type PublishOption interface {
	// By value, which spares an allocation.
	applyPublish(gossip.Publishing) (gossip.Publishing, error)
}

type publishOption func(*gossip.Publishing) error

func (o publishOption) applyPublish(c gossip.Publishing) (gossip.Publishing, error) {
	set := c
	err := o(&set)
	return set, err
}

type publishValue struct{ v any }

func (o publishValue) applyPublish(c gossip.Publishing) (gossip.Publishing, error) {
	c.Value = o.v
	return c, nil
}

type publishNoCopy struct{}

func (publishNoCopy) applyPublish(c gossip.Publishing) (gossip.Publishing, error) {
	c.NoCopy = true
	return c, nil
}

// PublishMinPeers sets how many peers a message must reach, at least 1,
// overriding the default of 1. The last of [PublishMinPeers] and [PublishNow]
// counts.
func PublishMinPeers(n int) PublishOption {
	return publishOption(func(c *gossip.Publishing) error {
		if n < 1 {
			return optionErrorf("PublishMinPeers", "%d peers: it must be at least 1; PublishNow waits for none", n)
		}
		c.MinPeers = n
		return nil
	})
}

// PublishWait sets how long to wait for the peers that a message must reach, and
// for room in what waits for them, overriding the default of 5 seconds, which is too short for a path with a
// round trip of more than a second.
func PublishWait(d time.Duration) PublishOption {
	return publishOption(func(c *gossip.Publishing) error {
		if d <= 0 {
			return optionErrorf("PublishWait", "%v: it must be positive; PublishNow does not wait", d)
		}
		c.Wait = d
		return nil
	})
}

// PublishNow makes Publish return at once, with nil even if the topic has no
// peers, or if the message is dropped because too many wait for them. By default it
// waits for one peer with room for up to 5 seconds.
func PublishNow() PublishOption {
	return publishOption(func(c *gossip.Publishing) error {
		c.MinPeers = 0
		return nil
	})
}

// PublishValue sets what validators and subscriptions of this node find in the
// Value of the [Message]: what data encodes, so that they need not decode it. It
// does not leave the node. By default Value is nil until a validator sets it.
func PublishValue(v any) PublishOption { return publishValue{v} }

// PublishNoCopy makes Publish keep data itself instead of a copy, which it makes by
// default: do not modify data afterwards, not even when Publish has returned an
// error.
func PublishNoCopy() PublishOption { return publishNoCopy{} }

func publishing(opts []PublishOption) (gossip.Publishing, error) {
	cfg := gossip.Publishing{MinPeers: 1, Wait: publishWait}
	err := inTurn(opts, func(o PublishOption) (err error) {
		cfg, err = o.applyPublish(cfg)
		return err
	})
	return cfg, err
}

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
// this node's own subscriptions. The node need not be subscribed. If too few peers
// are known to be on the topic, Publish waits for them until ctx ends, at most 5
// seconds, and then returns [ErrNoPeers]; see [PublishMinPeers], [PublishWait]
// and [PublishNow]. If they are there but too many messages wait for them, because
// they do not read or have slow connections, Publish waits for room as long, and
// then returns [ErrLimit]: half of the PubSubQueue of [Limits] is for what Publish
// queues for a peer. A nil error means that the message is on its way to at least
// so many peers, not that anyone has processed it. Publish keeps no reference to
// data, but for [PublishNoCopy].
//
// A node that publishes to a topic without a subscription stays on the topic,
// and keeps track of its peers, until 30 seconds after the last message. A
// Publish that fails does not. [Node.Topic] keeps it there.
//
// Peers connected only through a relay with limits are not on any topic:
// gossipsub does not use such connections. Publish returns [ErrTooLarge] for data
// above the limit of [WithMaxMessageSize] or [WithRelayedPubSub], [ErrRejected] for what a
// [TopicValidator] of this node refuses, an [OptionError] for an invalid option,
// [ErrDisabled] without pubsub, and [ErrClosed] after Close. Specification:
// github.com/libp2p/specs/blob/master/pubsub/gossipsub/gossipsub-v1.1.md.
func (n *Node) Publish(ctx context.Context, topic string, data []byte, opts ...PublishOption) error {
	if err := n.needPubSub(); err != nil {
		return err
	}
	cfg, err := publishing(opts)
	if err == nil {
		err = n.pubsub.Publish(ctx, topic, data, cfg)
	}
	return publishError(n, topic, err)
}

func publishError(n *Node, topic string, err error) error {
	if err == nil {
		return nil
	}
	return n.fail(fmt.Errorf("publish to %s: %w", quoted(topic), err))
}

// Subscribe subscribes the node to a topic. Every subscription, even of the
// same topic, receives every message from then on, including the node's own
// unless [SubscribeOthers] is given.
// One author's messages arrive in order from a direct neighbor, unless the
// topic has a [TopicValidator] without [ValidatorInOrder]; over several hops there
// is no order. The ctx bounds the call only: the subscription lasts until
// [Subscription.Close] or [Node.Close]. An invalid option is an [OptionError]. It
// returns [ErrDisabled] without pubsub and [ErrClosed] after Close.
func (n *Node) Subscribe(ctx context.Context, topic string, opts ...SubscribeOption) (*Subscription, error) {
	if err := n.needPubSub(); err != nil {
		return nil, err
	}
	return subscribeTo(ctx, n, topic, opts, func(ctx context.Context, o gossip.Reading) (*gossip.Subscription, error) {
		return n.pubsub.Subscribe(ctx, topic, o)
	})
}

func subscribeTo(ctx context.Context, n *Node, topic string, opts []SubscribeOption, subscribe func(context.Context, gossip.Reading) (*gossip.Subscription, error)) (*Subscription, error) {
	cfg, err := reading(opts)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		var s *gossip.Subscription
		if s, err = subscribe(ctx, cfg); err == nil {
			return &Subscription{sub: s}, nil
		}
	}
	return nil, n.fail(fmt.Errorf("subscribe to %s: %w", quoted(topic), err))
}

func startPubSub(n *Node) (err error) {
	if n.cfg.noPubSub {
		return nil
	}
	queue, total := n.cfg.pubsubBytes()
	n.pubsub, err = gossip.New(context.WithoutCancel(n.ctx), gossip.Config{
		Host: n.base, Blacklist: access.Blacklist{List: n.access}, MaxMessageSize: n.cfg.maxMessageSize, QueueBytes: queue, TotalBytes: total,
		Options: n.cfg.pubsubOptions, Log: n.log, Closing: n.ctx.Done(), Scoring: scoringOf(n.cfg), Learned: n.base.Learned,
		Trace: n.cfg.pubsubTrace, RelayedBytes: n.cfg.relayedPubSub,
		Changed:    n.watch.change.Notify,
		PeerJoined: func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerJoined{Topic: topic, ID: id}) },
		TopicLeft:  n.watch.topicLeft,
		PeerLeft:   func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerLeft{Topic: topic, ID: id}) },
		HealthChanged: func(topic string, health gossip.Health) {
			n.watch.emit(EventTopicHealth{Topic: topic, Health: TopicHealth(health)})
		},
		Graylisted: func(id peer.ID, score float64) {
			n.log.Warn("peer is graylisted: ignoring what it sends", "peer", id, "score", score)
			n.watch.emit(EventPeerGraylisted{ID: id, Score: score})
		},
		Forgiven: func(id peer.ID, score float64) { n.watch.emit(EventPeerForgiven{ID: id, Score: score}) },
		Meet: func(ctx context.Context, topic string, want int) {
			meetBy(ctx, n, "p2pnode topic "+topic, want, func(id peer.ID) bool { return n.pubsub.Reaches(topic, id) })
		},
		Deaf: func(ctx context.Context, id peer.ID) {
			n.watch.emit(EventPeerDeaf{ID: id})
			n.log.Warn("reconnecting to peer that has stopped sending pubsub messages", "peer", id)
			if err := errors.Join(n.base.Disconnect(id), n.dialer.Connect(ctx, peer.AddrInfo{ID: id})); err != nil {
				n.log.Info("reconnecting failed", "peer", id, "err", err)
			}
		},
	})
	if err != nil {
		return scoringError(err)
	}
	n.stack.Push("pubsub", closeBudget, n.pubsub.Close)
	return nil
}

// scoringOf returns the scores of the options for the router.
func scoringOf(c *config) *gossip.Scoring {
	if c.scoring == nil {
		return nil
	}
	s := c.scoring.inner()
	named := make(map[peer.ID]bool)
	for _, p := range slices.Concat(c.bootstrapPeers(), c.persistent) {
		named[p.ID] = true
	}
	s.Trusted = func(id peer.ID) bool { return named[id] }
	return &s
}

// scoringError files an error of the router's start under its option.
func scoringError(err error) error {
	if errors.Is(err, gossip.ErrOwnScore) {
		return &OptionError{Option: "WithPeerScoring", Err: err}
	}
	return err
}
