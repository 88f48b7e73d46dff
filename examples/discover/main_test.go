package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

// start runs one peer and returns its ID and address.
func start(t *testing.T, args ...string) (p *clitest.Program, id, addr string) {
	t.Helper()
	p = clitest.Start(t, run, append([]string{"-listen", "/ip4/127.0.0.1/tcp/0", "-every", "50ms"}, args...)...)
	words := strings.Fields(p.Line("-bootstrap"))
	addr = words[4]
	return p, addr[strings.LastIndex(addr, "/")+1:], addr
}

func TestPeersOfOneNamespaceMeet(t *testing.T) {
	other, otherID, addr := start(t, "-namespace", "other")
	ada, adaID, _ := start(t, "-namespace", "here", "-bootstrap", addr)
	bob, bobID, _ := start(t, "-namespace", "here", "-bootstrap", addr)
	ada.Line("connected to", bobID)
	bob.Line("connected to", adaID)

	// A peer that stops is still found for a while, once other peers hold its
	// announcement. New peers are found.
	bob.Line("advertised")
	if err := bob.Stop(); err != nil {
		t.Error(err)
	}
	ada.Line(bobID, "does not answer")
	eve, eveID, _ := start(t, "-namespace", "here", "-bootstrap", addr)
	ada.Line("connected to", eveID)
	eve.Line("connected to", adaID)

	for _, p := range []*clitest.Program{ada, eve, other} {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []*clitest.Program{ada, bob, eve} {
		if strings.Contains(p.Text(), "connected to "+otherID) {
			t.Error("a peer of another namespace was met")
		}
	}
	if strings.Contains(other.Text(), "connected to ") {
		t.Error("the peer of another namespace met somebody")
	}
	lines := strings.Split(ada.Text(), "\n")
	if n := len(slices.DeleteFunc(lines, func(l string) bool { return l != "connected to "+bobID })); n != 1 {
		t.Errorf("a peer was met %d times, want once", n)
	}
}

func TestUsage(t *testing.T) {
	clitest.Usage(t, run,
		[]string{"-namespace", "-namespace", ""},
		[]string{"-every", "-every", "-1s"},
		[]string{"-network: ", "-network", "a b"},
		[]string{"-bootstrap: ", "-bootstrap", "/ip4/127.0.0.1/tcp/1"})
}
