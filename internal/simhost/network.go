// Package simhost is a simulated IP network for libp2p hosts: machines with
// addresses, links, NATs and faults, all in one process. It works in real time
// and, under testing/synctest, in virtual time.
//
// It sends packets through the endpoints, rate-limited links and router of
// simnet, and adds loss, cuts and address translation around the endpoints.
// memory.go is a second way to carry connections, without packets.
package simhost

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/marcopolo/simnet"
)

// Link connects a machine to the network. The zero value is a link without limits
// or faults.
type Link struct {
	Up, Down int           // bits per second in each direction; 0 means unlimited
	Latency  time.Duration // one way, added to that of the path
	Jitter   time.Duration // the largest additional delay of a packet, drawn uniformly; packets can overtake each other
	Loss     float64       // the fraction of packets lost in each direction, from 0 to 1
	MTU      int           // the largest IP packet that passes, in bytes; 0 means 1500
}

// Path is the network between two machines, in one direction.
type Path struct {
	Latency time.Duration // one way
	Jitter  time.Duration
	Loss    float64
}

const (
	defaultMTU = 1500
	// headers are the IPv4 and UDP headers of a packet.
	headers = 28
	// An unlimited link has a rate in bits per second and a burst in bytes that
	// delay no packet. A high rate is not enough: if a packet takes less than a
	// nanosecond, simnet's link (v0.0.7) waits forever.
	unlimitedRate  = min(10_000_000_000, math.MaxInt) // the latter on 32 bits
	unlimitedBurst = 1 << 30
)

// LatencyFunc returns the latency, one way, between two sites. The network calls
// it for each packet, from several goroutines.
type LatencyFunc func(from, to Site) time.Duration

// Site is the point at which a machine is attached to the network. Machines
// behind one NAT share it.
type Site struct {
	Index  int    // in the order of creation
	Region string // set by SetRegion
}

// Network is a simulated network. Its methods are safe for concurrent use.
type Network struct {
	seed uint64
	sim  *simnet.Simnet

	latency LatencyFunc
	faults  atomic.Pointer[faults] // replaced, never changed

	mu     sync.RWMutex
	closed bool                            // guarded by mu
	sites  map[netip.Addr]*site            // by public address; guarded by mu
	nSites int                             // guarded by mu
	rngs   map[sitePair]*rng               // guarded by mu
	paths  map[sitePair]Path               // guarded by mu
	owners map[netip.AddrPort]*Machine     // of open ports at public addresses; guarded by mu
	lan    map[netip.AddrPort]*endpoint    // of machines behind NATs; guarded by mu
	pairs  map[*memPair]struct{}           // connections of memory.go; guarded by mu
	hubs   map[netip.AddrPort]*memListener // listeners of memory.go; guarded by mu
	wg     sync.WaitGroup                  // the pumps of the endpoints

	carried, lost atomic.Uint64 // packets
}

// faults are the cuts of the network at one moment.
type faults struct {
	group map[*Machine]int // the partition; nil without one; machines that are not in it form group 0
}

// sitePair is a direction between two sites, by index.
type sitePair [2]int

// rng is a source of randomness. Each direction of each path has its own, so that
// events elsewhere do not change its results.
type rng struct {
	mu sync.Mutex
	r  *rand.Rand // guarded by mu
}

// site is a public address: of one or several machines, or of a NAT.
type site struct {
	Site
	ip    netip.Addr
	link  atomic.Pointer[Link]
	up    meter
	down  meter
	hosts []*Machine // empty for a NAT; guarded by Network.mu
	nat   *NAT       // nil for machines
}

// New starts a network.
func New(seed uint64, latency LatencyFunc) *Network {
	n := &Network{
		seed: seed, latency: latency,
		sites:  make(map[netip.Addr]*site),
		rngs:   make(map[sitePair]*rng),
		paths:  make(map[sitePair]Path),
		owners: make(map[netip.AddrPort]*Machine),
		lan:    make(map[netip.AddrPort]*endpoint),
		pairs:  make(map[*memPair]struct{}),
		hubs:   make(map[netip.AddrPort]*memListener),
	}
	n.faults.Store(&faults{})
	n.sim = &simnet.Simnet{
		LatencyFunc: func(p *simnet.Packet) time.Duration { return n.delay(p.From, p.To) },
		// The logger reports each packet to an address without a listener, such as
		// one to a crashed machine.
		Logger: slog.New(slog.DiscardHandler),
	}
	n.sim.Start()
	return n
}

