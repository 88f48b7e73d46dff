package keeper

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// fakeNet simulates the network of a keeper.
type fakeNet struct {
	change, moved signal.Signal

	mu        sync.Mutex
	up        map[peer.ID]bool
	connected map[peer.ID]time.Time // since when; zero for not connected
	hang      map[peer.ID]bool
	kept      map[peer.ID]bool
	takes     time.Duration   // a dial that succeeds
	slow      time.Duration   // a dial that fails
	limits    []time.Duration // of the dials
	min       int
	room      int
	dials     []time.Time
	to        []peer.ID // whom each dial was for
	now, most int       // current dials, and their maximum
	refreshed int
	rounds    []Round
}

func newNet() *fakeNet {
	return &fakeNet{up: map[peer.ID]bool{}, connected: map[peer.ID]time.Time{}, hang: map[peer.ID]bool{}, kept: map[peer.ID]bool{}, min: 1, room: 1000}
}

// config returns the configuration of a keeper on the network.
func (f *fakeNet) config() Config {
	return Config{
		Self: "self", Conns: f, Log: slog.New(slog.DiscardHandler), Change: &f.change, Moved: &f.moved,
		Dial: f.dial, Enough: func() bool { return len(f.Peers()) >= f.min },
		Room:    func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.countLocked() < f.room },
		Reached: func(error) bool { return false }, Allowed: func(peer.ID) bool { return true }, BanEnds: func() time.Time { return time.Time{} },
		Refresh: func() { f.mu.Lock(); defer f.mu.Unlock(); f.refreshed++ },
		Report:  func(r Round) { f.mu.Lock(); defer f.mu.Unlock(); f.rounds = append(f.rounds, r) },
	}
}

// startBootstrap starts a keeper with bootstrap peers.
func startBootstrap(t *testing.T, ids ...peer.ID) (*fakeNet, func()) {
	f := newNet()
	return f, f.start(t, f.config(), ids...)
}

func (f *fakeNet) start(t *testing.T, cfg Config, ids ...peer.ID) func() {
	k := New(t.Context(), cfg)
	for _, id := range ids {
		k.Add(Bootstrap, peer.AddrInfo{ID: id})
	}
	k.Start()
	return func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}

func (f *fakeNet) Peers() (list []peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, at := range f.connected {
		if !at.IsZero() {
			list = append(list, id)
		}
	}
	return list
}

func (f *fakeNet) Connected(id peer.ID) bool { return !f.OpenedAt(id).IsZero() }
func (f *fakeNet) OpenedAt(id peer.ID) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connected[id]
}
func (f *fakeNet) Where(id peer.ID) Place { return Place{Since: f.OpenedAt(id), Dialed: f.Addrs(id)} }
func (f *fakeNet) Addrs(peer.ID) []ma.Multiaddr {
	return []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}
}

func (f *fakeNet) Protect(id peer.ID, _ string, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept[id] = on
}

func (f *fakeNet) countLocked() (n int) {
	for _, at := range f.connected {
		if !at.IsZero() {
			n++
		}
	}
	return n
}

func (f *fakeNet) count() int { return len(f.Peers()) }

func (f *fakeNet) dial(ctx context.Context, p peer.AddrInfo) error {
	f.mu.Lock()
	f.dials, f.to = append(f.dials, time.Now()), append(f.to, p.ID)
	if deadline, ok := ctx.Deadline(); ok {
		f.limits = append(f.limits, time.Until(deadline))
	}
	f.now++
	f.most = max(f.most, f.now)
	up, hang, takes, slow := f.up[p.ID], f.hang[p.ID], f.takes, f.slow
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.now--; f.mu.Unlock() }()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if !up {
		time.Sleep(slow)
		return errors.New("refused")
	}
	time.Sleep(takes)
	f.set(p.ID, true)
	return nil
}

// set connects or disconnects a peer.
func (f *fakeNet) set(id peer.ID, connected bool) {
	f.mu.Lock()
	if connected {
		f.connected[id] = time.Now()
	} else {
		delete(f.connected, id)
	}
	f.mu.Unlock()
	f.change.Notify()
}

func (f *fakeNet) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dials)
}

// timesOf are the dials of one peer.
func (f *fakeNet) timesOf(id peer.ID) (list []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, to := range f.to {
		if to == id {
			list = append(list, f.dials[i])
		}
	}
	return list
}

func (f *fakeNet) has(id peer.ID) bool { return f.Connected(id) }

func (f *fakeNet) refreshes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refreshed
}

func (f *fakeNet) raise(ids ...peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.up[id] = true
	}
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
		step := RoundMin
		for i := 1; i < len(dials); i++ {
			d := dials[i].Sub(dials[i-1])
			if dials[i-1].Sub(began) < QuickFor { // the first minute
				if d < quickMin || d > QuickMax {
					t.Fatalf("dial %d of the first minute came %v after the one before", i, d)
				}
				continue
			}
			if d < step/2 || d > step {
				t.Fatalf("dial %d came %v after the one before, want %v to %v", i, d, step/2, step)
			}
			step = min(2*step, RoundMax)
		}
		if len(dials) < 180 {
			t.Errorf("only %d dials in an hour", len(dials))
		}
		if len(f.rounds) != len(dials) || len(f.rounds[0].Failed) != 1 {
			t.Errorf("%d rounds reported for %d dials", len(f.rounds), len(dials))
		}
	})
}

