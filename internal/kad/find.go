package kad

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

const (
	// enoughNamed servers that name addresses of a peer end the search for it.
	enoughNamed = 3
	// AddrsTimeout bounds the lookup of a provider's missing addresses, and all
	// such lookups once the search itself is over.
	AddrsTimeout = 5 * time.Second
	// addrsAtOnce bounds how many of them run at a time.
	addrsAtOnce = 48
)

// Search configures FindProviders.
type Search struct {
	Self         bool // the node too
	WithoutAddrs bool // also providers whose addresses cannot be found, with their ID only
	DirectFirst  bool // those with relayed addresses only, or none, at the end
	Limit        int  // how many to yield; 0: all
	Follow       bool // search again and again, until ctx ends

	seen func(peer.ID) bool // those that are not yielded again; may be nil
}

// FindProviders searches for the providers of c and yields each once, as soon
// as its addresses are known. Missing addresses are looked up meanwhile. A pair
// with an error is the last one.
func (d *DHT) FindProviders(ctx context.Context, c cid.Cid, s Search) iter.Seq2[peer.AddrInfo, error] {
	return func(yield func(peer.AddrInfo, error) bool) {
		ctx, done := d.bind(ctx)
		defer done()
		if s.Follow {
			d.keepFinding(ctx, c, s, yield)
			return
		}
		if err := d.awaitTable(ctx); err != nil {
			yield(peer.AddrInfo{}, err)
			return
		}
		f := &finding{Search: s, dht: d, yield: yield, state: make(map[peer.ID]progress)}
		if f.run(ctx, c); f.ended {
			return
		}
		switch {
		case ctx.Err() != nil:
			yield(peer.AddrInfo{}, context.Cause(ctx))
		case !f.answered && f.yielded == 0:
			// No peer confirmed that there is none.
			yield(peer.AddrInfo{}, d.unanswered())
		}
	}
}

// unanswered returns the error of a lookup that no peer answered.
func (d *DHT) unanswered() error {
	if d.Size() == 0 {
		return ErrEmptyTable
	}
	return fmt.Errorf("%w: none of the peers in the routing table answered", errs.ErrNoPeers)
}

// progress is how far a provider has come in a search.
type progress int

const (
	lookingUp progress = iota + 1 // its addresses, or waiting for that
	settled                       // yielded, or given up
)

// finding is one run of a search. Its fields belong to the caller's goroutine.
type finding struct {
	Search
	dht   *DHT
	yield func(peer.AddrInfo, error) bool

	state    map[peer.ID]progress
	waiting  []peer.ID       // for a lookup
	relayed  []peer.AddrInfo // held back, for DirectFirst
	running  int             // lookups
	yielded  int
	answered bool // a peer answered the search
	ended    bool // the caller needs no more
}

// run searches, and returns when everything it started has ended.
func (f *finding) run(ctx context.Context, c cid.Cid) {
	ctx, cancel := context.WithCancel(ctx)
	var started sync.WaitGroup
	defer started.Wait()
	defer cancel()
	results := make(chan peer.AddrInfo)
	answered := make(chan bool, 1) // by the end of results
	started.Go(func() {
		answered <- f.dht.search(ctx, c, results)
		close(results)
	})

	found := make(chan peer.AddrInfo, addrsAtOnce) // each lookup sends one
	search := results
	var late <-chan time.Time
	for !f.ended && (search != nil || f.running > 0 || len(f.waiting) > 0) {
		for f.running < addrsAtOnce && len(f.waiting) > 0 {
			id := f.waiting[0]
			f.waiting = f.waiting[1:]
			if f.state[id] == settled { // named with addresses meanwhile
				continue
			}
			f.running++
			started.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, AddrsTimeout)
				defer cancel()
				found <- f.dht.addresses(ctx, id)
			})
		}
		select {
		case ai, ok := <-search:
			if ok {
				f.named(ai)
				continue
			}
			search, f.answered = nil, <-answered
			timer := time.NewTimer(AddrsTimeout)
			defer timer.Stop()
			late = timer.C
		case ai := <-found:
			f.running--
			f.lookedUp(ai)
		case <-late:
			f.giveUp()
			f.release()
			return
		case <-ctx.Done():
			return
		}
	}
	f.release()
}

// named handles a provider from the search.
func (f *finding) named(ai peer.AddrInfo) {
	state := f.state[ai.ID]
	switch {
	case !plausible(ai.ID), state == settled, ai.ID == f.dht.self && !f.Self, f.seen != nil && f.seen(ai.ID):
	case ai.ID == f.dht.self:
		f.settle(peer.AddrInfo{ID: ai.ID, Addrs: f.dht.cfg.Host.Addrs()})
	case len(ai.Addrs) > 0:
		f.settle(ai)
	case state != lookingUp:
		f.state[ai.ID] = lookingUp
		f.waiting = append(f.waiting, ai.ID)
	}
}

