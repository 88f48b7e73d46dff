package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// NAT-PMP, RFC 6886. Upstream (v0.51 with go-netroute v0.4.0) has a client too, but on
// Linux it never finds the router: it asks for the route to 0.0.0.0, which is an error.

var pmpOpcodes = map[string]byte{"udp": 1, "tcp": 2}

// pmp is a router that speaks NAT-PMP.
type pmp struct{ to netip.AddrPort }

// findPMP asks a router for its public address.
func findPMP(ctx context.Context, to netip.AddrPort) (*leases, error) {
	c := pmp{to}
	if _, err := c.address(ctx, tries); err != nil {
		return nil, err
	}
	return newLeases(c), nil
}

func (c pmp) ask(ctx context.Context, request []byte, tries int) ([]byte, error) {
	return ask(ctx, c.to, request, tries, func([]byte) bool { return true })
}

func (c pmp) address(ctx context.Context, tries int) (netip.Addr, error) {
	b, err := c.ask(ctx, []byte{0, 0}, tries)
	if err != nil {
		return netip.Addr{}, err
	}
	return pmpAddress(b)
}

func (c pmp) mapPort(ctx context.Context, p port, outside uint16, lifetime time.Duration, tries int) (netip.AddrPort, error) {
	var outer netip.Addr
	if lifetime > 0 { // it may have another one by now
		var err error
		if outer, err = c.address(ctx, tries); err != nil {
			return netip.AddrPort{}, err
		}
	}
	request := make([]byte, 12)
	request[1] = pmpOpcodes[p.protocol]
	binary.BigEndian.PutUint16(request[4:], p.number)
	binary.BigEndian.PutUint16(request[6:], outside)
	binary.BigEndian.PutUint32(request[8:], uint32(lifetime/time.Second))
	b, err := c.ask(ctx, request, tries)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := pmpMapped(b, p)
	if err != nil || number == 0 {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(outer, number), nil
}

// pmpResult returns the error that a response reports (section 3.5).
func pmpResult(b []byte, length int) error {
	code := binary.BigEndian.Uint16(b[2:])
	switch {
	case code != 0:
		return fmt.Errorf("the router refuses, with the result code %d of NAT-PMP", code)
	case len(b) < length:
		return fmt.Errorf("the router's response has %d bytes, and not %d", len(b), length)
	default:
		return nil
	}
}

// pmpAddress reads the response with the public address.
func pmpAddress(b []byte) (netip.Addr, error) {
	if err := pmpResult(b, 12); err != nil {
		return netip.Addr{}, err
	}
	outer := netip.AddrFrom4([4]byte(b[8:12]))
	if !outer.IsGlobalUnicast() {
		return netip.Addr{}, fmt.Errorf("the router says that its address is %s", outer)
	}
	return outer, nil
}

// pmpMapped reads the response to the request for a mapping. The port is 0 for one
// that was removed.
func pmpMapped(b []byte, p port) (uint16, error) {
	if err := pmpResult(b, 16); err != nil {
		return 0, err
	}
	if got := binary.BigEndian.Uint16(b[8:]); got != p.number {
		return 0, fmt.Errorf("the router has mapped port %d, and not %d", got, p.number)
	}
	if binary.BigEndian.Uint32(b[12:]) == 0 {
		return 0, nil
	}
	return binary.BigEndian.Uint16(b[10:]), nil
}
