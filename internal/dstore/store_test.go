package dstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dstest "github.com/ipfs/go-datastore/test"
	bolt "go.etcd.io/bbolt"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

var quiet = slog.New(slog.DiscardHandler)

func mustNot(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openStore opens a store in which nothing is wrong.
func openStore(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, quiet)
	mustNot(t, err)
	t.Cleanup(func() { s.Close() })
	if d := s.Damage(); d != nil {
		t.Fatal(d)
	}
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "store"))
}

// key and value are those of the i-th entry.
func key(i int) datastore.Key { return datastore.NewKey(fmt.Sprintf("/entries/%d/%d", i%10, i)) }

func value(i int) []byte { return []byte(strings.Repeat(fmt.Sprint(i), 5)) }

// fill writes the entries from one number to another.
func fill(t testing.TB, s *Store, from, to int) {
	t.Helper()
	b, err := s.Batch(t.Context())
	mustNot(t, err)
	for i := from; i < to; i++ {
		mustNot(t, b.Put(t.Context(), key(i), value(i)))
	}
	mustNot(t, b.Commit(t.Context()))
}

// content returns all entries.
func content(t testing.TB, s *Store) map[string]string {
	t.Helper()
	m := make(map[string]string)
	for e, err := range datastore.QueryIter(t.Context(), s, query.Query{}) {
		mustNot(t, err)
		m[e.Key] = string(e.Value)
	}
	return m
}

func TestSuiteOfGoDatastore(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	s := newStore(t)
	s.db.NoSync = true    // it makes 20,000 writes of one entry each
	dstest.ElemCount = 20 // which is the least that the suite takes; 100 made five times as many
	dstest.SubtestAll(t, s)
}

func TestEntriesAreThereAfterOpeningAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store")
	s := openStore(t, path)
	fill(t, s, 0, 3000)
	b, err := s.Batch(t.Context())
	mustNot(t, err)
	for i := range 21 {
		mustNot(t, b.Delete(t.Context(), key(3*i)))
	}
	mustNot(t, b.Commit(t.Context()))
	mustNot(t, s.Put(t.Context(), key(1), nil))
	want := content(t, s)
	if len(want) != 3000-21 {
		t.Fatalf("%d entries", len(want))
	}
	for range 3 {
		mustNot(t, s.Close())
		s = openStore(t, path)
		if got := content(t, s); !maps.Equal(got, want) {
			t.Fatalf("%d entries became %d", len(want), len(got))
		}
	}
	size, err := s.GetSize(t.Context(), key(1))
	if err != nil || size != 0 {
		t.Errorf("an empty value has size %d, %v", size, err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	mustNot(t, err)
	if len(files) != 1 {
		t.Errorf("there are %v", files)
	}
	usage, err := s.DiskUsage(t.Context())
	if err != nil || usage < pageSize*10 {
		t.Errorf("disk usage: %d, %v", usage, err)
	}
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if _, err := Open(s.path, quiet); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), s.path) {
		t.Fatalf("a second Open: %v", err)
	}
	fill(t, s, 0, 10)
	mustNot(t, s.Close())
	if len(content(t, openStore(t, s.path))) != 10 {
		t.Error("entries are missing")
	}
}

func TestNotAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Open(dir, quiet); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "a", "b"), quiet); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// all calls every method, and returns the errors by its name.
func all(ctx context.Context, s *Store) map[string]error {
	errs := map[string]error{}
	k := datastore.NewKey("k")
	errs["Put"] = s.Put(ctx, k, []byte("v"))
	_, errs["Get"] = s.Get(ctx, k)
	_, errs["Has"] = s.Has(ctx, k)
	_, errs["GetSize"] = s.GetSize(ctx, k)
	_, errs["Query"] = s.Query(ctx, query.Query{})
	errs["Sync"] = s.Sync(ctx, k)
	errs["Delete"] = s.Delete(ctx, k)
	_, errs["DiskUsage"] = s.DiskUsage(ctx)
	_, errs["Batch"] = s.Batch(ctx)
	b := &batch{s: s}
	errs["batch.Put"] = b.Put(ctx, k, nil)
	errs["batch.Delete"] = b.Delete(ctx, k)
	b.ops = []op{{key: []byte("k")}}
	errs["batch.Commit"] = b.Commit(ctx)
	return errs
}

