package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

// finished runs the program to its end.
func finished(t *testing.T, args ...string) *clitest.Program {
	t.Helper()
	p := clitest.Start(t, run, args...)
	if err := p.Wait(); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return p
}

var types = map[string]string{"ed25519": "Ed25519", "rsa": "RSA", "secp256k1": "Secp256k1", "ecdsa": "ECDSA"}

func TestAKeyFileIsCreatedAndReused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.key")
	created := finished(t, "-file", file)
	created.Line("key type", "Ed25519")
	created.Line("kept in", file, "created")
	reused := finished(t, "-file", file)
	reused.Line("kept in", file, "reused")
	if a, b := created.Line("peer ID"), reused.Line("peer ID"); a != b {
		t.Errorf("%s became %s", a, b)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*clitest.Program{created, reused} {
		if strings.Contains(p.Text(), strings.TrimSpace(string(text))) {
			t.Error("the private key was shown unasked")
		}
	}
	finished(t, "-file", file, "-export").Line("private", strings.TrimSpace(string(text)))
}

func TestAKeyFileOfEveryType(t *testing.T) {
	for kind, name := range types {
		file := filepath.Join(t.TempDir(), kind)
		id := finished(t, "-file", file, "-type", kind).Line("peer ID")
		again := finished(t, "-file", file)
		again.Line("key type", name)
		again.Line(id)
	}
}

func TestKeysOfEveryType(t *testing.T) {
	for kind, name := range types {
		p := finished(t, "-type", kind, "-export")
		p.Line("key type", name)
		key, err := p2pnode.DecodeKey(strings.Fields(p.Line("private"))[1])
		if err != nil {
			t.Fatal(err)
		}
		id, err := p2pnode.PeerID(key)
		if err != nil {
			t.Fatal(err)
		}
		p.Line("peer ID", id.String())
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	noKey, key, missing := filepath.Join(dir, "no.key"), filepath.Join(dir, "ed.key"), filepath.Join(dir, "missing")
	if err := os.WriteFile(noKey, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	finished(t, "-file", key)
	clitest.Usage(t, run,
		[]string{"-type", "-type", "x"},
		[]string{"-type", "-type", "x", "-file", missing},
		[]string{"of type Ed25519", "-type", "rsa", "-file", key},
		[]string{"-file", "-type", "rsa", "-file", filepath.Join(missing, "key")},
		[]string{"-file: ", "-file", filepath.Join(missing, "key")},
		[]string{"-file: ", "-file", noKey})
	if _, err := os.Lstat(missing); err == nil {
		t.Error("a mistake left a file behind")
	}
}
