package streams

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newHost(t *testing.T, listen string) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.DisableMetrics(), libp2p.DisableRelay())
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

// logged returns the level of each log line.
type logged struct{ each chan slog.Level }

func newLogged() *logged { return &logged{each: make(chan slog.Level, 100)} }

func (*logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.each <- r.Level
	return nil
}
func (l *logged) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *logged) WithGroup(string) slog.Handler      { return l }

// rig is a server and the host of a client that is connected to it.
type rig struct {
	server *Server
	host   host.Host // the server's
	client host.Host
	log    *logged
}

const (
	overTCP  = "/ip4/127.0.0.1/tcp/0"
	overQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

func newRig(t *testing.T, listen string) *rig {
	t.Helper()
	r := &rig{host: newHost(t, listen), client: newHost(t, listen), log: newLogged()}
	r.server = New(t.Context(), Config{Host: r.host, Own: []protocol.ID{"/own"}, Log: slog.New(r.log)})
	t.Cleanup(func() { must(t, r.server.Close()) })
	must(t, r.client.Connect(within(t), peer.AddrInfo{ID: r.host.ID(), Addrs: r.host.Addrs()}))
	return r
}

// open opens a stream and sends one byte, which the handler is to read: from
// then on it is running.
func (r *rig) open(t *testing.T, p protocol.ID) network.Stream {
	t.Helper()
	s, err := r.client.NewStream(within(t), r.host.ID(), p)
	must(t, err)
	t.Cleanup(func() { _ = s.Reset() })
	_, err = s.Write([]byte("x"))
	must(t, err)
	return s
}

func readOne(s network.Stream) error {
	_, err := io.ReadFull(s, make([]byte, 1))
	return err
}

func overBoth(t *testing.T, test func(t *testing.T, r *rig)) {
	for name, listen := range map[string]string{"tcp": overTCP, "quic": overQUIC} {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, listen)) })
	}
}

// The ctx of a handler that neither reads nor writes ends with its stream.
func TestCtxEndsWithTheStream(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, r *rig, s network.Stream){
		"peer resets":          func(t *testing.T, r *rig, s network.Stream) { must(t, s.Reset()) },
		"peer disconnects":     func(t *testing.T, r *rig, s network.Stream) { must(t, r.client.Network().ClosePeer(r.host.ID())) },
		"own side disconnects": func(t *testing.T, r *rig, s network.Stream) { must(t, r.host.Network().ClosePeer(r.client.ID())) },
		"peer sends more, resets": func(t *testing.T, r *rig, s network.Stream) {
			_, err := s.Write(make([]byte, 10))
			must(t, err)
			must(t, s.Reset())
		},
		"half-closed, disconnects": func(t *testing.T, r *rig, s network.Stream) {
			must(t, s.CloseWrite())
			must(t, r.client.Network().ClosePeer(r.host.ID()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, r *rig) {
				running, ended := make(chan struct{}), make(chan error, 1)
				must(t, r.server.Handle("/p", func(ctx context.Context, s network.Stream) error {
					// An expired deadline is no fault of the peer.
					if err := errors.Join(readOne(s), s.SetReadDeadline(time.Now())); err != nil {
						t.Error(err)
					}
					derived, cancel := context.WithCancel(ctx)
					defer cancel()
					close(running)
					<-derived.Done()
					ended <- context.Cause(ctx)
					return derived.Err()
				}, nil))
				s := r.open(t, "/p")
				<-running
				end(t, r, s)
				if cause := <-ended; cause == nil || errors.Is(cause, os.ErrDeadlineExceeded) {
					t.Errorf("the cause is %v", cause)
				}
				if level := <-r.log.each; level != slog.LevelDebug {
					t.Errorf("a stream that its peer ended is logged at %v", level)
				}
			})
		})
	}
}

// What is read ahead is not lost, in whatever pieces the handler reads and
// however often it asks for its ctx.
func TestReadingAheadLosesNothing(t *testing.T) {
	overBoth(t, func(t *testing.T, r *rig) {
		got := make(chan []byte, 1)
		must(t, r.server.Handle("/p", func(ctx context.Context, s network.Stream) error {
			var all []byte
			for i := 1; ; i++ {
				select {
				case <-ctx.Done():
					t.Error("ended early")
				default:
				}
				if i%50 == 0 {
					s.(*stream).mu.Lock()
					s.(*stream).startAheadLocked() // as the timer does
					s.(*stream).mu.Unlock()
				}
				part := make([]byte, 1+i%5000)
				n, err := s.Read(part)
				all = append(all, part[:n]...)
				if err == io.EOF {
					got <- all
					return nil
				}
				if err != nil {
					got <- all
					return err
				}
			}
		}, nil))
		s, err := r.client.NewStream(within(t), r.host.ID(), "/p")
		must(t, err)
		defer s.Reset()
		var sent []byte
		for i := range 300 {
			part := bytes.Repeat([]byte{byte(i)}, i*13%4000)
			sent = append(sent, part...)
			_, err := s.Write(part)
			must(t, err)
		}
		must(t, s.CloseWrite())
		if all := <-got; !bytes.Equal(all, sent) {
			t.Errorf("%d bytes arrived of %d, or others", len(all), len(sent))
		}
	})
}

