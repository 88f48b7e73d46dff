package main

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

// person is somebody in a room: what is written to in is typed by them.
func person(t *testing.T, args ...string) (p *exampletest.Program, in io.WriteCloser) {
	t.Helper()
	typed, in := io.Pipe()
	p = exampletest.Start(t, func(ctx context.Context, args []string, out io.Writer) error {
		return run(ctx, args, typed, out)
	}, args...)
	t.Cleanup(func() { in.Close() })
	return p, in
}

func say(t *testing.T, in io.Writer, line string) {
	t.Helper()
	if _, err := io.WriteString(in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func talk(t *testing.T, bob, ada *exampletest.Program, bobIn, adaIn io.WriteCloser) {
	t.Helper()
	ada.Line("is here")
	bob.Line("is here")
	say(t, bobIn, "hello ada")
	ada.Line("bob", "hello ada")
	say(t, adaIn, "hello bob\x1b[31m")
	if line := bob.Line("ada", "hello bob"); strings.Contains(line, "\x1b") {
		t.Errorf("a control character came through: %q", line)
	}
	adaIn.Close() // ctrl-D
	if err := ada.Wait(); err != nil {
		t.Error(err)
	}
	bob.Line("is gone")
	if err := bob.Stop(); err != nil {
		t.Error(err)
	}
}

func TestChatOnTheLAN(t *testing.T) {
	needMulticast(t)
	bob, bobIn := person(t, "-nick", "bob", "-listen", "/ip4/0.0.0.0/tcp/0")
	ada, adaIn := person(t, "-nick", "ada", "-listen", "/ip4/0.0.0.0/tcp/0")
	talk(t, bob, ada, bobIn, adaIn)
}

func TestChatWithABootstrapAddress(t *testing.T) {
	needMulticast(t) // to start mDNS at all
	bob, bobIn := person(t, "-nick", "bob", "-listen", "/ip4/127.0.0.1/tcp/0")
	addr := strings.Fields(bob.Line("-bootstrap"))[6]
	ada, adaIn := person(t, "-nick", "ada", "-listen", "/ip4/127.0.0.1/tcp/0", "-bootstrap", addr)
	talk(t, bob, ada, bobIn, adaIn)
}

func TestUsage(t *testing.T) {
	exampletest.Usage(t, func(ctx context.Context, args []string, out io.Writer) error {
		return run(ctx, args, strings.NewReader(""), out)
	}, []string{"-nick", "-nick", ""}, []string{"WithBootstrapAddrs", "-bootstrap", "x"})
}

// needMulticast skips where there is no interface for multicast; in CI there
// must be one.
func needMulticast(t *testing.T) {
	t.Helper()
	ifaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifaces {
		if i.Flags&(net.FlagUp|net.FlagMulticast) == net.FlagUp|net.FlagMulticast {
			return
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no interface for multicast")
	}
	t.Skip("no interface for multicast")
}
