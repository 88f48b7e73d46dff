package kad

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// holder is a peer that answers whether it holds what it was sent.
type holder struct {
	mu   sync.Mutex
	keys map[string]int // how often each was sent; guarded by mu
	got  chan string    // what is sent
}

// newHolder starts a holder, which holds only the keys for which keep is true.
func newHolder(tb testing.TB, self func() peer.ID, keep func(key string) bool) (*holder, *nethost.Host) {
	h := &holder{keys: make(map[string]int), got: make(chan string, 1000)}
	return h, scripted(tb, func(m *pb.Message) *pb.Message {
		h.mu.Lock()
		defer h.mu.Unlock()
		reply := pb.NewMessage(m.Type, m.Key, 0)
		switch key := string(m.Key); m.Type {
		case pb.Message_ADD_PROVIDER:
			h.keys[key]++
			h.got <- key
		case pb.Message_GET_PROVIDERS:
			if h.keys[key] > 0 && keep(key) {
				reply.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: self()}})
			}
		}
		return reply
	})
}

func cidsOf(tb testing.TB, n int) (list []cid.Cid) {
	for _, key := range numberedKeys(tb, n) {
		list = append(list, cid.NewCidV1(cid.Raw, key))
	}
	return list
}

// A CID that nobody takes holds up only who gave it.
func TestProvideManyPassesByWhatNobodyTakes(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	list := cidsOf(t, 3)
	_, h := newHolder(t, d.cfg.Host.ID, func(key string) bool { return key != string(list[0].Hash()) })
	meet(t, d, h)
	ended, cancel := context.WithCancel(testContext(t))
	cancel()
	var kept *KeptError
	if err := d.Provide(ended, list[0]); !errors.As(err, &kept) {
		t.Fatalf("Provide = %v", err)
	}
	if err := d.ProvideMany(testContext(t), slices.Values(list[1:])); err != nil {
		t.Errorf("ProvideMany = %v", err)
	}
	if p, err := d.Progress(t.Context()); err != nil || p.Keys != 3 || p.Pending != 1 {
		t.Errorf("progress: %+v, %v", p, err)
	}
}

// A peer that takes records and does not hold them is not believed in bulk either.
func TestProvideManyIsNotFooled(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	liar, h := newHolder(t, d.cfg.Host.ID, func(string) bool { return false })
	meet(t, d, h)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	many := make(chan error, 1)
	list := cidsOf(t, fewKeys+8)
	go func() { many <- d.ProvideMany(ctx, slices.Values(list)) }()
	<-liar.got
	<-liar.got // the first one was refused by then
	cancel()
	if err := <-many; !errors.Is(err, context.Canceled) {
		t.Errorf("ProvideMany = %v", err)
	}
	if p, err := d.Progress(t.Context()); err != nil || p.Pending != len(list) {
		t.Errorf("progress: %+v, %v", p, err)
	}
}

// What a peer was sent last may never have arrived: in bulk, keys count as announced
// when who took them holds the last one. A peer that takes again and again what it does
// not hold is left out, for others to take it.
func TestBulkIsConfirmed(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	keys := numberedKeys(t, 3)
	h, taker := newHolder(t, d.cfg.Host.ID, func(key string) bool { return key != string(keys[2]) })
	meet(t, d, taker)
	for _, key := range keys {
		h.keys[string(key)]++
	}
	lost := func(keys ...multihash.Multihash) int {
		return len(d.keep.confirm(testContext(t), map[peer.ID][]multihash.Multihash{taker.ID(): keys}))
	}
	takes := func() bool {
		d.keep.mu.Lock()
		d.keep.waiting, d.keep.takers = map[string]bool{"x": true}, make(map[peer.ID][]multihash.Multihash)
		d.keep.mu.Unlock()
		d.keep.taken(taker.ID(), []byte("x"))
		d.keep.mu.Lock()
		defer d.keep.mu.Unlock()
		return len(d.keep.waiting) == 0
	}
	if n := lost(keys[2], keys[0], keys[1]); n != 0 {
		t.Errorf("%d keys are lost, though the last one is held", n)
	}
	for range maxDoubts {
		if !takes() {
			t.Error("a peer is left out too soon")
		}
		if n := lost(keys...); n != len(keys) {
			t.Errorf("%d keys are lost, and the last one is not held", n)
		}
	}
	if takes() {
		t.Error("a peer that never holds what it takes is not left out")
	}
	if lost(keys[0]); !takes() {
		t.Error("a peer that holds what it takes stays left out")
	}
	if n := len(d.keep.confirm(testContext(t), map[peer.ID][]multihash.Multihash{newID(t): keys})); n != len(keys) {
		t.Errorf("%d keys are lost, and their taker is gone", n)
	}
}

