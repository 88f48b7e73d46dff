package lan

import (
	"log/slog"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The service follows a change of the listening addresses (pitfall 69).
func TestPitfall69MDNSFollowsAddresses(t *testing.T) {
	needs.Multicast(t)
	any := ma.StringCast("/ip4/0.0.0.0/tcp/0")
	h := hosttest.New(t, any)
	a, err := Start(h, "_p2pnode-follow._udp", func(peer.AddrInfo) {}, slog.New(slog.DiscardHandler))
	must(t, err)
	before := a.running
	must(t, a.update())
	if a.running != before {
		t.Error("restarted without a change")
	}
	hosttest.Listen(t, h, any)
	must(t, a.update())
	if a.running == before {
		t.Error("not restarted with another address")
	}
	must(t, a.Close())
	hosttest.Listen(t, h, any)
	must(t, a.update())
	if a.running != nil {
		t.Error("restarted after its close")
	}
}
