// Package lifecycle makes a node start and stop cleanly: with a
// last-in-first-out stack of named closers, and a group of goroutines that is
// awaited.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Stack is a list of closers that run in reverse order of registration. The
// same stack unwinds a failed start and performs an ordinary close, so that the
// two cannot diverge. The zero value is ready to use.
type Stack struct {
	mu    sync.Mutex
	steps []step        // guarded by mu
	done  chan struct{} // made by the first Close, closed at its end; guarded by mu
	err   error         // set before done is closed
}

type step struct {
	name   string
	budget time.Duration
	close  func() error
}

// Push registers a closer. Call it on the line after acquiring the resource.
// budget bounds how long Close waits for it; zero means no bound.
func (s *Stack) Push(name string, budget time.Duration, closer func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, budget, closer})
}

// Close runs every closer once, last registered first, continues after errors
// and returns them joined, each labeled with its closer's name. A closer that
// exceeds its budget is reported and left running. Every call returns the first
// call's result; concurrent calls wait for it.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.done != nil {
		s.mu.Unlock()
		<-s.done // not a lock: virtual time advances while waiting for a channel
		return s.err
	}
	s.done = make(chan struct{})
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	var errs []error
	for _, step := range slices.Backward(steps) {
		if err := step.run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
		}
	}
	s.err = errors.Join(errs...)
	close(s.done)
	return s.err
}

func (s step) run() error {
	if s.budget <= 0 {
		return s.guarded()
	}
	done := make(chan error, 1)
	go func() { done <- s.guarded() }()
	timer := time.NewTimer(s.budget)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("still closing after %v", s.budget)
	}
}

// guarded turns a panic into an error, so that the remaining closers still run.
func (s step) guarded() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return s.close()
}

// Group owns goroutines that share a context and are awaited together.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // serializes Go with Close: no Add after Wait has begun
	closed bool
	wg     sync.WaitGroup
}

// NewGroup returns a group whose context ends with parent or with Close.
func NewGroup(parent context.Context) *Group {
	ctx, cancel := context.WithCancel(parent)
	return &Group{ctx: ctx, cancel: cancel}
}

// Context returns the group's context.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f in a goroutine that Close awaits, and reports whether it did: after
// Close it starts nothing.
func (g *Group) Go(f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(func() { f(g.ctx) })
	return true
}

// Run runs f in the calling goroutine, which Close then awaits, and reports
// whether it did.
func (g *Group) Run(f func(ctx context.Context)) bool {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return false
	}
	g.wg.Add(1)
	g.mu.Unlock()
	defer g.wg.Done()
	f(g.ctx)
	return true
}

// Close cancels the group's context and waits for its goroutines. It may be
// called more than once.
func (g *Group) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
	return nil
}
