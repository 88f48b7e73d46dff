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

	spec    Spec             // how it was joined; does not change
	users   int              // guarded by Router.mu
	leaving bool             // no new users; guarded by Router.mu
	sent    time.Time        // when Publish last succeeded; guarded by Router.mu
	linger  *time.Timer      // runs expire; nil when not set; guarded by Router.mu
	counts  TopicCounts      // guarded by Router.mu
	rate    float64          // messages expected per second; guarded by Router.mu
	members map[peer.ID]bool // subscribed peers, and whether gossipsub has a stream to them; guarded by Router.mu
	mesh    map[peer.ID]bool // guarded by Router.mu
	health  Health           // the last that was told; guarded by Router.mu

	meets       map[*Handle]int    // how many members each handle looks for; guarded by Router.mu
	meeting     int                // the most of these; guarded by Router.mu
	stopMeeting context.CancelFunc // nil unless meeting is set; guarded by Router.mu

	peers atomic.Int64  // how many of members have a stream
	came  signal.Signal // peers has grown

	validators atomic.Pointer[[]*validator] // those of all handles; nil without any

	// turn holds a token for whoever starts or stops the feed or changes the
	// validators, which are calls to gossipsub's loop.
	turn    chan struct{}
	feed    atomic.Pointer[feed]
	inOrder bool // how the validators run; changed with turn
}

// acquire returns the topic with one more user, joining it if needed. The
// caller must call release.
func (r *Router) acquire(name string, spec Spec) (*topic, error) {
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
				spec: spec, users: 1, members: make(map[peer.ID]bool), mesh: make(map[peer.ID]bool), health: HealthNone,
			}
			r.topics[name] = t
			r.mu.Unlock()
			r.join(t)
			return t, t.err
		case t.leaving:
			r.mu.Unlock()
			<-t.gone
		case !t.spec.suits(spec) && t.users > 0:
			r.mu.Unlock()
			return nil, errTopicInUse
		case t.users == 0 && !t.spec.equal(spec): // it is kept for the next message only
			t.linger.Stop()
			t.leaving = true
			r.addNewsLocked(news{topic: t.name, kind: topicLeft})
			r.mu.Unlock()
			r.leave(t)
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
	left, held := r.held[t.name]
	if held && left.spec.suits(t.spec) {
		delete(r.held, t.name)
		t.up, t.spec = left.up, left.spec
	}
	r.mu.Unlock()
	if held && t.up == nil {
		return errTopicInUse
	}
	if err := r.setPolicy(t); err != nil {
		return err
	}
	if t.up == nil {
		if t.up, err = r.ps.Join(t.name, r.joining(t.spec)...); err != nil {
			return err
		}
	}
	if err := r.setRate(t, t.spec.Rate); err != nil {
		return errors.Join(err, t.up.Close())
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
	r.addNewsLocked(news{topic: t.name, kind: topicLeft})
	r.mu.Unlock()
	r.leave(t)
}

// leave leaves a topic marked as leaving.
func (r *Router) leave(t *topic) {
	t.unfollow()
	<-t.followed
	t.events.Cancel()
	r.unregister(t)
	err := t.up.Close()
	r.mu.Lock()
	delete(r.topics, t.name)
	if err == nil {
		delete(r.special, t.name)
	}
	if err != nil && !r.closed {
		// The application uses the topic through the upstream router. It cannot be
		// joined a second time: the next join reuses it.
		r.held[t.name] = leftover{t.up, t.spec}
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
