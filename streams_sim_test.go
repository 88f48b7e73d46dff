package p2pnode_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

const simProto = protocol.ID("/test/sim")

func mustHandle(t *testing.T, n *p2ptest.Node, h p2pnode.StreamHandler) {
	t.Helper()
	if err := n.Handle(simProto, h); err != nil {
		t.Fatal(err)
	}
}

func copies(_ context.Context, s network.Stream) error {
	_, err := io.Copy(s, s)
	return err
}

// roundTrip sends a byte on a stream and reads it back.
func roundTrip(s io.ReadWriter) error {
	if _, err := s.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(s, make([]byte, 1))
	return err
}

// A stream protects its peer from trimming while it is open, on the side that
// opened it and on the side that handles it; when it has ended, the peer is one
// among many again. So do streams of which both sides think as of net.Conns.
func TestStreamsProtectFromTrimming(t *testing.T) {
	for name, trims := range map[string]bool{"the side that handles": false, "the side that opened": true} {
		for how, end := range map[string]func(s network.Stream) error{
			"closed":      network.Stream.Close,
			"reset":       network.Stream.Reset,
			"read to EOF": func(s network.Stream) error { return errors.Join(s.CloseWrite(), result1(io.ReadAll(s))) },
		} {
			if testing.Short() && how != "reset" {
				continue
			}
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(
						p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithMinPeers(0)))
					tight := sim.Node(t, p2pnode.WithConnLimits(4, 8))
					wide := sim.Node(t)
					from, to := wide, tight
					if trims {
						from, to = tight, wide
					}
					mustHandle(t, to, copies)
					if err := from.Connect(t.Context(), to.AddrInfo()); err != nil {
						t.Fatal(err)
					}
					s, err := from.OpenStream(t.Context(), to.ID(), simProto)
					if err != nil {
						t.Fatal(err)
					}
					crowd := func() {
						for range 30 {
							idle := sim.Node(t)
							if err := idle.Connect(t.Context(), tight.AddrInfo()); err != nil {
								t.Fatal(err)
							}
							time.Sleep(2 * time.Second)
						}
						time.Sleep(time.Minute)
					}
					crowd()
					if err := roundTrip(s); err != nil {
						t.Errorf("the stream broke: %v", err)
					}
					if n := len(tight.Peers()); n > 8 {
						t.Errorf("%d peers are connected: nothing was trimmed", n)
					}
					if err := end(s); err != nil {
						t.Error(err)
					}
					time.Sleep(2 * time.Second)
					for _, n := range []*p2ptest.Node{tight, wide} {
						for _, p := range n.Peers() {
							if n.Host().ConnManager().IsProtected(p.ID, "") {
								t.Error("without its stream the peer is still protected")
							}
						}
					}
				})
			})
		}
	}
}

func result1[T any](_ T, err error) error { return err }

// A peer that restarts leaves no protection, also of a stream that its owner
// never ends.
func TestLostConnectionsLeaveNoProtection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(
			p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithMinPeers(0)))
		a, b := sim.Node(t), sim.Node(t)
		mustHandle(t, b, copies)
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		s, err := a.OpenStream(t.Context(), b.ID(), simProto)
		if err != nil {
			t.Fatal(err)
		}
		if !a.Host().ConnManager().IsProtected(b.ID(), "") || !b.Host().ConnManager().IsProtected(a.ID(), "") {
			t.Error("the open stream does not protect")
		}
		if err := a.Disconnect(t.Context(), b.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if a.Host().ConnManager().IsProtected(b.ID(), "") || b.Host().ConnManager().IsProtected(a.ID(), "") {
			t.Error("a peer without connection is protected")
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
			t.Errorf("the stream ended with %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The first stream to a peer that was restarted works, whether its end of the
// old connection was closed or crashed.
func TestFirstStreamAfterARestart(t *testing.T) {
	needs.Time(t)
	for name, opts := range map[string][]p2ptest.Option{"quic": nil, "memory": {p2ptest.WithMemoryTransport()}} {
		for how, stop := range map[string]func(sim *p2ptest.Network, b *p2ptest.Node){
			"crash":  func(sim *p2ptest.Network, b *p2ptest.Node) { sim.Crash(b) },
			"closed": func(*p2ptest.Network, *p2ptest.Node) {},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t, append(opts, p2ptest.WithNodeOptions(
						p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithMinPeers(0)))...)
					a, b := sim.Node(t), sim.Node(t)
					mustHandle(t, b, copies)
					if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
						t.Fatal(err)
					}
					for range 5 {
						s, err := a.OpenStream(t.Context(), b.ID(), simProto)
						if err != nil {
							t.Fatal(err)
						}
						if err := roundTrip(s); err != nil {
							t.Fatal(err)
						}
						stop(sim, b)
						sim.Restart(b)
						mustHandle(t, b, copies)
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
						s, err = a.OpenStream(ctx, b.ID(), simProto)
						if err == nil {
							err = roundTrip(s)
						}
						cancel()
						if err != nil {
							t.Fatalf("after the restart: %v", err)
						}
						if err := s.Close(); err != nil {
							t.Error(err)
						}
					}
				})
			})
		}
	}
}

// The error of an OpenStream that waits until its ctx ends names the limit.
func TestWaitForRoomEndsWithTheCtx(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithMinPeers(0)))
		a, b := sim.Node(t), sim.Node(t, p2pnode.WithLimits(p2pnode.Limits{StreamsPerPeer: 16}))
		mustHandle(t, b, copies)
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		var err error
		for n := 0; err == nil; n++ {
			if n > 16 {
				t.Fatal("the limit does not hold")
			}
			_, err = a.OpenStream(p2pnode.OpenNow(t.Context()), b.ID(), simProto)
		}
		if !errors.Is(err, p2pnode.ErrLimit) {
			t.Errorf("not to wait: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		begun := time.Now()
		_, err = a.OpenStream(ctx, b.ID(), simProto)
		if took := time.Since(begun); took != 10*time.Minute || !errors.Is(err, p2pnode.ErrLimit) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, err)
		}
		waits := make(chan error, 1)
		go func() {
			_, err := a.OpenStream(context.Background(), b.ID(), simProto)
			waits <- err
		}()
		time.Sleep(time.Minute) // virtual: it waits
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := <-waits; !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("the node has closed: %v", err)
		}
	})
}

// TestStreamsSurviveAShortCut: a stream over a path that is cut for less than
// the 30 seconds of QUIC's idle timeout delivers everything.
func TestStreamsSurviveAShortCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 2)
		sim.Ready()
		got := make(chan string, 1)
		err := nodes[0].Handle("/sink", func(_ context.Context, s network.Stream) error {
			data, err := io.ReadAll(s)
			got <- string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := nodes[1].OpenStream(t.Context(), nodes[0].ID(), "/sink")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("before, ")); err != nil {
			t.Fatal(err)
		}
		sim.Isolate(nodes[1])
		if _, err := s.Write([]byte("during")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		sim.Heal()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if text := <-got; text != "before, during" {
			t.Errorf("got %q", text)
		}
	})
}
