// Package errs holds the sentinel errors that the rooms return and the root
// package exports and documents under the same names.
package errs

import (
	"errors"
	"net"
)

// The sentinels of the root package.
var (
	ErrClosed        error = closedError{}
	ErrDisabled            = errors.New("p2pnode: disabled")
	ErrNoPeers             = errors.New("p2pnode: no peers")
	ErrNotReady            = errors.New("p2pnode: not ready")
	ErrNotFound            = errors.New("p2pnode: not found")
	ErrBanned              = errors.New("p2pnode: banned")
	ErrTooLarge            = errors.New("p2pnode: message too large")
	ErrProtocolInUse       = errors.New("p2pnode: protocol in use")
	ErrLimit               = errors.New("p2pnode: limit reached")

	ErrProtocolNotSupported = errors.New("p2pnode: protocol not supported")
)

// closedError is the type of ErrClosed, which also matches net.ErrClosed.
type closedError struct{}

func (closedError) Error() string        { return "p2pnode: closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }
