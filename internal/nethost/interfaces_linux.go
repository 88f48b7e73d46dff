package nethost

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// routeChanges signals changes of the interfaces and their addresses, until stop is
// called. An app on Android may not ask for them.
func routeChanges(changed chan<- struct{}) (stop func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "netlink")
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 1<<12) // what does not fit is dropped: that it came is enough
		for {
			if _, err := file.Read(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return // it is closed
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	})
	return func() {
		_ = file.Close() // it is only read
		reading.Wait()
	}, nil
}
