package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestBootstrapKeepsItsIdentityAndServes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot.key")
	args := []string{"-identity", file, "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0"}
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
	n := join(t, server)
	server.Line("+", n.ID().String(), "127.0.0.1")
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	server.Line("-", n.ID().String())
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

// join is a node as the server's output says to make one, with more options.
func join(t *testing.T, server *exampletest.Program, opts ...p2pnode.Option) *p2pnode.Node {
	t.Helper()
	addr := strings.Split(server.Line("WithBootstrapAddrs"), `"`)[1]
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	n, err := p2pnode.New(ctx, append(opts, p2pnode.WithNetwork("test"), p2pnode.WithoutListening(), p2pnode.WithBootstrapAddrs(addr))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	return n
}

func TestBootstrapRelays(t *testing.T) {
	server := exampletest.Start(t, run, "-identity", filepath.Join(t.TempDir(), "boot.key"), "-network", "test", "-listen", "/ip4/127.0.0.1/tcp/0", "-relay")
	relay, err := p2pnode.ParsePeers(strings.Split(server.Line("WithBootstrapAddrs"), `"`)[1])
	if err != nil {
		t.Fatal(err)
	}
	server.Line("WithAutoRelay")
	hidden := join(t, server, p2pnode.WithAutoRelay(relay...))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := hidden.Events(ctx)
	if len(hidden.Addrs()) == 0 {
		for range events {
			if len(hidden.Addrs()) > 0 {
				break
			}
		}
	}
	other := join(t, server)
	if err := other.Connect(ctx, hidden.AddrInfo()); err != nil {
		t.Error(err)
	}
}

func TestBootstrapEndsOnSIGTERM(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGTERM")
	}
	cmd := exampletest.Command(t, "-identity", filepath.Join(t.TempDir(), "boot.key"), "-listen", "/ip4/127.0.0.1/tcp/0")
	shown := exampletest.Start(t, func(_ context.Context, _ []string, out io.Writer) error {
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		return cmd.Run()
	})
	shown.Line("WithBootstrapAddrs")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := shown.Wait(); err != nil { // exit code 0
		t.Error(err)
	}
	shown.Line("stopping")
}

func TestUsage(t *testing.T) {
	key := filepath.Join(t.TempDir(), "k")
	exampletest.Usage(t, run,
		[]string{"-identity"},
		[]string{"-network: ", "-identity", key, "-network", "a b"},
		[]string{"-listen: ", "-identity", key, "-listen", "/ip4/127.0.0.1/tcp/0,4001"},
		[]string{"-identity: ", "-identity", "/no/such/directory/key"})
}
