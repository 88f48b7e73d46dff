package kad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// highest prefers the value that is higher in the order of bytes.
type highest struct{ anything }

func (highest) Select(_ string, two [][]byte) (int, error) {
	if bytes.Compare(two[0], two[1]) >= 0 {
		return 0, nil
	}
	return 1, nil
}

var anyOfApp = record.NamespacedValidator{"app": highest{}}

// shelf is a bounded datastore of values, and upstream's store of values on it.
type shelf struct {
	*held
	values *dhtrecords.ValueStore
	told   uint64
}

// newShelf opens a shelf on a datastore. Of what is there, mine are the node's own.
func newShelf(tb testing.TB, store datastore.Batching, self peer.ID, limit int64, mine map[string]string) *shelf {
	tb.Helper()
	s := new(shelf)
	s.held = newHeld(store, self, limit, func(n uint64) { s.told = n })
	s.values = dhtrecords.NewValueStore(s.held, anyOfApp, 48*time.Hour)
	s.count(tb.Context(), anyOfApp, func(key string) []byte {
		if value, ok := mine[key]; ok {
			return []byte(value)
		}
		return nil
	})
	return s
}

func (s *shelf) put(ctx context.Context, key, value string) error {
	return s.values.Put(ctx, key, record.MakePutRecord(key, []byte(value)))
}

// get returns the value under a key, "" for none.
func (s *shelf) get(tb testing.TB, key string) string {
	tb.Helper()
	rec, err := s.values.Get(tb.Context(), key)
	must(tb, err)
	return string(rec.GetValue())
}

// check compares what is counted with what the datastore has.
func (s *shelf) check(tb testing.TB) {
	tb.Helper()
	results, err := s.Query(context.Background(), query.Query{})
	must(tb, err)
	entries, err := results.Rest()
	must(tb, err)
	var all int64
	var others int
	for _, e := range entries {
		key := datastore.RawKey(e.Key)
		if _, ok := dhtKey(key); !ok || s.own[e.Key] {
			continue
		}
		size := s.value(key, len(e.Value)).size
		if v := s.of[e.Key]; v == nil || v.size != size || s.order[v.at] != v {
			tb.Errorf("%s: %+v is counted", e.Key, v)
		}
		all += size
		others++
	}
	if all != s.all || all > s.max || others != len(s.of) || others != len(s.order) {
		tb.Errorf("the datastore has %d bytes in %d records of others; %d in %d and %d are counted, and %d may be", all, others, s.all, len(s.of), len(s.order), s.max)
	}
}

func appKeys(n int, kind string) (keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprintf("/app/%s %d", kind, i))
	}
	return keys
}

// distance is how far the key of a value is from a node.
func (s *shelf) distance(key string) uint64 { return s.value(heldKey(key), 0).far }

// Values are bounded in bytes. When strangers have filled the room, those farthest
// away go, and never the node's own, also after a restart.
func TestAttackC6ValuesAreBounded(t *testing.T) {
	const limit = 64 << 10
	store, self := dssync.MutexWrap(datastore.NewMapDatastore()), newID(t)
	s := newShelf(t, store, self, limit, nil)
	value := strings.Repeat("v", 500)
	own := make(map[string]string)
	for _, key := range appKeys(200, "own") { // more than the limit
		must(t, s.put(asOwn(t.Context()), key, value))
		own[key] = value
	}
	var refused int
	keys := appKeys(1000, "stranger's")
	for _, key := range keys {
		if err := s.put(t.Context(), key, value); err != nil {
			refused++
			if !errors.Is(err, errs.ErrLimit) || !strings.Contains(err.Error(), "WithLimits(Limits{ValueRecords: …})") {
				t.Fatal(err)
			}
		}
	}
	if s.check(t); s.all < limit*9/10 {
		t.Errorf("the records take %d bytes only", s.all)
	}
	if refused == 0 || s.told == 0 || s.refused.lost != uint64(len(keys)-len(s.of)) {
		t.Errorf("%d are refused, %d dropped or refused, of which %d were told", refused, s.refused.lost, s.told)
	}
	kept := func(s *shelf) (n int) {
		t.Helper()
		var has []uint64
		first := uint64(math.MaxUint64)
		for _, key := range keys {
			if s.get(t, key) != "" {
				has = append(has, s.distance(key))
			} else {
				first = min(first, s.distance(key))
			}
		}
		slices.Sort(has)
		n = len(has)
		if has[n-2] > first { // the last may be shorter than others, and have fitted in
			t.Error("a record is gone, and two that are farther away are not")
		}
		for key := range own {
			if s.get(t, key) != value {
				t.Fatalf("the node's own record %q is gone", key)
			}
		}
		return n
	}
	n := kept(s)
	again := newShelf(t, store, self, limit, own)
	if again.check(t); kept(again) != n || len(again.own) != len(own) || again.all != s.all {
		t.Errorf("after a restart there are %d records, not %d, and %d of the node", kept(again), n, len(again.own))
	}
	less := newShelf(t, store, self, limit/4, own)
	if less.check(t); kept(less) == 0 || kept(less) > n/4 {
		t.Errorf("with a quarter of the limit there are %d records, not %d", kept(less), n/4)
	}
	// A record is not the node's own because its key is: who puts a better one is.
	foreign := newShelf(t, store, self, math.MaxInt64, map[string]string{"/app/own 0": "another"})
	if foreign.check(t); len(foreign.own) != 0 {
		t.Errorf("%d records are taken for the node's own", len(foreign.own))
	}
}

