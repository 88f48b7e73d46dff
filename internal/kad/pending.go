package kad

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

const (
	// fewKeys are announced one by one; more are left to the sweeping provider.
	fewKeys = 32
	// chunkKeys bounds how many keys are announced at a time, and so the memory
	// that announcing takes.
	chunkKeys = 64 << 10
	// stalled is how long no peer may take a record before announcing in bulk
	// counts as failed. It is then tried again.
	stalled = time.Minute
	// reportEvery is how often Progress is called while keys are announced in bulk.
	reportEvery = 10 * time.Second
	// sweepDelay is how long after the first CID the cycle begins.
	sweepDelay = 10 * time.Second
)

// run announces what is pending, whenever something is or there are peers
// again, and then with growing delays.
func (k *keeper) run(ctx context.Context) {
	retry := backoff.Backoff{Min: retryMin, Max: retryMax}
	calm := time.After(sweepDelay)
	if n, err := k.keys.Size(ctx); err == nil && n == 0 {
		calm = nil // opened for what an earlier run has left, which is nothing
	}
	for {
		wake, online, recovered := k.wake.Wait(), k.online.Wait(), k.d.cfg.Recovered.Wait()
		var later <-chan time.Time
		timer := time.NewTimer(time.Hour)
		if k.pass(ctx) {
			retry.Reset()
		} else {
			timer.Reset(retry.Next())
			later = timer.C
		}
		select {
		case <-wake:
			if calm == nil {
				calm = time.After(sweepDelay)
			}
		case <-online:
		case <-recovered:
			k.recover(ctx)
		case <-later:
		case <-calm:
			calm = make(chan time.Time) // once
			if err := k.sweep(); err != nil {
				k.d.cfg.Log.Warn("announcing again and again", "err", err)
				calm = time.After(retryMax)
			}
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// recover is for the moment in which there are peers again after there were
// none. A few keys are announced again, as the peers may have restarted; for
// many it is done peer by peer, see refill.
func (k *keeper) recover(ctx context.Context) {
	n, err := k.keys.Size(ctx)
	if err == nil && n <= fewKeys {
		err = k.change(ctx, func(ctx context.Context) error {
			keys, err := k.keys.Get(ctx, "")
			if err == nil {
				_, err = k.pending.Put(ctx, keys...)
			}
			return err
		})
	}
	if err != nil && ctx.Err() == nil {
		k.d.cfg.Log.Warn("announcing again", "err", err)
	}
	for i, s := range k.running() {
		if !ready(ctx, s) {
			k.restart(ctx, i, s)
		}
	}
}

// wait is a call of ProvideMany that waits.
type wait struct {
	keys map[string]bool // that it has given; nil: more than chunkKeys
	done chan struct{}   // closed when they are announced
}

// pass announces what is pending, and reports whether nothing of it is left.
func (k *keeper) pass(ctx context.Context) bool {
	k.mu.Lock()
	waits := make([]*wait, 0, len(k.waits))
	for w := range k.waits {
		waits = append(waits, w) // what they have given is pending, or announced
	}
	k.mu.Unlock()
	left, all, err := k.announcePending(ctx)
	if err != nil && ctx.Err() == nil {
		k.d.cfg.Log.Warn("announcing", "err", err)
	}
	if err != nil || !all {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range waits {
		// What somebody else gave, and nobody takes, holds up nobody.
		own := func(key multihash.Multihash) bool { return w.keys == nil || w.keys[string(key)] }
		if k.waits[w] && !slices.ContainsFunc(left, own) {
			delete(k.waits, w)
			close(w.done)
		}
	}
	return len(left) == 0
}

// announcePending announces what is pending, unless nobody takes it. It returns
// what is left, and whether that is all that is left.
func (k *keeper) announcePending(ctx context.Context) (left []multihash.Multihash, all bool, err error) {
	n, err := k.pending.Size(ctx)
	if err != nil || n == 0 {
		return nil, err == nil, err
	}
	defer k.report(ctx)
	for _, prefix := range prefixes(split(n, chunkKeys)) {
		k.mu.Lock()
		k.dropped = make(map[string]bool)
		k.mu.Unlock()
		var keys []multihash.Multihash
		err := k.change(ctx, func(ctx context.Context) (err error) {
			keys, err = k.pending.Get(ctx, prefix)
			k.enter(ctx, keys...)
			return err
		})
		if err != nil {
			return left, false, err
		}
		keys, busy := k.idle(keys)
		left = append(left, busy...)
		var done []multihash.Multihash
		if n <= fewKeys {
			done = k.oneByOne(ctx, keys)
		} else {
			done = k.inBulk(ctx, keys)
		}
		keys, done = k.undropped(keys), k.undropped(done)
		err = k.settled(ctx, done...)
		k.mu.Lock()
		k.moved = 0
		k.mu.Unlock()
		if err != nil {
			return left, false, err
		}
		left = append(left, without(keys, done)...)
		if len(done) == 0 && len(keys) > fewKeys || len(left) > chunkKeys || ctx.Err() != nil {
			return left, false, nil // there is nobody to announce to
		}
		k.report(ctx)
	}
	return left, true, nil
}

// split returns how many bits prefixes must have for n keys to be in parts of
// about size.
func split(n, size int) (bits int) {
	for n>>bits > size {
		bits++
	}
	return bits
}

// without returns the keys of list that are not in done.
func without(list, done []multihash.Multihash) []multihash.Multihash {
	has := make(map[string]bool, len(done))
	for _, key := range done {
		has[string(key)] = true
	}
	return slices.DeleteFunc(list, func(key multihash.Multihash) bool { return has[string(key)] })
}

// undropped returns the keys that are still provided.
func (k *keeper) undropped(keys []multihash.Multihash) []multihash.Multihash {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(keys), func(key multihash.Multihash) bool { return k.dropped[string(key)] })
}

// report tells how far announcing has come.
func (k *keeper) report(ctx context.Context) {
	if p, err := k.d.Progress(ctx); err == nil {
		k.d.cfg.Progress(p)
	}
}

// idle returns the keys that no call of Provide is announcing, and the others.
func (k *keeper) idle(keys []multihash.Multihash) (idle, busy []multihash.Multihash) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		if len(k.calls[string(key)]) > 0 {
			busy = append(busy, key)
		} else {
			idle = append(idle, key)
		}
	}
	return idle, busy
}

// oneByOne announces keys one by one, some at a time, and returns those that a
// peer holds.
func (k *keeper) oneByOne(ctx context.Context, list []multihash.Multihash) (done []multihash.Multihash) {
	var mu sync.Mutex // guards done
	var wg sync.WaitGroup
	room := make(chan struct{}, announceAtOnce)
	for _, key := range list {
		ctx, end := k.begin(ctx, key)
		wg.Go(func() {
			defer end()
			room <- struct{}{} // each announcement ends with ctx
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, announceTimeout)
			defer cancel()
			if ctx.Err() == nil && k.d.announce(ctx, cid.NewCidV1(cid.Raw, key)) == nil {
				mu.Lock()
				done = append(done, key)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return done
}

// inBulk announces keys with the sweeping providers, and returns those that a
// peer has taken, or that are no longer provided.
func (k *keeper) inBulk(ctx context.Context, keys []multihash.Multihash) (done []multihash.Multihash) {
	if len(keys) == 0 {
		return nil
	}
	waiting := make(map[string]bool, len(keys))
	for _, key := range keys {
		waiting[string(key)] = true
	}
	k.mu.Lock()
	k.waiting, k.takers = waiting, make(map[peer.ID][]multihash.Multihash)
	k.mu.Unlock()
	given := false
	if err := k.sweep(); err != nil {
		k.d.cfg.Log.Warn("announcing in bulk", "err", err)
	}
	for _, s := range k.running() {
		given = ready(ctx, s) && s.ProvideOnce(keys...) == nil || given
	}
	timer, ticker := time.NewTimer(stalled), time.NewTicker(reportEvery)
	defer timer.Stop()
	defer ticker.Stop()
	for given {
		took := k.took.Wait()
		k.mu.Lock()
		left := len(waiting)
		k.mu.Unlock()
		if left == 0 {
			break
		}
		select {
		case <-took:
			timer.Reset(stalled)
			continue
		case <-ticker.C:
			k.report(ctx)
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		break
	}
	k.mu.Lock()
	takers := k.takers
	k.takers, k.waiting = nil, nil // nothing is added from here
	k.mu.Unlock()
	for _, key := range k.confirm(ctx, takers) {
		waiting[string(key)] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if given && ctx.Err() == nil {
		k.refused += uint64(len(waiting))
	}
	return slices.DeleteFunc(slices.Clone(keys), func(key multihash.Multihash) bool { return waiting[string(key)] })
}