// The pauses between rounds grow to the longest that is wanted.
func TestTheLongestPauseIsAsConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const longest = 5 * time.Minute
		f := newNet()
		cfg := f.config()
		cfg.Longest = longest
		defer f.start(t, cfg, "boot")()
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		var most time.Duration
		dials := f.times()
		for i, at := range dials[1:] {
			most = max(most, at.Sub(dials[i]))
		}
		if most > longest || most <= longest/2 {
			t.Errorf("pauses of up to %v between %d rounds, want up to %v", most, len(dials), longest)
		}
	})
}

// In the first minute dials have a short timeout, so that the next one reaches a
// peer that has returned: a second, or three times what an earlier dial took. A
// peer that was never reached gets more time every third dial.
func TestBootstrapDialsAreShortInTheFirstMinute(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes time.Duration // to reach it before; 0: it never was
		want  []time.Duration
	}{
		{"unknown", 0, []time.Duration{firstDial, quickDial, quickDial, firstDial}},
		{"near", 150 * time.Millisecond, []time.Duration{quickDial, quickDial}},
		{"far", 2 * time.Second, []time.Duration{slack * 2 * time.Second}},
		{"absurd", 14 * time.Second, []time.Duration{dialLimit}},
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
				if last := f.limits[len(f.limits)-1]; last != dialLimit {
					t.Errorf("after two minutes a dial is given %v", last)
				}
			})
		})
	}
}

// A known peer that is silent is connected again within 2 seconds of its return
// in the first minute, and later within the longest backoff.
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
				if down > QuickFor {
					limit = RoundMax
				}
				if took := time.Since(back); took > limit {
					t.Errorf("connected %v after the return, %v after the loss", took, down)
				}
			})
		}
	}
}

// Bootstrap peers are protected from trimming only while there are too few peers.
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
		if got := f.times()[before:]; len(got) != 1 || !f.has("b") {
			t.Errorf("%d dials after the change, the missing peer is connected: %v", len(got), f.has("b"))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := f.times()[before:]; len(got) != 1 {
			t.Errorf("%d dials in the hour after the change", len(got))
		}
	})
}

// With enough other peers a missing bootstrap peer is still dialed, at growing
// intervals, and not immediately if it closes each connection.
func TestMissingBootstrapPeersAreLookedForWithEnoughOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "a", "b")
		defer stop()
		f.raise("a")
		time.Sleep(RoundMin) // the last of the rounds in which "a" was missing too
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
			if gap < policies[Bootstrap].min/2 || i == 0 && gap > policies[Bootstrap].min+RoundMin || gap > policies[Bootstrap].max {
				t.Errorf("dial %d comes after %v", i, gap)
			}
			last = at
		}
		f.raise("b")
		refreshed := f.refreshes()
		time.Sleep(policies[Bootstrap].max)
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
		f.mu.Lock()
		f.up["b"] = false
		f.mu.Unlock()
		before = len(f.times())
		f.set("b", false)
		time.Sleep(30 * time.Second)
		if n := len(f.times()) - before; n < int(30*time.Second/QuickMax) {
			t.Errorf("%d dials in half a minute after the loss", n)
		}
		f.raise("b")
		time.Sleep(QuickMax)
		synctest.Wait()
		if !f.has("b") {
			t.Error("the peer that is back is not connected")
		}
	})
}

func TestBootstrapEndsWhenThereAreEnoughAndBeginsWhenTheyAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := startBootstrap(t, "boot")
		defer stop()
		time.Sleep(10 * time.Minute)
		f.raise("boot")
		time.Sleep(RoundMax)
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
		time.Sleep(time.Until(dials[len(dials)-1].Add(roundGap + time.Millisecond)))
		before := len(f.times())
		moved := time.Now()
		f.moved.Notify()
		time.Sleep(3 * QuickMax)
		synctest.Wait()
		after := f.times()[before:]
		if len(after) < 4 || after[0] != moved {
			t.Errorf("%d dials within %v of the change", len(after), 3*QuickMax)
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
		if !f.has("works") {
			t.Error("the working peer waits for the hanging one")
		}
		time.Sleep(roundLimit)
		synctest.Wait()
		r := f.rounds[0]
		if len(r.Failed) != 2 || r.Failed[0].ID != "hangs" || r.Failed[0].Err == nil ||
			len(r.Connected) != 1 || r.Took != roundLimit {
			t.Errorf("the round's result is %+v", r)
		}
		f.raise("late")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !f.has("late") {
			t.Error("the next round waits for the hanging peer")
		}
		stop()
		synctest.Wait()
	})
}

// Peers that connect and disconnect immediately do not make the keeper spin.
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
		if n := len(f.times()); n > int(100*time.Second/roundGap)+1 {
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

// A node that wants no peers dials none, even after its addresses change.
func TestBootstrapOfANodeThatWantsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newNet()
		cfg := f.config()
		f.min, cfg.Content = 0, true
		f.raise("boot")
		defer f.start(t, cfg, "boot")()
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

// What is said of a connection that did not last.
func TestGoldenLost(t *testing.T) {
	k := New(t.Context(), newNet().config())
	e := &entry{id: "P", opened: time.Unix(1000, 0)}
	k.mu.Lock()
	k.lostLocked(e, view{now: time.Unix(1002, 5e8)})
	k.mu.Unlock()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	golden.Check(t, "connections that end", []golden.Text{golden.Of("lost", e.err)}, e.id.String(), "ID")
}
