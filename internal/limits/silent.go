package limits

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// silent holds the incoming connections over TCP whose peer is not known yet.
// Libp2p gives each of them 15 seconds, and refuses everybody once there are as
// many as may be in their handshakes: a few hosts that connect and say nothing
// would keep all others out. So a connection that is refused takes the place of
// a silent one, the oldest from where most of them come. It is safe for
// concurrent use.
type silent struct {
	mu       sync.Mutex
	accepted map[string]net.Conn // by remote address, until their scope is opened; guarded by mu
	conns    map[*conn]uint64    // in their handshakes, with their turn of arrival; guarded by mu
	turn     uint64              // guarded by mu
}

func newSilent() *silent {
	return &silent{accepted: make(map[string]net.Conn), conns: make(map[*conn]uint64)}
}

// accept notes a connection for which libp2p opens a scope next.
func (s *silent) accept(c net.Conn, addr ma.Multiaddr) {
	s.mu.Lock()
	s.accepted[string(addr.Bytes())] = c
	s.mu.Unlock()
}

// take returns the connection of accept, nil for one over UDP.
func (s *silent) take(addr ma.Multiaddr) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := string(addr.Bytes())
	c := s.accepted[key]
	delete(s.accepted, key)
	return c
}

func (s *silent) enter(c *conn) {
	s.mu.Lock()
	s.turn++
	s.conns[c] = s.turn
	s.mu.Unlock()
}

func (s *silent) leave(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// makeRoom closes a silent connection in favor of one with an address that a
// limit refused, and reports whether there was one whose place is of use.
func (s *silent) makeRoom(addr ma.Multiaddr, refusal error) bool {
	text := refusal.Error()
	perIP := strings.Contains(text, "per ip")
	if !perIP && !errors.Is(refusal, network.ErrResourceLimitExceeded) {
		return false // by its rate
	}
	var from origin
	if perIP {
		from = originOf(addr)
	}
	victim := s.remove(func(o origin) bool { return !perIP || o == from || o.subnet == from.subnet && from.ip.Addr().Is6() })
	if victim == nil {
		return false
	}
	_ = victim.raw.Close() // its handshake fails
	victim.Done()
	return true
}

// remove takes out the oldest connection of those that may go: from the subnet
// that has most of them, and there from the address that has most.
func (s *silent) remove(may func(origin) bool) (victim *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	subnets, ips := make(map[netip.Prefix]int), make(map[netip.Prefix]int)
	for c := range s.conns {
		subnets[c.from.subnet]++
		ips[c.from.ip]++
	}
	for c, turn := range s.conns {
		if !may(c.from) {
			continue
		}
		if victim == nil || cmp.Or(
			cmp.Compare(subnets[c.from.subnet], subnets[victim.from.subnet]),
			cmp.Compare(ips[c.from.ip], ips[victim.from.ip]),
			cmp.Compare(s.conns[victim], turn),
		) > 0 {
			victim = c
		}
	}
	delete(s.conns, victim)
	return victim
}

// origin is where a connection comes from, by the sizes in which addresses are
// given out: an IPv4 address in its /24, an IPv6 /56 in its /48.
type origin struct{ ip, subnet netip.Prefix }

func originOf(addr ma.Multiaddr) (o origin) {
	ip, err := manet.ToIP(addr)
	if err != nil {
		return o
	}
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.Is4() {
		o.ip, _ = a.Prefix(32)
		o.subnet, _ = a.Prefix(24)
		return o
	}
	o.ip, _ = a.Prefix(56)
	o.subnet, _ = a.Prefix(48)
	return o
}
