package nethost

import (
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

// Link-local addresses over TCP get a second zone, and nothing else does; without it
// they are as they were.
func TestLinkLocalAddressesForDialing(t *testing.T) {
	for text, want := range map[string]string{
		"/ip6zone/eth0/ip6/fe80::1/tcp/4001":         "/ip6zone/eth0/ip6zone/eth0/ip6/fe80::1/tcp/4001",
		"/ip6zone/eth0/ip6/fe80::1/tcp/4001/ws":      "/ip6zone/eth0/ip6/fe80::1/tcp/4001/ws",
		"/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1": "/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1",
		"/ip6zone/eth0/ip6/2001:db8::1/tcp/4001":     "/ip6zone/eth0/ip6/2001:db8::1/tcp/4001",
		"/ip6/fe80::1/tcp/4001":                      "/ip6/fe80::1/tcp/4001",
		"/ip4/169.254.1.1/tcp/4001":                  "/ip4/169.254.1.1/tcp/4001",
	} {
		a := ma.StringCast(text)
		got := forDialing([]ma.Multiaddr{a})[0]
		if got.String() != want || onLink(got) != (want != text) || !asIs(got).Equal(a) {
			t.Errorf("%s becomes %s, and %s again", a, got, asIs(got))
		}
		again := forDialing([]ma.Multiaddr{got})[0]
		if !again.Equal(got) {
			t.Errorf("%s becomes %s", got, again)
		}
	}
}

// A peer on the LAN may be named with a link-local address; others are not tried on
// this machine's links.
func TestOnlyLinkLocalAddressesAreTriedOnLinks(t *testing.T) {
	list := []ma.Multiaddr{ma.StringCast("/ip6/fe80::1/tcp/4001"), ma.StringCast("/ip4/192.0.2.1/tcp/4001")}
	got := OnLinks(list)
	if n := len(links()); len(got) != n+1 || !ma.Contains(got, list[1]) || ma.Contains(got, list[0]) {
		t.Errorf("on %d links: %s", n, got)
	}
}
