package kad

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/memstore"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// keepBatch is how many keys are written to the store at a time.
	keepBatch = 8 << 10
	// storePatience is how long a call goes on waiting for the datastore after its
	// context has ended: what it has begun to keep is kept.
	storePatience = time.Second
)

// keeper keeps what the node provides, and announces it: at once, again and
// again before the records expire, and to peers that have lost them. The
// periodic part is upstream's sweeping provider, which visits the regions of
// the key space in turn.
//
// Upstream (v0.42) drops what it is given while it is offline. What no peer has
// taken is therefore kept in a second store, pending.
type keeper struct {
	d     *DHT
	store datastore.Batching // of the sweeping providers

	online signal.Signal // a sweeping provider has peers
	wake   signal.Signal // there is something to announce
	took   signal.Signal // fewer records are waited for

	changing chan struct{} // holds a token while somebody changes both stores
	opening  sync.Mutex    // held while the stores are opened or closed
	closed   bool          // guarded by opening

	mu      sync.Mutex
	keys    keystore.Keystore // nil until the node provides something
	pending keystore.Keystore
	trouble error                             // of writing to the datastore, until it works again
	silent  bool                              // the datastore has not answered
	last    Progress                          // as it was when the datastore last answered
	sweeps  []*sweep.SweepingProvider         // one for each table
	earlier uint64                            // failures of sweeping providers that were replaced
	failed  time.Time                         // when a lookup of the sweeping providers failed last
	hurried bool                              // they are about to be closed
	proved  map[peer.ID]time.Time             // when a peer has shown that it holds what it takes
	calls   map[string][]*announcement        // by key, of what is announced one by one
	waiting map[string]bool                   // given to the sweeping providers; no peer has taken it yet
	takers  map[peer.ID][]multihash.Multihash // the first peers to take what was waited for
	moved   int                               // taken, but not removed from pending yet
	dropped map[string]bool                   // no longer provided, since the keys that are announced were read
	refused uint64                            // announcements in bulk that no peer has taken
	waits   map[*wait]bool                    // calls of ProvideMany that wait
	sent    map[peer.ID]sent                  // when peers are sent records in bulk
	entered map[bitstr.Key]time.Time          // when regions were entered in the history, lately
	shorts  map[string]int                    // of keys that fewer peers took than should hold them, how many are missing
	doubts  map[peer.ID]doubted               // peers that did not hold what they had taken
	spreads map[*dht.IpfsDHT]*spread          // by table, who gets records
}

func newKeeper(d *DHT) *keeper {
	return &keeper{
		d: d, changing: make(chan struct{}, 1), proved: make(map[peer.ID]time.Time),
		calls: make(map[string][]*announcement), waits: make(map[*wait]bool), sent: make(map[peer.ID]sent), entered: make(map[bitstr.Key]time.Time),
		shorts: make(map[string]int), doubts: make(map[peer.ID]doubted),
		spreads: make(map[*dht.IpfsDHT]*spread),
	}
}

// spreadOf returns what chooses who gets the records of a table.
func (k *keeper) spreadOf(table *dht.IpfsDHT) *spread {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spreads[table] == nil {
		k.spreads[table] = newSpread(table.BucketSize())
	}
	return k.spreads[table]
}

// open opens the stores and begins to announce what is in them.
func (k *keeper) open() error {
	if k.opened() {
		return nil // without the lock, which may be held for long
	}
	k.opening.Lock()
	defer k.opening.Unlock()
	if k.closed {
		return errs.ErrClosed
	}
	if k.opened() {
		return nil
	}
	base := datastore.NewKey("provide").ChildString(cmp.Or(string(k.d.cfg.Prefix), "public"))
	store, keys, pending := k.d.cfg.Store, newMemory(), newMemory()
	if store == nil {
		store = memstore.New()
	} else {
		var err error
		if keys, err = keystore.NewKeystore(namespace.Wrap(store, base.ChildString("keys"))); err != nil {
			return fmt.Errorf("keystore: %w", err)
		}
		if pending, err = keystore.NewKeystore(namespace.Wrap(store, base.ChildString("pending"))); err != nil {
			return errors.Join(fmt.Errorf("keystore: %w", err), keys.Close())
		}
	}
	k.mu.Lock()
	k.keys, k.pending, k.store = keys, pending, namespace.Wrap(store, base.ChildString("sweep"))
	k.mu.Unlock()
	k.d.group.Go(k.run)
	k.d.group.Go(k.refill)
	return nil
}

func (k *keeper) opened() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys != nil
}

