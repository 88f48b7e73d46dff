package nethost

import (
	"context"
	"net"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Link-local IPv6 addresses are all that two machines have on a link without a router
// or a DHCP server: they mean something only with the interface, the zone. Upstream
// (go-libp2p v0.51) knows the form /ip6zone/<interface>/ip6/fe80::…, but its swarm
// leaves such addresses out of every dial, before a transport is asked
// (filterKnownUndialables in swarm_dial.go, "TODO: Consider allowing link-local
// addresses"), and its TCP transport refuses them too.
//
// So they are given to the swarm with the zone twice, which it takes for an address of a
// kind that it does not know, and the TCP transport here, which dials them, removes
// one. Nobody else sees that form: peers are shown, and errors name, the address as it
// is. All of that is in this file; it is to go when the swarm lets these addresses
// through.

// maxLinks bounds the interfaces on which a link-local address without a zone is tried.
const maxLinks = 8

// withZone returns a link-local address of TCP for dialing, on an interface.
func withZone(a ma.Multiaddr, zone string) (ma.Multiaddr, bool) {
	if addrs.KindOf(a) != addrs.TCP || len(a) == 0 || a[0].Protocol().Code != ma.P_IP6 || addrs.ReachOf(a) != addrs.LinkLocal {
		return nil, false
	}
	c, err := ma.NewComponent("ip6zone", zone)
	if err != nil {
		return nil, false
	}
	return append(ma.Multiaddr{*c, *c}, a...), true
}

// forDialing gives link-local addresses with a zone the form in which they are dialed.
// It changes no others.
func forDialing(list []ma.Multiaddr) []ma.Multiaddr {
	out := make([]ma.Multiaddr, len(list))
	for i, a := range list {
		out[i] = a
		if addrs.IsZoned(a) {
			out[i] = append(ma.Multiaddr{a[0]}, a...)
		}
	}
	return out
}

// onLink reports whether an address is a link-local one for dialing.
func onLink(a ma.Multiaddr) bool { return len(asIs(a)) < len(a) }

// asIs returns an address as others write it: forDialing reversed.
func asIs(a ma.Multiaddr) ma.Multiaddr {
	if len(a) > 2 && a[0].Protocol().Code == ma.P_IP6ZONE && a[1].Protocol().Code == ma.P_IP6ZONE {
		return a[1:]
	}
	return a
}

// links returns the interfaces with a link-local address, and that address.
func links() map[string]netip.Addr {
	list, err := net.Interfaces()
	if err != nil {
		return nil
	}
	out := make(map[string]netip.Addr)
	for _, i := range list {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || len(out) == maxLinks {
			continue
		}
		own, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range own {
			if n, ok := a.(*net.IPNet); ok {
				if ip, _ := netip.AddrFromSlice(n.IP); ip.Is6() && !ip.Is4In6() && ip.IsLinkLocalUnicast() {
					out[i.Name] = ip
				}
			}
		}
	}
	return out
}

// OnLinks replaces each link-local address of a peer on the LAN, which cannot know its
// zone here, by one for each interface on which it may be.
func OnLinks(list []ma.Multiaddr) (out []ma.Multiaddr) {
	for _, a := range list {
		if _, ok := withZone(a, "-"); !ok {
			out = append(out, a)
			continue
		}
		for zone := range links() {
			if b, ok := withZone(a, zone); ok {
				out = append(out, b)
			}
		}
	}
	return out
}

// LinkAddrs returns the link-local addresses on which the node listens over TCP, without
// zones, if there are no others but those of loopback: whoever has another is reached
// there.
func (h *Host) LinkAddrs() (out []ma.Multiaddr) {
	own, err := h.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range own {
		if !addrs.IsCircuit(a) && addrs.ReachOf(a) < addrs.LinkLocal {
			return nil
		}
	}
	for _, a := range h.ListenAddrs() {
		if addrs.KindOf(a) != addrs.TCP || a[0].Protocol().Code != ma.P_IP6 || !addrs.IsListenOnly(a) {
			continue
		}
		for _, ip := range links() {
			if c, err := ma.NewComponent("ip6", ip.String()); err == nil {
				out = append(out, append(ma.Multiaddr{*c}, a[1:]...))
			}
		}
	}
	return out
}

// linkTCP is TCP, also to link-local addresses.
type linkTCP struct{ *tcp.TcpTransport }

// CanDial implements transport.Transport.
func (t linkTCP) CanDial(a ma.Multiaddr) bool {
	if onLink(a) {
		return t.TcpTransport.CanDial(a[2:])
	}
	return t.TcpTransport.CanDial(a)
}

// Dial implements transport.Transport.
func (t linkTCP) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.TcpTransport.Dial(ctx, asIs(a), p)
}

// DialWithUpdates implements transport.DialUpdater.
func (t linkTCP) DialWithUpdates(ctx context.Context, a ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	if onLink(a) {
		updates = nil // they would name another address than the one that is dialed
	}
	return t.TcpTransport.DialWithUpdates(ctx, asIs(a), p, updates)
}
