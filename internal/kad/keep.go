package kad

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// keepBatch is how many keys are written to the store at a time.
	keepBatch = 8 << 10
	// fewKeys are announced one by one; more are left to the sweeping provider.
	fewKeys = 32
	// chunkKeys bounds how many keys are announced at a time, and so the memory
	// that announcing takes.
	chunkKeys = 64 << 10
	// stalled is how long no peer may take a record before announcing in bulk
	// counts as failed. It is then tried again.
	stalled = time.Minute
	// sweepDelay is how long after the first CID the cycle begins.
	sweepDelay = 10 * time.Second
	// listBits is the length of the key prefixes by which keys are listed.
	listBits = 8
)

// Progress is how far the announcing of what is kept has come.
type Progress struct {
	Keys    int       // provided
	Pending int       // of them, those that no peer has taken yet
	Next    time.Time // when the next region is announced again; zero if nothing is provided
	Failed  uint64    // announcements in bulk that no peer has taken
}

// keeper keeps what the node provides, and announces it: at once, again and
// again before the records expire, and to peers that have lost them. The
// periodic part is upstream's sweeping provider, which visits the regions of
// the key space in turn.
//
// Upstream (v0.42) drops what it is given while it is offline. What no peer has
// taken is therefore kept in a second store, pending.
type keeper struct {
	d     *DHT
	store datastore.Batching

	online signal.Signal // a sweeping provider has peers
	wake   signal.Signal // there is something to announce
	took   signal.Signal // a peer has taken a record, of those waited for
	passed signal.Signal // a pass has ended

	opening sync.Mutex // held while the stores are opened or closed
	closed  bool       // guarded by opening

	mu       sync.Mutex
	keys     keystore.Keystore // nil until the node provides something
	pending  keystore.Keystore
	sweeps   []*sweep.SweepingProvider // one for each table
	busy     map[string]int            // being announced by calls of Provide
	waiting  map[string]bool           // given to the sweeping providers; no peer has taken it yet
	proved   map[peer.ID]time.Time     // when a peer has shown that it holds what it takes
	failed   time.Time                 // when a lookup of the sweeping providers failed last
	hurried  bool                      // they are about to be closed
	wanted   int                       // number of calls that need a pass
	complete int                       // of them, those whose pass has announced everything
}

func newKeeper(d *DHT) *keeper {
	return &keeper{d: d, busy: make(map[string]int), proved: make(map[peer.ID]time.Time)}
}

