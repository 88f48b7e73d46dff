package natlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	patience = 20 * time.Second       // for what must come
	moment   = 100 * time.Millisecond // for what must not
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func reuse(_, _ string, c syscall.RawConn) (err error) {
	ctlErr := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		)
	})
	return errors.Join(err, ctlErr)
}

// udp opens a socket on a machine.
func udp(t *testing.T, h *Host, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// tcp opens a listener on a machine.
func tcp(t *testing.T, h *Host, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = (&net.ListenConfig{Control: reuse}).Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// dial opens a connection from a machine.
func dial(t *testing.T, h *Host, from, to netip.AddrPort, timeout time.Duration) (*net.TCPConn, error) {
	t.Helper()
	var c net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse, Timeout: timeout}
		c, err = d.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

func addrOf(c interface{ LocalAddr() net.Addr }) netip.AddrPort {
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// udpFrom returns the sender of the next packet.
func udpFrom(t *testing.T, c *net.UDPConn, timeout time.Duration) (netip.AddrPort, string, bool) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return from, "", false
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), string(b[:n]), true
}

func send(t *testing.T, c *net.UDPConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil && !errors.Is(err, syscall.EPERM) {
		t.Fatal(err)
	}
}

// behaviour is what the probes below find out about a NAT, in the words of
// RFC 4787.
type behaviour struct {
	Mapping string // none, endpoint-independent, or dependent
	// Filtering is whose packets come in: of all, of addresses that were sent to, of
	// addresses and ports that were sent to; or blocked, when no answer does.
	Filtering string
	Hairpin   bool
}

// What is found is what the kinds are documented to be: with bare sockets, over
// UDP and TCP.
func TestRoutersBehaveAsDocumented(t *testing.T) {
	const independent, dependent, none = "endpoint-independent", "dependent", "none"
	const all, addresses, ports, blocked = "all", "addresses", "ports", "blocked"
	lab := New(t)
	one, two := must(lab.Host("one"))(t), must(lab.Host("two"))(t)
	for _, tt := range []struct {
		Network
		udp, tcp behaviour
	}{
		{Network{Kind: Public}, behaviour{none, all, true}, behaviour{none, all, true}},
		{Network{Kind: FullCone}, behaviour{independent, all, false}, behaviour{independent, all, false}},
		{Network{Kind: FullCone, Hairpin: true}, behaviour{independent, all, true}, behaviour{independent, all, true}},
		{Network{Kind: AddressRestricted}, behaviour{independent, addresses, false}, behaviour{independent, addresses, false}},
		{Network{Kind: PortRestricted}, behaviour{independent, ports, false}, behaviour{independent, ports, false}},
		{Network{Kind: PortRestricted, Hairpin: true}, behaviour{independent, ports, true}, behaviour{independent, ports, true}},
		{Network{Kind: Symmetric}, behaviour{dependent, ports, false}, behaviour{dependent, ports, false}},
		{Network{Kind: DoubleNAT}, behaviour{independent, ports, false}, behaviour{independent, ports, false}},
		{Network{Kind: NoUDP}, behaviour{"", blocked, false}, behaviour{independent, ports, false}},
		{Network{Kind: NoIncoming}, behaviour{none, ports, true}, behaviour{none, ports, true}},
	} {
		name := string(tt.Kind)
		if tt.Hairpin {
			name += " with hairpin"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site := must(lab.Site(name, tt.Network))(t)
			if got := probeUDP(t, site, one, two); got != tt.udp {
				t.Errorf("UDP: %+v, not %+v", got, tt.udp)
			}
			if got := probeTCP(t, site, one, two); got != tt.tcp {
				t.Errorf("TCP: %+v, not %+v", got, tt.tcp)
			}
		})
	}
}

func probeUDP(t *testing.T, site *Site, one, two *Host) (b behaviour) {
	t.Helper()
	inside, neighbor := must(site.Host("inside"))(t), must(site.Host("neighbor"))(t)
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	// observed returns where packets from a socket seem to come from.
	observed := func(c, by *net.UDPConn, host *Host) (from netip.AddrPort, ok bool) {
		send(t, c, netip.AddrPortFrom(host.Addr4, addrOf(by).Port()), "hello")
		wait := patience
		if site.net.Kind == NoUDP {
			wait = moment
		}
		from, _, ok = udpFrom(t, by, wait)
		return from, ok
	}
	oneA, oneB, twoA := udp(t, one, any4), udp(t, one, any4), udp(t, two, any4)

	c := udp(t, inside, any4)
	outer, ok := observed(c, oneA, one)
	if !ok {
		b.Filtering = "blocked"
		return b
	}
	// Nobody was sent to but oneA: the others' packets come before its own, or not
	// at all.
	send(t, twoA, outer, "all")
	send(t, oneB, outer, "addresses")
	send(t, oneA, outer, "ports")
	heard := ""
	for {
		_, text, ok := udpFrom(t, c, patience)
		if !ok {
			b.Filtering = "blocked"
			return b
		}
		heard += text + " "
		if text == "ports" {
			break
		}
	}
	b.Filtering = map[string]string{"ports ": "ports", "addresses ports ": "addresses", "all addresses ports ": "all"}[heard]
	if b.Filtering == "" {
		b.Filtering = heard
	}

	fromB, okB := observed(c, oneB, one)
	fromTwo, okTwo := observed(c, twoA, two)
	switch {
	case !okB || !okTwo:
		t.Fatal("packets do not go out")
	case outer == fromB && outer == fromTwo && outer == netip.AddrPortFrom(inside.Addr4, addrOf(c).Port()):
		b.Mapping = "none"
	case outer == fromB && outer == fromTwo:
		b.Mapping = "endpoint-independent"
		if outer.Port() == addrOf(c).Port() {
			t.Errorf("port %d is the same inside and outside", outer.Port())
		}
	case outer != fromB && outer != fromTwo:
		b.Mapping = "dependent"
	}
	if b.Mapping != "none" && outer.Addr() != site.Outer4 {
		t.Errorf("packets come from %s, and not from %s", outer.Addr(), site.Outer4)
	}

	n := udp(t, neighbor, any4)
	send(t, n, outer, "hairpin")
	_, text, _ := udpFrom(t, c, map[bool]time.Duration{true: patience, false: moment}[site.net.Hairpin || b.Mapping == "none"])
	b.Hairpin = text == "hairpin"
	return b
}

