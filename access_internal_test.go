package p2pnode

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
)

func subnet(i int) Block {
	return Block{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
}

// TestBlocksStayBelowTheirLimit: also when many are added at once, for a longer
// list could not be read at the next start. Replacing one is always possible.
func TestBlocksStayBelowTheirLimit(t *testing.T) {
	a := newAccess(defaultConfig(), nil, slog.New(slog.DiscardHandler))
	for i := range maxBlocks - 1 {
		mustNot(t, a.add(subnet(i)))
	}
	var group sync.WaitGroup
	var added atomic.Int64
	for i := range 50 {
		group.Go(func() {
			if a.add(subnet(20_000+i)) == nil {
				added.Add(1)
			}
		})
	}
	group.Wait()
	if n := len(a.list()); added.Load() != 1 || n != maxBlocks {
		t.Errorf("%d were added, %d stand", added.Load(), n)
	}
	again := subnet(7)
	again.Reason = "once more"
	mustNot(t, a.add(again))
	if err := a.add(subnet(30_000)); err == nil || !strings.Contains(err.Error(), "10000 blocks") {
		t.Errorf("one too many: %v", err)
	}
}

// TestOneBadBlockDoesNotEndTheOthers: a file that was edited by hand.
func TestOneBadBlockDoesNotEndTheOthers(t *testing.T) {
	path := t.TempDir()
	open := func() *dataPart {
		dir, err := datadir.Open(path)
		mustNot(t, err)
		return &dataPart{dir: dir, log: slog.New(slog.DiscardHandler)}
	}
	data := open()
	mustNot(t, data.dir.Write(blocksName, []byte(`[{"subnet":"192.0.2.0/24"},{"subnet":"nonsense"},{},{"subnet":"198.51.100.0/24"}]`)))
	a := newAccess(defaultConfig(), data, data.log)
	if list := a.list(); len(list) != 2 {
		t.Errorf("%v are blocked", list)
	}
	if w := strings.Join(a.warnings, " "); !strings.Contains(w, "block 2 of 4") || !strings.Contains(w, "block 3 of 4") || !strings.Contains(w, "set aside") {
		t.Errorf("warnings: %q", w)
	}
	mustNot(t, data.dir.Close())
	// They are saved again, without any further block.
	data = open()
	defer data.dir.Close()
	a = newAccess(defaultConfig(), data, data.log)
	if list := a.list(); len(list) != 2 || len(a.warnings) != 0 {
		t.Errorf("%v are blocked after another start, with %q", list, a.warnings)
	}
	if kept, _ := filepath.Glob(filepath.Join(path, "blocks.damaged-*")); len(kept) != 1 {
		t.Errorf("%v are kept", kept)
	}
}

// TestUnreadableBlocksAreNotReplaced: what Block saves takes no other place.
func TestUnreadableBlocksAreNotReplaced(t *testing.T) {
	path := t.TempDir()
	mustNot(t, os.Mkdir(filepath.Join(path, blocksName), 0o700)) // root reads files of any mode
	n := newNode(t, WithDataDir(path))
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "not a regular file") {
		t.Errorf("warnings: %q", w)
	}
	mustNot(t, n.Block(subnet(1)))
	if fi, err := os.Stat(filepath.Join(path, "blocks.damaged-1")); err != nil || !fi.IsDir() {
		t.Errorf("what was there: %v, %v", fi, err)
	}
}

// TestRelayFilterKeepsToTheList: reservations, and either end of a circuit.
func TestRelayFilterKeepsToTheList(t *testing.T) {
	good, bad := somePeer("1").ID, peer.ID("bad")
	inside, outside := ma.StringCast("/ip4/10.0.1.9/tcp/1"), ma.StringCast("/ip4/192.0.2.9/tcp/1")
	a := newAccess(defaultConfig(), nil, slog.New(slog.DiscardHandler))
	mustNot(t, a.add(Block{Peer: bad}))
	mustNot(t, a.add(subnet(1)))
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"a reservation", a.AllowReserve(good, outside), true},
		{"of a blocked peer", a.AllowReserve(bad, outside), false},
		{"from a blocked subnet", a.AllowReserve(good, inside), false},
		{"a circuit", a.AllowConnect(good, outside, good), true},
		{"from a blocked peer", a.AllowConnect(bad, outside, good), false},
		{"to a blocked peer", a.AllowConnect(good, outside, bad), false},
		{"from a blocked subnet", a.AllowConnect(good, inside, good), false},
		{"a message", !a.Contains(good), true},
		{"of a blocked author", !a.Contains(bad), false},
		{"an address", a.allowsAddr(outside), true},
		{"a mapped one", a.allowsAddr(ma.StringCast("/ip6/::ffff:10.0.1.9/tcp/1")), false},
		{"by a relay there", a.allowsAddr(ma.StringCast(fmt.Sprintf("/ip4/10.0.1.9/tcp/1/p2p/%s/p2p-circuit", good))), false},
		{"a name", a.allowsAddr(ma.StringCast("/dns4/example.test/tcp/1")), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", c.what, c.got)
		}
	}
}