// open opens the stores and begins to announce what is in them.
func (k *keeper) open() error {
	k.opening.Lock()
	defer k.opening.Unlock()
	if k.closed {
		return errs.ErrClosed
	}
	if k.opened() {
		return nil
	}
	store := k.d.cfg.Store
	if store == nil {
		store = dssync.MutexWrap(datastore.NewMapDatastore())
	}
	base := datastore.NewKey("provide").ChildString(cmp.Or(string(k.d.cfg.Prefix), "public"))
	keys, err := keystore.NewKeystore(namespace.Wrap(store, base.ChildString("keys")))
	if err != nil {
		return fmt.Errorf("keystore: %w", err)
	}
	pending, err := keystore.NewKeystore(namespace.Wrap(store, base.ChildString("pending")))
	if err != nil {
		return errors.Join(fmt.Errorf("keystore: %w", err), keys.Close())
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

// sweep starts the sweeping providers, unless they run. They look around in the
// network for a while, so they start when they are needed.
func (k *keeper) sweep() error {
	k.opening.Lock()
	defer k.opening.Unlock()
	for i := len(k.running()); i < len(k.d.tables) && !k.closed; i++ {
		s, err := k.sweepOf(i)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.sweeps = append(k.sweeps, s)
		k.mu.Unlock()
	}
	return nil
}

// sweepOf builds the sweeping provider of a table.
func (k *keeper) sweepOf(i int) (*sweep.SweepingProvider, error) {
	table := k.d.tables[i]
	// Without WithHost: upstream would forget the addresses of peers that fail
	// once, persistent ones included.
	return sweep.New(
		sweep.WithPeerID(k.d.self),
		sweep.WithRouter(&router{table: table, k: k}),
		sweep.WithMessageSender(proving{table.MessageSender(), k}),
		sweep.WithSelfAddrs(table.FilteredAddrs),
		sweep.WithReplicationFactor(table.BucketSize()),
		sweep.WithKeystore(k.keys),
		sweep.WithDatastore(enduring{namespace.Wrap(k.store, datastore.NewKey(fmt.Sprint(i)))}),
		sweep.WithReprovideInterval(k.d.cfg.interval()),
		sweep.WithMaxReprovideDelay(min(sweep.DefaultMaxReprovideDelay, k.d.cfg.interval()/8)),
		sweep.WithOfflineDelay(neverOffline),
		sweep.WithAddLocalRecord(func(ctx context.Context, key multihash.Multihash) error {
			return k.d.storeOwn(ctx, table, key)
		}),
		sweep.WithConnectivityCallbacks(k.online.Notify, nil, nil),
	)
}

// neverOffline keeps upstream from dropping its queue when the node has been
// without peers for two hours.
const neverOffline = 10 * 365 * 24 * time.Hour

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
		all = append(all, s.Close())
	}
	for _, ks := range []keystore.Keystore{keys, pending} {
		if ks != nil {
			all = append(all, ks.Close())
		}
	}
	return errors.Join(all...)
}

// While it looks around in the network, a sweeping provider (v0.42) sleeps for a
// second after each lookup that fails, and its Close waits for that with a lock. A
// router without errors ends it, and hurry waits for the sleep before Close does.

// lookupPause is how long a sweeping provider sleeps after a failed lookup.
const lookupPause = time.Second

// router finds the peers for the sweeping providers.
type router struct {
	table *dht.IpfsDHT
	k     *keeper
}

func (r *router) GetClosestPeers(ctx context.Context, key string) ([]peer.ID, error) {
	list, err := r.table.GetClosestPeers(ctx, key)
	if err == nil || key == string(r.k.d.self) { // that is how it checks whether there are peers
		return list, err
	}
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	if r.k.hurried {
		return nil, nil
	}
	r.k.failed = time.Now()
	return nil, err
}

// hurry waits until the sweeping providers can be closed without delay.
func (k *keeper) hurry() {
	k.mu.Lock()
	k.hurried = true
	wait := time.Until(k.failed.Add(lookupPause + time.Millisecond))
	k.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
}

// keep stores keys as provided and as not announced yet.
func (k *keeper) keep(ctx context.Context, keys ...multihash.Multihash) error {
	if err := k.open(); err != nil {
		return err
	}
	if ctx.Err() != nil { // a call that will not wait keeps nevertheless
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		ctx = short
	}
	// Pending first: a key that is only there is announced once more than needed,
	// one that is only provided would wait for its turn of the cycle.
	if _, err := k.pending.Put(ctx, keys...); err != nil {
		return fmt.Errorf("keeping what to provide: %w", err)
	}
	if _, err := k.keys.Put(ctx, keys...); err != nil {
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
	return k.pending.Delete(ctx, keys...)
}

func (k *keeper) running() []*sweep.SweepingProvider {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.sweeps)
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
	k, key := d.keep, string(c.Hash())
	if err := k.keep(ctx, c.Hash()); err != nil {
		return d.closing(err)
	}
	k.mu.Lock()
	k.busy[key]++
	k.mu.Unlock()
	err := d.announceUntil(ctx, c)
	if err == nil {
		err = d.closing(k.settled(context.WithoutCancel(ctx), c.Hash()))
	}
	k.mu.Lock()
	if k.busy[key]--; k.busy[key] == 0 {
		delete(k.busy, key)
	}
	k.mu.Unlock()
	k.wake.Notify()
	if err == nil {
		return nil
	}
	if errors.Is(err, errs.ErrClosed) {
		return err
	}
	return &KeptError{err}
}

