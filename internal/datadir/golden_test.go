package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// The texts about the data directory and its files, but for the system's own
// words.
func TestGoldenDataDir(t *testing.T) {
	dir := t.TempDir()
	d := open(t, filepath.Join(dir, "data"))
	readAs := func(content string, reason error) error {
		mustWrite(t, d.Path("f"), content)
		return d.Read("f", func([]byte) error { return reason })
	}
	texts := []golden.Text{
		golden.Of("not a data file", readAs("nonsense", nil)),
		golden.Of("changed", readAs(string(encode([]byte("x")))+"y", nil)),
		golden.Of("not understood", readAs(string(encode(nil)), errors.New("it has no bans"))),
		golden.Of("too large", readAs(string(make([]byte, headLen+MaxSize+1)), nil)),
	}
	if err := os.Mkdir(d.Path("g"), 0o700); err != nil {
		t.Fatal(err)
	}
	texts = append(texts, golden.Of("a directory", d.Read("g", nil)))
	if err := os.Symlink(d.Path("h"), d.Path("h")); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	texts = append(texts,
		golden.Of("cannot be read now", d.Read("h", nil)),
		golden.Of("write: over what cannot be read now", d.Write("h", nil)),
	)
	for i := range 1000 {
		mustWrite(t, fmt.Sprintf("%s.damaged-%d", d.Path("f"), i+1), "")
	}
	exposed := filepath.Join(dir, "exposed")
	if err := errors.Join(os.Mkdir(exposed, 0o700), os.Chmod(exposed, 0o777)); err != nil {
		t.Fatal(err)
	}
	texts = append(texts,
		golden.Of("not set aside", readAs("nonsense", nil)),
		golden.Of("write: over what was not set aside", d.Write("f", nil)),
		golden.Of("write: too large", d.Write("g", make([]byte, MaxSize+1))),
		golden.Of("open: open elsewhere", result(Open(d.path))),
		golden.Of("open: everybody may write", result(Open(exposed))),
		golden.Of("open: a file", result(Open(d.Path("f")))),
		golden.Of("open: under a file", result(Open(filepath.Join(d.Path("f"), "below")))),
	)
	for name, format := range map[string]string{"newer": "1000\n", "odd": "one\n"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(dir, name, formatName), format)
	}
	texts = append(texts,
		golden.Of("open: newer format", result(Open(filepath.Join(dir, "newer")))),
		golden.Of("open: no format", result(Open(filepath.Join(dir, "odd")))),
		golden.Of("format: older", d.SetFormat(0)),
	)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	texts = append(texts,
		golden.Of("format: closed", d.SetFormat(1)),
		golden.Of("write: closed", d.Write("g", nil)),
		golden.Of("remove: closed", d.Remove("g")),
	)
	if os.PathSeparator != '/' {
		t.Skip("paths and modes read differently here")
	}
	golden.Check(t, "data directory", texts, dir, "DIR")
}

func result(_ *Dir, err error) error { return err }

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
}
