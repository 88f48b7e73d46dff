package occasion

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOnceIn10Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Occasion
		var due atomic.Int32
		ask := func() int32 {
			due.Store(0)
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if o.Now() {
						due.Add(1)
					}
				})
			}
			wg.Wait()
			return due.Load()
		}
		for _, step := range []struct {
			wait time.Duration
			want int32
		}{{0, 1}, {0, 0}, {9 * time.Second, 0}, {time.Second, 1}, {time.Hour, 1}} {
			time.Sleep(step.wait)
			if got := ask(); got != step.want {
				t.Errorf("%v later the line is due %d times, want %d", step.wait, got, step.want)
			}
		}
	})
}
