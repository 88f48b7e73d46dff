package p2pnode

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/peerfile"
)

// A node comes back through the peers it knew, with every bootstrap peer dead
// and also without any configured.
func TestSavedPeersBringTheNodeBack(t *testing.T) {
	for name, boot := range map[string][]Option{
		"dead bootstrap peer": {WithBootstrapPeers(somePeer("1"))},
		"no bootstrap peer":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			other := newNode(t)
			n := newNode(t, WithDataDir(dir))
			mustNot(t, n.Connect(testContext(t), peer.AddrInfo{ID: other.ID(), Addrs: other.Host().Addrs()}))
			mustNot(t, n.Close())

			n = newNode(t, append(boot, WithDataDir(dir))...)
			ctx := testContext(t)
			for {
				change := n.watch.change.Wait()
				if n.base.Connected(other.ID()) {
					break
				}
				select {
				case <-change:
				case <-ctx.Done():
					t.Fatal("not connected again")
				}
			}
		})
	}
}

// Between times only the peers that have been up for a while are saved.
func TestPeersAreGoodAfterAWhile(t *testing.T) {
	other, n := newNode(t), newNode(t)
	mustNot(t, n.Connect(testContext(t), peer.AddrInfo{ID: other.ID(), Addrs: other.Host().Addrs()}))
	now := time.Now()
	if list := goodPeers(now, n.base, time.Hour); len(list) != 0 {
		t.Errorf("connected a moment ago and good: %v", list)
	}
	list := goodPeers(now.Add(2*time.Hour), n.base, time.Hour)
	if len(list) != 1 || list[0].ID != other.ID() {
		t.Errorf("good after two hours: %v", list)
	}
}

// What a peer announces is saved within limits, and counted to the network that
// its connection came from.
func TestPitfall74AnnouncedAddressesOfPeersAreSavedWithinLimits(t *testing.T) {
	n := newNode(t)
	other := newNode(t)
	mustNot(t, other.Connect(testContext(t), peer.AddrInfo{ID: n.ID(), Addrs: n.Host().Addrs()}))
	ctx := testContext(t)
	for change := n.watch.change.Wait(); !n.base.Connected(other.ID()); change = n.watch.change.Wait() {
		select {
		case <-change:
		case <-ctx.Done():
			t.Fatal("not connected")
		}
	}
	hash := ma.StringCast("/ip4/203.0.113.1/udp/1/quic-v1/webtransport/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ")
	n.Host().Peerstore().AddAddr(other.ID(), hash, time.Hour) // pitfall 74
	long := ma.StringCast("/dns4/" + strings.Repeat("x", 260) + "/tcp/1")
	n.Host().Peerstore().AddAddr(other.ID(), long, time.Hour)
	for i := range 20 {
		n.Host().Peerstore().AddAddr(other.ID(), ma.StringCast(fmt.Sprintf("/ip4/203.%d.0.1/tcp/1", i)), time.Hour)
	}
	list := goodPeers(time.Now(), n.base, 0)
	if len(list) != 1 || len(list[0].Addrs) != peerfile.MaxAddrs || ma.Contains(list[0].Addrs, long) || ma.Contains(list[0].Addrs, hash) || !list[0].IP.IsLoopback() {
		t.Errorf("%+v", list)
	}
}

func TestDamagedSavedPeersAreSetAside(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, WithDataDir(dir))
	file := n.data.dir.Path(peersName)
	mustNot(t, n.Close())
	mustNot(t, os.WriteFile(file, []byte("damage"), 0o600))
	n = newNode(t, WithDataDir(dir))
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], file+".damaged-1") {
		t.Errorf("warnings: %q", w)
	}
	if b, err := os.ReadFile(file + ".damaged-1"); err != nil || string(b) != "damage" {
		t.Errorf("kept: %q, %v", b, err)
	}
}

// With nothing new to save, nothing is written.
func TestPeersAreWrittenWhenThereIsSomethingNew(t *testing.T) {
	n, other := newNode(t, WithDataDir(t.TempDir())), newNode(t)
	file := n.data.dir.Path(peersName)
	mustNot(t, n.data.savePeers(time.Now(), n.base, 0))
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("an empty list is written: %v", err)
	}
	mustNot(t, n.Connect(testContext(t), other.AddrInfo()))
	now := time.Now()
	mustNot(t, n.data.savePeers(now, n.base, 0))
	mustNot(t, os.Remove(file))
	mustNot(t, n.data.savePeers(now, n.base, 0))
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the same list is written twice: %v", err)
	}
	mustNot(t, n.data.savePeers(now.Add(time.Second), n.base, 0))
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a newer list is not written: %v", err)
	}
}
