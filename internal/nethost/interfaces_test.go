package nethost_test

import (
	"context"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
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

// Another connection makes a young one doubtful only if the peer has dialed it over
// QUIC: it may have canceled that dial.
func TestAYoungQUICConnectionIsDoubtful(t *testing.T) {
	tcp, quic := ma.StringCast("/ip4/127.0.0.1/tcp/0"), ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")
	for _, c := range []struct {
		name          string
		first, second ma.Multiaddr
		fromHere      bool // the first one
		want          bool
	}{
		{"QUIC", quic, tcp, false, true},
		{"TCP", tcp, tcp, false, false},
		{"QUIC from here", quic, tcp, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := hosttest.Config(t)
			one := hosttest.New(t, c.first, c.second)
			other := func() *nethost.Host { // a process with the one identity
				h, err := nethost.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := h.Close(); err != nil {
						t.Error(err)
					}
				})
				hosttest.Listen(t, h, c.first)
				return h
			}
			dial := func(from, to *nethost.Host, at ma.Multiaddr) {
				addrs := slices.DeleteFunc(to.Addrs(), func(a ma.Multiaddr) bool { return len(a) != len(at) })
				if err := from.Connect(t.Context(), peer.AddrInfo{ID: to.ID(), Addrs: addrs}); err != nil {
					t.Fatal(err)
				}
			}
			a, b := other(), other()
			if c.fromHere {
				dial(one, a, c.first)
			} else {
				dial(a, one, c.first)
			}
			if one.Doubtful(a.ID()) {
				t.Error("doubtful alone")
			}
			dial(b, one, c.second)
			if got := one.Doubtful(a.ID()); got != c.want {
				t.Errorf("doubtful: %v", got)
			}
			// Only the one over QUIC is asked.
			a.Network().SetStreamHandler(unanswered)
			b.Network().SetStreamHandler(unanswered)
			one.CloseDoubtful(t.Context(), a.ID(), 200*time.Millisecond)
			if left := one.Conns(a.ID()); !c.want && len(left) < 2 || c.want && (len(left) != 1 || left[0].Addr.Protocols()[1].Code != ma.P_TCP) {
				t.Errorf("left: %v", left)
			}
		})
	}
}
