package simhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// handshakeTimeout is how long a dial waits for a reply, as in QUIC.
	handshakeTimeout = 5 * time.Second
	// idleTimeout is how long a connection lasts over a cut path, as in QUIC.
	idleTimeout = 30 * time.Second
	// memPacket is the unit of loss, in bytes.
	memPacket = 1200
	// memWindow is how many bytes a stream's writer may be ahead of its reader.
	memWindow = 512 << 10
	// memBacklog is how many connections wait for Accept.
	memBacklog = 1024
)

// Memory returns the options of a libp2p host on the machine whose connections
// have no packets: a write arrives at the other side as a whole, after the delay
// of the path and the links. That costs a hundredth of QUIC.
//
// It keeps QUIC's addresses, the time of handshakes and timeouts, latency,
// jitter, bandwidth, cuts and crashes, and the order and flow control of streams.
// It gives up encryption (peers are trusted to have the ID that they claim),
// congestion control, packets (lost data arrives late, as if sent again) and
// NATs.
func (m *Machine) Memory() []libp2p.Option {
	return []libp2p.Option{
		func(cfg *libp2p.Config) error {
			cfg.Transports = nil // removes QUIC, whose addresses this transport uses
			return nil
		},
		libp2p.Transport(func(key crypto.PrivKey, limits network.ResourceManager, gater connmgr.ConnectionGater) (*memTransport, error) {
			id, err := peer.IDFromPrivateKey(key)
			if err != nil {
				return nil, err
			}
			return &memTransport{m: m, id: id, key: key.GetPublic(), limits: limits, gater: gater}, nil
		}),
	}
}

// memTransport is one host's transport.
type memTransport struct {
	m      *Machine
	id     peer.ID
	key    crypto.PubKey
	limits network.ResourceManager
	gater  connmgr.ConnectionGater // nil without one

	mu       sync.Mutex
	listener *memListener // the first one, whose address is the source of dials; guarded by mu
}

var _ transport.Transport = (*memTransport)(nil)

var errNoAnswer = fmt.Errorf("timeout: no recent network activity: %w", os.ErrDeadlineExceeded)

func (t *memTransport) CanDial(a ma.Multiaddr) bool {
	_, err := quicAddr(a)
	return err == nil
}

func (t *memTransport) Protocols() []int { return []int{ma.P_QUIC_V1} }
func (t *memTransport) Proxy() bool      { return false }

// quicAddr parses /ip4/…/udp/…/quic-v1.
func quicAddr(a ma.Multiaddr) (netip.AddrPort, error) {
	if len(a) != 3 || a[2].Code() != ma.P_QUIC_V1 {
		return netip.AddrPort{}, fmt.Errorf("%s is not a QUIC address", a)
	}
	na, err := manet.ToNetAddr(a[:2])
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(na), nil
}

func quicMultiaddr(ap netip.AddrPort) ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", ap.Addr(), ap.Port()))
}

// Listen listens on an address.
func (t *memTransport) Listen(a ma.Multiaddr) (transport.Listener, error) {
	ap, err := quicAddr(a)
	if err != nil {
		return nil, err
	}
	if t.m.nat != nil || t.m.firewall != nil {
		return nil, errors.New("connections in memory do not support NATs")
	}
	port := ap.Port()
	if port == 0 {
		port = t.m.anyPort()
	}
	if !t.m.claim(port) {
		return nil, fmt.Errorf("listen udp %s:%d: address already in use", t.m.ip, port)
	}
	ap = netip.AddrPortFrom(t.m.ip, port)
	l := &memListener{t: t, ap: ap, addr: quicMultiaddr(ap), incoming: make(chan *memConn, memBacklog), done: make(chan struct{})}
	n := t.m.net
	n.mu.Lock()
	used := n.hubs[ap] != nil
	if !used {
		n.hubs[ap] = l
	}
	n.mu.Unlock()
	if used {
		return nil, fmt.Errorf("listen udp %s: address already in use", ap)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listener == nil {
		t.listener = l
	}
	return l, nil
}

// memListener listens on an address.
type memListener struct {
	t        *memTransport
	ap       netip.AddrPort
	addr     ma.Multiaddr
	incoming chan *memConn
	done     chan struct{}
	once     sync.Once
}

func (l *memListener) Accept() (transport.CapableConn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.done:
		return nil, transport.ErrListenerClosed
	}
}

func (l *memListener) Addr() net.Addr          { return net.UDPAddrFromAddrPort(l.ap) }
func (l *memListener) Multiaddr() ma.Multiaddr { return l.addr }

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		n := l.t.m.net
		n.mu.Lock()
		delete(n.hubs, l.ap)
		n.mu.Unlock()
		l.t.mu.Lock()
		if l.t.listener == l {
			l.t.listener = nil
		}
		l.t.mu.Unlock()
	})
	return nil
}

// offer passes a connection to the listener after its handshake.
func (l *memListener) offer(c *memConn) {
	select {
	case <-l.done:
		_ = c.Close() // returns nil
		return
	default:
	}
	select {
	case l.incoming <- c:
	default:
		_ = c.CloseWithError(network.ConnResourceLimitExceeded) // returns nil
	}
}

