package topic

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/go-p2pnode/p2pnode"
)

// Option configures a call of [Join]: [MaxSize], [Validate], [VersionInName],
// [VersionInEnvelope], [With].
type Option interface{ apply(*config) error }

type option func(*config) error

func (o option) apply(c *config) error { return o(c) }

type config struct {
	maxSize            int // 0 for what the network takes
	checks             []check
	inName, inEnvelope uint64 // versions; 0 without
	also               []uint64
	with               []p2pnode.TopicOption
}

// check is a function of Validate, of whatever type.
type check struct {
	f    any          // func(context.Context, Message[T]) error
	of   reflect.Type // T
	opts []p2pnode.ValidatorOption
}

// configure applies options. It reports all problems at once.
func configure(opts []Option) (*config, error) {
	c := new(config)
	var errs []error
	for _, o := range opts {
		if o != nil {
			errs = append(errs, o.apply(c))
		}
	}
	if c.inName != 0 && c.inEnvelope != 0 {
		errs = append(errs, optionErrorf("VersionInEnvelope", "it conflicts with VersionInName: a topic has its version in one place"))
	}
	return c, errors.Join(errs...)
}

func optionErrorf(name, format string, args ...any) error {
	return &p2pnode.OptionError{Option: name, Err: fmt.Errorf(format, args...)}
}

// MaxSize sets how many bytes the data of a message may have, at least 1,
// overriding the default of what the network takes ([p2pnode.Topic.MaxData]), which
// it cannot exceed. A larger message of another peer is rejected before it is
// decoded; for one of the node's own, [Topic.Publish] returns
// [p2pnode.ErrTooLarge]. What a value takes in memory is a multiple of it, depending
// on its type.
func MaxSize(bytes int) Option {
	return option(func(c *config) error {
		if bytes < 1 {
			return optionErrorf("MaxSize", "%d bytes: it must be at least 1; leave the option out for what the network takes", bytes)
		}
		c.maxSize = bytes
		return nil
	})
}

// Validate adds a function that judges each message once it is decoded, also the
// node's own, as a [p2pnode.TopicValidator] does: nil accepts the message, an error
// that matches [p2pnode.ErrIgnore] drops it, and any other error rejects it, which
// is held against the peer that sent it on. With several, all must accept. Its T is
// that of the topic.
//
// By default it runs where messages are decoded, in order and without a time limit:
// it must only compute, since the messages of all topics wait for it. With options
// it runs as a [p2pnode.TopicValidator] with them, whose defaults are 5 seconds and
// 1,024 messages at once, in no order: that is for a function that blocks, and ends
// with its ctx.
func Validate[T any](f func(ctx context.Context, m Message[T]) error, opts ...p2pnode.ValidatorOption) Option {
	opts = slices.DeleteFunc(slices.Clone(opts), func(o p2pnode.ValidatorOption) bool { return o == nil })
	return option(func(c *config) error {
		if f == nil {
			return optionErrorf("Validate", "the function is nil")
		}
		c.checks = append(c.checks, check{f, reflect.TypeFor[T](), opts})
		return nil
	})
}

// VersionInName appends a version of the schema to the name of the topic: version 3
// of "news" is the topic "news/v3". By default the name is unchanged. Versions have
// nothing to do with each other, so a node that speaks two joins both topics. It
// conflicts with [VersionInEnvelope].
func VersionInName(version uint64) Option {
	return option(func(c *config) error {
		if version == 0 {
			return optionErrorf("VersionInName", "versions begin with 1")
		}
		c.inName = version
		return nil
	})
}

// VersionInEnvelope puts a version of the schema in front of the data of each
// message, as an unsigned varint of at most 10 bytes in its shortest form. By
// default there is none. Messages of other versions than it and those of also are
// ignored, and counted ([Topic.OtherVersions]); they are not sent on to others
// either. Those of also are decoded by the same codec, and [Message] has the
// version. Messages without a version are rejected, so that all peers need the
// option. It conflicts with [VersionInName].
func VersionInEnvelope(version uint64, also ...uint64) Option {
	also = slices.Clone(also)
	return option(func(c *config) error {
		if version == 0 || slices.Contains(also, 0) {
			return optionErrorf("VersionInEnvelope", "versions begin with 1")
		}
		if slices.Contains(also, version) {
			return optionErrorf("VersionInEnvelope", "version %d is also among the others; name it once", version)
		}
		c.inEnvelope, c.also = version, also
		return nil
	})
}

// With adds options of [p2pnode.Node.Topic], such as [p2pnode.TopicAnonymous]. A
// [p2pnode.TopicValidator] among them finds the decoded value in the Value of its
// message; unless it runs in order, decoding does not either.
func With(opts ...p2pnode.TopicOption) Option {
	opts = slices.Clone(opts)
	return option(func(c *config) error {
		c.with = append(c.with, opts...)
		return nil
	})
}
