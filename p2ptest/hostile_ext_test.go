package p2ptest_test

import (
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// attack runs an attack on one of three nodes, and checks that they keep serving
// each other.
func attack(t *testing.T, f func(t *testing.T, sim *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node)) {
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		victim := nodes[0]
		h := sim.Hostile(t, p2ptest.RawConnect(victim.AddrInfo()))
		sim.Connected(victim, h)
		f(t, sim, h, victim)

		subs := subscribeAll(t, "after", nodes)
		sim.Subscribed("after", nodes)
		sim.Meshed("after")
		if took := publish(t, sim, nodes[1], "after", "all is well", subs); took > time.Second {
			t.Errorf("a message took %v", took)
		}
		c := cidOf(t, "after")
		mustNot(t, nodes[2].Provide(t.Context(), c))
		if !finds(nodes[1], c, nodes[2].ID()) {
			t.Error("content is not found any more")
		}
	})
}

func TestFloodOfValidMessagesIsDeliveredOrCounted(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	attack(t, func(t *testing.T, sim *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node) {
		sub, err := victim.Subscribe(t.Context(), "news", p2pnode.SubscribeBuffer(64))
		mustNot(t, err)
		mustNot(t, h.FloodPublish(t.Context(), victim.AddrInfo(), "news", 2000, 100))
		time.Sleep(10 * time.Second)
		got := len(p2ptest.Take(sub))
		if got != 64 || sub.Dropped() == 0 {
			t.Errorf("%d messages wait for a reader with a buffer of 64, %d are counted as dropped", got, sub.Dropped())
		}
	})
}

func TestMessagesWithInvalidSignaturesAreNotDelivered(t *testing.T) {
	attack(t, func(t *testing.T, sim *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node) {
		sub := subscribeAll(t, "news", p2ptest.Nodes{victim})[0]
		mustNot(t, h.InvalidSignatures(t.Context(), victim.AddrInfo(), "news", 50))
		time.Sleep(10 * time.Second)
		for _, m := range p2ptest.Take(sub) {
			t.Errorf("%q of %s is delivered", m.Data, m.Author)
		}
		// The same with valid signatures is.
		mustNot(t, h.FloodPublish(t.Context(), victim.AddrInfo(), "news", 1, 10))
		sim.Delivered(sub, 1)
	})
}

func TestMalformedRPCsDoNoHarm(t *testing.T) {
	attack(t, func(t *testing.T, _ *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node) {
		subscribeAll(t, "news", p2ptest.Nodes{victim})
		mustNot(t, h.MalformedRPC(t.Context(), victim.AddrInfo(), 50))
		time.Sleep(10 * time.Second)
	})
}

func TestProviderRecordsInTheNameOfOthersAreRefused(t *testing.T) {
	needs.Time(t)
	attack(t, func(t *testing.T, sim *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node) {
		bystander := sim.Node(t, via(victim))
		cids, err := h.ProviderSpam(t.Context(), victim.AddrInfo(), 200, bystander.ID())
		mustNot(t, err)
		time.Sleep(10 * time.Second)
		for i, c := range cids {
			if !finds(victim, c, h.ID()) {
				t.Fatalf("the sender's own record %d is not kept: the rest of the test shows nothing", i)
			}
			if i < 20 && finds(victim, c, bystander.ID()) {
				t.Fatalf("record %d in the name of another peer is kept", i)
			}
		}
	})
}

func TestHalfOpenStreamsEnd(t *testing.T) {
	attack(t, func(t *testing.T, _ *p2ptest.Network, h *p2ptest.Hostile, victim *p2ptest.Node) {
		streams := func() (n int) {
			for _, c := range victim.Host().Network().ConnsToPeer(h.ID()) {
				for _, s := range c.GetStreams() {
					if s.Protocol() == "/p2pnode/kad/1.0.0" {
						n++
					}
				}
			}
			return n
		}
		mustNot(t, h.HalfOpen(t.Context(), victim.AddrInfo(), "/p2pnode/kad/1.0.0", 50))
		time.Sleep(time.Second)
		if got := streams(); got < 50 {
			t.Fatalf("%d streams are open, want 50: the test shows nothing", got)
		}
		time.Sleep(2 * time.Minute) // the DHT resets a stream after an idle minute
		if got := streams(); got != 0 {
			t.Errorf("%d of 50 half-open streams are still open", got)
		}
	})
}
