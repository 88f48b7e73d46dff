package simhost

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func listen(tb testing.TB, m *Machine, port int) net.PacketConn {
	tb.Helper()
	c, err := m.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// receive returns the next packet, or "" after a second without one.
func receive(tb testing.TB, c net.PacketConn) (string, net.Addr) {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, 2000)
	n, from, err := c.ReadFrom(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", nil
	}
	if err != nil {
		tb.Fatal(err)
	}
	return string(b[:n]), from
}

func send(tb testing.TB, c net.PacketConn, text string, to net.Addr) {
	tb.Helper()
	if n, err := c.WriteTo([]byte(text), to); n != len(text) || err != nil {
		tb.Fatalf("sent %d bytes: %v", n, err)
	}
}

func TestSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a, b := n.NewMachine(), n.NewMachine()
		x, y := listen(t, a, 4001), listen(t, b, 0)
		if _, err := a.ListenUDP("udp", &net.UDPAddr{Port: 4001}); err == nil {
			t.Error("a port is open twice")
		}
		if z := listen(t, b, 0); z.LocalAddr().String() == y.LocalAddr().String() {
			t.Errorf("two sockets have the address %s", z.LocalAddr())
		}
		begun := time.Now()
		send(t, x, "hello", y.LocalAddr())
		if text, from := receive(t, y); text != "hello" || from.String() != x.LocalAddr().String() || time.Since(begun) != 10*time.Millisecond {
			t.Errorf("%q from %v after %v", text, from, time.Since(begun))
		}

		// A deadline that changes wakes a reader.
		go func() {
			time.Sleep(time.Second)
			x.SetReadDeadline(time.Now())
		}()
		x.SetReadDeadline(time.Time{})
		if _, _, err := x.ReadFrom(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a read with a deadline that passed: %v", err)
		}
		// So does closing.
		x.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Second)
			x.Close()
		}()
		if _, _, err := x.ReadFrom(make([]byte, 9)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read on a closed socket: %v", err)
		}
		if _, err := x.WriteTo([]byte("x"), y.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write on a closed socket: %v", err)
		}
		// The port is free again, and packets sent while it was closed are lost.
		send(t, y, "lost", x.LocalAddr())
		time.Sleep(time.Second)
		x = listen(t, a, 4001)
		send(t, y, "again", x.LocalAddr())
		if text, _ := receive(t, x); text != "again" {
			t.Errorf("got %q", text)
		}
	})
}

func TestLossIsThatOfTheSeed(t *testing.T) {
	pattern := func(seed uint64) (got string) {
		synctest.Test(t, func(t *testing.T) {
			n := New(seed, func(Site, Site) time.Duration { return time.Millisecond })
			defer n.Close()
			a, b := n.NewMachine(), n.NewMachine()
			b.SetLink(Link{Loss: 0.25})
			x, y := listen(t, a, 1), listen(t, b, 1)
			for i := range 1000 {
				send(t, x, fmt.Sprint(i), y.LocalAddr())
				time.Sleep(2 * time.Millisecond)
			}
			for text, _ := receive(t, y); text != ""; text, _ = receive(t, y) {
				got += text + " "
			}
			if _, lost := n.Stats(); lost < 200 || lost > 300 {
				t.Errorf("%d of 1000 packets are lost at a loss of 25%%", lost)
			}
		})
		return got
	}
	first := pattern(1)
	if pattern(1) != first {
		t.Error("one seed, two patterns of loss")
	}
	if pattern(2) == first {
		t.Error("another seed makes no difference")
	}
}

func TestPacketsAboveTheMTUAreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, time.Millisecond)
		a, b := n.NewMachine(), n.NewMachine()
		x, y := listen(t, a, 1), listen(t, b, 1)
		for _, narrow := range []*Machine{a, b} {
			narrow.SetLink(Link{MTU: 600})
			send(t, x, string(make([]byte, 573)), y.LocalAddr())
			if text, _ := receive(t, y); text != "" {
				t.Errorf("a packet of %d bytes passes an MTU of 600", len(text)+headers)
			}
			send(t, x, string(make([]byte, 572)), y.LocalAddr())
			if text, _ := receive(t, y); len(text) != 572 {
				t.Error("a packet of 600 bytes does not pass an MTU of 600")
			}
			narrow.SetLink(Link{})
		}
	})
}

