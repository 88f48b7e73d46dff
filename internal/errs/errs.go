// Package errs holds the sentinels that the rooms return and the root package
// exports under the same names, where they are documented.
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
)

// closedError is the type of ErrClosed, so that it matches net.ErrClosed too.
type closedError struct{}

func (closedError) Error() string        { return "p2pnode: closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }
