package memstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	dstest "github.com/ipfs/go-datastore/test"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestDatastoreSuite(t *testing.T) {
	dstest.SubtestAll(t, New())
}

// keys returns the keys that a query of a store finds.
func keys(tb testing.TB, s datastore.Datastore, q query.Query) (list []string) {
	tb.Helper()
	results, err := s.Query(tb.Context(), q)
	must(tb, err)
	for r := range results.Next() {
		must(tb, r.Error)
		list = append(list, r.Key)
	}
	return list
}

// It finds what a map finds, whatever is below the prefix, and in the order of keys.
func TestQueryIsAsOfAMap(t *testing.T) {
	ours, theirs := New(), datastore.NewMapDatastore()
	for i := range 3 * chunk {
		for _, key := range []string{fmt.Sprintf("/a/%d", i), fmt.Sprintf("/a/b/%d/c", i), fmt.Sprintf("/ab/%d", i)} {
			must(t, ours.Put(t.Context(), datastore.NewKey(key), []byte(key)))
			must(t, theirs.Put(t.Context(), datastore.NewKey(key), []byte(key)))
		}
	}
	must(t, ours.Put(t.Context(), datastore.NewKey("/a"), nil))
	must(t, theirs.Put(t.Context(), datastore.NewKey("/a"), nil))
	for _, prefix := range []string{"", "/", "/a", "a", "/a/", "/a/b", "/a/b/7", "/ab", "/abc", "/a/7"} {
		got, want := keys(t, ours, query.Query{Prefix: prefix, KeysOnly: true}), keys(t, theirs, query.Query{Prefix: prefix, KeysOnly: true})
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%q: %d keys, want %d, sorted", prefix, len(got), len(want))
		}
	}
	if got := keys(t, ours, query.Query{Prefix: "/a", Orders: []query.Order{query.OrderByKeyDescending{}}, Limit: 2}); !slices.Equal(got, []string{"/a/b/99/c", "/a/b/98/c"}) {
		t.Errorf("the last two are %v", got)
	}
}

// What a caller does with its bytes later changes nothing.
func TestValuesAreCopied(t *testing.T) {
	s, key, value := New(), datastore.NewKey("k"), []byte("value")
	must(t, s.Put(t.Context(), key, value))
	value[0] = 'x'
	got, err := s.Get(t.Context(), key)
	must(t, err)
	got[1] = 'x'
	if got, _ = s.Get(t.Context(), key); string(got) != "value" {
		t.Errorf("it holds %q", got)
	}
}

// Queries and changes at the same time, for the race detector.
func TestConcurrentUse(t *testing.T) {
	s := New()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 500 {
				key := datastore.NewKey(fmt.Sprintf("/%d/%d", j%5, j))
				if err := s.Put(context.Background(), key, []byte("x")); err != nil {
					t.Error(err)
				}
				if i == 0 {
					keys(t, s, query.Query{Prefix: fmt.Sprintf("/%d", j%5)})
				}
				if err := s.Delete(context.Background(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	s, key := New(), datastore.NewKey("k")
	for i := range chunk + 1 {
		must(t, s.Put(t.Context(), datastore.NewKey(fmt.Sprint(i)), nil))
	}
	results, err := s.Query(t.Context(), query.Query{})
	must(t, err)
	if r, ok := results.NextSync(); !ok || r.Error != nil {
		t.Error(r.Error)
	}
	must(t, s.Close())
	last := query.Result{}
	for r := range results.Next() {
		last = r
	}
	_, get := s.Get(t.Context(), key)
	_, has := s.Has(t.Context(), key)
	_, size := s.GetSize(t.Context(), key)
	_, ask := s.Query(t.Context(), query.Query{})
	for i, err := range []error{last.Error, get, has, size, ask, s.Put(t.Context(), key, nil), s.Delete(t.Context(), key), s.Sync(t.Context(), key)} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New().Get(canceled, key); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
}

// BenchmarkQuery asks for one of 1,000 and of 100,000 keys with three entries each.
func BenchmarkQuery(b *testing.B) {
	for name, store := range map[string]func() datastore.Batching{
		"map": func() datastore.Batching { return dssync.MutexWrap(datastore.NewMapDatastore()) }, "memstore": func() datastore.Batching { return New() },
	} {
		for _, n := range []int{1_000, 100_000} {
			b.Run(fmt.Sprintf("%s/keys=%d", name, n), func(b *testing.B) {
				s := store()
				for i := range 3 * n {
					must(b, s.Put(b.Context(), datastore.NewKey(fmt.Sprintf("/providers/%d/%d", i/3, i%3)), []byte("12345678")))
				}
				b.ReportAllocs()
				for b.Loop() {
					keys(b, s, query.Query{Prefix: fmt.Sprintf("/providers/%d", n/2)})
				}
			})
		}
	}
}
