package addrs

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Reach is from where an address can be reached.
type Reach int

// The reaches. An address that no IP or name begins is Global: it is not dialed
// by itself.
const (
	Global    Reach = iota
	Private         // a network of its own
	LinkLocal       // one link, as those of cloud machines to their metadata; also to many hosts at once
	Loopback        // this machine
)

// ReachOf returns the reach of an address; that of a circuit address is the
// relay's. A name is Global, whatever it resolves to, but for those that stand
// for this machine.
func ReachOf(a ma.Multiaddr) Reach {
	if len(a) == 0 {
		return Global
	}
	if IsName(a) || IsDNSAddr(a) {
		name := strings.ToLower(strings.TrimSuffix(a[0].Value(), "."))
		if name == "localhost" || strings.HasSuffix(name, ".localhost") {
			return Loopback
		}
		return Global
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return Global
	}
	n, _ := netip.AddrFromSlice(ip)
	return ReachOfIP(n)
}

// ReachOfBytes is ReachOf for the binary form of an address that begins with an
// IP, of which it reads no more. It reports false for others.
func ReachOfBytes(b []byte) (Reach, bool) {
	switch {
	case len(b) > net.IPv4len && b[0] == ma.P_IP4:
		return ReachOfIP(netip.AddrFrom4([4]byte(b[1:]))), true
	case len(b) > net.IPv6len && b[0] == ma.P_IP6:
		return ReachOfIP(netip.AddrFrom16([16]byte(b[1:]))), true
	default:
		return Global, false
	}
}

// ReachOfIP returns the reach of an IP address.
func ReachOfIP(n netip.Addr) Reach {
	if n = n.Unmap().WithZone(""); nat64.Contains(n) {
		b := n.As16()
		n = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case n.IsLoopback(), n.IsUnspecified(), thisNetwork.Contains(n):
		return Loopback
	case n.IsLinkLocalUnicast(), n.IsMulticast(), broadcast.Contains(n):
		return LinkLocal
	case slices.ContainsFunc(privatePrefixes, func(p netip.Prefix) bool { return p.Contains(n) }):
		return Private
	default:
		return Global
	}
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	broadcast   = netip.MustParsePrefix("240.0.0.0/4")
	nat64       = netip.MustParsePrefix("64:ff9b::/96")
)
