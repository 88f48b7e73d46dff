package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// network is a fake: what was dialled when, and who is connected.
type network struct {
	mu        sync.Mutex
	up        map[peer.ID]bool // answers when dialled
	connected map[peer.ID]bool
	dials     map[peer.ID][]time.Time
	now, most int           // dials under way, and at most
	slow      time.Duration // how long a dial takes
}

func start(t *testing.T, self peer.ID) (*Connector, *network, *lifecycle.Group) {
	n := &network{up: map[peer.ID]bool{}, connected: map[peer.ID]bool{}, dials: map[peer.ID][]time.Time{}}
	g := lifecycle.NewGroup(t.Context())
	c := New(g, Config{
		Self: self, Log: slog.New(slog.DiscardHandler),
		Connected: func(id peer.ID) bool { n.mu.Lock(); defer n.mu.Unlock(); return n.connected[id] },
		Dial:      n.dial,
	})
	return c, n, g
}

func (n *network) dial(ctx context.Context, ai peer.AddrInfo) error {
	n.mu.Lock()
	n.dials[ai.ID] = append(n.dials[ai.ID], time.Now())
	n.now++
	n.most = max(n.most, n.now)
	slow := n.slow
	n.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now--
	if !n.up[ai.ID] {
		return errors.New("nobody there")
	}
	n.connected[ai.ID] = true
	return nil
}

func (n *network) set(id peer.ID, up, connected bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[id], n.connected[id] = up, connected
}

func (n *network) times(id peer.ID) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials[id])
}

func (n *network) count(id peer.ID) int { return len(n.times(id)) }

func info(id peer.ID, port int) peer.AddrInfo {
	return peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}}
}

// Two peers that discover each other at once: the lower ID dials at once, the
// higher one gives it 1 to 2 seconds (pitfalls 13 and 14).
func TestPitfall13TheLowerIDDialsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low, lowNet, g1 := start(t, "a")
		high, highNet, g2 := start(t, "b")
		began := time.Now()
		low.Found(info("b", 1), "test")
		high.Found(info("a", 1), "test")
		synctest.Wait()
		if lowNet.count("b") != 1 || highNet.count("a") != 0 {
			t.Errorf("at once %d and %d dials, want 1 and 0", lowNet.count("b"), highNet.count("a"))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if d := highNet.times("a")[0].Sub(began); d < time.Second || d > 2*time.Second {
			t.Errorf("the higher ID dialled after %v", d)
		}
		g1.Close()
		g2.Close()
	})
}

func TestRetriesWithBackoffUntilConnectedAndAgainWhenLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "a")
		c.Found(info("b", 1), "test")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		dials := n.times("b")
		step := time.Second
		for i := 1; i < len(dials); i++ {
			if d := dials[i].Sub(dials[i-1]); d < step/2 || d > step {
				t.Errorf("retry %d after %v, want %v to %v", i, d, step/2, step)
			}
			step = min(2*step, 30*time.Second)
		}
		n.set("b", true, false)
		time.Sleep(time.Minute)
		synctest.Wait()
		count := n.count("b")
		time.Sleep(time.Minute)
		synctest.Wait()
		if n.count("b") != count {
			t.Error("dialled a connected peer")
		}
		n.set("b", true, false)
		c.Lost("b")
		synctest.Wait()
		if n.count("b") != count+1 {
			t.Error("a lost peer was not dialled again at once")
		}
		g.Close()
	})
}

func TestForgetsWhomNobodyMentions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "a")
		c.Found(info("b", 1), "test")
		time.Sleep(forgetAfter + time.Minute)
		synctest.Wait()
		count := n.count("b")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n.count("b") != count {
			t.Error("still dialled after it should be forgotten")
		}
		c.Lost("b")
		synctest.Wait()
		if n.count("b") != count {
			t.Error("a forgotten peer came back by being lost")
		}
		c.Found(info("b", 1), "test")
		synctest.Wait()
		if n.count("b") != count+1 {
			t.Error("a forgotten peer that is found again is not dialled")
		}
		g.Close()
	})
}

func TestOneDialAPeerAndNotTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "\x00")
		n.slow = 10 * time.Second
		var wg sync.WaitGroup
		for i := range 50 {
			id := peer.ID(fmt.Sprintf("peer%02d", i))
			for range 3 {
				wg.Go(func() { c.Found(info(id, 1+i), "test") })
			}
		}
		wg.Wait()
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.most != maxDials {
			t.Errorf("%d dials at once, want %d", n.most, maxDials)
		}
		for id, dials := range n.dials {
			if len(dials) != 1 {
				t.Errorf("%d dials of %s at once", len(dials), id)
			}
		}
		go g.Close() // after the lock is free; the bubble waits for it
	})
}

func TestBoundsWhatItKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, g := start(t, "\x00")
		for i := range maxPeers + 10 {
			c.Found(info(peer.ID(fmt.Sprintf("peer%04d", i)), 1), "test")
		}
		for i := range maxAddrs + 10 {
			c.Found(info("peer0000", 1000+i), "test")
		}
		c.mu.Lock()
		if len(c.peers) != maxPeers || c.full != 10 {
			t.Errorf("%d peers kept, %d turned away", len(c.peers), c.full)
		}
		kept := c.peers["peer0000"].info.Addrs
		if len(kept) != maxAddrs || kept[0].String() != fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1000+maxAddrs+9) {
			t.Errorf("%d addresses kept, the first %s", len(kept), kept[0])
		}
		c.mu.Unlock()
		g.Close()
	})
}

func TestMakesRoomForNewPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "\x00")
		for i := range maxPeers {
			id := peer.ID(fmt.Sprintf("peer%04d", i))
			n.set(id, true, true)
			c.Found(info(id, 1), "test")
		}
		c.Found(info("newcomer", 1), "test")
		synctest.Wait()
		if n.count("newcomer") != 1 {
			t.Error("a newcomer was turned away although connected peers could be forgotten")
		}
		g.Close()
	})
}

func TestIgnoresItselfAndPeersWithoutAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "a")
		c.Found(info("a", 1), "test")
		c.Found(peer.AddrInfo{ID: "b"}, "test")
		c.Lost("c")
		synctest.Wait()
		if n.count("a")+n.count("b")+n.count("c") != 0 {
			t.Error("dialled somebody")
		}
		g.Close()
		c.Found(info("b", 1), "test") // after the end: nothing, and no panic
	})
}

// A peer that hangs up a few seconds after each connection is not dialled each
// time at once, and is when it was connected for long.
func TestPeerThatHangsUpIsDialledWithDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n, g := start(t, "a")
		defer g.Close()
		n.set("b", true, false)
		c.Found(info("b", 1), "test")
		for range 600 / 5 {
			time.Sleep(5 * time.Second)
			synctest.Wait()
			c.Found(info("b", 1), "test")
			n.set("b", true, false)
			c.Lost("b")
		}
		if d := n.count("b"); d < 10 || d > 60 {
			t.Errorf("%d dials in 10 minutes", d)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		c.Found(info("b", 1), "test")
		before := n.count("b")
		n.set("b", true, false)
		c.Lost("b")
		synctest.Wait()
		if d := n.count("b") - before; d != 1 {
			t.Errorf("%d dials right after the loss of an old connection", d)
		}
	})
}
