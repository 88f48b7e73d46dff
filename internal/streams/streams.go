// Package streams serves the application's protocols: handlers that end with
// their streams, and listeners.
package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/occasion"
)

// libp2pProtocols are libp2p's own. Which of them a host serves depends on its
// options and, later, on its reachability.
var libp2pProtocols = []protocol.ID{
	ping.ID, identify.ID, identify.IDPush, holepunch.Protocol,
	autonat.AutoNATProto, autonatv2.DialProtocol, autonatv2.DialBackProtocol,
	proto.ProtoIDv2Hop, proto.ProtoIDv2Stop,
}

// Handler serves one stream.
type Handler = func(context.Context, network.Stream) error

// Config configures a [Server].
type Config struct {
	Host host.Host
	// Connect connects to a peer unless it is connected.
	Connect func(context.Context, peer.ID) error
	// Choose returns the connection to open a stream to a peer on; nil if the host's
	// network may choose. It may be nil.
	Choose func(context.Context, peer.ID) network.Conn
	// Identified returns a channel that is closed once a connection is identified.
	// It may be nil.
	Identified func(network.Conn) <-chan struct{}
	Own        []protocol.ID // what the node itself serves or may serve, in addition to libp2p's protocols and those already registered
	Log        *slog.Logger
	// ProtocolBytes bounds the IDs of all protocols together: peers are told them
	// in one message. 0 means no bound.
	ProtocolBytes int
}

// Server owns the application's protocols and the running handlers.
type Server struct {
	host  host.Host
	log   *slog.Logger
	group *lifecycle.Group
	own   map[protocol.ID]bool // read-only
	// idBytes bounds the IDs of all protocols together; 0 for no bound.
	idBytes int
	gone    network.Notifiee
	holds   holds

	connect    func(context.Context, peer.ID) error
	choose     func(context.Context, peer.ID) network.Conn
	identified func(network.Conn) <-chan struct{}

	backlog int // of listeners

	failures   atomic.Uint64     // of handlers
	failureLog occasion.Occasion // and panics have one of their own
	panicLog   occasion.Occasion

	mu      sync.Mutex
	closed  bool                     // guarded by mu
	served  map[protocol.ID]*service // guarded by mu
	running map[*stream]struct{}     // streams with a handler; guarded by mu
}

// service is a served protocol.
type service struct {
	listener bool
	busy     bool // being registered or removed; guarded by Server.mu
}

// New returns a Server that works until ctx ends or Close is called.
func New(ctx context.Context, cfg Config) *Server {
	s := &Server{
		host: cfg.Host, log: cfg.Log, idBytes: cfg.ProtocolBytes, group: lifecycle.NewGroup(ctx), own: make(map[protocol.ID]bool),
		connect: cfg.Connect, choose: cfg.Choose, identified: cfg.Identified,
		backlog: defaultBacklog, served: make(map[protocol.ID]*service), running: make(map[*stream]struct{}),
	}
	s.holds = holds{
		group: s.group, conns: make(map[network.Conn]*hold), queues: make(map[peer.ID]*queue),
		protect: func(id peer.ID, tag string, on bool) {
			if on {
				cfg.Host.ConnManager().Protect(id, tag)
			} else {
				cfg.Host.ConnManager().Unprotect(id, tag)
			}
		},
	}
	if s.choose == nil {
		s.choose = func(context.Context, peer.ID) network.Conn { return nil }
	}
	if s.identified == nil {
		known := make(chan struct{})
		close(known)
		s.identified = func(network.Conn) <-chan struct{} { return known }
	}
	for _, p := range slices.Concat(libp2pProtocols, cfg.Own, cfg.Host.Mux().Protocols()) {
		s.own[p] = true
	}
	s.gone = &network.NotifyBundle{DisconnectedF: s.disconnected}
	cfg.Host.Network().Notify(s.gone)
	return s
}

// Close resets the streams with running handlers, so that blocked reads and
// writes return, and waits for the handlers.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	list := slices.Collect(maps.Keys(s.running))
	s.mu.Unlock()
	for _, st := range list {
		st.end(errs.ErrClosed)
		_ = st.live.Reset() // the handler notices at its next read or write
	}
	s.host.Network().StopNotify(s.gone)
	s.holds.close()
	return s.group.Close()
}

// Handle serves a protocol with h, along with those that match accepts, if not
// nil. It returns errs.ErrProtocolInUse if the protocol is already served.
func (s *Server) Handle(p protocol.ID, h Handler, match func(protocol.ID) bool) error {
	return s.register(p, &service{}, match, func(st network.Stream) { s.serve(st, h) })
}

