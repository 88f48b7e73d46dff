package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

func TestStackClosesInReverseAndGoesOnAfterErrors(t *testing.T) {
	var s Stack
	var order []string
	boom := errors.New("boom")
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, 0, func() error {
			order = append(order, name)
			if name == "b" {
				return boom
			}
			return nil
		})
	}
	err := s.Close()
	if !slices.Equal(order, []string{"c", "b", "a"}) {
		t.Errorf("closed in the order %v", order)
	}
	if !errors.Is(err, boom) || err.Error() != "b: boom" {
		t.Errorf("Close = %v", err)
	}
	if again := s.Close(); !errors.Is(again, boom) || len(order) != 3 {
		t.Errorf("second Close = %v after %v", again, order)
	}
}

func TestStackJoinsErrors(t *testing.T) {
	var s Stack
	x, y := errors.New("x"), errors.New("y")
	s.Push("one", 0, func() error { return x })
	s.Push("two", 0, func() error { return y })
	if err := s.Close(); !errors.Is(err, x) || !errors.Is(err, y) || err.Error() != "two: y\none: x" {
		t.Errorf("Close = %v", err)
	}
}

func TestStackConcurrentCloseWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Stack
		var runs atomic.Int32
		s.Push("slow", 0, func() error {
			time.Sleep(time.Second)
			runs.Add(1)
			return nil
		})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := s.Close(); err != nil || runs.Load() != 1 {
					t.Errorf("Close = %v after %d runs", err, runs.Load())
				}
			})
		}
		wg.Wait()
	})
}

func TestGoldenStackGivesUpWhatOverrunsItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Stack
		release := make(chan struct{})
		closed := false
		s.Push("first", time.Second, func() error { closed = true; return nil })
		s.Push("stuck", 3*time.Second, func() error { <-release; return nil })
		began := time.Now()
		err := s.Close()
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		if err == nil || !strings.HasPrefix(err.Error(), "stuck: ") || !closed {
			t.Errorf("Close = %v, first closed: %v", err, closed)
		}
		golden.Check(t, "close", []golden.Text{golden.Of("a part overruns its budget", err)})
		close(release)
	})
}

// A closer that panics is an error like any other: the ones below it still
// have to run.
func TestStackSurvivesAPanic(t *testing.T) {
	for _, budget := range []time.Duration{0, time.Minute} {
		var s Stack
		closed := false
		s.Push("below", budget, func() error { closed = true; return nil })
		s.Push("broken", budget, func() error { panic("oops") })
		if err := s.Close(); err == nil || !strings.HasPrefix(err.Error(), "broken: ") || !strings.Contains(err.Error(), "oops") || !closed {
			t.Errorf("budget %v: Close = %v, the one below closed: %v", budget, err, closed)
		}
	}
}

func TestGroupAwaitsItsGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(t.Context())
		var ended atomic.Int32
		for _, start := range []func(func(context.Context)) bool{g.Go, g.Go} {
			if !start(func(ctx context.Context) {
				<-ctx.Done()
				time.Sleep(time.Second)
				ended.Add(1)
			}) {
				t.Error("not started")
			}
		}
		if err := g.Close(); err != nil || ended.Load() != 2 {
			t.Errorf("Close = %v with %d of 2 ended", err, ended.Load())
		}
		if g.Go(func(context.Context) { t.Error("ran") }) || g.Run(func(context.Context) { t.Error("ran") }) {
			t.Error("started something after Close")
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestGroupRunCounts(t *testing.T) {
	g := NewGroup(t.Context())
	inside, leave := make(chan struct{}), make(chan struct{})
	go g.Run(func(ctx context.Context) {
		close(inside)
		<-leave
	})
	<-inside
	closed := make(chan struct{})
	go func() {
		g.Close()
		close(closed)
	}()
	<-g.Context().Done()
	select {
	case <-closed:
		t.Error("Close did not wait for Run")
	default:
	}
	close(leave)
	<-closed
}

func TestGroupStartsAndClosesAtOnce(t *testing.T) {
	for range 100 {
		g := NewGroup(t.Context())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { g.Go(func(context.Context) {}) })
			wg.Go(func() { g.Run(func(context.Context) {}) })
		}
		wg.Go(func() { g.Close() })
		wg.Wait()
		g.Close()
	}
}
