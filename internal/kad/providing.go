package kad

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// listBits is the least length of the key prefixes by which keys are listed, and
// listKeys about how many are listed at a time.
const (
	listBits = 4
	listKeys = 4 << 10
)

// Progress is how far the announcing of what is kept has come.
type Progress struct {
	Keys    int       // provided
	Pending int       // of them, those that no peer has taken yet
	Next    time.Time // when the next region is announced again; zero if nothing is provided
	Failed  uint64    // announcements in bulk that no peer has taken
}

// KeptError is the error of an announcement that goes on: what no peer has
// taken is kept, and announced when there is a peer for it.
type KeptError struct{ Err error }

func (e *KeptError) Error() string {
	return e.Err.Error() + "; it is kept, and announced as soon as a peer takes it"
}

func (e *KeptError) Unwrap() error { return e.Err }

// Provide announces that the node has c until StopProviding or Close. It
// returns nil once another peer has proved to hold the record, and a KeptError
// when ctx ends before.
func (d *DHT) Provide(ctx context.Context, c cid.Cid) error {
	k := d.keep
	if err := k.open(); err != nil {
		return err
	}
	ctx, done := d.bind(ctx)
	defer done()
	defer k.wake.Notify() // after end: what is left is announced in the background
	var announcing context.Context
	end := func() {}
	defer func() { end() }()
	err := k.change(ctx, func(long context.Context) error {
		announcing, end = k.begin(ctx, c.Hash())
		if err := k.put(long, c.Hash()); err != nil {
			return err
		}
		k.enter(long, c.Hash())
		return nil
	})
	if err != nil {
		return err
	}
	switch err := d.announceUntil(announcing, c); {
	case err == nil:
		if err := k.settled(ctx, c.Hash()); err != nil && !errors.Is(err, errs.ErrClosed) {
			d.cfg.Log.Debug("an announcement is not settled", "cid", c, "err", err) // it is announced once more
		}
		return nil
	case errors.Is(err, errs.ErrClosed):
		return err
	case errors.Is(context.Cause(announcing), errStopped):
		return errStopped
	default:
		return &KeptError{err}
	}
}

