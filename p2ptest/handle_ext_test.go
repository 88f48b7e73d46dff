package p2ptest_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// A handle has all methods of its node.
func TestNodeHasEveryMethodOfTheLibrarys(t *testing.T) {
	theirs, ours := reflect.TypeFor[*p2pnode.Node](), reflect.TypeFor[*p2ptest.Node]()
	for i := range theirs.NumMethod() {
		want := theirs.Method(i)
		got, ok := ours.MethodByName(want.Name)
		if !ok {
			t.Errorf("%s is missing; run go generate ./p2ptest", want.Name)
			continue
		}
		signature := func(m reflect.Method) (list []reflect.Type) {
			for i := 1; i < m.Type.NumIn(); i++ {
				list = append(list, m.Type.In(i))
			}
			return append(append(list, nil), slices.Collect(m.Type.Outs())...)
		}
		if !slices.Equal(signature(got), signature(want)) {
			t.Errorf("%s is %v, want %v; run go generate ./p2ptest", want.Name, got.Type, want.Type)
		}
	}
}

func TestOneSelectorForEverybody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 4)
		raw := sim.Raw(t, p2ptest.RawConnect(nodes[0].AddrInfo()))
		hostile := sim.Hostile(t, p2ptest.RawConnect(nodes[0].AddrInfo()))
		sim.Ready()
		sim.Connected(nodes[0], p2ptest.All())
		sim.RoutingTable(p2ptest.Peers(nodes[1:], raw), 4)

		sim.Partition(nodes[:1], p2ptest.Peers(nodes[1:], raw, hostile, raw))
		sim.Disconnected(nodes[0], p2ptest.Peers(p2ptest.All(), nodes[0]))
		sim.Heal()
		sim.Isolate(hostile, p2ptest.IDs(raw.ID(), hostile.ID()))
		sim.Disconnected(p2ptest.Peers(raw, hostile), nodes)
		sim.Heal()

		// Only nodes of the library, and all of them.
		sim.Crash(p2ptest.All())
		for _, n := range nodes {
			if !n.Status().Closed {
				t.Errorf("%s runs", n)
			}
		}
		sim.Restart(p2ptest.All())
		sim.Ready()
	})
}

func TestRestartLosesDataAndMoves(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		dir := t.TempDir()
		a := sim.Node(t, p2pnode.WithDataDir(dir))
		b := sim.Node(t, via(a))
		sim.Ready()
		c := cidOf(t, "kept by a")
		mustNot(t, b.Provide(t.Context(), c))
		sim.Provided(c)
		sim.SetLink(a, p2ptest.Link{Latency: 30 * time.Millisecond})
		id, addr := a.ID(), sim.Addr(a)
		b.Close() // it would announce the content again

		sim.Restart(a, p2ptest.LoseData())
		held := func() bool {
			for p, err := range a.FindProviders(t.Context(), c) {
				if err == nil && p.ID == b.ID() {
					return true
				}
			}
			return false
		}
		if a.ID() != id || sim.Addr(a) != addr || held() {
			t.Errorf("it is %s at %s after losing its data, and was %s at %s; provider record: %v", a.ID(), sim.Addr(a), id, addr, held())
		}

		before := sim.AddrInfo(a)
		sim.Isolate(a)
		sim.Restart(a, p2ptest.NewAddress())
		sim.Heal() // of its former address
		if a.ID() != id || sim.Addr(a) == addr {
			t.Errorf("it is %s at %s after its move, and was %s at %s", a.ID(), sim.Addr(a), id, addr)
		}
		d := sim.Node(t)
		mustNot(t, d.Connect(t.Context(), a.AddrInfo()))
		if rtt, err := d.Ping(t.Context(), id); err != nil || rtt != 110*time.Millisecond {
			t.Errorf("ping %v, %v: the link did not move along", rtt, err)
		}
		stale := sim.Node(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := stale.Connect(ctx, before); err == nil {
			t.Error("somebody answers at the old address")
		}
	})
}

func TestCrashIsSilent(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Meshed("news")
		gone, left := nodes[2], nodes[:2]
		mustNot(t, gone.Publish(t.Context(), "news", []byte("last words")))
		sim.Crash(gone)
		crashed := time.Now()
		if _, err := gone.Subscribe(t.Context(), "news"); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("subscribing on a crashed node: %v", err)
		}
		time.Sleep(14 * time.Second)
		sim.Within(time.Nanosecond).Connected(left[0], left[1])
		for i, n := range left {
			if _, ok := peerOf(n, gone.ID()); !ok {
				t.Errorf("node %d knows of the crash after %v", i, time.Since(crashed))
			}
			if got := p2ptest.Take(subs[i]); len(got) > 0 {
				t.Errorf("node %d got what was under way: %q", i, got[0].Data)
			}
		}
		sim.Disconnected(gone, left)
		if took := time.Since(crashed); took < 14*time.Second || took > 46*time.Second { // an unanswered keep-alive prolongs it
			t.Errorf("the crash shows after %v", took)
		}
	})
}

