package p2pnode

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/gossip"
)

// Topic is a handle of a topic; [Node.Topic] returns it. The node stays on the
// topic until the handle is closed. All handles, subscriptions and publishers of
// one topic share what the node keeps for it. The methods are safe for concurrent
// use.
type Topic struct {
	n *Node
	h *gossip.Handle
}

// TopicOption configures a call of [Node.Topic]: [TopicValidator],
// [TopicMessageID], [TopicAnonymous], [TopicDiscovery], [TopicRate].
type TopicOption interface{ applyTopic(*topicConfig) error }

type topicConfig struct{ gossip.Opening }

type topicOption func(*topicConfig) error

func (o topicOption) applyTopic(c *topicConfig) error { return o(c) }

// Topic joins a topic and returns a handle of it. Several handles of one topic are
// no error: the node leaves it with the last handle and subscription.
//
// Topic waits for no peers; [StageTopic] does. It returns an [OptionError] for an
// invalid option, an error if another handle or subscription uses the topic with
// another [TopicMessageID] or [TopicAnonymous], [ErrTooLarge] for a name of more
// than 1,024 bytes, [ErrLimit] with 10,000 topics, [ErrDisabled] without pubsub,
// and [ErrClosed] after Close.
func (n *Node) Topic(name string, opts ...TopicOption) (*Topic, error) {
	if err := n.needPubSub(); err != nil {
		return nil, err
	}
	var cfg topicConfig
	err := inTurn(opts, func(o TopicOption) error { return o.applyTopic(&cfg) })
	if err == nil && cfg.Meet > 0 && n.dht == nil {
		err = off("the DHT, which TopicDiscovery needs,", "leave WithoutDHT out")
	}
	if err == nil {
		var h *gossip.Handle
		if h, err = n.pubsub.Open(n.ctx, name, cfg.Opening); err == nil {
			return &Topic{n, h}, nil
		}
	}
	return nil, n.fail(fmt.Errorf("topic %s: %w", quoted(name), err))
}

// Name returns the topic's name.
func (t *Topic) Name() string { return t.h.Name() }

// Publish publishes to the topic as [Node.Publish] does. It returns [ErrClosed]
// once the handle or the node is closed.
func (t *Topic) Publish(ctx context.Context, data []byte, opts ...PublishOption) error {
	if err := t.n.needPubSub(); err != nil {
		return err
	}
	cfg, err := publishing(opts)
	if err == nil {
		err = t.h.Publish(ctx, data, cfg)
	}
	return publishError(t.n, t.Name(), err)
}

// Subscribe subscribes to the topic as [Node.Subscribe] does. The subscription
// ends with the handle.
func (t *Topic) Subscribe(ctx context.Context, opts ...SubscribeOption) (*Subscription, error) {
	if err := t.n.needPubSub(); err != nil {
		return nil, err
	}
	return subscribeTo(ctx, t.n, t.Name(), opts, t.h.Subscribe)
}

// Peers returns the peers that receive what the node publishes, sorted. After
// Close it returns nil.
func (t *Topic) Peers() []peer.ID { return t.h.State().Peers }

// Mesh returns those of the Peers with which the node exchanges messages in full,
// sorted; others tell each other which messages there are. A topic that the node
// is not subscribed to has none. After Close it returns nil.
func (t *Topic) Mesh() []peer.ID { return t.h.State().Mesh }

// Health says how well the node is connected on the topic. After Close it is
// [TopicHealthNone].
func (t *Topic) Health() TopicHealth { return TopicHealth(t.h.State().Health) }

// MaxData returns how many bytes a message may have; Publish returns
// [ErrTooLarge] for more. See [WithMaxMessageSize].
func (t *Topic) MaxData() int { return t.n.pubsub.MaxData(t.Name()) }

// Close ends the handle, its subscriptions and its validators, and returns nil:
// waiting calls return [ErrClosed]. The node leaves the topic when nothing else
// uses it, or 30 seconds after the last message published to it. Close may be
// called more than once.
func (t *Topic) Close() error {
	t.h.Close()
	return nil
}

// TopicDiscovery makes the node look for members of the topic, and keep at least n
// of them connected while the handle is open, overriding the default of only those
// that are connected anyway. It advertises the node in the DHT as a member, searches
// for others, and chooses n of them by chance, whoever is connected already, so that
// members that came in groups of their own hear each other. One that is lost is
// replaced, and every 10 minutes one is exchanged for another. While there are fewer
// than n it searches again, after 5 seconds at first and 2 minutes at most. Several
// handles of a topic count as the one that wants most.
//
// It does not dial beyond the limits of [WithConnLimits], whom [Node.Disconnect] has
// hung up on, or who is banned. All members need the option to be found. Topic
// returns [ErrDisabled] without a DHT. 3 are enough to connect all members with
// great probability; 6 give the mesh a choice.
func TopicDiscovery(n int) TopicOption {
	return topicOption(func(c *topicConfig) error {
		if n < 1 || n > maxMeet {
			return optionErrorf("TopicDiscovery", "%d members: it must be 1 to %d", n, maxMeet)
		}
		c.Meet = n
		return nil
	})
}