func TestAfterClose(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	fill(t, s, 0, 1000)
	r, err := s.Query(t.Context(), query.Query{})
	mustNot(t, err)
	if _, ok := r.NextSync(); !ok {
		t.Fatal("no result")
	}
	mustNot(t, s.Close())
	mustNot(t, s.Close())
	for name, err := range all(t.Context(), s) {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := r.Rest(); !errors.Is(err, ErrClosed) {
		t.Errorf("a query after Close: %v", err)
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	fill(t, s, 0, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Query(ctx, query.Query{})
	mustNot(t, err)
	if _, ok := r.NextSync(); !ok {
		t.Fatal("no result")
	}
	cancel()
	for name, err := range all(ctx, s) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that ended: %v", name, err)
		}
	}
	if es, err := r.Rest(); !errors.Is(err, context.Canceled) || len(es) >= 999 {
		t.Errorf("a query whose context ended: %d more results, %v", len(es), err)
	}
	if n := len(content(t, s)); n != 1000 {
		t.Errorf("%d entries", n)
	}
}

// A write that waits for another one is not made once its context has ended.
func TestContextOfAWaitingWrite(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	synctest.Test(t, func(t *testing.T) {
		defer func(turn chan struct{}) { s.turn = turn }(s.turn)
		s.turn = make(chan struct{}, 1) // of this bubble
		s.turn <- struct{}{}
		ctx, cancel := context.WithCancel(t.Context())
		canceled, stays := make(chan error), make(chan error)
		go func() { canceled <- s.Put(ctx, key(1), value(1)) }()
		go func() { stays <- s.Put(t.Context(), key(2), value(2)) }()
		synctest.Wait()
		cancel()
		if err := <-canceled; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		<-s.turn
		mustNot(t, <-stays)
	})
	if got := content(t, s); len(got) != 1 || got[key(2).String()] == "" {
		t.Error(got)
	}
}

// Writes that wait at the same moment share a transaction, and each has its own
// result.
func TestWritesShareATransaction(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	before := transactions(t, s)
	synctest.Test(t, func(t *testing.T) {
		defer func(turn chan struct{}) { s.turn = turn }(s.turn)
		s.turn = make(chan struct{}, 1) // of this bubble
		s.turn <- struct{}{}
		errs := make(chan error, 100)
		for i := range 100 {
			go func() { errs <- s.Put(t.Context(), key(i), value(i)) }()
		}
		synctest.Wait()
		<-s.turn
		for range 100 {
			mustNot(t, <-errs)
		}
	})
	if n := transactions(t, s) - before; n != 1 {
		t.Errorf("%d transactions", n)
	}
	if n := len(content(t, s)); n != 100 {
		t.Errorf("%d entries", n)
	}
	// Nothing changes, so nothing is written.
	before = transactions(t, s)
	mustNot(t, s.Put(t.Context(), key(1), value(1)))
	mustNot(t, s.Delete(t.Context(), key(1000)))
	if n := transactions(t, s) - before; n != 0 {
		t.Errorf("%d transactions without a change", n)
	}
}

// transactions is the number of the last one.
func transactions(t *testing.T, s *Store) (n int) {
	t.Helper()
	mustNot(t, s.db.View(func(tx *bolt.Tx) error {
		n = tx.ID()
		return nil
	}))
	return n
}

// A batch with an entry that cannot be stored is not made at all, and takes no
// other write along.
func TestBatchIsWholeOrNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	b, err := s.Batch(t.Context())
	mustNot(t, err)
	mustNot(t, b.Put(t.Context(), key(1), value(1)))
	if err := b.Put(t.Context(), datastore.RawKey("/"+strings.Repeat("k", bolt.MaxKeySize)), nil); err == nil {
		t.Error("a key that is too long was accepted")
	}
	// As if it had been.
	bad := b.(*batch)
	bad.ops = append(bad.ops, op{nil, []byte("....")})
	good := &write{[]op{{[]byte("/good"), encode([]byte("/good"), nil)}}, make(chan error, 1)}
	s.waiting = append(s.waiting, good)
	if err := b.Commit(t.Context()); err == nil {
		t.Error("half a batch was committed")
	}
	mustNot(t, <-good.done)
	if got := content(t, s); len(got) != 1 || got[key(1).String()] != "" {
		t.Errorf("there are %q", got)
	}
}

// The caller may use its slices again.
func TestValuesAreCopied(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	v := []byte("first")
	b, err := s.Batch(t.Context())
	mustNot(t, err)
	mustNot(t, b.Put(t.Context(), key(1), v))
	copy(v, "other")
	mustNot(t, b.Commit(t.Context()))
	got, err := s.Get(t.Context(), key(1))
	if err != nil || string(got) != "first" {
		t.Fatalf("%q, %v", got, err)
	}
	copy(got, "other")
	if got, err := s.Get(t.Context(), key(1)); err != nil || string(got) != "first" {
		t.Fatalf("%q, %v", got, err)
	}
}

