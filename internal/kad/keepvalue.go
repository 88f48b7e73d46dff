package kad

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// values are the records that the node has put. It puts them again before they
// expire, and when it has peers again, as long as no better one is found.
type values struct {
	d     *DHT
	store datastore.Batching // nil: in memory only
	wake  signal.Signal      // there is a new one
	turns turns              // of those who sign a record

	mu   sync.Mutex
	kept map[string]*kept // by key; guarded by mu
	runs bool             // guarded by mu
}

// kept is a record. Only next and retry change; they are guarded by values.mu.
type kept struct {
	value    []byte
	owner    crypto.PrivKey // signs it again; nil: it is put as it is
	validity time.Duration  // of a signature; 0: the record was not signed here
	unseen   bool           // nobody could be asked for an earlier record
	next     time.Time      // when it is put again
	retry    backoff.Backoff
}

// encode returns what is stored of a record; parseKept is its inverse. Owners are
// not stored.
func (k *kept) encode() []byte {
	out := []byte{0}
	if k.unseen {
		out[0] = 1
	}
	return append(binary.AppendUvarint(out, uint64(k.validity)), k.value...)
}

func parseKept(b []byte) (*kept, bool) {
	if len(b) == 0 || b[0] > 1 {
		return nil, false
	}
	validity, n := binary.Uvarint(b[1:])
	if n <= 0 || validity > math.MaxInt64 {
		return nil, false
	}
	return &kept{unseen: b[0] == 1, validity: time.Duration(validity), value: bytes.Clone(b[1+n:])}, true
}

func newValues(d *DHT) *values {
	v := &values{d: d, kept: make(map[string]*kept)}
	if d.cfg.Store != nil {
		v.store = namespace.Wrap(d.cfg.Store, datastore.NewKey("value").ChildString(cmp.Or(string(d.cfg.Prefix), "public")))
	}
	return v
}

func valueKey(key string) datastore.Key {
	return datastore.NewKey(base64.RawURLEncoding.EncodeToString([]byte(key)))
}

// load reads what an earlier run has put.
func (v *values) load(ctx context.Context) error {
	if v.store == nil {
		return nil
	}
	found, err := v.store.Query(ctx, query.Query{})
	if err != nil {
		return fmt.Errorf("reading the records that were put: %w", err)
	}
	entries, err := found.Rest()
	if err != nil {
		return fmt.Errorf("reading the records that were put: %w", err)
	}
	for _, e := range entries {
		key, err := base64.RawURLEncoding.DecodeString(datastore.RawKey(e.Key).BaseNamespace())
		k, ok := parseKept(e.Value)
		if err != nil || !ok {
			continue
		}
		if k.validity > 0 && v.d.owns(string(key)) {
			k.owner = v.d.cfg.Host.Peerstore().PrivKey(v.d.self)
		}
		v.set(string(key), k)
	}
	return nil
}

// keep keeps a record, in place of an earlier one under its key.
func (v *values) keep(ctx context.Context, key string, k *kept) error {
	before := v.set(key, k)
	err := v.save(ctx, key)
	if err == nil {
		return nil
	}
	v.mu.Lock()
	if v.kept[key] == k {
		if v.kept[key] = before; before == nil {
			delete(v.kept, key)
		}
	}
	v.mu.Unlock()
	return fmt.Errorf("keeping the record: %w", err)
}

// set keeps a record in memory, and returns the one before.
func (v *values) set(key string, k *kept) (before *kept) {
	v.mu.Lock()
	before = v.kept[key]
	k.retry = backoff.Backoff{Min: retryMax, Max: time.Hour}
	v.kept[key] = k
	start := !v.runs
	v.runs = true
	v.mu.Unlock()
	if start {
		v.d.group.Go(v.run)
	}
	v.wake.Notify()
	return before
}

// replace keeps one record in place of another, or none if it is nil, unless that
// is no longer kept itself.
func (v *values) replace(ctx context.Context, key string, old, k *kept) error {
	v.mu.Lock()
	current := v.kept[key] == old
	switch {
	case !current:
	case k == nil:
		delete(v.kept, key)
	default:
		v.kept[key] = k
	}
	v.mu.Unlock()
	if !current {
		return nil
	}
	return v.save(ctx, key)
}

func (v *values) get(key string) *kept {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.kept[key]
}

// value returns the record that is kept under a key, nil for none.
func (v *values) value(key string) []byte {
	if k := v.get(key); k != nil {
		return k.value
	}
	return nil
}

