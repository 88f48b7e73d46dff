package access

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// newList is a list in memory, or in the store when there is one.
func newList(store Store) *List {
	return New(Config{Store: store, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

func open(t *testing.T, path string) *datadir.Dir {
	t.Helper()
	dir, err := datadir.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, dir.Close()) })
	return dir
}

func newID(tb testing.TB) peer.ID {
	tb.Helper()
	_, pub, err := crypto.GenerateEd25519Key(nil)
	must(tb, err)
	id, err := peer.IDFromPublicKey(pub)
	must(tb, err)
	return id
}

func subnet(i int) Ban {
	return Ban{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
}

// The list never exceeds its bound, even with concurrent additions, because the
// next start could not read a longer one. Replacing an entry always works.
func TestBansStayBelowTheirBound(t *testing.T) {
	needs.Time(t)
	l := newList(nil)
	for i := range MaxBans - 1 {
		must(t, l.Add(subnet(i)))
	}
	var group sync.WaitGroup
	var added atomic.Int64
	for i := range 50 {
		group.Go(func() {
			if l.Add(subnet(20_000+i)) == nil {
				added.Add(1)
			}
		})
	}
	group.Wait()
	if n := len(l.Bans()); added.Load() != 1 || n != MaxBans {
		t.Errorf("%d were added, %d hold", added.Load(), n)
	}
	again := subnet(7)
	again.Reason = "once more"
	must(t, l.Add(again))
	if err := l.Add(subnet(30_000)); !errors.Is(err, errFull) {
		t.Errorf("one too many: %v", err)
	}
}

func TestBansEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, id := newList(nil), newID(t)
		must(t, l.Add(Ban{Peer: id, Until: time.Now().Add(time.Hour)}))
		if err := l.Refusal(id); !errors.Is(err, errs.ErrBanned) {
			t.Errorf("refusal of a banned peer: %v", err)
		}
		if end := l.NextEnd(); !end.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("the next ban ends at %v", end)
		}
		time.Sleep(time.Hour)
		if !l.Allows(id) || len(l.Bans()) != 0 || !l.NextEnd().IsZero() {
			t.Errorf("after its end: %v", l.Bans())
		}
		if l.UnbanPeer(id) {
			t.Error("a ban that has ended could be ended")
		}
	})
}

// A file that was edited by hand: one bad ban does not lose the others.
func TestOneBadBanDoesNotLoseTheOthers(t *testing.T) {
	path := t.TempDir()
	dir, err := datadir.Open(path)
	must(t, err)
	must(t, dir.Write(fileName, []byte(`[{"subnet":"192.0.2.0/24"},{"subnet":"nonsense"},{},{"subnet":"198.51.100.0/24"}]`)))
	l := newList(dir)
	if len(l.Bans()) != 2 || len(l.Warnings()) != 1 {
		t.Errorf("%v hold, warnings %q", l.Bans(), l.Warnings())
	}
	must(t, dir.Close())
	// They are saved again, without the damaged ones.
	l = newList(open(t, path))
	if len(l.Bans()) != 2 || len(l.Warnings()) != 0 {
		t.Errorf("after another start %v hold, warnings %q", l.Bans(), l.Warnings())
	}
	if kept, _ := filepath.Glob(filepath.Join(path, fileName+".damaged-*")); len(kept) != 1 {
		t.Errorf("%v are kept", kept)
	}
}

// A file from the time when bans were called blocks is read once.
func TestTheFileOfBlocksIsStillRead(t *testing.T) {
	path, id := t.TempDir(), newID(t)
	dir, err := datadir.Open(path)
	must(t, err)
	must(t, dir.Write("blocks", fmt.Appendf(nil, `[{"peer":%q,"reason":"spam"},{"subnet":"192.0.2.0/24","until":"2999-01-01T00:00:00Z"}]`, id)))
	l := newList(dir)
	if l.Allows(id) || len(l.Bans()) != 2 || len(l.Warnings()) != 0 {
		t.Errorf("%v hold, warnings %q", l.Bans(), l.Warnings())
	}
	if !l.UnbanPeer(id) {
		t.Error("the peer is not banned")
	}
	must(t, l.Save())
	must(t, dir.Close())
	if l = newList(open(t, path)); !l.Allows(id) || len(l.Bans()) != 1 {
		t.Errorf("after another start %v hold", l.Bans())
	}
}

// What is there and cannot be read is not replaced.
func TestUnreadableBansAreNotReplaced(t *testing.T) {
	path := t.TempDir()
	must(t, os.Mkdir(filepath.Join(path, fileName), 0o700)) // root reads files of any mode
	l := newList(open(t, path))
	if len(l.Warnings()) != 1 {
		t.Errorf("warnings: %q", l.Warnings())
	}
	must(t, l.Add(subnet(1)))
	must(t, l.Save())
	if fi, err := os.Stat(filepath.Join(path, fileName+".damaged-1")); err != nil || !fi.IsDir() {
		t.Errorf("what was there: %v, %v", fi, err)
	}
}

// Reservations, either end of a circuit, authors of messages, addresses.
func TestEveryQuestionHasOneAnswer(t *testing.T) {
	good, bad := newID(t), newID(t)
	inside, outside := ma.StringCast("/ip4/10.0.1.9/tcp/1"), ma.StringCast("/ip4/192.0.2.9/tcp/1")
	l := newList(nil)
	must(t, l.Add(Ban{Peer: bad}))
	must(t, l.Add(subnet(1)))
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"a reservation", l.AllowReserve(good, outside), true},
		{"of a banned peer", l.AllowReserve(bad, outside), false},
		{"from a banned subnet", l.AllowReserve(good, inside), false},
		{"a circuit", l.AllowConnect(good, outside, good), true},
		{"from a banned peer", l.AllowConnect(bad, outside, good), false},
		{"to a banned peer", l.AllowConnect(good, outside, bad), false},
		{"from a banned subnet", l.AllowConnect(good, inside, good), false},
		{"a message", !Blacklist{l}.Contains(good), true},
		{"of a banned author", !Blacklist{l}.Contains(bad), false},
		{"a dial", Gater{List: l}.InterceptPeerDial(good), true},
		{"to a banned peer", Gater{List: l}.InterceptPeerDial(bad), false},
		{"to a banned subnet", Gater{List: l}.InterceptAddrDial(good, inside), false},
		{"an address", l.AllowsAddr(outside), true},
		{"a mapped one", l.AllowsAddr(ma.StringCast("/ip6/::ffff:10.0.1.9/tcp/1")), false},
		{"by a relay there", l.AllowsAddr(ma.StringCast(fmt.Sprintf("/ip4/10.0.1.9/tcp/1/p2p/%s/p2p-circuit", good))), false},
		{"a name", l.AllowsAddr(ma.StringCast("/dns4/example.test/tcp/1")), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", c.what, c.got)
		}
	}
}
