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
	"github.com/ipfs/go-datastore/query"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// AdvertiseInterval is how often a namespace is announced again, well within
	// the lifetime of a provider record and of the addresses with it.
	AdvertiseInterval = 3 * time.Hour
	// advertisePause is how long a namespace that a peer holds is left alone,
	// however often the node loses all peers.
	advertisePause = time.Minute
)

// errAdvertStopped ends the announcements of what is no longer advertised.
var errAdvertStopped = errors.New("ended by StopAdvertising")

// advertiseInterval is shorter where records do not last as long as usual.
func (c *Config) advertiseInterval() time.Duration {
	return min(AdvertiseInterval, cmp.Or(c.Lifetime, RecordLifetime)/2)
}

// adverts are the namespaces that the node advertises. It announces them before
// the records expire, when it has peers again, and to peers that have lost them.
type adverts struct {
	d     *DHT
	store datastore.Batching // nil: in memory only
	wake  signal.Signal      // there is a new one, or one is free to be announced

	changing chan struct{} // holds a token while somebody changes the store

	mu   sync.Mutex
	kept map[string]*advert // by namespace; guarded by mu
	runs bool               // guarded by mu
}

// advert is a namespace that is advertised. adverts.mu guards all but the first
// four fields, which do not change.
type advert struct {
	name string
	key  multihash.Multihash
	ctx  context.Context // ends when it is stopped
	end  context.CancelCauseFunc

	stays  bool // until StopAdvertising
	users  int  // calls of AdvertiseWhile
	listed bool // Advertising names it

	next  time.Time // when it is announced again
	held  time.Time // when a peer took it last; zero if none has
	calls int       // announcements of it under way
	retry backoff.Backoff
}

func newAdverts(d *DHT) *adverts {
	a := &adverts{d: d, changing: make(chan struct{}, 1), kept: make(map[string]*advert)}
	if d.cfg.Store != nil {
		a.store = namespace.Wrap(d.cfg.Store, datastore.NewKey("advertise").ChildString(cmp.Or(string(d.cfg.Prefix), "public")))
	}
	return a
}

// advertKey is the same for namespaces of any length.
func advertKey(namespace string) datastore.Key {
	return datastore.NewKey(NamespaceCID(namespace).String())
}

// load reads what an earlier run has advertised.
func (a *adverts) load(ctx context.Context) error {
	if a.store == nil {
		return nil
	}
	found, err := a.store.Query(ctx, query.Query{})
	if err != nil {
		return fmt.Errorf("reading what was advertised: %w", err)
	}
	entries, err := found.Rest()
	if err != nil {
		return fmt.Errorf("reading what was advertised: %w", err)
	}
	for _, e := range entries {
		if datastore.RawKey(e.Key) == advertKey(string(e.Value)) {
			a.add(string(e.Value), time.Now(), 0, stay)
		}
	}
	return nil
}

// stay makes a namespace stay until StopAdvertising.
func stay(ad *advert) { ad.stays, ad.listed = true, true }

// add adds a namespace that is announced from next on, unless some of its calls
// are under way.
func (a *adverts) add(namespace string, next time.Time, calls int, use func(*advert)) *advert {
	a.mu.Lock()
	ad := a.kept[namespace]
	if ad == nil {
		ad = &advert{name: namespace, key: NamespaceCID(namespace).Hash(), next: next, retry: backoff.Backoff{Min: retryMin, Max: retryMax}}
		ad.ctx, ad.end = context.WithCancelCause(a.d.group.Context())
		a.kept[namespace] = ad
	}
	ad.calls += calls
	use(ad)
	start := !a.runs
	a.runs = true
	a.mu.Unlock()
	if start {
		a.d.group.Go(a.run)
		a.d.group.Go(func(ctx context.Context) { a.d.eachReturned(ctx, "p2pnode advertise", a.refill) })
	}
	a.wake.Notify()
	return ad
}

