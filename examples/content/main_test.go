package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestProvideAndFetch(t *testing.T) {
	dir := t.TempDir()
	file, to := filepath.Join(dir, "original"), filepath.Join(dir, "copy")
	want := bytes.Repeat([]byte("content "), 1<<16)
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	server := exampletest.Start(t, run, "-provide", file, "-listen", "/ip4/127.0.0.1/tcp/0")
	words := strings.Fields(server.Line("-bootstrap"))
	cid, addr := words[2], words[6]

	// A third peer holds the provider record.
	other := exampletest.Start(t, run, "-provide", file, "-listen", "/ip4/127.0.0.1/tcp/0", "-bootstrap", addr)
	server.Line("provided:")
	other.Line("provided:")

	client := exampletest.Start(t, run, "-fetch", cid, "-o", to, "-listen", "/ip4/127.0.0.1/tcp/0", "-bootstrap", addr)
	if err := client.Wait(); err != nil {
		t.Fatalf("%v, after\n%s", err, client.Text())
	}
	client.Line("fetched and verified")
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("fetched %d bytes, %v; want %d", len(got), err, len(want))
	}

	// What is there is not overwritten, and nothing is left behind.
	again := exampletest.Start(t, run, "-fetch", cid, "-o", to, "-listen", "/ip4/127.0.0.1/tcp/0", "-bootstrap", addr)
	if err := again.Wait(); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("fetching over a file = %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".fetch-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	exampletest.Usage(t, run,
		[]string{"one of"},
		[]string{"not a CID", "-fetch", "x"},
		[]string{"-provide", "-provide", "/no/such/file"},
		[]string{"-provide", "-provide", t.TempDir()},
		[]string{"-o FILE", "-fetch", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"})
}
