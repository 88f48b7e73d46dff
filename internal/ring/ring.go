// Package ring is a bounded queue that never blocks its writers, drops the
// oldest element when full, and tells its reader in band how many elements are
// missing.
package ring

import (
	"sync"
	"sync/atomic"
)

// Budget bounds how many bytes several queues hold together. A nil Budget
// bounds nothing.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Take takes bytes from the budget, and reports whether there were enough.
func (b *Budget) Take(bytes int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(bytes) > b.limit {
		b.used.Add(-bytes)
		return false
	}
	return true
}

// Force takes bytes from the budget even when there are not enough.
func (b *Budget) Force(bytes int64) {
	if b != nil {
		b.used.Add(bytes)
	}
}

// Give returns bytes to the budget.
func (b *Budget) Give(bytes int64) { b.Force(-bytes) }

// Used returns how many bytes are taken.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// Queue is a bounded first-in-first-out queue, safe for any number of writers
// and readers. Memory grows with what is queued, up to the capacity.
type Queue[T any] struct {
	capacity int
	limit    int64         // in bytes; 0 for none
	size     func(T) int64 // of an element, in bytes; nil without a limit
	total    *Budget
	wake     chan struct{} // has a token whenever something may be queued

	mu      sync.Mutex
	buf     []T    // guarded by mu
	head, n int    // guarded by mu
	bytes   int64  // guarded by mu
	lost    uint64 // dropped since the last Pop; guarded by mu
	closed  bool   // guarded by mu
}

// New returns a queue for up to capacity elements, at least one.
func New[T any](capacity int) *Queue[T] {
	return &Queue[T]{capacity: max(capacity, 1), wake: make(chan struct{}, 1)}
}

// NewSized returns a queue that is also bounded in bytes: its own limit, and the
// total that it shares with others. An element alone may exceed the limit.
func NewSized[T any](capacity int, limit int64, total *Budget, size func(T) int64) *Queue[T] {
	q := New[T](capacity)
	q.limit, q.total, q.size = limit, total, size
	return q
}

// Push adds an element. It returns how many were dropped: the oldest ones, which
// had to make room, or the element itself when other queues hold the whole
// total.
func (q *Queue[T]) Push(v T) (dropped int) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return 0
	}
	if q.n == len(q.buf) {
		q.growLocked()
	}
	drop := func() {
		q.dropLocked()
		q.lost++
		dropped++
	}
	if q.n == len(q.buf) {
		drop()
	}
	if q.size != nil {
		size := q.size(v)
		for q.n > 0 && q.bytes+size > q.limit {
			drop()
		}
		for !q.total.Take(size) {
			if q.n == 0 {
				q.lost++
				q.mu.Unlock()
				return dropped + 1
			}
			drop()
		}
		q.bytes += size
	}
	q.buf[(q.head+q.n)%len(q.buf)] = v
	q.n++
	q.mu.Unlock()
	q.nudge()
	return dropped
}

// Close drops all elements, and takes no more.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for q.n > 0 {
		q.dropLocked()
	}
	q.buf = nil
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
	if q.size != nil {
		size := q.size(q.buf[q.head])
		q.bytes -= size
		q.total.Give(size)
	}
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
