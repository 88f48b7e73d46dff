package streams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

const (
	// answerPatience is how long a peer may take to answer, or to have room, if
	// ctx has no deadline.
	answerPatience = 10 * time.Second
	// nowPatience is how long a muxer may take to open a stream with OpenNow: QUIC
	// has no other way to find out whether there is room.
	nowPatience = 200 * time.Millisecond
	// How soon a refused stream is tried again. The end of another stream to the
	// peer makes it sooner.
	retryMin, retryMax = 5 * time.Millisecond, 500 * time.Millisecond
	// maxLost is how many connections may turn out to be dead.
	maxLost = 3
)

// Open opens a stream for the first of protos that the peer speaks, and returns it
// once the peer has accepted it. Until then it writes only the protocol ID, and
// replaces a connection that turns out to be dead. While a limit of either side is
// reached, it waits until ctx ends, or with now fails immediately; both errors
// match errs.ErrLimit.
func (s *Server) Open(ctx context.Context, id peer.ID, now bool, protos ...protocol.ID) (network.Stream, error) {
	st, err := s.open(ctx, id, now, protos)
	if err != nil {
		return nil, err // not a typed nil
	}
	return st, nil
}

// Dial opens a stream as Open does, as a net.Conn whose addresses are peer IDs.
func (s *Server) Dial(ctx context.Context, id peer.ID, now bool, p protocol.ID) (net.Conn, error) {
	st, err := s.open(ctx, id, now, []protocol.ID{p})
	if err != nil {
		return nil, err
	}
	return conn{st}, nil
}

func (s *Server) open(ctx context.Context, id peer.ID, now bool, protos []protocol.ID) (*live, error) {
	st, way, err := s.try(ctx, id, now, protos)
	if err == nil {
		return st, nil
	}
	var room <-chan struct{}
	var refusal error // the last
	wait := backoff.Backoff{Min: retryMin, Max: retryMax}
	for losses := 0; err != nil; st, way, err = s.try(ctx, id, now, protos) {
		switch {
		case way == full && !now:
			refusal = err
			if room == nil {
				var leave func()
				room, leave = s.holds.enqueue(id)
				defer leave()
			}
		case way == lost && losses < maxLost:
			losses++
		default:
			return nil, s.cause(ctx, err, refusal)
		}
		if room != nil || losses > 1 {
			timer := time.NewTimer(wait.Next())
			select {
			case <-room:
			case <-timer.C:
			case <-ctx.Done():
			case <-s.group.Context().Done():
			}
			timer.Stop()
		}
		if ctx.Err() != nil || s.group.Context().Err() != nil {
			return nil, s.cause(ctx, err, refusal)
		}
	}
	return st, nil
}

// cause returns the error after the end of ctx or the node, with what Open waited
// for.
func (s *Server) cause(ctx context.Context, err, refusal error) error {
	switch {
	case s.group.Context().Err() != nil:
		return errs.ErrClosed
	case ctx.Err() == nil:
		return err
	case refusal != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), refusal)
	case !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	default:
		return err
	}
}

// failure is a kind of failure after which another try may succeed.
type failure int

const (
	other failure = iota
	lost          // the connection is dead
	full          // a limit is reached
)

