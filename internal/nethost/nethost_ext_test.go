package nethost_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	libp2pconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var loopback = ma.StringCast("/ip4/127.0.0.1/tcp/0")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dialer(h *nethost.Host, via host.Host) nethost.Dialer {
	return nethost.Dialer{Host: h, Via: via, Refusal: func(peer.ID) error { return nil }}
}

// backingOff is a host whose swarm refuses the first dials because of another one, with
// a cause or errors for addresses.
type backingOff struct {
	host.Host
	left, dials int
	other       int // the dial during which the other one succeeds; 0 for none
	cause       error
	addrs       []swarm.TransportError
}

func (h *backingOff) Connect(ctx context.Context, p peer.AddrInfo) error {
	h.dials++
	if h.left--; h.left >= 0 {
		if h.dials == h.other {
			if err := h.Host.Connect(ctx, p); err != nil {
				return err
			}
		}
		return &swarm.DialError{Peer: p.ID, Cause: h.cause, DialErrors: h.addrs}
	}
	return h.Host.Connect(ctx, p)
}

// A dial is not refused because another one at the same time has failed, which
// would hide why (pitfall 66); and it is not tried forever.
func TestPitfall66BackoffOfAnotherDialHidesNothing(t *testing.T) {
	a, b := hosttest.New(t, loopback), hosttest.New(t, loopback)
	once := &backingOff{Host: a, left: 1, cause: swarm.ErrDialBackoff}
	must(t, dialer(a, once).Connect(t.Context(), hosttest.Info(b)))
	must(t, a.Disconnect(b.ID()))
	always := &backingOff{Host: a, left: 1000, cause: swarm.ErrDialBackoff}
	err := dialer(a, always).Connect(t.Context(), hosttest.Info(b))
	var failed *nethost.ConnectError
	if !errors.As(err, &failed) || failed.ID != b.ID() || !errors.Is(err, swarm.ErrDialBackoff) || always.dials != 2 {
		t.Errorf("%v after %d dials", err, always.dials)
	}
}

// A dial through relays is not refused because one that was given up was dialing the
// same peer through them; and it is not tried forever.
func TestADialThatAnotherOvertakesIsMadeAgain(t *testing.T) {
	a, b := hosttest.New(t, loopback), hosttest.New(t, loopback)
	circuit := ma.StringCast("/ip4/127.0.0.1/tcp/1/p2p/" + a.ID().String() + "/p2p-circuit")
	refused := swarm.TransportError{Address: loopback, Cause: errTest}
	overtaken := swarm.TransportError{Address: circuit, Cause: errors.New("concurrent active dial succeeded")}
	failed := swarm.TransportError{Address: circuit, Cause: errTest}
	for _, c := range []struct {
		left, dials int
		errs        []swarm.TransportError
	}{
		{2, 3, []swarm.TransportError{refused, overtaken, overtaken}},
		{1000, 4, []swarm.TransportError{overtaken}},
		{1000, 1, []swarm.TransportError{overtaken, failed}},
		{1000, 1, []swarm.TransportError{refused}},
	} {
		via := &backingOff{Host: a, left: c.left, addrs: c.errs}
		err := dialer(a, via).Connect(t.Context(), hosttest.Info(b))
		if (err == nil) != (c.left < 1000) || via.dials != c.dials {
			t.Errorf("%v, at first %v: %v after %d dials", c.errs, c.left, err, via.dials)
		}
		must(t, a.Disconnect(b.ID()))
	}
	// If the other one connects them, be it at the last moment, that is what was wanted.
	for _, other := range []int{1, 4} {
		via := &backingOff{Host: a, left: 1000, other: other, addrs: []swarm.TransportError{overtaken}}
		if err := dialer(a, via).Connect(t.Context(), hosttest.Info(b)); err != nil || via.dials != other {
			t.Errorf("connected meanwhile: %v after %d dials, want %d", err, via.dials, other)
		}
		must(t, a.Disconnect(b.ID()))
	}
}

// lookingUp is a host that looks a peer up twice, as a routed host does if what it has
// found first cannot be dialed.
type lookingUp struct {
	host.Host
	again []bool
}

func (l *lookingUp) Connect(ctx context.Context, p peer.AddrInfo) error {
	for range 2 {
		l.again = append(l.again, nethost.LookedUp(ctx, p.ID))
	}
	return errTest
}