// A record counts once, with the size that it has now, and no longer when it has
// expired or been replaced by the node's own.
func TestValuesAreCountedOnce(t *testing.T) {
	s := newShelf(t, nil, newID(t), 64<<10, nil)
	ctx := t.Context()
	must(t, s.put(ctx, "/app/x", "1"))
	first := s.all
	must(t, s.put(ctx, "/app/x", "2"+strings.Repeat("v", 1000)))
	s.check(t)
	if len(s.of) != 1 || s.all < first+980 || s.all > first+1020 { // the time in it is longer or shorter
		t.Errorf("%d bytes are counted in %d records, after %d bytes", s.all, len(s.of), first)
	}
	must(t, s.put(asOwn(ctx), "/app/x", "3"))
	if s.check(t); s.all != 0 {
		t.Errorf("%d bytes are counted of the node's own", s.all)
	}
	// A stranger who puts it again does not take it away, one with a better one does.
	must(t, s.put(ctx, "/app/x", "3"))
	if s.check(t); s.all != 0 {
		t.Errorf("%d bytes are counted of the node's own, put by a stranger", s.all)
	}
	must(t, s.put(ctx, "/app/x", "4"))
	if s.check(t); len(s.of) != 1 || len(s.own) != 0 {
		t.Errorf("a stranger's better record: %v, own %v", s.of, s.own)
	}
	// What is too large for all the room leaves everything as it is.
	if err := s.put(ctx, "/app/x", "5"+strings.Repeat("v", 64<<10)); !errors.Is(err, errs.ErrLimit) {
		t.Errorf("a record that is too large: %v", err)
	}
	if s.check(t); s.get(t, "/app/x") != "4" {
		t.Errorf("after it, there is %q", s.get(t, "/app/x"))
	}
	b, err := s.Batch(ctx)
	must(t, err)
	must(t, b.Put(ctx, heldKey("/app/y"), []byte("in a batch")))
	must(t, b.Delete(ctx, heldKey("/app/x")))
	must(t, b.Commit(ctx))
	if s.check(t); len(s.of) != 1 || s.of[heldKey("/app/y").String()] == nil {
		t.Errorf("after a batch, %v are counted", s.of)
	}
}

// broken is a datastore whose writes fail with an error, unless it is nil.
type broken struct {
	datastore.Batching
	err error
}

func (b *broken) Put(ctx context.Context, key datastore.Key, value []byte) error {
	if b.err != nil {
		return b.err
	}
	return b.Batching.Put(ctx, key, value)
}

func (b *broken) Batch(ctx context.Context) (datastore.Batch, error) {
	all, err := b.Batching.Batch(ctx)
	return brokenBatch{all, b}, err
}

type brokenBatch struct {
	datastore.Batch
	b *broken
}

func (b brokenBatch) Commit(ctx context.Context) error {
	if b.b.err != nil {
		return b.b.err
	}
	return b.Batch.Commit(ctx)
}

// When the datastore fails, what it holds is still counted, and nothing else.
func TestValuesAreCountedWhenWritesFail(t *testing.T) {
	store := &broken{Batching: dssync.MutexWrap(datastore.NewMapDatastore())}
	s := newShelf(t, store, newID(t), 64<<10, nil)
	value := strings.Repeat("v", 5000)
	closest := ""
	for _, key := range appKeys(100, "x") {
		if err := s.put(t.Context(), key, value); err != nil && !errors.Is(err, errs.ErrLimit) {
			t.Fatal(err)
		}
		if closest == "" || s.distance(key) < s.distance(closest) {
			closest = key
		}
	}
	full := errors.New("the disk is full")
	better := "w" + strings.Repeat("v", 20_000) // others must make room
	before := s.all
	store.err = full
	for _, larger := range []string{value + "v", better} {
		if err := s.put(t.Context(), closest, larger); !errors.Is(err, full) {
			t.Errorf("%v", err)
		}
		if s.check(t); s.get(t, closest) != value || s.all != before {
			t.Errorf("%d bytes are counted after a write that failed, %d before", s.all, before)
		}
	}
	if err := s.put(asOwn(t.Context()), closest, better); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if s.check(t); len(s.own) != 0 {
		t.Error("a record that could not be put is the node's own")
	}
	store.err = nil
	must(t, s.put(t.Context(), closest, better))
	if s.check(t); s.get(t, closest) != better || s.refused.lost == 0 {
		t.Error("a better record is not there")
	}
}

// What is put while the values of an earlier run are being counted waits.
func TestValuesWaitUntilTheyAreCounted(t *testing.T) {
	h := newHeld(nil, newID(t), 64<<10, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Put(ctx, heldKey("/app/x"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Put before: %v", err)
	}
	if err := h.Delete(ctx, heldKey("/app/x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Delete before: %v", err)
	}
	h.count(t.Context(), anyOfApp, func(string) []byte { return nil })
	must(t, h.Put(t.Context(), heldKey("/app/x"), nil))
}

// Keys in the datastore are upstream's, and nothing else there is taken for a value.
func TestValuesAreWhereUpstreamPutsThem(t *testing.T) {
	validator := record.NamespacedValidator{"app": highest{}, "providers": highest{}, "a b": highest{}}
	for _, validator := range []record.Validator{validator, highest{}} {
		store := dssync.MutexWrap(datastore.NewMapDatastore())
		for _, key := range []string{"/other/x", dhtrecords.ProvidersKeyPrefix + "MFRGG/MFRGG", "/app/p2pnode/L2FwcC94", "/app/MFRGG"} {
			must(t, store.Put(t.Context(), datastore.NewKey(key), []byte("something else")))
		}
		values := dhtrecords.NewValueStore(store, validator, time.Hour)
		keys := []string{"/app/x", "/providers/x", "/a b/x", "/app/\xff\x00/y"}
		for _, key := range keys {
			must(t, values.Put(t.Context(), key, record.MakePutRecord(key, []byte("v"))))
		}
		h := newHeld(store, newID(t), 64<<10, nil)
		h.count(t.Context(), validator, func(string) []byte { return nil })
		for _, key := range keys {
			if h.of[heldKey(key).String()] == nil {
				t.Errorf("%q is not counted", key)
			}
		}
		if len(h.of) != len(keys) {
			t.Errorf("%d are counted, not %d", len(h.of), len(keys))
		}
	}
}

// Calls at the same time leave the count as it should be, and the node's own alone.
func TestValuesAtTheSameTime(t *testing.T) {
	s := newShelf(t, nil, newID(t), 8<<10, nil)
	keys := appKeys(40, "x")
	must(t, s.put(asOwn(t.Context()), keys[0], strings.Repeat("v", 1000)))
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			for j := range 200 {
				key := keys[(i*7+j*13)%len(keys)]
				switch ctx := t.Context(); {
				case key == keys[0]:
					_ = s.put(ctx, key, "a") // an older one
				case j%5 == 0:
					if err := s.Delete(ctx, heldKey(key)); err != nil {
						t.Error(err)
					}
				default:
					if err := s.put(ctx, key, fmt.Sprintf("%06d%*d", i+j, (i*j)%900, 0)); err != nil && !errors.Is(err, errs.ErrLimit) && !errors.Is(err, dhtrecords.ErrOldRecord) {
						t.Error(err)
					}
				}
			}
		})
	}
	workers.Wait()
	if s.check(t); s.get(t, keys[0]) == "" || !s.own[heldKey(keys[0]).String()] {
		t.Error("the node's own record is gone")
	}
}

// After any calls, what is counted is what is there, and within the limit.
func FuzzHeld(f *testing.F) {
	f.Add([]byte("\x00\x01\x10\x00\x02\xff\x01\x01\x10\x02\x01\x00"))
	f.Add(bytes.Repeat([]byte("\x00\x07\xff\x03\x09\xf0\x00\x11\x80"), 20))
	self := peer.ID("the node")
	f.Fuzz(func(t *testing.T, calls []byte) {
		s := newShelf(t, nil, self, 4<<10, nil)
		for len(calls) >= 3 {
			key, size := heldKey("/app/"+string(calls[1:2])), int(calls[2])*8
			switch calls[0] % 4 {
			case 1:
				must(t, s.Put(asOwn(t.Context()), key, make([]byte, size)))
			case 2:
				must(t, s.Delete(t.Context(), key))
			default:
				own := s.own[key.String()]
				err := s.Put(t.Context(), key, make([]byte, size))
				if has, _ := s.Has(t.Context(), key); !has && (err == nil || own) {
					t.Errorf("%s is gone: %v", key, err)
				}
			}
			calls = calls[3:]
		}
		s.check(t)
		again := newShelf(t, s.Batching, self, 4<<10, nil)
		again.check(t)
	})
}
