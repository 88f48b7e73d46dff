package kad

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/ipfs/go-libdht/kad/key/bitstr"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/multiformats/go-multihash"
)

// memory is a keystore in memory. Upstream's, on a datastore in memory, reads all
// keys for each question about a prefix, and there are thousands of these.
type memory struct {
	mu     sync.Mutex
	shards [256][]stored // by the first byte of the ID, each in order; guarded by mu
	size   int           // guarded by mu
	closed bool          // guarded by mu
}

// stored is a key with its place in the key space.
type stored struct {
	id  [32]byte
	key multihash.Multihash
}

func newMemory() keystore.Keystore { return new(memory) }

func place(key multihash.Multihash) stored {
	return stored{[32]byte(kb.ConvertKey(string(key))), key}
}

func byID(a, b stored) int { return bytes.Compare(a.id[:], b.id[:]) }

// begin locks the keystore, unless it is closed or ctx has ended.
func (m *memory) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return keystore.ErrClosed
	}
	return nil
}

// Put adds keys, and returns those that are new.
func (m *memory) Put(ctx context.Context, keys ...multihash.Multihash) ([]multihash.Multihash, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var added []multihash.Multihash
	for shard, list := range m.sorted(keys) {
		old := m.shards[shard]
		list = slices.DeleteFunc(list, func(s stored) bool {
			_, found := slices.BinarySearchFunc(old, s, byID)
			return found
		})
		for _, s := range list {
			added = append(added, s.key)
		}
		m.shards[shard] = merge(old, list)
	}
	m.size += len(added)
	return added, nil
}

// sorted returns keys by shard, in order, and each once.
func (m *memory) sorted(keys []multihash.Multihash) map[byte][]stored {
	by := make(map[byte][]stored)
	for _, key := range keys {
		s := place(key)
		by[s.id[0]] = append(by[s.id[0]], s)
	}
	for shard, list := range by {
		slices.SortFunc(list, byID)
		by[shard] = slices.CompactFunc(list, func(a, b stored) bool { return a.id == b.id })
	}
	return by
}

// merge adds more to list, from the end on, so that nothing is moved twice.
func merge(list, more []stored) []stored {
	i, j := len(list)-1, len(more)-1
	list = append(list, more...)
	for k := len(list) - 1; j >= 0; k-- {
		if i >= 0 && byID(list[i], more[j]) > 0 {
			list[k] = list[i]
			i--
		} else {
			list[k] = more[j]
			j--
		}
	}
	return list
}

// Delete removes keys.
func (m *memory) Delete(ctx context.Context, keys ...multihash.Multihash) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for shard, list := range m.sorted(keys) {
		old := m.shards[shard]
		m.shards[shard] = slices.DeleteFunc(old, func(s stored) bool {
			_, found := slices.BinarySearchFunc(list, s, byID)
			return found
		})
		m.size -= len(old) - len(m.shards[shard])
		if len(m.shards[shard]) == 0 {
			m.shards[shard] = nil
		}
	}
	return nil
}

// match yields the keys with a prefix. The keystore is locked.
func (m *memory) match(prefix bitstr.Key, yield func(multihash.Multihash) bool) {
	var low [32]byte
	n := min(len(prefix), 8*len(low))
	for i := range n {
		if prefix[i] == '1' {
			low[i/8] |= 1 << (7 - i%8)
		}
	}
	shards := m.shards[low[0]:]
	shards = shards[:1<<max(0, 8-n)]
	for _, list := range shards {
		first := 0
		if n > 8 {
			first, _ = slices.BinarySearchFunc(list, stored{id: low}, byID)
		}
		for _, s := range list[first:] {
			if n > 8 && !samePrefix(s.id, low, n) || !yield(s.key) {
				return
			}
		}
	}
}

// samePrefix reports whether two IDs have their first n bits in common.
func samePrefix(a, b [32]byte, n int) bool {
	whole := n / 8
	return bytes.Equal(a[:whole], b[:whole]) && (n%8 == 0 || (a[whole]^b[whole])>>(8-n%8) == 0)
}

// Get returns the keys with a prefix.
func (m *memory) Get(ctx context.Context, prefix bitstr.Key) (list []multihash.Multihash, err error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	m.match(prefix, func(key multihash.Multihash) bool {
		list = append(list, key)
		return true
	})
	return list, nil
}

// CountKeysUpTo returns how many keys have a prefix, at most limit if that is
// positive.
func (m *memory) CountKeysUpTo(ctx context.Context, prefix bitstr.Key, limit int) (n int, err error) {
	if err := m.begin(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	m.match(prefix, func(multihash.Multihash) bool {
		n++
		return n != limit
	})
	return n, nil
}

// ContainsPrefix reports whether a key has a prefix.
func (m *memory) ContainsPrefix(ctx context.Context, prefix bitstr.Key) (bool, error) {
	n, err := m.CountKeysUpTo(ctx, prefix, 1)
	return n > 0, err
}

// Empty removes all keys.
func (m *memory) Empty(ctx context.Context) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.shards, m.size = [256][]stored{}, 0
	return nil
}

// Size returns the number of keys.
func (m *memory) Size(ctx context.Context) (int, error) {
	if err := m.begin(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	return m.size, nil
}

// BatchSize is how many entries upstream writes to its datastore at a time.
func (m *memory) BatchSize() int { return keystore.DefaultBatchSize }

// Close makes all later calls fail.
func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.shards = true, [256][]stored{}
	return nil
}