// Close stops the network. Close the hosts on it first.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.sim.Close()
	n.wg.Wait()
}

// Stats returns how many packets were carried, and how many were lost to loss,
// cuts and NATs.
func (n *Network) Stats() (carried, lost uint64) { return n.carried.Load(), n.lost.Load() }

// NewMachine adds a machine with its own public address.
func (n *Network) NewMachine() *Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newSiteLocked().newMachineLocked(n)
}

// NewNeighbor adds a machine at the public address of another one, which must not
// be behind a NAT. They share the ports, link and region of the address. Each
// listens on its own port, and can be cut off without the other.
func (m *Machine) NewNeighbor() *Machine {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	return m.site.newMachineLocked(m.net)
}

// newMachineLocked adds a machine to a site that is not a NAT's.
func (s *site) newMachineLocked(n *Network) *Machine {
	m := &Machine{net: n, site: s, ip: s.ip}
	m.init(len(s.hosts))
	s.hosts = append(s.hosts, m)
	return m
}

func (n *Network) newSiteLocked() *site {
	s := &site{Site: Site{Index: n.nSites}, ip: publicIP(n.nSites)}
	s.link.Store(&Link{})
	n.nSites++
	n.sites[s.ip] = s
	return s
}

// publicIP spreads machines over /16 networks, because the DHT's routing table
// takes only a few peers from each.
func publicIP(i int) netip.Addr {
	// 16 to 95 avoids the private and reserved addresses below and above.
	return netip.AddrFrom4([4]byte{byte(16 + i/250%80), byte(1 + i%250), byte(i / 20000), 1})
}

// rng returns the source of randomness of one direction of a path.
func (n *Network) rng(p sitePair) *rng {
	n.mu.RLock()
	r := n.rngs[p]
	n.mu.RUnlock()
	if r != nil {
		return r
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r = n.rngs[p]; r == nil {
		r = &rng{r: rand.New(rand.NewPCG(n.seed, uint64(p[0])<<32|uint64(p[1])))}
		n.rngs[p] = r
	}
	return r
}

func (r *rng) float() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.Float64()
}

// SetPath overrides the network's latency function for one direction between two
// machines.
func (n *Network) SetPath(from, to *Machine, p Path) {
	key := sitePair{from.site.Index, to.site.Index}
	n.mu.Lock()
	dead := n.paths[key].Loss >= 1
	n.paths[key] = p
	n.mu.Unlock()
	if dead != (p.Loss >= 1) {
		n.recheck()
	}
}

// Path returns the current path between two machines, in one direction and
// without their links.
func (n *Network) Path(from, to *Machine) Path {
	p, _ := n.bare(from.site, to.site)
	return p
}

// bare returns the path between two sites without their links, and whether the
// links apply. Within a site there are no links, and the path is empty unless
// SetPath has set one.
func (n *Network) bare(from, to *site) (p Path, links bool) {
	key := sitePair{from.Index, to.Index}
	n.mu.RLock()
	p, set := n.paths[key]
	a, b := from.Site, to.Site
	n.mu.RUnlock()
	if !set && from != to {
		p.Latency = n.latency(a, b)
	}
	return p, from != to
}

// path returns the current path between two sites, including both links.
func (n *Network) path(from, to *site) Path {
	p, links := n.bare(from, to)
	if !links {
		return p
	}
	for _, l := range []*Link{from.link.Load(), to.link.Load()} {
		p.Latency += l.Latency
		p.Jitter += l.Jitter
		p.Loss = 1 - (1-p.Loss)*(1-l.Loss)
	}
	return p
}

// delay returns how long a packet takes. Its addresses are public, or both behind
// one NAT.
func (n *Network) delay(from, to net.Addr) time.Duration {
	a, b := n.siteOf(from), n.siteOf(to)
	if a == nil || b == nil {
		return 0
	}
	return n.sample(a, b)
}

