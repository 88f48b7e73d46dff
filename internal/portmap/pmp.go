package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-netroute"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// NAT-PMP, RFC 6886. Upstream (v0.51 with go-netroute v0.4.0) has a client too, but on
// Linux it never finds the router: it asks for the route to 0.0.0.0, which is an error.

const (
	pmpPort = 5351
	// pmpLifetime is what a mapping is asked for, and pmpRenew how often it is renewed:
	// a router that has forgotten it, in a restart, gets it again soon.
	pmpLifetime, pmpRenew = 2 * time.Minute, 20 * time.Second
	// pmpFirst is how long the first request waits for an answer; each repetition
	// waits twice as long (section 3.1).
	pmpFirst, pmpTries = 250 * time.Millisecond, 4
	// goodbye is how often the removal of a mapping is tried.
	goodbye = 2
)

var pmpOpcodes = map[string]byte{"udp": 1, "tcp": 2}

// pmp is a router that speaks NAT-PMP.
type pmp struct {
	to    netip.AddrPort
	group *lifecycle.Group

	mu       sync.Mutex
	outer    netip.Addr      // invalid while the router does not know it; guarded by mu
	mappings map[port]uint16 // the ports outside, 0 for those that the router refuses; guarded by mu
}

// findPMP asks a router for its public address.
func findPMP(ctx context.Context, to netip.AddrPort) (*pmp, error) {
	r := &pmp{to: to, mappings: make(map[port]uint16)}
	if err := r.address(ctx); err != nil {
		return nil, err
	}
	r.group = lifecycle.NewGroup(context.Background())
	r.group.Go(r.renew)
	return r, nil
}

func (r *pmp) address(ctx context.Context) error {
	b, err := r.ask(ctx, []byte{0, 0}, pmpTries)
	var outer netip.Addr
	if err == nil {
		outer, err = pmpAddress(b)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outer = outer
	return err
}

// AddMapping implements Router.
func (r *pmp) AddMapping(ctx context.Context, protocol string, number int) error {
	p := port{protocol, uint16(number)}
	outside, err := r.mapPort(ctx, p, p.number, pmpLifetime, pmpTries)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mappings[p] = outside // 0 with an error: it is tried again
	return err
}

// RemoveMapping implements Router.
func (r *pmp) RemoveMapping(ctx context.Context, protocol string, number int) error {
	p := port{protocol, uint16(number)}
	r.mu.Lock()
	delete(r.mappings, p)
	r.mu.Unlock()
	_, err := r.mapPort(ctx, p, 0, 0, goodbye)
	return err
}

// GetMapping implements Router.
func (r *pmp) GetMapping(protocol string, number int) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	outside := r.mappings[port{protocol, uint16(number)}]
	return netip.AddrPortFrom(r.outer, outside), outside != 0 && r.outer.IsValid()
}

// Close implements Router.
func (r *pmp) Close() error {
	_ = r.group.Close() // it returns nil
	r.mu.Lock()
	mappings := r.mappings
	r.mappings = make(map[port]uint16)
	r.mu.Unlock()
	for p := range mappings {
		if _, err := r.mapPort(context.Background(), p, 0, 0, goodbye); err != nil {
			return err // the router is gone
		}
	}
	return nil
}

func (r *pmp) renew(ctx context.Context) {
	ticker := time.NewTicker(pmpRenew)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		_ = r.address(ctx) // with an error it has none, and nothing is mapped
		r.mu.Lock()
		mappings := make(map[port]uint16)
		for p, outside := range r.mappings {
			mappings[p] = outside
		}
		r.mu.Unlock()
		for p, outside := range mappings {
			if outside == 0 {
				outside = p.number
			}
			outside, _ = r.mapPort(ctx, p, outside, pmpLifetime, pmpTries)
			r.mu.Lock()
			if _, ok := r.mappings[p]; ok {
				r.mappings[p] = outside
			}
			r.mu.Unlock()
		}
	}
}

// mapPort asks for a mapping, and returns the port outside. The lifetime 0 removes it.
func (r *pmp) mapPort(ctx context.Context, p port, outside uint16, lifetime time.Duration, tries int) (uint16, error) {
	request := make([]byte, 12)
	request[1] = pmpOpcodes[p.protocol]
	binary.BigEndian.PutUint16(request[4:], p.number)
	binary.BigEndian.PutUint16(request[6:], outside)
	binary.BigEndian.PutUint32(request[8:], uint32(lifetime/time.Second))
	b, err := r.ask(ctx, request, tries)
	if err != nil {
		return 0, err
	}
	return pmpMapped(b, p)
}

// ask sends a request, again and again, until its response comes.
func (r *pmp) ask(ctx context.Context, request []byte, tries int) ([]byte, error) {
	wait := pmpFirst
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.to)) // it takes packets only from there
	if err != nil {
		return nil, err
	}
	defer c.Close() // nothing is lost with it
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 64)
	for range tries {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return nil, err
		}
		if _, err := c.Write(request); err != nil {
			return nil, err
		}
		for {
			n, err := c.Read(b)
			if err != nil {
				if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
					break
				}
				return nil, err // nobody listens there
			}
			if n >= 4 && b[0] == 0 && b[1] == request[1]|0x80 {
				return b[:n], nil
			}
		}
		wait *= 2
	}
	return nil, errors.New("no answer")
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

// defaultRoute returns the default route for IPv4. Any address that nobody has a route
// of his own to will do; nothing is sent there.
func defaultRoute() (r Route) {
	routes, err := netroute.New()
	if err != nil {
		return r
	}
	_, router, own, err := routes.Route(net.IPv4(198, 51, 100, 1))
	if err != nil {
		return r
	}
	r.Router, _ = netip.AddrFromSlice(router.To4())
	r.Own, _ = netip.AddrFromSlice(own.To4())
	return r
}
