package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// Handle is a use of a topic, which stays joined until the handle is closed. Its
// methods are safe for concurrent use, and return errs.ErrClosed after Close.
type Handle struct {
	r          *Router
	t          *topic
	validators []*validator

	done chan struct{} // closed by Close
	once sync.Once     // closes done

	mu   sync.Mutex
	subs map[*Subscription]bool // guarded by mu; nil after Close
}

// Opening says how a topic is used.
type Opening struct {
	Spec
	Validators []Validator
	Meet       int // how many members to look for and keep connected
}

// Open returns a handle of a topic, which it joins if needed.
func (r *Router) Open(ctx context.Context, name string, o Opening) (*Handle, error) {
	t, err := r.acquire(name, o.Spec)
	if err != nil {
		return nil, err
	}
	h := &Handle{r: r, t: t, done: make(chan struct{}), subs: make(map[*Subscription]bool)}
	if o.Rate > 0 {
		if err := r.setRate(t, o.Rate); err != nil {
			r.release(t, false)
			return nil, err
		}
	}
	for _, v := range o.Validators {
		h.validators = append(h.validators, newValidator(r, t, v))
	}
	if err := r.addValidators(ctx, t, h.validators); err != nil {
		r.release(t, false)
		return nil, err
	}
	r.meet(h, o.Meet)
	return h, nil
}

// meet looks for as many members of a topic as the handle that wants most, which
// one has just changed.
func (r *Router) meet(h *Handle, want int) {
	t := h.t
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(t.meets, h)
	if want > 0 {
		if t.meets == nil {
			t.meets = make(map[*Handle]int)
		}
		t.meets[h] = want
	}
	most := 0
	for _, n := range t.meets {
		most = max(most, n)
	}
	if most == t.meeting {
		return
	}
	if t.stopMeeting != nil {
		t.stopMeeting()
		t.stopMeeting = nil
	}
	if t.meeting = most; most > 0 {
		ctx, cancel := context.WithCancel(r.group.Context())
		t.stopMeeting = cancel
		r.group.Go(func(context.Context) { r.cfg.Meet(ctx, t.name, most) })
	}
}

// Reaches reports whether messages on a topic reach a peer.
func (r *Router) Reaches(name string, id peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.topics[name]
	return t != nil && t.members[id]
}

// Name returns the topic's name.
func (h *Handle) Name() string { return h.t.name }

// Close closes the subscriptions of the handle, and leaves the topic if nobody
// else uses it. It may be called more than once.
func (h *Handle) Close() {
	h.once.Do(func() {
		close(h.done)
		h.mu.Lock()
		subs := h.subs
		h.subs = nil
		h.mu.Unlock()
		for s := range subs {
			s.Close()
		}
		h.r.meet(h, 0)
		h.r.removeValidators(h.t, h.validators)
		h.r.release(h.t, false)
	})
}

// Subscribe adds a subscription, which Close ends.
func (h *Handle) Subscribe(ctx context.Context, o Reading) (*Subscription, error) {
	if h.closed() {
		return nil, errs.ErrClosed
	}
	s, err := h.r.Subscribe(ctx, h.t.name, o)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	open := h.subs != nil
	if open {
		s.forget = func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.subs, s)
		}
		h.subs[s] = true
	}
	h.mu.Unlock()
	if !open {
		s.Close()
		return nil, errs.ErrClosed
	}
	return s, nil
}

// Publish publishes a message.
func (h *Handle) Publish(ctx context.Context, data []byte, o Publishing) error {
	if h.closed() {
		return errs.ErrClosed
	}
	o.stop = h.done
	return h.r.Publish(ctx, h.t.name, data, o)
}

func (h *Handle) closed() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// State describes the topic; after Close with nothing but its name.
func (h *Handle) State() Topic {
	if h.closed() {
		return Topic{Name: h.t.name, Health: HealthNone}
	}
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	return h.r.stateLocked(h.t)
}

