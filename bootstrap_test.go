package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func ma4(s string) ma.Multiaddr { return ma.StringCast(s) }

// fakeNet is what the bootstrap loop sees of the world.
type fakeNet struct {
	change, moved signal.Signal

	mu        sync.Mutex
	up        map[peer.ID]bool
	connected map[peer.ID]bool
	hang      map[peer.ID]bool
	kept      map[peer.ID]bool
	takes     time.Duration   // a dial that succeeds
	limits    []time.Duration // of the dials
	min       int
	dials     []time.Time
	refreshed int
	rounds    []BootstrapRound
}

func startBootstrap(t *testing.T, ids ...peer.ID) (*fakeNet, context.CancelFunc) {
	f, b := newBootstrap(ids...)
	ctx, cancel := context.WithCancel(t.Context())
	go b.run(ctx)
	return f, cancel
}

func newBootstrap(ids ...peer.ID) (*fakeNet, *bootstrapper) {
	f := &fakeNet{up: map[peer.ID]bool{}, connected: map[peer.ID]bool{}, hang: map[peer.ID]bool{}, kept: map[peer.ID]bool{}, min: 1}
	var peers []peer.AddrInfo
	for _, id := range ids {
		peers = append(peers, peer.AddrInfo{ID: id})
	}
	b := &bootstrapper{
		peers: peers, log: slog.New(slog.DiscardHandler), change: &f.change, moved: &f.moved,
		dial: f.dial, connected: func(id peer.ID) bool { f.mu.Lock(); defer f.mu.Unlock(); return f.connected[id] },
		keep:  func(id peer.ID, on bool) { f.mu.Lock(); defer f.mu.Unlock(); f.kept[id] = on },
		count: f.count, enough: func() bool { return f.count() >= f.min },
		refresh: func() { f.mu.Lock(); defer f.mu.Unlock(); f.refreshed++ },
		report:  func(r BootstrapRound) { f.mu.Lock(); defer f.mu.Unlock(); f.rounds = append(f.rounds, r) },
	}
	return f, b
}

func (f *fakeNet) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.connected {
		if c {
			n++
		}
	}
	return n
}

func (f *fakeNet) dial(ctx context.Context, p peer.AddrInfo) error {
	f.mu.Lock()
	f.dials = append(f.dials, time.Now())
	if deadline, ok := ctx.Deadline(); ok {
		f.limits = append(f.limits, time.Until(deadline))
	}
	up, hang, takes := f.up[p.ID], f.hang[p.ID], f.takes
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if !up {
		return errors.New("refused")
	}
	time.Sleep(takes)
	f.set(p.ID, true)
	return nil
}

// set connects or disconnects a peer.
func (f *fakeNet) set(id peer.ID, connected bool) {
	f.mu.Lock()
	f.connected[id] = connected
	f.mu.Unlock()
	f.change.Notify()
}

func (f *fakeNet) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dials)
}

func (f *fakeNet) has(id peer.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connected[id]
}

func (f *fakeNet) refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshed
}

func (f *fakeNet) raise(id peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up[id] = true
}

// It never gives up (pitfall 11), retries within a second in the first minute
// (pitfall 12), and at most 30 seconds apart later.
func TestPitfall11BootstrapRetriesForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "boot")
		defer stop()
		synctest.Wait()
		began := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		dials := f.times()
		if d := dials[0].Sub(began); d != 0 {
			t.Errorf("first dial after %v", d)
		}
		step := bootstrapRetryMin
		for i := 1; i < len(dials); i++ {
			d := dials[i].Sub(dials[i-1])
			if dials[i-1].Sub(began) < bootstrapQuickFor { // the first minute
				if d < bootstrapQuickMin || d > bootstrapQuickMax {
					t.Fatalf("dial %d of the first minute came %v after the one before", i, d)
				}
				continue
			}
			if d < step/2 || d > step {
				t.Fatalf("dial %d came %v after the one before, want %v to %v", i, d, step/2, step)
			}
			step = min(2*step, bootstrapRetryMax)
		}
		if len(dials) < 180 {
			t.Errorf("only %d dials in an hour", len(dials))
		}
		if len(f.rounds) != len(dials) || len(f.rounds[0].Failed) != 1 {
			t.Errorf("%d rounds reported for %d dials", len(f.rounds), len(dials))
		}
	})
}

