package meet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// world is what a group sees.
type world struct {
	mu        sync.Mutex
	known     []peer.ID // those that a search finds
	dead      map[peer.ID]bool
	connected map[peer.ID]bool
	strangers map[peer.ID]bool // no members
	protected map[peer.ID]bool
	searches  []time.Time
	dials     []peer.ID
	full      bool
	change    signal.Signal
}

func ids(from, to int) (list []peer.ID) {
	for i := from; i < to; i++ {
		list = append(list, peer.ID(fmt.Sprint("peer", i)))
	}
	return list
}

func (w *world) with(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.change.Notify()
}

func (w *world) has(set map[peer.ID]bool, id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return set[id]
}

func (w *world) count(set map[peer.ID]bool) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, on := range set {
		if on {
			n++
		}
	}
	return n
}

// start runs a group in a world until the test ends.
func start(t *testing.T, known []peer.ID, want int) *world {
	w := &world{
		known: known, dead: map[peer.ID]bool{}, connected: map[peer.ID]bool{},
		strangers: map[peer.ID]bool{}, protected: map[peer.ID]bool{},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Run(ctx, Config{
			Self: "self", Want: want, Change: &w.change, Log: slog.New(slog.DiscardHandler),
			Find: func(ctx context.Context) iter.Seq2[peer.AddrInfo, error] {
				return func(yield func(peer.AddrInfo, error) bool) {
					w.mu.Lock()
					list := append([]peer.ID{"self", "unwelcome"}, w.known...)
					w.searches = append(w.searches, time.Now())
					w.mu.Unlock()
					for _, id := range list {
						if !yield(peer.AddrInfo{ID: id}, nil) {
							return
						}
					}
					yield(peer.AddrInfo{}, errors.New("the search ends badly"))
				}
			},
			Dial: func(ctx context.Context, ai peer.AddrInfo) error {
				w.mu.Lock()
				w.dials = append(w.dials, ai.ID)
				w.mu.Unlock()
				if w.has(w.dead, ai.ID) {
					<-ctx.Done()
					return ctx.Err()
				}
				w.with(func() { w.connected[ai.ID] = true })
				return nil
			},
			Connected: func(id peer.ID) bool { return w.has(w.connected, id) },
			Member:    func(id peer.ID) bool { return !w.has(w.strangers, id) },
			Welcome:   func(id peer.ID) bool { return id != "unwelcome" },
			Room: func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return !w.full
			},
			Protect: func(id peer.ID, on bool) { w.with(func() { w.protected[id] = on }) },
			Found:   func(peer.AddrInfo) {},
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if n := w.count(w.protected); n != 0 {
			t.Errorf("at the end %d peers are protected", n)
		}
	})
	return w
}

func TestMembersAreChosenAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, ids(0, 20), 3)
		synctest.Wait()
		if c, p := w.count(w.connected), w.count(w.protected); c != 3 || p != 3 {
			t.Fatalf("%d connected, %d protected", c, p)
		}
		// One that is lost is replaced at once.
		var lost peer.ID
		w.with(func() {
			for id := range w.connected {
				lost = id
			}
			w.connected[lost], w.dead[lost] = false, true
		})
		synctest.Wait()
		if w.count(w.protected) != 3 && !w.has(w.protected, lost) {
			time.Sleep(dialLimit) // it may have been chosen again, in vain
			synctest.Wait()
		}
		if n := w.count(w.protected); n != 3 || w.has(w.protected, lost) {
			t.Errorf("%d are protected after a loss, the lost one: %t", n, w.has(w.protected, lost))
		}
	})
}

// Members are chosen by chance among all, not those that are connected already.
func TestMembersAreChosenByChance(t *testing.T) {
	others := 0
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, ids(0, 40), 4)
			w.mu.Lock()
			for _, id := range ids(0, 8) {
				w.connected[id] = true
			}
			w.mu.Unlock()
			synctest.Wait()
			others += w.count(w.connected) - 8
		})
	}
	if others < 20 { // of 64 on average
		t.Errorf("in 20 groups %d members were chosen that were not connected", others)
	}
}

func TestSearchesGrowApartWhileMembersAreMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, ids(0, 2), 3)
		time.Sleep(time.Hour)
		synctest.Wait()
		w.mu.Lock()
		n := len(w.searches)
		last := w.searches[n-1].Sub(w.searches[n-2])
		w.mu.Unlock()
		if n < 30 || n > 70 || last > searchMax {
			t.Errorf("%d searches in an hour, the last two %v apart", n, last)
		}
		w.with(func() { w.known = ids(0, 10) })
		time.Sleep(searchMax)
		synctest.Wait()
		if w.count(w.protected) != 3 {
			t.Errorf("%d members, once there are more", w.count(w.protected))
		}
	})
}

func TestPeersThatAreNoMembersAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil, 2)
		w.with(func() {
			w.known = ids(0, 4)
			w.strangers["peer0"], w.strangers["peer1"] = true, true
		})
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if !w.has(w.protected, "peer2") || !w.has(w.protected, "peer3") || w.count(w.protected) != 2 {
			t.Errorf("protected: %v", w.protected)
		}
	})
}

func TestAMemberIsExchangedFromTimeToTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, ids(0, 3), 3)
		synctest.Wait()
		w.with(func() { w.known = ids(0, 4) })
		time.Sleep(freshen + time.Minute)
		synctest.Wait()
		if !w.has(w.protected, "peer3") || w.count(w.protected) != 3 {
			t.Errorf("protected: %v", w.protected)
		}
		// If the others cannot be reached, all stay.
		w.with(func() {
			for _, id := range ids(4, 8) {
				w.dead[id] = true
			}
			w.known = ids(4, 8)
		})
		time.Sleep(freshen + time.Minute)
		synctest.Wait()
		if w.count(w.protected) != 3 {
			t.Errorf("protected: %v", w.protected)
		}
	})
}

func TestNobodyIsDialedWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, nil, 2)
		w.with(func() { w.full, w.known = true, ids(0, 4) })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		w.mu.Lock()
		dials := len(w.dials)
		w.mu.Unlock()
		if dials != 0 {
			t.Errorf("%d dials", dials)
		}
		w.with(func() { w.full = false })
		time.Sleep(searchMax)
		synctest.Wait()
		if w.count(w.protected) != 2 {
			t.Error("there is room, and nobody is dialed")
		}
	})
}
