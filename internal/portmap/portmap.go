// Package portmap has a router forward ports to the node, by PCP, NAT-PMP or UPnP.
//
// UPnP is upstream's part (p2p/net/nat of go-libp2p v0.51): it finds routers, and makes
// and renews mappings, every 20 seconds, for a minute each. PCP and NAT-PMP are in
// pcp.go and pmp.go. What upstream lacks besides is here:
//
//   - Another search, when there was no router, when it has stopped to map, or when
//     the machine has moved.
//   - A router of its own for each protocol. Upstream's knows a mapping by its inner
//     port, and so removes only one of TCP's and UDP's on the same port.
//   - Nobody waits for a router that does not answer: upstream's manager makes the
//     host wait with the computing of its addresses.
//   - Only ports on which somebody listens over IPv4 are mapped.
package portmap

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	inat "github.com/libp2p/go-libp2p/p2p/net/nat"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// look is how often the listeners, the default route and the mappings are looked
	// at.
	look = 2 * time.Second
	// again is how long after a search that found nothing the next one begins, and how
	// long a router that maps nothing is kept.
	again = time.Minute
	// answer bounds how long a router may take for a mapping.
	answer = 10 * time.Second
	// closing bounds how long Close waits for a router.
	closing = 3 * time.Second
)

// Router maps ports. It is what upstream's NAT does.
type Router interface {
	// AddMapping maps a port, and keeps it mapped until Close.
	AddMapping(ctx context.Context, protocol string, port int) error
	RemoveMapping(ctx context.Context, protocol string, port int) error
	GetMapping(protocol string, port int) (outer netip.AddrPort, ok bool)
	// Close removes all mappings.
	Close() error
}

// Config configures a [Manager]. Its functions must not block.
type Config struct {
	// Listen returns the addresses that the host listens on.
	Listen func() []ma.Multiaddr
	// Changed is called when a mapping appears or disappears.
	Changed func(m Mapping, mapped bool)
	Log     *slog.Logger

	// Discover finds the router, in ways of which the first to succeed wins; nil for
	// PCP or NAT-PMP, and UPnP.
	Discover []func(context.Context, Route) (Router, error)
	// Route returns the default route; nil for that of the machine.
	Route func() Route
}

// Route is the default route for IPv4: the router, and the machine's address there.
// It is zero without one.
type Route struct{ Router, Own netip.Addr }

// Mapping is a port that a router forwards, as it says.
type Mapping struct {
	Protocol string // "udp" or "tcp"
	Port     uint16
	External netip.AddrPort
}

// State is what is known about the router.
type State struct {
	// Found is true if there is a router that maps ports.
	Found    bool
	Mappings []Mapping // sorted
	// Missing is why ports are not mapped; "" if all are, or there are none.
	Missing string
}

// port is what is to be mapped.
type port struct {
	protocol string
	number   uint16
}

// protocols are those that ports are mapped for.
var protocols = []string{"tcp", "udp"}

// Manager keeps ports mapped until Close. It is safe for concurrent use. It is a
// NATManager of libp2p's host.
type Manager struct {
	cfg   Config
	group *lifecycle.Group
	wake  signal.Signal

	mu    sync.Mutex
	state State // its slices are replaced, never changed; guarded by mu
}

// Start begins to look for a router.
func Start(cfg Config) *Manager {
	if cfg.Discover == nil {
		cfg.Discover = []func(context.Context, Route) (Router, error){
			func(ctx context.Context, route Route) (Router, error) {
				if !route.Router.Is4() {
					return nil, errors.New("there is no default route")
				}
				to := netip.AddrPortFrom(route.Router, serverPort)
				r, err := findPCP(ctx, to, route.Own)
				if err != nil && ctx.Err() == nil {
					r, err = findPMP(ctx, to)
				}
				if err != nil {
					return nil, err // not a nil of its type
				}
				return r, nil
			},
			func(ctx context.Context, _ Route) (Router, error) {
				r, err := inat.DiscoverNAT(ctx)
				if err != nil {
					return nil, err // not a nil of its type
				}
				return r, nil
			},
		}
	}
	if cfg.Route == nil {
		cfg.Route = defaultRoute
	}
	m := &Manager{cfg: cfg, group: lifecycle.NewGroup(context.Background())}
	m.state.Missing = searching
	m.group.Go(m.run)
	return m
}

// The reasons of State.Missing.
const (
	searching = "the node looks for a router that maps ports"
	noRouter  = "no router on the LAN answers to PCP, NAT-PMP or UPnP"
	refused   = "the router has mapped no port: it refuses, does not answer, or does not know its public address"
)

// Close removes the mappings. It waits for the router, but not for one that does not
// answer: that one keeps the mappings for a minute.
func (m *Manager) Close() error {
	var stack lifecycle.Stack // for its time limit
	stack.Push("router", closing, m.group.Close)
	return stack.Close()
}

// State returns what is known about the router.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Look makes the manager look at the listeners at once.
func (m *Manager) Look() { m.wake.Notify() }

// HasDiscoveredNAT reports whether there is a router that maps ports.
func (m *Manager) HasDiscoveredNAT() bool { return m.State().Found }

// GetMapping returns the address at which the router forwards to an address that the
// host listens on; nil if it does not.
func (m *Manager) GetMapping(a ma.Multiaddr) ma.Multiaddr {
	p, ok := portOf(a)
	if !ok {
		return nil
	}
	for _, one := range m.State().Mappings {
		if one.Protocol != p.protocol || one.Port != p.number {
			continue
		}
		outer, err := manet.FromIP(one.External.Addr().AsSlice())
		if err != nil {
			return nil
		}
		number, err := ma.NewComponent(p.protocol, strconv.Itoa(int(one.External.Port())))
		if err != nil {
			return nil
		}
		return slices.Concat(outer, ma.Multiaddr{*number}, a[2:])
	}
	return nil
}