// Values of many pages, and a query that gets them, which reads few at a time.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	large := bytes.Repeat([]byte("large"), 100_000)
	for i := range 10 {
		mustNot(t, s.Put(t.Context(), key(i), append(large, byte(i))))
	}
	mustNot(t, s.Close())
	s = openStore(t, s.path)
	r, err := s.Query(t.Context(), query.Query{Prefix: "entries"})
	mustNot(t, err)
	for i := range 10 {
		e, ok := r.NextSync()
		if !ok || e.Error != nil || e.Key != key(i).String() || !bytes.Equal(e.Value, append(large, byte(i))) {
			t.Fatalf("result %d: %q with %d bytes, %v", i, e.Key, len(e.Value), e.Error)
		}
	}
	if _, ok := r.NextSync(); ok {
		t.Error("one result too many")
	}
	mustNot(t, r.Close())
}

// A goroutine writes while it reads its query, also when the file grows.
func TestWritingDuringAQuery(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	fill(t, s, 0, 2000)
	n := 0
	for e, err := range datastore.QueryIter(t.Context(), s, query.Query{Prefix: "/entries", Orders: []query.Order{query.OrderByKey{}}}) {
		mustNot(t, err)
		n++
		if n%500 == 0 {
			mustNot(t, s.Put(t.Context(), datastore.NewKey("/other"), make([]byte, n<<12)))
		}
		if n%250 == 0 {
			mustNot(t, s.Delete(t.Context(), datastore.RawKey(e.Key)))
		}
	}
	if n != 2000 {
		t.Errorf("%d results", n)
	}
	if got := len(content(t, s)); got != 2000-8+1 {
		t.Errorf("%d entries are left", got)
	}
}

func TestQueryPrefixAndOrder(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for _, k := range []string{"/a", "/a/b", "/a/b/c", "/ab", "/a/\xff", "/a\x00", "/b"} {
		mustNot(t, s.Put(t.Context(), datastore.RawKey(k), []byte(k)))
	}
	for _, c := range []struct {
		q    query.Query
		want string
	}{
		{query.Query{Prefix: "/a"}, "/a/b /a/b/c /a/\xff"},
		{query.Query{Prefix: "a/"}, "/a/b /a/b/c /a/\xff"},
		{query.Query{Prefix: "/", Limit: 2, Offset: 1}, "/a\x00 /a/b"},
		{query.Query{Prefix: "/c"}, ""},
		{query.Query{Prefix: "/a", Orders: []query.Order{query.OrderByKeyDescending{}}}, "/a/\xff /a/b/c /a/b"},
		{query.Query{Prefix: "/a", Orders: []query.Order{query.OrderByKey{}}, Filters: []query.Filter{query.FilterKeyCompare{Op: query.GreaterThan, Key: "/a/b"}}}, "/a/b/c /a/\xff"},
		{query.Query{Prefix: "/a", KeysOnly: true}, "/a/b /a/b/c /a/\xff"},
	} {
		r, err := s.Query(t.Context(), c.q)
		mustNot(t, err)
		es, err := r.Rest()
		mustNot(t, err)
		var keys []string
		for _, e := range es {
			keys = append(keys, e.Key)
			if (e.Value == nil) != c.q.KeysOnly || e.Size != len(e.Key) {
				t.Errorf("%v: %q has value %q and size %d", c.q, e.Key, e.Value, e.Size)
			}
		}
		if got := strings.Join(keys, " "); got != c.want {
			t.Errorf("%v: %q instead of %q", c.q, got, c.want)
		}
	}
}

// Everything at once, and Close in the middle: nothing blocks or panics, and what
// was acknowledged is there.
func TestConcurrentUseAndClose(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	s := newStore(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var written []int
	ended := func(err error) bool {
		if err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		return err != nil
	}
	enough := make(chan struct{})
	for g := range 4 {
		wg.Go(func() {
			for i := g; ; i += 4 {
				if ended(s.Put(t.Context(), key(i), value(i))) {
					return
				}
				mu.Lock()
				written = append(written, i)
				if len(written) == 100 {
					close(enough)
				}
				mu.Unlock()
			}
		})
		wg.Go(func() {
			for {
				b, err := s.Batch(t.Context())
				if ended(err) || b.Put(t.Context(), datastore.NewKey(fmt.Sprint("/b/", g)), []byte{1}) != nil ||
					ended(b.Commit(t.Context())) || ended(s.Delete(t.Context(), datastore.NewKey(fmt.Sprint("/b/", g)))) {
					return
				}
			}
		})
		wg.Go(func() {
			for {
				for e, err := range datastore.QueryIter(t.Context(), s, query.Query{Prefix: "/entries"}) {
					if ended(err) {
						return
					}
					if len(e.Value) == 0 {
						t.Errorf("%q has no value", e.Key)
					}
				}
				if _, err := s.Has(t.Context(), key(g)); ended(err) {
					return
				}
			}
		})
	}
	<-enough
	mustNot(t, s.Close())
	wg.Wait()
	s = openStore(t, s.path)
	for _, i := range slices.Compact(written) {
		if v, err := s.Get(t.Context(), key(i)); err != nil || !bytes.Equal(v, value(i)) {
			t.Fatalf("entry %d: %q, %v", i, v, err)
		}
	}
}
