package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// router is one that a test controls.
type router struct {
	mu     sync.Mutex
	ports  map[port]uint16 // mapped
	silent bool            // it maps nothing
	closed bool
	hangs  chan struct{} // if not nil, AddMapping waits for it
}

var outside = netip.MustParseAddr("192.0.2.9")

func (r *router) AddMapping(_ context.Context, protocol string, number int) error {
	if r.hangs != nil {
		<-r.hangs
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports[port{protocol, uint16(number)}] = uint16(number + 1000)
	return nil
}

func (r *router) RemoveMapping(_ context.Context, protocol string, number int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ports, port{protocol, uint16(number)})
	return nil
}

func (r *router) GetMapping(protocol string, number int) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	outer, ok := r.ports[port{protocol, uint16(number)}]
	// An IPv4 address in the form that upstream gives it.
	return netip.AddrPortFrom(netip.AddrFrom16(outside.As16()), outer), ok && !r.silent
}

func (r *router) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// world is what a Manager sees in a test.
type world struct {
	mu      sync.Mutex
	listen  []ma.Multiaddr
	route   Route
	routers []*router // ever found
	absent  bool      // there is no router
	hangs   chan struct{}
	told    []string
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) list() []*router {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.routers)
}

func (w *world) start(t *testing.T) *Manager {
	t.Helper()
	m := Start(Config{
		Log: slog.New(slog.DiscardHandler),
		Listen: func() []ma.Multiaddr {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.listen
		},
		Route: func() Route {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.route
		},
		Changed: func(m Mapping, mapped bool) {
			text := "-"
			if mapped {
				text = "+"
			}
			w.set(func() { w.told = append(w.told, text+m.Protocol+" "+m.External.String()) })
		},
		Discover: []func(context.Context, Route) (Router, error){func(context.Context, Route) (Router, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.absent {
				return nil, errors.New("no router")
			}
			r := &router{ports: map[port]uint16{}, hangs: w.hangs}
			w.routers = append(w.routers, r)
			return r, nil
		}},
	})
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func multiaddrs(list ...string) (out []ma.Multiaddr) {
	for _, s := range list {
		out = append(out, ma.StringCast(s))
	}
	return out
}

func home() *world {
	return &world{
		listen: multiaddrs("/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/udp/4001/quic-v1/webtransport",
			"/ip4/127.0.0.1/tcp/4002", "/ip6/::/tcp/4003", "/p2p-circuit"),
		route: Route{Router: netip.MustParseAddr("192.168.1.1"), Own: netip.MustParseAddr("192.168.1.10")},
	}
}

// Ports that the host listens on over IPv4 are mapped, and no others; listeners that
// come and go are followed.
func TestListenersAreMapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := home()
		m := w.start(t)
		synctest.Wait()
		for listener, want := range map[string]string{
			"/ip4/0.0.0.0/tcp/4001":                      "/ip4/192.0.2.9/tcp/5001",
			"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport": "/ip4/192.0.2.9/udp/5001/quic-v1/webtransport",
			"/ip4/127.0.0.1/tcp/4002":                    "",
			"/ip6/::/tcp/4003":                           "",
			"/p2p-circuit":                               "",
		} {
			got := ""
			if a := m.GetMapping(ma.StringCast(listener)); a != nil {
				got = a.String()
			}
			if got != want {
				t.Errorf("%s is mapped to %q, not %q", listener, got, want)
			}
		}
		if s := m.State(); !s.Found || s.Missing != "" || len(s.Mappings) != 2 || !m.HasDiscoveredNAT() {
			t.Errorf("%+v", s)
		}
		w.set(func() { w.listen = multiaddrs("/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/tcp/4009") })
		m.Look()
		synctest.Wait()
		w.set(func() {
			want := []string{"+tcp 192.0.2.9:5001", "+udp 192.0.2.9:5001", "-udp 192.0.2.9:5001", "+tcp 192.0.2.9:5009"}
			if !slices.Equal(w.told, want) {
				t.Errorf("told %q, not %q", w.told, want)
			}
		})
		for _, r := range w.list() {
			r.mu.Lock()
			if _, stays := r.ports[port{"udp", 4001}]; stays {
				t.Error("the mapping of a closed listener stays")
			}
			r.mu.Unlock()
		}
	})
}

// A router that appears later, one that stops to map, and another one after a move are
// found.
func TestTheRouterIsLookedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := home()
		w.absent = true
		m := w.start(t)
		synctest.Wait()
		if s := m.State(); s.Found || s.Missing != noRouter {
			t.Errorf("without a router: %+v", s)
		}
		w.set(func() { w.absent = false })
		time.Sleep(again + look)
		synctest.Wait()
		if s := m.State(); len(s.Mappings) != 2 {
			t.Fatalf("with a router: %+v", s)
		}

		first := w.list()
		for _, r := range first {
			r.mu.Lock()
			r.silent = true
			r.mu.Unlock()
		}
		time.Sleep(look)
		synctest.Wait()
		if s := m.State(); !s.Found || s.Missing != refused || len(s.Mappings) != 0 {
			t.Errorf("a router that maps nothing: %+v", s)
		}
		time.Sleep(again + 2*look)
		synctest.Wait()
		if s := m.State(); len(s.Mappings) != 2 {
			t.Errorf("after another search: %+v", s)
		}

		second := w.list()
		w.set(func() { w.route.Own = netip.MustParseAddr("192.168.2.20") })
		time.Sleep(2 * look)
		synctest.Wait()
		if s := m.State(); len(w.list()) != len(second)+2 || len(s.Mappings) != 2 {
			t.Errorf("after a move, %d routers: %+v", len(w.list()), s)
		}
		for i, r := range second {
			if !r.closed {
				t.Errorf("router %d is not closed", i)
			}
		}
	})
}

