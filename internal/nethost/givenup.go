package nethost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// A QUIC dial that is canceled (quic-go v0.64) ends without telling the peer, even if
// the peer has completed the handshake by then. The peer keeps that connection until it
// times out, and may prefer it for its streams, which get no answer. The swarm dials
// several addresses of a peer at once, a private and a public one for instance, and
// cancels the others when the first has connected, which on a short path is the very
// moment in which they connect too. So a canceled dial goes on for a little while, and
// closes the connection if there is one.

// lastWord is how long a canceled dial goes on. Dials to one host that begin together
// end within a few milliseconds of each other, or some dozens on a busy machine.
const lastWord = 200 * time.Millisecond

// givenUp makes canceled dials close their connections.
type givenUp struct{ group *lifecycle.Group }

func newGivenUp() givenUp { return givenUp{lifecycle.NewGroup(context.Background())} }

// dial calls f, and returns when ctx ends. The context of f ends later.
func (g givenUp) dial(ctx context.Context, f func(context.Context) (transport.CapableConn, error)) (transport.CapableConn, error) {
	if punching, client, _ := network.GetSimultaneousConnect(ctx); punching && !client {
		return f(ctx) // which waits for the peer's dial
	}
	type result struct {
		conn transport.CapableConn
		err  error
	}
	results := make(chan result)
	going, cancel := context.WithCancel(context.WithoutCancel(ctx))
	begun := g.group.Go(func(closing context.Context) {
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
		defer context.AfterFunc(ctx, func() {
			timer := time.AfterFunc(lastWord, cancel)
			context.AfterFunc(going, func() { timer.Stop() })
		})()
		conn, err := f(going)
		select {
		case results <- result{conn, err}:
		case <-ctx.Done():
			if err == nil {
				_ = conn.Close() // the peer is told, or times out
			}
		}
	})
	if !begun {
		cancel()
		return nil, errors.New("the transport is closed")
	}
	select {
	case r := <-results:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// quicMethods are the methods that libp2p looks for in its QUIC transport.
type quicMethods interface {
	transport.Transport
	io.Closer
	ListenOrder() int
}

// quicTransport is libp2p's QUIC, whose canceled dials close their connections.
type quicTransport struct {
	quicMethods
	givenUp givenUp
}

func newQUIC(made transport.Transport, err error) (transport.Transport, error) {
	if err != nil {
		return nil, err
	}
	inner, ok := made.(quicMethods)
	if !ok {
		return nil, fmt.Errorf("a %T is not the QUIC that this is made for", made)
	}
	return quicTransport{inner, newGivenUp()}, nil
}

// Dial implements transport.Transport.
func (t quicTransport) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.givenUp.dial(ctx, func(ctx context.Context) (transport.CapableConn, error) { return t.quicMethods.Dial(ctx, a, p) })
}

// Close ends canceled dials too.
func (t quicTransport) Close() error {
	return errors.Join(t.givenUp.group.Close(), t.quicMethods.Close())
}
