package p2pnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multistream"
)

const echoID = protocol.ID("/test/echo/1.0.0")

func serveEcho(n *Node) {
	err := n.Handle(echoID, func(_ context.Context, s network.Stream) error {
		_, err := io.Copy(s, s)
		return err
	})
	if err != nil {
		panic(err)
	}
}

// echo sends data and wants it back.
func echo(tb testing.TB, from *Node, to peer.ID, data []byte) error {
	tb.Helper()
	s, err := from.OpenStream(testContext(tb), to, echoID)
	if err != nil {
		return err
	}
	defer s.Reset()
	mustNot(tb, s.SetDeadline(time.Now().Add(testTimeout)))
	go func() {
		_, _ = s.Write(data) // a failure shows in what comes back
		_ = s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%d bytes came back of %d", len(got), len(data))
	}
	return err
}

// pair returns two connected nodes.
func pair(tb testing.TB, opts ...Option) (a, b *Node) {
	tb.Helper()
	a, b = newNode(tb, opts...), newNode(tb, opts...)
	mustNot(tb, a.Connect(testContext(tb), b.AddrInfo()))
	return a, b
}

// log collects the log of a node.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) option() Option {
	return WithLogger(slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

func TestEchoWithHalfClose(t *testing.T) {
	a, b := pair(t)
	serveEcho(b)
	for _, size := range []int{0, 1, 100 << 10, 4 << 20} {
		mustNot(t, echo(t, a, b.ID(), bytes.Repeat([]byte{7}, size)))
	}
}

// waitFor waits for conditions without an event, such as a log line.
func waitFor(tb testing.TB, ok func() bool) error {
	tb.Helper()
	ctx := testContext(tb)
	for tick := time.NewTicker(time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func TestCloseEndsHandlersAndWaitsForThem(t *testing.T) {
	a := newNode(t)
	var l log
	b, err := New(testContext(t), loopback(), l.option())
	mustNot(t, err)
	entered, ended := make(chan struct{}, 2), make(chan error, 2)
	mustNot(t, b.Handle("/reads", func(_ context.Context, s network.Stream) error {
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		entered <- struct{}{}
		_, err := s.Read(make([]byte, 1))
		ended <- err
		return err
	}))
	mustNot(t, b.Handle("/waits", func(ctx context.Context, s network.Stream) error {
		entered <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}))
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
	for _, p := range []protocol.ID{"/reads", "/waits"} {
		s, err := a.OpenStream(testContext(t), b.ID(), p)
		mustNot(t, err)
		defer s.Reset()
		_, err = s.Write([]byte("x"))
		mustNot(t, err)
		<-entered
	}
	mustNot(t, b.Close())
	if len(ended) < 2 {
		t.Errorf("Close returned while %d handlers were running", 2-len(ended))
	}
	if strings.Contains(l.String(), "level=WARN") {
		t.Errorf("handlers that Close ended are a warning:\n%s", l.String())
	}
}

func TestHandleRefuses(t *testing.T) {
	h := func(context.Context, network.Stream) error { return nil }
	for name, opts := range map[string][]Option{
		"default":      nil,
		"a DHT client": {WithDHTMode(DHTModeClient)},
		"no DHT":       {WithoutDHT(), WithoutPubSub()},
		"a relay":      {WithRelayService()},
	} {
		n := newNode(t, opts...)
		own := []protocol.ID{
			"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/libp2p/dcutr", "/libp2p/autonat/1.0.0",
			"/libp2p/autonat/2/dial-back", "/libp2p/autonat/2/dial-request",
			"/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop",
		}
		own = append(own, n.base.Mux().Protocols()...)
		if n.dht != nil {
			own = append(own, n.cfg.dhtProtocols()...)
		}
		before := n.base.Mux().Protocols()
		for _, p := range own {
			if err := n.Handle(p, h); !errors.Is(err, ErrProtocolInUse) {
				t.Errorf("%s: Handle(%s) = %v", name, p, err)
			}
			if err := n.Handle(p, nil); err == nil || errors.Is(err, ErrProtocolInUse) {
				t.Errorf("%s: Handle(%s, nil) = %v", name, p, err)
			}
			if err := n.Unhandle(p); !errors.Is(err, ErrProtocolInUse) {
				t.Errorf("%s: Unhandle(%s) = %v", name, p, err)
			}
			if _, err := n.Listen(p); !errors.Is(err, ErrProtocolInUse) {
				t.Errorf("%s: Listen(%s) = %v", name, p, err)
			}
		}
		if after := n.base.Mux().Protocols(); !slices.Equal(before, after) {
			t.Errorf("%s: the node serves %v, before %v", name, after, before)
		}
	}
	n := newNode(t)
	mustNot(t, n.Handle("/p/1.0.0", h))
	if err := n.Handle("/p/1.0.0", h); !errors.Is(err, ErrProtocolInUse) {
		t.Errorf("Handle again = %v", err)
	}
	var wrong *OptionError
	for name, err := range map[string]error{
		"HandleVersions": n.Handle("/no/version", h, HandleVersions()),
		"HandleMatch":    n.Handle("/q/1.0.0", h, HandleVersions(), HandleMatch(func(protocol.ID) bool { return true })),
	} {
		if !errors.As(err, &wrong) || wrong.Option != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustNot(t, n.Unhandle("/p/1.0.0"))
	if err := n.Unhandle("/p/1.0.0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Unhandle again = %v", err)
	}
	mustNot(t, n.Handle("/p/1.0.0", h))
}

func TestHandleVersions(t *testing.T) {
	a, b := pair(t)
	mustNot(t, b.Handle("/p/1.2.0", func(_ context.Context, s network.Stream) error {
		_, err := io.WriteString(s, string(s.Protocol()))
		return err
	}, HandleVersions()))
	for p, served := range map[protocol.ID]bool{"/p/1.2.0": true, "/p/1.0.0": true, "/p/1.2.7": true, "/p/1.3.0": false, "/p/2.0.0": false} {
		s, err := a.OpenStream(testContext(t), b.ID(), p)
		if (err == nil) != served {
			t.Errorf("OpenStream(%s) = %v", p, err)
		}
		if err != nil {
			continue
		}
		if got, err := io.ReadAll(s); err != nil || string(got) != string(p) {
			t.Errorf("%s: the handler saw %q, %v", p, got, err)
		}
	}
}

// A stream can be opened as soon as Connect returns, and as soon as the other side
// has the event for the connection (pitfall 37).
func TestPitfall37OpenStreamRightAfterConnect(t *testing.T) {
	times := 20
	if testing.Short() {
		times = 2
	}
	for range times {
		a, b := newNode(t), newNode(t)
		serveEcho(a)
		serveEcho(b)
		events := b.Events(testContext(t))
		mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
		mustNot(t, echo(t, a, b.ID(), []byte("x")))
		for ev := range events {
			if ev, ok := ev.(EventPeerConnected); ok {
				mustNot(t, echo(t, b, ev.Peer.ID, []byte("x")))
				break
			}
		}
		mustNot(t, errors.Join(a.Close(), b.Close()))
	}
}

func TestOpenStreamErrors(t *testing.T) {
	a, b := pair(t)
	serveEcho(b)
	ctx := testContext(t)
	var unspoken multistream.ErrNotSupported[protocol.ID]
	if _, err := a.OpenStream(ctx, b.ID(), "/unknown"); !errors.As(err, &unspoken) || !strings.Contains(err.Error(), "/ipfs/ping/1.0.0") || !strings.Contains(err.Error(), "/unknown") {
		t.Errorf("a protocol that is not spoken: %v; want what is", err)
	}
	if _, err := a.OpenStream(ctx, b.ID()); err == nil || errors.As(err, &unspoken) || !strings.Contains(err.Error(), b.ID().String()) {
		t.Errorf("no protocol: %v", err)
	}
	if _, err := a.OpenStream(ctx, a.ID(), echoID); err == nil || errors.Is(err, swarm.ErrDialToSelf) || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("self: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.OpenStream(ended, b.ID(), echoID, "/other"); err == nil {
		t.Error("opened with a context that has ended")
	}
	if _, err := a.OpenStream(ctx, mustKeyID(t), echoID); err == nil {
		t.Error("opened a stream to nobody")
	}
}

func TestListenAndDialCarryHTTP(t *testing.T) {
	a, b := pair(t)
	l, err := b.Listen("/http/1.1")
	mustNot(t, err)
	if _, err := b.Listen("/http/1.1"); !errors.Is(err, ErrProtocolInUse) {
		t.Errorf("Listen again = %v", err)
	}
	if err := b.Unhandle("/http/1.1"); !errors.Is(err, ErrProtocolInUse) {
		t.Errorf("Unhandle of a listener's protocol = %v", err)
	}
	if l.Addr().Network() != "libp2p" || l.Addr().String() != b.ID().String() {
		t.Errorf("the listener's address is %s %s", l.Addr().Network(), l.Addr())
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.RemoteAddr) })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return a.Dial(ctx, b.ID(), "/http/1.1") }}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Get("http://b/")
	mustNot(t, err)
	body, err := io.ReadAll(r.Body)
	mustNot(t, errors.Join(err, r.Body.Close()))
	if string(body) != "hello "+a.ID().String() {
		t.Errorf("the server said %q", body)
	}
	mustNot(t, server.Close())
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve = %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v", err)
	}
}