// Dial connects in one round trip, or fails without a reply within 5 seconds.
func (t *memTransport) Dial(ctx context.Context, raddr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	scope, err := t.limits.OpenConnection(network.DirOutbound, false, raddr)
	if err != nil {
		return nil, err
	}
	c, err := t.dial(ctx, raddr, p, scope)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return c, nil
}

func (t *memTransport) dial(ctx context.Context, raddr ma.Multiaddr, p peer.ID, scope network.ConnManagementScope) (*memConn, error) {
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	ap, err := quicAddr(raddr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, errNoAnswer)
	defer cancel()
	n := t.m.net
	n.mu.RLock()
	dst := n.sites[ap.Addr()]
	n.mu.RUnlock()
	silence := func() error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if dst == nil {
		return nil, silence()
	}
	if err := sleep(ctx, n.transit(t.m.site, dst, memPacket)); err != nil {
		return nil, err
	}
	n.mu.RLock()
	l := n.hubs[ap]
	n.mu.RUnlock()
	if l == nil || n.dead(t.m, l.t.m) {
		return nil, silence()
	}
	from := t.localAddr()
	admitted, refusal := l.t.admit(t, l, from)
	if err := sleep(ctx, n.transit(dst, t.m.site, memPacket)); err != nil || n.dead(t.m, l.t.m) {
		admitted.reject()
		if err == nil {
			err = silence()
		}
		return nil, err
	}
	switch {
	case refusal != nil:
		return nil, refusal
	case l.t.id != p:
		admitted.reject()
		return nil, sec.ErrPeerIDMismatch{Expected: p, Actual: l.t.id}
	}
	local := newMemConn(t, from, raddr, l.t)
	local.scope = scope
	admitted.pair(local)
	if t.gater != nil && !t.gater.InterceptSecured(network.DirOutbound, p, local) {
		_ = local.CloseWithError(network.ConnGated) // returns nil
		return nil, fmt.Errorf("secured connection gated")
	}
	// The other side completes the handshake half a round trip later.
	time.AfterFunc(n.transit(t.m.site, dst, memPacket), func() { l.offer(admitted) })
	return local, nil
}

// localAddr returns the source address of a dial: the listen address, as with
// QUIC, or an ephemeral one.
func (t *memTransport) localAddr() ma.Multiaddr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listener != nil {
		return t.listener.addr
	}
	return quicMultiaddr(netip.AddrPortFrom(t.m.ip, t.m.anyPort()))
}

// admit accepts or refuses a connection from another host, on the dialed side.
func (t *memTransport) admit(from *memTransport, l *memListener, addr ma.Multiaddr) (*memConn, error) {
	refused := func(why error) (*memConn, error) {
		return nil, &network.ConnError{Remote: true, ErrorCode: network.ConnResourceLimitExceeded, TransportError: why}
	}
	scope, err := t.limits.OpenConnection(network.DirInbound, false, addr)
	if err != nil {
		return refused(err)
	}
	if err := scope.SetPeer(from.id); err != nil {
		scope.Done()
		return refused(err)
	}
	c := newMemConn(t, l.addr, addr, from)
	c.scope = scope
	if t.gater != nil && !(t.gater.InterceptAccept(c) && t.gater.InterceptSecured(network.DirInbound, from.id, c)) {
		scope.Done()
		return nil, &network.ConnError{Remote: true, ErrorCode: network.ConnGated}
	}
	return c, nil
}

// sleep waits for d.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// transit returns how long a write of size bytes takes between two sites: the
// time to transmit it on both links, the path's latency and jitter, and the time
// to notice and resend lost packets.
func (n *Network) transit(from, to *site, size int) time.Duration {
	p := n.path(from, to)
	r := n.rng(sitePair{from.Index, to.Index})
	d := p.Latency
	if p.Jitter > 0 {
		d += time.Duration(r.float() * float64(p.Jitter))
	}
	if p.Loss > 0 {
		// The probe timeout of RFC 9002 for a settled round-trip time, doubled each
		// time, until it reaches idleTimeout.
		timeout := 3*p.Latency + 25*time.Millisecond
		for left := (size + memPacket - 1) / memPacket; left > 0; {
			again := 0
			for range left {
				if r.float() < p.Loss {
					again++
				}
			}
			if left = again; left > 0 && timeout < idleTimeout {
				d += timeout
				timeout *= 2
			} else if left > 0 {
				break
			}
		}
	}
	now := time.Now()
	d += from.up.reserve(now, from.link.Load().Up, size)
	d += to.down.reserve(now.Add(d), to.link.Load().Down, size)
	return d
}

// meter is one direction of a link, which transmits one write after another.
type meter struct {
	mu   sync.Mutex
	free time.Time // guarded by mu
}

// reserve returns how long after now the last bit is transmitted.
func (m *meter) reserve(now time.Time, rate, size int) time.Duration {
	if rate == 0 {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free.Before(now) {
		m.free = now
	}
	m.free = m.free.Add(time.Duration(float64(8*size) / float64(rate) * float64(time.Second)))
	return m.free.Sub(now)
}

// recheck checks all connections after the network was cut or healed.
func (n *Network) recheck() {
	n.mu.RLock()
	list := make([]*memPair, 0, len(n.pairs))
	for p := range n.pairs {
		list = append(list, p)
	}
	n.mu.RUnlock()
	for _, p := range list {
		p.recheck()
	}
}
