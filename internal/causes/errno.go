package causes

import (
	"errors"
	"slices"
	"syscall"
)

// The system's errors, each with its number on Windows, where package syscall
// makes up others that the system never returns. Elsewhere nothing has those.
var (
	inUse       = []syscall.Errno{syscall.EADDRINUSE, 10048}
	notHere     = []syscall.Errno{syscall.EADDRNOTAVAIL, 10049}
	denied      = []syscall.Errno{syscall.EACCES, syscall.EPERM, 10013}
	refused     = []syscall.Errno{syscall.ECONNREFUSED, 10061}
	unreachable = []syscall.Errno{syscall.ENETUNREACH, syscall.EHOSTUNREACH, 10051, 10065}
)

// is reports whether an error is one of the system's.
func is(err error, list []syscall.Errno) bool {
	e, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(list, e)
}
