package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/streams"
)

// StreamHandler serves an incoming stream; see [Node.Handle].
type StreamHandler func(ctx context.Context, s network.Stream) error

// HandleOption configures a call of [Node.Handle]: [HandleMatch] or
// [HandleVersions], one of the two.
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
		return optionErrorf(option, "another option already sets what to match; keep one of them")
	}
	c.match = match
	return nil
}

// HandleMatch also serves every protocol that match accepts, in addition to the
// one given to [Node.Handle]. The stream's Protocol method returns the one that
// the peer chose. What the node itself serves, and protocols with their own
// handler, are never matched; if several handlers match, the oldest serves. The
// node advertises only the given protocol, but peers can ask for the others.
// match runs while a stream's protocol is negotiated: it must be quick and must
// not call the node.
func HandleMatch(match func(protocol.ID) bool) HandleOption {
	return handleOption(func(c *handleConfig) error { return c.setMatch("HandleMatch", match) })
}

// HandleVersions also serves older versions of a protocol whose ID ends in
// /major.minor.patch: those of the same major and a lower minor version, and
// any patch. A handler of /chat/1.2.0 also serves /chat/1.0.0 and /chat/1.2.7,
// but not /chat/1.3.0 or /chat/2.0.0. Otherwise it works like [HandleMatch].
func HandleVersions() HandleOption {
	return handleOption(func(c *handleConfig) error {
		match, err := streams.Versions(c.proto)
		if err != nil {
			return &OptionError{Option: "HandleVersions", Err: err}
		}
		return c.setMatch("HandleVersions", match)
	})
}

// Handle serves a protocol: h runs in its own goroutine for each incoming
// stream, and the stream closes when h returns nil. If h returns an error or
// panics, the node resets only that stream, counts the failure in [Status], and
// logs it: as a warning at most once in 10 seconds, otherwise at Debug. A stream
// that its peer has reset is logged at Debug and does not count. A handler
// without deadlines waits as long as its peer lets it. The stream has the errors
// of [Node.OpenStream].
//
// The ctx of h ends when
//   - the stream's connection closes or is lost,
//   - the peer resets the stream; over TCP and WebSocket, after the peer has
//     closed its writing side, only the next Write notices, and while more than
//     1 KiB waits to be read, only the next Read,
//   - a Read or Write of h fails, except by a deadline, or h resets the stream,
//   - the node closes, which also resets the stream; Close waits for h,
//   - h returns.
//
// To notice, the node reads up to 1 KiB ahead of a handler that has called Done
// or Err of its ctx, or derived a context from it, and has not read for 50 ms.
// Other handlers pay nothing.
//
// Handle returns [ErrProtocolInUse] for a protocol that already has a handler
// or listener ([Node.Unhandle] removes it), and for one that the node itself
// serves or may come to serve: those of libp2p, the DHT and pubsub. An invalid
// option is an [OptionError]. It returns [ErrTooLarge] when the IDs of all
// protocols together would exceed about 3.5 KB, which is what the identify
// message to peers has room for, and [ErrClosed] after Close.
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
// options matched. Running handlers continue. It returns [ErrNotFound] for a
// protocol without a handler, [ErrProtocolInUse] for one served by a listener
// or the node itself, and [ErrClosed] after Close.
func (n *Node) Unhandle(p protocol.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if err := n.streams.Unhandle(p); err != nil {
		return n.fail(fmt.Errorf("unhandle %q: %w", p, err))
	}
	return nil
}

// OpenStream opens a stream to a peer for the first of the given protocols that
// the peer speaks. It connects first if needed, looking the peer up in the DHT
// if no address is known, and waits until the peer is identified, so it can
// directly follow a [Node.Connect] on either side. Over a relayed connection it
// works within the relay's limits, by default 128 KiB and 2 minutes; see
// [RelayLimits].
//
// OpenStream returns once the peer has accepted the stream, which takes one round
// trip. If the connection turns out to be dead, as after a restart of the peer,
// OpenStream replaces it immediately. While a limit of this node or of the peer
// is reached, it waits until ctx ends; the error then matches that of ctx and
// [ErrLimit]. With the ctx of [OpenNow] it fails immediately instead. WebTransport
// does not carry the codes with which a peer refuses a stream: over it, OpenStream
// does not wait while a limit of the peer is reached, and its error is that of any
// reset stream.
//
// If the peer speaks none of the protocols, the error matches
// [ErrProtocolNotSupported] and lists those it speaks. If it does not answer,
// OpenStream gives up when ctx ends, or after 10 seconds if ctx has no deadline.
// It also returns the errors of [Node.Connect], and [ErrClosed] after Close.
//
// The stream has the same errors over every transport. After a deadline, calls
// return [os.ErrDeadlineExceeded]; after its own Close or Reset, and when the
// node closes, [ErrClosed]. An error that matches [network.ErrReset] and not
// ErrClosed means that the peer reset the stream or that the connection was
// lost; Close and CloseWrite then return nil. Writes to a peer that has closed
// the stream end with that error, too, soon if the peer is a p2pnode. An open
// stream protects its peer from trimming ([WithConnLimits]) on both sides: end
// each stream with Close or Reset.
func (n *Node) OpenStream(ctx context.Context, p peer.ID, protos ...protocol.ID) (network.Stream, error) {
	if err := canOpen(n, p, len(protos)); err != nil {
		return nil, err
	}
	s, err := n.streams.Open(ctx, p, opensNow(ctx), protos...)
	if err != nil {
		return nil, failOpen(n, p, err)
	}
	return s, nil
}

