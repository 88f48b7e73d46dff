package kad

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/multiformats/go-multihash"
)

// A sweeping provider (v0.42) that starts announces all regions that its history
// does not name as announced within the last interval. It enters there what its
// cycle announces, but not what ProvideOnce does, so it would announce everything a
// second time, as soon as it has started and again after a restart. The keeper
// enters the rest, in upstream's form: history/<Unix time in hex>/<region>. And the
// cycle passes over what is pending, which the keeper announces.

// enterEvery is how often a region is entered at most.
const enterEvery = time.Minute

// enter notes for the cycle that regions are announced from now on. It enters only
// regions in which everything is pending: nothing there was announced earlier. Call
// it within change, before keys are announced.
func (k *keeper) enter(ctx context.Context, keys ...multihash.Multihash) {
	regions, err := k.allPending(ctx, keys)
	for _, region := range regions {
		if err == nil {
			err = k.enterRegion(ctx, region)
		}
	}
	if err != nil && ctx.Err() == nil {
		k.d.cfg.Log.Debug("noting what is announced", "err", err) // the cycle may announce it once more
	}
}

// allPending returns the regions of keys in which everything is pending. It is the
// whole key space if that is.
func (k *keeper) allPending(ctx context.Context, keys []multihash.Multihash) (regions []bitstr.Key, err error) {
	// What is announced meanwhile may leave pending between the two questions: it
	// counts as pending still.
	n, err := k.pending.Size(ctx)
	if err != nil || n == 0 {
		return nil, err
	}
	all, err := k.keys.Size(ctx)
	if err != nil || all <= n {
		return []bitstr.Key{""}, err
	}
	length, known := k.regionBits(ctx)
	if !known || length == 0 {
		return nil, nil
	}
	seen := make(map[bitstr.Key]bool)
	for _, key := range keys {
		region := prefixOf(kb.ConvertKey(string(key)), length)
		if seen[region] {
			continue
		}
		seen[region] = true
		n, err := k.pending.CountKeysUpTo(ctx, region, 0)
		if err != nil {
			return nil, err
		}
		all, err := k.keys.CountKeysUpTo(ctx, region, n+1)
		if err != nil {
			return nil, err
		}
		if all <= n {
			regions = append(regions, region)
		}
	}
	return regions, nil
}

func (k *keeper) enterRegion(ctx context.Context, region bitstr.Key) error {
	now := time.Now()
	k.mu.Lock()
	for other, at := range k.entered {
		if now.Sub(at) >= enterEvery {
			delete(k.entered, other)
		}
	}
	_, lately := k.entered[region]
	k.mu.Unlock()
	if lately {
		return nil
	}
	for i := range k.d.tables {
		key := datastore.NewKey(fmt.Sprintf("%d/history/%08x/%s", i, now.Unix(), region))
		if err := k.store.Put(ctx, key, []byte{}); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.entered[region] = now
	return nil
}

// cycleKeys is the keystore of what is provided, for the sweeping providers. Only
// the keeper changes it: upstream would not heed the caller's context.
type cycleKeys struct {
	keystore.Keystore
	k *keeper
}

func (cycleKeys) Put(context.Context, ...multihash.Multihash) ([]multihash.Multihash, error) {
	return nil, nil
}
func (cycleKeys) Delete(context.Context, ...multihash.Multihash) error { return nil }
func (cycleKeys) Empty(context.Context) error                          { return nil }

// ContainsPrefix reports whether there is a key with a prefix. When a sweeping
// provider asks, it has found out how long the prefixes of regions are: until then
// it drops what it is given.
func (c cycleKeys) ContainsPrefix(ctx context.Context, prefix bitstr.Key) (bool, error) {
	c.k.online.Notify()
	return c.Keystore.ContainsPrefix(ctx, prefix)
}

// Get returns the keys with a prefix, without those that are pending, unless they
// are given to the sweeping providers and no peer has taken them: upstream takes
// what it announces in its cycle off its queue.
func (c cycleKeys) Get(ctx context.Context, prefix bitstr.Key) ([]multihash.Multihash, error) {
	return c.k.passOver(ctx, c.Keystore, prefix, func(key multihash.Multihash) bool { return c.k.waiting[string(key)] })
}

// passOver returns the keys of a keystore with a prefix, without those that are
// pending, unless keep is true of them. It is called with the lock held.
func (k *keeper) passOver(ctx context.Context, keys keystore.Keystore, prefix bitstr.Key, keep func(multihash.Multihash) bool) ([]multihash.Multihash, error) {
	// In this order: what is settled in between is passed over too.
	list, err := k.pending.Get(ctx, prefix)
	if err != nil {
		return nil, err
	}
	all, err := keys.Get(ctx, prefix)
	if err != nil || len(list) == 0 {
		return all, err
	}
	pending := make(map[string]bool, len(list))
	for _, key := range list {
		pending[string(key)] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(all, func(key multihash.Multihash) bool {
		return pending[string(key)] && (keep == nil || !keep(key))
	}), nil
}
