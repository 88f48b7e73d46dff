package kad

import (
	"sync"
	"time"
)

// tellEvery is how often it is told at most that records were refused.
const tellEvery = time.Minute

// refusals counts the records for which there was no room, and tells of them.
type refusals struct {
	tell func(refused uint64) // called without locks, at most once a minute

	mu   sync.Mutex
	lost uint64    // guarded by mu
	told time.Time // when tell was last called; guarded by mu
}

func (r *refusals) add() {
	r.mu.Lock()
	r.lost++
	now, lost := time.Now(), r.lost
	tell := r.told.IsZero() || now.Sub(r.told) >= tellEvery
	if tell {
		r.told = now
	}
	r.mu.Unlock()
	if tell {
		r.tell(lost)
	}
}