func (n *Network) sample(a, b *site) time.Duration {
	p := n.path(a, b)
	if p.Jitter > 0 {
		p.Latency += time.Duration(n.rng(sitePair{a.Index, b.Index}).float() * float64(p.Jitter))
	}
	return p.Latency
}

func (n *Network) siteOf(a net.Addr) *site {
	ap := addrPort(a)
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.sites[ap.Addr()]
}

// drops decides at random whether a packet is lost.
func (n *Network) drops(from, to *site) bool {
	p := n.path(from, to)
	return p.Loss > 0 && n.rng(sitePair{from.Index, to.Index}).float() < p.Loss
}

// machineAt returns the machine that sends from, or listens on, an address.
func (n *Network) machineAt(ap netip.AddrPort) *Machine {
	n.mu.RLock()
	ep, m, s := n.lan[ap], n.owners[ap], n.sites[ap.Addr()]
	n.mu.RUnlock()
	switch {
	case ep != nil:
		return ep.owner
	case m != nil:
		return m
	case s != nil && s.nat != nil:
		return s.nat.machineAt(ap.Port()) // without n.mu: a NAT takes it while it holds its own lock
	default:
		return nil
	}
}

// Partition divides the machines into groups that cannot reach each other. The
// machines in none of them form another group.
func (n *Network) Partition(groups ...[]*Machine) {
	g := make(map[*Machine]int)
	for i, members := range groups {
		for _, m := range members {
			g[m] = i + 1
		}
	}
	n.faults.Store(&faults{group: g})
	n.recheck()
}

// Heal ends the partition. Machines that are down stay down.
func (n *Network) Heal() {
	n.faults.Store(&faults{})
	n.recheck()
}

// dead reports whether two machines are cut off from each other, or one direction
// loses all packets.
func (n *Network) dead(a, b *Machine) bool {
	if n.cut(a, b) {
		return true
	}
	there, back := sitePair{a.site.Index, b.site.Index}, sitePair{b.site.Index, a.site.Index}
	n.mu.RLock()
	dead := n.paths[there].Loss >= 1 || n.paths[back].Loss >= 1
	n.mu.RUnlock()
	return dead || a.site != b.site && (a.site.link.Load().Loss >= 1 || b.site.link.Load().Loss >= 1)
}

// cut reports whether two machines cannot reach each other.
func (n *Network) cut(a, b *Machine) bool {
	if a.down.Load() > 0 || b.down.Load() > 0 {
		return true
	}
	f := n.faults.Load()
	return f.group != nil && a != b && f.group[a] != f.group[b]
}

// Machine is one computer on the network.
type Machine struct {
	net  *Network
	site *site
	nat  *NAT // nil with a public address
	ip   netip.Addr
	port uint16 // of ListenAddr
	// firewall is nil for a machine that everybody can send to. Those behind the same
	// wall can in any case.
	firewall *filter
	wall     *NAT
	down     atomic.Int32 // calls of Down without an Up

	mu       sync.Mutex
	ports    map[uint16]*endpoint // guarded by mu
	lastPort uint16               // guarded by mu
}

// init prepares the i-th machine at an address.
func (m *Machine) init(i int) {
	m.ports = make(map[uint16]*endpoint)
	m.port = uint16(Port + i)
	// Neighbors begin at different ports, and skip ports of others.
	m.lastPort = firstEphemeral + uint16(i*ephemeralShare%ephemeralPorts)
}

// IP returns the machine's address; behind a NAT, the private one.
func (m *Machine) IP() netip.Addr { return m.ip }

// firstEphemeral is the first of the ephemeral ports, according to RFC 6335.
const (
	firstEphemeral = 49152
	ephemeralPorts = 1<<16 - firstEphemeral
	ephemeralShare = 256 // the distance between the first ports of machines at one address
)

// Port is the listening port of a machine. The next machine at the same address
// has the next port.
const Port = 4001

// ListenAddr returns the multiaddr on which a node on the machine listens.
func (m *Machine) ListenAddr() string {
	return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", m.ip, m.port)
}

// Site returns the site at which the machine is attached.
func (m *Machine) Site() Site {
	m.net.mu.RLock()
	defer m.net.mu.RUnlock()
	return m.site.Site
}