// Unhandle undoes Handle. Running handlers continue.
func (s *Server) Unhandle(p protocol.ID) error {
	s.mu.Lock()
	own := s.own[p]
	svc := s.served[p]
	var err error
	switch {
	case s.closed:
		err = errs.ErrClosed
	case own:
		err = fmt.Errorf("%w: the node itself serves it", errs.ErrProtocolInUse)
	case svc == nil || svc.busy:
		err = fmt.Errorf("%w: it has no handler", errs.ErrNotFound)
	case svc.listener:
		err = fmt.Errorf("%w: a listener serves it; close the listener", errs.ErrProtocolInUse)
	default:
		svc.busy = true
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.unregister(p)
	return nil
}

// register makes the host serve a protocol.
func (s *Server) register(p protocol.ID, svc *service, match func(protocol.ID) bool, h network.StreamHandler) error {
	if p == "" {
		return errors.New("empty protocol ID")
	}
	svc.busy = true
	s.mu.Lock()
	var err error
	switch {
	case s.closed:
		err = errs.ErrClosed
	case s.own[p]:
		err = fmt.Errorf("%w: the node itself serves it", errs.ErrProtocolInUse)
	case s.served[p] != nil:
		err = fmt.Errorf("%w: it already has a handler or listener; stop that first", errs.ErrProtocolInUse)
	default:
		s.served[p] = svc
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	served := s.host.Mux().Protocols()
	size := len(p)
	for _, other := range served {
		size += len(other)
	}
	if s.idBytes > 0 && size > s.idBytes {
		s.forget(p)
		return fmt.Errorf("%w: the IDs of the protocols that this node serves would have %d bytes, limit %d, as peers are told them in one message; use fewer or shorter ones, or HandleMatch", errs.ErrTooLarge, size, s.idBytes)
	}
	if slices.Contains(served, p) {
		s.forget(p)
		return fmt.Errorf("%w: it already has a handler, set through Host", errs.ErrProtocolInUse)
	}
	if match == nil {
		s.host.SetStreamHandler(p, h)
	} else {
		s.host.SetStreamHandlerMatch(p, func(id protocol.ID) bool { return id == p || !s.taken(id) && match(id) }, h)
	}
	s.mu.Lock()
	svc.busy = false
	s.mu.Unlock()
	return nil
}

// unregister undoes register. Until it is done nobody else can register the
// protocol: the wrong handler would be removed.
func (s *Server) unregister(p protocol.ID) {
	s.host.RemoveStreamHandler(p)
	s.forget(p)
}

func (s *Server) forget(p protocol.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.served, p)
}

// taken reports whether a protocol is served under its own name, which takes
// precedence over matching.
func (s *Server) taken(p protocol.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own[p] || s.served[p] != nil
}

// Versions returns a function that matches the versions that a protocol ending
// in /major.minor.patch can serve: those of its major version, up to its minor.
func Versions(p protocol.ID) (func(protocol.ID) bool, error) {
	name, mine, ok := version(p)
	if !ok {
		return nil, fmt.Errorf("%q does not end in a version such as /1.2.0", p)
	}
	return func(id protocol.ID) bool {
		n, v, ok := version(id)
		return ok && n == name && v[0] == mine[0] && v[1] <= mine[1]
	}, nil
}

func version(p protocol.ID) (name string, v [3]uint64, ok bool) {
	i := strings.LastIndexByte(string(p), '/')
	if i < 0 {
		return "", v, false
	}
	parts := strings.Split(string(p[i+1:]), ".")
	if len(parts) != len(v) {
		return "", v, false
	}
	for k, part := range parts {
		var err error
		if v[k], err = strconv.ParseUint(part, 10, 32); err != nil {
			return "", v, false
		}
	}
	return string(p[:i]), v, true
}

// serve runs a handler over one stream. It closes the stream afterwards, or
// resets it if the handler fails or panics.
func (s *Server) serve(raw network.Stream, h Handler) {
	if !s.group.Run(func(ctx context.Context) { s.run(ctx, raw, h) }) {
		_ = raw.Reset()
	}
}

func (s *Server) run(ctx context.Context, raw network.Stream, h Handler) {
	st := newStream(ctx, s.newLive(raw), s.group)
	if !s.enter(st) {
		_ = st.live.Reset()
		return
	}
	panicked, err := guard(&st.handler, st, h)
	s.leave(st)
	gone := st.gone()
	st.finish()
	if err == nil {
		_ = st.live.Close() // which returns nil
		return
	}
	_ = st.live.Reset()    // an error would not change anything
	if gone && !panicked { // by the peer, or because the node closes
		s.log.Debug("stream ended before its handler", "protocol", raw.Protocol(), "peer", raw.Conn().RemotePeer(), "err", err)
		return
	}
	// Any peer can make a handler fail as often as it likes.
	total := s.failures.Add(1)
	level, due := slog.LevelDebug, &s.failureLog
	if panicked {
		due = &s.panicLog
	}
	if due.Now() {
		level = slog.LevelWarn
	}
	s.log.Log(ctx, level, "stream handler failed", "protocol", raw.Protocol(), "peer", raw.Conn().RemotePeer(), "total", total, "err", err)
}

// Failures returns how many handlers have failed or panicked.
func (s *Server) Failures() uint64 { return s.failures.Load() }

// guard calls a handler and turns a panic into an error.
func guard(ctx context.Context, st network.Stream, h Handler) (panicked bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			panicked, err = true, fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return false, h(ctx, st)
}

// enter registers a stream. If its connection has already closed, disconnected
// has missed it.
func (s *Server) enter(st *stream) bool {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.running[st] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		return false
	}
	if st.Conn().IsClosed() {
		st.end(errConnClosed)
	}
	return true
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, st)
}

// disconnected ends the handlers of a closed connection.
func (s *Server) disconnected(_ network.Network, conn network.Conn) {
	s.holds.lose(conn)
	s.mu.Lock()
	var list []*stream
	for st := range s.running {
		if st.Conn() == conn {
			list = append(list, st)
		}
	}
	s.mu.Unlock()
	for _, st := range list {
		st.end(errConnClosed)
	}
}
