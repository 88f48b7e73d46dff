package streams

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// linger is how long a peer stays protected after its last stream, so that
// successive requests protect it once.
const linger = time.Second

// tagPrefix and a connection's ID form the tag that protects its peer.
const tagPrefix = "p2pnode/streams/"

// hold protects a peer from trimming during the streams of one connection. Its
// fields are guarded by holds.mu.
type hold struct {
	conn network.Conn
	tag  string

	streams   int       // the open ones
	idleSince time.Time // when the last stream ended
	wanted    bool      // whether to protect the peer
	protected bool      // whether it is protected
	busy      bool      // a call of settleLocked is running
}

// holds has the holds of all connections with streams, and the calls that wait
// for a stream to end.
type holds struct {
	protect func(id peer.ID, tag string, on bool)
	group   *lifecycle.Group

	mu      sync.Mutex
	conns   map[network.Conn]*hold // guarded by mu
	queues  map[peer.ID]*queue     // guarded by mu
	sweeper *time.Timer            // nil before the first sweep; guarded by mu
	due     bool                   // a sweep is scheduled; guarded by mu
	closed  bool                   // guarded by mu
}

// queue has the calls that wait for room at one peer.
type queue struct {
	calls int           // guarded by holds.mu
	room  chan struct{} // has a token if a stream has ended
}

// take counts a stream of a connection until release.
func (s *holds) take(conn network.Conn) *hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.conns[conn]
	if h == nil {
		h = &hold{conn: conn, tag: tagPrefix + conn.ID()}
		s.conns[conn] = h
	}
	h.streams++
	h.wanted = !conn.IsClosed() && !s.closed // lose has already been called for a closed one
	s.settleLocked(h)
	return h
}

// release ends the count of a stream; h may be nil.
func (s *holds) release(h *hold) {
	if h == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.streams--
	if q := s.queues[h.conn.RemotePeer()]; q != nil {
		select {
		case q.room <- struct{}{}:
		default:
		}
	}
	if h.streams > 0 {
		return
	}
	h.idleSince = time.Now()
	s.sweepInLocked(linger)
}

// lose ends the protection for a closed connection, even if the application has
// not closed all its streams.
func (s *holds) lose(conn network.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.conns[conn]; h != nil {
		h.wanted = false
		s.settleLocked(h)
	}
}

// settleLocked protects or unprotects a peer, as wanted. It calls out without mu,
// one caller at a time, so that the last wish takes effect last.
func (s *holds) settleLocked(h *hold) {
	if h.busy {
		return
	}
	h.busy = true
	for h.protected != h.wanted {
		on := h.wanted
		h.protected = on
		s.mu.Unlock()
		s.protect(h.conn.RemotePeer(), h.tag, on)
		s.mu.Lock()
	}
	h.busy = false
	if !h.protected && s.conns[h.conn] == h {
		delete(s.conns, h.conn)
	}
}

func (s *holds) sweepInLocked(d time.Duration) {
	switch {
	case s.due || s.closed:
		return
	case s.sweeper == nil:
		s.sweeper = time.AfterFunc(d, func() { s.group.Run(s.sweep) })
	default:
		s.sweeper.Reset(d)
	}
	s.due = true
}

// sweep ends the protection for connections without streams for linger.
func (s *holds) sweep(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = false
	var idle []*hold
	var next time.Duration
	for _, h := range s.conns {
		if h.streams > 0 {
			continue
		}
		if left := time.Until(h.idleSince.Add(linger)); left > 0 {
			next = max(next, left)
		} else {
			idle = append(idle, h)
		}
	}
	for _, h := range idle {
		if h.streams == 0 { // still: settleLocked releases mu
			h.wanted = false
			s.settleLocked(h)
		}
	}
	if next > 0 {
		s.sweepInLocked(next)
	}
}

// close ends all protection.
func (s *holds) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	all := make([]*hold, 0, len(s.conns))
	for _, h := range s.conns {
		all = append(all, h)
	}
	for _, h := range all {
		h.wanted = false
		s.settleLocked(h)
	}
}

// enqueue returns a channel that signals the end of a stream to a peer, and a
// function that leaves the queue.
func (s *holds) enqueue(id peer.ID) (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil {
		q = &queue{room: make(chan struct{}, 1)}
		s.queues[id] = q
	}
	q.calls++
	return q.room, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if q.calls--; q.calls == 0 {
			delete(s.queues, id)
		}
	}
}