func TestJitterDelaysAndReorders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a, b := n.NewMachine(), n.NewMachine()
		a.SetLink(Link{Jitter: 20 * time.Millisecond})
		x, y := listen(t, a, 1), listen(t, b, 1)
		begun := time.Now()
		for i := range 50 {
			send(t, x, string(rune('A'+i)), y.LocalAddr())
		}
		var got []rune
		for range 50 {
			text, _ := receive(t, y)
			if took := time.Since(begun); took < 10*time.Millisecond || took > 30*time.Millisecond {
				t.Fatalf("a packet took %v", took)
			}
			got = append(got, []rune(text)...)
		}
		ordered := true
		for i := range got[1:] {
			ordered = ordered && got[i] < got[i+1]
		}
		if ordered {
			t.Error("50 packets with jitter arrive in order")
		}
	})
}

func TestCutsLoseWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 100*time.Millisecond)
		a, b := n.NewMachine(), n.NewMachine()
		x, y := listen(t, a, 1), listen(t, b, 1)
		send(t, x, "too late", y.LocalAddr())
		time.Sleep(50 * time.Millisecond)
		b.Down()
		if text, _ := receive(t, y); text != "" {
			t.Errorf("%q arrives at a machine that is down", text)
		}
		send(t, x, "into nothing", y.LocalAddr())
		time.Sleep(time.Second)
		b.Down()
		b.Up()
		send(t, x, "still down", y.LocalAddr())
		if text, _ := receive(t, y); text != "" {
			t.Errorf("%q arrives though one of two reasons remains", text)
		}
		b.Up()
		send(t, x, "up", y.LocalAddr())
		if text, _ := receive(t, y); text != "up" {
			t.Errorf("got %q", text)
		}
		n.Partition([]*Machine{a})
		send(t, x, "across", y.LocalAddr())
		if text, _ := receive(t, y); text != "" {
			t.Errorf("%q crosses a partition", text)
		}
		n.Heal()
		send(t, x, "healed", y.LocalAddr())
		if text, _ := receive(t, y); text != "healed" {
			t.Errorf("got %q", text)
		}
	})
}

func TestMappingsOfNATs(t *testing.T) {
	for _, c := range []struct {
		kind                         NATKind
		sameMapping                  bool // all destinations see the same port
		samePort, sameHost, stranger bool // whether packets get in: from where it sent to, another port of that host, others
	}{
		{Firewall, true, true, false, false},
		{FullCone, true, true, true, true},
		{RestrictedCone, true, true, true, false},
		{PortRestricted, true, true, false, false},
		{Symmetric, false, true, false, false},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, time.Millisecond)
				public, other := n.NewMachine(), n.NewMachine()
				p1, p2, o := listen(t, public, 1), listen(t, public, 2), listen(t, other, 1)
				nat := n.NewNAT(c.kind)
				in := listen(t, nat.NewMachine(), 4001)

				send(t, in, "out", p1.LocalAddr())
				text, seen := receive(t, p1)
				if text != "out" {
					t.Fatalf("got %q", text)
				}
				enters := func(from net.PacketConn, want bool) {
					t.Helper()
					send(t, from, "in", seen)
					if text, who := receive(t, in); (text == "in") != want || want && who.String() != from.LocalAddr().String() {
						t.Errorf("from %s: %q, want it to get in: %v", from.LocalAddr(), text, want)
					}
				}
				enters(p1, c.samePort)
				enters(p2, c.sameHost)
				enters(o, c.stranger)

				send(t, in, "out", o.LocalAddr())
				if _, again := receive(t, o); (again.String() == seen.String()) != c.sameMapping {
					t.Errorf("one destination sees %s, another %s", seen, again)
				}

				time.Sleep(natLifetime + time.Second)
				enters(p1, false) // the mapping has expired
				send(t, in, "out", p1.LocalAddr())
				_, seen = receive(t, p1)
				enters(p1, true)
			})
		})
	}
}

