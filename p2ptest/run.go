package p2ptest

import (
	"flag"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
)

// Run runs functions as tests where there is no *testing.T: in a benchmark or an
// Example function. It runs them one after another, each in its own virtual
// time, reports whether all passed, and prints the logs of those that failed.
//
// Run works only under go test; a program calls [Main], and a test
// synctest.Test. It is not safe for concurrent use.
func Run(name string, fs ...func(t *testing.T)) bool {
	// The flags of go test are for the tests of the package. Here -v would print
	// the name of this one among the output of an Example, -count would run it
	// several times, and -skip perhaps not at all.
	for name, neutral := range map[string]string{"test.v": "false", "test.count": "1", "test.run": "", "test.skip": ""} {
		if f := flag.Lookup(name); f != nil {
			value := f.Value.String()
			_ = f.Value.Set(neutral) // a valid value
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

// Main is the main function of a simulation program. It runs functions as tests,
// like [Run], but outside go test, and then exits: with status 0 if all passed,
// and otherwise with status 1 after printing the logs. Parse the program's own
// flags first. See examples/simulate.
func Main(name string, fs ...func(t *testing.T)) {
	testing.Init()
	// The arguments are the program's; package testing gets none.
	_ = flag.CommandLine.Parse(nil) // no arguments, no errors
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
					os.Stdout = null // hides the word PASS, the only output that follows
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
