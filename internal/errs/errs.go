// Package errs holds the sentinel errors that the rooms return and the root
// package exports and documents under the same names.
package errs

import (
	"errors"
	"net"
)

// The sentinels of the root package. Those that are always wrapped have no prefix:
// the root adds it, once, in front.
var (
	ErrClosed        error = closedError{}
	ErrDisabled            = errors.New("disabled")
	ErrNoPeers             = errors.New("no peers")
	ErrNotReady            = errors.New("not ready")
	ErrNotFound            = errors.New("not found")
	ErrBanned              = errors.New("banned")
	ErrTooLarge            = errors.New("message too large")
	ErrProtocolInUse       = errors.New("protocol in use")
	ErrLimit               = errors.New("limit reached")
	ErrRejected            = errors.New("message refused by a validator")
	ErrIgnore              = errors.New("message ignored")

	ErrProtocolNotSupported = errors.New("protocol not supported")
)

// closedError is the type of ErrClosed, which also matches net.ErrClosed.
type closedError struct{}

func (closedError) Error() string        { return "p2pnode: closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }
