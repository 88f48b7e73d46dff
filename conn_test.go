package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/net/nettest"

	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

const connID = protocol.ID("/test/conn")

// route makes two nodes that are connected in one way.
type route struct {
	name string
	each func(tb testing.TB, a, b []Option) (*Node, *Node)
}

// pair is with the same options for both.
func (r route) pair(tb testing.TB, opts ...Option) (a, b *Node) { return r.each(tb, opts, opts) }

// routes are the transports of the defaults, WebTransport, and a relay. A test of
// streams holds over all of them.
func routes() []route {
	listening := func(addr string, transport Transport) func(tb testing.TB, a, b []Option) (*Node, *Node) {
		return func(tb testing.TB, a, b []Option) (*Node, *Node) {
			start := func(opts []Option) *Node {
				return newNode(tb, append([]Option{WithTransports(transport), WithListenAddrs(addr), WithoutDHT(), WithoutPubSub()}, opts...)...)
			}
			near, far := start(a), start(b)
			mustNot(tb, near.Connect(testContext(tb), far.AddrInfo()))
			return near, far
		}
	}
	return []route{
		{"tcp", listening("/ip4/127.0.0.1/tcp/0", TransportTCP)},
		{"quic", listening("/ip4/127.0.0.1/udp/0/quic-v1", TransportQUIC)},
		{"websocket", listening("/ip4/127.0.0.1/tcp/0/ws", TransportWebSocket)},
		{"webtransport", listening("/ip4/127.0.0.1/udp/0/quic-v1/webtransport", TransportWebTransport)},
		{"relay", func(tb testing.TB, a, _ []Option) (*Node, *Node) {
			relay := newNode(tb, WithRelayLimits(RelayLimits{Unlimited: true}), WithoutDHT(), WithoutPubSub())
			near, far := newNode(tb, append(a, WithoutDHT(), WithoutPubSub())...), hiddenNode(tb, relay)
			reachable(tb, far, true)
			mustNot(tb, near.Connect(testContext(tb), far.AddrInfo()))
			if p, ok := near.Peer(far.ID()); !ok || !p.Relayed {
				tb.Fatalf("connected by %v", p.Addr)
			}
			return near, far
		}},
	}
}

// overRoutes runs a test over each, or over the first with -short.
func overRoutes(t *testing.T, test func(t *testing.T, r route)) {
	t.Helper()
	all := routes()
	if testing.Short() {
		all = all[:1]
	}
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) { test(t, r) })
	}
}

// conns are the two ends of new streams between two nodes.
func conns(tb testing.TB, a, b *Node) (dial func() (near, far net.Conn, err error)) {
	tb.Helper()
	l, err := b.Listen(connID)
	mustNot(tb, err)
	tb.Cleanup(func() { mustClose(tb, l) })
	return func() (near, far net.Conn, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if near, err = a.Dial(ctx, b.ID(), connID); err != nil {
			return nil, nil, err
		}
		far, err = l.Accept()
		return near, far, err
	}
}

// A stream is a net.Conn by the test suite that Go's own packages have for it,
// from either end; without -long, over TCP alone from both.
func TestConnsPassTheSuiteOfGo(t *testing.T) {
	needs.Time(t)
	overRoutes(t, func(t *testing.T, r route) {
		a, b := r.pair(t)
		dial := conns(t, a, b)
		for name, pipe := range map[string]func() (near, far net.Conn, err error){
			"dialed": dial,
			"accepted": func() (net.Conn, net.Conn, error) {
				near, far, err := dial()
				return far, near, err
			},
			"handled":             handled(t, a, b, "/test/handled", func(context.Context) {}),
			"handled and watched": handled(t, a, b, "/test/watched", func(ctx context.Context) { ctx.Done() }),
		} {
			if !*long && name != "dialed" && r.name != "tcp" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
					c1, c2, err = pipe()
					if err != nil {
						return nil, nil, nil, err
					}
					return c1, c2, func() { _, _ = c1.Close(), c2.Close() }, nil
				})
			})
		}
	})
}

// addressed is a handler's stream as a net.Conn.
type addressed struct {
	network.Stream
	end context.CancelFunc // lets the handler return
}

func (addressed) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{} }
func (a addressed) Close() error {
	defer a.end()
	return a.Stream.Close()
}

