package p2pnode

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func ma4(s string) ma.Multiaddr { return ma.StringCast(s) }

func TestBootstrapPeerThatComesUpLater(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	key := someKey(t)
	first, err := New(testContext(t), loopback(), WithIdentity(key))
	mustNot(t, err)
	info := first.AddrInfo()
	mustNot(t, first.Close())

	n := newNode(t, WithBootstrapPeers(info))
	var listen []string
	for _, a := range info.Addrs {
		listen = append(listen, a.String())
	}
	started := false
	for ev := range n.Events(testContext(t)) {
		if r, ok := ev.(EventBootstrapRound); ok && len(r.Round.Failed) == 1 && !started {
			if s := n.Status().Bootstrap; s == nil || len(s.Failed) != 1 {
				t.Errorf("Status has the round %+v", s)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			err := n.WaitReady(ended)
			if e, ok := errors.AsType[*NotReadyError](err); !ok || len(e.Missing) == 0 || e.Missing[0].Stage != StageConnected || !strings.Contains(e.Missing[0].Why, info.ID.String()) {
				t.Errorf("WaitReady = %v; want the failed peer named", err)
			}
			started = true
			late, err := New(testContext(t), WithIdentity(key), WithListenAddrs(listen...))
			mustNot(t, err)
			defer mustClose(t, late)
		}
		if _, ok := ev.(EventPeerConnected); ok {
			break
		}
	}
	ready(t, n)
}

// Two nodes that bootstrap from each other at the same moment (pitfall 14).
func TestPitfall14MutualBootstrapPeers(t *testing.T) {
	needs.Time(t)
	for range 5 {
		a, b := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0")), newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
		ka, kb := a.key, b.key
		ia, ib := a.AddrInfo(), b.AddrInfo()
		mustNot(t, errors.Join(a.Close(), b.Close()))
		nodes := make([]*Node, 2)
		var wg sync.WaitGroup
		wg.Go(func() {
			nodes[0], _ = New(testContext(t), WithIdentity(ka), WithListenAddrs(ia.Addrs[0].String()), WithBootstrapPeers(ib))
		})
		wg.Go(func() {
			nodes[1], _ = New(testContext(t), WithIdentity(kb), WithListenAddrs(ib.Addrs[0].String()), WithBootstrapPeers(ia))
		})
		wg.Wait()
		for _, n := range nodes {
			if n == nil {
				t.Fatal("a node did not start")
			}
			defer mustClose(t, n)
		}
		ready(t, nodes...)
	}
}

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

// A damaged file of the DHT is set aside and reported, and the node works.
func TestDamagedRecordsAreSetAside(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, WithDataDir(dir))
	file := n.data.dir.Path(recordsName)
	mustNot(t, n.Close())
	mustNot(t, os.WriteFile(file, bytes.Repeat([]byte("damage"), 10_000), 0o600))
	n = newNode(t, WithDataDir(dir), via(newNode(t)))
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], file+".damaged-1") {
		t.Errorf("warnings: %q", w)
	}
	mustNot(t, n.Provide(testContext(t), mustCID(t, "x")))
}

// A file of the DHT that cannot be opened is left alone, and the node works.
func TestRecordsThatCannotBeOpenedStay(t *testing.T) {
	dir := t.TempDir()
	mustNot(t, os.Mkdir(filepath.Join(dir, recordsName), 0o700))
	n := newNode(t, WithDataDir(dir), via(newNode(t)))
	if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], recordsName) {
		t.Errorf("warnings: %q", w)
	}
	mustNot(t, n.Provide(testContext(t), mustCID(t, "x")))
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
