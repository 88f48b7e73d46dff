// Package occasion spaces the log lines about what peers can bring about as
// often as they like.
package occasion

import (
	"sync/atomic"
	"time"
)

// every is how much time lies between two occasions, at least.
const every = 10 * time.Second

// Occasion is a log line that is due once every 10 seconds at most. The zero
// value is ready to use, also concurrently.
type Occasion struct{ last atomic.Pointer[time.Time] }

// Now reports whether the line is due, and takes the occasion.
func (o *Occasion) Now() bool {
	now, last := time.Now(), o.last.Load()
	return (last == nil || now.Sub(*last) >= every) && o.last.CompareAndSwap(last, &now)
}
