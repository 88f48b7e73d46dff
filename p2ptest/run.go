package p2ptest

import (
	"testing"
	"testing/synctest"
)

// Run runs f as a test in virtual time from an ordinary program, outside go
// test: a simulation. It reports whether the test passed; what it logged is
// printed when it did not. The examples/simulate program is made with it.
//
// Call it after flag.Parse. Run is not for use within a test.
func Run(name string, f func(t *testing.T)) bool {
	testing.Init()
	all := func(string, string) (bool, error) { return true, nil }
	return testing.RunTests(all, []testing.InternalTest{{
		Name: name,
		F:    func(t *testing.T) { synctest.Test(t, f) },
	}})
}
