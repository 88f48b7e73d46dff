package topic

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/go-p2pnode/p2pnode"
)

// Message is a message published to a topic.
type Message[T any] struct {
	// Value is the decoded value. All subscriptions and validators of the node share
	// it, and for a message of the node's own also whoever published it: do not modify
	// what it points to.
	Value T
	// Version is the version of the message's schema, with [VersionInName] or
	// [VersionInEnvelope]; 0 without.
	Version uint64
	// Message is the message as it arrived, with its Author and Data, which includes
	// the version of [VersionInEnvelope].
	*p2pnode.Message
}

// Subscription reads one topic; [Topic.Subscribe] returns it. Its methods are safe
// for concurrent use; each message goes to one of the callers.
type Subscription[T any] struct {
	sub  *p2pnode.Subscription
	form *form[T]

	skipped atomic.Uint64 // messages that have no value after all
	untold  atomic.Uint64 // and were lost without a word, with those lost before them

	forward   sync.Once // makes c
	c         chan Message[T]
	forwarder sync.WaitGroup // fills c
}

// Next waits for the next message. It returns [p2pnode.ErrClosed] once the
// subscription, the topic or the node is closed, and ctx's error when ctx ends
// first.
func (s *Subscription[T]) Next(ctx context.Context) (Message[T], error) {
	for {
		m, err := s.sub.Next(ctx)
		if err != nil {
			return Message[T]{}, err
		}
		typed, err := s.form.message(m)
		if err != nil {
			// It passed the node's validators before the topic had a type.
			s.skipped.Add(1)
			s.untold.Add(m.Lost + 1)
			continue
		}
		if s.untold.Load() > 0 {
			m.Lost += s.untold.Swap(0)
		}
		return typed, nil
	}
}

// Messages iterates over the messages. The loop ends without an error when the
// subscription, the topic or the node is closed, and with ctx's error when ctx ends.
func (s *Subscription[T]) Messages(ctx context.Context) iter.Seq2[Message[T], error] {
	return func(yield func(Message[T], error) bool) {
		for {
			m, err := s.Next(ctx)
			if errors.Is(err, p2pnode.ErrClosed) {
				return
			}
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// C returns a channel of the messages, for a select, which is closed once the
// subscription, the topic or the node is closed. Every call returns the same
// channel. A message that waits in it is one more than [p2pnode.SubscribeBuffer]
// sets; it is no longer returned by [Subscription.Next].
func (s *Subscription[T]) C() <-chan Message[T] {
	s.forward.Do(func() {
		s.c = make(chan Message[T])
		s.forwarder.Go(func() {
			defer close(s.c)
			for m, err := range s.Messages(context.Background()) {
				if err != nil {
					return
				}
				select {
				case s.c <- m:
				case <-s.sub.Done():
					return
				}
			}
		})
	})
	return s.c
}

// Dropped returns how many messages the subscription has dropped, because its reader
// was too slow, or because they do not decode: those that were on their way when the
// topic was joined are not rejected. Lost in [p2pnode.Message] shows where they are
// missing.
func (s *Subscription[T]) Dropped() uint64 { return s.sub.Dropped() + s.skipped.Load() }

// Close ends the subscription and returns nil, as [p2pnode.Subscription.Close] does.
// It may be called more than once.
func (s *Subscription[T]) Close() error {
	err := s.sub.Close()
	s.forward.Do(func() { // C after Close
		s.c = make(chan Message[T])
		close(s.c)
	})
	s.forwarder.Wait()
	return err
}