// lookedUp handles a provider from the lookup of its addresses.
func (f *finding) lookedUp(ai peer.AddrInfo) {
	if f.state[ai.ID] == settled {
		return
	}
	if len(ai.Addrs) > 0 || f.WithoutAddrs {
		f.settle(ai)
	}
}

// giveUp ends the lookups of addresses.
func (f *finding) giveUp() {
	for id, state := range f.state {
		if state == lookingUp && f.WithoutAddrs && !f.ended {
			f.settle(peer.AddrInfo{ID: id})
		}
	}
}

// settle yields a provider, its direct addresses before relayed ones.
func (f *finding) settle(ai peer.AddrInfo) {
	f.state[ai.ID] = settled
	ai.Addrs = directFirst(ai.Addrs)
	if f.DirectFirst && (len(ai.Addrs) == 0 || relayed(ai.Addrs[0])) {
		f.relayed = append(f.relayed, ai)
		return
	}
	f.deliver(ai)
}

func (f *finding) deliver(ai peer.AddrInfo) {
	f.yielded++
	f.ended = !f.yield(ai, nil) || f.yielded == f.Limit
}

// release yields what was held back, those with an address first.
func (f *finding) release() {
	slices.SortStableFunc(f.relayed, func(a, b peer.AddrInfo) int { return min(len(b.Addrs), 1) - min(len(a.Addrs), 1) })
	for _, ai := range f.relayed {
		if f.ended {
			return
		}
		f.deliver(ai)
	}
}

func relayed(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// directFirst returns the addresses with the relayed ones last.
func directFirst(list []ma.Multiaddr) []ma.Multiaddr {
	direct := func(a ma.Multiaddr) int {
		if relayed(a) {
			return 1
		}
		return 0
	}
	return slices.SortedStableFunc(slices.Values(list), func(a, b ma.Multiaddr) int { return direct(a) - direct(b) })
}

// search sends what the DHTs find, as they find it, until ctx ends, and reports
// whether a peer answered. It does not use the dual DHT's own search, which drops
// a provider's addresses if the other DHT has already named it without any.
func (d *DHT) search(ctx context.Context, c cid.Cid, results chan<- peer.AddrInfo) bool {
	var answered atomic.Bool
	var searches sync.WaitGroup
	for _, t := range d.tables {
		searches.Go(func() {
			var asking caller
			_, ok, _ := follow(ctx, d, string(c.Hash()), watch{busy: asking.busy}, func(ctx context.Context) (struct{}, error) {
				for ai := range t.FindProvidersAsync(ctx, c, 0) {
					give(ctx, &asking, results, ai)
				}
				return struct{}{}, nil
			})
			if ok {
				answered.Store(true)
			}
		})
	}
	searches.Wait()
	return answered.Load()
}

// addresses looks up the addresses of a provider. It takes those that a peer
// names, and does not wait until upstream has dialed them.
func (d *DHT) addresses(ctx context.Context, id peer.ID) peer.AddrInfo {
	if h := d.cfg.Host; h.Connected(id) {
		h.AwaitIdentify(ctx, id)
	}
	if ai := d.cfg.Host.Peerstore().PeerInfo(id); d.cfg.Host.Connected(id) && len(ai.Addrs) > 0 {
		return ai
	}
	ctx, enough := context.WithCancel(d.seeking(ctx, id))
	defer enough()
	found := make(chan []ma.Multiaddr, len(d.tables))
	var lookups sync.WaitGroup
	for _, t := range d.tables {
		lookups.Go(func() {
			var named []ma.Multiaddr
			each := func(e *routing.QueryEvent) {
				for _, r := range e.Responses {
					if r.ID == id && len(r.Addrs) > 0 && named == nil {
						named = r.Addrs
						enough()
					}
				}
			}
			ai, _, err := follow(ctx, d, string(id), watch{each: each}, func(ctx context.Context) (peer.AddrInfo, error) { return t.FindPeer(ctx, id) })
			if err == nil && named == nil {
				named = ai.Addrs
			}
			found <- named
		})
	}
	lookups.Wait()
	close(found)
	for list := range found {
		if len(list) > 0 {
			return peer.AddrInfo{ID: id, Addrs: list}
		}
	}
	return d.cfg.Host.Peerstore().PeerInfo(id)
}

// FindPeer returns the addresses of a peer: those of a connected one at once,
// otherwise those the DHT knows. If the error is nil, there is at least one. It
// returns errs.ErrNotFound when the DHT does not know the peer.
//
// A lookup of upstream ends when it has asked all of the 20 closest servers, even
// if the first has named the peer: where many servers are behind address-restricted
// NATs, that takes a minute. This one ends once enoughNamed servers have named
// addresses, or one has and the others are silent. The second lookup of a dial is
// complete, because what the first one found did not serve.
func (d *DHT) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	ctx, done := d.bind(ctx)
	defer done()
	known := func() peer.AddrInfo { return d.cfg.Host.Peerstore().PeerInfo(id) }
	d.cfg.Host.AwaitIdentify(ctx, id)
	if ai := known(); d.cfg.Host.Connected(id) && len(ai.Addrs) > 0 {
		return ai, nil
	}
	ai, answered, err := d.findPeer(ctx, id, nethost.LookedUp(ctx, id))
	if errors.Is(err, errNamed) {
		if ai = known(); len(ai.Addrs) > 0 {
			return ai, nil
		}
		ai, answered, err = d.findPeer(ctx, id, true) // those were no addresses to dial
	}
	switch {
	case err == nil && len(ai.Addrs) == 0:
		// The lookup may have ended because the peer has just connected; its
		// addresses arrive with identify.
		d.cfg.Host.AwaitIdentify(ctx, id)
		ai = known()
	case errors.Is(err, routing.ErrNotFound):
		// Upstream (v0.42) also returns that if it received the peer's addresses
		// but the lookup ended before it could dial, as happens with DHT clients.
		// They are in the peerstore.
		ai = known()
	case err != nil:
		return peer.AddrInfo{}, d.ended(ctx, err)
	}
	switch {
	case len(ai.Addrs) > 0:
		return ai, nil
	case !answered:
		return peer.AddrInfo{}, d.ended(ctx, d.unanswered())
	default:
		return peer.AddrInfo{}, fmt.Errorf("%w: the DHT knows no address of it", errs.ErrNotFound)
	}
}

