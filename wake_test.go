package p2pnode

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// simNode starts a node on a simulated machine.
func simNode(t *testing.T, sim *simhost.Network, opts ...Option) (*Node, *simhost.Machine) {
	t.Helper()
	m := sim.NewMachine()
	n, err := New(t.Context(), append([]Option{
		WithTransports(TransportQUIC), WithListenAddrs(m.ListenAddr()), WithLibp2pOptions(m.QUIC()...),
	}, opts...)...)
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, n) })
	return n, m
}

func simNet(t *testing.T) *simhost.Network {
	t.Helper()
	sim := simhost.New(1, func(_, _ simhost.Site) time.Duration { return 25 * time.Millisecond })
	t.Cleanup(sim.Close)
	return sim
}

// A laptop that wakes in another network has dead connections, and would notice
// only half a minute later.
func TestDeadConnectionsAreClosedAfterANetworkChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := simNet(t)
		boot, _ := simNode(t, sim)
		n, m := simNode(t, sim, via(boot))
		ready(t, n)
		time.Sleep(11 * time.Second) // since the change at the start

		m.Down()
		began := time.Now()
		n.watch.moved.Notify()
		for len(n.Peers()) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		// 5 seconds and six round trips, of 50 ms.
		if took := time.Since(began); took > 5*time.Second+400*time.Millisecond {
			t.Errorf("the dead connection is closed after %v", took)
		}
		m.Up()
		back := time.Now()
		ready(t, n)
		if took := time.Since(back); took > 2*time.Second {
			t.Errorf("connected again %v after the network was back", took)
		}
	})
}

// A check closes no live connection.
func TestLivingConnectionsSurviveANetworkChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := simNet(t)
		boot, _ := simNode(t, sim)
		n, _ := simNode(t, sim, via(boot))
		ready(t, n)
		conn := swarmOf(n).ConnsToPeer(boot.ID())[0]
		for range 3 {
			time.Sleep(11 * time.Second)
			n.watch.moved.Notify()
		}
		time.Sleep(6 * time.Second)
		if conn.IsClosed() {
			t.Error("a living connection was closed")
		}
	})
}

// What was provided and advertised is announced again to peers that are new,
// after a time without any.
func TestProvidedAndAdvertisedAgainAfterATimeAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := simNet(t)
		boot, bm := simNode(t, sim)
		n, _ := simNode(t, sim, via(boot))
		ready(t, n)
		c := mustCID(t, "kept")
		mustNot(t, n.Provide(testContext(t), c))
		mustNot(t, n.Advertise(t.Context(), "room"))

		// The only peer is replaced by another one that knows nothing.
		bm.Down()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(n.Peers()) > 0 {
			t.Fatal("the peer is still connected")
		}
		late := mustCID(t, "provided while alone")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := n.Provide(ctx, late); err == nil {
			t.Error("something was provided to nobody")
		}
		cancel()

		other, _ := simNode(t, sim)
		mustNot(t, other.Connect(testContext(t), n.AddrInfo()))
		// A lookup that queries the dead peer waits 5 seconds for it.
		time.Sleep(30 * time.Second)
		for what, key := range map[string][]byte{"kept": c.Hash(), "provided while alone": late.Hash(), "room": mustRendezvous(t, "room")} {
			found, err := other.dht.Tables()[0].ProviderStore().GetProviders(t.Context(), key)
			mustNot(t, err)
			if !containsPeer(found, n.ID()) {
				t.Errorf("%q is not announced to the new peer", what)
			}
		}
	})
}

func mustRendezvous(t *testing.T, namespace string) []byte {
	t.Helper()
	return kad.NamespaceCID(namespace).Hash()
}

func containsPeer(list []peer.AddrInfo, id peer.ID) bool {
	for _, ai := range list {
		if ai.ID == id {
			return true
		}
	}
	return false
}
