package keyfile

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
)

// The keys of these tests are a line of hex: 32 random bytes and their hash,
// so that every cut and every change shows.

func generate() ([]byte, error) {
	var secret [32]byte
	rand.Read(secret[:])
	sum := sha256.Sum256(secret[:])
	return fmt.Appendf(nil, "%x%x\n", secret, sum), nil
}

var errNoKey = errors.New("it is no whole test key")

func check(data []byte) error {
	raw, err := hex.DecodeString(strings.TrimSuffix(string(data), "\n"))
	if err != nil || len(raw) != 64 {
		return errNoKey // err would quote the content
	}
	if sum := sha256.Sum256(raw[:32]); !bytes.Equal(sum[:], raw[32:]) {
		return errNoKey
	}
	return nil
}

func mustGenerate(t testing.TB) []byte {
	t.Helper()
	data, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func noGenerate(t testing.TB) func() ([]byte, error) {
	return func() ([]byte, error) {
		t.Error("a key was generated")
		return nil, errors.New("unexpected")
	}
}

func writeFile(t testing.TB, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// state describes all entries of dir with mode and content.
func state(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		fi, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %v %d", e.Name(), fi.Mode(), fi.Size())
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// wantError checks that err names path and each of want, and contains no part of
// secret. Its text is in the golden file.
func wantError(t testing.TB, err error, path string, secret []byte, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	text := err.Error()
	for _, w := range append(want, fmt.Sprintf("%q", path)) {
		if !strings.Contains(text, w) {
			t.Errorf("error %q does not contain %q", text, w)
		}
	}
	for i := 0; i+8 <= len(secret); i++ {
		if strings.Contains(text, string(secret[i:i+8])) {
			t.Fatalf("the error contains key material at offset %d", i)
		}
	}
}

func TestCreateAndLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	data, created, err := LoadOrCreate(path, generate, check)
	if err != nil || !created {
		t.Fatalf("created %v, error %v", created, err)
	}
	onDisk, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(onDisk, data) {
		t.Fatalf("the file differs from the returned key (%v)", err)
	}
	if fi, _ := os.Stat(path); runtime.GOOS != "windows" && fi.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", fi.Mode())
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d entries, want the key alone", len(entries))
	}
	again, created, err := LoadOrCreate(path, noGenerate(t), check)
	if err != nil || created || !bytes.Equal(again, data) {
		t.Fatalf("second call: created %v, same %v, error %v", created, bytes.Equal(again, data), err)
	}
}

func TestRelativeAndLongNames(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{"key", "./other", strings.Repeat("k", 255), "sp ace ü"} {
		a, created, err := LoadOrCreate(path, generate, check)
		if err != nil || !created {
			t.Fatalf("%q: created %v, error %v", path, created, err)
		}
		b, created, err := LoadOrCreate(path, noGenerate(t), check)
		if err != nil || created || !bytes.Equal(a, b) {
			t.Fatalf("%q: created %v, error %v", path, created, err)
		}
	}
}

func TestRefusedContent(t *testing.T) {
	t.Parallel()
	key := mustGenerate(t)
	big := make([]byte, 1<<20)
	rand.Read(big)
	tests := map[string][]byte{
		"empty":     {},
		"newline":   []byte("\n"),
		"json":      []byte(`{"Identity":{"PrivKey":"` + string(key) + `"}}`),
		"random":    big[:200],
		"limit":     big[:MaxSize],
		"above":     big[:MaxSize+1],
		"1 MiB":     big,
		"two keys":  append(bytes.Clone(key), key...),
		"one wrong": append([]byte{key[0] ^ 1}, key[1:]...),
	}
	for i := range len(key) - 1 { // without the newline it is complete
		tests[fmt.Sprintf("cut at %d", i)] = key[:i]
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	for name, content := range tests {
		writeFile(t, path, content, 0o600)
		before := state(t, dir)
		_, created, err := LoadOrCreate(path, noGenerate(t), check)
		if created {
			t.Errorf("%s: created", name)
		}
		wantError(t, err, path, key)
		wantError(t, err, path, content)
		if small := len(content) <= MaxSize; errors.Is(err, errNoKey) != small {
			t.Errorf("%s: %v", name, err)
		}
		if after := state(t, dir); after != before {
			t.Errorf("%s: the directory changed from\n%sto\n%s", name, before, after)
		}
	}
	writeFile(t, path, key[:len(key)-1], 0o600)
	if _, _, err := LoadOrCreate(path, noGenerate(t), check); err != nil {
		t.Errorf("without the newline: %v", err)
	}
}

func TestRefusedModes(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not keep modes")
	}
	tests := []struct {
		mode fs.FileMode
		ok   bool
	}{
		{0o600, true}, {0o400, true}, {0o700, true}, {0o711, true},
		{0o440, true}, // a mounted secret, whose mode cannot be changed
		{0o444, false}, {0o460, false}, {0o644, false}, {0o640, false}, {0o660, false}, {0o604, false}, {0o620, false}, {0o602, false}, {0o666, false}, {0o777, false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%#o", tt.mode), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "my key")
			key := mustGenerate(t)
			writeFile(t, path, key, tt.mode)
			before := state(t, dir)
			data, _, err := LoadOrCreate(path, noGenerate(t), check)
			if tt.ok {
				if err != nil || !bytes.Equal(data, key) {
					t.Fatal(err)
				}
			} else {
				wantError(t, err, path, key, fmt.Sprintf("%#o", tt.mode), "chmod 600 '"+path+"'")
				if !errors.Is(err, ErrExposed) {
					t.Errorf("%v does not match ErrExposed", err)
				}
			}
			if after := state(t, dir); after != before {
				t.Errorf("the directory changed from\n%sto\n%s", before, after)
			}
		})
	}
}