// handled are streams between two nodes, the near end in a handler that has
// done something with its ctx.
func handled(t *testing.T, a, b *Node, p protocol.ID, asks func(context.Context)) func() (near, far net.Conn, err error) {
	t.Helper()
	in := make(chan addressed)
	mustNot(t, b.Handle(p, func(ctx context.Context, s network.Stream) error {
		ended, end := context.WithCancel(context.Background())
		asks(ctx)
		in <- addressed{s, end}
		<-ended.Done()
		return nil
	}))
	return func() (near, far net.Conn, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if far, err = a.Dial(ctx, b.ID(), p); err != nil {
			return nil, nil, err
		}
		return <-in, far, nil
	}
}

// halfCloser has the methods of net.TCPConn that net.Conn lacks.
type halfCloser interface {
	net.Conn
	CloseWrite() error
	CloseRead() error
}

// want checks which errors the error of a call matches.
func want(t *testing.T, what string, got error, matches error, not ...error) {
	t.Helper()
	if !errors.Is(got, matches) {
		t.Errorf("%s: %v, want %v", what, got, matches)
	}
	for _, n := range not {
		if errors.Is(got, n) {
			t.Errorf("%s: %v, which must not be %v", what, got, n)
		}
	}
}

// What a call on a stream returns in each situation, whatever the transport.
func TestConnErrors(t *testing.T) {
	lost := []error{net.ErrClosed, io.EOF, os.ErrDeadlineExceeded}
	for name, test := range map[string]func(t *testing.T, dial func() (halfCloser, halfCloser)){
		"a deadline that has passed, with data waiting": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			_, err := far.Write([]byte("xy"))
			mustNot(t, err)
			_, err = io.ReadFull(near, make([]byte, 1)) // the other byte has arrived, too
			mustNot(t, err)
			mustNot(t, near.SetDeadline(time.Unix(1, 0)))
			_, err = near.Read(make([]byte, 1))
			want(t, "read", err, os.ErrDeadlineExceeded)
			_, err = near.Write([]byte("x"))
			want(t, "write", err, os.ErrDeadlineExceeded)
			mustNot(t, near.SetDeadline(time.Time{}))
			_, err = io.ReadFull(near, make([]byte, 1))
			mustNot(t, err)
			_, err = near.Write([]byte("x"))
			mustNot(t, err)
		},
		"its own close": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, _ := dial()
			const some = 2 // the windows take more
			ended, written := make(chan error, 4), make(chan struct{}, some)
			for range 2 { // muxers wake one
				go func() {
					_, err := near.Read(make([]byte, 1))
					ended <- err
				}()
				go func() {
					var err error
					for err == nil { // until the windows are full
						_, err = near.Write(make([]byte, 1<<16))
						select {
						case written <- struct{}{}:
						default:
						}
					}
					ended <- err
				}()
			}
			for range some {
				<-written
			}
			mustNot(t, near.Close())
			for range 4 {
				want(t, "a call that waits", <-ended, net.ErrClosed, network.ErrReset)
			}
			_, err := near.Read(make([]byte, 1))
			want(t, "read", err, ErrClosed)
			_, err = near.Write([]byte("x"))
			want(t, "write", err, ErrClosed)
			want(t, "deadline", near.SetDeadline(time.Now()), ErrClosed)
			mustNot(t, errors.Join(near.CloseWrite(), near.CloseRead(), near.Close()))
		},
		"its own half": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			mustNot(t, near.CloseWrite())
			_, err := near.Write([]byte("x"))
			want(t, "write", err, ErrClosed)
			if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("the other side reads %v, want EOF", err)
			}
			_, err = far.Write([]byte("x"))
			mustNot(t, err)
			_, err = io.ReadFull(near, make([]byte, 1))
			mustNot(t, err)
			mustNot(t, near.CloseRead())
			_, err = near.Read(make([]byte, 1))
			want(t, "read", err, ErrClosed)
			mustNot(t, errors.Join(far.Close(), near.Close()))
		},
		"the other side closes first": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			_, err := far.Write([]byte("bye"))
			mustNot(t, errors.Join(err, far.Close()))
			if got, err := io.ReadAll(near); string(got) != "bye" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			mustNot(t, errors.Join(near.CloseWrite(), near.Close()))
		},
		"the other side has closed, and what it wrote is read": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			data := make([]byte, 100<<10)
			_, err := far.Write(data)
			mustNot(t, errors.Join(err, far.Close()))
			for err == nil {
				_, err = near.Write(make([]byte, 1<<16))
			}
			want(t, "write to nobody", err, network.ErrReset, lost...)
			if got, err := io.ReadAll(near); len(got) != len(data) || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			mustNot(t, errors.Join(near.CloseWrite(), near.Close()))
		},
		"the other side resets": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			mustNot(t, far.(interface{ Reset() error }).Reset())
			_, err := near.Read(make([]byte, 1))
			want(t, "read", err, network.ErrReset, lost...)
			_, err = near.Write([]byte("x"))
			want(t, "write", err, network.ErrReset, lost...)
			mustNot(t, errors.Join(near.CloseWrite(), near.Close()))
			_, err = far.Read(make([]byte, 1))
			want(t, "read of the other side", err, net.ErrClosed)
			want(t, "read of the other side", err, network.ErrReset)
		},
		"the other side has no room": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			s := far.(network.Stream)
			mustNot(t, s.ResetWithError(network.StreamResourceLimitExceeded))
			_, err := near.Read(make([]byte, 1))
			if s.Conn().ConnState().Transport == "webtransport" {
				want(t, "read", err, network.ErrReset, lost...) // it carries no codes
				return
			}
			want(t, "read", err, ErrLimit, lost...)
		},
		"a handler that is gone": func(t *testing.T, dial func() (halfCloser, halfCloser)) {
			near, far := dial()
			_, err := near.Write(make([]byte, 100))
			mustNot(t, errors.Join(err, far.Close())) // with data that nobody has read
			_, err = near.Read(make([]byte, 1))
			if !errors.Is(err, io.EOF) && !errors.Is(err, network.ErrReset) {
				t.Errorf("read: %v", err)
			}
			mustNot(t, errors.Join(near.CloseWrite(), near.Close()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			overRoutes(t, func(t *testing.T, r route) {
				a, b := r.pair(t)
				dial := conns(t, a, b)
				test(t, func() (halfCloser, halfCloser) {
					near, far, err := dial()
					mustNot(t, err)
					t.Cleanup(func() { _, _ = near.Close(), far.Close() })
					return near.(halfCloser), far.(halfCloser)
				})
			})
		})
	}
}

