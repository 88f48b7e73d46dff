package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/streams"
)

// StreamHandler serves one incoming stream; see [Node.Handle].
type StreamHandler func(ctx context.Context, s network.Stream) error

// HandleOption changes one Handle: [HandleMatch] or [HandleVersions].
type HandleOption interface{ applyHandle(*handleConfig) error }

type handleConfig struct {
	proto protocol.ID
	match func(protocol.ID) bool
}

type handleOption func(*handleConfig) error

func (o handleOption) applyHandle(c *handleConfig) error { return o(c) }

func (c *handleConfig) setMatch(option string, match func(protocol.ID) bool) error {
	switch {
	case match == nil:
		return optionErrorf(option, "nil function")
	case c.match != nil:
		return optionErrorf(option, "there is another option of that kind; keep one of them")
	}
	c.match = match
	return nil
}

// HandleMatch also serves every protocol that match accepts, beside the one
// that is handled. The stream's Protocol tells which one the peer asked for.
// What the node itself serves, and protocols with a handler of their own, are
// never matched; of several that match, the handler that was set first is
// taken. Peers are told of the handled protocol alone: they can ask for the others
// all the same. match runs while the protocol of a stream is negotiated: it
// must be quick and must not call the node.
func HandleMatch(match func(protocol.ID) bool) HandleOption {
	return handleOption(func(c *handleConfig) error { return c.setMatch("HandleMatch", match) })
}

// HandleVersions also serves the older versions of a protocol whose ID ends in
// /major.minor.patch: those with the same major and a lower minor version, and
// any patch. A handler of /chat/1.2.0 then serves /chat/1.0.0 and /chat/1.2.7,
// not /chat/1.3.0 or /chat/2.0.0. The rest is as with [HandleMatch].
func HandleVersions() HandleOption {
	return handleOption(func(c *handleConfig) error {
		match, err := streams.Versions(c.proto)
		if err != nil {
			return &OptionError{Option: "HandleVersions", Err: err}
		}
		return c.setMatch("HandleVersions", match)
	})
}

// Handle serves a protocol: h runs in a goroutine of its own for each incoming
// stream, and the stream is closed when h returns nil. When h returns an error
// or panics, that stream alone is reset and the failure is logged, as a warning
// unless the stream had ended before. A handler without deadlines of its own
// waits as long as its peer lets it.
//
// The ctx of h ends when
//   - the connection of the stream is closed, by either side or by its loss,
//   - the peer resets the stream, unless the peer has closed its writing side
//     before: then over TCP and WebSocket a reset shows by the next Write alone;
//     or more than 1 KiB from the peer waits to be read: then by the next Read,
//   - a Read or Write of h's fails other than by a deadline, or h resets it,
//   - the node closes, which resets the stream too; Close waits for h,
//   - h returns.
//
// For that the node reads up to 1 KiB ahead of a handler that has called Done
// or Err of its ctx, or derived another from it, and that does not read for 50 ms;
// others cost nothing.
//
// Handle returns [ErrProtocolInUse] for a protocol that has a handler or
// listener already ([Node.Unhandle] stops it), and for one that the node itself
// serves or may come to serve: those of libp2p, the DHT and pubsub. It returns
// [ErrClosed] after Close.
func (n *Node) Handle(p protocol.ID, h StreamHandler, opts ...HandleOption) error {
	if n.closed() {
		return ErrClosed
	}
	cfg := handleConfig{proto: p}
	var err error
	if h == nil {
		err = errors.New("nil handler; Unhandle stops serving")
	}
	for _, o := range opts {
		if o != nil && err == nil {
			err = o.applyHandle(&cfg)
		}
	}
	if err == nil {
		err = n.streams.Handle(p, h, cfg.match)
	}
	if err != nil {
		return n.fail(fmt.Errorf("handle %q: %w", p, err))
	}
	return nil
}

// Unhandle stops serving a protocol of [Node.Handle], along with what its
// options matched. Handlers that run go on. It returns [ErrNotFound] for a
// protocol without a handler, [ErrProtocolInUse] for one that is not served by
// Handle but by a listener or the node itself, and [ErrClosed] after Close.
func (n *Node) Unhandle(p protocol.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if err := n.streams.Unhandle(p); err != nil {
		return n.fail(fmt.Errorf("unhandle %q: %w", p, err))
	}
	return nil
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

// Dial opens a stream as OpenStream does and returns it as a net.Conn whose
// addresses are peer IDs, for code that knows nothing of libp2p.
func (n *Node) Dial(ctx context.Context, p peer.ID, proto protocol.ID) (net.Conn, error) {
	s, err := n.OpenStream(ctx, p, proto)
	if err != nil {
		return nil, err
	}
	return streams.Conn(s), nil
}

// Listen serves a protocol as a net.Listener, for servers that know nothing of
// libp2p, such as http.Server. Up to 128 streams wait for Accept; beyond that
// they are reset, which is logged. The listener's Close stops serving the
// protocol and resets what waits; accepted streams live on. Accept returns
// [ErrClosed] after the listener's Close or the node's. Listen returns
// [ErrProtocolInUse] as [Node.Handle] does, and [ErrClosed] after Close.
func (n *Node) Listen(p protocol.ID) (net.Listener, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	l, err := n.streams.Listen(p)
	if err != nil {
		return nil, n.fail(fmt.Errorf("listen %q: %w", p, err))
	}
	return l, nil
}