// Dial opens a stream as [Node.OpenStream] does, with the same errors, and
// returns it as a [net.Conn] whose addresses are peer IDs, for code that does
// not know libp2p. It also has the CloseRead and CloseWrite of a [net.TCPConn].
func (n *Node) Dial(ctx context.Context, p peer.ID, proto protocol.ID) (net.Conn, error) {
	if err := canOpen(n, p, 1); err != nil {
		return nil, err
	}
	c, err := n.streams.Dial(ctx, p, opensNow(ctx), proto)
	if err != nil {
		return nil, failOpen(n, p, err)
	}
	return c, nil
}

// canOpen checks a call before anything is dialed.
func canOpen(n *Node, p peer.ID, protos int) error {
	switch {
	case n.closed():
		return ErrClosed
	case protos == 0:
		return fmt.Errorf("p2pnode: open stream to %s: no protocol given", p)
	}
	if err := checkID(p); err != nil {
		return fmt.Errorf("p2pnode: open stream: %w", err)
	}
	if p == n.id {
		return fmt.Errorf("p2pnode: open stream: %s is this node itself", p)
	}
	return nil
}

// failOpen adds to an error that a stream could not be opened; errors of
// connecting are complete without.
func failOpen(n *Node, p peer.ID, err error) error {
	if _, ok := errors.AsType[*nethost.ConnectError](err); ok {
		return n.fail(err)
	}
	return n.fail(fmt.Errorf("open stream to %s: %w", p, err))
}

type openNowKey struct{}

// OpenNow returns a ctx with which [Node.OpenStream] and [Node.Dial] return
// [ErrLimit] immediately if a limit is reached, instead of waiting. It is a
// property of the ctx because the last parameter of OpenStream is a list of
// protocols, and because code such as the DialContext of an http.Transport passes
// on only a ctx.
func OpenNow(ctx context.Context) context.Context { return context.WithValue(ctx, openNowKey{}, true) }

func opensNow(ctx context.Context) bool { return ctx.Value(openNowKey{}) != nil }

// Listen serves a protocol as a [net.Listener], for servers that do not know
// libp2p, such as http.Server. Up to 1,024 streams wait for Accept; the node
// resets further ones with [ErrLimit] and logs that. The listener's Close stops
// serving the protocol and resets waiting streams; accepted streams stay open.
// Accept returns [ErrClosed] after the listener's Close or the node's. Listen
// returns [ErrProtocolInUse] as [Node.Handle] does, and [ErrClosed] after Close.
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

func startStreams(n *Node) error {
	n.streams = streams.New(n.ctx, streams.Config{
		Host: n.base, Own: n.cfg.dhtProtocols(), Log: n.log, ProtocolBytes: protocolBytes(n),
		Choose: n.base.Answering, Identified: n.base.Identified,
		Connect: func(ctx context.Context, id peer.ID) error {
			if n.base.Connected(id) {
				return nil
			}
			bound, done := n.bind(ctx)
			defer done()
			return n.dialer.Connect(bound, peer.AddrInfo{ID: id})
		},
	})
	n.stack.Push("stream handlers", closeBudget, n.streams.Close)
	return nil
}

// protocolBytes returns how many bytes the IDs of the node's protocols may have
// together. Identify sends them in one message, of which peers read 4 KiB
// (rust-libp2p) or 8 KiB; if it is larger, they learn no protocols. The same
// message has the public key, the agent, and a few addresses.
func protocolBytes(n *Node) int {
	const message, rest = 4 << 10, 512
	key, err := crypto.MarshalPublicKey(n.key.GetPublic())
	if err != nil {
		return 0 // the host has not started with such a key
	}
	return message - rest - len(key) - len(n.cfg.userAgent)
}
