package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

// person is somebody in a room.
type person struct {
	*clitest.Program
	t  *testing.T
	in *io.PipeWriter
}

func enter(t *testing.T, args ...string) person {
	t.Helper()
	typed, in := io.Pipe()
	t.Cleanup(func() { in.Close() })
	p := clitest.Start(t, func(ctx context.Context, args []string, out io.Writer) error {
		return runWith(ctx, args, typed, out)
	}, args...)
	return person{p, t, in}
}

func (p person) says(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p person) address() string {
	p.t.Helper()
	words := strings.Fields(p.Line("-bootstrap"))
	return words[len(words)-1]
}

func talk(t *testing.T, bob, ada person) {
	t.Helper()
	ada.Line("* bob", "is here")
	bob.Line("* ada", "is here")
	bob.says("")
	bob.says("hello ada")
	ada.Line("bob", ": hello ada")
	ada.says("hello bob\x1b[31m\u202e")
	if line := bob.Line("ada", ": hello bob"); strings.ContainsAny(line, "\x1b\u202e") {
		t.Errorf("a control character came through: %q", line)
	}
	ada.says(strings.Repeat("x", maxLine+1))
	ada.Line("* not sent")
	ada.in.Close() // ctrl-D
	if err := ada.Wait(); err != nil {
		t.Error(err)
	}
	bob.Line("* ada", "has left")
	if strings.Count(bob.Text(), "is here") != 1 {
		t.Errorf("bob was told more than once that ada is here:\n%s", bob.Text())
	}
	if err := bob.Stop(); err != nil {
		t.Error(err)
	}
}

func TestChatOnTheLAN(t *testing.T) {
	needs.Multicast(t)
	bob := enter(t, "-nick", "bob", "-listen", "/ip4/0.0.0.0/tcp/0")
	ada := enter(t, "-nick", "ada", "-listen", "/ip4/0.0.0.0/tcp/0")
	talk(t, bob, ada)
}

func TestChatWithoutMulticast(t *testing.T) {
	alone := []string{"-mdns=false", "-listen", "/ip4/127.0.0.1/tcp/0"}
	bob := enter(t, append(alone, "-nick", "bob")...)
	ada := enter(t, append(alone, "-nick", "ada", "-bootstrap", bob.address())...)
	talk(t, bob, ada)
}

func TestRoomsDoNotMix(t *testing.T) {
	alone := []string{"-mdns=false", "-listen", "/ip4/127.0.0.1/tcp/0"}
	bob := enter(t, append(alone, "-nick", "bob", "-topic", "kitchen")...)
	eve := enter(t, append(alone, "-nick", "eve", "-topic", "cellar", "-bootstrap", bob.address())...)
	ada := enter(t, append(alone, "-nick", "ada", "-topic", "kitchen", "-bootstrap", bob.address())...)
	ada.Line("* bob", "is here")
	ada.says("soup?")
	bob.Line(": soup?")
	for _, p := range []person{bob, eve, ada} {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
	if s := eve.Text(); strings.Contains(s, "soup") || strings.Contains(s, "is here") {
		t.Errorf("eve heard what was said elsewhere:\n%s", s)
	}
}

func TestNobodyIsHere(t *testing.T) {
	bob := enter(t, "-mdns=false", "-listen", "/ip4/127.0.0.1/tcp/0")
	bob.says("hello?")
	bob.Line("nobody else is here")
	if err := bob.Stop(); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	clitest.Usage(t, func(ctx context.Context, args []string, out io.Writer) error {
		return runWith(ctx, args, strings.NewReader(""), out)
	},
		[]string{"-nick", "-nick", ""},
		[]string{"-nick", "-nick", "a\nb"},
		[]string{"-topic", "-topic", ""},
		[]string{"-network: ", "-network", "a b"},
		[]string{"-mdns: ", "-listen", "/ip4/127.0.0.1/tcp/0/ws"},
		[]string{"-bootstrap: ", "-bootstrap", "x"})
}
