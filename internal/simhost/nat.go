package simhost

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// NATKind is how a NAT maps and filters. The names are those of RFC 3489, the
// descriptions use the terms of RFC 4787. What the kinds do is the table of
// natlab.Kind.Behavior, to which the kernel's NATs are held, too.
type NATKind int

const (
	// Firewall does not translate, and lets in only replies: packets from an
	// address and port to which the machine has sent. Machines behind it reach
	// each other.
	Firewall NATKind = iota
	// FullCone maps endpoint-independently and does not filter.
	FullCone
	// RestrictedCone maps endpoint-independently and filters by address.
	RestrictedCone
	// PortRestricted maps endpoint-independently and filters by address and port.
	PortRestricted
	// Symmetric maps and filters by address and port: each destination sees another
	// port.
	Symmetric
)

// natLifetime is how long mappings and filter entries remain after the last
// outgoing packet: the value that RFC 4787 (REQ-5) recommends.
const natLifetime = 5 * time.Minute

// lanLatency is how long a packet takes between two machines behind one NAT, at least:
// SetPath adds to it.
const lanLatency = 200 * time.Microsecond

// NAT is a network address translator, or a firewall, with machines behind it.
// A translator does not hairpin, and maps to other ports than those inside:
// machines behind it reach each other only by their private addresses.
type NAT struct {
	net   *Network
	kind  NATKind
	site  *site // nil for Firewall, whose machines have their own addresses
	index int

	mu       sync.Mutex
	inside   int                 // machines; guarded by mu
	maps     map[natKey]*mapping // guarded by mu
	byPort   map[uint16]*mapping // guarded by mu
	lastPort uint16              // guarded by mu
}

// natKey is the key of a mapping. Cones leave out the destination.
type natKey struct{ inside, outside netip.AddrPort }

// mapping maps an outside port to an inside one.
type mapping struct {
	inside *endpoint
	outer  *endpoint
	filter filter
}

// NewNAT adds a NAT.
func (n *Network) NewNAT(kind NATKind) *NAT {
	n.mu.Lock()
	defer n.mu.Unlock()
	nat := &NAT{net: n, kind: kind, index: n.nSites, maps: make(map[natKey]*mapping), byPort: make(map[uint16]*mapping), lastPort: 20000}
	if kind != Firewall {
		nat.site = n.newSiteLocked()
		nat.site.nat = nat
	}
	return nat
}

// NewMachine adds a machine behind the NAT.
func (t *NAT) NewMachine() *Machine {
	if t.kind == Firewall {
		m := t.net.NewMachine()
		m.firewall, m.wall = &filter{}, t
		return m
	}
	t.mu.Lock()
	t.inside++
	i := t.inside
	t.mu.Unlock()
	m := &Machine{net: t.net, site: t.site, nat: t}
	m.ip = netip.AddrFrom4([4]byte{10, byte(t.index >> 8), byte(t.index), byte(1 + i)})
	m.init(0)
	return m
}

// outbound sends a packet of a machine behind the NAT.
func (t *NAT) outbound(from *endpoint, b []byte, to netip.AddrPort) bool {
	n := t.net
	n.mu.RLock()
	local, dst := n.lan[to], n.sites[to.Addr()]
	n.mu.RUnlock()
	if local != nil {
		if local.owner.nat != t {
			return false
		}
		if n.drops(t.site, t.site) { // if SetPath says so
			return false
		}
		data := slices.Clone(b)
		time.AfterFunc(lanLatency+n.sample(t.site, t.site), func() { local.arrive(data, from.addr) })
		return true
	}
	if dst == nil || dst == t.site || len(b)+headers > dst.link.Load().mtu() {
		return false
	}
	m := t.mapping(from, to)
	m.filter.sent(to)
	if n.drops(t.site, dst) {
		return false
	}
	m.outer.send(b, to)
	return true
}

// mapping returns the mapping for an outgoing packet, and makes it if needed.
func (t *NAT) mapping(from *endpoint, to netip.AddrPort) *mapping {
	key := natKey{inside: from.addr}
	if t.kind == Symmetric {
		key.outside = to
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.maps[key]; m != nil {
		if !m.filter.idle() {
			return m
		}
		delete(t.byPort, m.outer.addr.Port())
	}
	// Many NATs keep the port number if it is free, which hides the mistakes of those
	// who rely on it.
	t.lastPort++
	for t.byPort[t.lastPort] != nil || t.lastPort == from.addr.Port() {
		t.lastPort++
	}
	port := t.lastPort
	m := &mapping{inside: from}
	m.filter.kind = t.kind
	m.outer = &endpoint{net: t.net, addr: netip.AddrPortFrom(t.site.ip, port)}
	m.outer.inlet = func(data []byte, from netip.AddrPort) { t.inbound(m, data, from) }
	m.outer.open(*t.site.link.Load())
	t.maps[key], t.byPort[port] = m, m
	return m
}

// inbound delivers a packet if the filter admits it.
func (t *NAT) inbound(m *mapping, data []byte, from netip.AddrPort) {
	if !m.filter.admits(from) {
		t.net.lost.Add(1)
		return
	}
	m.inside.arrive(data, from)
}

func (t *NAT) machineAt(port uint16) *Machine {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.byPort[port]; m != nil {
		return m.inside.owner
	}
	return nil
}

func (t *NAT) endpoints() []*endpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*endpoint
	for _, m := range t.byPort {
		list = append(list, m.outer)
	}
	return list
}

// filter records where packets were sent, and admits those that its kind allows.
type filter struct {
	kind NATKind

	mu    sync.Mutex
	last  time.Time                    // guarded by mu
	hosts map[netip.Addr]time.Time     // guarded by mu
	ports map[netip.AddrPort]time.Time // guarded by mu
}

func (f *filter) sent(to netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ports == nil {
		f.hosts, f.ports = make(map[netip.Addr]time.Time), make(map[netip.AddrPort]time.Time)
	}
	f.last = time.Now()
	f.hosts[to.Addr()], f.ports[to] = f.last, f.last
}

// idle reports whether the last packet was sent more than natLifetime ago.
func (f *filter) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !fresh(f.last)
}

func (f *filter) admits(from netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.kind {
	case FullCone:
		return fresh(f.last)
	case RestrictedCone:
		return fresh(f.hosts[from.Addr()])
	default:
		return fresh(f.ports[from])
	}
}

func fresh(t time.Time) bool { return !t.IsZero() && time.Since(t) < natLifetime }

// String returns the name of the kind.
func (k NATKind) String() string {
	switch k {
	case Firewall:
		return "firewall"
	case FullCone:
		return "full cone"
	case RestrictedCone:
		return "restricted cone"
	case PortRestricted:
		return "port-restricted"
	case Symmetric:
		return "symmetric"
	default:
		return fmt.Sprintf("NATKind(%d)", int(k))
	}
}