func TestAddressesOfManyMachinesDiffer(t *testing.T) {
	n := newNet(t, 0)
	seen, nets := make(map[string]bool), make(map[string]bool)
	for i := range 5000 {
		ip := n.NewMachine().IP()
		if seen[ip.String()] || ip.IsPrivate() || !ip.IsGlobalUnicast() {
			t.Fatalf("machine %d has the address %s", i, ip)
		}
		seen[ip.String()] = true
		if i < 1000 {
			b := ip.As4()
			nets[fmt.Sprint(b[0], ".", b[1])] = true
		}
	}
	if len(nets) != 1000 {
		t.Errorf("1000 machines are in %d networks: routing tables would take too few of them", len(nets))
	}
}

func TestPathsHaveTwoDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a, b := n.NewMachine(), n.NewMachine()
		x, y := listen(t, a, 1), listen(t, b, 1)
		n.SetPath(a, b, Path{Latency: 300 * time.Millisecond})
		took := func(from, to net.PacketConn) time.Duration {
			begun := time.Now()
			send(t, from, "x", to.LocalAddr())
			if text, _ := receive(t, to); text != "x" {
				t.Errorf("got %q", text)
			}
			return time.Since(begun)
		}
		if there, back := took(x, y), took(y, x); there != 300*time.Millisecond || back != 10*time.Millisecond {
			t.Errorf("%v there and %v back, want 300ms and 10ms", there, back)
		}
		n.SetPath(a, b, Path{Loss: 1})
		send(t, x, "lost", y.LocalAddr())
		if text, _ := receive(t, y); text != "" {
			t.Errorf("%q passes a direction that loses everything", text)
		}
		if back := took(y, x); back != 10*time.Millisecond {
			t.Errorf("%v back", back)
		}
		if p := n.Path(a, b); p != (Path{Loss: 1}) {
			t.Errorf("the path is %+v", p)
		}
		if p := n.Path(b, a); p != (Path{Latency: 10 * time.Millisecond}) {
			t.Errorf("the way back is %+v", p)
		}
	})
}

func TestNeighborsShareAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a, other := n.NewMachine(), n.NewMachine()
		b := a.NewNeighbor()
		if a.IP() != b.IP() || a.ListenAddr() == b.ListenAddr() || a.Site() != b.Site() {
			t.Fatalf("%s and %s", a.ListenAddr(), b.ListenAddr())
		}
		x, y, z := listen(t, a, 4001), listen(t, b, 4002), listen(t, other, 1)
		if _, err := b.ListenUDP("udp", &net.UDPAddr{Port: 4001}); err == nil {
			t.Error("a port is open twice at one address")
		}
		ports := make(map[string]bool)
		for range 600 { // more than the distance between neighbors' ports
			ports[listen(t, a, 0).LocalAddr().String()] = true
			ports[listen(t, b, 0).LocalAddr().String()] = true
		}
		if len(ports) != 1200 {
			t.Errorf("1200 sockets have %d addresses", len(ports))
		}
		for _, c := range []net.PacketConn{x, y} {
			send(t, z, "in", c.LocalAddr())
			if text, _ := receive(t, c); text != "in" {
				t.Errorf("%s got %q", c.LocalAddr(), text)
			}
			send(t, c, "out", z.LocalAddr())
			if text, from := receive(t, z); text != "out" || from.String() != c.LocalAddr().String() {
				t.Errorf("%q comes from %v", text, from)
			}
		}
		begun := time.Now()
		send(t, x, "next door", y.LocalAddr())
		if text, _ := receive(t, y); text != "next door" || time.Since(begun) != 0 {
			t.Errorf("%q after %v", text, time.Since(begun))
		}

		// One is cut off without the other; they share the link.
		a.Down()
		send(t, z, "in", x.LocalAddr())
		send(t, z, "in", y.LocalAddr())
		if text, _ := receive(t, x); text != "" {
			t.Errorf("%q arrives at a machine that is down", text)
		}
		if text, _ := receive(t, y); text != "in" {
			t.Errorf("the neighbor of a machine that is down got %q", text)
		}
		a.SetLink(Link{MTU: 600})
		send(t, z, string(make([]byte, 900)), y.LocalAddr())
		if text, _ := receive(t, y); text != "" {
			t.Error("the neighbor has a link of its own")
		}
	})
}