// TopicMessageID sets what tells the messages of a topic apart, overriding the
// default of their author and sequence number: messages with equal IDs are one
// message, and the second does not arrive. All nodes of a network need the same
// function. The message has Author, Topic and Data. The function must be pure and
// fast; a hash of the data takes the place of an empty result, or of one that it
// panics over.
func TopicMessageID(id func(m *Message) string) TopicOption {
	return topicOption(func(c *topicConfig) error {
		if id == nil {
			return optionErrorf("TopicMessageID", "the function is nil; leave the option out for the default")
		}
		c.MessageID = func(m *pubsub_pb.Message) string {
			return guardedID(id, &Message{Author: peer.ID(m.GetFrom()), Topic: m.GetTopic(), Data: m.GetData()})
		}
		return nil
	})
}

func guardedID(id func(m *Message) string, m *Message) (s string) {
	defer func() {
		if p := recover(); p != nil || s == "" {
			sum := sha256.Sum256(m.Data)
			s = string(sum[:])
		}
	}()
	return id(m)
}

// TopicAnonymous makes a topic one of anonymous messages, overriding the default
// of signed ones: they have no author, sequence number or signature. Messages with
// the same data are one message, unless [TopicMessageID] tells them apart: the
// second is published to nobody. Neighbors still see who sends a message to them.
// All nodes need the option: on an anonymous topic signed messages are dropped,
// elsewhere unsigned ones, both counted, with a [FindingSignatures] that names the
// peer that sends them.
//
// It corresponds to StrictNoSign without an author of other implementations, and
// conflicts with signature options in [WithPubSubOptions].
func TopicAnonymous() TopicOption {
	return topicOption(func(c *topicConfig) error {
		c.Anonymous = true
		return nil
	})
}

// TopicRate sets how many messages per second a topic is expected to have,
// overriding that of [Scoring]: it weighs who delivers messages first, and bounds
// how many useless ones are no flood. If several handles set it, the last one
// counts.
func TopicRate(perSecond float64) TopicOption {
	return topicOption(func(c *topicConfig) error {
		if perSecond == 0 || !gossip.ValidRate(perSecond) {
			return optionErrorf("TopicRate", "%v messages per second: it must be more than 0, and up to 1,000,000", perSecond)
		}
		c.Spec.Rate = perSecond
		return nil
	})
}

const (
	validatorTimeout     = 5 * time.Second
	validatorConcurrency = 1024
)

// TopicValidator adds a validator: it judges each message of a topic, also those
// that the node publishes, before subscriptions get it and before it is sent on to
// others. It lasts as long as the handle; with several, all must accept. It
// returns
//   - nil to accept the message,
//   - an error that matches [ErrIgnore] to drop it,
//   - any other error to reject it: it is dropped, and held against the peer that
//     sent it on, which should have rejected it too.
//
// [Node.Publish] returns the error of a message of the node's own, as
// [ErrRejected]. A validator may set the message's Value, for other validators and
// readers. Its ctx ends with the time it may take and with the node. A panic is
// logged and counted, and the message ignored.
//
// By default 1,024 messages are validated at once, in no order, each for up to 5
// seconds, after which it is ignored: see [ValidatorConcurrency],
// [ValidatorTimeout] and [ValidatorInOrder]. What is dropped is counted in
// [TopicStatus].
func TopicValidator(check func(ctx context.Context, m *Message) error, opts ...ValidatorOption) TopicOption {
	return topicOption(func(c *topicConfig) error {
		if check == nil {
			return optionErrorf("TopicValidator", "the function is nil")
		}
		v := gossip.Validator{
			Timeout: validatorTimeout, Concurrency: validatorConcurrency,
			Check: func(ctx context.Context, up *pubsub.Message) (any, error) {
				m := messageOf(up, 0)
				err := check(ctx, m)
				return m.Value, err
			},
		}
		if err := inTurn(opts, func(o ValidatorOption) error { return o.applyValidator(&v) }); err != nil {
			return err
		}
		c.Validators = append(c.Validators, v)
		return nil
	})
}

// ValidatorOption configures a [TopicValidator]: [ValidatorTimeout],
// [ValidatorConcurrency], [ValidatorInOrder].
type ValidatorOption interface {
	applyValidator(*gossip.Validator) error
}

type validatorOption func(*gossip.Validator) error

func (o validatorOption) applyValidator(v *gossip.Validator) error { return o(v) }

// ValidatorTimeout sets how long a validator may take for a message, overriding
// the default of 5 seconds. What takes longer is ignored, and counts as running
// until it returns. Zero is for a validator that cannot block: it spares a
// goroutine for each message.
func ValidatorTimeout(d time.Duration) ValidatorOption {
	return validatorOption(func(v *gossip.Validator) error {
		if d < 0 {
			return optionErrorf("ValidatorTimeout", "%v is negative", d)
		}
		v.Timeout = d
		return nil
	})
}

// ValidatorConcurrency sets how many messages a validator judges at once, at least
// 1, overriding the default of 1024. Messages of others that arrive meanwhile are
// dropped, and counted as overrun; the node's own wait.
func ValidatorConcurrency(n int) ValidatorOption {
	return validatorOption(func(v *gossip.Validator) error {
		if n < 1 {
			return optionErrorf("ValidatorConcurrency", "%d messages: it must be at least 1", n)
		}
		v.Concurrency = n
		return nil
	})
}

// ValidatorInOrder makes a validator judge one message after the other, so that an
// author's messages stay in order. It is for validators that only compute: the
// messages of all topics wait for it. Either all or none of a topic's validators
// run in order.
func ValidatorInOrder() ValidatorOption {
	return validatorOption(func(v *gossip.Validator) error {
		v.InOrder = true
		return nil
	})
}
