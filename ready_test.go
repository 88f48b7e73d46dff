package p2pnode_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// notReady waits for stages in vain and returns what is said.
func notReady(t *testing.T, n *p2pnode.Node, stages ...p2pnode.Stage) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := n.WaitReady(ctx, stages...)
	if !errors.Is(err, p2pnode.ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting for %q: %v", stages, err)
	}
	return err.Error()
}

func TestWaitReadySaysWhatIsMissingInEachStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		n := net.Node(t)
		text := notReady(t, n, p2pnode.StageListening, p2pnode.StageConnected, p2pnode.StageRouting,
			p2pnode.StageTopic("news"), p2pnode.StageReachable)
		for _, part := range []string{
			"connected: 0 of at least 1 peers", "routing: the routing table is empty", "WithBootstrapPeers",
			"topic news: the node has not joined it; call Subscribe", "reachable: reachability is Unknown", "WithAutoRelay",
		} {
			if !strings.Contains(text, part) {
				t.Errorf("%q is missing in: %s", part, text)
			}
		}
		if strings.Contains(text, "listening") {
			t.Errorf("listening is said to be missing: %s", text)
		}

		// Each stage ends the wait when it comes.
		other := net.Node(t)
		if _, err := n.Subscribe(t.Context(), "news"); err != nil {
			t.Fatal(err)
		}
		if text := notReady(t, n, p2pnode.StageTopic("news")); !strings.Contains(text, "nobody else is known to be subscribed") {
			t.Errorf("%s", text)
		}
		time.AfterFunc(time.Minute, func() {
			if err := n.Connect(context.Background(), other.AddrInfo()); err != nil {
				t.Error(err)
			}
		})
		time.AfterFunc(2*time.Minute, func() {
			if _, err := other.Subscribe(context.Background(), "news"); err != nil {
				t.Error(err)
			}
		})
		begun := time.Now()
		for _, c := range []struct {
			stage p2pnode.Stage
			least time.Duration
		}{
			{p2pnode.StageListening, 0}, {p2pnode.StageConnected, time.Minute}, {p2pnode.StageRouting, time.Minute},
			{p2pnode.StageTopic("news"), 2 * time.Minute},
		} {
			if err := n.WaitReady(t.Context(), c.stage); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took < c.least || took > c.least+2*time.Second {
				t.Errorf("%s after %v, want %v", c.stage, took, c.least)
			}
		}
	})
}

func TestWaitReadyForReachability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		relay := net.Node(t, p2pnode.WithRelayService())
		known := net.Node(t, p2pnode.WithReachability(network.ReachabilityPublic))
		behind := net.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for _, n := range []*p2pnode.Node{known, behind} {
			if err := n.WaitReady(ctx, p2pnode.StageReachable); err != nil {
				t.Error(err)
			}
		}
		alone := net.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(net.AddrInfo(known)))
		if text := notReady(t, alone, p2pnode.StageReachable); !strings.Contains(text, "reachability is Private; relay "+known.ID().String()+": it is no relay") {
			t.Errorf("%s", text)
		}
	})
}

func TestWaitReadyForWhatCannotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		n := net.Node(t, p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithoutListening())
		for stage, option := range map[p2pnode.Stage]string{
			p2pnode.StageListening: "WithoutListening", p2pnode.StageRouting: "WithoutDHT", p2pnode.StageTopic("x"): "WithoutPubSub",
		} {
			if err := n.WaitReady(t.Context(), stage); !errors.Is(err, p2pnode.ErrDisabled) || !strings.Contains(err.Error(), option) {
				t.Errorf("%s: %v", stage, err)
			}
		}
		for _, stage := range []p2pnode.Stage{"", "soon", p2pnode.StageTopic("")} {
			if err := n.WaitReady(t.Context(), stage); err == nil || !strings.Contains(err.Error(), "no stage") {
				t.Errorf("%q: %v", stage, err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitReady(t.Context(), p2pnode.StageConnected); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
