package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/signal"

	// The hash functions that CIDOf can name register themselves.
	_ "github.com/multiformats/go-multihash/register/all"
)

const (
	// tableWait is how long Provide and its kin wait for the first peer in
	// the routing table.
	tableWait = 10 * time.Second
	// providePutTimeout bounds the handing over of a record to one peer.
	providePutTimeout = 10 * time.Second
	// providerAddrsTimeout bounds the look-up of the addresses of a provider
	// that was named without any.
	providerAddrsTimeout = 5 * time.Second
	// recordLifetime is how long others keep a provider record.
	recordLifetime = 48 * time.Hour
	// announceAtOnce and announceTimeout bound the announcing again of what
	// was provided: how many at a time, and each of them.
	announceAtOnce  = 4
	announceTimeout = time.Minute
)

// contentPart announces and finds who has what.
type contentPart struct {
	self  peer.ID
	dht   *dhtPart
	table *signal.Signal // the routing table may have changed
	found func(context.Context, peer.ID) (peer.AddrInfo, error)

	mu       sync.Mutex
	provided map[cid.Cid]time.Time // when; guarded by mu
}

// CIDOption changes what CIDOf makes.
type CIDOption interface{ applyCID(*cid.Prefix) }

type cidOption func(*cid.Prefix)

func (o cidOption) applyCID(p *cid.Prefix) { o(p) }

// CIDCodec sets the content's multicodec, overriding the default of raw (0x55).
func CIDCodec(code uint64) CIDOption { return cidOption(func(p *cid.Prefix) { p.Codec = code }) }

// CIDHash sets the hash function by its multicodec, overriding the default of
// sha2-256 (0x12).
func CIDHash(code uint64) CIDOption { return cidOption(func(p *cid.Prefix) { p.MhType = code }) }

// CIDOf makes a version 1 CID, by default raw and sha2-256, of everything that
// r delivers, without keeping it in memory. The same bytes always give the
// same CID; to a string or a byte slice apply strings.NewReader or
// bytes.NewReader. Specification: github.com/multiformats/cid.
func CIDOf(r io.Reader, opts ...CIDOption) (cid.Cid, error) {
	prefix := cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_256, MhLength: -1}
	for _, o := range opts {
		if o != nil {
			o.applyCID(&prefix)
		}
	}
	h, err := multihash.GetHasher(prefix.MhType)
	if err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: hash function 0x%x: %w", prefix.MhType, err)
	}
	if _, err := io.Copy(h, r); err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: %w", err)
	}
	mh, err := multihash.Encode(h.Sum(nil), prefix.MhType)
	if err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: %w", err)
	}
	return cid.NewCidV1(prefix.Codec, mh), nil
}

// waitForTable waits until the routing table has a peer.
func (c *contentPart) waitForTable(ctx context.Context) error {
	timer := time.NewTimer(tableWait)
	defer timer.Stop()
	for {
		changed := c.table.Wait()
		if c.dht.size() > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("waited %v", tableWait)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Provide announces that this node has the content of a CID: it stores a
// provider record with the peers closest to the CID, and returns nil once at
// least one of them has proved to hold it. With an empty routing table it
// first waits for a peer until ctx ends, 10 seconds at most. Records are found
// for 48 hours; announce again before that. Until then the node itself
// announces again whenever it has peers after it had none. Peers that ask this
// node itself are told in any case, also when Provide returns an error.
//
// The error is ErrNoPeers when no peer holds the record, and says whether the
// routing table was empty or what the peers answered; ErrDisabled without a
// DHT; ErrClosed after Close. Specification:
// github.com/libp2p/specs/tree/master/kad-dht.
func (n *Node) Provide(ctx context.Context, c cid.Cid) error {
	if err := n.needDHT(); err != nil {
		return err
	}
	if !c.Defined() {
		return errors.New("p2pnode: provide: the CID is undefined")
	}
	err := n.announce(ctx, c)
	n.content.remember(c)
	return err
}

// announce provides a CID and tells how it went.
func (n *Node) announce(ctx context.Context, c cid.Cid) error {
	begun := time.Now()
	err := n.provide(ctx, "provide "+c.String(), c.Hash())
	n.watch.emit(EventProvided{CID: c, Took: time.Since(begun), Err: err})
	return err
}

// remember notes what was provided, for announceAgain.
func (c *contentPart) remember(what cid.Cid) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.provided == nil {
		c.provided = make(map[cid.Cid]time.Time)
	}
	c.provided[what] = time.Now()
}

// recent is what was provided and has not expired.
func (c *contentPart) recent() []cid.Cid {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.provided, func(_ cid.Cid, at time.Time) bool { return time.Since(at) > recordLifetime })
	return slices.Collect(maps.Keys(c.provided))
}