// A handler's own deadline applies to its reads, including one that waits for data
// that is read ahead, and its own Close does not end its ctx.
func TestDeadlinesAndHalfClosesAreTheHandlersOwn(t *testing.T) {
	overBoth(t, func(t *testing.T, r *rig) {
		result := make(chan error, 1)
		must(t, r.server.Handle("/p", func(ctx context.Context, s network.Stream) error {
			if err := readOne(s); err != nil {
				t.Error(err)
			}
			ctx.Done() // begins to read ahead
			must := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			must(s.SetReadDeadline(time.Now().Add(10 * time.Millisecond)))
			if _, err := s.Read(make([]byte, 1)); !timedOut(err) {
				t.Errorf("Read = %v, want a timeout", err)
			}
			must(s.SetReadDeadline(time.Time{}))
			_, err := s.Write([]byte("go on"))
			must(err)
			must(readOne(s))
			must(s.CloseRead())
			must(s.CloseWrite())
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("read after CloseRead")
			}
			if _, err := s.Write([]byte("x")); err == nil {
				t.Error("written after CloseWrite")
			}
			result <- ctx.Err()
			return nil
		}, nil))
		s := r.open(t, "/p")
		_, err := io.ReadFull(s, make([]byte, 5))
		must(t, err)
		_, err = s.Write([]byte("y"))
		must(t, err)
		if err := <-result; err != nil {
			t.Errorf("the ctx ended: %v", err)
		}
	})
}

// A handler that panics or fails costs its stream and nothing else (pitfall 38).
func TestPitfall38HandlerFailureResetsItsStreamAlone(t *testing.T) {
	overBoth(t, func(t *testing.T, r *rig) {
		must(t, r.server.Handle("/echo", func(_ context.Context, s network.Stream) error {
			_, err := io.Copy(s, s)
			return err
		}, nil))
		must(t, r.server.Handle("/panics", func(_ context.Context, s network.Stream) error {
			_ = readOne(s) // it fails when the client has negotiated, and waits
			panic("oh no")
		}, nil))
		must(t, r.server.Handle("/fails", func(_ context.Context, s network.Stream) error {
			_ = readOne(s)
			return errors.New("no good")
		}, nil))
		must(t, r.server.Handle("/resets", func(_ context.Context, s network.Stream) error {
			_ = readOne(s)
			return errors.Join(errors.New("no good"), s.Reset())
		}, nil))
		living := r.open(t, "/echo")
		for _, c := range []struct {
			p     protocol.ID
			level slog.Level // a peer can repeat it: one warning in 10 seconds
		}{{"/panics", slog.LevelWarn}, {"/fails", slog.LevelWarn}, {"/resets", slog.LevelDebug}, {"/panics", slog.LevelDebug}} {
			s := r.open(t, c.p)
			if _, err := io.ReadAll(s); !errors.Is(err, network.ErrReset) {
				t.Errorf("%s: the stream ended with %v, want a reset", c.p, err)
			}
			if level := <-r.log.each; level != c.level {
				t.Errorf("%s: logged at %v", c.p, level)
			}
		}
		if n := r.server.Failures(); n != 4 {
			t.Errorf("%d failures are counted, want 4", n)
		}
		must(t, living.CloseWrite())
		if got, err := io.ReadAll(living); err != nil || string(got) != "x" {
			t.Errorf("another stream read %q, %v", got, err)
		}
	})
}

func TestProtocolsHaveOneOwner(t *testing.T) {
	r := newRig(t, overTCP)
	nop := func(context.Context, network.Stream) error { return nil }
	r.host.SetStreamHandler("/foreign", func(s network.Stream) { _ = s.Reset() })
	for _, p := range []protocol.ID{"/own", "/foreign", "/ipfs/ping/1.0.0"} {
		if err := r.server.Handle(p, nop, nil); !errors.Is(err, errs.ErrProtocolInUse) {
			t.Errorf("Handle(%s) = %v", p, err)
		}
	}
	if err := r.server.Handle("", nop, nil); err == nil {
		t.Error("a protocol without a name is accepted")
	}
	// One of many concurrent calls gets it.
	for range 50 {
		var wg sync.WaitGroup
		results := make(chan error, 8)
		for range 8 {
			wg.Go(func() { results <- r.server.Handle("/p", nop, nil) })
		}
		wg.Wait()
		won := 0
		for range 8 {
			if err := <-results; err == nil {
				won++
			} else if !errors.Is(err, errs.ErrProtocolInUse) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d handlers of one protocol", won)
		}
		must(t, r.server.Unhandle("/p"))
	}
	if slices.Contains(r.host.Mux().Protocols(), "/p") {
		t.Error("a protocol without a handler is served")
	}
}

