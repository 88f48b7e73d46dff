package keeper

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/keeper/peerfile"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// memory is a Store that counts writes.
type memory struct {
	mu     sync.Mutex
	text   []byte
	writes int
}

func (m *memory) Read(parse func([]byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text == nil {
		return nil
	}
	return parse(m.text)
}

func (m *memory) Write(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text = slices.Clone(b)
	m.writes++
	return nil
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes
}

// peers are those in the file.
func (m *memory) peers(t *testing.T) map[peer.ID]peerfile.Peer {
	t.Helper()
	byID := map[peer.ID]peerfile.Peer{}
	err := m.Read(func(b []byte) error {
		list, err := peerfile.Parse(b)
		for _, p := range list {
			byID[p.ID] = p
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return byID
}

// announcing is a network whose peers announce arbitrary addresses.
type announcing struct {
	*fakeNet
	addrs []ma.Multiaddr
}

func (a announcing) Addrs(peer.ID) []ma.Multiaddr { return a.addrs }

func (a announcing) Where(id peer.ID) Place {
	return Place{Since: a.OpenedAt(id), Dialed: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/4001")}}
}

// saving starts a keeper with a store. It lives as long as the test.
func saving(t *testing.T, conns Conns, f *fakeNet) (*Keeper, *memory) {
	t.Helper()
	store := &memory{}
	cfg := f.config()
	cfg.Conns, cfg.Store = conns, store
	k := New(t.Context(), cfg)
	k.Start()
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k, store
}

func someID(t *testing.T) peer.ID {
	t.Helper()
	id, err := test.RandPeerID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A peer is saved once it has been connected for a while, or has disconnected: a
// peer that has just connected may not be useful after a crash.
func TestPeersAreSavedAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newNet()
		_, store := saving(t, f, f)
		first, second, third := someID(t), someID(t), someID(t)
		f.set(first, true)
		time.Sleep(35 * time.Second)
		f.set(second, true)
		time.Sleep(30 * time.Second) // the first save came after a minute
		if got := store.peers(t); len(got) != 1 || got[first].ID != first {
			t.Fatalf("after a minute there are %v", got)
		}
		time.Sleep(7 * time.Minute)
		f.set(third, true)
		time.Sleep(3 * time.Minute) // with somebody saved, the next one comes after ten
		if got := store.peers(t); len(got) != 2 || got[second].ID != second {
			t.Errorf("after ten minutes there are %v", got)
		}
		f.set(third, false)
		time.Sleep(10 * time.Minute)
		got := store.peers(t)
		if len(got) != 3 {
			t.Fatalf("one that has left is missing among %v", got)
		}
		if age := time.Since(got[third].Seen); age < 9*time.Minute || age > 11*time.Minute {
			t.Errorf("the one that left was last seen %v ago", age)
		}
	})
}

// A few of a peer's announced addresses are saved, without those that do not last:
// circuit addresses, and those of WebTransport and WebRTC-direct, whose
// certificates change (pitfall 74). The address of the connection comes first.
func TestPitfall74AnnouncedAddressesAreSavedWithinLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay := someID(t)
		announced := []ma.Multiaddr{
			ma.StringCast("/ip4/192.0.2.9/tcp/1/p2p/" + relay.String() + "/p2p-circuit"),
			ma.StringCast("/ip4/192.0.2.1/udp/4001/quic-v1/webtransport/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ"),
		}
		for i := range 1000 {
			announced = append(announced, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", 5000+i)))
		}
		f := newNet()
		id := someID(t)
		f.set(id, true)
		_, store := saving(t, announcing{f, announced}, f)
		time.Sleep(2 * time.Minute)
		for _, connected := range []bool{true, false} {
			f.set(id, connected)
			time.Sleep(11 * time.Minute)
			got := store.peers(t)[id].Addrs
			if len(got) != peerfile.MaxAddrs || got[0].String() != "/ip4/192.0.2.1/tcp/4001" || got[1].String() != "/ip4/192.0.2.1/tcp/5000" {
				t.Errorf("connected %v: %d addresses: %v", connected, len(got), got)
			}
		}
	})
}

// The file is written only if its content would change, not every ten minutes.
func TestSavedPeersAreWrittenWhenThereIsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newNet()
		f.min = 0
		k, store := saving(t, f, f)
		time.Sleep(time.Hour)
		if n := store.count(); n != 0 {
			t.Errorf("a node without peers has written %d times", n)
		}
		id := someID(t)
		f.set(id, true)
		time.Sleep(time.Minute)
		f.set(id, false)
		time.Sleep(time.Hour)
		before := store.count()
		if before == 0 {
			t.Error("a peer that came and left is not saved")
		}
		time.Sleep(3 * time.Hour)
		if n := store.count(); n != before {
			t.Errorf("%d more writes of the same", n-before)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if n := store.count(); n != before {
			t.Errorf("Close wrote the same again")
		}
	})
}

// Peers that have left are remembered until the next save, and not without
// bound: a stranger can come under a new ID every second.
func TestPeersThatHaveLeftAreForgotten(t *testing.T) {
	needs.Time(t)
	synctest.Test(t, func(t *testing.T) {
		f := newNet()
		f.min = 0
		k, store := saving(t, f, f)
		for range 3 * maxGone {
			id := someID(t)
			f.set(id, true)
			synctest.Wait()
			f.set(id, false)
			synctest.Wait()
			k.mu.Lock()
			seen := len(k.seen)
			k.mu.Unlock()
			if seen > maxGone+1 {
				t.Fatalf("%d are remembered", seen)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(store.peers(t)); n == 0 || n > peerfile.Max {
			t.Errorf("%d are saved", n)
		}
		k.mu.Lock()
		seen := len(k.seen)
		k.mu.Unlock()
		if seen != 0 {
			t.Errorf("%d are remembered after they were saved", seen)
		}
	})
}
