package kad

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-datastore/query"
	dht "github.com/libp2p/go-libp2p-kad-dht"

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

	mu   sync.Mutex
	kept map[string]*kept // by key; guarded by mu
	runs bool             // guarded by mu
}

// kept is a record. Its value does not change.
type kept struct {
	value []byte
	next  time.Time // when it is put again; guarded by values.mu
	retry backoff.Backoff
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
		if key, err := base64.RawURLEncoding.DecodeString(datastore.RawKey(e.Key).BaseNamespace()); err == nil {
			v.add(string(key), e.Value, time.Now())
		}
	}
	return nil
}

// keep keeps a record, in place of an earlier one under its key.
func (v *values) keep(ctx context.Context, key string, value []byte, next time.Time) error {
	if v.store != nil {
		if err := v.store.Put(ctx, valueKey(key), value); err != nil {
			return fmt.Errorf("keeping the record: %w", err)
		}
		if err := v.store.Sync(ctx, valueKey(key)); err != nil {
			return fmt.Errorf("keeping the record: %w", err)
		}
	}
	v.add(key, value, next)
	return nil
}

func (v *values) add(key string, value []byte, next time.Time) {
	v.mu.Lock()
	v.kept[key] = &kept{value: bytes.Clone(value), next: next, retry: backoff.Backoff{Min: retryMax, Max: time.Hour}}
	start := !v.runs
	v.runs = true
	v.mu.Unlock()
	if start {
		v.d.group.Go(v.run)
	}
	v.wake.Notify()
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
		if v.store != nil {
			failed = append(failed, v.store.Delete(ctx, valueKey(key)))
		}
	}
	if v.store != nil && len(keys) > 0 {
		failed = append(failed, v.store.Sync(ctx, datastore.NewKey("/")))
	}
	return d.closing(errors.Join(failed...))
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
	v.mu.Lock()
	k := v.kept[key]
	v.mu.Unlock()
	if k == nil {
		return // it has just been stopped
	}
	limited, cancel := context.WithTimeout(ctx, announceTimeout)
	err := v.d.putAgain(limited, key, k.value)
	cancel()
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		k.retry.Reset()
		k.next = time.Now().Add(v.d.cfg.interval())
		return
	}
	k.next = time.Now().Add(k.retry.Next())
	if ctx.Err() == nil {
		v.d.cfg.Log.Debug("putting a record again", "key", key, "err", err)
	}
}

// putAgain puts a record, unless it has expired or the DHT holds a better one.
func (d *DHT) putAgain(ctx context.Context, key string, value []byte) error {
	validator := d.tables[0].Validator
	if validator.Validate(key, value) != nil {
		return nil
	}
	best, err := d.GetValue(ctx, key)
	switch {
	case errors.Is(err, errs.ErrNotFound):
	case err != nil:
		return err
	case !bytes.Equal(best, value):
		if i, err := validator.Select(key, [][]byte{value, best}); err != nil || i != 0 {
			return err
		}
	}
	return d.inActive(func(t *dht.IpfsDHT) error { return putValue(ctx, t, key, value) })
}