// In the first minute a dial is cut short, so that a peer that comes back is
// met by the next one: after a second, or three times what it took to reach
// it before. A peer never reached gets longer every third time.
func TestBootstrapDialsAreShortInTheFirstMinute(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes time.Duration // to reach it before; 0: it never was
		want  []time.Duration
	}{
		{"unknown", 0, []time.Duration{bootstrapFirstDial, bootstrapQuickDial, bootstrapQuickDial, bootstrapFirstDial}},
		{"near", 150 * time.Millisecond, []time.Duration{bootstrapQuickDial, bootstrapQuickDial}},
		{"far", 2 * time.Second, []time.Duration{bootstrapSlack * 2 * time.Second}},
		{"absurd", 14 * time.Second, []time.Duration{bootstrapDialLimit}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, stop := startBootstrap(t, "boot")
				defer stop()
				if c.takes > 0 {
					f.mu.Lock()
					f.takes, f.up["boot"] = c.takes, true
					f.mu.Unlock()
					time.Sleep(time.Minute)
					synctest.Wait()
					if f.count() != 1 {
						t.Fatal("it was not reached")
					}
				}
				f.mu.Lock()
				f.hang["boot"], f.limits = true, nil
				f.mu.Unlock()
				f.set("boot", false)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				for i, want := range c.want {
					if f.limits[i] != want {
						t.Errorf("dial %d is given %v, want %v", i, f.limits[i], want)
					}
				}
				if last := f.limits[len(f.limits)-1]; last != bootstrapDialLimit {
					t.Errorf("after two minutes a dial is given %v", last)
				}
			})
		})
	}
}

// A peer that was met before and is silent is met again within 2 seconds of its
// return in the first minute, and within the longest backoff later.
func TestBootstrapMeetsAPeerThatComesBack(t *testing.T) {
	for _, down := range []time.Duration{5 * time.Second, 31 * time.Second, 58 * time.Second, 10 * time.Minute} {
		for offset := range 20 {
			synctest.Test(t, func(t *testing.T) {
				f, stop := startBootstrap(t, "boot")
				defer stop()
				f.raise("boot")
				f.mu.Lock()
				f.takes = 100 * time.Millisecond
				f.mu.Unlock()
				time.Sleep(time.Minute)
				f.mu.Lock()
				f.hang["boot"], f.up["boot"] = true, false
				f.mu.Unlock()
				f.set("boot", false)
				time.Sleep(down + time.Duration(offset)*97*time.Millisecond)
				f.mu.Lock()
				f.hang["boot"], f.up["boot"] = false, true
				f.mu.Unlock()
				back := time.Now()
				for f.count() == 0 {
					time.Sleep(10 * time.Millisecond)
				}
				limit := 2 * time.Second
				if down > bootstrapQuickFor {
					limit = bootstrapRetryMax
				}
				if took := time.Since(back); took > limit {
					t.Errorf("connected %v after the return, %v after the loss", took, down)
				}
			})
		}
	}
}

// While there are too few peers the bootstrap peers are spared from trimming,
// and no longer.
func TestPitfall15BootstrapPeersAreSparedWhileThereAreTooFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "a", "b")
		defer stop()
		f.mu.Lock()
		f.up["a"], f.min = true, 2
		f.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !f.kept["a"] || f.kept["b"] {
			t.Errorf("spared are %v, want a alone", f.kept)
		}
		f.raise("b")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if f.kept["a"] || f.kept["b"] {
			t.Errorf("spared are %v though there are enough", f.kept)
		}
	})
}

// A change of addresses starts one round even when there are enough peers: they
// may be lost without anybody having noticed.
func TestNetworkChangeStartsARoundWithEnoughPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "a", "b")
		defer stop()
		f.raise("a")
		time.Sleep(time.Minute)
		synctest.Wait()
		before := len(f.times())
		f.raise("b")
		f.moved.Notify()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := f.times()[before:]; len(got) != 1 || !f.connected["b"] {
			t.Errorf("%d dials after the change, the missing peer is connected: %v", len(got), f.connected["b"])
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.times()[before:]; len(got) != 1 {
			t.Errorf("%d dials in the hour after the change", len(got))
		}
	})
}