// announceUntil announces until a peer holds the record, or ctx ends.
func (d *DHT) announceUntil(ctx context.Context, c cid.Cid) error {
	retry := backoff.Backoff{Min: retryMin, Max: retryMax}
	for {
		recovered := d.cfg.Recovered.Wait()
		err := d.announce(ctx, c)
		if !errors.Is(err, errs.ErrNoPeers) || errors.Is(err, errNoAddress) {
			return err
		}
		pause(ctx, retry.Next(), recovered)
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}

// ProvideMany does what Provide does for many CIDs, in a memory that does not
// grow with their number. The CIDs that it has read when ctx ends are kept.
func (d *DHT) ProvideMany(ctx context.Context, cids iter.Seq[cid.Cid]) error {
	k := d.keep
	if err := k.open(); err != nil {
		return err
	}
	ctx, done := d.bind(ctx)
	defer done()
	defer k.wake.Notify() // whatever ends it, what is kept is announced
	w := &wait{keys: make(map[string]bool), done: make(chan struct{})}
	batch := make([]multihash.Multihash, 0, keepBatch)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := k.change(ctx, func(ctx context.Context) error { return k.put(ctx, batch...) })
		batch = batch[:0]
		return err
	}
	for c := range cids {
		if err := CheckCID(c); err != nil {
			return errors.Join(err, flush())
		}
		if w.keys != nil {
			if w.keys[string(c.Hash())] = true; len(w.keys) > chunkKeys {
				w.keys = nil
			}
		}
		if batch = append(batch, c.Hash()); len(batch) == keepBatch {
			if err := flush(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if err := k.await(ctx, w); err != nil && !errors.Is(err, errs.ErrClosed) {
		return &KeptError{err}
	} else if err != nil {
		return err
	}
	return nil
}

// await waits until what a call has given is announced.
func (k *keeper) await(ctx context.Context, w *wait) error {
	k.mu.Lock()
	k.waits[w] = true
	k.mu.Unlock()
	k.wake.Notify()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		k.mu.Lock()
		delete(k.waits, w)
		k.mu.Unlock()
		return context.Cause(ctx)
	}
}

// StopProviding ends the announcing. Other peers forget the records when they
// expire.
func (d *DHT) StopProviding(ctx context.Context, cids ...cid.Cid) error {
	k := d.keep
	if !k.opened() || len(cids) == 0 {
		return nil
	}
	ctx, done := d.bind(ctx)
	defer done()
	var keys []multihash.Multihash
	for _, c := range cids {
		keys = append(keys, c.Hash())
	}
	return k.change(ctx, func(ctx context.Context) error {
		// What is provided first: what is only pending is announced once.
		all := []error{k.keys.Delete(ctx, keys...), k.pending.Delete(ctx, keys...)}
		for _, s := range k.running() {
			if err := s.StopProviding(keys...); !errors.Is(err, sweep.ErrClosed) { // one that is replaced
				all = append(all, err)
			}
		}
		k.forget(keys)
		k.wake.Notify() // a call of ProvideMany may wait for these only
		return errors.Join(all...)
	})
}

// Providing yields what the node provides, as CIDs of version 1 and codec raw.
// A pair with an error is the last one.
func (d *DHT) Providing(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		k := d.keep
		if !k.opened() {
			return
		}
		ctx, done := d.bind(ctx)
		defer done()
		n, err := k.keys.Size(ctx)
		if err != nil {
			yield(cid.Undef, d.closing(err))
			return
		}
		for _, prefix := range prefixes(max(listBits, split(n, listKeys))) {
			keys, err := k.keys.Get(ctx, prefix)
			if err != nil {
				yield(cid.Undef, d.closing(err))
				return
			}
			for _, key := range keys {
				if !yield(cid.NewCidV1(cid.Raw, key), nil) {
					return
				}
			}
		}
	}
}

// closing turns the errors of closed stores into errs.ErrClosed.
func (d *DHT) closing(err error) error {
	if err != nil && d.group.Context().Err() != nil {
		return errs.ErrClosed
	}
	return err
}

// prefixes returns all prefixes of a length.
func prefixes(bits int) []bitstr.Key {
	if bits == 0 {
		return []bitstr.Key{""}
	}
	list := make([]bitstr.Key, 1<<bits)
	for i := range list {
		list[i] = bitstr.Key(fmt.Sprintf("%0*b", bits, i))
	}
	return list
}

// Progress returns how much is provided, and how much of it is not announced. When
// the datastore does not answer before ctx ends, it returns what it last did, with
// an error.
func (d *DHT) Progress(ctx context.Context) (p Progress, err error) {
	k := d.keep
	if !k.opened() {
		return p, nil
	}
	keys, err := k.keys.Size(ctx)
	pending, err2 := k.pending.Size(ctx)
	if err = errors.Join(err, err2); err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.silent = k.silent || errors.Is(err, context.DeadlineExceeded)
		return k.last, d.closing(err)
	}
	p.Keys, p.Pending = keys, pending
	for _, s := range k.running() {
		st, err := s.Stats(ctx)
		if err != nil {
			continue
		}
		p.Failed += uint64(st.Operations.Past.KeysFailed) //nolint:gosec // a count
		if at := st.Schedule.NextReprovideAt; keys > 0 && st.Schedule.Regions > 0 && (p.Next.IsZero() || at.Before(p.Next)) {
			p.Next = at
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.Pending = max(0, p.Pending-k.moved)
	// Upstream counts those of the cycle too, but only in networks of at least 20
	// servers.
	p.Failed = max(p.Failed+k.earlier, k.refused)
	k.last, k.silent = p, false
	return p, nil
}
