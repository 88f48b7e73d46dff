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

// errOwnReset is what calls return after this side has reset the stream.
var errOwnReset = fmt.Errorf("%w by this side: %w", network.ErrReset, errs.ErrClosed)

// endError says that the other side, or the loss of the connection, ended a
// stream. Transports have errors of their own for it, some of which match
// [net.ErrClosed], count as timeouts, or wrap io.EOF: as an endError all match
// network.ErrReset and none of those.
type endError struct {
	err   error  // the transport's
	words string // what its code means
	limit bool   // which is a limit
}

func (e *endError) Error() string { return e.err.Error() + e.words }

// Is matches what the error is, and what it wraps of libp2p's.
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

// As finds libp2p's types, but no net.Error: the timeout of a connection is none
// of the stream's.
func (e *endError) As(target any) bool {
	if _, ok := target.(*net.Error); ok {
		return false
	}
	return errors.As(e.err, target)
}

// ended says why the other side ended a stream or its connection.
func ended(err error) error {
	e := &endError{err: err}
	e.words, e.limit = causes.Remote(err)
	return e
}

// timedOut reports whether an error of a muxer is that of a deadline. The loss
// of a connection can be a timeout too, which is not temporary, or wrap one.
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
