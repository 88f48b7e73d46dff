package cli

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"testing"
)

func TestExitCodes(t *testing.T) {
	for _, row := range []struct {
		err  error
		code int
		says string
	}{
		{nil, 0, ""},
		{flag.ErrHelp, 0, ""},
		{Usagef("bad\nflag"), 2, "bad; flag\n"},
		{fmt.Errorf("wrapped: %w", Usagef("x")), 2, "wrapped: x\n"},
		{errors.New("broken"), 1, "broken\n"},
	} {
		var stderr bytes.Buffer
		if got := code(row.err, &stderr); got != row.code || stderr.String() != row.says {
			t.Errorf("%v: exit %d and %q", row.err, got, stderr.String())
		}
	}
}
