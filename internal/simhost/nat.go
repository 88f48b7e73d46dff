package simhost

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// NATKind is how a NAT maps and filters, in the terms of RFC 3489; those of
// RFC 4787 are given beside.
type NATKind int

const (
	// Firewall does not translate. It lets in what answers: packets from an
	// address and port that were sent to before.
	Firewall NATKind = iota
	// FullCone maps endpoint-independently and filters nothing.
	FullCone
	// RestrictedCone maps endpoint-independently and filters by address.
	RestrictedCone
	// PortRestricted maps endpoint-independently and filters by address and port.
	PortRestricted
	// Symmetric maps and filters by address and port: every destination sees
	// another port.
	Symmetric
)

// natLifetime is how long a mapping, or what a filter remembers, lives after
// the last packet out: the value that RFC 4787 (REQ-5) recommends.
const natLifetime = 5 * time.Minute

// lanLatency is how long a packet takes between two machines behind one NAT.
const lanLatency = 200 * time.Microsecond

// NAT is a network address translator, or a firewall, with machines behind it.
// It does not hairpin: machines behind it reach one another by their private
// addresses only.
type NAT struct {
	net   *Network
	kind  NATKind
	site  *site // nil for Firewall, whose machines have addresses of their own
	index int

	mu       sync.Mutex
	inside   int                 // machines; guarded by mu
	maps     map[natKey]*mapping // guarded by mu
	byPort   map[uint16]*mapping // guarded by mu
	lastPort uint16              // guarded by mu
}

// natKey is what a mapping is for. Cones leave the destination out.
type natKey struct{ inside, outside netip.AddrPort }

// mapping is an outside port that stands for an inside one.
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
		m.firewall = &filter{}
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

// outbound sends a packet of a machine inside.
func (t *NAT) outbound(from *endpoint, b []byte, to netip.AddrPort) bool {
	n := t.net
	n.mu.RLock()
	local, dst := n.lan[to], n.sites[to.Addr()]
	n.mu.RUnlock()
	if local != nil {
		if local.owner.nat != t {
			return false
		}
		data := slices.Clone(b)
		time.AfterFunc(lanLatency, func() { local.arrive(data, from.addr) })
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

// mapping finds or makes the mapping for a packet out.
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
	// A cone keeps the port number when it is free, as most do.
	port := from.addr.Port()
	for t.kind == Symmetric || t.byPort[port] != nil {
		t.lastPort++
		if port = t.lastPort; t.byPort[port] == nil {
			break
		}
	}
	m := &mapping{inside: from}
	m.filter.kind = t.kind
	m.outer = &endpoint{net: t.net, addr: netip.AddrPortFrom(t.site.ip, port)}
	m.outer.inlet = func(data []byte, from netip.AddrPort) { t.inbound(m, data, from) }
	m.outer.open(*t.site.link.Load())
	t.maps[key], t.byPort[port] = m, m
	return m
}

// inbound lets a packet in, or not.
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

// filter remembers what was sent where, and lets in what the kind allows.
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

// idle reports whether nothing was sent for so long that it is forgotten.
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
