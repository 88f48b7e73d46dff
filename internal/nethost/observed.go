package nethost

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/fx"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// fewObservers is how many peers must have seen the node at an address before others
// are asked whether they can dial it. Upstream takes up an address when four have seen
// it (observedaddrs.ActivationThresh, a variable of the process), which in a network of
// three nodes never happens. One is enough to ask: nothing is announced before others
// have dialed it.
const fewObservers = 1

// observers are the addresses at which peers see this node, besides those that
// upstream itself announces.
type observers struct {
	mu    sync.Mutex
	inner basichost.ObservedAddrsManager // nil without identify; guarded by mu
}

// option lets observers look into the host's manager of observed addresses.
func (o *observers) option() libp2p.Option {
	return libp2p.WithFxOption(fx.Decorate(func(inner basichost.ObservedAddrsManager) basichost.ObservedAddrsManager {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.inner = inner
		return inner
	}))
}

func (o *observers) addrs(least int) []ma.Multiaddr {
	o.mu.Lock()
	inner := o.inner
	o.mu.Unlock()
	if inner == nil {
		return nil
	}
	return inner.Addrs(least)
}

// ObservedAddrs returns the addresses at which peers see this node, those of the host
// itself left out.
func (h *Host) ObservedAddrs() []ma.Multiaddr {
	own := h.ownIPs()
	return ma.Unique(slices.DeleteFunc(h.observed.addrs(fewObservers), func(a ma.Multiaddr) bool { return own[ipOf(a)] }))
}

// MappedAddrs returns the addresses that a router forwards to the node.
func (h *Host) MappedAddrs() (list []ma.Multiaddr) {
	m := h.nat.Load()
	if m == nil || *m == nil {
		return nil
	}
	for _, a := range h.ListenAddrs() {
		if mapped := (*m).GetMapping(a); mapped != nil {
			list = append(list, mapped)
		}
	}
	return list
}

// Foreign reports whether an address is not one of this machine's, so that a NAT
// stands in between.
func (h *Host) Foreign(a ma.Multiaddr) bool {
	ip := ipOf(a)
	return ip.IsValid() && !h.ownIPs()[ip]
}

// OwnIPs returns the addresses of the interfaces that the node listens on, sorted.
func (h *Host) OwnIPs() []netip.Addr {
	return slices.SortedFunc(maps.Keys(h.ownIPs()), netip.Addr.Compare)
}

// ownIPs are the addresses of the interfaces that the node listens on.
func (h *Host) ownIPs() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool)
	list, err := h.InterfaceAddrs()
	if err != nil {
		return own
	}
	for _, a := range list {
		own[ipOf(a)] = true
	}
	return own
}

// ipOf returns the IP of an address; the zero Addr without one.
func ipOf(a ma.Multiaddr) netip.Addr {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}
	}
	n, _ := netip.AddrFromSlice(ip)
	return n.Unmap()
}

// contacts knows which IP addresses this node has sent packets to lately, and when
// somebody else came in: a NAT that lets in whoever was sent to cannot be told apart
// from an open one by those.
type contacts struct {
	mu     sync.Mutex
	dialed map[netip.Addr]time.Time // guarded by mu
	came   time.Time                // guarded by mu
	blind  time.Time                // until then some contacts are forgotten; guarded by mu
}

const (
	maxContacts = 4096
	// contactsLast is how long a NAT may remember where packets were sent: longer than
	// any that is known.
	contactsLast = 30 * time.Minute
)

func (c *contacts) sent(a ma.Multiaddr) {
	ip := ipOf(a)
	if !ip.IsValid() || addrs.IsCircuit(a) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dialed == nil || len(c.dialed) >= maxContacts {
		c.forgetLocked()
	}
	c.dialed[ip] = time.Now()
}

// forgetLocked makes room. If that takes recent contacts, nobody counts as a stranger
// until they would be forgotten anyway.
func (c *contacts) forgetLocked() {
	kept := make(map[netip.Addr]time.Time)
	for ip, at := range c.dialed {
		switch {
		case time.Since(at) >= contactsLast:
		case len(kept) < maxContacts/2:
			kept[ip] = at
		default:
			c.blind = time.Now().Add(contactsLast)
		}
	}
	c.dialed = kept
}

func (c *contacts) connected(conn network.Conn) {
	a := conn.RemoteMultiaddr()
	ip := ipOf(a)
	if conn.Stat().Direction != network.DirInbound || addrs.IsCircuit(a) || addrs.ReachOf(a) != addrs.Global || !ip.IsValid() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.dialed[ip]; (!ok || time.Since(at) > contactsLast) && time.Now().After(c.blind) {
		c.came = time.Now()
	}
}

// StrangerCame returns when somebody last connected from an address that this node
// had not sent anything to; zero for never.
func (h *Host) StrangerCame() time.Time {
	h.contacts.mu.Lock()
	defer h.contacts.mu.Unlock()
	return h.contacts.came
}
