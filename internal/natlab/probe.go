package natlab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"time"
)

// Probe is a set of sockets for UDP that finds out what a router does. Each is
// bound to the address of its host. They are the kernel's in a laboratory, and
// those of a simulated network.
type Probe struct {
	Inside   net.PacketConn // on a host behind the router
	Neighbor net.PacketConn // on another host behind it
	One      net.PacketConn // on a public host
	OneOther net.PacketConn // on the same host
	Two      net.PacketConn // on another public host

	// Patience is how long to wait for what is expected, and Moment for what is not.
	Patience, Moment time.Duration
}

// Measure returns what the router does, and where packets of Inside seem to come
// from. What it expects decides only how long it waits.
func (p Probe) Measure(expected Behavior) (b Behavior, outer netip.AddrPort, err error) {
	wait := func(is bool) time.Duration {
		if is {
			return p.Patience
		}
		return p.Moment
	}
	// observed returns where a packet to a public socket seems to come from.
	observed := func(by net.PacketConn, patience time.Duration) (netip.AddrPort, bool, error) {
		write(p.Inside, addrOf(by), "out")
		_, from, ok, err := read(by, patience)
		return from, ok, err
	}
	outer, ok, err := observed(p.One, wait(expected.Filtering != Blocked))
	if err != nil || !ok {
		return Behavior{Filtering: Blocked}, outer, err
	}
	// Inside has sent to nobody but One.
	write(p.Two, outer, "stranger")
	write(p.OneOther, outer, "address")
	write(p.One, outer, "port")
	heard := make(map[string]bool)
	for patience := p.Patience; ; {
		text, _, ok, err := read(p.Inside, patience)
		if err != nil {
			return b, outer, err
		}
		if !ok {
			break
		}
		heard[text] = true
		if text == "port" {
			patience = p.Moment // for those that it has overtaken
		}
	}
	switch {
	case heard["port"] && heard["address"] && heard["stranger"]:
		b.Filtering = EndpointIndependent
	case heard["port"] && heard["address"] && !heard["stranger"]:
		b.Filtering = AddressDependent
	case heard["port"] && !heard["address"] && !heard["stranger"]:
		b.Filtering = AddressAndPortDependent
	case len(heard) == 0:
		b.Filtering = Blocked
	}

	other, okOther, errOther := observed(p.OneOther, p.Patience)
	two, okTwo, errTwo := observed(p.Two, p.Patience)
	if err := errors.Join(errOther, errTwo); err != nil {
		return b, outer, err
	}
	switch {
	case !okOther || !okTwo:
	case outer == other && outer == two && outer == addrOf(p.Inside):
		b.Mapping = None
	case outer == other && outer == two:
		b.Mapping = EndpointIndependent
	case outer != other && outer == two || outer != two && other == outer:
		b.Mapping = AddressDependent
	default:
		b.Mapping = AddressAndPortDependent
	}
	b.KeepsPort = b.Mapping != None && outer.Port() == addrOf(p.Inside).Port()

	write(p.Neighbor, outer, "neighbor")
	text, _, _, err := read(p.Inside, wait(expected.Hairpin))
	b.Hairpin = text == "neighbor"
	return b, outer, err
}

// Side is one side of hole punching: a socket, and the router in front of it.
type Side struct {
	Kind Kind
	Conn net.PacketConn
}

// Punch lets both sides send to where the packets that a third socket gets from
// them come from, and reports whether a packet and its answer arrive. What it
// expects decides only how long it waits.
func Punch(a, b Side, meeting net.PacketConn, expected bool, patience, moment time.Duration) (bool, error) {
	// The mapping that a router makes for each destination is known only to whom the
	// packets reach.
	listens, sends := b, a
	if b.Kind.Behavior(UDP).Mapping == AddressAndPortDependent {
		listens, sends = a, b
	}
	seen := make(map[net.PacketConn]netip.AddrPort)
	for _, s := range []Side{listens, sends} {
		write(s.Conn, addrOf(meeting), "hello")
		_, from, ok, err := read(meeting, patience)
		if err != nil || !ok {
			return false, err
		}
		seen[s.Conn] = from
	}
	write(listens.Conn, seen[sends.Conn], "opens")
	write(sends.Conn, seen[listens.Conn], "comes")
	if !expected {
		patience = moment
	}
	_, from, ok, err := read(listens.Conn, patience)
	if err != nil || !ok {
		return false, err
	}
	write(listens.Conn, from, "answer")
	for {
		text, _, ok, err := read(sends.Conn, patience)
		if err != nil || !ok || text == "answer" {
			return ok, err
		}
	}
}

// write sends a packet. One that cannot be sent does not arrive, like others.
func write(c net.PacketConn, to netip.AddrPort, text string) {
	_, _ = c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to))
}

// read returns the next packet and its sender. It reports false if none comes.
func read(c net.PacketConn, patience time.Duration) (text string, from netip.AddrPort, ok bool, err error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", from, false, err
	}
	b := make([]byte, 100)
	n, sender, err := c.ReadFrom(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", from, false, nil
	case err != nil:
		return "", from, false, err
	}
	return string(b[:n]), addrPort(sender), true, nil
}

func addrOf(c net.PacketConn) netip.AddrPort { return addrPort(c.LocalAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := u.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
