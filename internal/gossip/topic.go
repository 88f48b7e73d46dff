package gossip

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// topic is a topic that is joined while it has users: subscriptions, and
// publishes in progress. Joining and leaving are calls to gossipsub's loop,
// made without Router.mu: ready and gone report their end to those who come
// meanwhile.
type topic struct {
	name  string
	ready chan struct{} // closed when joined, or when joining failed
	gone  chan struct{} // closed when left

	// Set before ready is closed.
	err      error // why joining failed
	up       *pubsub.Topic
	events   *pubsub.TopicEventHandler
	unfollow context.CancelFunc
	followed chan struct{} // closed when follow has ended

	users   int              // guarded by Router.mu
	leaving bool             // no new users; guarded by Router.mu
	sent    time.Time        // when Publish last succeeded; guarded by Router.mu
	linger  *time.Timer      // runs expire; nil when not set; guarded by Router.mu
	overrun uint64           // guarded by Router.mu
	members map[peer.ID]bool // subscribed peers, and whether gossipsub has a stream to them; guarded by Router.mu

	peers atomic.Int64  // how many of members have a stream
	came  signal.Signal // peers has grown

	// turn holds a token for whoever starts or stops the feed, which are calls
	// to gossipsub's loop.
	turn chan struct{}
	feed atomic.Pointer[feed]
}

// acquire returns the topic with one more user, joining it if needed. The
// caller must call release.
func (r *Router) acquire(name string) (*topic, error) {
	switch {
	case len(name) > MaxTopicName:
		return nil, fmt.Errorf("%w: the name of the topic has %d bytes, limit %d", errs.ErrTooLarge, len(name), MaxTopicName)
	case !utf8.ValidString(name):
		return nil, errors.New("the name of the topic is not valid UTF-8")
	}
	for {
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return nil, errs.ErrClosed
		}
		t := r.topics[name]
		switch {
		case t == nil && len(r.topics) >= MaxTopics:
			r.mu.Unlock()
			return nil, fmt.Errorf("%w: the node is on %d topics already", errs.ErrLimit, MaxTopics)
		case t == nil:
			t = &topic{
				name: name, ready: make(chan struct{}), gone: make(chan struct{}), turn: make(chan struct{}, 1),
				users: 1, members: make(map[peer.ID]bool),
			}
			r.topics[name] = t
			r.mu.Unlock()
			r.join(t)
			return t, t.err
		case t.leaving:
			r.mu.Unlock()
			<-t.gone
		default:
			t.users++
			r.mu.Unlock()
			<-t.ready
			return t, t.err
		}
	}
}

// join joins a new topic and starts following its peers. A topic that cannot be
// joined is forgotten, along with its users.
func (r *Router) join(t *topic) {
	defer close(t.ready)
	if t.err = r.joinUpstream(t); t.err == nil {
		ctx, cancel := context.WithCancel(r.group.Context())
		t.unfollow, t.followed = cancel, make(chan struct{})
		if r.group.Go(func(context.Context) { r.follow(ctx, t) }) {
			return
		}
		cancel()
		t.events.Cancel()
		t.err = errs.ErrClosed
	}
	r.mu.Lock()
	delete(r.topics, t.name)
	r.mu.Unlock()
	close(t.gone)
}

func (r *Router) joinUpstream(t *topic) (err error) {
	r.mu.Lock()
	t.up = r.held[t.name]
	delete(r.held, t.name)
	r.mu.Unlock()
	if t.up == nil {
		if t.up, err = r.ps.Join(t.name); err != nil {
			return err
		}
	}
	if t.events, err = t.up.EventHandler(); err != nil {
		return errors.Join(err, t.up.Close())
	}
	return nil
}

// release ends one use of a topic. After the last one the topic is left: at
// once, or once Linger has passed since the last message.
func (r *Router) release(t *topic, sent bool) {
	r.mu.Lock()
	t.users--
	if sent {
		t.sent = time.Now()
	}
	if t.users > 0 || t.leaving || r.closed || t.linger != nil {
		r.mu.Unlock()
		return
	}
	r.settle(t)
}

// expire runs when the linger timer of a topic fires.
func (r *Router) expire(t *topic) {
	r.mu.Lock()
	t.linger = nil
	if t.users > 0 || t.leaving || r.closed {
		r.mu.Unlock()
		return
	}
	r.settle(t)
}

// settle leaves a topic that has no users or sets its linger timer. It is
// called with mu held and releases it.
func (r *Router) settle(t *topic) {
	if left := Linger - time.Since(t.sent); !t.sent.IsZero() && left > 0 {
		t.linger = time.AfterFunc(left, func() {
			r.group.Run(func(context.Context) { r.expire(t) })
		})
		r.mu.Unlock()
		return
	}
	t.leaving = true
	r.addNewsLocked(news{topic: t.name})
	r.mu.Unlock()
	r.leave(t)
}

// leave leaves a topic marked as leaving.
func (r *Router) leave(t *topic) {
	t.unfollow()
	<-t.followed
	t.events.Cancel()
	err := t.up.Close()
	r.mu.Lock()
	delete(r.topics, t.name)
	if err != nil && !r.closed {
		// The application uses the topic through the upstream router. It cannot be
		// joined a second time: the next join reuses it.
		r.held[t.name] = t.up
	}
	r.mu.Unlock()
	close(t.gone)
	if err != nil {
		r.cfg.Log.Debug("leaving topic", "topic", t.name, "err", err)
	}
}

// evict ends a topic whatever its users: the router is closing.
func (r *Router) evict(t *topic) {
	<-t.ready
	if t.err != nil {
		return
	}
	r.stopFeed(t)
	r.mu.Lock()
	if t.linger != nil {
		t.linger.Stop()
	}
	leaving := t.leaving
	t.leaving = true
	r.mu.Unlock()
	if leaving {
		<-t.gone
		return
	}
	r.leave(t)
}
