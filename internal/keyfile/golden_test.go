package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/atomicfile"
	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// looks describes a file.
type looks struct {
	fs.FileInfo
	mode fs.FileMode
}

func (l looks) Mode() fs.FileMode { return l.mode }

// The texts about key files, but for the system's own words.
func TestGoldenKeyFiles(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(in("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"dangling": "nowhere", "loop": "loop"} {
		if err := os.Symlink(to, in(name)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	file := func(name string, content []byte, mode fs.FileMode) string {
		writeFile(t, in(name), content, mode)
		return in(name)
	}
	key := mustGenerate(t)
	load := func(path string) error {
		_, _, err := LoadOrCreate(path, generate, check)
		return err
	}
	made := func(content []byte, err error) error {
		_, _, err = LoadOrCreate(in("new"), func() ([]byte, error) { return content, err }, check)
		return err
	}
	_, _, vanished := loadOrCreate(in("new"), generate, check, func(string, []byte) error { return fs.ErrExist })

	texts := []golden.Text{
		golden.Of("no path", load("")),
		golden.Of("a path that ends in a separator", load(in("dir")+"/")),
		golden.Of("a directory", load(in("dir"))),
		golden.Of("a link to nothing", load(in("dangling"))),
		golden.Of("a link to itself", load(in("loop"))),
		golden.Of("no directory", load(in("no/such/key"))),
		golden.Of("under a file", load(filepath.Join(file("file", nil, 0o600), "key"))),
		golden.Of("a device", load(os.DevNull)),
		golden.Of("a named pipe", checkKind(in("key"), looks{mode: fs.ModeNamedPipe})),
		golden.Of("a socket", checkKind(in("key"), looks{mode: fs.ModeSocket})),
		golden.Of("something else", checkKind(in("key"), looks{mode: fs.ModeIrregular})),
		golden.Of("empty", load(file("empty", nil, 0o600))),
		golden.Of("damaged", load(file("damaged", append([]byte{key[0] ^ 1}, key[1:]...), 0o600))),
		golden.Of("too large", load(file("large", make([]byte, MaxSize+1), 0o600))),
		golden.Of("readable by the group", load(file("a group's", key, 0o640))),
		golden.Of("readable by others", load(file("others", key, 0o604))),
		golden.Of("no key can be made", made(nil, errors.New("no entropy"))),
		golden.Of("a key that is too large is made", made(make([]byte, MaxSize+1), nil)),
		golden.Of("a key that is none is made", made([]byte("nonsense"), nil)),
		golden.Of("it comes and goes", vanished),
		golden.Of("not created: not exclusive", notCreated(in("key"), atomicfile.ErrNotExclusive)),
		golden.Of("not created: not private", notCreated(in("key"), atomicfile.ErrNotPrivate)),
		golden.Of("not created: not permitted", notCreated(in("key"), fs.ErrPermission)),
		golden.Of("not created: another reason", notCreated(in("key"), errors.New("disk full"))),
	}
	if os.PathSeparator != '/' {
		t.Skip("paths and modes read differently here")
	}
	golden.Check(t, "key files", texts, dir, "DIR")
}