// SetRegion sets the region of the machine's site, for a latency function.
func (m *Machine) SetRegion(region string) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.site.Region = region
}

// Link returns the machine's link.
func (m *Machine) Link() Link { return *m.site.link.Load() }

// SetLink replaces the link of the machine, or of the NAT in front of it. It does
// not affect packets in flight.
func (m *Machine) SetLink(l Link) {
	old := m.site.link.Swap(&l)
	if (old.Loss >= 1) != (l.Loss >= 1) {
		m.net.recheck()
	}
	if old.Up == l.Up && old.Down == l.Down && old.MTU == l.MTU {
		return
	}
	var list []*endpoint
	if m.nat != nil {
		list = m.nat.endpoints()
	} else {
		m.net.mu.RLock()
		hosts := slices.Clone(m.site.hosts)
		m.net.mu.RUnlock()
		for _, h := range hosts {
			h.mu.Lock()
			list = slices.AppendSeq(list, maps.Values(h.ports))
			h.mu.Unlock()
		}
	}
	for _, ep := range list {
		ep.open(l)
	}
}

// Down cuts the machine off: no packets get in or out. Each Down needs an Up.
func (m *Machine) Down() {
	m.down.Add(1)
	m.net.recheck()
}

// Up undoes one Down.
func (m *Machine) Up() {
	m.down.Add(-1)
	m.net.recheck()
}

// ListenUDP opens a port of the machine; port 0 means any. The IP address is
// always the machine's.
func (m *Machine) ListenUDP(_ string, laddr *net.UDPAddr) (net.PacketConn, error) {
	port := uint16(0)
	if laddr != nil {
		port = uint16(laddr.Port)
	}
	anyOf := port == 0
	m.mu.Lock()
	defer m.mu.Unlock()
	for port == 0 || anyOf && (m.ports[port] != nil || !m.owns(port)) {
		port = m.nextPortLocked()
	}
	ep := m.ports[port]
	if ep == nil {
		if !m.claim(port) {
			return nil, fmt.Errorf("listen udp %s:%d: address already in use", m.ip, port)
		}
		ep = &endpoint{net: m.net, owner: m, addr: netip.AddrPortFrom(m.ip, port)}
		if m.nat != nil {
			// Known only behind the NAT; others know the mappings.
			m.net.mu.Lock()
			m.net.lan[ep.addr] = ep
			m.net.mu.Unlock()
		} else {
			ep.open(*m.site.link.Load())
		}
		m.ports[port] = ep
	}
	c := &conn{m: m, ep: ep, queue: newQueue()}
	if !ep.bound.CompareAndSwap(nil, c) {
		return nil, fmt.Errorf("listen udp %s: address already in use", ep.addr)
	}
	return c, nil
}

// owns reports whether a port belongs to the machine or to none.
func (m *Machine) owns(port uint16) bool {
	m.net.mu.RLock()
	defer m.net.mu.RUnlock()
	owner := m.net.owners[netip.AddrPortFrom(m.ip, port)]
	return owner == nil || owner == m
}

// claim assigns a port to the machine, permanently. It reports false if the port
// belongs to a neighbor. Behind a NAT there are no neighbors.
func (m *Machine) claim(port uint16) bool {
	if m.nat != nil {
		return true
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	ap := netip.AddrPortFrom(m.ip, port)
	if owner := m.net.owners[ap]; owner != nil && owner != m {
		return false
	}
	m.net.owners[ap] = m
	return true
}

// anyPort returns an ephemeral port number.
func (m *Machine) anyPort() uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nextPortLocked()
}

func (m *Machine) nextPortLocked() uint16 {
	if m.lastPort++; m.lastPort < firstEphemeral {
		m.lastPort = firstEphemeral
	}
	return m.lastPort
}

// endpoint is a port at which packets arrive. It outlives the sockets bound to
// it, as an address outlives a program.
type endpoint struct {
	net   *Network
	owner *Machine
	addr  netip.AddrPort
	sim   atomic.Pointer[simnet.SimConn] // nil behind a NAT
	bound atomic.Pointer[conn]
	inlet func(data []byte, from netip.AddrPort) // replaces bound for a NAT's endpoint
}