func TestTheSecondLookupOfADialIsKnown(t *testing.T) {
	a := hosttest.New(t)
	via := &lookingUp{Host: a}
	for range 2 {
		if err := dialer(a, via).Connect(t.Context(), peer.AddrInfo{ID: hosttest.New(t).ID()}); err == nil {
			t.Error("the dial succeeded")
		}
	}
	if want := []bool{false, true, false, true}; !slices.Equal(via.again, want) {
		t.Errorf("%v, want %v", via.again, want)
	}
	if nethost.LookedUp(t.Context(), a.ID()) {
		t.Error("a lookup for no dial is a second one")
	}
}

// Errors describe the code with which the other side closed, once.
func TestGoldenReasonsOfTheOtherSide(t *testing.T) {
	told := make(map[string]bool)
	var texts []golden.Text
	a, id := hosttest.New(t), hosttest.New(t).ID()
	text := func(err error) string {
		return dialer(a, failing{a, err}).Connect(t.Context(), peer.AddrInfo{ID: id}).Error()
	}
	for _, code := range []network.ConnErrorCode{network.ConnGated, network.ConnResourceLimitExceeded, network.ConnGarbageCollected} {
		closed := func(remote bool) string {
			cause := fmt.Errorf("dial: %w", &network.ConnError{Remote: remote, ErrorCode: code})
			return text(&swarm.DialError{DialErrors: []swarm.TransportError{{Address: ma.StringCast("/ip4/127.0.0.1/tcp/1"), Cause: cause}}})
		}
		if len(closed(true)) <= len(closed(false)) || told[closed(true)] {
			t.Errorf("%#x: %q", code, closed(true))
		}
		told[closed(true)] = true
		texts = append(texts, golden.Text{Name: fmt.Sprintf("closed with %#x", code), Text: closed(true)})
	}
	golden.Check(t, "connections", append(texts,
		golden.Text{Name: "lost at once", Text: text(nethost.ErrLostAtOnce)},
		golden.Text{Name: "no address", Text: text(swarm.ErrNoAddresses)},
		golden.Text{Name: "no time", Text: text(context.DeadlineExceeded)},
	), id.String(), "ID")
}

// The error for a DNS name that does not resolve names it (causes travel).
func TestGoldenNamesThatResolveToNothing(t *testing.T) {
	name := ma.StringCast("/dns4/nobody.invalid/tcp/1")
	a, b := hosttest.New(t), hosttest.New(t)
	got := dialer(a, failing{a, &swarm.DialError{Cause: swarm.ErrNoGoodAddresses}}).Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{name}})
	if got == nil || !errors.Is(got, swarm.ErrNoGoodAddresses) || !strings.Contains(got.Error(), name.String()) {
		t.Errorf("%v", got)
	}
	golden.Check(t, "names", []golden.Text{golden.Of("resolves to nothing", got)}, b.ID().String(), "ID")
}

type failing struct {
	host.Host
	err error
}

func (f failing) Connect(context.Context, peer.AddrInfo) error { return f.err }

// A libp2p.New that fails late, or panics in a callback of the application's,
// leaves nothing running (pitfall 70).
func TestPitfall70LateFailureLeavesNothing(t *testing.T) {
	for name, opt := range map[string]libp2p.Option{
		"two sources of relays":           libp2p.ChainOptions(libp2p.EnableRelay(), libp2p.EnableAutoRelayWithStaticRelays([]peer.AddrInfo{{ID: "x"}}, autorelay.WithStaticRelays([]peer.AddrInfo{{ID: "x"}}))),
		"a transport that cannot start":   libp2p.Transport(func() (*tcp.TcpTransport, error) { return nil, errTest }),
		"an option that fails":            func(*libp2p.Config) error { return errTest },
		"a transport that exists already": libp2p.ChainOptions(libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(tcp.NewTCPTransport)),
	} {
		t.Run(name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			h, err := nethost.New(hosttest.Config(t, opt))
			if err == nil {
				must(t, h.Close())
				t.Fatal("no error")
			}
			goleak.VerifyNone(t, leaktest.Ignored(leaks)...)
		})
	}
	t.Run("a panic", func(t *testing.T) {
		leaks := goleak.IgnoreCurrent()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = nethost.New(hosttest.Config(t, libp2p.Transport(func() *tcp.TcpTransport { panic(errTest) })))
		}()
		goleak.VerifyNone(t, leaktest.Ignored(leaks)...)
	})
}

