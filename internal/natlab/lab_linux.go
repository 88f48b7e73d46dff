package natlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// Lab is a public network with its customers. It is safe for concurrent use.
type Lab struct {
	mu         sync.Mutex
	core       *namespace
	namespaces []*namespace // guarded by mu
	customers  int          // guarded by mu
}

// Missing returns why there can be no lab on this machine, or nil.
func Missing() error {
	for _, name := range []string{"ip", "nft"} {
		if _, err := os.Stat(lookPath(name)); err != nil {
			return fmt.Errorf("the program %s is not installed: install iproute2 and nftables", name)
		}
	}
	ns, err := newNamespace("try")
	if err != nil {
		return fmt.Errorf("network namespaces need root: %w", err)
	}
	defer ns.close() //nolint:errcheck // it was only tried
	if err := ns.nft(PortRestricted.rules("5.1.0.2", false)); err != nil {
		return fmt.Errorf("nftables do not work here: %w", err)
	}
	return ns.ip("link add type veth\nlink add type bridge")
}

var missing = sync.OnceValue(Missing)

// New opens a lab for a test, and closes it with the test. The test is skipped on
// a machine that cannot have one; in CI, where the check script provides for it,
// that is a failure.
func New(t testing.TB) *Lab {
	t.Helper()
	switch err := missing(); {
	case err == nil:
	case os.Getenv("CI") != "": //nolint:forbidigo // as the other tests do
		t.Fatalf("no laboratory: %v", err)
	default:
		t.Skipf("no laboratory: %v", err)
	}
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Open opens a lab. Its namespaces end with Close or with this process.
func Open() (*Lab, error) {
	l := &Lab{}
	core, err := l.namespace("core")
	if err == nil {
		l.core = core
		err = core.forward()
	}
	if err == nil {
		// Packets to addresses that are not public vanish, as outside.
		err = core.ip("route add blackhole default\nroute add blackhole ::/0")
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close lets go of all namespaces: they end once their processes have ended.
func (l *Lab) Close() error {
	l.mu.Lock()
	list := l.namespaces
	l.namespaces = nil
	l.mu.Unlock()
	var errs []error
	for _, ns := range list {
		errs = append(errs, ns.close())
	}
	return errors.Join(errs...)
}

func (l *Lab) namespace(name string) (*namespace, error) {
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.namespaces = append(l.namespaces, ns)
	l.mu.Unlock()
	return ns, nil
}

// Stack is which versions of IP a site has. The public network has both.
type Stack int

// The stacks.
const (
	IPv4 Stack = iota
	IPv6
	Dual
)

func (s Stack) has4() bool { return s != IPv6 }
func (s Stack) has6() bool { return s != IPv4 }

// customer is a place of the public network.
type customer struct {
	n                int
	gateway4, outer4 netip.Addr
	gateway6, outer6 netip.Addr
	inner4, inner6   netip.Prefix // routed to the customer
}

// customerOf returns the addresses of the nth customer.
func customerOf(n int) customer {
	v6 := func(format string) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf(format, n)) }
	return customer{
		n:        n,
		gateway4: netip.AddrFrom4([4]byte{5, byte(n), 0, 1}),
		outer4:   netip.AddrFrom4([4]byte{5, byte(n), 0, 2}),
		inner4:   netip.PrefixFrom(netip.AddrFrom4([4]byte{5, byte(n), 1, 0}), 24),
		gateway6: v6("2a05:%x::1/64").Addr(),
		outer6:   v6("2a05:%x::2/64").Addr(),
		inner6:   v6("2a05:%x:1::/64"),
	}
}

// connect makes a namespace a customer of the public network: its interface is
// wan.
func (l *Lab) connect(ns *namespace, device string, stack Stack) (customer, error) {
	l.mu.Lock()
	l.customers++
	n := l.customers
	l.mu.Unlock()
	if n > 250 {
		return customer{}, errors.New("the public network is full")
	}
	c := customerOf(n)
	at := fmt.Sprint("c", n)
	core := fmt.Sprintf("link add %s type veth peer name %s netns /proc/self/fd/3\nlink set %[1]s up\n", at, device)
	own := fmt.Sprintf("link set %s up\n", device)
	if stack.has4() {
		core += fmt.Sprintf("addr add %s/30 dev %s\nroute add %s via %s\n", c.gateway4, at, c.inner4, c.outer4)
		own += fmt.Sprintf("addr add %s/30 dev %s\nroute add default via %s\n", c.outer4, device, c.gateway4)
	}
	if stack.has6() {
		core += fmt.Sprintf("addr add %s/64 dev %s nodad\nroute add %s via %s\n", c.gateway6, at, c.inner6, c.outer6)
		own += fmt.Sprintf("addr add %s/64 dev %s nodad\nroute add default via %s\n", c.outer6, device, c.gateway6)
	}
	if err := l.core.ip(core, ns); err != nil {
		return c, err
	}
	return c, ns.ip(own)
}

// Host is a machine. It is safe for concurrent use.
type Host struct {
	ns *namespace
	// Name is the name that it was given, for messages.
	Name string
	// Addr4 and Addr6 are its addresses; invalid if it has none of that version.
	Addr4, Addr6 netip.Addr
}

// Host adds a machine to the public network, with IPv4 and IPv6.
func (l *Lab) Host(name string) (*Host, error) {
	ns, err := l.namespace(name)
	if err != nil {
		return nil, err
	}
	c, err := l.connect(ns, "eth0", Dual)
	return &Host{ns: ns, Name: name, Addr4: c.outer4, Addr6: c.outer6}, err
}

// Network is what a site is like.
type Network struct {
	Kind  Kind
	Stack Stack
	// Hairpin makes a router that translates do so for packets from its own hosts
	// to its outer address, as RFC 4787 demands and not every router does.
	Hairpin bool
	// Private is the subnet of IPv4 of a local network with private addresses; none:
	// 192.168.1.0/24.
	Private netip.Prefix
}

// Site is a router and its local network. It is safe for concurrent use.
type Site struct {
	lab    *Lab
	router *namespace
	net    Network
	at     customer
	// Outer4 and Outer6 are the addresses of the router on the public network, or
	// those of the carrier's NAT.
	Outer4, Outer6 netip.Addr

	lan4, lan6 netip.Prefix
	mu         sync.Mutex
	hosts      int // ever plugged in; guarded by mu
}

// Site adds a router with an empty local network. Unless network says otherwise, all
// local networks with private addresses have the same ones, as homes have.
func (l *Lab) Site(name string, network Network) (*Site, error) {
	router, err := l.namespace(name)
	if err != nil {
		return nil, err
	}
	s := &Site{lab: l, router: router, net: network}
	wan := router
	if network.Kind == DoubleNAT {
		if wan, err = l.namespace(name + "'s carrier"); err != nil {
			return nil, err
		}
	}
	c, err := l.connect(wan, "wan", network.Stack)
	if err != nil {
		return nil, err
	}
	s.at, s.Outer4, s.Outer6 = c, c.outer4, c.outer6
	outer := c.outer4
	s.lan4, s.lan6 = netip.MustParsePrefix("192.168.1.0/24"), c.inner6
	if network.Private.IsValid() {
		s.lan4 = network.Private
	}
	if !network.Kind.translates() {
		s.lan4 = c.inner4
	}
	if network.Kind == DoubleNAT {
		outer = netip.MustParseAddr("100.64.0.2")
		if err := s.carrier(wan, c, outer); err != nil {
			return nil, err
		}
	}
	lan := "link add lan type bridge\nlink set lan up\n"
	if network.Stack.has4() {
		lan += fmt.Sprintf("addr add %s/24 dev lan\n", s.lan4.Addr().Next())
	}
	if network.Stack.has6() {
		lan += fmt.Sprintf("addr add %s/64 dev lan nodad\n", s.lan6.Addr().Next())
	}
	if err := router.ip(lan); err != nil {
		return nil, err
	}
	if err := router.nft(network.Kind.rules(outer.String(), network.Hairpin)); err != nil {
		return nil, err
	}
	return s, router.forward()
}

// carrier makes a namespace the NAT of a carrier, between the public network and
// the router of a site.
func (s *Site) carrier(wan *namespace, c customer, home netip.Addr) error {
	gateway := netip.MustParseAddr("100.64.0.1")
	lan := "link add lan type veth peer name wan netns /proc/self/fd/3\nlink set lan up\n"
	own := "link set wan up\n"
	if s.net.Stack.has4() {
		lan += fmt.Sprintf("addr add %s/24 dev lan\n", gateway)
		own += fmt.Sprintf("addr add %s/24 dev wan\nroute add default via %s\n", home, gateway)
	}
	if s.net.Stack.has6() {
		lan += "addr add fe80::1/64 dev lan nodad\nroute add " + c.inner6.String() + " via fe80::2 dev lan\n"
		own += "addr add fe80::2/64 dev wan nodad\nroute add ::/0 via fe80::1 dev wan\n"
	}
	if err := wan.ip(lan, s.router); err != nil {
		return err
	}
	if err := s.router.ip(own); err != nil {
		return err
	}
	if err := wan.nft(PortRestricted.rules(c.outer4.String(), false)); err != nil {
		return err
	}
	return wan.forward()
}

// Host adds a machine to the local network.
func (s *Site) Host(name string) (*Host, error) {
	ns, err := s.lab.namespace(name)
	if err != nil {
		return nil, err
	}
	h := &Host{ns: ns, Name: name}
	return h, s.Plug(h)
}

// Plug connects a machine that is not connected to the local network, where it
// gets new addresses.
func (s *Site) Plug(h *Host) error {
	s.mu.Lock()
	s.hosts++
	n := s.hosts
	s.mu.Unlock()
	if n > 200 {
		return errors.New("the local network is full")
	}
	port := fmt.Sprint("port", n)
	if err := s.router.ip(fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/self/fd/3\nlink set %[1]s master lan up\n", port), h.ns); err != nil {
		return err
	}
	h.Addr4, h.Addr6 = netip.Addr{}, netip.Addr{}
	own := "link set eth0 up\n"
	if s.net.Stack.has4() {
		b := s.lan4.Addr().As4()
		b[3] = byte(9 + n)
		h.Addr4 = netip.AddrFrom4(b)
		own += fmt.Sprintf("addr add %s/24 dev eth0\nroute add default via %s\n", h.Addr4, s.lan4.Addr().Next())
	}
	if s.net.Stack.has6() {
		b := s.lan6.Addr().As16()
		b[15] = byte(9 + n)
		h.Addr6 = netip.AddrFrom16(b)
		own += fmt.Sprintf("addr add %s/64 dev eth0 nodad\nroute add default via %s\n", h.Addr6, s.lan6.Addr().Next())
	}
	return h.ns.ip(own)
}

// Break makes the router drop all packets of IPv4 or IPv6 between its local network and
// the public one, while hosts keep their addresses and routes.
func (s *Site) Break(version Stack) error {
	family := map[Stack]string{IPv4: "ipv4", IPv6: "ipv6"}[version]
	return s.router.nft("insert rule inet filter forward meta nfproto " + family + " drop\n")
}

// IP runs commands of the program ip on the machine, one a line: for interfaces besides
// eth0.
func (h *Host) IP(commands string) error { return h.ns.ip(commands) }

// Unplug takes a machine off its network.
func (h *Host) Unplug() error { return h.ns.ip("link del eth0") }

// Do calls fn on a thread of the machine: sockets opened by fn, not by goroutines
// that it starts, belong to the machine for good.
func (h *Host) Do(fn func() error) error { return h.ns.do(fn) }

// Process is a process on a machine.
type Process struct {
	*os.Process
	done chan struct{}
	err  error // set before done is closed
}

// Start starts a command as a process of the machine, which is killed when this
// process ends, in whatever way. The pipes of cmd, if any, are files: its methods
// must not be called.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) { return h.ns.start(cmd) }

// Wait waits until the process has ended, and returns what [exec.Cmd.Wait] did.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}
