package p2ptest

import (
	"bytes"
	"fmt"
	"runtime/pprof"
	"strings"
	"time"

	flow "github.com/libp2p/go-flow-metrics"
)

// leakLabel is the profiler label that the goroutines of a network's nodes
// inherit from the goroutine that started them.
const leakLabel = "p2ptest"

// leakWait is how long goroutines may run after their node has closed.
const leakWait = 5 * time.Second

// forever lists goroutines that a library starts once per process, for the first
// node that needs them.
var forever = []string{
	"go-flow-metrics.(*sweeper)", // the first bandwidth counter (WithMetrics)
	"go-log/v2",                  // on first use of libp2p's logger
}

// leaked describes the goroutines of closed nodes that are still running.
func (n *Network) leaked() string {
	for begun := time.Now(); ; time.Sleep(leakWait / 100) {
		left := labeled(n.label)
		if left == "" || time.Since(begun) > leakWait {
			return left
		}
	}
}

// labeled returns the entries of the goroutine profile with the network's
// label.
func labeled(label string) string {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return err.Error() // a buffer takes everything
	}
	mark := fmt.Sprintf("%q:%q", leakLabel, label)
	var left []string
	for entry := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(entry, mark) && !known(entry) {
			left = append(left, entry)
		}
	}
	return strings.Join(left, "\n\n")
}

func known(entry string) bool {
	for _, f := range forever {
		if strings.Contains(entry, f) {
			return true
		}
	}
	return false
}

// The first bandwidth counter of the process starts the sweeper of
// go-flow-metrics. If that happened in a synctest bubble, the sweeper would
// belong to the bubble, which could then never end, and block all later ones. So
// start it here, before there is a bubble.
var _ = func() bool {
	new(flow.Meter).Mark(1)
	return true
}()
