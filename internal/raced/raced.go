// Package raced works around a bug of the race detector, for tests only.
package raced

import "runtime"

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