// change runs f, which changes the store, when nobody else does.
func (a *adverts) change(ctx context.Context, f func(context.Context) error) error {
	return a.d.patiently(ctx, func(ctx context.Context) error {
		select {
		case a.changing <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-a.changing }()
		return f(ctx)
	})
}

// Advertise announces a namespace until StopAdvertising or Close. It returns the
// result of the first attempt: nil once a peer holds the announcement, and
// otherwise a KeptError.
func (d *DHT) Advertise(ctx context.Context, namespace string) error {
	a := d.adverts
	ctx, done := d.bind(ctx)
	defer done()
	if d.group.Context().Err() != nil {
		return errs.ErrClosed
	}
	var ad *advert
	if a.store == nil {
		ad = a.add(namespace, time.Now(), 1, stay)
	} else {
		added := make(chan *advert, 1)
		err := a.change(ctx, func(ctx context.Context) error {
			key := advertKey(namespace)
			if err := errors.Join(a.store.Put(ctx, key, []byte(namespace)), a.store.Sync(ctx, key)); err != nil {
				return err
			}
			// Without a call: the caller may no longer wait.
			added <- a.add(namespace, time.Now().Add(retryMin), 0, stay)
			return nil
		})
		if err != nil {
			return d.closing(fmt.Errorf("keeping what to advertise: %w", err))
		}
		ad = <-added
		a.mu.Lock()
		ad.calls++
		a.mu.Unlock()
	}
	both, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ad.ctx, func() {
		if errors.Is(context.Cause(ad.ctx), errAdvertStopped) { // else the node closes, which ends ctx
			cancel(errAdvertStopped)
		}
	})()
	err := a.announce(both, ad)
	switch {
	case err == nil, errors.Is(err, errs.ErrClosed):
		return err
	case errors.Is(context.Cause(both), errAdvertStopped):
		return errAdvertStopped
	default:
		return &KeptError{err}
	}
}

// StopAdvertising ends the announcing. Peers forget the records when they expire.
func (d *DHT) StopAdvertising(ctx context.Context, namespaces ...string) error {
	a := d.adverts
	a.drop(namespaces)
	if a.store == nil || len(namespaces) == 0 {
		return nil
	}
	ctx, done := d.bind(ctx)
	defer done()
	return d.closing(a.change(ctx, func(ctx context.Context) error {
		a.drop(namespaces) // one may have been added meanwhile
		var failed []error
		for _, name := range namespaces {
			failed = append(failed, a.store.Delete(ctx, advertKey(name)))
		}
		return errors.Join(append(failed, a.store.Sync(ctx, datastore.NewKey("/")))...)
	}))
}

func (a *adverts) drop(namespaces []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range namespaces {
		if ad := a.kept[name]; ad != nil {
			ad.stays = false
			a.endLocked(ad)
		}
	}
}

// endLocked ends a namespace that nothing needs any more.
func (a *adverts) endLocked(ad *advert) {
	if !ad.stays && ad.users == 0 {
		ad.end(errAdvertStopped)
		delete(a.kept, ad.name)
	}
}

