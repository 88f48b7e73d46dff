package kad

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

const (
	// retryMin and retryMax bound the delay after a failed announcement.
	retryMin = time.Second
	retryMax = time.Minute
	// askTimeout bounds sending a record to one peer, and asking whether it holds
	// it.
	askTimeout = 10 * time.Second
	// announceAtOnce bounds how many CIDs are announced again at a time, and
	// announceTimeout each of them.
	announceAtOnce  = 4
	announceTimeout = time.Minute
)

// NamespaceCID returns the CID of a namespace in the DHT. It is the one that
// go-libp2p's routing discovery uses, so that both find each other.
func NamespaceCID(namespace string) cid.Cid {
	sum := sha256.Sum256([]byte(namespace))
	h, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		return cid.Undef // no error is possible: the length fits the function
	}
	return cid.NewCidV1(cid.Raw, h)
}

// pause waits for d, until wake, or until ctx ends.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// announce stores a provider record of the keeper's once, and reports the result.
func (d *DHT) announce(ctx context.Context, c cid.Cid) error {
	begun := time.Now()
	missing, err := d.store(ctx, c.Hash())
	if err == nil {
		d.keep.short(c.Hash(), missing)
	}
	d.cfg.Announced(c, time.Since(begun), err)
	return err
}

// store names the node as a provider of key, to those who ask it and in the
// active DHTs. It fails if no other peer holds the record, and returns how many more
// should: the network may be smaller, or not known yet.
func (d *DHT) store(ctx context.Context, key multihash.Multihash) (missing int, err error) {
	ctx, done := d.bind(ctx)
	defer done()
	// First to those who ask: the first peer to join a lone node should find what
	// it has. The store is the node's own, so an ended ctx does not matter.
	if err := d.answer(ctx, key); err != nil {
		return 0, err
	}
	if err := d.awaitTable(ctx); err != nil {
		return 0, err
	}
	err = d.inActive(func(t *dht.IpfsDHT) error {
		took, err := d.storeIn(ctx, t, key)
		missing = max(missing, t.BucketSize()-took)
		return err
	})
	return missing, err
}

// inActive calls put for each active DHT, and fails if all of them do.
func (d *DHT) inActive(put func(*dht.IpfsDHT) error) error {
	var failed []error
	held := false
	for _, t := range d.active() {
		err := put(t)
		held = held || err == nil
		failed = append(failed, err)
	}
	if held {
		return nil
	}
	return d.explain(errors.Join(failed...))
}

// storeIn does what the upstream Provide does, and verifies the result:
// upstream returns nil even when every peer refused the record, because the
// message has no reply. It asks one of the peers for the record, and returns how
// many took it.
func (d *DHT) storeIn(ctx context.Context, table *dht.IpfsDHT, key multihash.Multihash) (took int, err error) {
	self := peer.AddrInfo{ID: d.self, Addrs: table.FilteredAddrs()}
	if len(self.Addrs) == 0 {
		return 0, errNoAddress
	}
	closest, err := d.closest(ctx, table, string(key))
	if err != nil {
		return 0, err
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return 0, err
	}
	type result struct {
		peer peer.ID
		err  error
	}
	results := make(chan result, len(closest))
	for _, p := range closest {
		go func() { // awaited below: each sends one result, within the timeout
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			results <- result{p, messenger.PutProviderAddrs(ctx, p, key, self)}
		}()
	}
	held := false
	var why []string
	for range closest {
		r := <-results
		if r.err == nil && !held {
			r.err = d.holds(ctx, messenger, r.peer, key)
			held = r.err == nil
		}
		if r.err != nil {
			why = append(why, fmt.Sprintf("%s: %v", r.peer, r.err))
		}
	}
	switch {
	case held:
		return len(closest) - len(why), nil
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	default:
		return 0, fmt.Errorf("%w: none of the %d closest peers holds the record: %s", errs.ErrNoPeers, len(closest), strings.Join(why, "; "))
	}
}

// errNoAddress is the error of an announcement that would lead nobody here.
var errNoAddress = fmt.Errorf("%w: this node has no address to announce; listen on one, make a reservation at a relay with WithAutoRelay, or give WithAnnounceAddrs", errs.ErrNoPeers)

// holds asks a peer for this node's provider record.
func (d *DHT) holds(ctx context.Context, m *pb.ProtocolMessenger, p peer.ID, key multihash.Multihash) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	providers, _, err := m.GetProviders(ctx, p, key)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(providers, func(ai *peer.AddrInfo) bool { return ai.ID == d.self }) {
		return &notHeldError{}
	}
	return nil
}

// notHeldError is that of a peer that answers, but not with what it should hold.
type notHeldError struct{}

func (*notHeldError) Error() string { return "accepted the record but does not hold it" }

// answer makes the node itself answer that it has key, in all DHTs.
func (d *DHT) answer(ctx context.Context, key multihash.Multihash) error {
	return d.patiently(ctx, func(ctx context.Context) error {
		var failed []error
		for _, t := range d.tables {
			failed = append(failed, d.storeOwn(ctx, t, key))
		}
		return errors.Join(failed...)
	})
}

// patiently runs f, which uses the datastore, and waits for it until storePatience
// after ctx has ended: the datastore may hang.
func (d *DHT) patiently(ctx context.Context, f func(context.Context) error) error {
	ctx, done := outlive(ctx)
	result := make(chan error, 1)
	if !d.group.Go(func(context.Context) { result <- f(ctx) }) {
		done()
		return errs.ErrClosed
	}
	defer done()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the datastore did not answer within %v: %w", storePatience, ctx.Err())
	}
}

// storeOwn makes the node itself answer that it has key, in one DHT.
func (d *DHT) storeOwn(ctx context.Context, table *dht.IpfsDHT, key multihash.Multihash) error {
	store := table.ProviderStore()
	if store == nil { // the application's options say so
		return routing.ErrNotSupported
	}
	return store.AddProvider(ctx, key, peer.AddrInfo{ID: d.self})
}

// CheckCID refuses a CID that nobody can look up.
func CheckCID(c cid.Cid) error {
	if !c.Defined() {
		return errors.New("the CID is undefined")
	}
	switch hash := c.Prefix().MhType; {
	case hash == multihash.IDENTITY:
		return fmt.Errorf("%s contains its content (identity hash): there is nothing to find", c)
	case multihash.Codes[hash] == "":
		return fmt.Errorf("%s: unknown hash function 0x%x", c, hash)
	}
	return nil
}