var errTest = errors.New("test")

// What the application brings takes the place of ours, or composes with it.
func TestPartsOfTheApplicationAreUsed(t *testing.T) {
	conns, err := libp2pconnmgr.NewConnManager(10, 20)
	must(t, err)
	peers, err := pstoremem.NewPeerstore()
	must(t, err)
	extra := ma.StringCast("/ip4/192.0.2.1/tcp/7")
	cfg := hosttest.Config(t,
		libp2p.ConnectionManager(conns), libp2p.Peerstore(peers), libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.UserAgent("theirs"),
		libp2p.AddrsFactory(func(list []ma.Multiaddr) []ma.Multiaddr { return append(list, extra) }))
	var asked atomic.Int64
	cfg.AddrsFactory = func(list []ma.Multiaddr) []ma.Multiaddr { asked.Add(1); return list }
	cfg.NewLimits = func() (network.ResourceManager, error) { t.Error("our resource manager is made"); return nil, errTest }
	var next connmgr.ConnectionGater
	cfg.Gater = func(n connmgr.ConnectionGater) connmgr.ConnectionGater { next = n; return n }
	h, err := nethost.New(cfg)
	must(t, err)
	defer h.Close()
	hosttest.Listen(t, h, loopback, ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"))
	if h.ConnManager() != connmgr.ConnManager(conns) || h.Peerstore() != peers || next != nil {
		t.Errorf("%T, %T and %v", h.ConnManager(), h.Peerstore(), next)
	}
	if list := h.Addrs(); !slices.ContainsFunc(list, extra.Equal) || len(list) != 3 || asked.Load() == 0 {
		t.Errorf("announced: %v, ours asked %d times", list, asked.Load())
	}
	other := hosttest.New(t, loopback)
	must(t, dialer(other, other).Connect(t.Context(), hosttest.Info(h)))
}

// However many listeners there are, and whichever of them fails, the host's
// addresses change once.
func TestListenersAreAnnouncedTogether(t *testing.T) {
	quic, never := ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"), ma.StringCast("/ip4/192.0.2.1/tcp/0")
	for name, row := range map[string]struct {
		list  []ma.Multiaddr
		bound int
	}{
		"all bind":        {[]ma.Multiaddr{loopback, quic, ma.StringCast("/ip4/127.0.0.1/tcp/0/ws")}, 3},
		"the last fails":  {[]ma.Multiaddr{loopback, quic, never}, 2},
		"the first fails": {[]ma.Multiaddr{never, loopback, quic}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := nethost.New(hosttest.Config(t))
			must(t, err)
			defer h.Close()
			sub, err := h.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
			must(t, err)
			defer sub.Close()
			if failed := h.Listen(row.list); len(failed) != len(row.list)-row.bound {
				t.Errorf("failed: %v", failed)
			}
			ev := (<-sub.Out()).(event.EvtLocalAddressesUpdated)
			if len(ev.Current) != row.bound || len(h.Addrs()) != row.bound {
				t.Errorf("announced %v at first, now %v", ev.Current, h.Addrs())
			}
		})
	}
}

