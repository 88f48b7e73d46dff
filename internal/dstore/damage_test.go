package dstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-datastore"
	bolt "go.etcd.io/bbolt"
)

// sample returns a file with entries of several sizes, on pages of every kind,
// and the entries.
func sample(t testing.TB, n int) (file []byte, entries map[string]string) {
	t.Helper()
	s := newStore(t)
	fill(t, s, 0, n)
	s.db.NoSync = true // as fast as can be
	for i := range n / 10 {
		mustNot(t, (&batch{s: s, ops: []op{{key: []byte(key(7 * i).String())}}}).Commit(t.Context()))
	}
	mustNot(t, s.Put(t.Context(), datastore.NewKey("/large"), bytes.Repeat([]byte("large"), n*10)))
	entries = content(t, s)
	mustNot(t, s.Close())
	file, err := os.ReadFile(s.path)
	mustNot(t, err)
	return file, entries
}

// checkDamaged opens a damaged file. Either nothing is wrong with it and all
// entries are there, or it was set aside, untouched, and what is in the new file
// is of the old one.
func checkDamaged(t *testing.T, what string, damaged []byte, want map[string]string) (found *Damage) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store")
	mustNot(t, os.WriteFile(path, damaged, 0o600))
	var told bytes.Buffer
	s, err := Open(path, slog.New(slog.NewTextHandler(&told, nil)))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer s.Close()
	got := content(t, s)
	for k, v := range got {
		if want[k] != v {
			t.Fatalf("%s: %q has another value", what, k)
		}
	}
	d := s.Damage()
	if d == nil {
		if len(got) != len(want) {
			t.Fatalf("%s: %d of %d entries, and no report", what, len(got), len(want))
		}
		if told.Len() > 0 {
			t.Fatalf("%s: no damage, and the log says %s", what, &told)
		}
	} else {
		if len(got) != d.Recovered || d.Path != path || !strings.Contains(told.String(), "datastore damaged") {
			t.Fatalf("%s: %d entries, and the report says %v, the log %s", what, len(got), d, &told)
		}
		if kept, err := os.ReadFile(d.Kept); err != nil || !bytes.Equal(kept, damaged) {
			t.Fatalf("%s: the damaged file has changed: %v", what, err)
		}
	}
	// It can be used.
	s.db.NoSync = true // as fast as can be
	for i := range 20 {
		mustNot(t, (&batch{s: s, ops: []op{{key: []byte(key(i).String())}, {[]byte("/new"), encode([]byte("/new"), value(i))}}}).Commit(t.Context()))
	}
	mustNot(t, s.Close())
	if again := openStore(t, path); len(content(t, again)) == 0 {
		t.Fatalf("%s: nothing is left", what)
	}
	return d
}

func TestDamage(t *testing.T) {
	t.Parallel()
	file, want := sample(t, 600)
	seeds := 120
	if testing.Short() {
		seeds = 12
	}
	found := 0
	for seed := range seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		b := bytes.Clone(file)
		what := fmt.Sprintf("seed %d", seed)
		switch seed % 6 {
		case 0: // bits
			for range 1 + r.IntN(20) {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		case 1: // bits in the heads of pages, and in the elements after them
			for range 1 + r.IntN(5) {
				b[r.IntN(len(b)/pageSize)*pageSize+r.IntN(200)] ^= 1 << r.IntN(8)
			}
		case 2: // a sector
			at := r.IntN(len(b)/512) * 512
			for i := range 512 {
				b[at+i] = byte(r.Uint32())
			}
		case 3: // zeros
			at := r.IntN(len(b)/512) * 512
			clear(b[at:min(len(b), at+512*r.IntN(20))])
		case 4: // the tail
			b = b[:r.IntN(len(b))]
		case 5: // a page in the place of another
			n := len(b) / pageSize
			from, to := r.IntN(n), r.IntN(n)
			copy(b[to*pageSize:(to+1)*pageSize], b[from*pageSize:])
		}
		if checkDamaged(t, what, b, want) != nil {
			found++
		}
	}
	t.Logf("%d of %d damages were found; the others are where nothing is", found, seeds)
	if found < seeds/4 {
		t.Errorf("only %d of %d damages were found", found, seeds)
	}
}

// Sizes at which the file ends in its first pages.
func TestTruncatedToTheFirstPages(t *testing.T) {
	t.Parallel()
	file, want := sample(t, 600)
	for _, n := range []int{0, 1, 100, pageSize - 1, pageSize, pageSize + 1, pageSize + 80, 2 * pageSize, 2*pageSize + 1, 3 * pageSize} {
		if d := checkDamaged(t, fmt.Sprint(n, " bytes"), file[:n], want); d == nil {
			t.Errorf("%d bytes are a whole file", n)
		}
	}
	for _, b := range [][]byte{[]byte("hello\n"), bytes.Repeat([]byte("nonsense"), 10_000), make([]byte, 1<<20)} {
		if d := checkDamaged(t, "another file", b, want); d == nil || d.Recovered > 0 {
			t.Errorf("a file of something else: %v", d)
		}
	}
}

// Every byte of the pages that say where the others are, and of a small store.
func TestEveryByteOfASmallFile(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	fill(t, s, 0, 5)
	want := content(t, s)
	mustNot(t, s.Close())
	file, err := os.ReadFile(s.path)
	mustNot(t, err)
	step := 1
	if testing.Short() {
		step = 17
	}
	good := map[string]string{}
	for at := 0; at < len(file); at += step {
		b := bytes.Clone(file)
		b[at] ^= 0xff
		clear(good)
		damage, _ := walk(bytes.NewReader(b), int64(len(b)), func(k, v []byte) error {
			good[string(k)] = string(v)
			return nil
		})
		if damage == nil && len(good) != len(want) {
			t.Fatalf("byte %d: %d of %d entries, and nothing is wrong", at, len(good), len(want))
		}
		for k, v := range good {
			if want[k] != v {
				t.Fatalf("byte %d: %q has the value %q", at, k, v)
			}
		}
		if damage == nil && at%499 == 0 {
			checkDamaged(t, fmt.Sprint("byte ", at), b, want)
		}
	}
}

