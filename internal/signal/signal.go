// Package signal wakes any number of waiters, any number of times.
package signal

import "sync"

// Signal reports that something may have changed. The zero value is ready to
// use. It is safe for concurrent use, and Notify never blocks.
type Signal struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu
}

// Wait returns a channel that the next Notify closes. Take it before looking at
// the state that the signal is about, so that no change is missed.
func (s *Signal) Wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Notify wakes all waiters.
func (s *Signal) Notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