// When a node closes, blocked calls on its streams return net.ErrClosed, and
// those of the other side a reset: never an EOF, which would mean that the data
// is complete.
func TestConnsWhenTheNodeCloses(t *testing.T) {
	overRoutes(t, func(t *testing.T, r route) {
		a, b := r.pair(t)
		dial := conns(t, a, b)
		near, far, err := dial()
		mustNot(t, err)
		var wg sync.WaitGroup
		read := func(c net.Conn, err *error) { wg.Go(func() { _, *err = c.Read(make([]byte, 1)) }) }
		var own, other error
		read(near, &own)
		read(far, &other)
		mustNot(t, a.Close())
		wg.Wait()
		want(t, "own read", own, net.ErrClosed)
		want(t, "read of the other side", other, network.ErrReset, net.ErrClosed, io.EOF, os.ErrDeadlineExceeded)
		_, err = near.Write([]byte("x"))
		want(t, "own write", err, net.ErrClosed)
		_, err = far.Write([]byte("x"))
		want(t, "write of the other side", err, network.ErrReset, net.ErrClosed)
		mustNot(t, errors.Join(near.Close(), far.Close()))
	})
}

// accepted serves a protocol whose handlers answer only once n of them run.
func accepted(tb testing.TB, n *Node, all int) {
	tb.Helper()
	var mu sync.Mutex
	left, met := all, make(chan struct{})
	mustNot(tb, n.Handle(connID, func(ctx context.Context, s network.Stream) error {
		mu.Lock()
		if left--; left == 0 {
			close(met)
		}
		mu.Unlock()
		select {
		case <-met:
		case <-ctx.Done():
			return ctx.Err()
		}
		_, err := io.Copy(s, s)
		return err
	}))
}