// What is whole is used when the rest is damaged, and the damaged file is kept
// next to older ones.
func TestMostIsRecovered(t *testing.T) {
	t.Parallel()
	file, want := sample(t, 600)
	at := bytes.Index(file, []byte(key(503).String()))
	for ; at < len(file); at++ { // the last copy, which is most likely the one in use
		i := bytes.Index(file[at:], value(503))
		if i < 0 {
			break
		}
		at += i
		file[at] ^= 1
	}
	d := checkDamaged(t, "a value", file, want)
	if d == nil || d.Recovered < len(want)-5 {
		t.Fatalf("%v of %d", d, len(want))
	}

	path := filepath.Join(t.TempDir(), "store")
	var kept []string
	for range 3 {
		mustNot(t, os.WriteFile(path, file, 0o600))
		s, err := Open(path, quiet)
		mustNot(t, err)
		mustNot(t, s.Close())
		kept = append(kept, filepath.Base(s.Damage().Kept))
	}
	if !slices.Equal(kept, []string{"store.damaged-1", "store.damaged-2", "store.damaged-3"}) {
		t.Error(kept)
	}
}

// A process that dies while it recovers a file leaves one of these.
func TestInterruptedRescue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store")
	s := openStore(t, path)
	fill(t, s, 0, 10)
	mustNot(t, s.Close())
	// Before the damaged file was renamed, the copy is not finished.
	mustNot(t, os.WriteFile(path+".rescue", []byte("half"), 0o600))
	s = openStore(t, path)
	if len(content(t, s)) != 10 {
		t.Error("the file was not used")
	}
	mustNot(t, s.Close())
	if _, err := os.Stat(path + ".rescue"); err == nil {
		t.Error("the half copy is still there")
	}
	// After that, it is.
	mustNot(t, os.Rename(path, path+".rescue"))
	s = openStore(t, path)
	if len(content(t, s)) != 10 {
		t.Error("the copy was not used")
	}
	mustNot(t, s.Close())
	// And while it creates a file.
	mustNot(t, os.Rename(path, path+".new"))
	s = openStore(t, path)
	if len(content(t, s)) != 0 {
		t.Error("a file that was not finished was used")
	}
}

// A store whose file is in use is not damaged, whatever a reader sees.
func TestFileInUseIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	mustNot(t, err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 10), 3*pageSize)
	mustNot(t, err)
	if _, err := Open(s.path, quiet); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(s.path))
	mustNot(t, err)
	if len(entries) != 1 {
		t.Errorf("there are %v", entries)
	}
}

// A process that is being started has the files of this one until it runs its own
// program: Open waits for it.
func TestOpenOutlivesAFork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		mustNot(t, s.Close())
		forked, err := bolt.Open(s.path, 0o600, options())
		mustNot(t, err)
		opened := make(chan error, 1)
		go func() {
			again, err := Open(s.path, quiet)
			if err == nil {
				err = again.Close()
			}
			opened <- err
		}()
		time.Sleep(lockWait / 2)
		synctest.Wait()
		if len(opened) > 0 {
			t.Fatalf("Open did not wait: %v", <-opened)
		}
		mustNot(t, forked.Close())
		mustNot(t, <-opened)
	})
}

func FuzzWalk(f *testing.F) {
	file, _ := sample(f, 60)
	f.Add(file, uint32(0), uint64(0))
	f.Add(file, uint32(3*pageSize+8), uint64(0xffff))
	f.Add(file[:5*pageSize], uint32(0), uint64(0))
	s := newStore(f)
	fill(f, s, 0, 3)
	mustNot(f, s.Close())
	small, err := os.ReadFile(s.path)
	mustNot(f, err)
	f.Add(small, uint32(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint32, xor uint64) {
		// The metas keep their checksums, so that the pages are reached.
		b = bytes.Clone(b)
		if i := int(at); i >= 2*pageSize && i+8 <= len(b) {
			order.PutUint64(b[i:], order.Uint64(b[i:])^xor)
		}
		n, fail := 0, errors.New("enough")
		count := func(k, v []byte) error {
			n++
			if !bytes.Equal(encode(k, v)[sumSize:], v) || len(k) == 0 {
				t.Errorf("%q: %q", k, v)
			}
			return nil
		}
		damage, err := walk(bytes.NewReader(b), int64(len(b)), count)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			if _, err := walk(bytes.NewReader(b), int64(len(b)), func(_, _ []byte) error { return fail }); !errors.Is(err, fail) {
				t.Errorf("the error of each became %v", err)
			}
		}
		if damage != nil {
			return
		}
		// bbolt stands what walk lets through.
		path := filepath.Join(t.TempDir(), "store")
		mustNot(t, os.WriteFile(path, b, 0o600))
		s, err := open(path, quiet)
		mustNot(t, err)
		defer s.Close()
		s.db.NoSync = true
		if got := len(content(t, s)); got != n {
			t.Errorf("%d entries became %d", n, got)
		}
		fill(t, s, 0, 100)
		if got := len(content(t, s)); got < 100 {
			t.Errorf("%d entries", got)
		}
	})
}
