// Package peerfile chooses the peers that a node remembers over a restart, and
// writes and reads them as text. It opens no file and reads no clock.
package peerfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// Max is how many peers are remembered.
	Max = 100
	// MaxPerNetwork is how many of them in one network, which is an IPv4 /16
	// or an IPv6 /32: one owner of many addresses does not fill the list.
	MaxPerNetwork = 20
	// MaxAddrs is how many addresses of a peer are remembered, and MaxAddrSize
	// how long each may be, in bytes.
	MaxAddrs    = 8
	MaxAddrSize = 256
	// MaxAge is how long a peer is remembered after it was last connected.
	MaxAge = 7 * 24 * time.Hour
)

// Peer is a remembered peer.
type Peer struct {
	ID    peer.ID        `json:"id"`
	Addrs []ma.Multiaddr `json:"addrs"` // direct ones, the best first
	// IP is where it was connected from or to: unlike the addresses that it
	// announces, it cannot choose that freely.
	IP   netip.Addr `json:"ip,omitzero"`
	Seen time.Time  `json:"seen"` // when it was last connected
}

// Choose merges lists of peers into the one to remember: of each peer the
// latest entry, none older than MaxAge, the latest of each network in turn.
func Choose(now time.Time, lists ...[]Peer) []Peer {
	latest := make(map[peer.ID]Peer)
	for _, p := range slices.Concat(lists...) {
		if p.Seen.After(now) {
			p.Seen = now // the clock was set back: the entry shall age all the same
		}
		if len(p.Addrs) == 0 || now.Sub(p.Seen) > MaxAge {
			continue
		}
		if have, ok := latest[p.ID]; !ok || p.Seen.After(have.Seen) {
			p.Addrs = slices.Clone(p.Addrs[:min(len(p.Addrs), MaxAddrs)])
			latest[p.ID] = p
		}
	}
	all := make([]Peer, 0, len(latest))
	for _, p := range latest {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Peer) int {
		if c := b.Seen.Compare(a.Seen); c != 0 {
			return c
		}
		return slices.Compare([]byte(a.ID), []byte(b.ID))
	})
	// The rank of a peer is its place within its network.
	ranks := make([][]Peer, MaxPerNetwork)
	count := make(map[string]int)
	for _, p := range all {
		netw := p.network()
		if r := count[netw]; r < MaxPerNetwork {
			ranks[r] = append(ranks[r], p)
		}
		count[netw]++
	}
	chosen := slices.Concat(ranks...)
	return chosen[:min(len(chosen), Max)]
}

// network names the network that a peer is in. All peers that are known by
// name alone are in one: names cost nothing.
func (p Peer) network() string {
	ip := p.IP
	if !ip.IsValid() {
		if nip, err := manet.ToIP(p.Addrs[0]); err == nil {
			ip, _ = netip.AddrFromSlice(nip)
		}
	}
	ip = ip.Unmap()
	bits := 16
	if ip.Is6() {
		bits = 32
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return "by name"
	}
	return prefix.String()
}

// Encode returns the text of a list.
func Encode(list []Peer) ([]byte, error) { return json.MarshalIndent(list, "", "\t") }

// Parse reads what Encode makes. It refuses what Choose would not have chosen
// by its size alone.
func Parse(b []byte) ([]Peer, error) {
	var raw []struct {
		ID    string     `json:"id"`
		Addrs []string   `json:"addrs"`
		IP    netip.Addr `json:"ip"`
		Seen  time.Time  `json:"seen"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("it is not a list of peers: %w", err)
	}
	if len(raw) > Max {
		return nil, fmt.Errorf("it has %d peers, more than %d", len(raw), Max)
	}
	var list []Peer
	for i, r := range raw {
		id, err := peer.Decode(r.ID)
		if err == nil && (len(r.Addrs) == 0 || len(r.Addrs) > MaxAddrs) {
			err = fmt.Errorf("%d addresses, not 1 to %d", len(r.Addrs), MaxAddrs)
		}
		p := Peer{ID: id, IP: r.IP, Seen: r.Seen}
		for _, s := range r.Addrs {
			a, aerr := ma.NewMultiaddr(s)
			if aerr == nil && len(a) == 0 {
				aerr = errors.New("an empty address")
			}
			if aerr == nil && len(a.Bytes()) > MaxAddrSize {
				aerr = fmt.Errorf("an address of %d bytes, more than %d", len(a.Bytes()), MaxAddrSize)
			}
			err = errors.Join(err, aerr)
			p.Addrs = append(p.Addrs, a)
		}
		if err != nil {
			return nil, fmt.Errorf("peer %d of %d: %w", i+1, len(raw), err)
		}
		list = append(list, p)
	}
	return list, nil
}
