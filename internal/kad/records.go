package kad

import (
	"context"
	"encoding/base32"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/memstore"
)

const (
	// recordSize is what a provider record takes in addition to its key, in bytes.
	recordSize = 256
	// recountEvery is how often the records are counted: they expire.
	recountEvery = time.Hour
	// maxBookAddrs is how many addresses of a peer are kept for its provider records,
	// and maxBookBytes how many bytes of them.
	maxBookAddrs = 64
	maxBookBytes = 8 << 10
)

// records is a datastore for provider records, bounded in bytes. Upstream keeps
// whatever others send, for two days. All records together may take max. Once
// they do, those of the peers that have sent most make room for those of others,
// so that no stranger fills it. Those of the node itself are not counted.
type records struct {
	datastore.Batching
	max     int64
	self    string // the node's ID as in a key
	refused refusals
	over    chan struct{} // there is more than max

	mu  sync.Mutex
	all int64            // guarded by mu
	by  map[string]int64 // by the peer's ID as in a key; guarded by mu
}

func newRecords(store datastore.Batching, self peer.ID, limit int64, full func(uint64)) *records {
	if store == nil {
		store = memstore.New()
	}
	id := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte(self))
	return &records{Batching: store, max: limit, self: id, refused: refusals{tell: full}, over: make(chan struct{}, 1), by: make(map[string]int64)}
}

// sentBy returns who sent a record, and the record's size.
func sentBy(key datastore.Key) (who string, size int64) {
	return key.BaseNamespace(), recordSize + int64(len(key.String()))
}