// close ends the sweeping providers and the stores, after the goroutines that
// use them.
func (k *keeper) close() error {
	k.opening.Lock()
	defer k.opening.Unlock()
	k.closed = true
	k.mu.Lock()
	sweeps, keys, pending := k.sweeps, k.keys, k.pending
	k.mu.Unlock()
	var all []error
	k.hurry()
	for _, s := range sweeps {
		all = append(all, end(s))
	}
	for _, ks := range []keystore.Keystore{keys, pending} {
		if ks != nil {
			all = append(all, ks.Close())
		}
	}
	return errors.Join(all...)
}

// outlive returns a context that ends storePatience after ctx.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		pause(out, storePatience, nil)
		cancel()
	})
	return out, func() {
		stop()
		cancel()
	}
}

// change runs f, which changes both stores, when nobody else does. What f has
// begun goes on for a moment when ctx ends.
func (k *keeper) change(ctx context.Context, f func(context.Context) error) error {
	ctx, done := outlive(ctx)
	defer done()
	select {
	case k.changing <- struct{}{}:
	case <-ctx.Done():
		return k.note(ctx.Err())
	}
	defer func() { <-k.changing }()
	return k.note(f(ctx))
}

// note keeps an error of the datastore for Warnings, until there is none.
func (k *keeper) note(err error) error {
	switch {
	case err == nil:
	case k.d.group.Context().Err() != nil:
		return errs.ErrClosed // its stores are closed, or about to be
	case errors.Is(err, context.Canceled):
		err = fmt.Errorf("the datastore did not answer within %v: %w", storePatience, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.trouble == nil {
		k.d.cfg.Log.Warn("what is provided cannot be kept", "err", err)
	}
	k.trouble = err
	return err
}

// Warnings tells what is wrong with the datastore of what is provided.
func (d *DHT) Warnings() []string {
	d.keep.mu.Lock()
	defer d.keep.mu.Unlock()
	switch {
	case d.keep.trouble != nil:
		return []string{"what the node provides cannot be kept: " + d.keep.trouble.Error()}
	case d.keep.silent:
		return []string{"what the node provides cannot be read: the datastore does not answer"}
	default:
		return nil
	}
}

// put stores keys as provided and as not announced yet. Pending comes first: a key
// that is only there is announced once more than needed, one that is only provided
// would wait for its turn of the cycle.
func (k *keeper) put(ctx context.Context, keys ...multihash.Multihash) error {
	added, err := k.pending.Put(ctx, keys...)
	if err != nil {
		return fmt.Errorf("keeping what to provide: %w", err)
	}
	if _, err := k.keys.Put(ctx, keys...); err != nil {
		_ = k.pending.Delete(ctx, added...) // otherwise announced once, without effect later
		return fmt.Errorf("keeping what to provide: %w", err)
	}
	return nil
}

// settled notes that peers have taken keys, and leaves the rest to the cycle.
func (k *keeper) settled(ctx context.Context, keys ...multihash.Multihash) error {
	for _, s := range k.running() {
		// One that is replaced meanwhile is closed; its successor finds the keys.
		if err := s.AddToSchedule(keys...); err != nil && !errors.Is(err, sweep.ErrClosed) {
			return err
		}
	}
	ctx, done := outlive(ctx)
	defer done()
	return k.note(k.pending.Delete(ctx, keys...))
}

func (k *keeper) running() []*sweep.SweepingProvider {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.sweeps)
}

// announcement is one that StopProviding ends.
type announcement struct{ cancel context.CancelCauseFunc }

// errStopped ends the announcements of what is no longer provided.
var errStopped = errors.New("ended by StopProviding")

// begin notes that a key is announced, until the function that it returns is
// called. The context ends with ctx, or when the key is no longer provided.
func (k *keeper) begin(ctx context.Context, key multihash.Multihash) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &announcement{cancel}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[string(key)] = append(k.calls[string(key)], a)
	return ctx, func() {
		cancel(nil)
		k.mu.Lock()
		defer k.mu.Unlock()
		rest := slices.DeleteFunc(k.calls[string(key)], func(other *announcement) bool { return other == a })
		if k.calls[string(key)] = rest; len(rest) == 0 {
			delete(k.calls, string(key))
		}
	}
}

// forget ends the announcements of keys.
func (k *keeper) forget(keys []multihash.Multihash) {
	k.mu.Lock()
	for _, key := range keys {
		for _, a := range k.calls[string(key)] {
			a.cancel(errStopped)
		}
		delete(k.waiting, string(key))
		delete(k.shorts, string(key))
		if k.dropped != nil {
			k.dropped[string(key)] = true
		}
	}
	k.mu.Unlock()
	k.took.Notify()
}
