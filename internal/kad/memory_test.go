package kad

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	"github.com/libp2p/go-libp2p-kad-dht/provider/keystore"
	"github.com/multiformats/go-multihash"
)

// numberedKeys returns n different keys.
func numberedKeys(tb testing.TB, n int) []multihash.Multihash {
	tb.Helper()
	list := make([]multihash.Multihash, n)
	for i := range list {
		key, err := multihash.Sum(fmt.Append(nil, "key ", i), multihash.SHA2_256, -1)
		must(tb, err)
		list[i] = key
	}
	return list
}

func texts(list []multihash.Multihash) (out []string) {
	for _, key := range list {
		out = append(out, string(key))
	}
	slices.Sort(out)
	return out
}

// The keystore in memory answers as upstream's does.
func TestMemoryIsAsUpstreams(t *testing.T) {
	ctx := t.Context()
	theirs, err := keystore.NewKeystore(datastore.NewMapDatastore())
	must(t, err)
	ours := newMemory()
	t.Cleanup(func() { must(t, theirs.Close()) })
	keys := numberedKeys(t, 3000)
	compare := func(what string) {
		t.Helper()
		for _, prefix := range []bitstr.Key{"", "0", "1", "0110", "01101100", "011011001", "0110110010110", "11111111", bitstr.Key(strings.Repeat("01", 12)), idBits(keys[7])[:40], idBits(keys[7])[:17]} {
			a, err := theirs.Get(ctx, prefix)
			must(t, err)
			b, err := ours.Get(ctx, prefix)
			must(t, err)
			if !slices.Equal(texts(a), texts(b)) {
				t.Errorf("%s, prefix %q: %d keys, of which upstream has %d", what, prefix, len(b), len(a))
			}
			for _, limit := range []int{0, 1, 3} {
				a, _ := theirs.CountKeysUpTo(ctx, prefix, limit)
				b, _ := ours.CountKeysUpTo(ctx, prefix, limit)
				if a != b {
					t.Errorf("%s, prefix %q up to %d: %d, upstream %d", what, prefix, limit, b, a)
				}
			}
			a2, _ := theirs.ContainsPrefix(ctx, prefix)
			if b2, _ := ours.ContainsPrefix(ctx, prefix); a2 != b2 {
				t.Errorf("%s, prefix %q: it contains it: %v, upstream %v", what, prefix, b2, a2)
			}
		}
		a, _ := theirs.Size(ctx)
		if b, _ := ours.Size(ctx); a != b {
			t.Errorf("%s: size %d, upstream %d", what, b, a)
		}
	}
	for _, part := range [][]multihash.Multihash{keys[:5], keys[3:2000], keys[1000:], {keys[1], keys[1]}} {
		a, err := theirs.Put(ctx, part...)
		must(t, err)
		b, err := ours.Put(ctx, part...)
		must(t, err)
		if !slices.Equal(texts(a), texts(b)) {
			t.Errorf("%d are new, upstream %d", len(b), len(a))
		}
		compare("after Put")
	}
	for _, part := range [][]multihash.Multihash{keys[:1], keys[:700], keys[500:2990]} {
		must(t, theirs.Delete(ctx, part...))
		must(t, ours.Delete(ctx, part...))
		compare("after Delete")
	}
	must(t, theirs.Empty(ctx))
	must(t, ours.Empty(ctx))
	compare("after Empty")
	must(t, ours.Close())
	if _, err := ours.Get(ctx, ""); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("Get after Close = %v", err)
	}
}

func idBits(key multihash.Multihash) bitstr.Key {
	s := place(key)
	return prefixOf(s.id[:], 256)
}

func BenchmarkKeystore(b *testing.B) {
	keys := numberedKeys(b, 100_000)
	ctx := context.Background()
	theirs, err := keystore.NewKeystore(datastore.NewMapDatastore())
	must(b, err)
	b.Cleanup(func() { must(b, theirs.Close()) })
	for name, ks := range map[string]keystore.Keystore{"memory": newMemory(), "upstream": theirs} {
		for chunk := range slices.Chunk(keys, keepBatch) {
			_, err := ks.Put(ctx, chunk...)
			must(b, err)
		}
		b.Run(name+"/ContainsPrefix", func(b *testing.B) {
			for b.Loop() {
				_, err := ks.ContainsPrefix(ctx, "0110110010")
				must(b, err)
			}
		})
		b.Run(name+"/PutDelete", func(b *testing.B) {
			for b.Loop() {
				must(b, ks.Delete(ctx, keys[0]))
				_, err := ks.Put(ctx, keys[0])
				must(b, err)
			}
		})
	}
}
