package nethost

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// lookEvery is how often the interfaces are looked at where the system does not
	// tell of changes, and settle is how long a change is left to be complete where
	// it does: the route comes after the address.
	lookEvery = 2 * time.Second
	settle    = 200 * time.Millisecond
	// cached is how long libp2p (v0.51) uses the interfaces' addresses that it has
	// read.
	cached = time.Minute
	// remembered is how long an address is known that the machine has left: longer than
	// connections outlast the loss of their network.
	remembered = 10 * time.Minute
)

// interfaces is what is known of the machine's interfaces.
type interfaces struct {
	first map[netAddr]bool // when the host was made

	mu    sync.Mutex
	moves int                      // changes that left the machine with an address; guarded by mu
	moved time.Time                // the last change; zero before; guarded by mu
	left  map[netip.Addr]time.Time // addresses that are no longer the machine's, and since when; guarded by mu
	relay []ma.Multiaddr           // the last that the bus was told; guarded by mu
}

// netAddr is an address of an interface.
type netAddr struct {
	index int
	ip    netip.Addr
}

// netAddrs returns the addresses of the interfaces that are up, but for those of
// loopback interfaces and the link-local ones of IPv6, which come and go with every
// container.
func netAddrs() (map[netAddr]bool, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := make(map[netAddr]bool)
	for _, i := range list {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		own, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range own {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, _ := netip.AddrFromSlice(n.IP)
			if ip = ip.Unmap(); ip.IsValid() && !ip.IsLoopback() && !(ip.Is6() && ip.IsLinkLocalUnicast()) {
				all[netAddr{i.Index, ip}] = true
			}
		}
	}
	return all, nil
}

// networks returns those of the machine's interfaces, and none if the host's transports
// have nothing to do with these.
func (h *Host) networks() (list []*net.IPNet) {
	if !h.sockets {
		return nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			list = append(list, n)
		}
	}
	return list
}

// WatchInterfaces calls moved when the addresses of the machine's interfaces have
// changed, once the host's own parts know, with when that began, until ctx ends. While
// the machine has no address at all, it waits: the network may come back as it was. A
// host whose transports or listeners have nothing to do with the interfaces is not
// watched.
//
// Libp2p (v0.51) reads the addresses once a minute, so that a machine that has moved
// would announce old ones for that long.
func (h *Host) WatchInterfaces(ctx context.Context, moved func(began time.Time)) {
	list := h.ListenAddrs()
	if !h.sockets || len(list) > 0 && !slices.ContainsFunc(list, manet.IsIPUnspecified) {
		return
	}
	told := make(chan struct{}, 1)
	every := lookEvery
	stop, err := routeChanges(told)
	if err == nil {
		every = time.Minute // in case that one is lost
		defer stop()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	before := h.interfaces.first
	var began time.Time
	for {
		now, err := netAddrs()
		if err == nil && !maps.Equal(before, now) {
			h.leave(before, now)
			before = now
			if began.IsZero() {
				began = time.Now()
			}
			if len(now) > 0 {
				moved(began)
				began = time.Time{}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			continue
		case <-told:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select {
		case <-told: // seen with the others
		default:
		}
	}
}

// leave brings the host up to date after a change of the interfaces' addresses.
func (h *Host) leave(before, now map[netAddr]bool) {
	own := make(map[netip.Addr]bool)
	for a := range now {
		own[a.ip] = true
	}
	i := &h.interfaces
	i.mu.Lock()
	i.moved = time.Now()
	if len(now) > 0 {
		i.moves++
	}
	if i.left == nil {
		i.left = make(map[netip.Addr]time.Time)
	}
	maps.DeleteFunc(i.left, func(ip netip.Addr, at time.Time) bool { return own[ip] || time.Since(at) > remembered })
	for a := range before {
		if !own[a.ip] {
			i.left[a.ip] = i.moved
		}
	}
	relay := i.relay
	i.mu.Unlock()
	h.swarm.ListenClose() // of nothing: it forgets the addresses that it has read
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return // it computes the addresses within five seconds
	}
	_ = emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: relay})
	_ = emitter.Close()
}

// CloseLeft closes connections that began at an address which the machine no longer
// has: they would only time out.
func (h *Host) CloseLeft() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range h.swarm.Conns() {
		if a := c.LocalMultiaddr(); !addrs.IsCircuit(a) && h.hasLeft(ipOf(a)) {
			wg.Go(func() { _ = c.Close() }) // it closes in any case
		}
	}
}

// hasLeft reports whether an address is one that the machine had lately.
func (h *Host) hasLeft(ip netip.Addr) bool {
	h.interfaces.mu.Lock()
	defer h.interfaces.mu.Unlock()
	_, left := h.interfaces.left[ip]
	return left
}

// Moves counts the changes of the interfaces' addresses, but for the loss of the last.
func (h *Host) Moves() int {
	h.interfaces.mu.Lock()
	defer h.interfaces.mu.Unlock()
	return h.interfaces.moves
}

// Relayed notes which relayed addresses the event bus tells of.
func (h *Host) Relayed(list []ma.Multiaddr) {
	h.interfaces.mu.Lock()
	defer h.interfaces.mu.Unlock()
	h.interfaces.relay = list
}

// current replaces addresses that the machine has no longer by those that it has: the
// host's own list is up to a minute old.
func (h *Host) current(list []ma.Multiaddr) []ma.Multiaddr {
	h.interfaces.mu.Lock()
	fresh := time.Since(h.interfaces.moved) > cached
	h.interfaces.mu.Unlock()
	if fresh {
		return list
	}
	list = slices.DeleteFunc(slices.Clone(list), func(a ma.Multiaddr) bool { return !addrs.IsCircuit(a) && h.hasLeft(ipOf(a)) })
	own, err := h.InterfaceAddrs()
	if err != nil {
		return list
	}
	for _, a := range own {
		if !addrs.IsCircuit(a) && !manet.IsIPUnspecified(a) {
			list = addrs.Add(list, a)
		}
	}
	return list
}
