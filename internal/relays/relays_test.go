package relays

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// What the options about relays and NATs ask of libp2p. Port mapping is not
// tried for real: it would talk to the router.
func TestOptionsReachLibp2p(t *testing.T) {
	apply := func(cfg Config) *libp2p.Config {
		cfg.Log = slog.New(slog.DiscardHandler)
		var lc libp2p.Config
		if err := lc.Apply(New(cfg).Options()...); err != nil {
			t.Fatal(err)
		}
		return &lc
	}
	if c := apply(Config{}); !c.Relay || c.EnableAutoRelay || c.EnableHolePunching || c.NATManager != nil || c.EnableRelayService {
		t.Errorf("by default: %+v", c)
	}
	if c := apply(Config{HolePunching: true}); !c.EnableHolePunching {
		t.Error("hole punching does not arrive")
	}
	if c := apply(Config{Relays: []peer.AddrInfo{{ID: "relay"}}}); c.EnableAutoRelay { // Follow makes AutoRelay
		t.Error("reservations do not arrive")
	}
	if c := apply(Config{Disabled: true}); c.Relay || !c.RelayCustom {
		t.Error("the relay client is on")
	}
}

// The reasons for a missing reservation.
func TestGoldenMissing(t *testing.T) {
	c := New(Config{Log: slog.New(slog.DiscardHandler)})
	h, other := hosttest.New(t), hosttest.New(t, ma.StringCast("/ip4/127.0.0.1/tcp/0"))
	id := other.ID()
	c.host.Store(h)
	texts := []golden.Text{{Name: "not connected", Text: c.Missing(id)}}
	h.Given(hosttest.Info(other))
	if err := h.Connect(t.Context(), hosttest.Info(other)); err != nil {
		t.Fatal(err)
	}
	texts = append(texts, golden.Text{Name: "no relay", Text: c.Missing(id)})
	if err := h.Peerstore().AddProtocols(id, proto.ProtoIDv2Hop); err != nil {
		t.Fatal(err)
	}
	texts = append(texts, golden.Text{Name: "no answer yet", Text: c.Missing(id)})
	c.failures[id] = errors.New("no room")
	texts = append(texts, golden.Text{Name: "it refused", Text: c.Missing(id)})
	if err := h.Peerstore().SetProtocols(id); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "reservations", append(texts, golden.Text{Name: "not identified yet", Text: c.Missing(id)}))
}

// Relays add up by peer, within their bound, and are removed by ID.
func TestRelaysAddUp(t *testing.T) {
	c := New(Config{Log: slog.New(slog.DiscardHandler)})
	for i := range Max {
		if err := c.Add(peer.AddrInfo{ID: peer.ID(rune('a' + i))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Add(peer.AddrInfo{ID: "one too many"}); err == nil {
		t.Errorf("%d relays are named", len(c.Relays()))
	}
	if err := c.Add(peer.AddrInfo{ID: "a"}); err != nil {
		t.Errorf("a relay that is known: %v", err)
	}
	if !c.Remove("a") || c.Remove("a") || len(c.Relays()) != Max-1 {
		t.Errorf("after removing one: %v", c.Relays())
	}
}
