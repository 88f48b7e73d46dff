package p2pnode_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

func persistent(tb testing.TB, n interface{ Status() p2pnode.Status }, id peer.ID) p2pnode.PersistentStatus {
	tb.Helper()
	for _, s := range n.Status().Persistent {
		if s.ID == id {
			return s
		}
	}
	tb.Fatalf("%s is no persistent peer: %+v", id, n.Status().Persistent)
	return p2pnode.PersistentStatus{}
}

func TestPersistentPeerIsDialedWithGrowingDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		friend := sim.Node(t)
		where := sim.AddrInfo(friend)
		sim.Crash(friend)
		n := sim.Node(t, p2pnode.WithPersistentPeers(where))
		// The first address event of the host, some seconds after its start,
		// ends the wait and starts the delays anew.
		time.Sleep(20 * time.Second)
		before := persistent(t, n, friend.ID()).Failures
		longest := time.Duration(0)
		for i := before + 1; i <= before+9; i++ {
			time.Sleep(time.Until(persistent(t, n, friend.ID()).NextDial))
			sim.Within(30*time.Minute).Until("another failure", func() error {
				if persistent(t, n, friend.ID()).Failures < i {
					return errors.New("there is none")
				}
				return nil
			})
			s := persistent(t, n, friend.ID())
			d := time.Until(s.NextDial)
			if d < 2*time.Second || d > 10*time.Minute || d < longest/2 || s.Connected || !strings.Contains(s.LastError, "16.1.0.1") {
				t.Fatalf("after %d failures: %+v, the next dial in %v, after delays of up to %v", i, s, d, longest)
			}
			longest = max(longest, d)
		}
		if longest < 5*time.Minute {
			t.Errorf("the delays have grown to %v", longest)
		}
		sim.Restart(friend)
		sim.Within(11*time.Minute).Connected(n, friend)
		if s := persistent(t, n, friend.ID()); !s.Connected || s.Failures != 0 || s.LastError != "" || !s.NextDial.IsZero() {
			t.Errorf("connected: %+v", s)
		}

		// When lost again, it is dialed immediately.
		if err := friend.Close(); err != nil {
			t.Fatal(err)
		}
		sim.Restart(friend)
		sim.Within(10*time.Second).Connected(n, friend)
	})
}

// TestPersistentPeerOfOldIsDialedAtOnce: it was connected long before it was
// made persistent, and nothing of that time ends a later wait.
func TestPersistentPeerOfOldIsDialedAtOnce(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT(), p2pnode.WithoutPubSub()))
		friend, n := sim.Node(t), sim.Node(t)
		if err := n.Connect(t.Context(), friend.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for range 2 { // the second time it is woken for nothing
			if err := n.AddPersistentPeers(friend.AddrInfo()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if err := friend.Host().Network().ClosePeer(n.ID()); err != nil {
			t.Fatal(err)
		}
		sim.Within(time.Second).Connected(n, friend)
		if s := persistent(t, n, friend.ID()); s.Failures != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Hour)
		if err := n.AddPersistentPeers(friend.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		sim.Crash(friend)
		sim.Disconnected(n, friend)
		sim.Within(time.Minute).Until("a failed dial", func() error {
			if persistent(t, n, friend.ID()).Failures == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		s := persistent(t, n, friend.ID())
		time.Sleep(time.Until(s.NextDial) - time.Millisecond)
		if again := persistent(t, n, friend.ID()); again.Failures != s.Failures {
			t.Errorf("%+v became %+v before the next dial", s, again)
		}
	})
}

// TestPersistentPeerIsDialedWhenItsBlockEnds.
func TestPersistentPeerIsDialedWhenItsBlockEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		friend := sim.Node(t)
		n := sim.Node(t, p2pnode.WithPersistentPeers(friend.AddrInfo()))
		for _, b := range []p2pnode.Ban{{Peer: friend.ID()}, {Subnet: netip.PrefixFrom(sim.Addr(friend), 24)}} {
			sim.Connected(n, friend)
			b.Until = time.Now().Add(3 * time.Hour)
			if err := ban(n, b); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Until(b.Until))
			sim.Within(2*time.Second).Connected(n, friend)

			// Or when it is ended.
			b.Until = time.Time{}
			if err := ban(n, b); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Hour)
			if err := unban(n, b); err != nil {
				t.Fatal(err)
			}
			sim.Within(2*time.Second).Connected(n, friend)
		}
	})
}

