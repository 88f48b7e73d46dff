package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestBootstrapKeepsItsIdentityAndServes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot.key")
	args := []string{"-identity", file, "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0", "-relay"}
	first := exampletest.Start(t, run, args...)
	id := first.Line("peer ID")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	first.Line("stopping")

	server := exampletest.Start(t, run, args...)
	if again := server.Line("peer ID"); again != id {
		t.Errorf("%s became %s", id, again)
	}
	addr := strings.Split(server.Line("WithBootstrapAddrs"), `"`)[1]
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, err := p2pnode.New(ctx, p2pnode.WithNetwork("test"), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithBootstrapAddrs(addr))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	server.Line("+", n.ID().String())
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	server.Line("-", n.ID().String())
}

func TestUsage(t *testing.T) {
	key := filepath.Join(t.TempDir(), "k")
	exampletest.Usage(t, run,
		[]string{"-identity"},
		[]string{"WithNetwork", "-identity", key, "-network", "a b"},
		[]string{"does not exist", "-identity", "/no/such/directory/key"})
}
