package portmap

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// PCP, RFC 6887: the Port Control Protocol, which took the place of NAT-PMP.

const (
	pcpVersion  = 2
	pcpAnnounce = 0 // the opcode that asks whether there is a server
	pcpMap      = 1
	pcpHeader   = 24
	pcpLength   = pcpHeader + 36 // of a request or response with the opcode MAP
)

// pcpProtocols are the numbers of IANA.
var pcpProtocols = map[string]byte{"udp": 17, "tcp": 6}

// pcp is a router that speaks PCP. It is safe for concurrent use.
type pcp struct {
	to  netip.AddrPort
	own netip.Addr // of the machine: a router refuses packets from others (section 8.1)

	mu     sync.Mutex
	nonces map[port][12]byte // which a mapping is renewed and removed with; guarded by mu
}

// findPCP asks a router whether it speaks PCP.
func findPCP(ctx context.Context, to netip.AddrPort, own netip.Addr) (*leases, error) {
	c := &pcp{to: to, own: own, nonces: make(map[port][12]byte)}
	b, err := ask(ctx, to, c.request(pcpAnnounce, pcpHeader, 0), tries, func(b []byte) bool { return len(b) >= pcpHeader })
	if err == nil {
		err = pcpResult(b)
	}
	if err != nil {
		return nil, err
	}
	return newLeases(c), nil
}

// request returns a request with its header (section 7.1).
func (c *pcp) request(opcode byte, length int, lifetime time.Duration) []byte {
	b := make([]byte, length)
	b[0], b[1] = pcpVersion, opcode
	binary.BigEndian.PutUint32(b[4:], uint32(lifetime/time.Second))
	own := c.own.As16()
	copy(b[8:], own[:])
	return b
}

func (c *pcp) nonce(p port) [12]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.nonces[p]
	if !ok {
		_, _ = rand.Read(n[:]) // it never fails
		c.nonces[p] = n
	}
	return n
}

func (c *pcp) mapPort(ctx context.Context, p port, outside uint16, lifetime time.Duration, tries int) (netip.AddrPort, error) {
	request := c.request(pcpMap, pcpLength, lifetime)
	nonce := c.nonce(p)
	copy(request[24:], nonce[:])
	request[36] = pcpProtocols[p.protocol]
	binary.BigEndian.PutUint16(request[40:], p.number)
	binary.BigEndian.PutUint16(request[42:], outside)
	any4 := netip.IPv4Unspecified().As16()
	copy(request[44:], any4[:])
	b, err := ask(ctx, c.to, request, tries, func(b []byte) bool { return pcpAnswers(b, request) })
	if err != nil {
		return netip.AddrPort{}, err
	}
	return pcpMapped(b)
}

// pcpAnswers reports whether a response is the one to a request with the opcode MAP:
// with the same nonce, protocol and inner port (section 11.4).
func pcpAnswers(b, request []byte) bool {
	return len(b) >= pcpLength && bytes.Equal(b[24:37], request[24:37]) && bytes.Equal(b[40:42], request[40:42])
}

// pcpResult returns the error that a response reports (section 7.4).
func pcpResult(b []byte) error {
	if code := b[3]; code != 0 {
		return fmt.Errorf("the router refuses, with the result code %d of PCP", code)
	}
	return nil
}

// pcpMapped reads the response to the request for a mapping. The address is invalid for
// one that was removed.
func pcpMapped(b []byte) (netip.AddrPort, error) {
	if err := pcpResult(b); err != nil {
		return netip.AddrPort{}, err
	}
	if binary.BigEndian.Uint32(b[4:]) == 0 {
		return netip.AddrPort{}, nil
	}
	outer := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	number := binary.BigEndian.Uint16(b[42:])
	if !outer.Is4() || !outer.IsGlobalUnicast() || number == 0 {
		return netip.AddrPort{}, fmt.Errorf("the router says that its address is %s, and the port %d", outer, number)
	}
	return netip.AddrPortFrom(outer, number), nil
}
