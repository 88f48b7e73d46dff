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

	"github.com/go-p2pnode/p2pnode/internal/needs"
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
func udp(t *testing.T, h *Host) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.Addr4, 0)))
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

// The routers do what [Kind.Behavior] says: with bare sockets, over UDP and TCP.
// The simulated networks of p2ptest are held to the same table, with the same
// probe (TestNATsAreThoseOfTheLaboratory of internal/simhost).
func TestRoutersBehaveAsDocumented(t *testing.T) {
	lab := New(t)
	one, two := must(lab.Host("one"))(t), must(lab.Host("two"))(t)
	networks := []Network{{Kind: FullCone, Hairpin: true}, {Kind: PortRestricted, Hairpin: true}}
	for _, k := range Kinds() {
		networks = append(networks, Network{Kind: k})
	}
	for _, network := range networks {
		name := string(network.Kind)
		if network.Hairpin {
			name += " with hairpin"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := func(l4 Transport) Behavior {
				b := network.Kind.Behavior(l4)
				b.Hairpin = b.Hairpin || network.Hairpin
				return b
			}
			site := must(lab.Site(name, network))(t)
			probe := Probe{
				Inside: udp(t, must(site.Host("inside"))(t)), Neighbor: udp(t, must(site.Host("neighbor"))(t)),
				One: udp(t, one), OneOther: udp(t, one), Two: udp(t, two),
				Patience: patience, Moment: moment,
			}
			got, outer, err := probe.Measure(want(UDP))
			if err != nil {
				t.Fatal(err)
			}
			if got != want(UDP) {
				t.Errorf("UDP: %+v, not %+v", got, want(UDP))
			}
			if got.Filtering != Blocked && got.Mapping != None && outer.Addr() != site.Outer4 {
				t.Errorf("packets come from %s, and not from %s", outer.Addr(), site.Outer4)
			}
			if got := probeTCP(t, site, one, two, want(TCP)); got != want(TCP) {
				t.Errorf("TCP: %+v, not %+v", got, want(TCP))
			}
		})
	}
}

func probeTCP(t *testing.T, site *Site, one, two *Host, expected Behavior) (b Behavior) {
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
	switch {
	case opens(two, outer, expected.Filtering == EndpointIndependent):
		b.Filtering = EndpointIndependent
	case opens(one, outer, expected.Filtering == AddressDependent):
		b.Filtering = AddressDependent
	default:
		b.Filtering = AddressAndPortDependent // an answer has come
	}
	fromB, fromTwo := observed(oneB, one), observed(twoA, two)
	switch {
	case outer == fromB && outer == fromTwo && outer == netip.AddrPortFrom(inside.Addr4, own.Port()):
		b.Mapping = None
	case outer == fromB && outer == fromTwo:
		b.Mapping = EndpointIndependent
	case outer != fromB && outer != fromTwo:
		b.Mapping = AddressAndPortDependent
	}
	b.KeepsPort = b.Mapping != None && outer.Port() == own.Port()
	b.Hairpin = opens(neighbor, outer, expected.Hairpin)
	return b
}

// Behind two routers, both sides send at the same time to where the other's packets
// came from: hole punching as it is in the books. It succeeds, or not, as
// [Punchable] says.
func TestHolesCanBePunched(t *testing.T) {
	needs.Time(t)
	lab := New(t)
	meeting := must(lab.Host("meeting"))(t)
	kinds := slices.DeleteFunc(Kinds(), func(k Kind) bool { return k.Behavior(UDP).Filtering == Blocked })
	hosts := map[string]*Host{}
	for _, k := range kinds {
		for _, side := range []string{"left", "right"} {
			name := fmt.Sprint(k, " ", side)
			hosts[name] = must(must(lab.Site(name, Network{Kind: k}))(t).Host(name))(t)
		}
	}
	for _, a := range kinds {
		for _, b := range kinds {
			left, right := udp(t, hosts[fmt.Sprint(a, " left")]), udp(t, hosts[fmt.Sprint(b, " right")])
			want := Punchable(a, b, UDP)
			got, err := Punch(Side{a, left}, Side{b, right}, udp(t, meeting), want, patience, moment)
			if err != nil || got != want {
				t.Errorf("%s × %s: direct %v, expected %v: %v", a, b, got, want, err)
			}
		}
	}
}

// A router that forgets lets nobody in until a packet has gone out again; one that is
// renumbered sends from its new address.
func TestRoutersForget(t *testing.T) {
	const long, moment = 20 * time.Second, 100 * time.Millisecond
	lab := New(t)
	one := must(lab.Host("one"))(t)
	for _, k := range []Kind{FullCone, PortRestricted, Symmetric, NoIncoming} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			site := must(lab.Site(string(k), Network{Kind: k}))(t)
			inside, outside := udp(t, must(site.Host("inside"))(t)), udp(t, one)
			// arrives sends a packet, and returns where it seems to come from.
			arrives := func(from, to *net.UDPConn, at netip.AddrPort, timeout time.Duration) (netip.AddrPort, bool) {
				t.Helper()
				if err := to.SetReadDeadline(time.Now().Add(timeout)); err != nil {
					t.Fatal(err)
				}
				if _, err := from.WriteToUDPAddrPort([]byte("hello"), at); err != nil {
					t.Fatal(err)
				}
				_, sender, err := to.ReadFromUDPAddrPort(make([]byte, 100))
				return sender, err == nil
			}
			out := func() netip.AddrPort {
				t.Helper()
				from, ok := arrives(inside, outside, netip.MustParseAddrPort(outside.LocalAddr().String()), long)
				if !ok {
					t.Fatal("no packet comes out")
				}
				return from
			}
			in := func(at netip.AddrPort, timeout time.Duration) bool {
				t.Helper()
				_, ok := arrives(outside, inside, at, timeout)
				return ok
			}
			from := out()
			if !in(from, long) {
				t.Fatal("no answer comes in")
			}
			if err := site.Forget(); err != nil {
				t.Fatal(err)
			}
			if in(from, moment) {
				t.Error("it has not forgotten")
			}
			if !in(out(), long) {
				t.Error("no answer comes in any more")
			}
			if !k.translates() {
				return
			}
			was := site.Outer4
			if err := site.Renumber(); err != nil {
				t.Fatal(err)
			}
			from = out()
			if from.Addr() == was || from.Addr() != site.Outer4 {
				t.Errorf("packets come from %s, not from %s; before it was %s", from, site.Outer4, was)
			}
			if !in(from, long) {
				t.Error("no answer comes in at the new address")
			}
		})
	}
}
