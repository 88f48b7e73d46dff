package access

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
)

// FuzzParseBans checks that bans parsed from any file can be written and parsed
// again.
func FuzzParseBans(f *testing.F) {
	f.Add([]byte(`[{"peer":"12D3KooWSRYRmzof8CB97fDdse451jbDNSaCVjP6iwofhxexoAtV","reason":"spam"},{"subnet":"192.0.2.0/24","until":"2999-01-01T00:00:00Z"}]`))
	f.Add([]byte(`[{}]`))
	f.Add([]byte(`[{"peer":"x","subnet":"y"}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := parseBans(b, time.Now())
		text, err := encodeBans(list)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", list, err)
		}
		again, err := parseBans(text, time.Now())
		if err != nil || len(again) != len(list) {
			t.Fatalf("%+v is read again as %+v, %v", list, again, err)
		}
	})
}

// FuzzBanSurvives: a ban that is accepted is the same after a restart.
func FuzzBanSurvives(f *testing.F) {
	f.Add([]byte("some peer"), "spam", int64(3600))
	f.Add([]byte{}, strings.Repeat("\xff", 400), int64(0))
	f.Add([]byte{}, strings.Repeat("\u2028", 100), int64(1)<<55)
	f.Add([]byte{0, 1, 'x'}, "<&>\"\\", int64(-1)<<60)
	f.Fuzz(func(t *testing.T, id []byte, reason string, until int64) {
		b := Ban{Peer: peer.ID(id), Reason: reason}
		if len(id) == 0 {
			b.Subnet = netip.MustParsePrefix("192.0.2.0/24")
		}
		if until != 0 {
			b.Until = time.Unix(until, 0)
		}
		b = b.Normal()
		if b.check(time.Now()) != nil {
			return
		}
		text, err := encodeBans([]Ban{b})
		if err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		list, err := parseBans(text, time.Now())
		if err != nil || len(list) != 1 || list[0].Peer != b.Peer || list[0].Subnet != b.Subnet || list[0].Reason != b.Reason || !list[0].Until.Equal(b.Until) {
			t.Fatalf("%+v is read as %+v, %v", b, list, err)
		}
	})
}

// The longest list of bans fits into its file.
func TestTheLongestListOfBansFitsIntoItsFile(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	const size = 128 // the longest peer ID
	id := append([]byte{0, size - 2}, make([]byte, size-2)...)
	b := Ban{Peer: peer.ID(id), Reason: strings.Repeat(`"`, maxReason), Until: time.Now().Add(time.Hour)}
	must(t, b.check(time.Now()))
	list := make([]Ban, MaxBans)
	for i := range list {
		list[i] = b
	}
	text, err := encodeBans(list)
	if err != nil || len(text) > datadir.MaxSize {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if got, err := parseBans(text, time.Now()); len(got) != MaxBans || err != nil {
		t.Errorf("%d are read, %v", len(got), err)
	}
	if got, err := parseBans(append(text[:len(text)-2], []byte(",{}]")...), time.Now()); len(got) != MaxBans || err == nil {
		t.Errorf("with one more, %d are read, %v", len(got), err)
	}
}