// Publishing says how a message is published.
type Publishing struct {
	// MinPeers is how many peers the message must reach.
	MinPeers int
	// Wait is how long Publish waits for them, and for room in their queues, at
	// most; 0 for not at all.
	Wait time.Duration
	// Value is what the validators have the message for already, and what readers
	// get with it; see [ValueOf].
	Value any
	// NoCopy leaves data to the message, which otherwise gets a copy.
	NoCopy bool

	stop <-chan struct{} // ends the wait with errs.ErrClosed
}

// Publish sends data to the peers on a topic and to the node's own
// subscriptions. It waits for the peers that o asks for, and then returns
// errs.ErrNoPeers, or errs.ErrLimit if so many messages wait for them that this one
// would be dropped. It returns errs.ErrTooLarge for data that does not fit, and
// errs.ErrRejected for what a validator of the node's refuses. It keeps no
// reference to data.
func (r *Router) Publish(ctx context.Context, name string, data []byte, o Publishing) error {
	if limit := r.MaxData(name); len(data) > limit {
		return fmt.Errorf("%w: %d bytes, limit %d; raise WithMaxMessageSize on every node, or publish where to fetch the data", errs.ErrTooLarge, len(data), limit)
	}
	t, err := r.acquire(name, Spec{})
	if err != nil {
		return err
	}
	size := int64(len(data) + len(name) + r.envelope)
	if err := r.await(ctx, t, size, o); err != nil {
		r.release(t, false)
		return err
	}
	if !o.NoCopy {
		data = slices.Clone(data)
	}
	err = r.send(ctx, t, data, o.Value)
	r.handed(size)
	r.release(t, err == nil)
	if err != nil {
		return err
	}
	r.published.Add(1)
	return nil
}

// MaxData returns how many bytes a message on a topic may have.
func (r *Router) MaxData(topic string) int {
	return max(r.cfg.MaxMessageSize-r.envelope-len(topic), 0)
}

func (r *Router) send(ctx context.Context, t *topic, data []byte, value any) error {
	var opts []pubsub.PubOpt
	if h := r.cfg.Host; t.spec.Anonymous {
		opts = append(opts, pubsub.WithSecretKeyAndPeerId(noKey{h.Peerstore().PrivKey(h.ID())}, h.ID()))
	}
	if t.validators.Load() == nil && value == nil {
		return t.up.Publish(ctx, data, opts...)
	}
	own := &own{value: value}
	var err error
	if opts == nil {
		err = t.up.Publish(ctx, data, pubsub.WithValidatorData(own))
	} else {
		err = t.up.Publish(ctx, data, append(opts, pubsub.WithValidatorData(own))...)
	}
	if err == nil || own.err == nil {
		return err
	}
	if refused := (pubsub.ValidationError{}); errors.As(err, &refused) { // which allocates
		return fmt.Errorf("%w: %w", errs.ErrRejected, own.err)
	}
	return err
}

// admit reports whether as many peers as a message must reach are on its topic,
// and have room for it, which it takes then, until handed is called. It also
// returns how many are on the topic, and how many more whose relays it is too large
// for.
func (r *Router) admit(t *topic, size int64, want int) (there, relayed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := 0
	for id, linked := range t.members {
		if room >= want {
			break
		}
		if !linked {
			continue
		}
		reached, free := r.streams.hasRoom(id, size, r.handing)
		switch {
		case reached && !r.streams.carries(id, size):
			relayed++
			continue
		case reached:
			there++
		}
		if free {
			room++
		}
	}
	if room < want {
		return there, relayed, false
	}
	r.handing += size
	return there, relayed, true
}

// handed records that gossipsub has a message.
func (r *Router) handed(size int64) {
	r.mu.Lock()
	r.handing -= size
	r.mu.Unlock()
	r.streams.drained.Notify()
}

