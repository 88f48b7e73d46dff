package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestAKeyFileIsCreatedAndReused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.key")
	var ids []string
	for range 2 {
		p := exampletest.Start(t, run, "-file", file)
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.Line("peer ID"))
		if strings.Contains(p.Text(), "private") {
			t.Error("the private key was shown unasked")
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("%s became %s", ids[0], ids[1])
	}
}

func TestKeysOfEveryType(t *testing.T) {
	for kind, name := range map[string]string{"ed25519": "Ed25519", "rsa": "RSA", "secp256k1": "Secp256k1", "ecdsa": "ECDSA"} {
		p := exampletest.Start(t, run, "-type", kind, "-export")
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
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
	file := filepath.Join(t.TempDir(), "open.key")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	exampletest.Usage(t, run, []string{"-type", "-type", "x"}, []string{"chmod 600", "-file", file})
}
