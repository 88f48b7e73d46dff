package gossip

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/ring"
)

// feed is an upstream subscription and the subscriptions that it feeds. It is
// replaced as a whole, never changed.
type feed struct {
	up     *pubsub.Subscription
	pumped chan struct{} // closed when the pump has ended
	subs   []*Subscription
}

// Subscription reads one topic. Its methods are safe for concurrent use; each
// message goes to one of the callers.
type Subscription struct {
	router  *Router
	topic   *topic
	queue   *ring.Queue[*pubsub.Message]
	dropped atomic.Uint64

	forget  func() // tells the handle that made it; nil without one
	skipOwn bool

	done chan struct{}
	once sync.Once // closes done
}

// Reading says how a subscription buffers messages.
type Reading struct {
	Buffer  int   // how many unread messages it holds
	Bytes   int64 // and how many bytes of them; 0 for Config.QueueBytes
	SkipOwn bool  // leaves the node's own messages out

	// Messages that find it full drop the oldest, wait for up to Wait for room, or are
	// dropped themselves.
	Wait       time.Duration
	DropNewest bool
}

func (o Reading) full() ring.Full {
	switch {
	case o.Wait > 0:
		return ring.Wait
	case o.DropNewest:
		return ring.DropNewest
	default:
		return ring.DropOldest
	}
}

// Subscribe adds a subscription. The first one on a topic subscribes the node.
func (r *Router) Subscribe(ctx context.Context, name string, o Reading) (*Subscription, error) {
	t, err := r.acquire(name, Spec{})
	if err != nil {
		return nil, err
	}
	s := &Subscription{
		router: r, topic: t, skipOwn: o.SkipOwn, done: make(chan struct{}),
		queue: ring.NewSized(o.Buffer, cmp.Or(o.Bytes, r.cfg.QueueBytes), r.budget, sizeOf),
	}
	s.queue.WhenFull(o.full(), o.Wait, func() { s.missed(1) })
	if err := r.startFeed(ctx, t, s); err != nil {
		r.release(t, false)
		return nil, err
	}
	return s, nil
}

func (r *Router) startFeed(ctx context.Context, t *topic, s *Subscription) error {
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.turn }()
	f := t.feed.Load()
	if f == nil {
		up, err := t.up.Subscribe(pubsub.WithBufferSize(pumpBuffer))
		if err != nil {
			return err
		}
		f = &feed{up: up, pumped: make(chan struct{})}
		if !r.group.Go(func(ctx context.Context) { r.pump(ctx, t, f.up, f.pumped) }) {
			up.Cancel()
			return errs.ErrClosed
		}
	}
	t.feed.Store(&feed{f.up, f.pumped, append(slices.Clip(f.subs), s)})
	return nil
}

// sizeOf is what a message takes in memory, about.
func sizeOf(m *pubsub.Message) int64 {
	const rest = 512 // the structs, author, number, signature
	return int64(len(m.Data)+len(m.Key)+len(m.GetTopic())) + rest
}

// drop removes a subscription. The node unsubscribes with its last one.
func (t *topic) drop(s *Subscription) {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	f := t.feed.Load()
	if f == nil { // the router has closed
		return
	}
	left := slices.DeleteFunc(slices.Clone(f.subs), func(o *Subscription) bool { return o == s })
	if len(left) > 0 {
		t.feed.Store(&feed{f.up, f.pumped, left})
		return
	}
	t.feed.Store(nil)
	f.up.Cancel()
	<-f.pumped
}

// stopFeed closes all subscriptions of a topic.
func (r *Router) stopFeed(t *topic) {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	f := t.feed.Swap(nil)
	if f == nil {
		return
	}
	for _, s := range f.subs {
		s.once.Do(func() { close(s.done) })
	}
	f.up.Cancel()
	<-f.pumped
}

// pump distributes a topic's messages to its subscriptions.
func (r *Router) pump(ctx context.Context, t *topic, up *pubsub.Subscription, pumped chan struct{}) {
	defer close(pumped)
	self := r.cfg.Host.ID()
	for {
		m, err := up.Next(ctx)
		if err != nil {
			return
		}
		f := t.feed.Load()
		if f == nil || f.up != up {
			continue
		}
		r.delivered.Add(1)
		for _, s := range f.subs {
			if s.skipOwn && m.ReceivedFrom == self {
				continue
			}
			if n := s.queue.Push(m); n > 0 {
				s.missed(uint64(n))
			}
		}
	}
}

// missed counts messages that the subscription has dropped.
func (s *Subscription) missed(n uint64) {
	s.dropped.Add(n)
	s.router.dropped.Add(n)
}

// Topic returns the topic's name.
func (s *Subscription) Topic() string { return s.topic.name }

// Dropped returns how many messages the subscription has dropped because its
// reader was too slow.
func (s *Subscription) Dropped() uint64 { return s.dropped.Load() }

// Done is closed once the subscription or the router is closed.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Next waits for the next message. lost is how many the subscription dropped
// just before it. It returns errs.ErrClosed once the subscription or the router
// is closed, and ctx's error when ctx ends first.
func (s *Subscription) Next(ctx context.Context) (m *pubsub.Message, lost uint64, err error) {
	for {
		select {
		case <-s.done:
			return nil, 0, errs.ErrClosed
		default:
		}
		if m, lost, ok := s.queue.Pop(); ok {
			return m, lost, nil
		}
		select {
		case <-s.queue.Wake():
		case <-s.done:
			return nil, 0, errs.ErrClosed
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// Forward returns a channel of a subscription's messages, which is closed with the
// subscription.
func Forward[T any](s *Subscription, convert func(m *pubsub.Message, lost uint64) T) <-chan T {
	c := make(chan T)
	fill := func(ctx context.Context) {
		defer close(c)
		for {
			m, lost, err := s.Next(ctx)
			if err != nil {
				return
			}
			select {
			case c <- convert(m, lost):
			case <-s.done:
				return
			case <-ctx.Done():
				return
			}
		}
	}
	if !s.router.group.Go(fill) {
		close(c)
	}
	return c
}

// Close ends the subscription. If it was the topic's last user, Close returns
// once the topic is left. It may be called more than once.
func (s *Subscription) Close() {
	s.once.Do(func() {
		close(s.done)
		if s.forget != nil {
			s.forget()
		}
		s.topic.drop(s)
		s.queue.Close()
		s.router.release(s.topic, false)
	})
}