// await waits for the peers that a message must reach, and for room in what waits
// for them, which it takes.
func (r *Router) await(ctx context.Context, t *topic, size int64, o Publishing) error {
	if _, _, ok := r.admit(t, size, o.MinPeers); ok {
		return nil
	}
	timer := time.NewTimer(o.Wait)
	defer timer.Stop()
	for {
		came, drained := t.came.Wait(), r.streams.drained.Wait()
		there, relayed, ok := r.admit(t, size, o.MinPeers)
		if ok {
			return nil
		}
		var why error
		select {
		case <-came:
			continue
		case <-drained:
			continue
		case <-r.cfg.Closing:
			return errs.ErrClosed
		case <-o.stop:
			return errs.ErrClosed
		case <-ctx.Done():
			why = ctx.Err()
		case <-timer.C:
			why = fmt.Errorf("waited %v", o.Wait)
		}
		connected := len(r.cfg.Host.Network().Peers())
		switch {
		case there >= o.MinPeers:
			return fmt.Errorf("%w: too many messages wait for the peers on the topic, which do not read, or have slow connections (%w); publish less, or raise the PubSubQueue or PubSub of WithLimits",
				errs.ErrLimit, why)
		case there+relayed >= o.MinPeers:
			return fmt.Errorf("%w: %d bytes with all that belongs to it, for peers that are reached through relays with limits, where WithRelayedPubSub allows %d (%w)",
				errs.ErrTooLarge, size, r.cfg.RelayedBytes, why)
		case there > 0:
			return fmt.Errorf("not enough peers (%w) on the topic: %d of %d, %d connected (%w); lower PublishMinPeers, or wait longer with PublishWait",
				errs.ErrNoPeers, there, o.MinPeers, connected, why)
		default:
			return fmt.Errorf("%w on the topic, %d connected (%w); subscribe elsewhere first, or use PublishNow",
				errs.ErrNoPeers, connected, why)
		}
	}
}

// Health says how well a topic is connected.
type Health string

// The kinds of health.
const (
	HealthNone Health = "none" // messages reach nobody
	HealthThin Health = "thin" // they do, but the mesh has too few of the topic's peers
	HealthGood Health = "good"
)

// meshEnough is how many peers in a topic's mesh are enough: gossipsub looks for
// more when it has fewer.
const meshEnough = 5

// healthLocked judges a topic: its mesh should have the topic's peers, or enough
// of them. A topic without a subscription has no mesh.
func (r *Router) healthLocked(t *topic) Health {
	reach, mesh := 0, 0
	for id, linked := range t.members {
		if !linked {
			continue
		}
		reach++
		if t.mesh[id] {
			mesh++
		}
	}
	switch {
	case reach == 0:
		return HealthNone
	case t.feed.Load() != nil && mesh < min(reach, meshEnough):
		return HealthThin
	default:
		return HealthGood
	}
}

// stateLocked describes a topic.
func (r *Router) stateLocked(t *topic) Topic {
	s := Topic{Name: t.name, TopicCounts: t.counts, Health: r.healthLocked(t)}
	for id, linked := range t.members {
		if linked {
			s.Peers = append(s.Peers, id)
		}
	}
	for id := range t.mesh {
		s.Mesh = append(s.Mesh, id)
	}
	slices.Sort(s.Peers)
	slices.Sort(s.Mesh)
	if f := t.feed.Load(); f != nil {
		s.Subscriptions = len(f.subs)
		for _, sub := range f.subs {
			s.Dropped += sub.Dropped()
		}
	}
	return s
}

// graft records that a peer came into a topic's mesh, or left it. It runs in
// gossipsub's loop.
func (r *Router) graft(id peer.ID, name string, in bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.topics[name]
	if t == nil {
		return
	}
	if in {
		t.mesh[id] = true
	} else {
		delete(t.mesh, id)
	}
	r.addNewsLocked(news{topic: name, kind: meshChanged})
}
