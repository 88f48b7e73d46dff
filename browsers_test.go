package p2pnode

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// ofKind returns a node's announced address of a kind.
func ofKind(tb testing.TB, n *Node, kind addrs.Kind) ma.Multiaddr {
	tb.Helper()
	for _, a := range n.AddrInfo().Addrs {
		if addrs.KindOf(a) == kind {
			return a
		}
	}
	tb.Fatalf("no address for %s among %v", kind, n.AddrInfo().Addrs)
	return nil
}

// With one option, and one address for QUIC, a node listens for browsers on the same
// port; with a data directory, the addresses that others know still work after a
// restart, with the same hashes.
func TestBrowserTransportsKeepTheirCertificatesWithADataDirectory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	_, port := silentAndClosed(t)
	dir := t.TempDir()
	server := func() *Node {
		return newNode(t, WithDataDir(dir), WithBrowserTransports(), WithListenAddrs(fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port)))
	}
	first := server()
	known := make(map[addrs.Kind]ma.Multiaddr)
	for _, kind := range []addrs.Kind{addrs.QUIC, addrs.WebTransport, addrs.WebRTCDirect} {
		known[kind] = ofKind(t, first, kind)
		if p, err := known[kind].ValueForProtocol(ma.P_UDP); err != nil || p != fmt.Sprint(port) {
			t.Errorf("%s listens at %s", kind, known[kind])
		}
		if kind != addrs.QUIC && !strings.Contains(known[kind].String(), "/certhash/") {
			t.Errorf("%s has no hash", known[kind])
		}
	}
	mustNot(t, first.Close())
	again := server()
	for kind, a := range known {
		if now := ofKind(t, again, kind); !now.Equal(a) {
			t.Errorf("%s became %s", a, now)
		}
		client := newNode(t, WithBrowserTransports())
		mustNot(t, client.Connect(testContext(t), peer.AddrInfo{ID: again.ID(), Addrs: []ma.Multiaddr{a}}))
		if p, ok := client.Peer(again.ID()); !ok || addrs.KindOf(p.Addr) != kind {
			t.Errorf("connected at %v, not %s", p.Addr, a)
		}
	}
	// The hashes of another identity are refused, in words.
	other := newNode(t, WithBrowserTransports(), WithListenAddrs("/ip4/127.0.0.1/udp/0/quic-v1"))
	theirs := ofKind(t, other, addrs.WebTransport).String()
	_, hashes, _ := strings.Cut(theirs, "/webtransport")
	mine, _, _ := strings.Cut(known[addrs.WebTransport].String(), "/certhash")
	err := newNode(t, WithBrowserTransports()).Connect(testContext(t), peer.AddrInfo{ID: again.ID(), Addrs: []ma.Multiaddr{ma.StringCast(mine + hashes)}})
	if err == nil || !strings.Contains(err.Error(), "its certificate is not the one that the address names") {
		t.Errorf("another certificate: %v", err)
	}
}

// What WithBrowserTransports listens on besides given addresses.
func TestBrowserTransportsListenOnThePortsOfQUIC(t *testing.T) {
	const quic, tcp, webtransport, webrtc = "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1/webtransport", "/ip4/0.0.0.0/udp/4001/webrtc-direct"
	const other = "/ip4/0.0.0.0/udp/9/webrtc-direct"
	for _, row := range [][2][]string{
		{{quic, tcp}, {quic, tcp, webtransport, webrtc}},
		{{quic, other}, {quic, other, webtransport}},
		{{other}, {other}},
		{{quic, webtransport, other}, {quic, webtransport, other}},
	} {
		s, err := Describe(WithBrowserTransports(), WithListenAddrs(row[0]...))
		mustNot(t, err)
		var got []string
		for _, a := range s.ListenAddrs {
			got = append(got, a.String())
		}
		if !slices.Equal(got, row[1]) {
			t.Errorf("%v: %v, want %v", row[0], got, row[1])
		}
	}
	s, err := Describe(WithBrowserTransports())
	mustNot(t, err)
	if len(s.Transports) != 5 || len(s.ListenAddrs) != 10 {
		t.Errorf("by default: %v, %v", s.Transports, s.ListenAddrs)
	}
}

// Addresses in the prefixes of WithNoAnnounce are listened on and not announced, others
// are; those of WithExtraAnnounceAddrs are in any case.
func TestNoAnnounceLeavesOutAndExtraAdds(t *testing.T) {
	const extra = "/ip4/127.0.0.1/tcp/9"
	n := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.2/tcp/0", "/ip6/::1/tcp/0"), WithPartialListen(),
		WithNoAnnounce(netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")), WithExtraAnnounceAddrs(extra))
	var ips []string
	for _, a := range n.AddrInfo().Addrs {
		ip, err := manet.ToIP(a)
		mustNot(t, err)
		if a.String() != extra {
			ips = append(ips, ip.String())
		}
	}
	if !slices.Equal(ips, []string{"127.0.0.2"}) || !ma.Contains(n.AddrInfo().Addrs, ma.StringCast(extra)) {
		t.Errorf("announced: %v", n.AddrInfo().Addrs)
	}
	if len(n.base.ListenAddrs()) < 2 {
		t.Errorf("listens on %v", n.base.ListenAddrs())
	}
}

// Where UDP is dropped, a peer with an address for QUIC is reached over TCP before the
// dial over UDP has failed.
func TestUDPBlockedTCPConnectsMeanwhile(t *testing.T) {
	hole, err := net.ListenPacket("udp4", "127.0.0.1:0") // it takes packets, and never answers
	mustNot(t, err)
	defer hole.Close()
	_, port, err := net.SplitHostPort(hole.LocalAddr().String())
	mustNot(t, err)
	silent := ma.StringCast("/ip4/127.0.0.1/udp/" + port + "/quic-v1")
	server, client := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0")), newNode(t)
	info := server.AddrInfo()
	info.Addrs = append([]ma.Multiaddr{silent}, info.Addrs...)
	mustNot(t, client.Connect(testContext(t), info))
	if p, ok := client.Peer(server.ID()); !ok || p.Transport != "tcp" {
		t.Errorf("connected over %q", p.Transport)
	}
	if why := client.base.WhyNot(peer.AddrInfo{ID: server.ID(), Addrs: []ma.Multiaddr{silent}}); why != "" {
		t.Errorf("TCP waited until the dial over UDP had failed: %s", why)
	}
}
