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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const echoID = protocol.ID("/test/echo/1.0.0")

func serveEcho(n *Node) {
	n.Handle(echoID, func(_ context.Context, s network.Stream) error {
		_, err := io.Copy(s, s)
		return err
	})
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

// log collects what a node logs.
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

// A handler that panics or fails costs its stream and nothing else (pitfall 38).
func TestPitfall38HandlerFailureResetsItsStreamAlone(t *testing.T) {
	var l log
	a, b := newNode(t), newNode(t, l.option())
	serveEcho(b)
	b.Handle("/panics", func(context.Context, network.Stream) error { panic("oh no") })
	b.Handle("/fails", func(context.Context, network.Stream) error { return errors.New("no good") })
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
	living, err := a.OpenStream(testContext(t), b.ID(), echoID)
	mustNot(t, err)
	defer living.Reset()
	for proto, said := range map[protocol.ID]string{"/panics": "oh no", "/fails": "no good"} {
		s, err := a.OpenStream(testContext(t), b.ID(), proto)
		mustNot(t, err)
		mustNot(t, s.SetDeadline(time.Now().Add(testTimeout)))
		if _, err := io.ReadAll(s); !errors.Is(err, network.ErrReset) {
			t.Errorf("%s: the stream ended with %v, want a reset", proto, err)
		}
		mustNot(t, waitFor(t, func() bool { return strings.Contains(l.String(), said) }))
	}
	_, err = living.Write([]byte("still here"))
	mustNot(t, err)
	mustNot(t, living.CloseWrite())
	if got, err := io.ReadAll(living); err != nil || string(got) != "still here" {
		t.Errorf("another stream read %q, %v", got, err)
	}
}

// waitFor waits for what has no event of its own, such as a log line.
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
	b, err := New(testContext(t), loopback())
	mustNot(t, err)
	entered, ended := make(chan struct{}, 2), make(chan error, 2)
	b.Handle("/reads", func(_ context.Context, s network.Stream) error {
		entered <- struct{}{}
		_, err := s.Read(make([]byte, 1))
		ended <- err
		return err
	})
	b.Handle("/waits", func(ctx context.Context, s network.Stream) error {
		entered <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil
	})
	for _, p := range []protocol.ID{"/reads", "/waits"} {
		mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
		s, err := a.OpenStream(testContext(t), b.ID(), p)
		mustNot(t, err)
		defer s.Reset()
		_, err = s.Write(nil) // sends the name of the protocol
		mustNot(t, err)
		mustNot(t, s.CloseWrite())
		if p == "/reads" {
			s.Reset()
			s, err = a.OpenStream(testContext(t), b.ID(), p)
			mustNot(t, err)
			defer s.Reset()
			go s.Read(make([]byte, 1)) // flushes the name of the protocol
		}
		<-entered
	}
	mustNot(t, b.Close())
	if len(ended) < 2 {
		t.Errorf("Close returned while %d handlers were running", 2-len(ended))
	}
}

func TestHandleAgainReplacesAndNilStops(t *testing.T) {
	var l log
	a, b := newNode(t), newNode(t, l.option())
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
	answer := func(text string) func(context.Context, network.Stream) error {
		return func(_ context.Context, s network.Stream) error { _, err := io.WriteString(s, text); return err }
	}
	b.Handle("/p", answer("one"))
	b.Handle("/p", answer("two"))
	s, err := a.OpenStream(testContext(t), b.ID(), "/p")
	mustNot(t, err)
	if got, err := io.ReadAll(s); err != nil || string(got) != "two" {
		t.Errorf("read %q, %v", got, err)
	}
	if !strings.Contains(l.String(), "replaced") {
		t.Error("replacing a handler is not logged")
	}
	b.Handle("/p", nil)
	c := newNode(t) // learns b's protocols only now
	mustNot(t, c.Connect(testContext(t), b.AddrInfo()))
	if _, err := c.OpenStream(testContext(t), b.ID(), "/p"); err == nil {
		t.Error("a stopped protocol is still served")
	}
}

// A stream can be opened the moment that Connect returns, and the moment that
// the other side hears of the connection (pitfall 37).
func TestPitfall37OpenStreamRightAfterConnect(t *testing.T) {
	for range 20 {
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
	if _, err := a.OpenStream(ctx, b.ID(), "/unknown"); err == nil || !strings.Contains(err.Error(), "/ipfs/ping/1.0.0") || !strings.Contains(err.Error(), "/unknown") {
		t.Errorf("a protocol that is not spoken: %v; want what is", err)
	}
	if _, err := a.OpenStream(ctx, b.ID()); err == nil || !strings.Contains(err.Error(), "no protocol") {
		t.Errorf("no protocol: %v", err)
	}
	if _, err := a.OpenStream(ctx, a.ID(), echoID); err == nil || !strings.Contains(err.Error(), "itself") {
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
	if _, err := b.Listen("/http/1.1"); err == nil {
		t.Error("listening twice to a protocol is accepted")
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

func TestListenerResetsWhatNobodyAccepts(t *testing.T) {
	a, b := pair(t)
	l, err := b.Listen("/slow")
	mustNot(t, err)
	open := func() network.Stream {
		s, err := a.OpenStream(testContext(t), b.ID(), "/slow")
		mustNot(t, err)
		_, err = s.Write([]byte("x"))
		mustNot(t, err)
		mustNot(t, s.SetDeadline(time.Now().Add(testTimeout)))
		return s
	}
	waiting := open()
	mustNot(t, waitFor(t, func() bool { return len(l.(*streamListener).backlog) == 1 }))
	mustNot(t, l.Close())
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
		t.Errorf("a stream that nobody accepted ended with %v", err)
	}
}