// closing turns the errors of closed stores into errs.ErrClosed.
func (d *DHT) closing(err error) error {
	if err != nil && d.group.Context().Err() != nil {
		return errs.ErrClosed
	}
	return err
}

// announceUntil announces until a peer holds the record, or ctx ends.
func (d *DHT) announceUntil(ctx context.Context, c cid.Cid) error {
	ctx, done := d.bind(ctx)
	defer done()
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
	ctx, done := d.bind(ctx)
	defer done()
	batch := make([]multihash.Multihash, 0, keepBatch)
	flush := func() error {
		err := k.keep(ctx, batch...)
		batch = batch[:0]
		return d.closing(err)
	}
	for c := range cids {
		if err := CheckCID(c); err != nil {
			return errors.Join(err, flush())
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
	if err := k.await(ctx); err != nil {
		return &KeptError{err}
	}
	return nil
}

// await waits until everything that is kept now is announced.
func (k *keeper) await(ctx context.Context) error {
	k.mu.Lock()
	k.wanted++
	mine := k.wanted
	k.mu.Unlock()
	for {
		passed := k.passed.Wait()
		k.wake.Notify()
		k.mu.Lock()
		complete := k.complete >= mine
		k.mu.Unlock()
		if complete {
			return nil
		}
		select {
		case <-passed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// StopProviding ends the announcing. Other peers forget the records when they
// expire.
func (d *DHT) StopProviding(ctx context.Context, cids ...cid.Cid) error {
	k := d.keep
	if !k.opened() || len(cids) == 0 {
		return nil
	}
	var keys []multihash.Multihash
	for _, c := range cids {
		keys = append(keys, c.Hash())
	}
	all := []error{k.pending.Delete(ctx, keys...)}
	for _, s := range k.running() {
		all = append(all, s.StopProviding(keys...))
	}
	all = append(all, k.keys.Delete(ctx, keys...)) // if none of them runs yet
	return d.closing(errors.Join(all...))
}

// Providing yields what the node provides, as CIDs of version 1 and codec raw.
// A pair with an error is the last one.
func (d *DHT) Providing(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		k := d.keep
		if !k.opened() {
			return
		}
		for _, prefix := range prefixes(listBits) {
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

// Progress returns how much is provided, and how much of it is not announced.
func (d *DHT) Progress(ctx context.Context) (p Progress, err error) {
	k := d.keep
	if !k.opened() {
		return p, nil
	}
	var wrong [2]error
	p.Keys, wrong[0] = k.keys.Size(ctx)
	p.Pending, wrong[1] = k.pending.Size(ctx)
	for _, s := range k.running() {
		st, err := s.Stats(ctx)
		if err != nil || st.Schedule.Regions == 0 {
			continue
		}
		if at := st.Schedule.NextReprovideAt; p.Next.IsZero() || at.Before(p.Next) {
			p.Next = at
		}
		p.Failed += uint64(st.Operations.Past.KeysFailed) //nolint:gosec // a count
	}
	return p, d.closing(errors.Join(wrong[:]...))
}

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
		var keys []multihash.Multihash
		if keys, err = k.keys.Get(ctx, ""); err == nil {
			_, err = k.pending.Put(ctx, keys...)
		}
	}
	if err != nil && ctx.Err() == nil {
		k.d.cfg.Log.Warn("announcing again", "err", err)
	}
	for i, s := range k.running() {
		if !ready(ctx, s) {
			k.restart(i, s)
		}
	}
}

// restart replaces a sweeping provider that looks for peers with delays of up
// to a minute, and cannot be told that there are some.
func (k *keeper) restart(i int, old *sweep.SweepingProvider) {
	k.hurry()
	err := old.Close()
	k.mu.Lock()
	k.hurried = false
	k.mu.Unlock()
	s, err2 := k.sweepOf(i)
	if err = errors.Join(err, err2); err != nil {
		k.d.cfg.Log.Warn("restarting the announcing", "err", err)
	}
	if s == nil {
		return
	}
	k.mu.Lock()
	k.sweeps[i] = s
	k.mu.Unlock()
}

// ready reports whether a sweeping provider would announce what it is given.
func ready(ctx context.Context, s *sweep.SweepingProvider) bool {
	st, err := s.Stats(ctx)
	return err == nil && st.Connectivity.Status == "online" && st.Schedule.AvgPrefixLength >= 0
}

// pass announces what is pending, and reports whether nothing of it is left.
func (k *keeper) pass(ctx context.Context) bool {
	k.mu.Lock()
	mine := k.wanted
	k.mu.Unlock()
	left, err := k.announcePending(ctx)
	if err != nil && ctx.Err() == nil {
		k.d.cfg.Log.Warn("announcing", "err", err)
	}
	if err != nil || left > 0 {
		return false
	}
	k.mu.Lock()
	k.complete = mine
	k.mu.Unlock()
	k.passed.Notify()
	return true
}

func (k *keeper) announcePending(ctx context.Context) (left int, err error) {
	n, err := k.pending.Size(ctx)
	if err != nil || n == 0 {
		return n, err
	}
	bits := 0
	for n>>bits > chunkKeys {
		bits++
	}
	for _, prefix := range prefixes(bits) {
		keys, err := k.pending.Get(ctx, prefix)
		if err != nil {
			return n, err
		}
		keys = k.idle(keys)
		var done []multihash.Multihash
		if n <= fewKeys {
			done = k.d.announceAll(ctx, keys)
		} else {
			done = k.inBulk(ctx, keys)
		}
		if err := k.settled(context.WithoutCancel(ctx), done...); err != nil {
			return n, err
		}
		left += len(keys) - len(done)
		if n > fewKeys {
			k.report(ctx)
		}
		if ctx.Err() != nil {
			return left, ctx.Err()
		}
		if left > 0 && n > fewKeys {
			return left, nil // there is nobody to announce to
		}
	}
	return left, nil
}

// report tells how far announcing in bulk has come.
func (k *keeper) report(ctx context.Context) {
	if p, err := k.d.Progress(ctx); err == nil {
		k.d.cfg.Progress(p)
	}
}

// idle returns the keys that no call of Provide is announcing.
func (k *keeper) idle(keys []multihash.Multihash) []multihash.Multihash {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(keys, func(key multihash.Multihash) bool { return k.busy[string(key)] > 0 })
}

// inBulk announces keys with the sweeping providers, and returns those that a
// peer has taken.
func (k *keeper) inBulk(ctx context.Context, keys []multihash.Multihash) (done []multihash.Multihash) {
	if len(keys) == 0 {
		return nil
	}
	waiting := make(map[string]bool, len(keys))
	for _, key := range keys {
		waiting[string(key)] = true
	}
	k.mu.Lock()
	k.waiting = waiting
	k.mu.Unlock()
	given := false
	if err := k.sweep(); err != nil {
		k.d.cfg.Log.Warn("announcing in bulk", "err", err)
	}
	for _, s := range k.running() {
		given = ready(ctx, s) && s.ProvideOnce(keys...) == nil || given
	}
	timer := time.NewTimer(stalled)
	defer timer.Stop()
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
		case <-timer.C:
		case <-ctx.Done():
		}
		break
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting = nil
	return slices.DeleteFunc(keys, func(key multihash.Multihash) bool { return waiting[string(key)] })
}

// taken notes that a peer has taken a record.
func (k *keeper) taken(key []byte) {
	k.mu.Lock()
	waited := k.waiting[string(key)]
	delete(k.waiting, string(key))
	k.mu.Unlock()
	if waited {
		k.took.Notify()
	}
}
