package main

import (
	"io"
	"os"
	"regexp"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestHello(t *testing.T) {
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = w
	main() // one short line: it fits into the pipe
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^12D3KooW\w+ says "hello, bob"\n$`).Match(out) {
		t.Errorf("hello prints %q", out)
	}
}
