// Package raced is about the race detector, and for tests alone.
package raced

import "runtime"

// OneThread keeps the race detector from ending the process, when it is on.
//
// In Go 1.26 all timers of a testing/synctest bubble share one context of the
// detector (runtime/time.go, unlockAndRun), which two threads can use at the
// same time: one that fires timers, and one that receives from a channel whose
// timer is due. The detector then fails a check of its own (tsan_rtl.cpp) or
// crashes. With one thread of Go code at a time that cannot be; races are found
// all the same, for they are told by what happens before what.
func OneThread() {
	if Detector {
		runtime.GOMAXPROCS(1)
	}
}