// AdvertiseWhile announces a namespace until ctx ends, without writing it to the
// datastore. Advertising names it if it is listed.
func (d *DHT) AdvertiseWhile(ctx context.Context, namespace string, listed bool) {
	a := d.adverts
	if d.group.Context().Err() != nil {
		return
	}
	ad := a.add(namespace, time.Now(), 0, func(ad *advert) {
		ad.users++
		ad.listed = ad.listed || listed
	})
	select {
	case <-ctx.Done():
	case <-d.group.Context().Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ad.users--
	a.endLocked(ad)
}

// Advertising returns what is advertised, sorted.
func (d *DHT) Advertising() []string {
	d.adverts.mu.Lock()
	defer d.adverts.mu.Unlock()
	var list []string
	for name, ad := range d.adverts.kept {
		if ad.listed {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// Adverts returns how many namespaces are advertised, and how many of them no
// peer has taken yet.
func (d *DHT) Adverts() (all, pending int) {
	d.adverts.mu.Lock()
	defer d.adverts.mu.Unlock()
	for _, ad := range d.adverts.kept {
		if ad.held.IsZero() {
			pending++
		}
	}
	return len(d.adverts.kept), pending
}

// announce announces a namespace, one of whose calls this is.
func (a *adverts) announce(ctx context.Context, ad *advert) error {
	_, err := a.d.store(ctx, ad.key)
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.wake.Notify()
	ad.calls--
	if err != nil {
		ad.next = time.Now().Add(ad.retry.Next())
		return err
	}
	ad.retry.Reset()
	ad.held = time.Now()
	ad.next = ad.held.Add(a.d.cfg.advertiseInterval())
	return nil
}

// due returns what is to be announced now, and when the next is; without any, the
// wait is an hour.
func (a *adverts) due(now time.Time) (list []*advert, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait = time.Hour
	for _, ad := range a.kept {
		switch left := ad.next.Sub(now); {
		case ad.calls > 0:
		case left <= 0:
			list = append(list, ad)
		default:
			wait = min(wait, left)
		}
	}
	return list, wait
}

// hurry makes everything due that has not been announced just now.
func (a *adverts) hurry(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ad := range a.kept {
		at := now
		if soonest := ad.held.Add(advertisePause); at.Before(soonest) {
			at = soonest
		}
		if at.Before(ad.next) {
			ad.next = at
		}
		ad.retry.Reset()
	}
}

// run announces namespaces until ctx ends.
func (a *adverts) run(ctx context.Context) {
	recovered := a.d.cfg.Recovered.Wait()
	for ctx.Err() == nil {
		wake, changed := a.wake.Wait(), a.d.cfg.Changed.Wait()
		list, wait := a.due(time.Now())
		if len(list) > 0 && a.d.Size() > 0 {
			a.some(list)
			continue
		}
		if len(list) == 0 {
			changed = nil // nothing waits for a peer
		}
		timer := time.NewTimer(wait)
		select {
		case <-recovered:
			recovered = a.d.cfg.Recovered.Wait()
			a.hurry(time.Now()) // others may have forgotten them meanwhile
		case <-changed:
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// some announces namespaces, a few at a time.
func (a *adverts) some(list []*advert) {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, announceAtOnce)
	for _, ad := range list {
		room <- struct{}{} // each announcement ends within its timeout
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ad.ctx, announceTimeout)
			defer cancel()
			a.mu.Lock()
			ad.calls++
			a.mu.Unlock()
			if err := a.announce(ctx, ad); err != nil && ctx.Err() == nil {
				a.d.cfg.Log.Debug("advertising failed, retrying", "namespace", ad.name, "err", err)
			}
		})
	}
}

// refill sends a peer the announcements that it should hold, if it has lost one. It
// is never called again later.
func (a *adverts) refill(ctx context.Context, id peer.ID) bool {
	a.refillPeer(ctx, id)
	return true
}

func (a *adverts) refillPeer(ctx context.Context, id peer.ID) {
	table := a.d.tableOf(id)
	if table == nil || !a.d.cfg.Host.Connected(id) {
		return
	}
	self := peer.AddrInfo{ID: a.d.self, Addrs: table.FilteredAddrs()}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil || len(self.Addrs) == 0 {
		return
	}
	var held, near []multihash.Multihash
	a.mu.Lock()
	for _, ad := range a.kept {
		if !ad.held.IsZero() {
			held = append(held, ad.key)
		}
	}
	a.mu.Unlock()
	for _, key := range held {
		if slices.Contains(table.RoutingTable().NearestPeers(kb.ConvertKey(string(key)), closest), id) {
			near = append(near, key)
		}
	}
	lost := false
	for i, key := range near {
		// Who lacks one may lack all, but one may have been announced to fewer peers
		// than others.
		if !lost {
			if i == fewKeys {
				return
			}
			var not *notHeldError
			if lost = errors.As(a.d.holds(ctx, messenger, id, key), &not); !lost {
				continue
			}
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		err := messenger.PutProviderAddrs(ctx, id, key, self)
		cancel()
		if err != nil {
			return
		}
	}
}