// Two addresses share a TCP port if their protocols can be distinguished on it.
func TestSharedTCP(t *testing.T) {
	for _, row := range []struct {
		a, b  string
		share bool
	}{
		{"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/ws", true},
		{"/ip4/0.0.0.0/tcp/1/ws", "/ip4/0.0.0.0/tcp/1/tls/ws", true},
		{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", false},
		{"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2/ws", false},
		{"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.2/tcp/1/ws", false},
		{"/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1/ws", false},
		{"/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/udp/1/webrtc-direct", false},
	} {
		one, _ := nethost.SharedTCP([]ma.Multiaddr{ma.StringCast(row.a), ma.StringCast(row.b)})
		if (one != nil) != row.share {
			t.Errorf("%s and %s: shared is %v", row.a, row.b, one != nil)
		}
	}
}

// A name for WebSocket with TLS is resolved, and stays as the name that the
// certificate must have.
func TestNamesForWebSocketWithTLS(t *testing.T) {
	names := &madns.MockResolver{IP: map[string][]net.IPAddr{"boot.test": {{IP: net.IPv4(127, 0, 0, 1)}}}}
	resolver, err := madns.NewResolver(madns.WithDomainResolver("test.", names))
	must(t, err)
	h, err := nethost.New(hosttest.Config(t, libp2p.MultiaddrResolver(swarm.ResolverFromMaDNS{Resolver: resolver})))
	must(t, err)
	defer func() { must(t, h.Close()) }()
	for _, name := range []string{"/dns4/boot.test/tcp/1/wss", "/dns/boot.test/tcp/1/tls/ws"} {
		asked := nethost.Names{Dialer: dialer(h, h), Addrs: []ma.Multiaddr{ma.StringCast(name)}}
		failed := asked.Ask(t.Context(), func(peer.AddrInfo) { t.Error("nobody is there, and somebody answers") })
		if len(failed) != 1 || !strings.Contains(failed[0].Error(), name+" at /ip4/127.0.0.1/tcp/1/tls/sni/boot.test/ws: ") {
			t.Errorf("%s: %v", name, failed)
		}
	}
}

// asking is a host that tells of which connection somebody waits to be identified.
type asking struct {
	host.Host
	service identifying
}

type identifying struct {
	identify.IDService
	asked func(network.Conn)
}

func (a asking) IDService() identify.IDService { return a.service }

func (s identifying) IdentifyWait(c network.Conn) <-chan struct{} {
	s.asked(c)
	return s.IDService.IdentifyWait(c)
}

// processes are two with one identity, which know the addresses of a host. Each answers
// streams once its channel is closed.
func processes(t *testing.T, one *nethost.Host, answer [2]chan struct{}) (two [2]*nethost.Host) {
	t.Helper()
	cfg := hosttest.Config(t)
	for i := range two {
		h, err := nethost.New(cfg)
		must(t, err)
		t.Cleanup(func() { _ = h.Close() })
		hosttest.Listen(t, h, loopback)
		h.Peerstore().AddAddrs(one.ID(), one.Addrs(), time.Hour)
		h.Network().SetStreamHandler(func(s network.Stream) {
			select {
			case <-answer[i]:
			case <-t.Context().Done():
				_ = s.Reset()
				return
			}
			if proto, handle, err := h.Mux().Negotiate(s); err == nil && s.SetProtocol(proto) == nil {
				_ = handle(proto, s)
			}
		})
		two[i] = h
	}
	return two
}

// Streams take the connection on which the peer answers identify, whichever is newer,
// and wait for it.
func TestStreamsTakeTheConnectionThatIsAnswered(t *testing.T) {
	for _, silent := range []int{0, 1} {
		t.Run(fmt.Sprint("silent ", silent), func(t *testing.T) {
			one := hosttest.New(t, loopback)
			answer, never := make(chan struct{}), make(chan struct{})
			order := [2]chan struct{}{answer, answer}
			order[silent] = never
			var want network.Conn
			came := make(chan network.Conn, 2)
			watch := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) { came <- c }}
			one.Network().Notify(watch)
			defer one.Network().StopNotify(watch)
			for i, h := range processes(t, one, order) {
				h.SetStreamHandler("/test", func(s network.Stream) { _ = s.Close() })
				_, err := h.Network().DialPeer(t.Context(), one.ID())
				must(t, err)
				if c := <-came; i != silent {
					want = c
				}
			}
			id := want.RemotePeer()
			opened := make(chan network.Stream, 2)
			for _, open := range []func() (network.Stream, error){
				func() (network.Stream, error) { return one.NewStream(t.Context(), id, "/other", "/test") },
				func() (network.Stream, error) { return one.Answering(t.Context(), id).NewStream(t.Context()) },
			} {
				go func() {
					s, err := open()
					if err != nil {
						t.Error(err)
					}
					opened <- s
				}()
			}
			close(answer)
			for range 2 {
				if s := <-opened; s != nil && s.Conn() != want {
					t.Error("a stream was opened on the silent connection")
				}
			}
		})
	}
}

