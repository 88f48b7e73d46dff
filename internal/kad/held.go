package kad

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/memstore"
)

// removeAtOnce is how many values of an earlier run are removed at once.
const removeAtOnce = 1000

// held is a datastore for values, bounded in bytes. Upstream keeps whatever passes
// its validator, for two days, and anybody can make keys that do. All values of
// others together may take max. When they do, those whose keys are farthest from
// the node's ID make room for closer ones: the node is asked for these. Those that
// the node has put itself are not counted, and never make room.
//
// Calls for one key take turns. One that makes room takes the turns of the keys that
// go, too, all of them farther away than its own, and the closest first, so that no
// calls wait for each other in a circle.
type held struct {
	datastore.Batching
	max     int64
	self    uint64 // the beginning of the node's position
	refused refusals
	turns   turns
	counted chan struct{} // closed when all of an earlier run are counted

	mu    sync.Mutex
	all   int64                 // guarded by mu
	of    map[string]*heldValue // those of others, by their keys here; guarded by mu
	order farthest              // the same; guarded by mu
	own   map[string]bool       // those of the node, by their keys here; guarded by mu
}

// heldValue is a value that is counted.
type heldValue struct {
	key  string
	far  uint64 // how far the key is from the node's ID
	size int64
	at   int // in the order; -1 when it is not there
}

// farthest is a heap of values, the farthest first.
type farthest []*heldValue

func (f farthest) Len() int           { return len(f) }
func (f farthest) Less(i, j int) bool { return f[i].far > f[j].far }
func (f farthest) Swap(i, j int) {
	f[i], f[j] = f[j], f[i]
	f[i].at, f[j].at = i, j
}

func (f *farthest) Push(x any) {
	v := x.(*heldValue)
	v.at = len(*f)
	*f = append(*f, v)
}

func (f *farthest) Pop() any {
	last := len(*f) - 1
	v := (*f)[last]
	(*f)[last], *f = nil, (*f)[:last]
	v.at = -1
	return v
}

func newHeld(store datastore.Batching, self peer.ID, limit int64, full func(uint64)) *held {
	if store == nil {
		store = memstore.New()
	}
	return &held{
		Batching: store, max: limit, self: binary.BigEndian.Uint64(kb.ConvertPeerID(self)), refused: refusals{tell: full},
		counted: make(chan struct{}), of: make(map[string]*heldValue), own: make(map[string]bool),
	}
}

// ownPut marks the context of a call that puts the node's own value.
type ownPut struct{}

func asOwn(ctx context.Context) context.Context { return context.WithValue(ctx, ownPut{}, true) }

var rawBase32 = base32.StdEncoding.WithPadding(base32.NoPadding)

// heldUnder returns the prefix of the values of a namespace, as upstream has it.
func heldUnder(namespace string) datastore.Key {
	if namespace == "providers" {
		namespace = rawBase32.EncodeToString([]byte(namespace))
	}
	return datastore.NewKey(namespace)
}

// heldKey returns the key under which upstream stores a value. dhtKey is its
// inverse; it reports whether it is one.
func heldKey(key string) datastore.Key {
	namespace, _, _ := record.SplitKey(key)
	return heldUnder(namespace).ChildString(rawBase32.EncodeToString([]byte(key)))
}

func dhtKey(key datastore.Key) (string, bool) {
	b, err := rawBase32.DecodeString(key.BaseNamespace())
	return string(b), err == nil && heldKey(string(b)) == key
}

// value returns what is counted for a value of a size in bytes.
func (h *held) value(key datastore.Key, size int) *heldValue {
	name, ok := dhtKey(key)
	if !ok {
		name = key.String()
	}
	far := h.self ^ binary.BigEndian.Uint64(kb.ConvertKey(name))
	return &heldValue{key: key.String(), far: far, size: recordSize + int64(len(key.String())+size), at: -1}
}

// count counts what an earlier run has left in the datastore, and removes what is
// too much. The node's own are those that mine returns. What is put meanwhile
// waits.
func (h *held) count(ctx context.Context, validator record.Validator, mine func(key string) []byte) {
	defer close(h.counted)
	prefixes := []string{"/"}
	if byName, ok := validator.(record.NamespacedValidator); ok {
		prefixes = nil
		for _, namespace := range slices.Sorted(maps.Keys(byName)) {
			prefixes = append(prefixes, heldUnder(namespace).String())
		}
	}
	for _, prefix := range prefixes {
		if h.countBelow(ctx, prefix, mine) != nil {
			return // the DHT itself says what is wrong with the datastore
		}
	}
}

func (h *held) countBelow(ctx context.Context, prefix string, mine func(key string) []byte) error {
	results, err := h.Query(ctx, query.Query{Prefix: prefix, KeysOnly: true, ReturnsSizes: true})
	if err != nil {
		return err
	}
	defer func() { _ = results.Close() }()
	var over []*heldValue
	for e := range results.Next() {
		if err := cmp.Or(e.Error, context.Cause(ctx)); err != nil {
			return err
		}
		key := datastore.RawKey(e.Key)
		name, ok := dhtKey(key)
		if !ok {
			continue // something else, in the same datastore
		}
		v := h.value(key, e.Size)
		own := false
		if put := mine(name); put != nil {
			stored, err := h.Get(ctx, key)
			own = err == nil && bytes.Equal(valueIn(stored), put)
		}
		h.mu.Lock()
		if own {
			h.own[v.key] = true
		} else {
			h.set(v)
		}
		for h.all > h.max {
			over = append(over, h.pop())
		}
		h.mu.Unlock()
		if len(over) >= removeAtOnce {
			if err := h.write(ctx, over, nil); err != nil {
				return err
			}
			over = nil
		}
	}
	return h.write(ctx, over, nil)
}

