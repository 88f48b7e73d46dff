package p2pnode_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

func TestStreamsBeyondTheLimitAreRefusedByName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT(), p2pnode.WithoutPubSub()))
		a := sim.Node(t)
		err := a.Handle("/hold", func(ctx context.Context, _ network.Stream) error {
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		n := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()), p2pnode.WithLimits(p2pnode.Limits{StreamsPerPeer: 16}))
		sim.Ready(n)
		time.Sleep(time.Minute) // identify and its kin are through
		opened := 0
		for range 30 {
			var s network.Stream
			if s, err = n.OpenStream(p2pnode.OpenNow(t.Context()), a.ID(), "/hold"); err != nil {
				break
			}
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			opened++
		}
		if err == nil || opened != 16 || !errors.Is(err, p2pnode.ErrLimit) || !errors.Is(err, network.ErrResourceLimitExceeded) || !strings.Contains(err.Error(), "WithLimits(Limits{StreamsPerPeer: …})") {
			t.Errorf("%d streams, then %v", opened, err)
		}
		if got := n.Status().Refused; got != (p2pnode.Refused{StreamsPerPeer: 1}) {
			t.Errorf("%v are counted as refused", got)
		}
	})
}

// shortDials makes a node give up after half a second on a peer that falls
// silent in the handshake, as one does that has another private key. Its own
// limit is 5 seconds.
var shortDials = p2pnode.WithLibp2pOptions(libp2p.SwarmOpts(swarm.WithDialTimeoutLocal(500 * time.Millisecond)))

// overTCP starts a node that listens on a TCP port of this machine.
func overTCP(t *testing.T, opts ...p2pnode.Option) *p2pnode.Node {
	t.Helper()
	return patient(t, append(opts, shortDials)...)
}

// patient starts a node over TCP that does not give up on a slow handshake.
func patient(t *testing.T, opts ...p2pnode.Option) *p2pnode.Node {
	t.Helper()
	n, err := p2pnode.New(t.Context(), append([]p2pnode.Option{p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestMemoryBeyondTheLimitIsRefusedByName: it is asked for deep inside the
// transport.
func TestMemoryBeyondTheLimitIsRefusedByName(t *testing.T) {
	start := func(opts ...p2pnode.Option) *p2pnode.Node {
		return overTCP(t, append(opts, p2pnode.WithTransports(p2pnode.TransportTCP), p2pnode.WithoutDHT(), p2pnode.WithoutPubSub())...)
	}
	a := start()
	err := a.Handle("/hold", func(ctx context.Context, _ network.Stream) error {
		<-ctx.Done()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := start(p2pnode.WithLimits(p2pnode.Limits{Memory: 16 << 20}))
	if err := n.Connect(t.Context(), a.AddrInfo()); err != nil {
		t.Fatal(err)
	}
	opened := 0
	for ; err == nil && opened < 200; opened++ {
		_, err = n.OpenStream(p2pnode.OpenNow(t.Context()), a.ID(), "/hold")
	}
	if opened < 10 || !errors.Is(err, p2pnode.ErrLimit) || !strings.Contains(err.Error(), "WithLimits(Limits{Memory: …})") {
		t.Errorf("%d streams, then %v", opened, err)
	}
	if n.Status().Refused.Memory == 0 {
		t.Error("it is not counted")
	}
}

func TestConnectionsBeyondTheLimitOfAnAddressAreRefusedByName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
		n := sim.Node(t, p2pnode.WithLimits(p2pnode.Limits{ConnsPerIP: 3}))
		nat := sim.NAT(p2ptest.FullCone) // one address for all behind it
		in := 0
		for range 5 {
			other := nat.Node(t)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if other.Connect(ctx, n.AddrInfo()) == nil {
				in++
			}
			cancel()
		}
		time.Sleep(time.Second)
		if got := len(n.Peers()); got != 3 || n.Status().Refused.ConnsPerIP < 2 {
			t.Errorf("%d of 5 peers behind one address are connected (%d thought so), %v refused", got, in, n.Status().Refused)
		}
	})
}

func TestNewConnectionsBeyondTheRateAreRefusedByName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithLatency(p2ptest.Fixed(time.Millisecond)),
			p2ptest.WithNodeOptions(p2pnode.WithoutDHT(), p2pnode.WithoutPubSub())) // gossipsub dials those who were just lost
		a, n := sim.Node(t), sim.Node(t)
		for i := range 100 {
			if err := n.Connect(t.Context(), a.AddrInfo()); err != nil {
				if i < 64 || !strings.Contains(err.Error(), "WithLimits(Limits{ConnRatePerIP: …})") {
					t.Errorf("connection %d: %v", i, err)
				}
				return
			}
			if err := n.Host().Network().ClosePeer(a.ID()); err != nil {
				t.Fatal(err)
			}
		}
		t.Error("100 connections within a second are not refused")
	})
}

func TestLimitBelowWhereTrimmingStarts(t *testing.T) {
	err := p2pnode.ValidateOptions(p2pnode.WithConnLimits(50, 100), p2pnode.WithLimits(p2pnode.Limits{Conns: 150}))
	var option *p2pnode.OptionError
	if !errors.As(err, &option) || option.Option != "WithLimits" || !strings.Contains(err.Error(), "WithConnLimits") {
		t.Errorf("%v", err)
	}
	if err := p2pnode.ValidateOptions(p2pnode.WithConnLimits(50, 100), p2pnode.WithLimits(p2pnode.Limits{Conns: 200})); err != nil {
		t.Error(err)
	}
}