// portOf returns the port of a listener that a router can forward to.
func portOf(a ma.Multiaddr) (port, bool) {
	if len(a) < 2 || a[0].Protocol().Code != ma.P_IP4 {
		return port{}, false
	}
	ip := net.IP(a[0].RawValue())
	if !ip.IsGlobalUnicast() && !ip.IsUnspecified() {
		return port{}, false
	}
	name := a[1].Protocol().Name
	n, err := strconv.ParseUint(a[1].Value(), 10, 16)
	if err != nil || n == 0 || !slices.Contains(protocols, name) {
		return port{}, false
	}
	return port{name, uint16(n)}, true
}

// ports returns what is to be mapped, sorted.
func (m *Manager) ports() (list []port) {
	for _, a := range m.cfg.Listen() {
		if p, ok := portOf(a); ok {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.protocol, b.protocol))
	})
	return slices.Compact(list)
}

func (m *Manager) run(ctx context.Context) {
	for ctx.Err() == nil {
		route := m.cfg.Route()
		routers, err := m.discover(ctx, route)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			m.cfg.Log.Debug("no router maps ports", "err", err)
			m.set(State{Missing: noRouter})
			m.wait(ctx, route)
		default:
			m.serve(ctx, routers, route)
		}
	}
}

// wait waits until the next search is due.
func (m *Manager) wait(ctx context.Context, route Route) {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for began := time.Now(); time.Since(began) < again && route == m.cfg.Route(); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// discover returns the router that answers first, for each protocol.
func (m *Manager) discover(ctx context.Context, route Route) (map[string]Router, error) {
	ctx, cancel := context.WithTimeout(ctx, inat.DiscoveryTimeout)
	defer cancel()
	var mu sync.Mutex
	found := make(map[string]Router) // guarded by mu
	over := false                    // guarded by mu
	results := make(chan error, len(protocols)*len(m.cfg.Discover))
	started := 0
	for _, protocol := range protocols {
		for _, find := range m.cfg.Discover {
			if m.group.Go(func(context.Context) {
				r, err := find(ctx, route)
				if err == nil {
					mu.Lock()
					late := over || found[protocol] != nil
					if !late {
						found[protocol] = r
					}
					mu.Unlock()
					if late {
						_ = r.Close() // it has mapped nothing
					}
				}
				results <- err
			}) {
				started++
			}
		}
	}
	var errs []error
	for enough := false; !enough && started > 0 && ctx.Err() == nil; {
		select {
		case err := <-results:
			started--
			if err != nil {
				errs = append(errs, err)
			}
			mu.Lock()
			enough = len(found) == len(protocols)
			mu.Unlock()
		case <-ctx.Done(): // a router that does not answer
		}
	}
	mu.Lock()
	over = true
	mu.Unlock()
	if len(found) == len(protocols) {
		return found, nil
	}
	for _, r := range found {
		_ = r.Close() // it has mapped nothing
	}
	return nil, errors.Join(append(errs, ctx.Err())...)
}

// serve keeps the ports mapped until ctx ends, the machine moves, or the router has
// stopped to map.
func (m *Manager) serve(ctx context.Context, routers map[string]Router, route Route) {
	var mapped []port
	defer func() {
		m.set(State{Missing: searching})
		ends := func(context.Context) {
			for _, r := range routers {
				_ = r.Close() // it returns nil
			}
		}
		if !m.group.Go(ends) { // Close waits for it
			ends(ctx)
		}
	}()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	works := time.Now() // when something was mapped last
	for {
		wake := m.wake.Wait()
		wanted := m.ports()
		for _, p := range mapped {
			if !slices.Contains(wanted, p) {
				// In any case: a router that forgets what to remove does not do so at Close.
				m.bounded(context.WithoutCancel(ctx), routers[p.protocol].RemoveMapping, p)
			}
		}
		for _, p := range wanted {
			if !slices.Contains(mapped, p) {
				m.bounded(ctx, routers[p.protocol].AddMapping, p)
			}
		}
		mapped = wanted
		s := State{Found: true}
		for _, p := range mapped {
			if outer, ok := routers[p.protocol].GetMapping(p.protocol, int(p.number)); ok {
				outer = netip.AddrPortFrom(outer.Addr().Unmap(), outer.Port()) // upstream has it as an IPv6 address
				s.Mappings = append(s.Mappings, Mapping{p.protocol, p.number, outer})
			}
		}
		if len(s.Mappings) > 0 || len(mapped) == 0 {
			works = time.Now()
		} else {
			s.Missing = refused
		}
		m.set(s)
		if time.Since(works) >= again || route != m.cfg.Route() {
			return
		}
		select {
		case <-ticker.C:
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) bounded(ctx context.Context, do func(context.Context, string, int) error, p port) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	if err := do(ctx, p.protocol, int(p.number)); err != nil {
		m.cfg.Log.Debug("port mapping", "protocol", p.protocol, "port", p.number, "err", err)
	}
}

// set changes the state, and tells what is new.
func (m *Manager) set(s State) {
	m.mu.Lock()
	before := m.state
	m.state = s
	m.mu.Unlock()
	for _, one := range before.Mappings {
		if !slices.Contains(s.Mappings, one) {
			m.cfg.Log.Info("port mapping lost", "protocol", one.Protocol, "port", one.Port, "external", one.External)
			m.cfg.Changed(one, false)
		}
	}
	for _, one := range s.Mappings {
		if !slices.Contains(before.Mappings, one) {
			m.cfg.Log.Info("port mapped", "protocol", one.Protocol, "port", one.Port, "external", one.External)
			m.cfg.Changed(one, true)
		}
	}
}