func TestRefusedKinds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(in("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, in("file"), []byte("x"), 0o600)
	links := map[string]string{"dangling": "nowhere", "loop": "loop", "todir": "dir", "deep": "dangling"}
	for name, to := range links {
		if err := os.Symlink(to, in(name)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	tests := []struct {
		name, path string
		want       []string // what the error names in addition to the path
	}{
		{"directory", in("dir"), nil},
		{"link to a directory", in("todir"), nil},
		{"dangling link", in("dangling"), nil},
		{"link to a dangling link", in("deep"), nil},
		{"link to itself", in("loop"), nil},
		{"empty", "", nil},
		{"separator", in("sub") + "/", nil},
		{"no directory", in("no/such/key"), []string{fmt.Sprintf("%q", in("no/such"))}},
		{"under a file", in("file/key"), nil},
		{"device", os.DevNull, nil},
		{"NUL", in("a\x00b"), nil},
		{"name too long", in(strings.Repeat("k", 300)), nil},
	}
	before := state(t, dir)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "device" && runtime.GOOS == "windows" {
				t.Skip("the null device is no path here")
			}
			_, created, err := LoadOrCreate(tt.path, generate, check)
			if created {
				t.Error("created")
			}
			if tt.path == "" {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			wantError(t, err, tt.path, nil, tt.want...)
		})
	}
	if after := state(t, dir); after != before {
		t.Errorf("the directory changed from\n%sto\n%s", before, after)
	}
}

func TestSymlinkToGoodFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := mustGenerate(t)
	writeFile(t, filepath.Join(dir, "real"), key, 0o600)
	path := filepath.Join(dir, "link")
	if err := os.Symlink("real", path); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	data, created, err := LoadOrCreate(path, noGenerate(t), check)
	if err != nil || created || !bytes.Equal(data, key) {
		t.Fatalf("created %v, error %v", created, err)
	}
}

func TestNoAccess(t *testing.T) {
	t.Parallel()
	if os.Getuid() <= 0 {
		t.Skip("root may read and write everything, Windows has no modes: TestRefusedKinds covers paths that cannot work")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	key := mustGenerate(t)
	writeFile(t, path, key, 0)
	_, _, err := LoadOrCreate(path, noGenerate(t), check)
	wantError(t, err, path, key)
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v does not match fs.ErrPermission", err)
	}

	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(closed, "key")
	_, created, err := LoadOrCreate(path, generate, check)
	if created {
		t.Error("created in a read-only directory")
	}
	wantError(t, err, path, nil, fmt.Sprintf("%q", closed))
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v does not match fs.ErrPermission", err)
	}
}

func TestGenerateFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	broken := errors.New("no entropy")
	tests := map[string]struct {
		generate func() ([]byte, error)
		want     error
	}{
		"error":   {func() ([]byte, error) { return nil, broken }, broken},
		"large":   {func() ([]byte, error) { return make([]byte, MaxSize+1), nil }, nil},
		"refused": {func() ([]byte, error) { return []byte("nonsense"), nil }, errNoKey},
	}
	for name, tt := range tests {
		_, created, err := LoadOrCreate(path, tt.generate, check)
		if created {
			t.Errorf("%s: created", name)
		}
		wantError(t, err, path, []byte("nonsense"))
		if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && !strings.Contains(err.Error(), fmt.Sprint(MaxSize)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := state(t, dir); s != "" {
		t.Errorf("left behind:\n%s", s)
	}
}

// TestCreationIsLost simulates concurrent changes by others, and file systems that
// the machine does not have.
func TestCreationIsLost(t *testing.T) {
	t.Parallel()
	t.Run("not exclusive", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		_, created, err := loadOrCreate(path, generate, check, func(string, []byte) error { return atomicfile.ErrNotExclusive })
		if created || !errors.Is(err, atomicfile.ErrNotExclusive) {
			t.Errorf("created %v, error %v", created, err)
		}
		if s := state(t, dir); s != "" {
			t.Errorf("left behind:\n%s", s)
		}
	})
	// The winner appears between the look and the creation.
	t.Run("lost to a key", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		winner := mustGenerate(t)
		data, created, err := LoadOrCreate(path, func() ([]byte, error) {
			writeFile(t, path, winner, 0o600)
			return generate()
		}, check)
		if err != nil || created || !bytes.Equal(data, winner) {
			t.Fatalf("created %v, error %v", created, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%d entries, want the key alone", len(entries))
		}
	})
	t.Run("lost to garbage", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "key")
		_, created, err := LoadOrCreate(path, func() ([]byte, error) {
			writeFile(t, path, []byte("garbage"), 0o600)
			return generate()
		}, check)
		if created {
			t.Error("created")
		}
		wantError(t, err, path, []byte("garbage!"))
		if !errors.Is(err, errNoKey) {
			t.Errorf("%v does not wrap the error of check", err)
		}
		if data, _ := os.ReadFile(path); string(data) != "garbage" {
			t.Error("the file was changed")
		}
	})
	t.Run("vanished", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "key")
		_, created, err := loadOrCreate(path, generate, check, func(string, []byte) error { return fs.ErrExist })
		if created {
			t.Error("created")
		}
		wantError(t, err, path, nil)
	})
}

func TestLeftoverDoesNotDisturb(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, ".p2pnode-key-12345.tmp"), []byte("half a k"), 0o600)
	before := state(t, dir)
	path := filepath.Join(dir, "key")
	if _, created, err := LoadOrCreate(path, generate, check); err != nil || !created {
		t.Fatalf("created %v, error %v", created, err)
	}
	if after := state(t, dir); !strings.HasPrefix(after, before) || strings.Count(after, "\n") != 2 {
		t.Errorf("from\n%sto\n%s", before, after)
	}
}

func TestGoroutineRace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	const n = 50
	var (
		wg      sync.WaitGroup
		start   = make(chan struct{})
		keys    [n][]byte
		created [n]bool
		errs    [n]error
	)
	for i := range n {
		wg.Go(func() {
			<-start
			keys[i], created[i], errs[i] = LoadOrCreate(path, generate, check)
		})
	}
	close(start)
	wg.Wait()
	winners := 0
	for i := range n {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !bytes.Equal(keys[i], keys[0]) {
			t.Errorf("goroutine %d has another key than goroutine 0", i)
		}
		if created[i] {
			winners++
		}
	}
	if winners != 1 {
		t.Errorf("%d goroutines created the file, want 1", winners)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d entries, want the key alone", len(entries))
	}
}

func TestShellQuote(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/a/b.key": "/a/b.key",
		"a b":      "'a b'",
		"it's":     `'it'\''s'`,
		"-rf":      "./-rf",
		"$(x)":     "'$(x)'",
		"ü":        "'ü'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	key, _ := generate()
	f.Add(key, uint16(0o600))
	f.Add(key[:40], uint16(0o600))
	f.Add(append(bytes.Clone(key), key...), uint16(0o644))
	f.Add([]byte{}, uint16(0o400))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n"), uint16(0o640))
	f.Add(bytes.Repeat([]byte("A"), MaxSize+1), uint16(0o600))
	// The files of one worker share a directory: making one for every
	// input would take most of the time.
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte, bits uint16) {
		path := filepath.Join(dir, fmt.Sprint("key", os.Getpid()))
		os.Remove(path)                         // of the input before
		mode := fs.FileMode(bits)&0o777 | 0o400 // else only root could compare
		writeFile(t, path, content, mode)

		data, created, err := LoadOrCreate(path, noGenerate(t), check)
		if created {
			t.Error("created")
		}
		switch good := check(content) == nil && (mode&0o066 == 0 || runtime.GOOS == "windows"); {
		case good && (err != nil || !bytes.Equal(data, content)):
			t.Errorf("a good file is refused: %v", err)
		case !good && err == nil:
			t.Error("a bad file is accepted")
		case !good:
			wantError(t, err, path, nil)
		}
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(after, content) {
			t.Errorf("the content changed (%v)", err)
		}
		if fi, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != mode {
			t.Errorf("the mode changed (%v)", err)
		}
	})
}
