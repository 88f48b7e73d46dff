package peerfile

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"
)

var now = time.Date(2030, 1, 8, 12, 0, 0, 0, time.UTC)

func some(t testing.TB, addr string, age time.Duration) Peer {
	t.Helper()
	id, err := test.RandPeerID()
	if err != nil {
		t.Fatal(err)
	}
	return Peer{ID: id, Addrs: []ma.Multiaddr{ma.StringCast(addr)}, Seen: now.Add(-age)}
}

func TestChooseAgesOut(t *testing.T) {
	t.Parallel()
	young, old := some(t, "/ip4/192.0.2.1/tcp/1", MaxAge), some(t, "/ip4/192.0.2.2/tcp/1", MaxAge+1)
	future := some(t, "/ip4/192.0.2.3/tcp/1", -time.Hour)
	got := Choose(now, []Peer{old, young, future})
	if len(got) != 2 || got[0].ID != future.ID || got[1].ID != young.ID {
		t.Fatalf("chose %v", got)
	}
	if !got[0].Seen.Equal(now) {
		t.Errorf("a peer seen in the future keeps that time: %v", got[0].Seen)
	}
}

func TestChooseTakesTheLatestEntry(t *testing.T) {
	t.Parallel()
	p := some(t, "/ip4/192.0.2.1/tcp/1", time.Hour)
	q := p
	q.Addrs, q.Seen = []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/2")}, now
	for _, lists := range [][][]Peer{{{p}, {q}}, {{q}, {p}}} {
		if got := Choose(now, lists...); len(got) != 1 || !got[0].Addrs[0].Equal(q.Addrs[0]) {
			t.Errorf("chose %v", got)
		}
	}
}

func TestChooseSpreadsOverNetworks(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"/ip4/203.0.%d.1/tcp/1", "/ip6/2001:db8:%d::1/tcp/1"} {
		var list []Peer
		for i := range 200 {
			list = append(list, some(t, fmt.Sprintf(network, i), 0))
		}
		if got := Choose(now, list); len(got) != MaxPerNetwork {
			t.Errorf("%d of one network were chosen", len(got))
		}
		var others []Peer
		for i := range 90 {
			others = append(others, some(t, fmt.Sprintf("/ip4/10.%d.0.1/tcp/1", i), time.Hour))
		}
		got := Choose(now, list, others)
		found := map[peer.ID]bool{}
		for _, p := range got {
			found[p.ID] = true
		}
		if len(got) != Max {
			t.Errorf("%d were chosen, not %d", len(got), Max)
		}
		for _, p := range others {
			if !found[p.ID] {
				t.Fatalf("%v, the only one of its network, was not chosen", p.Addrs)
			}
		}
	}
}

// TestOneOwnerDoesNotFillTheListWithNames: nor with addresses that it only
// announces.
func TestOneOwnerDoesNotFillTheListWithNames(t *testing.T) {
	t.Parallel()
	var honest, named, announced []Peer
	for i := range 90 {
		honest = append(honest, some(t, fmt.Sprintf("/ip4/10.%d.0.1/tcp/1", i), time.Hour))
		named = append(named, some(t, fmt.Sprintf("/dns4/evil%d.example/tcp/%d", i, i+1), 0))
		p := some(t, fmt.Sprintf("/ip4/11.%d.0.1/tcp/1", i), 0)
		p.IP = netip.MustParseAddr("203.0.113.7")
		announced = append(announced, p)
	}
	for _, bad := range [][]Peer{named, announced} {
		found := map[peer.ID]bool{}
		for _, p := range Choose(now, bad, honest) {
			found[p.ID] = true
		}
		for _, p := range honest {
			if !found[p.ID] {
				t.Fatalf("%v was not chosen beside %v and so on", p.Addrs, bad[0].Addrs)
			}
		}
		if got := Choose(now, bad); len(got) != MaxPerNetwork {
			t.Errorf("%d of one owner were chosen", len(got))
		}
	}
}

