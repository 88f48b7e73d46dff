// Package leaktest fails the tests of a package when goroutines outlive them.
package leaktest

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long Main waits for the last goroutines to end: far longer
// than they take on a busy machine.
const patience = 15 * time.Second

// Ignored ignores the goroutines that outlive a closed node and are not the
// node's to end, each for the reason given, in addition to opts.
func Ignored(opts ...goleak.Option) []goleak.Option {
	return append([]goleak.Option{
		// Started once per process, on import.
		goleak.IgnoreTopFunction("github.com/ipfs/go-log/v2/writer.(*MirrorWriter).logRoutine"),
		// Started once per process, by the first bandwidth counter (WithMetrics).
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"),
	}, opts...)
}

// Main is a TestMain that fails if the tests pass and leave goroutines running.
// It calls the functions after the tests.
func Main(m *testing.M, after ...func()) {
	flag.Parse()
	collectLess()
	code := m.Run()
	for _, f := range after {
		f()
	}
	if code == 0 && !ended(os.Stderr, patience) {
		code = 1
	}
	os.Exit(code)
}

// collectLess lets the heap of tests grow to five times of what is alive: they make and
// drop thousands of nodes, and take a quarter less processor time so. Benchmarks
// measure with Go's own setting, and GOGC decides if it is set.
func collectLess() {
	if flag.Lookup("test.bench").Value.String() == "" && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

// Ended reports whether every goroutine, except those of [Ignored] and opts, ended
// within a generous time. It describes the others on standard error.
func Ended(opts ...goleak.Option) bool { return ended(os.Stderr, patience, opts...) }

// ended reports whether every goroutine, except those of Ignored, ended within
// the time. It prints the late ones in short, and those that stay in full,
// followed by a summary.
func ended(w io.Writer, within time.Duration, opts ...goleak.Option) bool {
	began := time.Now()
	err := goleak.Find(Ignored(opts...)...) // tries for half a second
	if err == nil {
		return true
	}
	fmt.Fprintf(w, "goroutines are late:\n%s", summary(err))
	for time.Since(began) < within {
		if err = goleak.Find(Ignored(opts...)...); err == nil {
			return true
		}
	}
	fmt.Fprintf(w, "goroutines outlive the tests: %v\nin short:\n%s", err, summary(err))
	return false
}

// summary returns for each goroutine in an error of goleak where it is and what
// started it, one line for all that are alike.
func summary(leaks error) string {
	count := make(map[string]int)
	where := ""
	for line := range strings.SplitSeq(leaks.Error(), "\n") {
		if _, after, ok := strings.Cut(line, ", with "); ok {
			where = strings.TrimSuffix(after, " on top of the stack:")
		} else if by, ok := strings.CutPrefix(line, "created by "); ok {
			by, _, _ = strings.Cut(by, " in goroutine ")
			count[where+", started by "+by]++
		}
	}
	lines := make([]string, 0, len(count))
	for what, n := range count {
		lines = append(lines, fmt.Sprintf("%5d in %s\n", n, what))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