// announceAgain announces what the node provides, after a time without peers:
// a Provide may have failed for want of them, and others may have restarted.
// What fails is tried again, with growing delays, until the node is alone again.
func (n *Node) announceAgain(ctx context.Context) {
	again := n.recovered.Wait()
	left := n.content.recent()
	retry := backoff.Backoff{Min: advertiseRetryMin, Max: advertiseRetryMax}
	for len(left) > 0 {
		if left = n.announceAll(ctx, left); len(left) == 0 || ctx.Err() != nil {
			return
		}
		n.log.Warn("not announced again, trying once more", "cids", len(left))
		timer := time.NewTimer(retry.Next())
		select {
		case <-timer.C:
		case <-again: // somebody else is at it from the beginning
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// announceAll announces CIDs, some at a time, and returns those that failed.
func (n *Node) announceAll(ctx context.Context, list []cid.Cid) (failed []cid.Cid) {
	todo := make(chan cid.Cid)
	var mu sync.Mutex // guards failed
	var wg sync.WaitGroup
	for range min(announceAtOnce, len(list)) {
		wg.Go(func() {
			for c := range todo {
				ctx, cancel := context.WithTimeout(ctx, announceTimeout)
				err := n.announce(ctx, c)
				cancel()
				if err != nil {
					mu.Lock()
					failed = append(failed, c)
					mu.Unlock()
				}
			}
		})
	}
	for _, c := range list {
		todo <- c // a worker takes it: each provide ends with ctx
	}
	close(todo)
	wg.Wait()
	return failed
}

func (n *Node) provide(ctx context.Context, what string, key multihash.Multihash) error {
	ctx, done := n.bind(ctx)
	defer done()
	// The node answers others who ask it, from now on: on a node that nobody
	// has joined yet, the first one that comes shall find what is here.
	if err := n.content.answer(ctx, key); err != nil {
		return n.lookupError(what, err)
	}
	if err := n.content.waitForTable(ctx); err != nil {
		return n.lookupError(what, err)
	}
	if err := n.content.provide(ctx, key); err != nil {
		return n.lookupError(what, err)
	}
	return nil
}

// answer makes the node name itself to those who ask it for a key.
func (c *contentPart) answer(ctx context.Context, key multihash.Multihash) error {
	for _, table := range c.dht.tables {
		// The store is the node's own: an ended ctx does not spoil it.
		if err := table.ProviderStore().AddProvider(context.WithoutCancel(ctx), key, peer.AddrInfo{ID: c.self}); err != nil {
			return err
		}
	}
	return nil
}

// provide does what the DHT's own Provide does, and checks the result: that
// one returns nil even when every peer refused the record, because the message
// that carries it has no answer. Here one of the peers is asked for it.
func (c *contentPart) provide(ctx context.Context, key multihash.Multihash) error {
	var errs []error
	held := false
	for _, table := range c.dht.active() {
		err := c.provideIn(ctx, table, key)
		held = held || err == nil
		errs = append(errs, err)
	}
	if held {
		return nil
	}
	return errors.Join(errs...)
}

// provideIn is provide for one DHT.
func (c *contentPart) provideIn(ctx context.Context, table *dht.IpfsDHT, key multihash.Multihash) error {
	self := peer.AddrInfo{ID: c.self, Addrs: table.FilteredAddrs()}
	if len(self.Addrs) == 0 {
		return fmt.Errorf("%w: this node has no address that others could be told; listen, reserve a place at a relay with WithAutoRelay, or name one with WithAnnounceAddrs", ErrNoPeers)
	}
	closest, err := table.GetClosestPeers(ctx, string(key))
	if err != nil {
		return err
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return err
	}
	type result struct {
		peer peer.ID
		err  error
	}
	results := make(chan result, len(closest))
	for _, p := range closest {
		go func() { // awaited below: each sends one result, within the timeout
			ctx, cancel := context.WithTimeout(ctx, providePutTimeout)
			defer cancel()
			results <- result{p, messenger.PutProviderAddrs(ctx, p, key, self)}
		}()
	}
	held := false
	var why []string
	for range closest {
		r := <-results
		if r.err == nil && !held {
			held, r.err = c.holds(ctx, messenger, r.peer, key)
		}
		if r.err != nil {
			why = append(why, fmt.Sprintf("%s: %v", r.peer, r.err))
		}
	}
	switch {
	case held:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("%w: none of the %d closest peers keeps the record: %s", ErrNoPeers, len(closest), strings.Join(why, "; "))
	}
}

// holds asks a peer whether it has this node's provider record.
func (c *contentPart) holds(ctx context.Context, m *pb.ProtocolMessenger, p peer.ID, key multihash.Multihash) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, providePutTimeout)
	defer cancel()
	providers, _, err := m.GetProviders(ctx, p, key)
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(providers, func(ai *peer.AddrInfo) bool { return ai.ID == c.self }) {
		return false, errors.New("took the record and does not have it")
	}
	return true, nil
}

// FindOption changes one search.
type FindOption interface{ applyFind(*findConfig) }

type findConfig struct {
	self  bool
	limit int
}

type findOption func(*findConfig)

func (o findOption) applyFind(c *findConfig) { o(c) }

// FindSelf makes a search yield this node too when it is among the results.
func FindSelf() FindOption { return findOption(func(c *findConfig) { c.self = true }) }

// FindLimit ends a search after n results; by default, and for n below 1, it
// ends when the DHT knows no more.
func FindLimit(n int) FindOption { return findOption(func(c *findConfig) { c.limit = n }) }

// FindProviders searches the DHT for peers that have the content of a CID, and
// yields each as soon as it is known, once, with addresses to dial. Breaking
// out of the loop ends the search at once. With an empty routing table it
// first waits for a peer until ctx ends, 10 seconds at most.
//
// A pair with an error says that something went wrong: that a provider has no
// known address (its ID is in the pair, and the search goes on), or, as the
// last pair, that the search ended early: ErrNoPeers when there was nobody to
// ask, ctx's error, ErrDisabled without a DHT, ErrClosed when the node closed.
// A search that found nobody ends without one.
func (n *Node) FindProviders(ctx context.Context, c cid.Cid, opts ...FindOption) iter.Seq2[peer.AddrInfo, error] {
	return func(yield func(peer.AddrInfo, error) bool) {
		if err := n.needDHT(); err != nil {
			yield(peer.AddrInfo{}, err)
			return
		}
		if !c.Defined() {
			yield(peer.AddrInfo{}, errors.New("p2pnode: find providers: the CID is undefined"))
			return
		}
		n.findProviders(ctx, "find providers of "+c.String(), c, opts, yield)
	}
}

func (n *Node) findProviders(ctx context.Context, what string, c cid.Cid, opts []FindOption, yield func(peer.AddrInfo, error) bool) {
	var cfg findConfig
	for _, o := range opts {
		if o != nil {
			o.applyFind(&cfg)
		}
	}
	ctx, done := n.bind(ctx)
	defer done()
	if err := n.content.waitForTable(ctx); err != nil {
		yield(peer.AddrInfo{}, n.lookupError(what, err))
		return
	}
	results := n.dht.FindProvidersAsync(ctx, c, 0)
	defer func() {
		done()
		for range results { // the search ends with its context: see it out
		}
	}()
	seen := make(map[peer.ID]bool)
	for ai := range results {
		if seen[ai.ID] || ai.ID == n.id && !cfg.self {
			continue
		}
		seen[ai.ID] = true
		ai, err := n.content.withAddrs(ctx, ai)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			err = fmt.Errorf("p2pnode: %s: provider %s: %w", what, ai.ID, err)
		}
		if !yield(ai, err) {
			return
		}
		if cfg.limit > 0 && len(seen) >= cfg.limit {
			return
		}
	}
	if ctx.Err() != nil {
		yield(peer.AddrInfo{}, n.fail(fmt.Errorf("%s: %w", what, context.Cause(ctx))))
	}
}

// withAddrs completes a provider that was named without addresses.
func (c *contentPart) withAddrs(ctx context.Context, ai peer.AddrInfo) (peer.AddrInfo, error) {
	if len(ai.Addrs) > 0 {
		return ai, nil
	}
	ctx, cancel := context.WithTimeout(ctx, providerAddrsTimeout)
	defer cancel()
	full, err := c.found(ctx, ai.ID)
	if err != nil {
		return peer.AddrInfo{ID: ai.ID}, err
	}
	return full, nil
}