func probeTCP(t *testing.T, site *Site, one, two *Host) (b behaviour) {
	t.Helper()
	inside, neighbor := must(site.Host("inside"))(t), must(site.Host("neighbor"))(t)
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	at := func(h *Host, l *net.TCPListener) netip.AddrPort {
		return netip.AddrPortFrom(h.Addr4, netip.MustParseAddrPort(l.Addr().String()).Port())
	}
	l := tcp(t, inside, any4)
	own := netip.AddrPortFrom(netip.IPv4Unspecified(), at(inside, l).Port())
	observed := func(by *net.TCPListener, host *Host) netip.AddrPort {
		t.Helper()
		c, err := dial(t, inside, own, at(host, by), patience)
		if err != nil {
			t.Fatalf("nothing goes out: %v", err)
		}
		defer c.Close()
		if err := by.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		in, err := by.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		return netip.MustParseAddrPort(in.RemoteAddr().String())
	}
	// opens reports whether somebody outside can open a connection.
	opens := func(h *Host, to netip.AddrPort, expected bool) bool {
		c, err := dial(t, h, netip.AddrPort{}, to, map[bool]time.Duration{true: patience, false: moment}[expected])
		if err != nil {
			return false
		}
		c.Close()
		return true
	}
	oneA, oneB, twoA := tcp(t, one, any4), tcp(t, one, any4), tcp(t, two, any4)
	outer := observed(oneA, one)
	kind := site.net.Kind
	open := kind == Public || kind == FullCone
	switch {
	case opens(two, outer, open):
		b.Filtering = "all"
	case opens(one, outer, kind == AddressRestricted):
		b.Filtering = "addresses"
	default:
		b.Filtering = "ports" // an answer has come
	}
	fromB, fromTwo := observed(oneB, one), observed(twoA, two)
	switch {
	case outer == fromB && outer == fromTwo && outer == netip.AddrPortFrom(inside.Addr4, own.Port()):
		b.Mapping = "none"
	case outer == fromB && outer == fromTwo:
		b.Mapping = "endpoint-independent"
	case outer != fromB && outer != fromTwo:
		b.Mapping = "dependent"
	}
	b.Hairpin = opens(neighbor, outer, site.net.Hairpin || b.Mapping == "none")
	return b
}

// Behind two NATs of one kind, both sides send at the same time to where the
// other's packets came from: hole punching as it is in the books. It succeeds, or
// not, as the books say.
func TestHolesCanBePunched(t *testing.T) {
	lab := New(t)
	meeting := must(lab.Host("meeting"))(t)
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	kinds := slices.DeleteFunc(Kinds(), func(k Kind) bool { return k == NoUDP })
	hosts := map[string]*Host{}
	for _, k := range kinds {
		for _, side := range []string{"left", "right"} {
			site := must(lab.Site(fmt.Sprint(k, " ", side), Network{Kind: k}))(t)
			hosts[fmt.Sprint(k, " ", side)] = must(site.Host(fmt.Sprint(k, " ", side)))(t)
		}
	}
	for _, a := range kinds {
		for _, b := range kinds {
			m := udp(t, meeting, any4)
			at := netip.AddrPortFrom(meeting.Addr4, addrOf(m).Port())
			var sockets [2]*net.UDPConn
			var outer [2]netip.AddrPort
			for i, name := range []string{fmt.Sprint(a, " left"), fmt.Sprint(b, " right")} {
				sockets[i] = udp(t, hosts[name], any4)
				send(t, sockets[i], at, "hello")
				outer[i], _, _ = udpFrom(t, m, patience)
			}
			// A symmetric NAT's new mapping is only known to whom its packets reach.
			listens, sends := 1, 0
			if b == Symmetric {
				listens, sends = 0, 1
			}
			send(t, sockets[listens], outer[sends], "opens")
			send(t, sockets[sends], outer[listens], "comes")
			strict := func(k Kind) bool { return k == PortRestricted || k == DoubleNAT || k == NoIncoming || k == Symmetric }
			possible := !(a == Symmetric && strict(b) || b == Symmetric && strict(a))
			wait := map[bool]time.Duration{true: patience, false: moment}[possible]
			from, _, ok := udpFrom(t, sockets[listens], wait)
			if ok {
				send(t, sockets[listens], from, "answer")
				for text := ""; ok && text != "answer"; {
					_, text, ok = udpFrom(t, sockets[sends], wait)
				}
			}
			if ok != possible {
				t.Errorf("%s × %s: direct %v, expected %v", a, b, ok, possible)
			}
		}
	}
}