// A stream is opened on another connection of the peer if the chosen one closes while
// the protocol is negotiated.
func TestAStreamMovesWhenTheChosenConnectionCloses(t *testing.T) {
	one := hosttest.New(t, loopback)
	answer := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	two := processes(t, one, answer)
	came := make(chan network.Conn, 2)
	watch := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) { came <- c }}
	one.Network().Notify(watch)
	defer one.Network().StopNotify(watch)
	var conns [2]network.Conn
	for i, h := range two {
		_, err := h.Network().DialPeer(t.Context(), one.ID())
		must(t, err)
		conns[i] = <-came
	}
	two[0].SetStreamHandlerMatch("/test", func(p protocol.ID) bool {
		if p != "/test" {
			return false
		}
		_ = two[0].Network().ClosePeer(one.ID())
		close(answer[1])
		return true
	}, func(s network.Stream) { _ = s.Reset() })
	two[1].SetStreamHandler("/test", func(s network.Stream) { _ = s.Close() })
	close(answer[0])
	s, err := one.NewStream(t.Context(), two[0].ID(), "/test")
	must(t, err)
	if s.Conn() != conns[1] {
		t.Error("the stream is not on the connection that is open")
	}
}

// A peer is identified by the connection that stays, if another one, which was there
// earlier, ends before it is identified: by one that the peer opens, or by a dial.
func TestAPeerIsIdentifiedByTheConnectionThatStays(t *testing.T) {
	for name, dials := range map[string]bool{"the peer dials": true, "this node dials": false} {
		t.Run(name, func(t *testing.T) {
			one, answer := hosttest.New(t, loopback), make(chan struct{})
			two := processes(t, one, [2]chan struct{}{answer, answer})
			came, went := make(chan network.Conn, 2), make(chan network.Conn, 2)
			watch := &network.NotifyBundle{
				ConnectedF:    func(_ network.Network, c network.Conn) { came <- c },
				DisconnectedF: func(_ network.Network, c network.Conn) { went <- c },
			}
			one.Network().Notify(watch)
			defer one.Network().StopNotify(watch)
			dial := func(from *nethost.Host) network.Conn {
				_, err := from.Network().DialPeer(t.Context(), one.ID())
				must(t, err)
				return <-came
			}
			first := dial(two[0])
			service := one.Host.(interface{ IDService() identify.IDService }).IDService()
			one.Host = asking{one.Host, identifying{service, func(c network.Conn) {
				if dials && c == first {
					dial(two[1])
				}
				if c == first {
					must(t, two[0].Network().ClosePeer(one.ID()))
					<-went
				}
				if dials != (c == first) {
					close(answer)
				}
			}}}
			if err := dialer(one, one).ConnectAndIdentify(t.Context(), hosttest.Info(two[1])); err != nil {
				t.Error(err)
			}
		})
	}
}

// losing is a host whose first dials find a connection that is lost at once, or open one
// on which the peer hangs up.
type losing struct {
	*nethost.Host
	left, dials int
	hangsUp     bool
}

func (l *losing) Connect(ctx context.Context, p peer.AddrInfo) error {
	l.dials++
	if l.left--; l.left >= 0 && !l.hangsUp {
		return nil
	}
	if err := l.Host.Connect(ctx, p); err != nil || l.left < 0 {
		return err
	}
	return l.Disconnect(p.ID)
}

// A connection that was found and lost at once is no reason to give up: another one may
// be on its way, or a dial succeeds. A peer that hangs up is not dialed again.
func TestAConnectionThatWasFoundAndLostIsReplaced(t *testing.T) {
	a, b := hosttest.New(t, loopback), hosttest.New(t, loopback)
	for name, c := range map[string]struct {
		via   losing
		dials int
		want  error
	}{
		"found and lost":       {losing{left: 1}, 2, nil},
		"found and lost twice": {losing{left: 1000}, 2, nethost.ErrLostAtOnce},
		"the peer hangs up":    {losing{left: 1, hangsUp: true}, 1, nethost.ErrLostAtOnce},
	} {
		t.Run(name, func(t *testing.T) {
			c.via.Host = a
			if err := dialer(a, &c.via).Connect(t.Context(), hosttest.Info(b)); !errors.Is(err, c.want) || c.via.dials != c.dials {
				t.Errorf("%v after %d dials, want %v after %d", err, c.via.dials, c.want, c.dials)
			}
			must(t, a.Disconnect(b.ID()))
		})
	}
}