// valueIn returns the value in a record that is stored.
func valueIn(stored []byte) []byte {
	rec := new(recpb.Record)
	if proto.Unmarshal(stored, rec) != nil {
		return nil
	}
	return rec.GetValue()
}

// set counts a value, in place of an earlier one under its key. The caller holds mu.
func (h *held) set(v *heldValue) {
	h.unset(v.key)
	h.of[v.key] = v
	h.all += v.size
	heap.Push(&h.order, v)
}

// unset no longer counts a value, and returns it if it was counted. The caller
// holds mu.
func (h *held) unset(key string) *heldValue {
	v := h.of[key]
	if v == nil {
		return nil
	}
	delete(h.of, key)
	h.all -= v.size
	heap.Remove(&h.order, v.at)
	return v
}

// pop no longer counts the farthest value, and returns it. The caller holds mu.
func (h *held) pop() *heldValue { return h.unset(h.order[0].key) }

// admit counts a value, and no longer those that must make room for it, which it
// returns. It reports whether there is room.
func (h *held) admit(v *heldValue) (before *heldValue, gone []*heldValue, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.unset(v.key)
	for h.all+v.size > h.max && len(h.order) > 0 && h.order[0].far > v.far {
		gone = append(gone, h.pop())
	}
	if h.all+v.size > h.max {
		h.restore(before, gone)
		return nil, nil, false
	}
	h.set(v)
	return before, gone, true
}

// restore counts again what is still in the datastore. The caller holds mu.
func (h *held) restore(before *heldValue, gone []*heldValue) {
	for _, v := range append(gone, before) {
		if v != nil && h.of[v.key] == nil && !h.own[v.key] {
			h.set(v)
		}
	}
}

// write removes values that are not counted anymore, and puts one, all or none if
// the datastore can. The caller has their turns.
func (h *held) write(ctx context.Context, gone []*heldValue, put func(datastore.Write) error) error {
	if len(gone) == 0 {
		if put == nil {
			return nil
		}
		return put(h.Batching)
	}
	b, err := h.Batching.Batch(ctx)
	if err != nil {
		return err
	}
	for _, v := range gone {
		if err := b.Delete(ctx, datastore.RawKey(v.key)); err != nil {
			return err
		}
	}
	if put != nil {
		if err := put(b); err != nil {
			return err
		}
	}
	if err := b.Commit(ctx); err != nil {
		return err
	}
	for range gone {
		h.refused.add()
	}
	return nil
}

// replace puts a value in place of others.
func (h *held) replace(ctx context.Context, gone []*heldValue, key datastore.Key, value []byte) error {
	slices.SortFunc(gone, func(a, b *heldValue) int { return cmp.Or(cmp.Compare(a.far, b.far), cmp.Compare(a.key, b.key)) })
	for _, v := range gone {
		done, err := h.turns.take(ctx, v.key)
		if err != nil {
			return err
		}
		defer done()
	}
	h.mu.Lock()
	gone = slices.DeleteFunc(slices.Clone(gone), func(v *heldValue) bool { // put meanwhile
		return h.of[v.key] != nil || h.own[v.key]
	})
	h.mu.Unlock()
	return h.write(ctx, gone, func(w datastore.Write) error { return w.Put(ctx, key, value) })
}

// turn waits until the values are counted, and for the turn of a key.
func (h *held) turn(ctx context.Context, key datastore.Key) (done func(), err error) {
	select {
	case <-h.counted:
		return h.turns.take(ctx, key.String())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Put stores a value if there is room for it, or makes room.
func (h *held) Put(ctx context.Context, key datastore.Key, value []byte) error {
	done, err := h.turn(ctx, key)
	if err != nil {
		return err
	}
	defer done()
	if ctx.Value(ownPut{}) != nil || h.same(ctx, key, value) {
		if err := h.Batching.Put(ctx, key, value); err != nil {
			return err
		}
		h.mu.Lock()
		h.unset(key.String())
		h.own[key.String()] = true
		h.mu.Unlock()
		return nil
	}
	v := h.value(key, len(value))
	before, gone, ok := h.admit(v)
	if !ok {
		h.refused.add()
		return fmt.Errorf("%w: no room for a record of %d bytes: the records of others that are closer to this node take up to %d; raise WithLimits(Limits{ValueRecords: …})",
			errs.ErrLimit, len(value), h.max)
	}
	err = h.replace(ctx, gone, key, value)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		if h.of[v.key] == v {
			h.unset(v.key)
		}
		h.restore(before, gone)
		return err
	}
	delete(h.own, v.key)
	return nil
}

// same reports whether a value is one of the node's that is stored already.
func (h *held) same(ctx context.Context, key datastore.Key, value []byte) bool {
	h.mu.Lock()
	own := h.own[key.String()]
	h.mu.Unlock()
	if !own {
		return false
	}
	stored, err := h.Get(ctx, key)
	return err == nil && bytes.Equal(valueIn(stored), valueIn(value))
}

// Delete removes a value.
func (h *held) Delete(ctx context.Context, key datastore.Key) error {
	done, err := h.turn(ctx, key)
	if err != nil {
		return err
	}
	defer done()
	if err := h.Batching.Delete(ctx, key); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unset(key.String())
	delete(h.own, key.String())
	return nil
}

// Batch returns a batch that stores what there is room for when it is committed.
func (h *held) Batch(context.Context) (datastore.Batch, error) {
	return datastore.NewBasicBatch(h), nil
}