// open attaches the endpoint to the network, or replaces it with one that has
// another link: simnet's links cannot be changed.
func (ep *endpoint) open(l Link) {
	settings := func(rate int) simnet.LinkSettings {
		if rate == 0 {
			return simnet.LinkSettings{BitsPerSecond: unlimitedRate, MTU: unlimitedBurst}
		}
		return simnet.LinkSettings{BitsPerSecond: rate, MTU: max(l.mtu(), defaultMTU)}
	}
	n := ep.net
	n.mu.Lock() // simnet does not guard its list of links
	if n.closed {
		n.mu.Unlock()
		return
	}
	s := n.sim.NewEndpoint(net.UDPAddrFromAddrPort(ep.addr), simnet.NodeBiDiLinkSettings{Uplink: settings(l.Up), Downlink: settings(l.Down)})
	n.wg.Go(func() { ep.pump(s) })
	n.mu.Unlock()
	if old := ep.sim.Swap(s); old != nil {
		_ = old.Close() // returns nil
	}
}

// pump receives packets from the network.
func (ep *endpoint) pump(s *simnet.SimConn) {
	buf := make([]byte, 1<<16)
	for {
		k, from, err := s.ReadFrom(buf)
		if err != nil {
			return
		}
		ep.arrive(buf[:k], addrPort(from))
	}
}

// arrive delivers a packet unless the network was cut meanwhile.
func (ep *endpoint) arrive(data []byte, from netip.AddrPort) {
	if ep.inlet != nil {
		ep.inlet(data, from)
		return
	}
	src := ep.net.machineAt(from)
	c := ep.bound.Load()
	if src == nil || c == nil || ep.net.cut(src, ep.owner) || !ep.owner.admits(src, from) {
		ep.net.lost.Add(1)
		return
	}
	ep.net.carried.Add(1)
	c.queue.push(data, from)
}

// admits reports whether the machine's firewall, if any, lets a packet in.
func (m *Machine) admits(src *Machine, from netip.AddrPort) bool {
	return m.firewall == nil || src.wall == m.wall || m.firewall.admits(from)
}

// send sends a packet from this endpoint.
func (ep *endpoint) send(data []byte, to netip.AddrPort) {
	s := ep.sim.Load()
	if s == nil {
		return
	}
	// The only error is that of a closed endpoint: then the packet is lost.
	_, _ = s.WriteTo(data, net.UDPAddrFromAddrPort(to))
}

// conn is an open port: the net.PacketConn for QUIC.
type conn struct {
	m  *Machine
	ep *endpoint
	*queue
}

var _ net.PacketConn = (*conn)(nil)

// WriteTo sends a packet. It never blocks and, as with UDP, success does not mean
// that the packet arrives.
func (c *conn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.queue.isClosed() {
		return 0, net.ErrClosed
	}
	if !c.m.transmit(c.ep, b, addrPort(to)) {
		c.m.net.lost.Add(1)
	}
	return len(b), nil
}

// transmit sends a packet, and reports whether the sender's side did not drop it.
func (m *Machine) transmit(ep *endpoint, b []byte, to netip.AddrPort) bool {
	n := m.net
	if m.down.Load() > 0 || len(b)+headers > m.site.link.Load().mtu() {
		return false
	}
	if m.nat != nil {
		return m.nat.outbound(ep, b, to)
	}
	if m.firewall != nil {
		m.firewall.sent(to)
	}
	n.mu.RLock()
	dst := n.sites[to.Addr()]
	n.mu.RUnlock()
	if dst == nil || len(b)+headers > dst.link.Load().mtu() || n.drops(m.site, dst) {
		return false
	}
	ep.send(b, to)
	return true
}

func (l *Link) mtu() int {
	if l.MTU == 0 {
		return defaultMTU
	}
	return l.MTU
}

func (c *conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.ep.addr) }

// Close frees the port.
func (c *conn) Close() error {
	c.queue.close()
	c.ep.bound.CompareAndSwap(c, nil)
	return nil
}

// addrPort returns the comparable form of an address, with IPv4 in four bytes.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
