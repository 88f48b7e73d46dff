// Package peerfile chooses the peers that a node remembers over a restart, and
// encodes and parses their list. It opens no file and reads no clock.
package peerfile

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// Max is how many peers are remembered.
	Max = 100
	// MaxPerNetwork is how many of them are in one network, an IPv4 /16 or an IPv6
	// /32, so that one owner of many addresses cannot fill the list.
	MaxPerNetwork = 20
	// MaxAddrs is how many addresses of a peer are remembered.
	MaxAddrs = 8
	// MaxAddrSize is how long each may be, in bytes.
	MaxAddrSize = 256
	// MaxAge is how long a peer is remembered after it was last connected.
	MaxAge = 7 * 24 * time.Hour
)

// Peer is a remembered peer.
type Peer struct {
	ID    peer.ID        `json:"id"`
	Addrs []ma.Multiaddr `json:"addrs"` // direct ones, the best first
	// IP is the remote address of its connection: unlike the addresses that it
	// announces, the peer cannot choose it freely.
	IP    netip.Addr `json:"ip,omitzero"`
	Seen  time.Time  `json:"seen"`           // when it was last connected
	Known time.Time  `json:"known,omitzero"` // since when it is remembered; zero means since Seen
}

func (p Peer) known() time.Time {
	if p.Known.IsZero() || p.Known.After(p.Seen) || p.Known.Before(unset) {
		return p.Seen
	}
	return p.Known
}

// earlier returns the earlier of two times, but for one before the clock was set.
func earlier(a, b time.Time) time.Time {
	if b.Before(a) && !b.Before(unset) || a.Before(unset) {
		return b
	}
	return a
}

// unset is a time in the past: a clock before it is not set yet, as on a board
// without a battery before it has asked the network.
var unset = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// Choose merges lists of peers into the one to remember: the latest entry of
// each peer, none older than MaxAge. Half of the places go to the peers seen
// last, half to those known longest, the networks taking turns: strangers who
// connect now cannot displace all others, nor old peers all newcomers.
func Choose(now time.Time, lists ...[]Peer) []Peer {
	latest := make(map[peer.ID]Peer)
	for _, p := range slices.Concat(lists...) {
		if p.Seen.After(now) && !now.Before(unset) {
			p.Seen = now // the clock was set back: let the entry age nevertheless
		}
		p.Addrs = slices.DeleteFunc(slices.Clone(p.Addrs), func(a ma.Multiaddr) bool { return !Usable(a) || !p.credible(a) })
		if len(p.Addrs) == 0 || now.Sub(p.Seen) > MaxAge {
			continue
		}
		p.Addrs = p.Addrs[:min(len(p.Addrs), MaxAddrs)]
		p.Known = p.known()
		have, ok := latest[p.ID]
		if ok {
			known := earlier(have.Known, p.Known)
			if !p.Seen.After(have.Seen) {
				p = have
			}
			p.Known = known
		}
		latest[p.ID] = p
	}
	byID := func(a, b Peer) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) }
	recent := slices.SortedFunc(maps.Values(latest), func(a, b Peer) int {
		return cmp.Or(b.Seen.Compare(a.Seen), byID(a, b))
	})
	old := slices.SortedFunc(maps.Values(latest), func(a, b Peer) int {
		return cmp.Or(a.Known.Compare(b.Known), byID(a, b))
	})
	var all []Peer
	taken := make(map[peer.ID]bool)
	for i := range recent {
		for _, p := range []Peer{recent[i], old[i]} {
			if !taken[p.ID] {
				taken[p.ID] = true
				all = append(all, p)
			}
		}
	}
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

// Usable reports whether an address is worth remembering: it is direct, not too
// long, valid for more than days, and its text parses to the same address.
// Peers can announce DNS names of any bytes.
func Usable(a ma.Multiaddr) bool {
	if len(a) == 0 || len(a.Bytes()) > MaxAddrSize {
		return false
	}
	for _, c := range a {
		switch c.Protocol().Code {
		case ma.P_CIRCUIT, ma.P_CERTHASH: // the hashes of certificates change with the days, and at each start
			return false
		}
	}
	text := a.String()
	if !utf8.ValidString(text) {
		return false
	}
	again, err := ma.NewMultiaddr(text)
	return err == nil && again.Equal(a)
}

// credible reports whether an address can be the peer's: one of this machine or
// link is only if its connection came from there.
func (p Peer) credible(a ma.Multiaddr) bool {
	reach := addrs.ReachOf(a)
	return reach == addrs.Global || reach == addrs.Private || reach == p.reach()
}

// reach returns the reach of the peer's connection.
func (p Peer) reach() addrs.Reach {
	if !p.IP.IsValid() {
		return addrs.Global
	}
	return addrs.ReachOfIP(p.IP)
}

// Near reports whether the peer was connected from this machine or a network of
// its own, so that such addresses of it may be dialed.
func (p Peer) Near() bool { return p.reach() != addrs.Global }

// network returns the network that a peer is in. All peers known only by a DNS
// name share one, because names are free.
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

// Parse reads what Encode returns. It refuses sizes that Choose would not
// produce. Entries that cannot be read are an error, returned along with all
// others.
func Parse(b []byte) ([]Peer, error) {
	var raw []struct {
		ID    string     `json:"id"`
		Addrs []string   `json:"addrs"`
		IP    netip.Addr `json:"ip"`
		Seen  time.Time  `json:"seen"`
		Known time.Time  `json:"known"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("not a list of peers: %w", err)
	}
	if len(raw) > Max {
		return nil, fmt.Errorf("it has %d peers, more than %d", len(raw), Max)
	}
	var list []Peer
	var bad []error
	for i, r := range raw {
		id, err := peer.Decode(r.ID)
		if err == nil && (len(r.Addrs) == 0 || len(r.Addrs) > MaxAddrs) {
			err = fmt.Errorf("%d addresses, not 1 to %d", len(r.Addrs), MaxAddrs)
		}
		p := Peer{ID: id, IP: r.IP, Seen: r.Seen, Known: r.Known}
		for _, s := range r.Addrs {
			a, aerr := ma.NewMultiaddr(s)
			if aerr == nil && !Usable(a) {
				aerr = fmt.Errorf("%q is not an address to remember: it is relayed, short-lived, or longer than %d bytes", s, MaxAddrSize)
			}
			if aerr != nil {
				err = errors.Join(err, aerr)
				continue
			}
			p.Addrs = append(p.Addrs, a)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("peer %d of %d: %w", i+1, len(raw), err))
		}
		if id != "" && len(p.Addrs) > 0 && len(r.Addrs) <= MaxAddrs {
			list = append(list, p)
		}
	}
	return list, errors.Join(bad...)
}
