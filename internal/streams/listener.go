package streams

import (
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/occasion"
)

// defaultBacklog is how many streams wait for Accept; further ones are reset. It
// is enough for a thousand concurrent requests.
const defaultBacklog = 1024

// addr is a peer as a net.Addr.
type addr peer.ID

func (addr) Network() string  { return "libp2p" }
func (a addr) String() string { return peer.ID(a).String() }

// conn is a stream as a net.Conn: the addresses are peer IDs.
type conn struct{ *live }

func (c conn) LocalAddr() net.Addr  { return addr(c.Conn().LocalPeer()) }
func (c conn) RemoteAddr() net.Addr { return addr(c.Conn().RemotePeer()) }

type listener struct {
	server *Server
	proto  protocol.ID
	queue  chan conn
	full   occasion.Occasion // of the log line about a full queue
	once   sync.Once
	done   chan struct{}
}

// Listen serves a protocol as a net.Listener. It returns errs.ErrProtocolInUse
// if the protocol is already served.
func (s *Server) Listen(p protocol.ID) (net.Listener, error) {
	l := &listener{server: s, proto: p, queue: make(chan conn, s.backlog), done: make(chan struct{})}
	if err := s.register(p, &service{listener: true}, nil, l.incoming); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *listener) incoming(s network.Stream) {
	select {
	case <-l.done:
		_ = s.Reset()
		return
	default:
	}
	c := conn{l.server.newLive(s)}
	select {
	case l.queue <- c:
		select {
		case <-l.done: // Close may already have emptied the queue
			l.reset()
		default:
		}
	default:
		if l.full.Now() {
			l.server.log.Warn("resetting streams: the listener's backlog is full", "protocol", l.proto, "peer", s.Conn().RemotePeer())
		}
		_ = c.ResetWithError(network.StreamResourceLimitExceeded)
	}
}

func (l *listener) Accept() (net.Conn, error) {
	closing := l.server.group.Context().Done()
	select {
	case <-l.done:
		return nil, errs.ErrClosed
	case <-closing:
		return nil, errs.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, errs.ErrClosed
	case <-closing:
		return nil, errs.ErrClosed
	}
}

// Close stops serving the protocol and resets the waiting streams. Accepted ones
// stay open.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.server.unregister(l.proto)
		l.reset()
	})
	return nil
}

// reset resets the waiting streams.
func (l *listener) reset() {
	for {
		select {
		case c := <-l.queue:
			_ = c.Reset()
		default:
			return
		}
	}
}

func (l *listener) Addr() net.Addr { return addr(l.server.host.ID()) }
