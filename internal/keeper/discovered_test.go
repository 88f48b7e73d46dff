package keeper

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// discovering returns a keeper of a node that knows no peers.
func discovering(t *testing.T, self peer.ID, change ...func(*Config)) (*Keeper, *fakeNet) {
	f := newNet()
	cfg := f.config()
	cfg.Self = self
	for _, c := range change {
		c(&cfg)
	}
	k := New(t.Context(), cfg)
	k.Start()
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k, f
}

func info(id peer.ID, port int) peer.AddrInfo {
	return peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}}
}

// Of two peers that discover each other at the same time, the lower ID dials
// immediately, the higher one after 1 to 2 seconds (pitfalls 13 and 14).
func TestPitfall13TheLowerIDDialsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low, lowNet := discovering(t, "a")
		high, highNet := discovering(t, "b")
		began := time.Now()
		low.Found(info("b", 1), "test")
		high.Found(info("a", 1), "test")
		synctest.Wait()
		if len(lowNet.timesOf("b")) != 1 || len(highNet.timesOf("a")) != 0 {
			t.Errorf("at once %d and %d dials, want 1 and 0", len(lowNet.timesOf("b")), len(highNet.timesOf("a")))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if d := highNet.timesOf("a")[0].Sub(began); d < time.Second || d > 2*time.Second {
			t.Errorf("the higher ID dialed after %v", d)
		}
	})
}

func TestRetriesWithBackoffUntilConnectedAndAgainWhenLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "a")
		k.Found(info("b", 1), "test")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		dials := n.timesOf("b")
		step := time.Second
		for i := 1; i < len(dials); i++ {
			if d := dials[i].Sub(dials[i-1]); d < step/2 || d > step {
				t.Errorf("retry %d after %v, want %v to %v", i, d, step/2, step)
			}
			step = min(2*step, 30*time.Second)
		}
		n.raise("b")
		time.Sleep(time.Minute)
		synctest.Wait()
		count := len(n.timesOf("b"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(n.timesOf("b")) != count {
			t.Error("dialed a connected peer")
		}
		n.set("b", false)
		synctest.Wait()
		if len(n.timesOf("b")) != count+1 {
			t.Error("a lost peer was not dialed again at once")
		}
	})
}

func TestForgetsWhomNobodyMentions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "a")
		k.Found(info("b", 1), "test")
		time.Sleep(policies[Discovered].forget + time.Minute)
		synctest.Wait()
		count := len(n.timesOf("b"))
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(n.timesOf("b")) != count {
			t.Error("still dialed after it should be forgotten")
		}
		n.set("b", true)
		synctest.Wait()
		n.set("b", false)
		synctest.Wait()
		if len(n.timesOf("b")) != count {
			t.Error("a forgotten peer came back by being lost")
		}
		k.Found(info("b", 1), "test")
		synctest.Wait()
		if len(n.timesOf("b")) != count+1 {
			t.Error("a forgotten peer that is found again is not dialed")
		}
	})
}

func TestOneDialAPeerAndNotTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "\x00")
		n.slow = 10 * time.Second // nobody is there
		var wg sync.WaitGroup
		for i := range 50 {
			id := peer.ID(fmt.Sprintf("peer%02d", i))
			for range 3 {
				wg.Go(func() { k.Found(info(id, 1+i), "test") })
			}
		}
		wg.Wait()
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.most != policies[Discovered].atOnce {
			t.Errorf("%d dials at once, want %d", n.most, policies[Discovered].atOnce)
		}
		seen := map[peer.ID]bool{}
		for _, id := range n.to {
			if seen[id] {
				t.Errorf("two dials of %s at once", id)
			}
			seen[id] = true
		}
	})
}

func TestBoundsWhatItKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := discovering(t, "\x00")
		for i := range maxDiscovered + 10 {
			k.Found(info(peer.ID(fmt.Sprintf("peer%04d", i)), 1), "test")
		}
		const last = "peer0521"
		for i := range maxAddrs + 10 {
			k.Found(info(last, 1000+i), "test")
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		count := 0
		for _, e := range k.peers {
			if e.duties[Discovered].on {
				count++
			}
		}
		if count != maxDiscovered || k.ignored != 10 {
			t.Errorf("%d peers kept, %d forgotten", count, k.ignored)
		}
		kept := k.peers[last].duties[Discovered].addrs
		if len(kept) != maxAddrs || kept[0].String() != fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1000+maxAddrs+9) {
			t.Errorf("%d addresses kept, the first %s", len(kept), kept[0])
		}
	})
}

