// Package ring is a bounded queue that never blocks its writers, drops the
// oldest element when full, and tells its reader in band how many elements are
// missing.
package ring

import "sync"

// Queue is a bounded first-in-first-out queue, safe for any number of writers
// and readers. Memory grows with what is queued, up to the capacity.
type Queue[T any] struct {
	capacity int
	wake     chan struct{} // has a token whenever something may be queued

	mu      sync.Mutex
	buf     []T    // guarded by mu
	head, n int    // guarded by mu
	lost    uint64 // dropped since the last Pop; guarded by mu
}

// New returns a queue for up to capacity elements, at least one.
func New[T any](capacity int) *Queue[T] {
	return &Queue[T]{capacity: max(capacity, 1), wake: make(chan struct{}, 1)}
}

// Push adds an element, and reports whether it dropped the oldest one.
func (q *Queue[T]) Push(v T) (dropped bool) {
	q.mu.Lock()
	if q.n == len(q.buf) {
		q.growLocked()
	}
	if q.n == len(q.buf) {
		q.dropLocked()
		q.lost++
		dropped = true
	}
	q.buf[(q.head+q.n)%len(q.buf)] = v
	q.n++
	q.mu.Unlock()
	q.nudge()
	return dropped
}

// Lose counts n elements that never reached the queue as dropped. The next Pop
// reports them.
func (q *Queue[T]) Lose(n uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost += n
}

// Pop takes the oldest element. lost is how many elements were dropped just
// before it, reported once.
func (q *Queue[T]) Pop() (v T, lost uint64, ok bool) {
	q.mu.Lock()
	if q.n == 0 {
		q.mu.Unlock()
		return v, 0, false
	}
	v = q.buf[q.head]
	q.dropLocked()
	lost, q.lost = q.lost, 0
	more := q.n > 0
	q.mu.Unlock()
	if more {
		q.nudge() // another reader may be waiting
	}
	return v, lost, true
}

// Wake returns a channel that delivers when there may be something to Pop.
// After receiving from it, Pop until nothing is left or wait again.
func (q *Queue[T]) Wake() <-chan struct{} { return q.wake }

// Len returns how many elements are queued.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

func (q *Queue[T]) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue[T]) dropLocked() {
	var zero T
	q.buf[q.head] = zero
	q.head = (q.head + 1) % len(q.buf)
	q.n--
}

func (q *Queue[T]) growLocked() {
	size := min(max(2*len(q.buf), 16), q.capacity)
	if size == len(q.buf) {
		return
	}
	buf := make([]T, size)
	for i := range q.n {
		buf[i] = q.buf[(q.head+i)%len(q.buf)]
	}
	q.buf, q.head = buf, 0
}
