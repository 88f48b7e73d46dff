package nethost

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	quicgo "github.com/quic-go/quic-go"
)

// givenConn is a connection that tells when it is closed.
type givenConn struct {
	transport.CapableConn
	closed chan struct{}
}

func (c givenConn) Close() error {
	close(c.closed)
	return nil
}

// A canceled dial returns at once. The connection that it still makes, if that does not
// take long, is closed; and it goes on no longer than that, or than the transport.
func TestCanceledDialsGoOnForALittleWhile(t *testing.T) {
	errDial := errors.New("dial")
	for name, c := range map[string]struct {
		takes         time.Duration // the dial
		cancel, close time.Duration // when; 0 for never
		ends          time.Duration // what f does
		want          error
		closed        bool // the connection
	}{
		"success":                    {takes: 10, ends: 10},
		"canceled, and connects":     {takes: 15, cancel: 10, ends: 15, want: context.Canceled, closed: true},
		"canceled, and does not":     {takes: time.Hour, cancel: 10, ends: 10 + lastWord, want: context.Canceled},
		"the transport is closed":    {takes: time.Hour, close: 10, ends: 10, want: errDial},
		"canceled, then closed":      {takes: time.Hour, cancel: 10, close: 15, ends: 15, want: context.Canceled},
		"canceled once it connected": {takes: 10, cancel: 20, ends: 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGivenUp()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				begun, conn := time.Now(), givenConn{closed: make(chan struct{})}
				if c.cancel > 0 {
					time.AfterFunc(c.cancel, cancel)
				}
				if c.close > 0 {
					time.AfterFunc(c.close, func() { _ = g.group.Close() })
				}
				var ended time.Duration
				got, err := g.dial(ctx, func(ctx context.Context) (transport.CapableConn, error) {
					defer func() { ended = time.Since(begun) }()
					select {
					case <-time.After(c.takes):
						return conn, nil
					case <-ctx.Done():
						return nil, errDial
					}
				})
				took, want := time.Since(begun), min(c.ends, 10)
				if !errors.Is(err, c.want) || (err == nil) != (got != nil) || took != want {
					t.Errorf("dial = %v, %v after %v", got, err, took)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if ended != c.ends {
					t.Errorf("it went on for %v, not %v", ended, c.ends)
				}
				select {
				case <-conn.closed:
					if !c.closed {
						t.Error("the connection was closed")
					}
				default:
					if c.closed {
						t.Error("the connection was not closed")
					}
				}
				_ = g.group.Close()
				if _, err := g.dial(t.Context(), nil); err == nil {
					t.Error("a closed transport dials")
				}
			})
		})
	}
}

// late is a QUIC whose Dial returns late.
type late struct {
	quicMethods
	until <-chan struct{}
}

func (l late) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	c, err := l.quicMethods.Dial(ctx, a, p)
	<-l.until
	return c, err
}

func quicOf(t *testing.T) (made quicTransport, id peer.ID) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err == nil {
		id, err = peer.IDFromPrivateKey(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	conns, err := quicreuse.NewConnManager(quicgo.StatelessResetKey{}, quicgo.TokenGeneratorKey{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := newQUIC(quic.NewTransport(key, conns, nil, nil, &network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	made = one.(quicTransport)
	t.Cleanup(func() {
		if err := errors.Join(made.Close(), conns.Close()); err != nil {
			t.Error(err)
		}
	})
	return made, id
}

// A peer that has taken a connection hears that the dial was canceled. It would keep the
// connection until that times out, and use it meanwhile.
func TestCanceledQUICDialsEndOnBothSides(t *testing.T) {
	t.Parallel()
	server, id := quicOf(t)
	client, _ := quicOf(t)
	until := make(chan struct{})
	client.quicMethods = late{client.quicMethods, until}
	l, err := server.Listen(ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	dialed := make(chan error, 1)
	go func() {
		_, err := client.Dial(ctx, l.Multiaddr(), id)
		dialed <- err
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-dialed; !errors.Is(err, context.Canceled) {
		t.Errorf("Dial = %v", err)
	}
	close(until)
	var closed *quicgo.ApplicationError
	if _, err := c.AcceptStream(); !errors.As(err, &closed) || !closed.Remote {
		t.Errorf("the connection ends with %v", err)
	}
}
