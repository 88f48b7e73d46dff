package keeper

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// The clock of this test jumps as for a stopped process: a test cannot make a
// time.Time whose monotonic clock has paused.
func TestClockJumpsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name       string
		look, want int // seconds between two looks; 1 for a jump
	}{
		{"as it should be", 10, 0}, {"a busy machine", 14, 0}, {"a stopped process", 60, 1}, {"a clock set back", -30, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var woke atomic.Int32
				var offset atomic.Int64
				go WatchClock(ctx, func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }, func() { woke.Add(1) })
				synctest.Wait()
				time.Sleep(clockInterval + time.Millisecond)
				offset.Store(int64(time.Duration(c.look)*time.Second - clockInterval))
				time.Sleep(clockInterval)
				synctest.Wait()
				if got := int(woke.Load()); got != c.want {
					t.Errorf("%d jumps are noticed, want %d", got, c.want)
				}
				cancel()
			})
		})
	}
}

func TestSleepShowsInTheDifferenceOfTheClocks(t *testing.T) {
	for _, c := range []struct {
		name            string
		wall, monotonic time.Duration
		want            bool
	}{
		{"awake", clockInterval, clockInterval, false},
		{"busy", clockInterval + 10*time.Second, clockInterval + 10*time.Second, false},
		{"an hour, monotonic clock stopped", time.Hour, clockInterval, true},
		{"an hour, monotonic clock running", time.Hour, time.Hour, true},
		{"the clock was put right by a second", clockInterval + time.Second, clockInterval, false},
		{"the clock was set back", -time.Hour, clockInterval, false},
	} {
		if got := slept(c.wall, c.monotonic); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestRecoveryIsToldOncePerTimeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var change signal.Signal
		var connected, table atomic.Bool
		var told atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go WatchRecovery(ctx, &change, connected.Load, table.Load, func() { told.Add(1) })
		step := func(isConnected, hasTable bool, want int32) {
			t.Helper()
			connected.Store(isConnected)
			table.Store(hasTable)
			change.Notify()
			synctest.Wait()
			if got := told.Load(); got != want {
				t.Errorf("told %d times, want %d", got, want)
			}
		}
		synctest.Wait()
		step(true, false, 0)
		step(true, true, 1)
		step(true, false, 1)
		step(true, true, 1)
		step(false, false, 1)
		step(true, false, 1)
		step(true, true, 2)
	})
}
