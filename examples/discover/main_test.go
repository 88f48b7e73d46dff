package main

import (
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m) }

func TestPeersOfOneNamespaceMeet(t *testing.T) {
	common := []string{"-listen", "/ip4/127.0.0.1/tcp/0", "-every", "50ms"}
	first := exampletest.Start(t, run, append(common, "-namespace", "other")...)
	addr := strings.Fields(first.Line("-bootstrap"))[4]
	var room []*exampletest.Program
	for range 2 {
		room = append(room, exampletest.Start(t, run, append(common, "-namespace", "room", "-bootstrap", addr)...))
	}
	for i, p := range room {
		other := strings.Fields(room[1-i].Line("-bootstrap"))[4]
		p.Line("met", other[strings.LastIndex(other, "/")+1:])
	}
	if strings.Contains(first.Text(), "met ") {
		t.Error("namespaces mix")
	}
	for _, p := range append(room, first) {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestUsage(t *testing.T) {
	exampletest.Usage(t, run, []string{"-namespace", "-namespace", ""}, []string{"-every", "-every", "-1s"}, []string{"WithBootstrapAddrs", "-bootstrap", "/ip4/127.0.0.1/tcp/1"})
}