// TestPersistentPeerThatHangsUpIsNotDialedWithoutEnd: it shuts this node out,
// or closes each connection after a while.
func TestPersistentPeerThatHangsUpIsNotDialedWithoutEnd(t *testing.T) {
	needs.Time(t)
	for name, hangUp := range map[string]func(friend, n *p2ptest.Node){
		"blocked": func(friend, n *p2ptest.Node) {
			if err := friend.BanPeer(n.ID(), time.Time{}, ""); err != nil {
				panic(err)
			}
		},
		"closed after 2s": func(friend, n *p2ptest.Node) {
			friend.Host().Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
				time.AfterFunc(2*time.Second, func() { c.Close() })
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT(), p2pnode.WithoutPubSub()))
				friend, n := sim.Node(t), sim.Node(t)
				hangUp(friend, n)
				var conns atomic.Int64
				n.Host().Network().Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { conns.Add(1) }})
				if err := n.AddPersistentPeers(friend.AddrInfo()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
				sim.Disconnected(n, friend) // it may be connected for two seconds just now
				synctest.Wait()
				s := persistent(t, n, friend.ID())
				if got := conns.Load(); got < 3 || got > 12 {
					t.Errorf("%d connections in 10 minutes", got)
				}
				if s.Failures < 3 || !strings.Contains(s.LastError, friend.ID().String()) || s.NextDial.Before(time.Now()) {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestPitfall15PersistentPeersAreNotTrimmed(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		friend := sim.Node(t)
		n := sim.Node(t, p2pnode.WithPersistentPeers(friend.AddrInfo()), p2pnode.WithConnLimits(2, 4), p2pnode.WithoutDHT())
		sim.Connected(n, friend)
		conn := n.Host().Network().ConnsToPeer(friend.ID())[0]
		for range 12 {
			other := sim.Node(t, p2pnode.WithoutDHT())
			if err := other.Connect(t.Context(), n.AddrInfo()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		if got := len(n.Peers()); got > 4 {
			t.Fatalf("%d peers are connected: nothing was trimmed, the test shows nothing", got)
		}
		if conn.IsClosed() {
			t.Error("the persistent peer was trimmed")
		}
	})
}

func TestPersistentPeersChangeAtRunTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		// Without a DHT, in which they would find each other again.
		alone := p2pnode.WithoutDHT()
		a, b, n := sim.Node(t, alone), sim.Node(t, alone), sim.Node(t, alone)
		if err := n.AddPersistentPeers(a.AddrInfo(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		sim.Connected(n, a)
		sim.Connected(n, b)
		if err := n.RemovePersistentPeers(b.ID()); err != nil {
			t.Fatal(err)
		}
		if list := n.Status().Persistent; len(list) != 1 || list[0].ID != a.ID() {
			t.Errorf("after the removal: %+v", list)
		}
		restart(t, sim, b)
		restart(t, sim, a)
		sim.Connected(n, a)
		time.Sleep(time.Minute)
		for _, p := range n.Peers() {
			if p.ID == b.ID() {
				t.Error("the removed peer is dialed again")
			}
		}

		for what, err := range map[string]error{
			"itself":     n.AddPersistentPeers(n.AddrInfo()),
			"no address": n.AddPersistentPeers(peer.AddrInfo{ID: b.ID()}),
			"no peer":    n.AddPersistentPeers(),
			"not kept":   n.RemovePersistentPeers(b.ID()),
		} {
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		// Another address of a persistent peer is dialed immediately.
		wrong := sim.AddrInfo(b)
		wrong.Addrs = wrong.Addrs[:0:0]
		for _, ai := range must(p2pnode.ParsePeers("/ip4/192.0.2.1/udp/1/quic-v1/p2p/" + b.ID().String())) {
			wrong.Addrs = append(wrong.Addrs, ai.Addrs...)
		}
		if err := n.AddPersistentPeers(wrong); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // its delays have grown to minutes
		if err := n.AddPersistentPeers(b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		sim.Within(10*time.Second).Connected(n, b)

		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.AddPersistentPeers(a.AddrInfo()); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := n.RemovePersistentPeers(a.ID()); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func restart(t *testing.T, sim *p2ptest.Network, n *p2ptest.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	sim.Restart(n)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
