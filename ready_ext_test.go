package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// missingStages are those that an error of WaitReady names.
func missingStages(err error) []p2pnode.MissingStage {
	e, ok := errors.AsType[*p2pnode.NotReadyError](err)
	if !ok {
		return nil
	}
	return e.Missing
}

// notReady waits for stages in vain, and checks that those are missing.
func notReady(t *testing.T, n interface {
	WaitReady(ctx context.Context, stages ...p2pnode.Stage) error
}, stages []p2pnode.Stage, want ...p2pnode.Stage) []p2pnode.MissingStage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := n.WaitReady(ctx, stages...)
	if !errors.Is(err, p2pnode.ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waiting for %q: %v", stages, err)
	}
	var got []p2pnode.Stage
	missing := missingStages(err)
	for _, m := range missing {
		got = append(got, m.Stage)
		if m.Why == "" || !strings.Contains(err.Error(), m.Why) {
			t.Errorf("%s is missing for %q, in: %v", m.Stage, m.Why, err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q are missing, want %q: %v", got, want, err)
	}
	return missing
}

func TestWaitReadySaysWhatIsMissingInEachStage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t)
		news := p2pnode.StageTopic("news")
		missing := notReady(t, n,
			[]p2pnode.Stage{p2pnode.StageListening, p2pnode.StageConnected, p2pnode.StageRouting, news, p2pnode.StageReachable},
			p2pnode.StageConnected, p2pnode.StageRouting, news, p2pnode.StageReachable)
		for i, option := range []string{"WithBootstrapPeers", "WithMDNS", "Subscribe", "WithAutoRelay"} {
			if !strings.Contains(missing[i].Why, option) {
				t.Errorf("%s: %q does not name %s", missing[i].Stage, missing[i].Why, option)
			}
		}

		// Each stage ends the wait when it comes.
		other := sim.Node(t)
		if _, err := n.Subscribe(t.Context(), "news"); err != nil {
			t.Fatal(err)
		}
		notReady(t, n, []p2pnode.Stage{news}, news)
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
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayService())
		known := sim.Node(t, p2pnode.WithReachability(network.ReachabilityPublic))
		behind := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for _, n := range []*p2ptest.Node{known, behind} {
			if err := n.WaitReady(ctx, p2pnode.StageReachable); err != nil {
				t.Error(err)
			}
		}
		alone := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(sim.AddrInfo(known)))
		reachable := p2pnode.StageReachable
		if m := notReady(t, alone, []p2pnode.Stage{reachable}, reachable); !strings.Contains(m[0].Why, known.ID().String()) {
			t.Errorf("%q does not name the relay", m[0].Why)
		}
	})
}

func TestWaitReadyForWhatCannotCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t, p2pnode.WithoutDHT(), p2pnode.WithoutPubSub(), p2pnode.WithoutListening())
		for stage, option := range map[p2pnode.Stage]string{
			p2pnode.StageListening: "WithoutListening", p2pnode.StageRouting: "WithoutDHT", p2pnode.StageTopic("x"): "WithoutPubSub",
		} {
			if err := n.WaitReady(t.Context(), stage); !errors.Is(err, p2pnode.ErrDisabled) || !strings.Contains(err.Error(), option) {
				t.Errorf("%s: %v", stage, err)
			}
		}
		for _, stage := range []p2pnode.Stage{"", "soon", p2pnode.StageTopic("")} {
			if err := n.WaitReady(t.Context(), stage); err == nil || errors.Is(err, p2pnode.ErrDisabled) || !strings.Contains(err.Error(), "StageTopic") {
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
