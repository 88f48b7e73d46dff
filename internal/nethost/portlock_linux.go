package nethost

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// portLockWait is how long a node waits for another that is about to bind the same
// port. Anybody on the machine can hold the lock.
const portLockWait = time.Second

// lockPort returns once no other node on this machine is about to bind a TCP port,
// and a function that lets others do so. The lock is a name in the abstract
// namespace of Unix sockets, of which each network namespace has its own; the kernel
// removes it with the process.
func lockPort(number string) (unlock func()) {
	name := &net.UnixAddr{Net: "unix", Name: "@p2pnode/tcp/" + number}
	for end := time.Now().Add(portLockWait); time.Now().Before(end); {
		l, err := net.ListenUnix("unix", name)
		if err == nil {
			return func() { _ = l.Close() } // nothing to be done about an error
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break // no such sockets here
		}
		// Nobody accepts the connection; it ends with the listener.
		c, err := net.DialUnix("unix", nil, name)
		if err != nil {
			continue // it has just gone
		}
		_ = c.SetReadDeadline(end)
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	return func() {}
}