// With enough others a missing bootstrap peer is still looked for, ever more
// seldom, and at once no more often when it hangs up on this node each time.
func TestMissingBootstrapPeersAreLookedForWithEnoughOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "a", "b")
		defer stop()
		f.raise("a")
		time.Sleep(bootstrapRetryMin) // the last of the rounds in which "a" was missing too
		synctest.Wait()
		before := len(f.times())
		last := f.times()[before-1]
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		list := f.times()[before:]
		if n := len(list); n < 18 || n > 40 {
			t.Fatalf("%d dials in three hours", n)
		}
		for i, at := range list {
			gap := at.Sub(last)
			if gap < bootstrapAgainMin/2 || i == 0 && gap > bootstrapAgainMin+bootstrapRetryMin || gap > bootstrapAgainMax {
				t.Errorf("dial %d comes after %v", i, gap)
			}
			last = at
		}
		f.raise("b")
		refreshed := f.refreshes()
		time.Sleep(bootstrapAgainMax)
		synctest.Wait()
		if !f.has("b") || f.refreshes() != refreshed+1 {
			t.Fatalf("the peer that is back is connected: %v; %d refreshes of the DHT", f.has("b"), f.refreshes()-refreshed)
		}

		// It has no room for this node.
		before = len(f.times())
		for range 3 * 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			if f.has("b") {
				f.set("b", false)
			}
		}
		if n := len(f.times()) - before; n > 40 {
			t.Errorf("%d dials in three hours of a peer that hangs up", n)
		}
		// It has, and goes down an hour later.
		time.Sleep(time.Hour)
		before = len(f.times())
		f.set("b", false)
		time.Sleep(bootstrapAgainMin)
		synctest.Wait()
		if n := len(f.times()) - before; n != 1 {
			t.Errorf("%d dials in the minute after the loss", n)
		}
	})
}

func TestBootstrapEndsWhenThereAreEnoughAndBeginsWhenTheyAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "boot")
		defer stop()
		time.Sleep(10 * time.Minute)
		f.raise("boot")
		time.Sleep(bootstrapRetryMax)
		synctest.Wait()
		if f.count() != 1 || f.refreshed != 1 {
			t.Fatalf("%d connected, %d refreshes of the DHT", f.count(), f.refreshed)
		}
		dials := len(f.times())
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(f.times()) != dials {
			t.Error("it dials though there are enough")
		}
		lost := time.Now()
		f.set("boot", false)
		synctest.Wait()
		if again := f.times(); len(again) != dials+1 || again[dials] != lost {
			t.Error("the loss of all peers did not start a round at once")
		}
	})
}

// A change of the node's addresses ends the wait and starts the backoff anew
// (pitfall 16).
func TestPitfall16NetworkChangeStartsARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "boot")
		defer stop()
		time.Sleep(time.Hour)
		synctest.Wait()
		dials := f.times()
		// Not right after a round: the rounds keep a distance.
		time.Sleep(time.Until(dials[len(dials)-1].Add(bootstrapGap + time.Millisecond)))
		before := len(f.times())
		moved := time.Now()
		f.moved.Notify()
		time.Sleep(3 * bootstrapQuickMax)
		synctest.Wait()
		after := f.times()[before:]
		if len(after) < 4 || after[0] != moved {
			t.Errorf("%d dials within %v of the change", len(after), 3*bootstrapQuickMax)
		}
	})
}

// One peer that hangs holds up neither the others nor the next rounds.
func TestBootstrapPeerThatHangsHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "hangs", "works", "late")
		f.mu.Lock()
		f.hang["hangs"], f.up["works"], f.min = true, true, 2
		f.mu.Unlock()
		synctest.Wait()
		if !f.connected["works"] {
			t.Error("the working peer waits for the hanging one")
		}
		time.Sleep(bootstrapRoundLimit)
		synctest.Wait()
		r := f.rounds[0]
		if len(r.Failed) != 2 || r.Failed[0].ID != "hangs" || !strings.Contains(r.Failed[0].Err.Error(), "no answer yet") ||
			len(r.Connected) != 1 || r.Took != bootstrapRoundLimit {
			t.Errorf("the round's result is %+v", r)
		}
		f.raise("late")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !f.connected["late"] {
			t.Error("the next round waits for the hanging peer")
		}
		stop()
		synctest.Wait()
	})
}

