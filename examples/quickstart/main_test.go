package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

func TestQuickstart(t *testing.T) {
	p := clitest.Start(t, run)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v, after\n%s", err, p.Text())
	}
	for _, want := range []string{
		"README.md, ", "CID bafkrei", "has it, at /ip4/127.0.0.1/", "100%", "the hash matches the CID",
		"erin   received it, signed by carol", "p2p-circuit", `erin opened a stream and read "hello from frank"`,
		"boot has stopped", "never met", `gina opened a stream and read "hello from hugo"`, "all 9 nodes stopped",
	} {
		p.Line(want)
	}
	_, table, _ := strings.Cut(p.Text(), "Results, all checked")
	if got := strings.Count(table, "\n   "); got != 8 {
		t.Errorf("the closing table has %d rows, want 8:%s", got, table)
	}
}

func TestQuickstartWithOtherFiles(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"big": 1 << 22, "empty": 0} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		p := clitest.Start(t, run, file)
		if err := p.Wait(); err != nil {
			t.Fatalf("%v, after\n%s", err, p.Text())
		}
		if name == "big" {
			p.Line(" 25%", "of 4194304 bytes")
			p.Line(" 75%", "of 4194304 bytes")
			p.Line("bob fetched 4194304 bytes and verified them")
		} else {
			p.Line("bob fetched 0 bytes and verified them")
		}
	}
}

func TestQuickstartInterrupted(t *testing.T) {
	p := clitest.Start(t, run)
	p.Line("2. ")
	if err := p.Stop(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	clitest.Usage(t, run,
		[]string{"one file", "a", "b"},
		[]string{"not a file", t.TempDir()},
		[]string{"not a file", big},
		[]string{"-listen: ", "-listen", "x"},
		[]string{"no such file", "/no/such/file"})
}

func TestNoREADME(t *testing.T) {
	t.Chdir(t.TempDir())
	clitest.Usage(t, run, []string{"no README.md found"})
}
