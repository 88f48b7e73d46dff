package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// errOwnReset is returned by calls after this side has reset the stream.
var errOwnReset = fmt.Errorf("%w by this side: %w", network.ErrReset, errs.ErrClosed)

// endError reports that the other side or the loss of the connection ended a
// stream. Some errors of transports for that match [net.ErrClosed], count as
// timeouts, or wrap io.EOF; an endError matches network.ErrReset and none of
// these.
type endError struct {
	err   error  // the transport's
	words string // describes its code
	limit bool   // the code is for a limit
}

func (e *endError) Error() string { return causes.Clean(e.err.Error()) + e.words }

// Is matches the error's own sentinels, and libp2p's errors that it wraps.
func (e *endError) Is(target error) bool {
	switch target {
	case network.ErrReset:
		return true
	case errs.ErrLimit:
		return e.limit
	case net.ErrClosed, io.EOF, os.ErrDeadlineExceeded, context.DeadlineExceeded:
		return false
	default:
		return errors.Is(e.err, target)
	}
}

// As finds libp2p's types, but not net.Error: the timeout of a connection is not a
// timeout of the stream.
func (e *endError) As(target any) bool {
	if _, ok := target.(*net.Error); ok {
		return false
	}
	return errors.As(e.err, target)
}

// ended returns the error for a stream that the other side or the loss of the
// connection ended.
func ended(err error) error {
	e := &endError{err: err}
	e.words, e.limit = causes.Remote(err)
	return e
}

// timedOut reports whether an error of a muxer is that of a deadline. The error of
// a lost connection can be, or wrap, a timeout, too, but not a temporary one.
func timedOut(err error) bool {
	if err == os.ErrDeadlineExceeded {
		return true
	}
	t, ok := err.(interface {
		Timeout() bool
		Temporary() bool
	})
	return ok && t.Timeout() && t.Temporary()
}
