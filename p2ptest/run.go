package p2ptest

import (
	"flag"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
)

// Run runs functions as tests, one after another and each in virtual time of
// its own, where there is no *testing.T yet: in a
// benchmark, or in an Example function. It reports whether all passed, and
// prints what those logged that did not. It works under go test only; a
// program has Main. Within a test, call synctest.Test itself. Run is not safe
// for concurrent use.
func Run(name string, fs ...func(t *testing.T)) bool {
	// The flags of go test are meant for the tests of the package: with -v
	// this one would be announced on standard output, in the midst of an
	// Example's, with -count run several times, with -skip perhaps not at all.
	for name, neutral := range map[string]string{"test.v": "false", "test.count": "1", "test.run": "", "test.skip": ""} {
		if f := flag.Lookup(name); f != nil {
			value := f.Value.String()
			_ = f.Value.Set(neutral) // it is a valid value
			defer func() { _ = f.Value.Set(value) }()
		}
	}
	// With -cpu 1,2 RunTests runs each test twice, and leaves the process with
	// two threads: that flag is read when the process starts.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	list := tests(name, fs)
	for i := range list {
		f, ran := list[i].F, false
		list[i].F = func(t *testing.T) {
			if !ran {
				ran = true
				f(t)
			}
		}
	}
	return testing.RunTests(matchAll, list)
}

// Main makes a program of simulations: it runs functions as tests, as Run
// does, outside go test, and then ends the process, with status 0 when all
// passed and 1, after printing what was logged, when not. The program's own
// flags are to be parsed before. See examples/simulate.
func Main(name string, fs ...func(t *testing.T)) {
	testing.Init()
	// The arguments are the program's, none of them are of the testing package.
	_ = flag.CommandLine.Parse(nil) // nothing can be wrong with no arguments
	failed := false
	list := tests(name, fs)
	for i := range list {
		f := list[i].F
		list[i].F = func(t *testing.T) {
			t.Cleanup(func() { // after everything else
				failed = failed || t.Failed()
				if failed || i < len(list)-1 {
					return
				}
				if null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
					os.Stdout = null // for the word PASS, which is all that comes now
				}
			})
			f(t)
		}
	}
	testing.Main(matchAll, list, nil, nil)
}

func matchAll(string, string) (bool, error) { return true, nil }

func tests(name string, fs []func(t *testing.T)) []testing.InternalTest {
	var list []testing.InternalTest
	for _, f := range fs {
		list = append(list, testing.InternalTest{Name: name, F: func(t *testing.T) { synctest.Test(t, f) }})
	}
	return list
}
