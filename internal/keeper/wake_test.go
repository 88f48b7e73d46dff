package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

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

// Peers that were lost by a move are dialed again, whether their connections ended
// before it was noticed, by it, or do not answer after it.
func TestPeersLostByAMoveAreDialedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var losses Losses
		losses.Add("long ago")
		time.Sleep(time.Minute)
		losses.Add("lost")
		time.Sleep(time.Second)
		began := time.Now()
		time.Sleep(time.Second)
		losses.Add("lost later")
		var mu sync.Mutex
		var again []peer.ID
		left := false
		c := &Checker{
			Peers: func() []peer.ID { return []peer.ID{"alive", "silent", "lost"} }, Lost: losses.By, Log: slog.New(slog.DiscardHandler),
			Leave: func() { left = true },
			Alive: func(_ context.Context, id peer.ID, least time.Duration) bool {
				if !left {
					t.Error("peers are asked over connections that cannot go on")
				}
				if id == "silent" {
					time.Sleep(least)
				}
				return id == "alive"
			},
			Again: func(ctx context.Context, id peer.ID) {
				mu.Lock()
				defer mu.Unlock()
				again = append(again, id)
			},
		}
		c.Moved(t.Context(), began)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		slices.Sort(again)
		if want := []peer.ID{"lost", "lost later", "silent"}; !slices.Equal(again, want) {
			t.Errorf("dialed again: %q, want %q", again, want)
		}
		for i := range 2 * maxLost {
			losses.Add(peer.ID(fmt.Sprint(i)))
		}
		if n := len(losses.lost); n > maxLost {
			t.Errorf("%d are remembered", n)
		}
	})
}

// A change during a check, or in the pause after it, is followed by another check.
func TestNoMoveIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var moved signal.Signal
		var checks atomic.Int32
		c := &Checker{Peers: func() []peer.ID { checks.Add(1); return nil }, Log: slog.New(slog.DiscardHandler)}
		go c.Run(ctx, &moved)
		synctest.Wait()
		moved.Notify()
		synctest.Wait()
		moved.Notify() // in the pause
		time.Sleep(2 * checkGap)
		synctest.Wait()
		if n := checks.Load(); n != 2 {
			t.Errorf("%d checks, want 2", n)
		}
	})
}