// A peer that is announced among any number of peers that do not exist is dialed.
func TestAttackMadeUpPeersShutNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "\x00")
		n.slow = firstDial // nobody is there
		for i := range 3 * maxDiscovered {
			k.Found(info(peer.ID(fmt.Sprintf("peer%04d", i)), 1), "test")
		}
		k.Found(info("honest", 1), "test")
		begun := time.Now()
		time.Sleep(maxDiscovered / time.Duration(policies[Discovered].atOnce) * firstDial)
		synctest.Wait()
		if len(n.timesOf("honest")) == 0 {
			t.Errorf("it is not dialed within %v", time.Since(begun))
		}
	})
}

// New and Forgotten tell which discovered peers are remembered, and Forgotten comes last.
func TestTellsWhomItRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remembered := map[peer.ID]bool{} // guarded by the keeper's lock
		k, n := discovering(t, "\x00", func(c *Config) {
			c.New = func(ai peer.AddrInfo, source string) {
				if remembered[ai.ID] || source != "test" {
					t.Errorf("%s by %s is new again", ai.ID, source)
				}
				remembered[ai.ID] = true
			}
			c.Forgotten = func(id peer.ID) {
				if !remembered[id] {
					t.Errorf("%s is forgotten, and was not known", id)
				}
				delete(remembered, id)
			}
		})
		n.slow = firstDial // nobody is there
		var wg sync.WaitGroup
		for half := range 2 {
			wg.Go(func() {
				for i := range 2 * maxDiscovered {
					k.Found(info(peer.ID(fmt.Sprintf("peer%d%04d", half, i)), 1), "test")
					if i%100 == 0 {
						time.Sleep(firstDial) // some have failed, and make room
					}
				}
			})
		}
		wg.Wait()
		check := func(what string, want int) {
			k.mu.Lock()
			defer k.mu.Unlock()
			count := 0
			for id, e := range k.peers {
				if e.duties[Discovered].on != remembered[id] {
					t.Errorf("%s: %s is remembered: %v", what, id, !remembered[id])
				}
				if e.duties[Discovered].on {
					count++
				}
			}
			if count != want || len(remembered) != want {
				t.Errorf("%s: %d are remembered, told are %d, want %d", what, count, len(remembered), want)
			}
		}
		check("full", maxDiscovered)
		time.Sleep(2 * policies[Discovered].forget)
		synctest.Wait()
		check("not heard of", 0)
	})
}

func TestMakesRoomForNewPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "\x00")
		for i := range maxDiscovered {
			id := peer.ID(fmt.Sprintf("peer%04d", i))
			n.set(id, true)
			k.Found(info(id, 1), "test")
		}
		k.Found(info("newcomer", 1), "test")
		synctest.Wait()
		if len(n.timesOf("newcomer")) != 1 {
			t.Error("a newcomer was turned away although connected peers could be forgotten")
		}
	})
}

func TestIgnoresItselfAndPeersWithoutAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "a")
		k.Found(info("a", 1), "test")
		k.Found(peer.AddrInfo{ID: "b"}, "test")
		n.set("c", true)
		n.set("c", false)
		synctest.Wait()
		if len(n.timesOf("a"))+len(n.timesOf("b"))+len(n.timesOf("c")) != 0 {
			t.Error("dialed somebody")
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		k.Found(info("b", 1), "test") // after the end: nothing, and no panic
	})
}

// A peer that closes each connection after a few seconds is redialed with delays,
// and immediately after a long connection.
func TestPeerThatHangsUpIsDialedWithDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, n := discovering(t, "a")
		n.raise("b")
		k.Found(info("b", 1), "test")
		for range 600 / 5 {
			time.Sleep(5 * time.Second)
			synctest.Wait()
			k.Found(info("b", 1), "test")
			n.set("b", false)
		}
		if d := len(n.timesOf("b")); d < 10 || d > 60 {
			t.Errorf("%d dials in 10 minutes", d)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		k.Found(info("b", 1), "test")
		before := len(n.timesOf("b"))
		n.set("b", false)
		synctest.Wait()
		if d := len(n.timesOf("b")) - before; d != 1 {
			t.Errorf("%d dials right after the loss of an old connection", d)
		}
	})
}