// Handle refuses a protocol whose ID identify could not send: its message has room
// for a few KiB, and with more, peers would learn no protocols (specs#709).
func TestProtocolsThatPeersAreToldOf(t *testing.T) {
	a, b := newNode(t), newNode(t)
	handler := func(context.Context, network.Stream) error { return nil }
	var accepted []protocol.ID
	for i := range 300 {
		p := protocol.ID(fmt.Sprintf("/example/chat-room/%032d/1.0.0", i))
		err := a.Handle(p, handler)
		if err == nil {
			accepted = append(accepted, p)
			continue
		}
		if !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	}
	if len(accepted) < 40 || len(accepted) == 300 {
		t.Fatalf("%d are accepted", len(accepted))
	}
	mustNot(t, b.Connect(testContext(t), a.AddrInfo()))
	mustNot(t, waitFor(t, func() bool { return b.Status().DHT.Peers == 1 }))
	p, _ := b.Peer(a.ID())
	for _, want := range accepted {
		if !slices.Contains(p.Protocols, want) {
			t.Fatalf("the peer knows %d protocols, and not %s", len(p.Protocols), want)
		}
	}
	if _, err := a.Listen("/one/more" + protocol.ID(strings.Repeat("/more", 100))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a listener: %v", err)
	}
	mustNot(t, a.Unhandle(accepted[0]))
	mustNot(t, a.Handle(accepted[0], handler)) // there is room again
}
