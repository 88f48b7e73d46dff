package nethost_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// A connection on which the peer does not answer is closed, others are not, even if
// the peer does not speak ping.
func TestDeadConnectionsAreClosed(t *testing.T) {
	any := ma.StringCast("/ip4/127.0.0.1/tcp/0")
	a, mute, silent := hosttest.New(t, any), hosttest.New(t, any), hosttest.New(t, any)
	mute.RemoveStreamHandler(ping.ID)
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
			silent.Network().SetStreamHandler(unanswered)
		}
		if got := a.CloseDead(t.Context(), h.id, timeout); got != h.want || a.Connected(h.id) != h.want {
			t.Errorf("alive: %v, connected: %v, want %v", got, a.Connected(h.id), h.want)
		}
	}
	// Whoever gives up learns nothing.
	mute.Network().SetStreamHandler(unanswered)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if !a.CloseDead(ctx, mute.ID(), time.Minute) {
		t.Error("closed because the caller gave up")
	}
}

// unanswered reads a stream and never answers.
func unanswered(s network.Stream) { _, _ = io.Copy(io.Discard, s) }

// A peer whose machine is so busy that only its QUIC answers is not dead: its
// connections were closed, because it answered after 3 seconds.
func TestAPeerWhoseQUICAnswersIsNotDead(t *testing.T) {
	any := ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")
	a, slow := hosttest.New(t, any), hosttest.New(t, any)
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: slow.ID(), Addrs: slow.Addrs()}); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	slow.Network().SetStreamHandler(func(s network.Stream) {
		if asked.Add(1) == 1 {
			unanswered(s)
			return
		}
		_, _, _ = slow.Mux().Negotiate(s) // if it fails, so does the test
	})
	if !a.CloseDead(t.Context(), slow.ID(), time.Second) {
		t.Error("closed")
	}
	if n := asked.Load(); n < 2 {
		t.Errorf("asked %d times", n)
	}
}
