package p2pnode

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
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
				change := n.watch.change.wait()
				if n.base.isConnected(other.ID()) {
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