// StopProviding ends an announcement that is under way.
func TestStopProvidingDuringAnAnnouncement(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	liar, h := newHolder(t, d.cfg.Host.ID, func(string) bool { return false })
	meet(t, d, h)
	list := cidsOf(t, 1)
	provided := make(chan error, 1)
	go func() { provided <- d.Provide(testContext(t), list[0]) }()
	<-liar.got
	must(t, d.StopProviding(t.Context(), list...))
	if err := <-provided; !errors.Is(err, errStopped) {
		t.Errorf("Provide = %v", err)
	}
	if p, err := d.Progress(t.Context()); err != nil || p.Keys != 0 || p.Pending != 0 {
		t.Errorf("progress: %+v, %v", p, err)
	}
}

// Before it is known which keys a peer is near to, it is sent nothing; and a peer
// that claims to have lost everything, nothing after the first record that it does
// not hold.
func TestResendStopsAtWhoDoesNotHold(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	liar, h := newHolder(t, d.cfg.Host.ID, func(string) bool { return false })
	honest, h2 := newHolder(t, d.cfg.Host.ID, func(string) bool { return true })
	meet(t, d, h)
	meet(t, d, h2)
	k, ctx := d.keep, testContext(t)
	must(t, k.open())
	list := numberedKeys(t, 50)
	_, err := k.keys.Put(ctx, list...)
	must(t, err)
	k.refillPeer(ctx, h2.ID())
	if n := honest.total(); n != 0 {
		t.Errorf("%d records were sent to a peer at an unknown place", n)
	}
	messenger, err := pb.NewProtocolMessenger(d.tables[0].MessageSender())
	must(t, err)
	k.resend(ctx, d.tables[0], messenger, h.ID(), "", list[0])
	if n := liar.total(); n != 1 {
		t.Errorf("%d records were sent to a peer that does not hold them", n)
	}
	k.resend(ctx, d.tables[0], messenger, h2.ID(), "", list[0])
	for got := map[string]bool{}; len(got) < len(list); {
		select {
		case key := <-honest.got:
			got[key] = true
		case <-ctx.Done():
			t.Fatalf("%d of %d records were sent", len(got), len(list))
		}
	}
}

func (h *holder) total() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, times := range h.keys {
		n += times
	}
	return n
}

// Any number of peers that come and go costs little: each is asked once in a
// while, and only so many are remembered.
func TestAttackReturnedPeersAreBounded(t *testing.T) {
	t.Parallel()
	ids := make([]peer.ID, 3*maxReturned)
	for i := range ids {
		ids[i] = newID(t)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newReturned()
		for range 3 {
			for _, id := range ids {
				r.add(id)
			}
		}
		if len(r.due) != maxReturned {
			t.Errorf("%d are remembered", len(r.due))
		}
		begun := time.Now()
		var asked atomic.Int64
		ctx, cancel := context.WithTimeout(t.Context(), settleTime+time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range refillAtOnce {
			wg.Go(func() {
				for {
					id, ok := r.next(ctx)
					if !ok {
						return
					}
					asked.Add(1)
					r.rest(id, 0)
				}
			})
		}
		wg.Wait()
		if asked.Load() != maxReturned {
			t.Errorf("%d were asked", asked.Load())
		}
		r.add(ids[0]) // was asked settleTime after begun
		r.rest(ids[1], 0)
		next, ok := r.next(t.Context())
		if took := time.Since(begun); !ok || next != ids[0] || took != settleTime+refillPause {
			t.Errorf("it was asked again after %v, %v", took, ok)
		}
		r.rest(ids[0], time.Hour)
		r.add(ids[0])
		begun = time.Now()
		if _, ok := r.next(t.Context()); !ok || time.Since(begun) != refillRest*time.Hour {
			t.Errorf("after an hour of sending it was asked again after %v", time.Since(begun))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.rests) > 1+maxReturned {
			t.Errorf("%d rests are remembered", len(r.rests))
		}
	})
}

// Close ends calls that wait, with ErrClosed.
func TestCloseEndsProvideMany(t *testing.T) {
	t.Parallel()
	d := newDHT(t)
	many := make(chan error, 1)
	list := cidsOf(t, 40)
	read := make(chan struct{})
	go func() {
		many <- d.ProvideMany(t.Context(), func(yield func(cid.Cid) bool) {
			for _, c := range list {
				if !yield(c) {
					return
				}
			}
			close(read)
		})
	}()
	<-read
	must(t, d.Close())
	if err := <-many; err != errs.ErrClosed { //nolint:errorlint // nothing is kept: there is no datastore
		t.Errorf("ProvideMany = %v", err)
	}
}
