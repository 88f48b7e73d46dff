package main

import (
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, main) }

func TestAllInOne(t *testing.T) {
	p := clitest.Start(t, run)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Line("the relay listens on /ip4/127.0.0.1/")
	p.Line("the listener opened no port", "p2p-circuit")
	p.Line("connected, relayed: true")
	p.Line(`"hello from behind the relay"`)
}

func TestThreeRoles(t *testing.T) {
	relay := clitest.Start(t, run, "-role", "relay", "-listen", "/ip4/127.0.0.1/tcp/0")
	relayAddr := strings.Fields(relay.Line("-role listen"))[4]
	listener := clitest.Start(t, run, "-role", "listen", "-relay", relayAddr)
	peerAddr := strings.Fields(listener.Line("-role dial"))[4]
	dialer := clitest.Start(t, run, "-role", "dial", "-peer", peerAddr)
	if err := dialer.Wait(); err != nil {
		t.Fatal(err)
	}
	dialer.Line("connected, relayed: true")
	listener.Line("connected through", "p2p-circuit")
	for _, p := range []*clitest.Program{listener, relay} {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	}
	// The relay has stopped: the error has the reason.
	late := clitest.Start(t, run, "-role", "listen", "-relay", relayAddr)
	if err := late.Wait(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a relay that has stopped: %v", err)
	}
}

func TestUsage(t *testing.T) {
	clitest.Usage(t, run,
		[]string{"-role", "-role", "king"},
		[]string{"-relay: ", "-role", "listen"},
		[]string{"-peer: ", "-role", "dial", "-peer", "x"},
		[]string{"-listen: ", "-listen", "x"})
}
