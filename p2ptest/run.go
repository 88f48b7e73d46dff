package p2ptest

import (
	"flag"
	"os"
	"testing"
	"testing/synctest"
)

// Run runs f as a test in virtual time where there is no *testing.T yet: in a
// benchmark, or in an Example function. It reports whether f passed, and
// prints what f logged when it did not. It works under go test only; a
// program has Main. Within a test, call synctest.Test itself. Run is not safe
// for concurrent use.
func Run(name string, f func(t *testing.T)) bool {
	// With -v the testing package would announce the test on standard output,
	// in the midst of an Example's.
	if v := flag.Lookup("test.v"); v != nil {
		verbose := v.Value.String()
		_ = v.Value.Set("false") // it is a valid value
		defer func() { _ = v.Value.Set(verbose) }()
	}
	return testing.RunTests(matchAll, tests(name, f))
}

// Main makes a program of a simulation: it runs f as a test in virtual time,
// outside go test, and then ends the process, with status 0 when f passed and
// 1, after printing what f logged, when it did not. The program's own flags
// are to be parsed before. See examples/simulate.
func Main(name string, f func(t *testing.T)) {
	testing.Init()
	// The arguments are the program's, none of them are of the testing package.
	_ = flag.CommandLine.Parse(nil) // nothing can be wrong with no arguments
	testing.Main(matchAll, tests(name, func(t *testing.T) {
		t.Cleanup(func() { // after everything else
			if t.Failed() {
				return
			}
			if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
				os.Stdout = null // for the word PASS, which is all that comes now
			}
		})
		f(t)
	}), nil, nil)
}

func matchAll(string, string) (bool, error) { return true, nil }

func tests(name string, f func(t *testing.T)) []testing.InternalTest {
	return []testing.InternalTest{{Name: name, F: func(t *testing.T) { synctest.Test(t, f) }}}
}
