package ticket

import (
	"cmp"
	"slices"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Choose returns the addresses that are worth a place in a ticket, at most n, the
// best first. It leaves out what nobody can dial. Addresses that only help on this
// machine or its links, and those with the hash of a certificate that expires, are
// for a node that has no others.
//
// Public addresses, those through relays and private ones take turns: who reads the
// ticket may be anywhere.
func Choose(list []ma.Multiaddr, n int) []ma.Multiaddr {
	var tiers [4][]ma.Multiaddr
	for _, a := range list {
		if i := tier(a); i < len(tiers) {
			tiers[i] = addrs.Add(tiers[i], a)
		}
	}
	for _, t := range tiers {
		if len(t) > 0 {
			return mixed(t)[:min(n, len(t))]
		}
	}
	return nil
}

// tier is 0 for an address of use, more for those of less use, and 4 for one of no
// use to anybody.
func tier(a ma.Multiaddr) int {
	var perishable, zoned bool
	for _, c := range a {
		perishable = perishable || c.Protocol().Code == ma.P_CERTHASH
		zoned = zoned || c.Protocol().Code == ma.P_IP6ZONE // the zones of this machine
	}
	reach := addrs.ReachOf(a)
	switch {
	case addrs.Undialable(a) != nil, zoned, len(a.Bytes()) > MaxAddr, relayAt(a) == 0:
		return 4
	case reach == addrs.Loopback:
		return 3
	case reach == addrs.LinkLocal:
		return 2
	case perishable:
		return 1
	default:
		return 0
	}
}

// relayAt returns how many components the address of the relay has, without its
// ID, or -1 if an address goes through none.
func relayAt(a ma.Multiaddr) int {
	return slices.IndexFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT }) - 1
}

// mixed sorts addresses: each kind by itself, then the first of each kind, the
// second of each, and so on.
func mixed(list []ma.Multiaddr) []ma.Multiaddr {
	const kinds = 3
	type ranked struct {
		addr       ma.Multiaddr
		kind, turn int
	}
	sorted := slices.SortedStableFunc(slices.Values(list), func(a, b ma.Multiaddr) int { return cmp.Compare(rank(a), rank(b)) })
	var out []ranked
	var turns [kinds]int
	relayed := make(map[string]int) // addresses through a relay, by its ID
	var circuits []ranked
	for _, a := range sorted {
		if addrs.IsCircuit(a) {
			id := a[relayAt(a)].Value()
			circuits = append(circuits, ranked{a, 1, relayed[id]})
			relayed[id]++
			continue
		}
		kind := 0
		if addrs.ReachOf(a) != addrs.Global {
			kind = 2
		}
		out = append(out, ranked{a, kind, turns[kind]})
		turns[kind]++
	}
	// A second address through one relay comes after the first through each.
	slices.SortStableFunc(circuits, func(a, b ranked) int { return cmp.Compare(a.turn, b.turn) })
	for i := range circuits {
		circuits[i].turn = i
	}
	out = append(out, circuits...)
	slices.SortStableFunc(out, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.turn, b.turn), cmp.Compare(a.kind, b.kind))
	})
	var addresses []ma.Multiaddr
	for _, r := range out {
		addresses = append(addresses, r.addr)
	}
	return addresses
}

// rank sorts addresses of one kind: names, which stay when addresses change, then
// QUIC and TCP of each IP version, then the rest. A relay's public addresses come
// before its private ones.
func rank(a ma.Multiaddr) int {
	r := 0
	if i := relayAt(a); i > 0 {
		if addrs.ReachOf(a) != addrs.Global {
			r += 100
		}
		a = a[:i]
	}
	switch addrs.KindOf(a) {
	case addrs.QUIC:
	case addrs.TCP:
		r++
	case addrs.WebSocket:
		r += 10
	default:
		r += 20
	}
	switch {
	case addrs.IsName(a), addrs.IsDNSAddr(a):
	case addrs.IsIP6(a):
		r += 4
	default:
		r += 2
	}
	return r
}
