package p2pnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
)

// The identity of the data directory outlives the node, gives way to one that
// is named, and is never replaced.
func TestDataDirHoldsTheIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start := func(opts ...Option) *Node {
		t.Helper()
		n, err := New(testContext(t), append([]Option{WithoutListening(), WithDataDir(dir)}, opts...)...)
		mustNot(t, err)
		return n
	}
	first := start()
	mustNot(t, first.Close())
	key := someKey(t)
	other := start(WithIdentity(key))
	mustNot(t, other.Close())
	again := start()
	mustNot(t, again.Close())
	if first.ID() != again.ID() {
		t.Errorf("%s became %s", first.ID(), again.ID())
	}
	if want, _ := PeerID(key); other.ID() != want {
		t.Errorf("a named identity did not count: %s", other.ID())
	}

	file := filepath.Join(dir, identityName)
	mustNot(t, os.WriteFile(file, []byte("broken"), 0o600))
	_, err := New(testContext(t), WithoutListening(), WithDataDir(dir))
	wantDataDirError(t, err, file)
	if b, _ := os.ReadFile(file); string(b) != "broken" {
		t.Errorf("the broken key was overwritten with %q", b)
	}
}

func TestDataDirIsLocked(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, WithDataDir(dir))
	for range 2 { // the failed start has not taken the lock from the node that has it
		_, err := New(testContext(t), WithoutListening(), WithDataDir(dir))
		wantDataDirError(t, err, dir)
		if !errors.Is(err, datadir.ErrLocked) {
			t.Errorf("%v, want that it is locked", err)
		}
	}
	mustNot(t, n.Close())
	newNode(t, WithDataDir(dir))
}

func TestDataDirThatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	mustNot(t, os.WriteFile(file, []byte("mine"), 0o600))
	_, err := New(testContext(t), WithoutListening(), WithDataDir(file))
	wantDataDirError(t, err, file)
}

func TestDataDirReadOnly(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "data")
	mustNot(t, os.Mkdir(dir, 0o755))
	mustNot(t, os.Chmod(dir, 0o555))
	if os.Geteuid() == 0 { // who writes everywhere
		// Only root can enter the directories above: let others through.
		for d := outer; d != filepath.Dir(d) && d != os.TempDir(); d = filepath.Dir(d) {
			mustNot(t, os.Chmod(d, 0o755))
		}
		defer withoutRootsRights(t)()
	}
	_, err := New(testContext(t), WithoutListening(), WithDataDir(dir))
	wantDataDirError(t, err, dir)
}

// TestBansThatCannotBeReadNowStay: a file that is not damaged, but whose
// owner is another, is neither renamed nor replaced.
func TestBansThatCannotBeReadNowStay(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, WithDataDir(dir))
	mustNot(t, n.BanPeer(somePeer("1").ID, time.Time{}, ""))
	mustNot(t, n.Close())
	file := filepath.Join(dir, "bans")
	before, err := os.ReadFile(file)
	mustNot(t, err)
	mustNot(t, os.Chmod(file, 0))
	n = func() *Node {
		if os.Geteuid() == 0 { // who reads everything
			for d := dir; d != filepath.Dir(d) && d != os.TempDir(); d = filepath.Dir(d) {
				mustNot(t, os.Chmod(d, 0o755))
			}
			mustNot(t, os.Chown(dir, 65534, 65534))
			mustNot(t, os.Chmod(filepath.Join(dir, identityName), 0o600))
			mustNot(t, os.Chown(filepath.Join(dir, identityName), 65534, 65534))
			mustNot(t, os.Chown(filepath.Join(dir, "lock"), 65534, 65534))
			mustNot(t, os.Chown(filepath.Join(dir, recordsName), 65534, 65534))
			defer withoutRootsRights(t)()
		}
		n, err := New(testContext(t), WithoutListening(), WithDataDir(dir))
		mustNot(t, err)
		return n
	}()
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], fmt.Sprintf("%q", file)) {
		t.Errorf("warnings: %q", w)
	}
	if err := n.BanPeer(somePeer("1").ID, time.Time{}, ""); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", file)) || len(n.Bans()) != 1 {
		t.Errorf("saving over it: %v, and %v hold", err, n.Bans())
	}
	mustNot(t, n.Close())
	mustNot(t, os.Chmod(file, 0o600))
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("%q became %q, %v", before, after, err)
	}
}

// wantDataDirError checks that an error is about WithDataDir, and names a path.
func wantDataDirError(t *testing.T, err error, path string) {
	t.Helper()
	var oe *OptionError
	if !errors.As(err, &oe) || oe.Option != "WithDataDir" || !strings.Contains(err.Error(), fmt.Sprintf("%q", path)) {
		t.Fatalf("%v, which is not about WithDataDir or does not name %q", err, path)
	}
}