// Peers that connect and drop at once do not make it spin.
func TestBootstrapDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "flaps")
		defer stop()
		f.raise("flaps")
		go func() {
			for range 10_000 {
				time.Sleep(10 * time.Millisecond)
				f.set("flaps", false)
			}
		}()
		time.Sleep(100 * time.Second)
		synctest.Wait()
		if n := len(f.times()); n > int(100*time.Second/bootstrapGap)+1 {
			t.Errorf("%d dials in 100 s", n)
		}
	})
}

// With every bootstrap peer connected and still too few, the DHT is asked for
// more instead.
func TestBootstrapLooksFurther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "boot")
		f.mu.Lock()
		f.up["boot"], f.min = true, 3
		f.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.times()) != 1 || f.refreshed < 2 {
			t.Errorf("%d dials, %d refreshes", len(f.times()), f.refreshed)
		}
		stop()
		synctest.Wait()
	})
}

func TestBootstrapPeerThatComesUpLater(t *testing.T) {
	key := someKey(t)
	first, err := New(testContext(t), loopback(), WithIdentity(key))
	mustNot(t, err)
	info := first.AddrInfo()
	mustNot(t, first.Close())

	n := newNode(t, WithBootstrapPeers(info))
	var listen []string
	for _, a := range info.Addrs {
		listen = append(listen, a.String())
	}
	started := false
	for ev := range n.Events(testContext(t)) {
		if r, ok := ev.(EventBootstrapRound); ok && len(r.Round.Failed) == 1 && !started {
			if s := n.Status().Bootstrap; s == nil || len(s.Failed) != 1 {
				t.Errorf("Status has the round %+v", s)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := n.WaitReady(ended); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), info.ID.String()) || !strings.Contains(err.Error(), "0 of at least 1 peers") {
				t.Errorf("WaitReady = %v; want the failed peer named", err)
			}
			started = true
			late, err := New(testContext(t), WithIdentity(key), WithListenAddrs(listen...))
			mustNot(t, err)
			defer mustClose(t, late)
		}
		if _, ok := ev.(EventPeerConnected); ok {
			break
		}
	}
	ready(t, n)
}

// Two nodes that bootstrap from each other at the same moment (pitfall 14).
func TestPitfall14MutualBootstrapPeers(t *testing.T) {
	for range 5 {
		a, b := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0")), newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
		ka, kb := a.key, b.key
		ia, ib := a.AddrInfo(), b.AddrInfo()
		mustNot(t, errors.Join(a.Close(), b.Close()))
		nodes := make([]*Node, 2)
		var wg sync.WaitGroup
		wg.Go(func() {
			nodes[0], _ = New(testContext(t), WithIdentity(ka), WithListenAddrs(ia.Addrs[0].String()), WithBootstrapPeers(ib))
		})
		wg.Go(func() {
			nodes[1], _ = New(testContext(t), WithIdentity(kb), WithListenAddrs(ib.Addrs[0].String()), WithBootstrapPeers(ia))
		})
		wg.Wait()
		for _, n := range nodes {
			if n == nil {
				t.Fatal("a node did not start")
			}
			defer mustClose(t, n)
		}
		ready(t, nodes...)
	}
}

// What is known of dialling saved peers goes with them.
func TestSavedPeersThatAreGoneAreForgotten(t *testing.T) {
	n := 0
	b := &bootstrapper{peers: []peer.AddrInfo{{ID: "boot"}}, tries: make(map[peer.ID]*try), saved: func() (list []peer.AddrInfo) {
		for range 20 {
			n++
			list = append(list, peer.AddrInfo{ID: peer.ID(fmt.Sprint("saved", n))})
		}
		return list
	}}
	for range 100 {
		if got := len(b.candidates()); got != 1+savedAtOnce {
			t.Fatalf("%d are dialled in a round", got)
		}
	}
	if len(b.tries) > 1+2*savedAtOnce || b.tries["boot"] == nil {
		t.Errorf("%d are remembered", len(b.tries))
	}
}

// A node that wants nobody dials nobody, wherever it moves.
func TestBootstrapOfANodeThatWantsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, b := newBootstrap("boot")
		f.min, b.content = 0, true
		f.raise("boot")
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.run(ctx)
		for range 100 {
			time.Sleep(time.Minute)
			f.moved.Notify()
		}
		synctest.Wait()
		if got := f.times(); len(got) != 0 {
			t.Errorf("%d dials", len(got))
		}
	})
}
