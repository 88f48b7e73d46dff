package portmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-netroute"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

const (
	// serverPort is that of NAT-PMP and of PCP.
	serverPort = 5351
	// leaseTime is what a mapping is asked for, and renewEvery how often it is renewed: a
	// router that has forgotten it, in a restart, gets it again soon.
	leaseTime, renewEvery = 2 * time.Minute, 20 * time.Second
	// firstWait is how long the first request waits for an answer; each repetition
	// waits twice as long (RFC 6886, section 3.1).
	firstWait, tries = 250 * time.Millisecond, 4
	// goodbye is how often the removal of a mapping is tried.
	goodbye = 2
)

// client speaks a protocol with a router.
type client interface {
	// mapPort asks for a mapping, and returns the address outside. The lifetime 0
	// removes it.
	mapPort(ctx context.Context, p port, outside uint16, lifetime time.Duration, tries int) (netip.AddrPort, error)
}

// leases keeps a client's mappings. It is a Router.
type leases struct {
	client
	group *lifecycle.Group

	mu       sync.Mutex
	mappings map[port]netip.AddrPort // invalid for those that the router refuses; guarded by mu
}

func newLeases(c client) *leases {
	l := &leases{client: c, group: lifecycle.NewGroup(context.Background()), mappings: make(map[port]netip.AddrPort)}
	l.group.Go(l.renew)
	return l
}

// AddMapping implements Router.
func (l *leases) AddMapping(ctx context.Context, protocol string, number int) error {
	p := port{protocol, uint16(number)}
	outer, err := l.mapPort(ctx, p, p.number, leaseTime, tries)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mappings[p] = outer // invalid with an error: it is tried again
	return err
}

// RemoveMapping implements Router.
func (l *leases) RemoveMapping(ctx context.Context, protocol string, number int) error {
	p := port{protocol, uint16(number)}
	l.mu.Lock()
	delete(l.mappings, p)
	l.mu.Unlock()
	_, err := l.mapPort(ctx, p, 0, 0, goodbye)
	return err
}

// GetMapping implements Router.
func (l *leases) GetMapping(protocol string, number int) (netip.AddrPort, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	outer := l.mappings[port{protocol, uint16(number)}]
	return outer, outer.IsValid()
}

// Close implements Router.
func (l *leases) Close() error {
	_ = l.group.Close() // it returns nil
	l.mu.Lock()
	mappings := l.mappings
	l.mappings = make(map[port]netip.AddrPort)
	l.mu.Unlock()
	for p := range mappings {
		if _, err := l.mapPort(context.Background(), p, 0, 0, goodbye); err != nil {
			return err // the router is gone
		}
	}
	return nil
}

func (l *leases) renew(ctx context.Context) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		l.mu.Lock()
		mappings := maps.Clone(l.mappings)
		l.mu.Unlock()
		for p, outer := range mappings {
			want := outer.Port()
			if !outer.IsValid() {
				want = p.number
			}
			outer, _ = l.mapPort(ctx, p, want, leaseTime, tries) // invalid with an error
			l.mu.Lock()
			if _, ok := l.mappings[p]; ok {
				l.mappings[p] = outer
			}
			l.mu.Unlock()
		}
	}
}

// ask sends a request, again and again, until its response comes: one with the same
// version and opcode, which fits accepts. A router that speaks an older version says so
// (RFC 6887, section 9).
func ask(ctx context.Context, to netip.AddrPort, request []byte, tries int, fits func(response []byte) bool) ([]byte, error) {
	wait := firstWait
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to)) // it takes packets only from there
	if err != nil {
		return nil, err
	}
	defer c.Close() // nothing is lost with it
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, maxResponse)
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
			if n >= minResponse && b[0] < request[0] {
				return nil, fmt.Errorf("the router speaks version %d, and not %d", b[0], request[0])
			}
			if n >= minResponse && b[0] == request[0] && b[1] == request[1]|0x80 && fits(b[:n]) {
				return b[:n], nil
			}
		}
		wait *= 2
	}
	return nil, errors.New("no answer")
}

const (
	// minResponse is how many bytes a response has at least, and maxResponse at most (RFC
	// 6887, section 7).
	minResponse, maxResponse = 4, 1100
)

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
