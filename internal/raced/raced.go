// Package raced is for tests under the race detector: it works around a bug, and
// skips what takes too long. Whatever a test leaves out because of [Detector] or
// [Skip], .ci/run runs without the detector: it looks for these two in the bodies
// of the tests.
package raced

import (
	"runtime"
	"testing"
)

// Skip skips a test under the race detector. It is for tests of sizes and of time
// whose concurrency cheaper tests have, too.
func Skip(t testing.TB) {
	t.Helper()
	if Detector {
		t.Skip("takes too long under the race detector: run without -race")
	}
}

// OneThread keeps the race detector, if it is on, from crashing the process.
//
// In Go 1.26 all timers of a testing/synctest bubble share one context of the
// detector (runtime/time.go, unlockAndRun), which two threads can use at the
// same time: one that fires timers, and one that receives from a channel whose
// timer is due. The detector then fails one of its own checks (tsan_rtl.cpp) or
// crashes. With one thread of Go code at a time that cannot happen; races are
// still found, because the detector finds them by the happens-before order.
func OneThread() {
	if Detector {
		runtime.GOMAXPROCS(1)
	}
}
