// Package backoff computes jittered, exponentially growing delays.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields delays that double from Min to Max. Each is drawn evenly from
// the upper half of its step, so that peers that failed together do not retry
// together. It is not safe for concurrent use: each retrying loop has its own.
type Backoff struct {
	Min time.Duration // the first step
	Max time.Duration // the last step, repeated forever

	// Rand returns a number in [0,1); nil means math/rand/v2.
	Rand func() float64

	step time.Duration
}

// Next returns the next delay.
func (b *Backoff) Next() time.Duration {
	switch {
	case b.step == 0:
		b.step = b.Min
	case b.step >= b.Max/2:
		b.step = b.Max
	default:
		b.step *= 2
	}
	draw := b.Rand
	if draw == nil {
		draw = rand.Float64
	}
	half := b.step / 2
	return half + time.Duration(draw()*float64(b.step-half))
}

// Reset makes Next start again from Min.
func (b *Backoff) Reset() { b.step = 0 }

// Sleep waits for d or until ctx ends, and reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
