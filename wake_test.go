package p2pnode

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// The clock of this test jumps as it does for a process that was stopped: a
// time.Time whose monotonic clock stood still cannot be made.
func TestClockJumpsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name       string
		look, want int // seconds between two looks; 1 for a jump
	}{
		{"as it should be", 10, 0}, {"a busy machine", 14, 0}, {"a stopped process", 60, 1}, {"a clock set back", -30, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var woke atomic.Int32
				var offset atomic.Int64
				go watchClock(ctx, func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }, func() { woke.Add(1) })
				synctest.Wait()
				time.Sleep(clockInterval + time.Millisecond)
				offset.Store(int64(time.Duration(c.look)*time.Second - clockInterval))
				time.Sleep(clockInterval)
				synctest.Wait()
				if got := int(woke.Load()); got != c.want {
					t.Errorf("%d jumps are noticed, want %d", got, c.want)
				}
				cancel()
			})
		})
	}
}

func TestSleepShowsInTheDifferenceOfTheClocks(t *testing.T) {
	for _, c := range []struct {
		name            string
		wall, monotonic time.Duration
		want            bool
	}{
		{"awake", clockInterval, clockInterval, false},
		{"busy", clockInterval + 10*time.Second, clockInterval + 10*time.Second, false},
		{"an hour, monotonic clock stopped", time.Hour, clockInterval, true},
		{"an hour, monotonic clock running", time.Hour, time.Hour, true},
		{"the clock was put right by a second", clockInterval + time.Second, clockInterval, false},
		{"the clock was set back", -time.Hour, clockInterval, false},
	} {
		if got := slept(c.wall, c.monotonic); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// simNode starts a node on a simulated machine.
func simNode(t *testing.T, net *simhost.Network, opts ...Option) (*Node, *simhost.Machine) {
	t.Helper()
	m := net.NewMachine()
	n, err := New(t.Context(), append([]Option{
		WithTransports(TransportQUIC), WithListenAddrs(m.ListenAddr()), WithLibp2pOptions(m.QUIC()...),
	}, opts...)...)
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, n) })
	return n, m
}

func simNet(t *testing.T) *simhost.Network {
	t.Helper()
	net := simhost.New(1, func(_, _ simhost.Site) time.Duration { return 25 * time.Millisecond })
	t.Cleanup(net.Close)
	return net
}

// A laptop that wakes in another network has connections that stand no longer,
// and would notice half a minute later.
func TestDeadConnectionsAreClosedAfterANetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := simNet(t)
		boot, _ := simNode(t, net)
		n, m := simNode(t, net, via(boot))
		ready(t, n)
		time.Sleep(checkGap + time.Second) // since the change at the start

		m.Down()
		began := time.Now()
		n.watch.moved.Notify()
		for len(n.Peers()) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(began); took > checkTimeout+100*time.Millisecond {
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

// A check closes nothing that stands.
func TestLivingConnectionsSurviveANetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := simNet(t)
		boot, _ := simNode(t, net)
		n, _ := simNode(t, net, via(boot))
		ready(t, n)
		conn := swarmOf(n).ConnsToPeer(boot.ID())[0]
		for range 3 {
			time.Sleep(checkGap + time.Second)
			n.watch.moved.Notify()
		}
		time.Sleep(checkTimeout + time.Second)
		if conn.IsClosed() {
			t.Error("a living connection was closed")
		}
	})
}

// What was provided and advertised is announced again to peers that are new,
// after a time without any.
func TestProvidedAndAdvertisedAgainAfterATimeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := simNet(t)
		boot, bm := simNode(t, net)
		n, _ := simNode(t, net, via(boot))
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

		other, _ := simNode(t, net)
		mustNot(t, other.Connect(testContext(t), n.AddrInfo()))
		// A lookup that meets the dead peer waits 5 seconds for it.
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

func TestRecoveryIsToldOncePerTimeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var change signal.Signal
		var connected, table atomic.Bool
		var told atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go watchRecovery(ctx, &change, connected.Load, table.Load, func() { told.Add(1) })
		step := func(isConnected, hasTable bool, want int32) {
			t.Helper()
			connected.Store(isConnected)
			table.Store(hasTable)
			change.Notify()
			synctest.Wait()
			if got := told.Load(); got != want {
				t.Errorf("told %d times, want %d", got, want)
			}
		}
		synctest.Wait()
		step(true, false, 0)
		step(true, true, 1)
		step(true, false, 1)
		step(true, true, 1)
		step(false, false, 1)
		step(true, false, 1)
		step(true, true, 2)
	})
}
