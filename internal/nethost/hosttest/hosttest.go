// Package hosttest makes hosts for the tests of the rooms that need one.
package hosttest

import (
	"log/slog"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Config returns the configuration of a host over TCP and QUIC with libp2p's
// defaults.
func Config(tb testing.TB, opts ...libp2p.Option) nethost.Config {
	tb.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return nethost.Config{
		Key: key, UserAgent: "hosttest",
		Transports: []addrs.Kind{addrs.TCP, addrs.QUIC, addrs.WebSocket}, Security: []nethost.Security{nethost.TLS, nethost.Noise},
		ConnLow: 160, ConnHigh: 192,
		NewLimits: func() (network.ResourceManager, error) {
			return limits.New(limits.Config{ConnHigh: 192, Log: slog.New(slog.DiscardHandler)})
		},
		AddrsFactory: func(list []ma.Multiaddr) []ma.Multiaddr { return list },
		Gater:        func(next connmgr.ConnectionGater) connmgr.ConnectionGater { return next },
		Services:     []libp2p.Option{libp2p.EnableRelay()},
		Options:      opts,
	}
}

// New starts a host that listens on the addresses, and closes it when the test
// ends.
func New(tb testing.TB, listen ...ma.Multiaddr) *nethost.Host {
	tb.Helper()
	h, err := nethost.New(Config(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := h.Close(); err != nil {
			tb.Error(err)
		}
	})
	Listen(tb, h, listen...)
	return h
}

// Listen makes a host listen on more addresses.
func Listen(tb testing.TB, h *nethost.Host, list ...ma.Multiaddr) {
	tb.Helper()
	for _, f := range h.Listen(list) {
		tb.Fatalf("%s: %v", f.Addr, f.Err)
	}
}

// Info returns the addresses at which others dial a host.
func Info(h *nethost.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }
