package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/cli"
)

// The tests of internal/cli.

func TestExitCodes(t *testing.T) {
	running := t.Context()
	interrupted, interrupt := context.WithCancel(running)
	interrupt()
	_, starting := p2pnode.New(interrupted, p2pnode.WithoutListening())
	for _, row := range []struct {
		ctx  context.Context
		err  error
		code int
		says string
	}{
		{running, nil, 0, ""},
		{running, flag.ErrHelp, 0, ""},
		{running, cli.Usagef("bad\nflag"), 2, "bad; flag\n"},
		{running, fmt.Errorf("wrapped: %w", cli.Usagef("x")), 2, "wrapped: x\n"},
		{running, errors.New("broken"), 1, "broken\n"},
		{running, context.Canceled, 1, "context canceled\n"},
		{interrupted, starting, 0, ""},
		{interrupted, errors.New("broken"), 1, "broken\n"},
		{interrupted, errors.Join(context.Canceled, errors.New("broken")), 1, "context canceled\nbroken\n"},
	} {
		var stderr bytes.Buffer
		if got := cli.ExitCode(row.ctx, row.err, &stderr); got != row.code || stderr.String() != row.says {
			t.Errorf("%v: exit %d and %q", row.err, got, stderr.String())
		}
	}
}

// TestStartNamesTheFlag starts nodes with options that cannot work.
func TestStartNamesTheFlag(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	for _, row := range []struct {
		what  string
		opts  []p2pnode.Option
		flags []string // that the line names; none for an error that is no mistake in the arguments
	}{
		{"an address", []p2pnode.Option{cli.Listen("127.0.0.1:1")}, []string{"-listen: "}},
		{"two options", []p2pnode.Option{cli.Listen("x"), cli.Bootstrap("y")}, []string{"-listen: ", "-bootstrap: "}},
		{"two values", []p2pnode.Option{cli.Bootstrap("x,y")}, []string{"-bootstrap: ", `"x"`, `"y"`}},
		{"a port in use", []p2pnode.Option{cli.Listen(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}, []string{"-listen: ", fmt.Sprintf("/tcp/%d", port)}},
		{"two flags that contradict", []p2pnode.Option{p2pnode.WithMDNS(), cli.Listen("/ip4/127.0.0.1/tcp/0/ws")}, []string{"-mdns: ", "-listen"}},
		{"an unreadable file", []p2pnode.Option{p2pnode.WithIdentityFile(filepath.Join(t.TempDir(), "no", "key"))}, []string{"-identity: "}},
		{"an option without a flag", []p2pnode.Option{p2pnode.WithUserAgent("")}, nil},
		{"one with and one without", []p2pnode.Option{p2pnode.WithUserAgent(""), cli.Listen("x")}, nil},
	} {
		fs := flag.NewFlagSet("prog", flag.ContinueOnError)
		for _, name := range []string{"listen", "bootstrap", "identity", "mdns"} {
			fs.String(name, "", "")
		}
		n, err := p2pnode.New(context.Background(), row.opts...)
		if err = cli.Explain(fs, err); err == nil {
			t.Errorf("%s: no error, and %v", row.what, n.Close())
			continue
		}
		if got, want := errors.Is(err, cli.ErrUsage), row.flags != nil; got != want {
			t.Errorf("%s: usage %v, want %v: %v", row.what, got, want, err)
		}
		for _, want := range row.flags {
			if s := err.Error(); !strings.Contains(s, want) || strings.Contains(s, "\n") || !strings.HasPrefix(s, "prog: ") {
				t.Errorf("%s: want one line with %q: %q", row.what, want, s)
			}
		}
	}
}