// request sends data on a new stream, and expects it back.
func request(ctx context.Context, from, to *Node, p protocol.ID) error {
	s, err := from.OpenStream(ctx, to.ID(), p)
	if err != nil {
		return err
	}
	defer s.Reset()
	if _, err = s.Write([]byte("request")); err == nil {
		err = s.CloseWrite()
	}
	if err != nil {
		return err
	}
	got, err := io.ReadAll(s)
	if err == nil && string(got) != "request" {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}

// requests sends requests from concurrent clients. It returns how many failed,
// and the first error.
func requests(ctx context.Context, from, to *Node, p protocol.ID, clients, each int) (failed int, first error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				if err := request(ctx, from, to, p); err != nil {
					mu.Lock()
					failed++
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed, first
}

// One peer can have a thousand open streams with the defaults, and StreamsPerPeer
// if that is raised, in spite of all other limits: the resource manager's scopes,
// yamux's windows, QUIC's streams.
func TestStreamsAtOnce(t *testing.T) {
	rs := routes()[:3]
	if testing.Short() {
		rs = rs[:1]
	}
	for _, r := range rs {
		for _, c := range []struct {
			clients int
			opts    []Option
		}{
			{80, nil},
			{1000, nil},
			{4000, []Option{WithLimits(Limits{StreamsPerPeer: 4096})}},
		} {
			// WebSocket has the same multiplexer as TCP.
			if c.clients > 1000 && (testing.Short() || r.name == "websocket" && !*long) {
				continue
			}
			t.Run(fmt.Sprint(r.name, c.clients), func(t *testing.T) {
				a, b := r.pair(t, c.opts...)
				accepted(t, b, c.clients)
				if failed, err := requests(testContext(t), a, b, connID, c.clients, 1); failed > 0 {
					t.Errorf("%d failed: %v", failed, err)
				}
				if n := a.Status().Refused.Total() + b.Status().Refused.Total(); n > 0 {
					t.Errorf("%d are counted as refused", n)
				}
			})
		}
	}
}

// A thousand clients send three requests each, and ten with -long.
func TestManyRequests(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	clients, each := 1000, 3
	switch {
	case raced.Detector:
		clients = 200
	case *long:
		each = 10
	}
	for _, r := range routes()[:2] {
		t.Run(r.name, func(t *testing.T) {
			a, b := r.pair(t, WithLimits(Limits{StreamsPerPeer: 4096}))
			serveEcho(b)
			if failed, err := requests(testContext(t), a, b, echoID, clients, each); failed > 0 {
				t.Errorf("%d of %d failed: %v", failed, each*clients, err)
			}
		})
	}
}

// While a limit of either side is reached, requests wait for each other. Those
// with OpenNow fail immediately, and the errors of those whose ctx ends name the
// limit.
func TestStreamsWaitForRoom(t *testing.T) {
	few := WithLimits(Limits{StreamsPerPeer: 20})
	rs := routes()[:3]
	if testing.Short() {
		rs = rs[:1]
	}
	for _, r := range rs {
		for side, opts := range map[string][2][]Option{
			"near": {{few}, nil},
			"far":  {nil, {few}},
		} {
			t.Run(r.name+" "+side, func(t *testing.T) {
				a, b := r.each(t, opts[0], opts[1])
				serveEcho(b)
				if failed, err := requests(testContext(t), a, b, echoID, 100, 3); failed > 0 {
					t.Errorf("%d of 300 failed: %v", failed, err)
				}
				var open []network.Stream
				var err error
				for err == nil && len(open) < 30 {
					var s network.Stream
					if s, err = a.OpenStream(OpenNow(testContext(t)), b.ID(), echoID); err == nil {
						open = append(open, s)
					}
				}
				if !errors.Is(err, ErrLimit) || len(open) < 10 {
					t.Errorf("%d streams, then %v", len(open), err)
				}
				ctx, cancel := context.WithCancel(testContext(t))
				waits := make(chan error)
				go func() { waits <- result(a.OpenStream(ctx, b.ID(), echoID)) }()
				cancel()
				if err := <-waits; !errors.Is(err, context.Canceled) {
					t.Errorf("with its ctx canceled: %v", err)
				}
				go func() { waits <- request(testContext(t), a, b, echoID) }()
				mustNot(t, open[0].Close())
				mustNot(t, <-waits)
				for _, s := range open {
					mustNot(t, s.Close())
				}
			})
		}
	}
}

// A peer that is no p2pnode takes 256 streams over QUIC and says nothing of
// further ones, which wait, or fail with the limit's name.
func TestStreamsBeyondThoseOfQUIC(t *testing.T) {
	n := newNode(t, WithoutDHT(), WithoutPubSub())
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.ResourceManager(&network.NullResourceManager{}), nethost.NoMetrics)
	mustNot(t, err)
	defer mustClose(t, h)
	h.SetStreamHandler(echoID, func(s network.Stream) {
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	mustNot(t, n.Connect(testContext(t), addrInfoOf(h)))
	var open []network.Stream
	for err == nil && len(open) < 300 {
		var s network.Stream
		if s, err = n.OpenStream(OpenNow(testContext(t)), h.ID(), echoID); err == nil {
			open = append(open, s)
		}
	}
	if !errors.Is(err, ErrLimit) || len(open) < 200 || len(open) > 256 {
		t.Errorf("%d streams, then %v", len(open), err)
	}
	waits := make(chan error)
	go func() { waits <- result(n.OpenStream(testContext(t), h.ID(), echoID)) }()
	mustNot(t, open[0].CloseWrite())
	_, err = io.ReadAll(open[0])
	mustNot(t, errors.Join(err, <-waits))
	for _, s := range open {
		mustNot(t, s.Reset())
	}
}
