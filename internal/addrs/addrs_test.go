package addrs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

const id = "12D3KooWGzBkhXwoG7MkWkEJm3xZx3DwC3gZkqXQWbPjTgYnqyxQ"

func TestKindOf(t *testing.T) {
	for addr, want := range map[string]Kind{
		"/ip4/1.2.3.4/tcp/1":                                        TCP,
		"/ip6/::1/tcp/1":                                            TCP,
		"/dns4/example.com/tcp/1":                                   TCP,
		"/ip4/1.2.3.4/udp/1/quic-v1":                                QUIC,
		"/ip4/1.2.3.4/tcp/1/ws":                                     WebSocket,
		"/dns4/example.com/tcp/443/tls/sni/example.com/ws":          WebSocket,
		"/dns4/example.com/tcp/443/wss":                             WebSocket,
		"/ip4/1.2.3.4/udp/1/quic-v1/webtransport":                   WebTransport,
		"/ip4/1.2.3.4/udp/1/webrtc-direct":                          WebRTCDirect,
		"/ip4/1.2.3.4/tcp/1/p2p/" + realID + "/p2p-circuit":         Circuit,
		"/p2p-circuit":                                              Circuit,
		"/ip4/1.2.3.4/udp/1":                                        Unknown,
		"/ip4/1.2.3.4":                                              Unknown,
		"/dnsaddr/example.com":                                      Unknown,
		"/ip4/1.2.3.4/udp/1/quic-v1/p2p/" + realID:                  QUIC,
		"/ip4/1.2.3.4/udp/1/quic-v1/p2p/" + realID + "/p2p-circuit": Circuit,
	} {
		a, err := Parse(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := KindOf(a); got != want {
			t.Errorf("KindOf(%s) = %q, want %q", addr, got, want)
		}
		if IsCircuit(a) != (want == Circuit) {
			t.Errorf("IsCircuit(%s) = %v", addr, IsCircuit(a))
		}
		if HasPeerID(a) != strings.Contains(addr, "/p2p/") {
			t.Errorf("HasPeerID(%s) = %v", addr, HasPeerID(a))
		}
		if IsIP6(a) != strings.HasPrefix(addr, "/ip6/") {
			t.Errorf("IsIP6(%s) = %v", addr, IsIP6(a))
		}
	}
}

// realID is a peer ID that decodes.
var realID = peer.ID("\x12\x20" + strings.Repeat("x", 32)).String()

// Errors name invalid addresses unless they are huge.
func TestGoldenParse(t *testing.T) {
	var texts []golden.Text
	for _, in := range []string{"", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp", "/ip4/999.0.0.1/tcp/1", "/nonsense/1", "/" + strings.Repeat("x", 5000)} {
		_, err := Parse(in)
		if err == nil || len(in) < MaxLen && !strings.Contains(err.Error(), in) || len(err.Error()) > MaxLen {
			t.Errorf("Parse(%.40q) = %v", in, err)
		}
		texts = append(texts, golden.Of(fmt.Sprintf("address %.40q", in), err))
	}
	const anonymous = "/ip4/1.2.3.4/tcp/1"
	_, err := ParsePeer(anonymous)
	if err == nil || !strings.Contains(err.Error(), anonymous) {
		t.Errorf("ParsePeer without an ID = %v", err)
	}
	golden.Check(t, "addresses", append(texts, golden.Of("a peer's address without an ID", err)))
}

func TestMergeJoinsByIDAndSharesNothing(t *testing.T) {
	a, b := ma.StringCast("/ip4/1.2.3.4/tcp/1"), ma.StringCast("/ip4/1.2.3.4/tcp/2")
	in := []ma.Multiaddr{a}
	got := Merge(peer.AddrInfo{ID: "x", Addrs: in}, peer.AddrInfo{ID: "y", Addrs: []ma.Multiaddr{a}}, peer.AddrInfo{ID: "x", Addrs: []ma.Multiaddr{a, b}})
	if len(got) != 2 || got[0].ID != "x" || len(got[0].Addrs) != 2 || got[1].ID != "y" {
		t.Fatalf("Merge = %v", got)
	}
	in[0] = b
	if !got[0].Addrs[0].Equal(a) {
		t.Error("the result shares memory with the input")
	}
	if Merge() != nil {
		t.Error("nothing merged is something")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "/", "/ip4/1.2.3.4/tcp/1", "/p2p/" + realID, "/ip4/1.2.3.4/tcp/1/p2p/" + realID, "/ip4/1.2.3.4/tcp/1/p2p/" + realID + "/p2p-circuit/p2p/" + id} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		KindOf(a)
		if Undialable(a) == nil && Misshapen(a) != nil && !IsCircuit(a) {
			t.Errorf("%s is misshapen: %v; and can be dialed", a, Misshapen(a))
		}
		again, err := Parse(a.String())
		if err == nil && !again.Equal(a) {
			t.Errorf("%q became %s and then %s", s, a, again)
		}
		ai, err := ParsePeer(s)
		if err == nil && ai.ID.Validate() != nil {
			t.Errorf("%q gave a peer without an ID", s)
		}
	})
}