// Handlers of exact protocol IDs, and the node's own protocols, take precedence
// over matches, whatever the order of registration.
func TestMatchingComesLast(t *testing.T) {
	r := newRig(t, overTCP)
	says := func(text string) Handler {
		return func(_ context.Context, s network.Stream) error {
			_, err := io.WriteString(s, text)
			return err
		}
	}
	must(t, r.server.Handle("/any", says("any"), func(protocol.ID) bool { return true }))
	must(t, r.server.Handle("/exact", says("exact"), nil))
	r.host.SetStreamHandler("/own", func(s network.Stream) { // later, as the DHT does
		_, _ = io.WriteString(s, "own")
		_ = s.Close()
	})
	for p, want := range map[protocol.ID]string{"/any": "any", "/other": "any", "/exact": "exact", "/own": "own"} {
		s := r.open(t, p)
		if got, err := io.ReadAll(s); err != nil || string(got) != want {
			t.Errorf("%s is served by %q, %v", p, got, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, bad := range []protocol.ID{"", "/p", "1.2.3", "/p/1.2", "/p/1.2.3.4", "/p/1.x.0", "/p/1.-2.0", "/p/1.2.0/"} {
		if _, err := Versions(bad); err == nil {
			t.Errorf("%q has a version", bad)
		}
	}
	match, err := Versions("/a/b/2.3.1")
	must(t, err)
	for p, want := range map[protocol.ID]bool{
		"/a/b/2.3.1": true, "/a/b/2.3.9": true, "/a/b/2.0.0": true, "/a/b/2.4.0": false, "/a/b/1.0.0": false,
		"/a/b/3.0.0": false, "/a/c/2.3.1": false, "/a/2.3.1": false, "": false, "/a/b/x": false,
	} {
		if match(p) != want {
			t.Errorf("%q matches: %t", p, !want)
		}
	}
}

func TestListenerResetsWhatNobodyAccepts(t *testing.T) {
	overBoth(t, func(t *testing.T, r *rig) {
		r.server.backlog = 1
		l, err := r.server.Listen("/slow")
		must(t, err)
		one := r.open(t, "/slow")
		c, err := l.Accept()
		must(t, err)
		two := r.open(t, "/slow")
		for len(l.(*listener).queue) == 0 {
			runtime.Gosched() // there is no event for it
		}
		for range 2 {
			three := r.open(t, "/slow")
			_, err := three.Read(make([]byte, 1))
			if se, ok := errors.AsType[*network.StreamError](err); !ok || se.ErrorCode != network.StreamResourceLimitExceeded {
				t.Errorf("a stream beyond the backlog ended with %v", err)
			}
		}
		if level := <-r.log.each; level != slog.LevelWarn || len(r.log.each) > 0 {
			t.Errorf("logged at %v, and %d more lines", level, len(r.log.each))
		}
		must(t, l.Close())
		must(t, l.Close())
		if _, err := two.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
			t.Errorf("a stream that nobody accepted ended with %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, errs.ErrClosed) {
			t.Errorf("Accept = %v", err)
		}
		_, err = c.Write([]byte("still here"))
		must(t, err)
		must(t, c.Close())
		if got, err := io.ReadAll(one); err != nil || string(got) != "still here" {
			t.Errorf("an accepted stream read %q, %v", got, err)
		}
		l, err = r.server.Listen("/slow")
		must(t, err)
		must(t, l.Close())
	})
}

func TestClose(t *testing.T) {
	r := newRig(t, overTCP)
	nop := func(context.Context, network.Stream) error { return nil }
	l, err := r.server.Listen("/l")
	must(t, err)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	must(t, r.server.Handle("/p", nop, nil))
	must(t, r.server.Close())
	if err := <-accepted; !errors.Is(err, errs.ErrClosed) {
		t.Errorf("Accept = %v", err)
	}
	if err := r.server.Handle("/q", nop, nil); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("Handle = %v", err)
	}
	if err := r.server.Unhandle("/p"); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("Unhandle = %v", err)
	}
	s, err := r.client.NewStream(within(t), r.host.ID(), "/p")
	if err == nil { // the client learns by a read, when it need not negotiate
		_, _ = s.Write([]byte("x"))
		_, err = s.Read(make([]byte, 1))
	}
	if !errors.Is(err, network.ErrReset) {
		t.Errorf("a stream after Close ended with %v", err)
	}
}

// gone is a connection that closed after it was chosen.
type gone struct{ network.Conn }

func (gone) NewStream(context.Context) (network.Stream, error) { return nil, network.ErrReset }
func (gone) IsClosed() bool                                    { return true }

// A stream is opened on another connection if the chosen one has closed; and choosing,
// which may wait for identify, does not count as waiting for room.
func TestTheChosenConnectionMayClose(t *testing.T) {
	r := newRig(t, overQUIC)
	r.server.choose = func(ctx context.Context, _ peer.ID) network.Conn {
		if _, bound := ctx.Deadline(); bound {
			t.Error("choosing has the deadline of OpenNow")
		}
		return gone{}
	}
	for _, now := range []bool{false, true} {
		s, err := r.server.openRaw(t.Context(), r.client.ID(), now)
		must(t, err)
		must(t, s.Reset())
	}
}