// try opens a stream once.
func (s *Server) try(ctx context.Context, id peer.ID, now bool, protos []protocol.ID) (*live, failure, error) {
	if err := s.connect(ctx, id); err != nil {
		return nil, other, err
	}
	bound := ctx
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		bound, cancel = context.WithTimeout(ctx, answerPatience)
		defer cancel()
	}
	raw, err := s.openRaw(bound, id, now)
	switch {
	case err == nil:
	case errors.Is(err, network.ErrNoConn):
		return nil, lost, fmt.Errorf("the connection was lost meanwhile: %w", network.ErrReset)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return nil, full, &fullError{err}
	case isLoss(err):
		return nil, lost, ended(err)
	default:
		return refused(limits.Explain(err))
	}
	p, err := s.negotiate(bound, raw, protos)
	if err == nil {
		if err = raw.SetProtocol(p); err != nil {
			_ = raw.ResetWithError(network.StreamResourceLimitExceeded)
			return refused(limits.Explain(err))
		}
		return s.newLive(raw), other, nil
	}
	_ = raw.ResetWithError(network.StreamProtocolNegotiationFailed)
	var unsupported multistream.ErrNotSupported[protocol.ID]
	switch {
	case bound.Err() != nil:
		if err = context.Cause(bound); errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		return nil, other, err
	case errors.As(err, &unsupported):
		return nil, other, s.unsupported(id, protos, err)
	case isLoss(err) || raw.Conn().IsClosed():
		_ = raw.Conn().Close() // the swarm may not know yet
		return nil, lost, ended(err)
	default:
		return refused(ended(err))
	}
}

func refused(err error) (*live, failure, error) {
	if errors.Is(err, errs.ErrLimit) {
		return nil, full, err
	}
	return nil, other, err
}

// openRaw opens a stream without negotiating a protocol.
func (s *Server) openRaw(ctx context.Context, id peer.ID, now bool) (network.Stream, error) {
	chosen := s.choose(ctx, id) // it may wait for identify, as negotiate does
	if now {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, nowPatience)
		defer cancel()
	}
	if chosen != nil {
		raw, err := chosen.NewStream(ctx)
		if err == nil || !chosen.IsClosed() {
			return raw, err
		}
	}
	ctx = network.WithNoDial(network.WithAllowLimitedConn(ctx, "p2pnode"), "p2pnode")
	return s.host.Network().NewStream(ctx, id)
}

// negotiate agrees with the peer on a protocol, starting with one that it is known
// to speak.
func (s *Server) negotiate(ctx context.Context, raw network.Stream, protos []protocol.ID) (protocol.ID, error) {
	select {
	case <-s.identified(raw.Conn()):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	id := raw.Conn().RemotePeer()
	known, err := s.host.Peerstore().SupportsProtocols(id, protos...)
	if err != nil {
		return "", err
	}
	if len(known) > 0 && known[0] != protos[0] {
		others := slices.DeleteFunc(slices.Clone(protos), func(p protocol.ID) bool { return p == known[0] })
		protos = append([]protocol.ID{known[0]}, others...)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.ResetWithError(network.StreamProtocolNegotiationFailed) })
	p, err := selectOne(raw, protos)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && !slices.Contains(known, p) {
		err = s.host.Peerstore().AddProtocols(id, p)
	}
	return p, err
}

// isLoss reports whether the error of a stream means that its connection was lost:
// those of QUIC match net.ErrClosed.
func isLoss(err error) bool {
	_, lost := errors.AsType[*network.ConnError](err)
	return lost || errors.Is(err, net.ErrClosed)
}

// fullError is a connection that takes no more streams. It matches
// errs.ErrLimit.
type fullError struct{ err error }

func (e *fullError) Error() string {
	return "the other side takes no more streams over this connection (its limit of streams per peer)"
}
func (e *fullError) Unwrap() error        { return e.err }
func (e *fullError) Is(target error) bool { return target == errs.ErrLimit }

// unsupportedError is a peer that speaks none of the protocols. It matches
// errs.ErrProtocolNotSupported.
type unsupportedError struct {
	text string
	err  error
}

func (s *Server) unsupported(id peer.ID, protos []protocol.ID, err error) error {
	known, _ := s.host.Peerstore().GetProtocols(id) // it has none of a stranger
	slices.Sort(known)
	return &unsupportedError{fmt.Sprintf("it speaks none of %v, but %v", protos, known), err}
}

func (e *unsupportedError) Error() string        { return e.text }
func (e *unsupportedError) Unwrap() error        { return e.err }
func (e *unsupportedError) Is(target error) bool { return target == errs.ErrProtocolNotSupported }