// save brings the store up to date with what is kept under a key.
func (v *values) save(ctx context.Context, key string) error {
	for v.store != nil {
		k := v.get(key)
		var err error
		if k == nil {
			err = v.store.Delete(ctx, valueKey(key))
		} else {
			err = v.store.Put(ctx, valueKey(key), k.encode())
		}
		if err == nil {
			err = v.store.Sync(ctx, valueKey(key))
		}
		if err != nil || v.get(key) == k {
			return err
		}
	}
	return nil
}

// StopPutting ends the putting again of records. Peers forget them when they
// expire.
func (d *DHT) StopPutting(ctx context.Context, keys ...string) error {
	v := d.values
	var failed []error
	for _, key := range keys {
		v.mu.Lock()
		delete(v.kept, key)
		v.mu.Unlock()
		failed = append(failed, v.save(ctx, key))
	}
	return d.closing(errors.Join(failed...))
}

// every returns how long it takes until a record is put again: signatures are
// renewed when half of their validity is over.
func (v *values) every(k *kept) time.Duration {
	if k.validity > 0 {
		return min(v.d.cfg.interval(), k.validity/2)
	}
	return v.d.cfg.interval()
}

// placed notes that peers hold a record.
func (v *values) placed(ctx context.Context, key string, k *kept) error {
	seen := v.copied(k)
	seen.unseen, seen.next = false, time.Now().Add(v.every(k))
	return v.replace(ctx, key, k, seen)
}

func (v *values) copied(k *kept) *kept {
	v.mu.Lock()
	defer v.mu.Unlock()
	other := *k
	return &other
}

// Values returns how many records the node puts again.
func (d *DHT) Values() int {
	d.values.mu.Lock()
	defer d.values.mu.Unlock()
	return len(d.values.kept)
}

// due returns the keys of the records that are to be put now, and when the next
// is; without any, the wait is an hour.
func (v *values) due(now time.Time) (keys []string, wait time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wait = time.Hour
	for key, k := range v.kept {
		if left := k.next.Sub(now); left <= 0 {
			keys = append(keys, key)
		} else {
			wait = min(wait, left)
		}
	}
	return keys, wait
}

// hurry makes all records due.
func (v *values) hurry() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range v.kept {
		k.next = time.Time{}
	}
}

// run puts records again until ctx ends.
func (v *values) run(ctx context.Context) {
	for ctx.Err() == nil {
		wake, changed, recovered := v.wake.Wait(), v.d.cfg.Changed.Wait(), v.d.cfg.Recovered.Wait()
		keys, wait := v.due(time.Now())
		if len(keys) > 0 && v.d.Size() > 0 {
			for _, key := range keys {
				v.again(ctx, key)
			}
			continue
		}
		if len(keys) == 0 {
			changed = nil // nothing waits for a peer
		}
		timer := time.NewTimer(wait)
		select {
		case <-recovered:
			v.hurry()
		case <-changed:
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// again puts one record again.
func (v *values) again(ctx context.Context, key string) {
	k := v.get(key)
	if k == nil {
		return // it has just been stopped
	}
	limited, cancel := context.WithTimeout(ctx, announceTimeout)
	var err error
	if k.owner != nil {
		err = v.d.renew(limited, key)
	} else {
		err = v.d.putAgain(limited, key, k)
	}
	cancel()
	v.mu.Lock()
	defer v.mu.Unlock()
	if k = v.kept[key]; k == nil {
		return
	}
	if err == nil {
		k.retry.Reset()
		k.next = time.Now().Add(v.every(k))
		return
	}
	k.next = time.Now().Add(k.retry.Next())
	if ctx.Err() == nil {
		v.d.cfg.Log.Debug("putting a record again", "key", key, "err", err)
	}
}

// putAgain puts a record, unless it has expired or the DHT holds a better one.
func (d *DHT) putAgain(ctx context.Context, key string, k *kept) error {
	if d.tables[0].Validator.Validate(key, k.value) != nil {
		if k.validity > 0 && d.formOf(key) != nil {
			return d.values.replace(ctx, key, k, nil) // it has expired, and nobody here can sign another
		}
		return nil
	}
	best, err := d.GetValue(ctx, key)
	if err != nil && !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	if d.prefers(key, best, k.value) {
		return nil
	}
	return d.put(ctx, key, k.value)
}