// peerOf returns a node's entry for a connected peer.
func peerOf(n *p2ptest.Node, id peer.ID) (p2pnode.Peer, bool) {
	list := n.Peers()
	i := slices.IndexFunc(list, func(p p2pnode.Peer) bool { return p.ID == id })
	if i < 0 {
		return p2pnode.Peer{}, false
	}
	return list[i], true
}

func TestOneWayPaths(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		nodes := sim.Nodes(t, 2, p2ptest.Use(p2pnode.WithoutDHT()))
		a, b := nodes[0], nodes[1]
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Meshed("news")
		p := sim.Path(a, b)
		p.Latency += 300 * time.Millisecond
		sim.SetOneWay(a, p2ptest.All(), p)
		if took := publish(t, sim, a, "news", "there", subs); took != 325*time.Millisecond {
			t.Errorf("there in %v", took)
		}
		if took := publish(t, sim, b, "news", "back", subs); took != 25*time.Millisecond {
			t.Errorf("back in %v", took)
		}
		begun := time.Now()
		sim.SetOneWay(b, a, p2ptest.Path{Loss: 1})
		sim.Disconnected(a, b)
		if took := time.Since(begun); took < 15*time.Second || took > 91*time.Second {
			t.Errorf("a direction that loses everything shows after %v", took)
		}
		sim.SetOneWay(b, a, p2ptest.Path{})
		sim.Connected(a, b)
	})
}

func TestSeveralNodesAtOneAddress(t *testing.T) {
	t.Parallel()
	bothTransports(t, func(t *testing.T, opts ...p2ptest.Option) {
		sim := p2ptest.NewNetwork(t, opts...)
		machine := sim.Machine()
		a, b := machine.Node(t), machine.Node(t)
		c := sim.Node(t, via(a), via(b))
		sim.Connected(c, p2ptest.Peers(a, b))
		sim.Ready()
		if sim.Addr(a) != sim.Addr(b) || a.Addrs()[0].Equal(b.Addrs()[0]) {
			t.Fatalf("the nodes are at %v and %v", a.Addrs(), b.Addrs())
		}
		mustNot(t, a.Connect(t.Context(), b.AddrInfo()))
		if rtt, err := a.Ping(t.Context(), b.ID()); err != nil || rtt > time.Millisecond {
			t.Errorf("ping on one machine: %v, %v", rtt, err)
		}
		sim.Crash(a)
		if rtt, err := c.Ping(t.Context(), b.ID()); err != nil || rtt != 50*time.Millisecond {
			t.Errorf("the other node of the machine: %v, %v", rtt, err)
		}
		sim.Restart(a)
		sim.Connected(c, a)
		sim.Restart(a, p2ptest.NewAddress())
		if sim.Addr(a) == sim.Addr(b) {
			t.Error("it is on the machine still")
		}
		mustNot(t, a.Connect(t.Context(), c.AddrInfo()))
	})
}

func TestFoundWaitsUntilASearchFinds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 6)
		sim.Ready()
		sim.RoutingTable(nodes, 4)
		c := cidOf(t, "later")
		begun := time.Now()
		provided := make(chan error, 1)
		time.AfterFunc(30*time.Second, func() { provided <- nodes[3].Provide(t.Context(), c) })
		sim.Found(p2ptest.Peers(nodes[:3], nodes[4:]), c, nodes[3])
		sim.Found(nodes[0], c)
		if took := time.Since(begun); took < 30*time.Second || took > 40*time.Second {
			t.Errorf("found after %v, provided after 30s", took)
		}
		mustNot(t, <-provided) // it may still be sending its last copies
	})
}

func TestTakeReturnsWhatIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 2)
		sim.Ready()
		sub := subscribeAll(t, "news", nodes)[1]
		sim.Meshed("news")
		if got := p2ptest.Take(sub); got != nil {
			t.Errorf("took %d messages before there were any", len(got))
		}
		for _, text := range []string{"one", "two", "three"} {
			mustNot(t, nodes[0].Publish(t.Context(), "news", []byte(text)))
		}
		time.Sleep(time.Second)
		begun := time.Now()
		var got []string
		for _, m := range p2ptest.Take(sub) {
			got = append(got, string(m.Data))
		}
		slices.Sort(got)
		if !slices.Equal(got, []string{"one", "three", "two"}) || time.Since(begun) != 0 || p2ptest.Take(sub) != nil {
			t.Errorf("took %q in %v", got, time.Since(begun))
		}
	})
}
