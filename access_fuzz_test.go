package p2pnode

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
)

// FuzzParseBlocks: whatever stands in the file, what is read from it can be
// written and read again.
func FuzzParseBlocks(f *testing.F) {
	f.Add([]byte(`[{"peer":"12D3KooWSRYRmzof8CB97fDdse451jbDNSaCVjP6iwofhxexoAtV","reason":"spam"},{"subnet":"192.0.2.0/24","until":"2999-01-01T00:00:00Z"}]`))
	f.Add([]byte(`[{}]`))
	f.Add([]byte(`[{"peer":"x","subnet":"y"}]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := parseBlocks(b)
		text, err := encodeBlocks(list)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", list, err)
		}
		again, err := parseBlocks(text)
		if err != nil || len(again) != len(list) {
			t.Fatalf("%+v is read again as %+v, %v", list, again, err)
		}
	})
}

// FuzzBlockSurvives: a block that is accepted is the same after a restart.
func FuzzBlockSurvives(f *testing.F) {
	f.Add([]byte("some peer"), "spam", int64(3600))
	f.Add([]byte{}, strings.Repeat("\xff", 400), int64(0))
	f.Add([]byte{}, strings.Repeat("\u2028", 100), int64(1)<<55)
	f.Add([]byte{0, 1, 'x'}, "<&>\"\\", int64(-1)<<60)
	f.Fuzz(func(t *testing.T, id []byte, reason string, until int64) {
		b := Block{Peer: peer.ID(id), Reason: reason}
		if len(id) == 0 {
			b.Subnet = netip.MustParsePrefix("192.0.2.0/24")
		}
		if until != 0 {
			b.Until = time.Unix(until, 0)
		}
		b = b.normal()
		if b.check() != nil {
			return
		}
		text, err := encodeBlocks([]Block{b})
		if err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		list, err := parseBlocks(text)
		if err != nil || len(list) != 1 || list[0].Peer != b.Peer || list[0].Subnet != b.Subnet || list[0].Reason != b.Reason || !list[0].Until.Equal(b.Until) {
			t.Fatalf("%+v is read as %+v, %v", b, list, err)
		}
	})
}

// TestTheLongestListOfBlocksFitsIntoItsFile.
func TestTheLongestListOfBlocksFitsIntoItsFile(t *testing.T) {
	id := append([]byte{0, maxPeerID - 2}, make([]byte, maxPeerID-2)...)
	b := Block{Peer: peer.ID(id), Reason: strings.Repeat(`"`, maxReason), Until: time.Now().Add(time.Hour)}
	mustNot(t, b.check())
	list := make([]Block, maxBlocks)
	for i := range list {
		list[i] = b
	}
	text, err := encodeBlocks(list)
	if err != nil || len(text) > datadir.MaxSize {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if got, err := parseBlocks(text); len(got) != maxBlocks || err != nil {
		t.Errorf("%d are read, %v", len(got), err)
	}
	if got, err := parseBlocks(append(text[:len(text)-2], []byte(",{}]")...)); len(got) != maxBlocks || err == nil {
		t.Errorf("with one more, %d are read, %v", len(got), err)
	}
}