// errNamed is why a lookup ended of a peer whose addresses are in the peerstore now.
var errNamed = errors.New("servers have named the peer")

// findPeer looks a peer up. Unless the lookup is to be complete, it ends with errNamed
// when enough servers have named addresses.
func (d *DHT) findPeer(ctx context.Context, id peer.ID, complete bool) (peer.AddrInfo, bool, error) {
	lookup, cancel := context.WithCancelCause(d.seeking(ctx, id))
	defer cancel(nil)
	var w watch
	if !complete {
		enough, named := func() { cancel(errNamed) }, map[peer.ID]bool{}
		w.each = func(e *routing.QueryEvent) {
			if named[e.ID] || !slices.ContainsFunc(e.Responses, func(r *peer.AddrInfo) bool { return r.ID == id && len(r.Addrs) > 0 }) {
				return
			}
			named[e.ID] = true
			switch len(named) {
			case 1:
				timer := time.AfterFunc(patience, enough)
				context.AfterFunc(lookup, func() { timer.Stop() })
			case enoughNamed:
				enough()
			}
		}
	}
	ai, answered, err := follow(lookup, d, string(id), w, func(ctx context.Context) (peer.AddrInfo, error) { return d.routing.FindPeer(ctx, id) })
	if errors.Is(context.Cause(lookup), errNamed) {
		err = errNamed
	}
	return ai, answered, err
}

// seeking returns a context for lookups of a peer. Upstream would dial the peer as if it
// were a server, and give that up when the lookup ends. A dial through a relay goes on
// nevertheless, and meanwhile all others to the peer fail. So the peer is dialed only if
// it is one of the servers in a routing table, which upstream would forget otherwise.
func (d *DHT) seeking(ctx context.Context, id peer.ID) context.Context {
	if slices.ContainsFunc(d.tables, func(t *dht.IpfsDHT) bool { return t.RoutingTable().Find(id) != "" }) {
		return ctx
	}
	return context.WithValue(ctx, sought{}, id)
}

// ClosestPeers returns the servers of the DHTs that are closest to a key, at most
// 20 of each DHT, the closest first, with the addresses that are known.
func (d *DHT) ClosestPeers(ctx context.Context, key string) ([]peer.AddrInfo, error) {
	ctx, done := d.bind(ctx)
	defer done()
	if err := d.awaitTable(ctx); err != nil {
		return nil, err
	}
	var found []peer.ID
	var failed []error
	for _, t := range d.active() {
		list, answered, err := follow(ctx, d, key, watch{}, func(ctx context.Context) ([]peer.ID, error) { return t.GetClosestPeers(ctx, key) })
		switch {
		case answered && ctx.Err() == nil:
			found = append(found, list...)
		case err != nil:
			failed = append(failed, d.ended(ctx, err))
		default:
			failed = append(failed, d.unanswered())
		}
	}
	if len(found) == 0 {
		return nil, errors.Join(failed...)
	}
	var closest []peer.AddrInfo
	for _, id := range slices.Compact(kb.SortClosestPeers(found, kb.ConvertKey(key))) {
		closest = append(closest, d.cfg.Host.Peerstore().PeerInfo(id))
	}
	return closest, nil
}

// ended returns the error of a lookup: ctx's if that ended it.
func (d *DHT) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && d.Size() > 0 {
		return context.Cause(ctx)
	}
	return d.explain(err)
}