func TestLongAddressesAreRefused(t *testing.T) {
	t.Parallel()
	p := some(t, "/dns4/"+strings.Repeat("x", 260)+"/tcp/1", 0)
	text, err := Encode([]Peer{p})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), "256") {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	good, err := Encode([]Peer{some(f, "/ip4/192.0.2.1/tcp/1", 0)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`[{"id":"x","addrs":[""]}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := Parse(b)
		if err != nil {
			return
		}
		text, err := Encode(list)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(text); err != nil || !reflect.DeepEqual(again, list) {
			t.Errorf("%v became %v, %v", list, again, err)
		}
		Choose(now, list)
	})
}

// Strangers that connect just before the end do not displace known peers, and
// those do not displace all new ones.
func TestAttackStrangersDoNotDisplacePeersKnownBefore(t *testing.T) {
	addr := func(i int) string { return fmt.Sprintf("/ip4/%d.%d.0.1/tcp/1", 11+i/200, i%200) }
	var old, fresh []Peer
	for i := range Max {
		known := some(t, addr(i), time.Hour)
		known.Known = now.Add(-3 * 24 * time.Hour)
		old = append(old, known)
		fresh = append(fresh, some(t, addr(Max+i), 0))
	}
	kept := 0
	got := Choose(now, old, fresh)
	for _, p := range got {
		if slices.ContainsFunc(old, func(o Peer) bool { return o.ID == p.ID }) {
			kept++
		}
	}
	if len(got) != Max || kept < Max/3 || kept > 2*Max/3 {
		t.Errorf("of %d peers %d were known before", len(got), kept)
	}
}

// An address that cannot be written as text loses neither its peer's other
// addresses nor the file.
func TestAttackAnAddressThatIsNoTextDoesNotSpoilTheFile(t *testing.T) {
	p, other := some(t, "/ip4/192.0.2.1/tcp/1", 0), some(t, "/ip4/198.51.100.1/tcp/1", 0)
	name, err := ma.NewComponent("dns4", "x\xff\xfe")
	if err != nil {
		t.Fatal(err)
	}
	p.Addrs = append([]ma.Multiaddr{{*name}}, p.Addrs...)
	text, err := Encode(Choose(now, []Peer{p, other}))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

// Addresses that a stranger has made up lead nowhere near after a restart: one of
// this machine or link is remembered only of a peer that was there.
func TestAttackC3ASavedPeerIsNotBelievedAboutThisMachine(t *testing.T) {
	own := []string{"/ip4/127.0.0.1/tcp/80/ws", "/ip4/169.254.169.254/tcp/80/ws", "/ip4/10.0.0.1/tcp/4001", "/ip4/8.8.8.8/tcp/4001"}
	for ip, want := range map[string][]string{"": own[2:], "8.8.8.8": own[2:], "10.0.0.1": own[2:], "127.0.0.1": {own[0], own[2], own[3]}} {
		p := some(t, own[0], 0)
		p.Addrs = nil
		for _, a := range own {
			p.Addrs = append(p.Addrs, ma.StringCast(a))
		}
		p.IP, _ = netip.ParseAddr(ip)
		var got []string
		for _, a := range Choose(now, []Peer{p})[0].Addrs {
			got = append(got, a.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("connected from %q: %s", ip, got)
		}
	}
}

// As many strangers as there are places for a network, connected just before the
// end from the network of all saved peers, leave half of those places to them.
func TestAttackStrangersNearbyDoNotDisplaceTheirNeighbors(t *testing.T) {
	var honest, strangers []Peer
	for i := range MaxPerNetwork {
		p := some(t, fmt.Sprintf("/ip4/10.1.0.%d/tcp/1", i), time.Hour)
		p.Known = now.Add(-3 * 24 * time.Hour)
		honest = append(honest, p)
		strangers = append(strangers, some(t, fmt.Sprintf("/ip4/10.1.1.%d/tcp/1", i), 0))
	}
	kept := 0
	for _, p := range Choose(now, honest, strangers) {
		if slices.ContainsFunc(honest, func(o Peer) bool { return o.ID == p.ID }) {
			kept++
		}
	}
	if kept != MaxPerNetwork/2 {
		t.Errorf("%d of %d peers known before remain", kept, MaxPerNetwork)
	}
}

// A board without a battery starts in 1970: its saved peers are neither too old
// nor in the future. Whoever connects before the clock is set is not known longest
// for that.
func TestAttackAClockThatIsNotSetForgetsNobody(t *testing.T) {
	boot := time.Unix(3, 0).UTC()
	saved := some(t, "/ip4/192.0.2.1/tcp/1", time.Hour)
	saved.Known = now.Add(-3 * 24 * time.Hour)
	stranger := some(t, "/ip4/198.51.100.1/tcp/1", 0)
	stranger.Known, stranger.Seen = boot, boot
	list := Choose(boot.Add(time.Hour), []Peer{saved}, []Peer{stranger})
	if len(list) != 2 || !list[0].Seen.Equal(saved.Seen) {
		t.Fatalf("in 1970, %v", list)
	}
	stranger.Seen = now // it is still connected once the clock is set
	list = Choose(now, list, []Peer{stranger})
	if len(list) != 2 {
		t.Fatalf("then, %v", list)
	}
	for _, p := range list {
		if want := map[peer.ID]time.Time{saved.ID: saved.Known, stranger.ID: now}[p.ID]; !p.Known.Equal(want) {
			t.Errorf("%v is known since %v, not %v", p.Addrs, p.Known, want)
		}
	}
}
