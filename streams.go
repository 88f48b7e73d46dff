package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

// streamsPart owns the running stream handlers.
type streamsPart struct {
	log   *slog.Logger
	group *lifecycle.Group

	mu      sync.Mutex
	running map[network.Stream]struct{} // guarded by mu
	closed  bool                        // guarded by mu
}

func newStreams(ctx context.Context, log *slog.Logger) *streamsPart {
	return &streamsPart{log: log, group: lifecycle.NewGroup(ctx), running: make(map[network.Stream]struct{})}
}

// close resets the streams whose handlers still run, so that blocked reads
// and writes return, and waits for the handlers.
func (s *streamsPart) close() error {
	s.mu.Lock()
	s.closed = true
	streams := make([]network.Stream, 0, len(s.running))
	for st := range s.running {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	for _, st := range streams {
		_ = st.Reset() // the handler learns of it by its next read or write
	}
	return s.group.Close()
}

func (s *streamsPart) enter(st network.Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running[st] = struct{}{}
	return true
}

func (s *streamsPart) leave(st network.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, st)
}

// serve runs a handler over one stream: it closes the stream afterwards, or
// resets it when the handler fails or panics.
func (s *streamsPart) serve(st network.Stream, h func(context.Context, network.Stream) error) {
	if !s.enter(st) || !s.group.Run(func(ctx context.Context) { s.run(ctx, st, h) }) {
		_ = st.Reset()
	}
	s.leave(st)
}

func (s *streamsPart) run(ctx context.Context, st network.Stream, h func(context.Context, network.Stream) error) {
	if err := guard(ctx, st, h); err != nil {
		_ = st.Reset() // nothing more can be said to a peer that we hang up on
		s.log.Warn("stream handler failed", "protocol", st.Protocol(), "peer", st.Conn().RemotePeer(), "err", err)
		return
	}
	if err := st.Close(); err != nil {
		s.log.Debug("closing a handled stream", "protocol", st.Protocol(), "err", err)
	}
}

// guard calls a handler and turns a panic into an error.
func guard(ctx context.Context, st network.Stream, h func(context.Context, network.Stream) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return h(ctx, st)
}

// Handle serves a protocol: h runs in a goroutine of its own for each incoming
// stream, and the stream is closed when h returns nil. When h returns an error
// or panics, that stream alone is reset and the failure is logged. The ctx of h
// ends, and its stream is reset, when the node closes; Close waits for h then.
// A handler without deadlines of its own waits as long as its peer lets it.
//
// Handling a protocol again replaces the handler, which is logged; a nil h
// stops serving it. After Close, Handle does nothing.
func (n *Node) Handle(p protocol.ID, h func(ctx context.Context, s network.Stream) error) {
	if n.closed() {
		return
	}
	if h == nil {
		n.base.RemoveStreamHandler(p)
		return
	}
	if slices.Contains(n.base.Mux().Protocols(), p) {
		n.log.Warn("stream handler replaced", "protocol", p)
	}
	streams := n.streams
	n.base.SetStreamHandler(p, func(s network.Stream) { streams.serve(s, h) })
}

// OpenStream opens a stream to a peer for the first of the protocols that the
// peer speaks. It connects first if needed, looking the peer up in the DHT if
// no address is known, and waits until the peer is identified, so that it can
// follow a Connect on either side at once. Over a relayed connection it works
// within the relay's limits (by default 128 KiB and 2 minutes, see RelayLimits).
//
// When the peer speaks none of the protocols the error says which it speaks.
// It returns ErrClosed after Close.
func (n *Node) OpenStream(ctx context.Context, p peer.ID, protos ...protocol.ID) (network.Stream, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	if len(protos) == 0 {
		return nil, fmt.Errorf("p2pnode: open stream to %s: no protocol given", p)
	}
	if p == n.id {
		return nil, fmt.Errorf("p2pnode: open stream: %s is this node itself", p)
	}
	if !n.base.Connected(p) {
		bound, done := n.bind(ctx)
		err := n.dialer.Connect(bound, peer.AddrInfo{ID: p})
		done()
		if err != nil {
			return nil, n.fail(err)
		}
	}
	// The host waits for identify itself. Closing it ends a blocked call, so
	// ctx need not be bound to the node here.
	s, err := n.base.NewStream(network.WithAllowLimitedConn(ctx, "p2pnode"), p, protos...)
	if err == nil {
		return s, nil
	}
	var unsupported multistream.ErrNotSupported[protocol.ID]
	if errors.As(err, &unsupported) {
		known, _ := n.base.Peerstore().GetProtocols(p)
		return nil, n.fail(fmt.Errorf("open stream to %s: it speaks none of %v, but %v: %w", p, protos, known, err))
	}
	return nil, n.fail(fmt.Errorf("open stream to %s: %w", p, limits.Explain(err)))
}

// streamAddr is a peer as a net.Addr.
type streamAddr peer.ID

func (streamAddr) Network() string  { return "libp2p" }
func (a streamAddr) String() string { return peer.ID(a).String() }

// streamConn is a stream as a net.Conn: the addresses are peer IDs.
type streamConn struct{ network.Stream }

func (c streamConn) LocalAddr() net.Addr  { return streamAddr(c.Conn().LocalPeer()) }
func (c streamConn) RemoteAddr() net.Addr { return streamAddr(c.Conn().RemotePeer()) }

// Dial opens a stream as OpenStream does and returns it as a net.Conn whose
// addresses are peer IDs, for code that knows nothing of libp2p.
func (n *Node) Dial(ctx context.Context, p peer.ID, proto protocol.ID) (net.Conn, error) {
	s, err := n.OpenStream(ctx, p, proto)
	if err != nil {
		return nil, err
	}
	return streamConn{s}, nil
}

// listenBacklog is how many streams wait for Accept; more are reset.
const listenBacklog = 128

type streamListener struct {
	node    *Node
	proto   protocol.ID
	backlog chan streamConn
	once    sync.Once
	done    chan struct{}
}

// Listen serves a protocol as a net.Listener, for servers that know nothing of
// libp2p, such as http.Server. Up to 128 streams wait for Accept; beyond that
// they are reset, which is logged. Accept returns ErrClosed after the
// listener's Close or the node's. Listening to a protocol that is served
// already is an error.
func (n *Node) Listen(p protocol.ID) (net.Listener, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	if slices.Contains(n.base.Mux().Protocols(), p) {
		return nil, fmt.Errorf("p2pnode: listen: %s is served already", p)
	}
	l := &streamListener{node: n, proto: p, backlog: make(chan streamConn, listenBacklog), done: make(chan struct{})}
	n.base.SetStreamHandler(p, func(s network.Stream) {
		select {
		case <-l.done:
			_ = s.Reset()
		case l.backlog <- streamConn{s}:
		default:
			n.log.Warn("stream reset: nobody accepts", "protocol", p, "peer", s.Conn().RemotePeer())
			_ = s.Reset()
		}
	})
	return l, nil
}

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, ErrClosed
	case <-l.node.ctx.Done():
		return nil, ErrClosed
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.done:
		return nil, ErrClosed
	case <-l.node.ctx.Done():
		return nil, ErrClosed
	}
}

// Close stops serving the protocol and resets the streams that nobody has
// accepted. Accepted ones live on.
func (l *streamListener) Close() error {
	l.once.Do(func() {
		l.node.base.RemoveStreamHandler(l.proto)
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				_ = c.Reset()
			default:
				return
			}
		}
	})
	return nil
}

func (l *streamListener) Addr() net.Addr { return streamAddr(l.node.id) }