// run counts the records from time to time, at first those of an earlier run,
// and makes room when there are too many.
func (r *records) run(ctx context.Context) {
	again := time.NewTicker(recountEvery)
	defer again.Stop()
	for {
		r.count(ctx)
		r.prune(ctx)
		select {
		case <-r.over:
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// prune removes records of the peers that have most, until there is some room.
func (r *records) prune(ctx context.Context) {
	r.mu.Lock()
	excess := make(map[string]int64)
	if r.all > r.max {
		level := levelOf(slices.Sorted(maps.Values(r.by)), r.max-r.max/16)
		for who, size := range r.by {
			if size > level {
				excess[who] = size - level
			}
		}
	}
	r.mu.Unlock()
	if len(excess) == 0 {
		return
	}
	results, err := r.Query(ctx, query.Query{Prefix: dhtrecords.ProvidersKeyPrefix, KeysOnly: true})
	if err != nil {
		return
	}
	defer func() { _ = results.Close() }()
	for e := range results.Next() {
		key := datastore.RawKey(e.Key)
		who, size := sentBy(key)
		if e.Error != nil || excess[who] <= 0 {
			continue
		}
		excess[who] -= size
		if err := r.Delete(ctx, key); err != nil {
			return
		}
		r.drop(key)
		r.refused.add()
	}
}

// levelOf returns the most that each may keep of sizes, smallest first, so that
// they fit into room.
func levelOf(sizes []int64, room int64) int64 {
	for i, size := range sizes {
		share := room / int64(len(sizes)-i)
		if size > share {
			return share
		}
		room -= size
	}
	return math.MaxInt64
}

func (r *records) count(ctx context.Context) {
	results, err := r.Query(ctx, query.Query{Prefix: dhtrecords.ProvidersKeyPrefix, KeysOnly: true})
	if err != nil {
		return // the DHT itself says what is wrong with the datastore
	}
	defer func() { _ = results.Close() }()
	var all int64
	by := make(map[string]int64)
	for e := range results.Next() {
		if e.Error != nil || ctx.Err() != nil {
			return
		}
		if who, size := sentBy(datastore.RawKey(e.Key)); who != r.self {
			all += size
			by[who] += size
		}
	}
	r.mu.Lock()
	r.all, r.by = all, by
	r.mu.Unlock()
}

// admit counts a record, and reports whether there is room for it.
func (r *records) admit(ctx context.Context, key datastore.Key) bool {
	who, size := sentBy(key)
	if who == r.self {
		return true
	}
	if has, err := r.Has(ctx, key); err == nil && has {
		return true
	}
	r.mu.Lock()
	// Whoever has less than an equal share is let in beyond the limit, until there
	// is room again.
	share := r.max / int64(len(r.by)+1)
	ok := r.all+size <= r.max || r.by[who]+size <= share && r.all+size <= r.max+r.max/8
	if ok {
		r.all += size
		r.by[who] += size
	}
	over := r.all > r.max
	r.mu.Unlock()
	if !ok {
		r.refused.add()
	}
	if over {
		select {
		case r.over <- struct{}{}:
		default:
		}
	}
	return ok
}

// drop no longer counts a record.
func (r *records) drop(key datastore.Key) {
	who, size := sentBy(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by[who] < size {
		return
	}
	r.all -= size
	if r.by[who] -= size; r.by[who] == 0 {
		delete(r.by, who)
	}
}

// Batch returns a batch that leaves out what there is no room for.
func (r *records) Batch(ctx context.Context) (datastore.Batch, error) {
	b, err := r.Batching.Batch(ctx)
	return batch{b, r}, err
}

type batch struct {
	datastore.Batch
	records *records
}

func (b batch) Put(ctx context.Context, key datastore.Key, value []byte) error {
	if strings.HasPrefix(key.String(), dhtrecords.ProvidersKeyPrefix) && !b.records.admit(ctx, key) {
		return nil
	}
	return b.Batch.Put(ctx, key, value)
}

func (b batch) Delete(ctx context.Context, key datastore.Key) error {
	b.records.drop(key)
	return b.Batch.Delete(ctx, key)
}

// bringsStore reports whether options set a datastore for all records, or the one
// that is named: ProviderDatastore or ValueDatastore. The upstream configuration is
// an internal type.
func bringsStore(opts []dht.Option, name string) bool {
	cfg := reflect.New(reflect.TypeFor[dht.Option]().In(0).Elem())
	for _, o := range opts {
		reflect.ValueOf(o).Call([]reflect.Value{cfg}) // an error comes again, from upstream
	}
	for _, field := range []string{"Datastore", name} {
		if f := cfg.Elem().FieldByName(field); f.IsValid() && !f.IsNil() {
			return true
		}
	}
	return false
}

// bookHost is a host whose address book takes a bounded number of addresses with
// provider records, which stay for a day. Its address book shows only the
// addresses that shows reports, unless that is nil: upstream filters those in
// provider records, but not those of peers, the node included, that it names.
type bookHost struct {
	Host
	shows func(ma.Multiaddr) bool
}

func (h bookHost) Peerstore() peerstore.Peerstore { return book{h.Host.Peerstore(), h.shows} }

// sought is the key of the peer that a lookup is for, and does not dial ([DHT.seeking]).
type sought struct{}

var errSought = errors.New("the lookup is for its addresses")

// Connect implements host.Host.
func (h bookHost) Connect(ctx context.Context, ai peer.AddrInfo) error {
	if ctx.Value(sought{}) == ai.ID {
		return errSought
	}
	return h.Host.Connect(ctx, ai)
}

type book struct {
	peerstore.Peerstore
	shows func(ma.Multiaddr) bool
}

func (b book) Addrs(id peer.ID) []ma.Multiaddr {
	list := b.Peerstore.Addrs(id)
	if b.shows == nil {
		return list
	}
	return ma.FilterAddrs(list, b.shows)
}

func (b book) PeerInfo(id peer.ID) peer.AddrInfo { return peer.AddrInfo{ID: id, Addrs: b.Addrs(id)} }

func (b book) AddAddrs(id peer.ID, list []ma.Multiaddr, ttl time.Duration) {
	if ttl > peerstore.TempAddrTTL {
		list = b.bounded(id, list)
	}
	b.Peerstore.AddAddrs(id, list, ttl)
}

func (b book) bounded(id peer.ID, list []ma.Multiaddr) (room []ma.Multiaddr) {
	known := b.Peerstore.Addrs(id)
	count, size := len(known), 0
	for _, a := range known {
		size += len(a.Bytes())
	}
	for _, a := range list {
		if len(room) == maxBookAddrs {
			break
		}
		if ma.Contains(known, a) {
			room = append(room, a) // for longer
			continue
		}
		if count++; count > maxBookAddrs || size+len(a.Bytes()) > maxBookBytes {
			break
		}
		size += len(a.Bytes())
		room = append(room, a)
	}
	return room
}
