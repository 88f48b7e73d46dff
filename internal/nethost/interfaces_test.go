package nethost_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// A connection on which the peer does not answer is closed, others are not, even if
// the peer does not speak ping.
func TestDeadConnectionsAreClosed(t *testing.T) {
	any := ma.StringCast("/ip4/127.0.0.1/tcp/0")
	a, mute, silent := hosttest.New(t, any), hosttest.New(t, any), hosttest.New(t, any)
	const ping = protocol.ID("/ipfs/ping/1.0.0")
	mute.RemoveStreamHandler(ping)
	silent.SetStreamHandler(ping, func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	for _, h := range []*struct {
		id   peer.ID
		at   []ma.Multiaddr
		want bool
	}{{mute.ID(), mute.Addrs(), true}, {silent.ID(), silent.Addrs(), false}} {
		if err := a.Connect(t.Context(), peer.AddrInfo{ID: h.id, Addrs: h.at}); err != nil {
			t.Fatal(err)
		}
		// Only the one that does not answer waits for the end.
		timeout := time.Minute
		if !h.want {
			timeout = 200 * time.Millisecond
		}
		if got := a.CloseDead(t.Context(), h.id, timeout); got != h.want || a.Connected(h.id) != h.want {
			t.Errorf("alive: %v, connected: %v, want %v", got, a.Connected(h.id), h.want)
		}
	}
	// Whoever gives up learns nothing.
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: silent.ID(), Addrs: silent.Addrs()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if !a.CloseDead(ctx, silent.ID(), time.Minute) {
		t.Error("closed because the caller gave up")
	}
}
