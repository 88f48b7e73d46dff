// Package ring is a bounded queue that never blocks its writers, drops elements
// when full, and tells its reader in band where how many are missing.
package ring

import (
	"sync"
	"sync/atomic"
	"time"
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

// Has reports whether the budget has so many bytes left.
func (b *Budget) Has(bytes int64) bool { return b == nil || b.used.Load()+bytes <= b.limit }

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

// Full says what happens to an element that finds the queue full.
type Full int

// What can happen to it.
const (
	DropOldest Full = iota // the oldest elements make room for it
	DropNewest             // it is dropped
	Wait                   // it waits for room, for a time, and is then dropped
)

// Queue is a bounded first-in-first-out queue, safe for any number of writers
// and readers. Memory grows with what is queued, up to the capacity. What waits for
// room is bounded in bytes alone.
type Queue[T any] struct {
	capacity int
	limit    int64         // in bytes; 0 for none
	size     func(T) int64 // of an element, in bytes; nil without a limit
	total    *Budget
	full     Full
	patience time.Duration
	expired  func()        // counts an element that has waited for too long
	wake     chan struct{} // has a token whenever something may be queued

	mu      sync.Mutex
	queued  FIFO[element[T]] // at most capacity; guarded by mu
	waiting FIFO[element[T]] // empty unless queued is full; guarded by mu
	bytes   int64            // of both; guarded by mu
	lost    uint64           // dropped behind the last element; guarded by mu
	closed  bool             // guarded by mu
}

// New returns a queue for up to capacity elements, at least one, that drops the
// oldest when it is full.
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

// WhenFull sets what happens to elements that find the queue full. Call it before
// the first Push. With Wait they wait for patience at most, and expired is called
// for each that has waited in vain, with the queue locked.
func (q *Queue[T]) WhenFull(full Full, patience time.Duration, expired func()) {
	q.full, q.patience, q.expired = full, patience, expired
}

// Push adds an element. It returns how many were dropped to make room for it, or
// 1 if it was dropped itself: because there is no room, or because other queues
// hold the whole total.
func (q *Queue[T]) Push(v T) (dropped int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	size := q.sizeOf(v)
	if q.full == DropOldest {
		for q.queued.n > 0 && !q.fitsLocked(size) || !q.total.Take(size) {
			if q.queued.n == 0 {
				q.lost++
				return dropped + 1
			}
			q.dropOldestLocked()
			dropped++
		}
	} else {
		now := time.Now()
		q.expireLocked(now)
		fits := q.fitsLocked(size)
		if !fits && (q.full == DropNewest || q.overLocked(size)) || !q.total.Take(size) {
			q.lost++
			return 1
		}
		if !fits {
			q.waiting.Push(element[T]{v, q.lost, now})
			q.lost = 0
			q.bytes += size
			return 0
		}
	}
	q.queued.Push(element[T]{v: v, lost: q.lost})
	q.lost = 0
	q.bytes += size
	q.nudge()
	return dropped
}

// Close drops all elements, and takes no more.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.total.Give(q.bytes)
	q.bytes, q.queued, q.waiting = 0, FIFO[element[T]]{}, FIFO[element[T]]{}
}

// Lose counts n elements that never reached the queue as dropped. The next
// element reports them.
func (q *Queue[T]) Lose(n uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost += n
}

// Pop takes the oldest element. lost is how many elements were dropped just
// before it, reported once.
func (q *Queue[T]) Pop() (v T, lost uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e, ok := q.queued.Pop()
	if !ok {
		return v, 0, false
	}
	q.freeLocked(e.v)
	if q.waiting.n > 0 {
		q.expireLocked(time.Now())
	}
	if next, ok := q.waiting.Pop(); ok {
		q.queued.Push(next)
	}
	if q.queued.n > 0 {
		q.nudge() // another reader may be waiting
	}
	return e.v, e.lost, true
}

// Wake returns a channel that delivers when there may be something to Pop.
// After receiving from it, Pop until nothing is left or wait again.
func (q *Queue[T]) Wake() <-chan struct{} { return q.wake }

// Len returns how many elements are queued.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queued.n
}

func (q *Queue[T]) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue[T]) sizeOf(v T) int64 {
	if q.size == nil {
		return 0
	}
	return q.size(v)
}

// fitsLocked reports whether there is room for an element now.
func (q *Queue[T]) fitsLocked(size int64) bool {
	return q.queued.n < q.capacity && q.waiting.n == 0 && !q.overLocked(size)
}

// overLocked reports whether an element would exceed the limit.
func (q *Queue[T]) overLocked(size int64) bool {
	return q.size != nil && q.queued.n > 0 && q.bytes+size > q.limit
}

func (q *Queue[T]) freeLocked(v T) {
	size := q.sizeOf(v)
	q.bytes -= size
	q.total.Give(size)
}

func (q *Queue[T]) dropOldestLocked() {
	e, _ := q.queued.Pop()
	q.freeLocked(e.v)
	if q.queued.n > 0 {
		q.queued.at(0).lost += e.lost + 1
	} else {
		q.lost += e.lost + 1
	}
}

// expireLocked drops what has waited for too long.
func (q *Queue[T]) expireLocked(now time.Time) {
	for q.waiting.n > 0 && now.Sub(q.waiting.at(0).came) > q.patience {
		e, _ := q.waiting.Pop()
		q.freeLocked(e.v)
		if q.waiting.n > 0 {
			q.waiting.at(0).lost += e.lost + 1
		} else {
			q.lost += e.lost + 1
		}
		q.expired()
	}
}

type element[T any] struct {
	v    T
	lost uint64    // how many were dropped just before it
	came time.Time // when it began to wait
}

// FIFO is an unbounded queue, for callers that bound and lock it. The zero value is
// empty.
type FIFO[T any] struct {
	buf     []T
	head, n int
}

// roomy is how many places a FIFO may keep while it is empty.
const roomy = 1024

// Push adds an element.
func (f *FIFO[T]) Push(v T) {
	if f.n == len(f.buf) {
		buf := make([]T, max(2*len(f.buf), 4))
		for i := range f.n {
			buf[i] = *f.at(i)
		}
		f.buf, f.head = buf, 0
	}
	f.n++
	*f.at(f.n - 1) = v
}

// Pop takes the oldest element, if there is one.
func (f *FIFO[T]) Pop() (v T, ok bool) {
	if f.n == 0 {
		return v, false
	}
	first := f.at(0)
	v, *first = *first, v // frees what it holds
	f.head = (f.head + 1) % len(f.buf)
	f.n--
	if f.n == 0 && len(f.buf) > roomy {
		*f = FIFO[T]{} // a burst is over
	}
	return v, true
}

// All returns the elements in order.
func (f *FIFO[T]) All() []T {
	list := make([]T, f.n)
	for i := range list {
		list[i] = *f.at(i)
	}
	return list
}

func (f *FIFO[T]) at(i int) *T { return &f.buf[(f.head+i)%len(f.buf)] }
