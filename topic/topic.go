package topic

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"github.com/go-p2pnode/p2pnode"
)

// Node is what [Join] needs of a node. A [p2pnode.Node] is one, and so is a node of
// package p2ptest.
type Node interface {
	Topic(name string, opts ...p2pnode.TopicOption) (*p2pnode.Topic, error)
}

// Topic is a handle of a topic whose messages are values of a type; [Join] returns
// it. The node stays on the topic until the handle is closed. The methods are safe
// for concurrent use.
type Topic[T any] struct {
	topic *p2pnode.Topic
	form  *form[T]
}

// Join joins a topic with [p2pnode.Node.Topic] and returns a handle of it. From then
// on the node decodes each message of the topic, and rejects those that do not
// decode. Several handles of one topic are no error, also with different types: a
// message must then suit all of them.
//
// Join returns a [p2pnode.OptionError] for each option that is invalid, and the
// errors of [p2pnode.Node.Topic].
func Join[T any](n Node, name string, codec Codec[T], opts ...Option) (*Topic[T], error) {
	cfg, err := configure(opts)
	if codec == nil {
		err = errors.Join(errors.New("the codec is nil"), err)
	}
	f := newForm(codec)
	f.maxSize = cfg.maxSize
	full := name
	switch {
	case cfg.inName != 0:
		f.version = cfg.inName
		full += "/v" + strconv.FormatUint(cfg.inName, 10)
	case cfg.inEnvelope != 0:
		f.version, f.envelope, f.also = cfg.inEnvelope, true, cfg.also
	}
	// The first validator decodes, so that the others find the value.
	topicOpts := []p2pnode.TopicOption{p2pnode.TopicValidator(f.judge, p2pnode.ValidatorInOrder(), p2pnode.ValidatorTimeout(0))}
	for _, c := range cfg.checks {
		check, ok := c.f.(func(context.Context, Message[T]) error)
		switch {
		case !ok:
			err = errors.Join(err, optionErrorf("Validate", "the function is for values of type %s, and those of the topic are of type %s", c.of, reflect.TypeFor[T]()))
		case len(c.opts) == 0:
			f.checks = append(f.checks, check)
		default:
			topicOpts = append(topicOpts, f.validator(check, c.opts))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("topic: join %q: %w", name, err)
	}
	t, err := n.Topic(full, append(topicOpts, cfg.with...)...)
	if err != nil {
		return nil, err
	}
	if limit := t.MaxData(); cfg.maxSize > limit {
		err := optionErrorf("MaxSize", "%d bytes exceed the %d that the network takes; lower it, or raise WithMaxMessageSize on every node", cfg.maxSize, limit)
		return nil, fmt.Errorf("topic: join %q: %w", name, errors.Join(err, t.Close()))
	}
	return &Topic[T]{t, f}, nil
}

// Topic returns the untyped handle, for its name, peers and health. Closing it
// closes this one. What is published with it is validated as every message is.
func (t *Topic[T]) Topic() *p2pnode.Topic { return t.topic }

// Publish encodes v and publishes it as [p2pnode.Node.Publish] does, with the same
// errors; an own message that [Validate] refuses is [p2pnode.ErrRejected], and one
// above [MaxSize] is [p2pnode.ErrTooLarge]. A nil pointer is an error. Validators and
// subscriptions of this node get v itself, not what others decode: do not modify what
// it points to afterwards.
func (t *Topic[T]) Publish(ctx context.Context, v T, opts ...p2pnode.PublishOption) error {
	data, err := t.form.encode(v)
	if err != nil {
		return fmt.Errorf("topic: publish to %q: %w", t.topic.Name(), err)
	}
	value, own := p2pnode.PublishValue(v), p2pnode.PublishNoCopy()
	if len(opts) == 0 { // spares an allocation
		return t.topic.Publish(ctx, data, value, own)
	}
	return t.topic.Publish(ctx, data, append(slices.Clip(opts), value, own)...)
}

// Subscribe subscribes to the topic as [p2pnode.Node.Subscribe] does, with the same
// options and errors. The subscription ends with the handle.
func (t *Topic[T]) Subscribe(ctx context.Context, opts ...p2pnode.SubscribeOption) (*Subscription[T], error) {
	s, err := t.topic.Subscribe(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &Subscription[T]{sub: s, form: t.form}, nil
}

// Each subscribes to the topic and calls f with one message after the other, in the
// caller's goroutine. It returns nil once the topic or the node is closed, ctx's
// error when ctx ends, and the error of f if it returns one; then it has
// unsubscribed. A panic of f is the caller's. Messages that arrive while f runs wait,
// as the options say. If the topic is closed already, Each returns
// [p2pnode.ErrClosed].
func (t *Topic[T]) Each(ctx context.Context, f func(ctx context.Context, m Message[T]) error, opts ...p2pnode.SubscribeOption) error {
	s, err := t.Subscribe(ctx, opts...)
	if err != nil {
		return err
	}
	defer s.Close()
	for m, err := range s.Messages(ctx) {
		if err == nil {
			err = f(ctx, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// OtherVersions returns how many messages were ignored because their version of the
// schema is older or newer than that of [VersionInEnvelope], and not among the
// others that it names. Newer ones suggest that the program be updated, but any peer
// can send them.
func (t *Topic[T]) OtherVersions() (older, newer uint64) {
	return t.form.older.Load(), t.form.newer.Load()
}

// Close ends the handle, its subscriptions and its validators, and returns nil, as
// [p2pnode.Topic.Close] does. It may be called more than once.
func (t *Topic[T]) Close() error { return t.topic.Close() }
