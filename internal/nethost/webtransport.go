package nethost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	webtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"
	ma "github.com/multiformats/go-multiaddr"
)

// newWebTransport returns libp2p's WebTransport, with streams whose Reset ends
// every Read and Write.
//
// With webtransport-go v0.13 it does not. A Read interrupted by the peer's end
// of the session waits for the session to end on this side too, and streams
// that have been reset are not told: such a Read blocks forever, as happened to
// the DHT when a query was given up at that moment. A deadline ends that wait.
func newWebTransport(key crypto.PrivKey, psk pnet.PSK, conns *quicreuse.ConnManager, gater connmgr.ConnectionGater, limits network.ResourceManager, opts ...webtransport.Option) (transport.Transport, error) {
	t, err := webtransport.New(key, psk, conns, gater, limits, opts...)
	if err != nil {
		return nil, err
	}
	inner, ok := t.(wtTransportMethods)
	if !ok {
		return nil, fmt.Errorf("a %T is not the WebTransport that this is made for", t)
	}
	return wtTransport{inner}, nil
}

// wtTransportMethods are the methods that libp2p looks for in the transport.
type wtTransportMethods interface {
	transport.Transport
	transport.Resolver
	io.Closer
	AddCertHashes(ma.Multiaddr) (ma.Multiaddr, bool)
}

type wtTransport struct{ wtTransportMethods }

func (t wtTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	c, err := t.wtTransportMethods.Dial(ctx, addr, p)
	if err != nil {
		return nil, err
	}
	return wtConn{c}, nil
}

func (t wtTransport) Listen(addr ma.Multiaddr) (transport.Listener, error) {
	l, err := t.wtTransportMethods.Listen(addr)
	if err != nil {
		return nil, err
	}
	return wtListener{l}, nil
}

type wtListener struct{ transport.Listener }

func (l wtListener) Accept() (transport.CapableConn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wtConn{c}, nil
}

type wtConn struct{ transport.CapableConn }

func (c wtConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.CapableConn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &wtStream{MuxedStream: s}, nil
}

func (c wtConn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.CapableConn.AcceptStream()
	if err != nil {
		return nil, err
	}
	return &wtStream{MuxedStream: s}, nil
}

type wtStream struct {
	network.MuxedStream
	reset atomic.Bool
}

// Read and Write distinguish a reset from a deadline.
func (s *wtStream) Read(b []byte) (int, error) {
	n, err := s.MuxedStream.Read(b)
	return n, s.ended(err)
}

func (s *wtStream) Write(b []byte) (int, error) {
	n, err := s.MuxedStream.Write(b)
	return n, s.ended(err)
}

func (s *wtStream) ended(err error) error {
	if err == nil || errors.Is(err, io.EOF) || !s.reset.Load() {
		return err
	}
	return &network.StreamError{TransportError: err}
}

// past is an expired deadline.
var past = time.Unix(1, 0)

func (s *wtStream) Reset() error {
	s.reset.Store(true)
	err := s.MuxedStream.Reset()
	_ = s.SetDeadline(past) // fails if the stream is gone
	return err
}

func (s *wtStream) ResetWithError(code network.StreamErrorCode) error {
	s.reset.Store(true)
	err := s.MuxedStream.ResetWithError(code)
	_ = s.SetDeadline(past)
	return err
}

func (s *wtStream) Close() error {
	err := s.MuxedStream.Close()
	_ = s.SetReadDeadline(past)
	return err
}

func (s *wtStream) CloseRead() error {
	err := s.MuxedStream.CloseRead()
	_ = s.SetReadDeadline(past)
	return err
}