// A router that does not answer holds nobody up: neither those who ask for the
// mappings, nor Close.
func TestAHungRouterHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := home()
		w.hangs = make(chan struct{})
		m := w.start(t)
		time.Sleep(look)
		if m.GetMapping(w.listen[0]) != nil {
			t.Error("it is mapped")
		}
		began := time.Now()
		if err := m.Close(); err == nil || time.Since(began) != closing {
			t.Errorf("Close took %v: %v", time.Since(began), err)
		}
		close(w.hangs)
		_ = m.group.Close()
	})
}

// pmpRouter answers as a router with NAT-PMP does, on loopback, after so many requests
// that stay unanswered.
type pmpRouter struct {
	*net.UDPConn
	mu  sync.Mutex
	got [][]byte // guarded by mu
}

func newPMPRouter(t *testing.T, drop int, says func(request []byte) []byte) *pmpRouter {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &pmpRouter{UDPConn: c}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, slices.Clone(b[:n]))
			dropped := len(r.got) <= drop
			r.mu.Unlock()
			if !dropped {
				_, _ = c.WriteToUDPAddrPort(says(b[:n]), from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return r
}

// honest maps port n to n+1000.
func honest(request []byte) []byte {
	if request[1] == 0 {
		return append([]byte{0, 128, 0, 0, 0, 0, 0, 1}, outside.AsSlice()...)
	}
	b := make([]byte, 16)
	b[1] = request[1] | 128
	copy(b[8:10], request[4:6])
	binary.BigEndian.PutUint16(b[10:], binary.BigEndian.Uint16(request[4:])+1000)
	copy(b[12:], request[8:12])
	return b
}

// mapAndRemove maps a port for both protocols, removes one, and closes the router.
func mapAndRemove(t *testing.T, p Router) {
	t.Helper()
	for _, protocol := range protocols {
		if err := p.AddMapping(t.Context(), protocol, 4001); err != nil {
			t.Fatal(err)
		}
		if got, ok := p.GetMapping(protocol, 4001); !ok || got != netip.AddrPortFrom(outside, 5001) {
			t.Errorf("%s: %v, %v", protocol, got, ok)
		}
	}
	if err := p.RemoveMapping(t.Context(), "udp", 4001); err != nil {
		t.Error(err)
	}
	if got, ok := p.GetMapping("udp", 4001); ok {
		t.Errorf("a removed mapping: %v", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestNATPMP(t *testing.T) {
	r := newPMPRouter(t, 1, honest) // it is asked again
	p, err := findPMP(t.Context(), r.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	mapAndRemove(t, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	want := [][]byte{
		{0, 0}, {0, 0},
		{0, 0}, {0, 2, 0, 0, 0x0f, 0xa1, 0x0f, 0xa1, 0, 0, 0, 120},
		{0, 0}, {0, 1, 0, 0, 0x0f, 0xa1, 0x0f, 0xa1, 0, 0, 0, 120},
		{0, 1, 0, 0, 0x0f, 0xa1, 0, 0, 0, 0, 0, 0},
		{0, 2, 0, 0, 0x0f, 0xa1, 0, 0, 0, 0, 0, 0},
	}
	if !slices.EqualFunc(r.got, want, slices.Equal) {
		t.Errorf("requests %v, not %v", r.got, want)
	}
}

// A router that refuses, or answers nonsense, maps nothing.
func TestNATPMPThatRefuses(t *testing.T) {
	for name, says := range map[string]func([]byte) []byte{
		"refuses": func(q []byte) []byte { b := honest(q); b[3] = 2; return b },
		"maps another port": func(q []byte) []byte {
			b := honest(q)
			if len(b) == 16 {
				b[9]++
			}
			return b
		},
		"is cut short":    func(q []byte) []byte { return honest(q)[:8] },
		"has no address":  func(q []byte) []byte { b := honest(q); clear(b[8:12]); return b },
		"maps for 0 time": func(q []byte) []byte { b := honest(q); clear(b[12:]); return b },
	} {
		r := newPMPRouter(t, 0, says)
		p, err := findPMP(t.Context(), r.LocalAddr().(*net.UDPAddr).AddrPort())
		if err != nil {
			continue
		}
		_ = p.AddMapping(t.Context(), "udp", 4001)
		if got, ok := p.GetMapping("udp", 4001); ok {
			t.Errorf("%s: mapped to %v", name, got)
		}
		if err := p.group.Close(); err != nil {
			t.Error(err)
		}
	}
}

// pcpServer maps port n to n+1000 for the machine own.
func pcpServer(own netip.Addr) func(request []byte) []byte {
	return func(request []byte) []byte {
		if request[0] != 2 { // it speaks NAT-PMP too, but is not to be asked
			return nil
		}
		b := slices.Clone(request)
		b[1] |= 128
		clear(b[8:24])
		if from := own.As16(); !slices.Equal(request[8:24], from[:]) {
			b[3] = 12 // ADDRESS_MISMATCH
			return b
		}
		if len(request) == pcpLength {
			binary.BigEndian.PutUint16(b[42:], binary.BigEndian.Uint16(request[40:])+1000)
			outer := outside.As16()
			copy(b[44:], outer[:])
		}
		return b
	}
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func TestPCP(t *testing.T) {
	r := newPMPRouter(t, 1, pcpServer(loopback)) // it is asked again
	p, err := findPCP(t.Context(), r.LocalAddr().(*net.UDPAddr).AddrPort(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	mapAndRemove(t, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) != 6 {
		t.Fatalf("%d requests: %v", len(r.got), r.got)
	}
	tcp, udp, noUDP, noTCP := r.got[2], r.got[3], r.got[4], r.got[5]
	for name, pair := range map[string][2][]byte{"tcp": {tcp, noTCP}, "udp": {udp, noUDP}} {
		add, remove := pair[0], pair[1]
		if add[36] != pcpProtocols[name] || add[7] != 120 || !slices.Equal(remove[4:8], make([]byte, 4)) {
			t.Errorf("%s: %v, and then %v", name, add, remove)
		}
		if !slices.Equal(add[24:42], remove[24:42]) {
			t.Errorf("%s is removed with another nonce, protocol or port: %v, %v", name, add, remove)
		}
	}
	if slices.Equal(tcp[24:36], udp[24:36]) {
		t.Error("two mappings have one nonce")
	}
}

// A router that speaks an older version, refuses, or answers nonsense, maps nothing.
func TestPCPThatRefuses(t *testing.T) {
	serve := pcpServer(loopback)
	for name, says := range map[string]func([]byte) []byte{
		"speaks NAT-PMP":    func(q []byte) []byte { return []byte{0, q[1] | 128, 0, 1} },
		"another's address": pcpServer(outside),
		"refuses":           func(q []byte) []byte { b := serve(q); b[3] = 2; return b },
		"is cut short":      func(q []byte) []byte { return serve(q)[:20] },
		"has no address":    func(q []byte) []byte { b := serve(q); clear(b[min(len(b), 44):]); return b },
		"maps for 0 time":   func(q []byte) []byte { b := serve(q); clear(b[4:8]); return b },
		"maps to no port":   func(q []byte) []byte { b := serve(q); clear(b[min(len(b), 42):min(len(b), 44)]); return b },
	} {
		r := newPMPRouter(t, 0, says)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		p, err := findPCP(ctx, r.LocalAddr().(*net.UDPAddr).AddrPort(), loopback)
		if err == nil {
			_ = p.AddMapping(ctx, "udp", 4001)
			if got, ok := p.GetMapping("udp", 4001); ok {
				t.Errorf("%s: mapped to %v", name, got)
			}
			if err := p.group.Close(); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}
}

// A response to another request is none.
func TestPCPAnswersItsRequest(t *testing.T) {
	request := make([]byte, pcpLength)
	for i := range request {
		request[i] = byte(i)
	}
	if !pcpAnswers(request, request) {
		t.Error("its own response is refused")
	}
	for _, i := range []int{24, 35, 36, 40, 41} { // nonce, protocol, inner port
		b := slices.Clone(request)
		b[i]++
		if pcpAnswers(b, request) {
			t.Errorf("byte %d may differ", i)
		}
	}
}

func FuzzPCP(f *testing.F) {
	request := make([]byte, pcpLength)
	request[0], request[1] = pcpVersion, pcpMap
	binary.BigEndian.PutUint16(request[40:], 4001)
	request[7] = 120
	good := pcpServer(netip.IPv6Unspecified())(request)
	f.Add(good)
	f.Add(good[:pcpHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		if !pcpAnswers(b, request) { // ask drops these
			return
		}
		if outer, err := pcpMapped(b); err != nil && outer.IsValid() || outer.IsValid() && !outer.Addr().Is4() {
			t.Errorf("%v: %v, %v", b, outer, err)
		}
	})
}

func FuzzNATPMP(f *testing.F) {
	f.Add(honest([]byte{0, 0}))
	f.Add(honest([]byte{0, 1, 0, 0, 0x0f, 0xa1, 0, 0, 0, 0, 0, 120}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 { // ask drops these
			return
		}
		if a, err := pmpAddress(b); err == nil && !a.Is4() {
			t.Errorf("%v: %v", b, a)
		}
		if outer, err := pmpMapped(b, port{"udp", 4001}); err != nil && outer != 0 {
			t.Errorf("%v: %d, %v", b, outer, err)
		}
	})
}
