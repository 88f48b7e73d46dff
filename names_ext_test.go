package p2pnode_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// ip is the IP address of a node on a simulated network.
func ipOf(sim *p2ptest.Network, n *p2ptest.Node) string { return sim.Addr(n).String() }

// One name has several, changing hosts: those that answer are bootstrap peers, the
// node itself is left out, and hosts that have left are removed.
func TestBootstrapDNSTakesWhoeverAnswers(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		name := p2pnode.WithBootstrapDNS("/dns4/pods.test/udp/4001/quic-v1")
		n := sim.Node(t, name, p2pnode.WithMinPeers(3))
		time.Sleep(2 * time.Second)
		r := n.Status().Bootstrap
		if r == nil || len(r.Failed) != 1 || r.Failed[0].ID != "" || !strings.Contains(r.Failed[0].Err.Error(), "pods.test does not resolve") {
			t.Fatalf("before the name is known: %+v", r)
		}
		missing := missingStages(n.WaitReady(within(t, time.Second)))
		if len(missing) == 0 || !strings.Contains(missing[0].Why, "pods.test does not resolve") {
			t.Errorf("WaitReady: %v", missing)
		}
		found, err := n.Diagnose(t.Context())
		if err != nil || !slices.ContainsFunc(found, func(f p2pnode.Finding) bool {
			return f.Kind == p2pnode.FindingNoBootstrap && strings.Contains(f.What, "WithBootstrapDNS")
		}) {
			t.Errorf("Diagnose: %v, %v", found, err)
		}
		a, b := sim.Node(t), sim.Node(t)
		sim.SetDNS("pods.test", ipOf(sim, a), ipOf(sim, b), ipOf(sim, n), "192.0.2.1")
		time.Sleep(10 * time.Second)
		if !linked(n, a) || !linked(n, b) {
			t.Fatalf("connected to %v", n.Peers())
		}
		// One pod is replaced by another.
		c := sim.Node(t)
		sim.SetDNS("pods.test", ipOf(sim, b), ipOf(sim, c))
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(20 * time.Second)
		if !linked(n, c) {
			t.Errorf("the new host was not found: connected to %v", n.Peers())
		}
		if err := n.RemoveBootstrapPeers(a.ID()); err == nil {
			t.Error("the host that is gone is still a bootstrap peer")
		}
	})
}

func linked(n, to *p2ptest.Node) bool {
	return slices.ContainsFunc(n.Peers(), func(p p2pnode.Peer) bool { return p.ID == to.ID() })
}

// Only those are taken that the node may deal with.
func TestBootstrapDNSAsksTheAllowList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a, b := sim.Node(t), sim.Node(t)
		sim.SetDNS("pods.test", ipOf(sim, a), ipOf(sim, b))
		n := sim.Node(t, p2pnode.WithBootstrapDNS("/dns/pods.test/udp/4001/quic-v1"), p2pnode.WithAllowedPeers(a.ID()), p2pnode.WithMinPeers(2))
		time.Sleep(5 * time.Second)
		if !linked(n, a) || linked(n, b) {
			t.Errorf("connected to %v", n.Peers())
		}
		if r := n.Status().Bootstrap; r == nil || !slices.ContainsFunc(r.Failed, func(f p2pnode.DialFailure) bool { return strings.Contains(f.Err.Error(), "WithAllowedPeers") }) {
			t.Errorf("the round is %+v", r)
		}
	})
}

// Every transport returns the ID of the peer that answers, also with the key of a
// private network.
func TestBootstrapDNSOnEveryTransport(t *testing.T) {
	t.Parallel()
	key := p2pnode.WithPrivateNetwork(bytes.Repeat([]byte{1}, 32))
	for _, row := range []struct {
		listen string
		opts   []p2pnode.Option
	}{
		{"/ip4/127.0.0.1/tcp/0", nil},
		{"/ip4/127.0.0.1/tcp/0", []p2pnode.Option{p2pnode.WithSecurity(p2pnode.SecurityNoise)}},
		{"/ip4/127.0.0.1/tcp/0", []p2pnode.Option{key}},
		{"/ip4/127.0.0.1/tcp/0/ws", nil},
		{"/ip4/127.0.0.1/udp/0/quic-v1", nil},
	} {
		if testing.Short() && row.opts == nil && row.listen != "/ip4/127.0.0.1/tcp/0" {
			continue
		}
		boot, err := p2pnode.New(t.Context(), append(row.opts, p2pnode.WithListenAddrs(row.listen))...)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Replace(boot.Status().ListenAddrs[0].String(), "/ip4/127.0.0.1", "/dns4/localhost", 1)
		n, err := p2pnode.New(t.Context(), append(row.opts, p2pnode.WithoutListening(), p2pnode.WithBootstrapDNS(at))...)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.WaitReady(within(t, 30*time.Second)); err != nil {
			t.Errorf("%s: %v", at, err)
		} else if p := n.Peers(); len(p) != 1 || p[0].ID != boot.ID() {
			t.Errorf("%s: connected to %v", at, p)
		}
		if err := errors.Join(n.Close(), boot.Close()); err != nil {
			t.Error(err)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
