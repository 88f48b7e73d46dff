package dstore

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// A full disk fails the write and says so once; reading goes on, nothing is
// damaged, and writing goes on when there is space again.
func TestFullDisk(t *testing.T) {
	needs.Time(t)
	dir := needs.SmallDisk(t, 2<<20)
	if dir == "" {
		return
	}
	var told bytes.Buffer
	s, err := Open(dir+"/store", slog.New(slog.NewTextHandler(&told, nil)))
	mustNot(t, err)
	fill(t, s, 0, 1000)
	// Others fill the disk but for less than the next batches need.
	mustNot(t, os.WriteFile(dir+"/other", make([]byte, 1<<20), 0o600))
	n, failed := 1000, error(nil)
	for ; failed == nil; n += 100 {
		b, err := s.Batch(t.Context())
		mustNot(t, err)
		for i := n; i < n+100; i++ {
			mustNot(t, b.Put(t.Context(), key(i), value(i)))
		}
		failed = b.Commit(t.Context())
	}
	n -= 100
	if !errors.Is(failed, syscall.ENOSPC) {
		t.Fatalf("%v", failed)
	}
	want := content(t, s)
	if len(want) != n {
		t.Fatalf("%d entries of %d", len(want), n)
	}
	for i := range 10 { // it does not become worse
		big := op{[]byte("/big"), encode([]byte("/big"), make([]byte, 2<<20))}
		if err := (&batch{s: s, ops: []op{big}}).Commit(t.Context()); err == nil {
			t.Fatal("2 MiB fit")
		}
		if got := content(t, s); !maps.Equal(got, want) {
			t.Fatalf("after %d failures: %d entries of %d", i, len(got), len(want))
		}
	}
	if n := strings.Count(told.String(), "datastore write failed"); n != 1 {
		t.Errorf("the log:\n%s", &told)
	}

	// As it is, it can be opened.
	mustNot(t, s.Close())
	s = openStore(t, s.path)
	if got := content(t, s); !maps.Equal(got, want) {
		t.Fatalf("%d entries of %d", len(got), len(want))
	}
	mustNot(t, s.Close())
	told.Reset()
	s, err = Open(dir+"/store", slog.New(slog.NewTextHandler(&told, nil)))
	mustNot(t, err)
	if err := (&batch{s: s, ops: []op{{[]byte("/big"), encode([]byte("/big"), make([]byte, 2<<20))}}}).Commit(t.Context()); err == nil {
		t.Fatal("2 MiB fit")
	}
	mustNot(t, os.Remove(dir+"/other"))
	fill(t, s, n, n+100)
	if !strings.Contains(told.String(), "succeeded again") {
		t.Errorf("the log:\n%s", &told)
	}
	mustNot(t, s.Close())
	s = openStore(t, s.path)
	if got := len(content(t, s)); got != n+100 {
		t.Errorf("%d entries of %d", got, n+100)
	}
}

// On a full disk a store cannot be created, nor a damaged one recovered: that is
// an error, and the file stays as it is.
func TestOpenOnAFullDisk(t *testing.T) {
	dir := needs.SmallDisk(t, 2<<20)
	if dir == "" {
		return
	}
	file, want := sample(t, 600)
	w := &walker{r: bytes.NewReader(file)}
	file = file[:(w.meta(int64(len(file))).high-1)*pageSize]
	mustNot(t, os.WriteFile(dir+"/store", file, 0o600))
	mustNot(t, os.WriteFile(dir+"/other", make([]byte, 2<<20-len(file)-3*pageSize), 0o600))
	for _, name := range []string{"store", "new"} {
		if s, err := Open(dir+"/"+name, quiet); err == nil {
			t.Fatalf("%s: %v", name, s.Damage())
		}
	}
	if b, err := os.ReadFile(dir + "/store"); err != nil || !bytes.Equal(b, file) {
		t.Fatalf("the file has %d bytes instead of %d, %v", len(b), len(file), err)
	}
	entries, err := os.ReadDir(dir)
	mustNot(t, err)
	if len(entries) != 2 {
		t.Errorf("there are %v", entries)
	}
	mustNot(t, os.Remove(dir+"/other"))
	mustNot(t, os.Remove(dir+"/store"))
	checkDamaged(t, "the file", file, want)
}

// A disk that cannot be read later fails the call instead of the process: here,
// the file is cut while it is mapped.
func TestUnreadableLater(t *testing.T) {
	t.Parallel()
	var told bytes.Buffer
	s := newStore(t)
	s.log = slog.New(slog.NewTextHandler(&told, nil))
	fill(t, s, 0, 2000)
	mustNot(t, os.Truncate(s.path, 2*pageSize))
	for range 3 {
		if _, err := s.Get(t.Context(), key(1500)); err == nil {
			t.Fatal("a page that is not there was read")
		}
	}
	for name, err := range all(t.Context(), s) {
		switch name {
		case "Get", "Put", "Delete", "batch.Commit", "Has", "GetSize":
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	}
	if n := strings.Count(told.String(), "datastore lost"); n != 1 {
		t.Errorf("the log:\n%s", &told)
	}
	mustNot(t, s.Close())
	s, err := Open(s.path, quiet)
	mustNot(t, err)
	if s.Damage() == nil {
		t.Error("a cut file is whole")
	}
	mustNot(t, s.Close())
}

// The same in the middle of a write.
func TestUnreadableDuringAWrite(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	fill(t, s, 0, 2000)
	mustNot(t, os.Truncate(s.path, 2*pageSize))
	for range 3 {
		if err := s.Put(t.Context(), key(1500), nil); err == nil {
			t.Fatal("it was written where nothing can be read")
		}
	}
	mustNot(t, s.Close())
}
