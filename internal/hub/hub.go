// Package hub delivers events to any number of subscribers, none of which can
// hold up the others.
package hub

import (
	"cmp"
	"slices"
	"sync"

	"github.com/go-p2pnode/p2pnode/internal/ring"
)

// Hub delivers each event to its subscribers, and keeps the events that
// describe the current state. It is safe for concurrent use, and Emit never
// blocks.
type Hub[E any] struct {
	capacity int
	state    func(E) (key any, stands bool)

	mu   sync.Mutex
	subs map[*Sub[E]]struct{} // guarded by mu
	now  map[any]kept[E]      // guarded by mu
	seq  uint64               // of the last event; guarded by mu
}

type kept[E any] struct {
	seq uint64
	ev  E
}

// New returns a hub whose subscribers may fall capacity events behind. state
// returns which part of the state an event is about, nil for none, and whether
// that part is now present or gone. It is called with a lock held and must not
// call back.
func New[E any](capacity int, state func(E) (key any, present bool)) *Hub[E] {
	return &Hub[E]{capacity: capacity, state: state, subs: make(map[*Sub[E]]struct{}), now: make(map[any]kept[E])}
}

// Emit delivers an event to every subscriber.
func (h *Hub[E]) Emit(ev E) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	if key, stands := h.state(ev); key != nil {
		if stands {
			h.now[key] = kept[E]{h.seq, ev}
		} else {
			delete(h.now, key)
		}
	}
	for s := range h.subs {
		s.queue.Push(ev)
	}
}

// Forget drops parts of the state, without an event.
func (h *Hub[E]) Forget(which func(E) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, k := range h.now {
		if which(k.ev) {
			delete(h.now, key)
		}
	}
}

// Drop drops a part of the state, without an event.
func (h *Hub[E]) Drop(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.now, key)
}

// Subscribe returns a subscription to the events from now on. With state it
// begins with the events that make up the current state, in their order:
// between them and the events that follow, nothing is missing or repeated.
func (h *Hub[E]) Subscribe(state bool) *Sub[E] {
	s := &Sub[E]{hub: h, queue: ring.New[E](h.capacity), done: make(chan struct{})}
	h.mu.Lock()
	var list []kept[E]
	if state {
		for _, k := range h.now {
			list = append(list, k)
		}
	}
	h.subs[s] = struct{}{}
	h.mu.Unlock()
	slices.SortFunc(list, func(a, b kept[E]) int { return cmp.Compare(a.seq, b.seq) })
	for _, k := range list {
		s.first = append(s.first, k.ev)
	}
	return s
}

// Subscribers returns how many subscriptions there are.
func (h *Hub[E]) Subscribers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// Sub is one subscription. Next is for one reader; Close is safe at any time.
type Sub[E any] struct {
	hub   *Hub[E]
	queue *ring.Queue[E]
	first []E // what Next returns before the queue
	once  sync.Once
	done  chan struct{}
}

// Next returns the next event and how many before it are missing. It reports
// false when the subscription or one of the two channels is closed.
func (s *Sub[E]) Next(stop, closing <-chan struct{}) (ev E, lost uint64, ok bool) {
	for {
		select {
		case <-s.done:
			return ev, 0, false
		case <-stop:
			return ev, 0, false
		case <-closing:
			return ev, 0, false
		default:
		}
		if len(s.first) > 0 {
			ev, s.first = s.first[0], s.first[1:]
			return ev, 0, true
		}
		if ev, lost, ok = s.queue.Pop(); ok {
			return ev, lost, true
		}
		select {
		case <-s.queue.Wake():
		case <-s.done:
		case <-stop:
		case <-closing:
		}
	}
}

// Close ends the subscription.
func (s *Sub[E]) Close() {
	s.once.Do(func() {
		s.hub.mu.Lock()
		delete(s.hub.subs, s)
		s.hub.mu.Unlock()
		close(s.done)
	})
}
