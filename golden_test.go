package p2pnode

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// scrub takes out of a text what differs from run to run: the IDs of keys made
// for the test, and where its files are.
func scrub(text string, replace ...string) string {
	for i := 0; i < len(replace); i += 2 {
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text
}

// The texts of every option's own check, in the order of the table.
func TestGoldenOptions(t *testing.T) {
	var texts []golden.Text
	for _, row := range optionRows(t) {
		if row.check != nil {
			continue
		}
		for _, e := range OptionErrors(ValidateOptions(row.opt)) {
			if e.Option == row.name {
				texts = append(texts, golden.Text{Name: row.name, Text: e.Error()})
			}
		}
	}
	golden.Check(t, "options", texts)
}

// The texts of the relations between options, as validate.go has them: the
// first line names the options involved.
func TestGoldenRelations(t *testing.T) {
	var texts []golden.Text
	for _, c := range conflicts {
		texts = append(texts, golden.Text{Name: c.option + ", " + c.with, Text: c.option + ": " + c.text})
	}
	for _, r := range relations {
		texts = append(texts, golden.Text{Name: strings.Join(r.with, ", "), Text: r.with[0] + ": " + r.text})
	}
	golden.Check(t, "options together", texts)
}

func TestGoldenErrors(t *testing.T) {
	cause := errors.New("cause")
	golden.Check(t, "errors", []golden.Text{
		{Name: "ErrClosed", Text: ErrClosed.Error()},
		{Name: "ErrDisabled", Text: ErrDisabled.Error()},
		{Name: "ErrNoPeers", Text: ErrNoPeers.Error()},
		{Name: "ErrNotReady", Text: ErrNotReady.Error()},
		{Name: "ErrNotFound", Text: ErrNotFound.Error()},
		{Name: "ErrBanned", Text: ErrBanned.Error()},
		{Name: "ErrTooLarge", Text: ErrTooLarge.Error()},
		{Name: "ErrProtocolInUse", Text: ErrProtocolInUse.Error()},
		{Name: "disabled", Text: disabled("the DHT", "leave WithoutDHT out").Error()},
		{Name: "OptionError", Text: (&OptionError{"WithX", cause}).Error()},
		{Name: "StartError", Text: (&StartError{"host", cause}).Error()},
		{Name: "ListenError", Text: (&ListenError{ma.StringCast("/ip4/127.0.0.1/tcp/1"), cause}).Error()},
	})
}

// The texts of New for what only a start finds out.
func TestGoldenStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode fs.FileMode) string {
		file := filepath.Join(dir, name)
		mustNot(t, os.WriteFile(file, []byte(content), 0o600))
		mustNot(t, os.Chmod(file, mode))
		return file
	}
	key := someKey(t)
	id, err := PeerID(key)
	mustNot(t, err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	defer mustClose(t, l)
	taken := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	open := filepath.Join(dir, "open")
	mustNot(t, os.Mkdir(open, 0o700))
	mustNot(t, os.Chmod(open, 0o777))

	var texts []golden.Text
	for _, row := range []struct {
		name string
		opts []Option
	}{
		{"identity file: no key", []Option{WithIdentityFile(write("broken", "nonsense", 0o600))}},
		{"identity file: open to others", []Option{WithIdentityFile(write("shared", "nonsense", 0o644))}},
		{"identity file: no directory", []Option{WithIdentityFile(filepath.Join(dir, "no", "key"))}},
		{"identity file: a directory", []Option{WithIdentityFile(dir)}},
		{"data directory: a file", []Option{WithDataDir(write("file", "", 0o600))}},
		{"data directory: open to everybody", []Option{WithDataDir(open)}},
		{"banned: itself", []Option{WithIdentity(key), WithBannedPeers(id)}},
		{"listen: the port is taken", []Option{WithListenAddrs("/ip4/127.0.0.1/tcp/" + taken)}},
	} {
		opts := append([]Option{WithoutDHT(), WithoutPubSub()}, row.opts...)
		if !strings.HasPrefix(row.name, "listen") {
			opts = append(opts, WithoutListening())
		}
		n, err := New(testContext(t), opts...)
		if err == nil {
			mustClose(t, n)
			t.Errorf("%s: started", row.name)
			continue
		}
		texts = append(texts, golden.Text{Name: row.name, Text: scrub(err.Error(), dir, "DIR", id.String(), "ID", taken, "PORT")})
	}
	if os.PathSeparator != '/' {
		t.Skip("paths and modes read differently here")
	}
	golden.Check(t, "start", texts)
}
