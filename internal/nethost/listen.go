package nethost

import (
	"net"
	"slices"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// ListenFailure is an address that did not bind, and why.
type ListenFailure struct {
	Addr ma.Multiaddr
	Err  error
}

// Listen binds each address separately, and returns those that failed.
func (h *Host) Listen(list []ma.Multiaddr) []ListenFailure {
	// WebTransport and WebRTC share the UDP port of a QUIC listener if that comes
	// first.
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b ma.Multiaddr) int {
		return listenOrder[addrs.KindOf(a)] - listenOrder[addrs.KindOf(b)]
	})
	var failed []ListenFailure
	for _, a := range list {
		err := portFree(a)
		if err == nil {
			err = h.swarm.AddListenAddr(a)
		}
		if err != nil {
			failed = append(failed, ListenFailure{Addr: a, Err: err})
		}
	}
	return failed
}

// ListenAddrs returns the bound addresses. It leaves out the relay client,
// which the swarm counts as a listener.
func (h *Host) ListenAddrs() []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(h.swarm.ListenAddresses()), addrs.IsCircuit)
}

// InterfaceAddrs returns the bound addresses, with the interfaces' addresses
// replacing unspecified ones.
func (h *Host) InterfaceAddrs() ([]ma.Multiaddr, error) { return h.swarm.InterfaceListenAddresses() }

var listenOrder = map[addrs.Kind]int{addrs.QUIC: 0, addrs.WebTransport: 1, addrs.WebRTCDirect: 2}

// portFree reports whether nobody listens on a TCP address yet. Libp2p binds
// TCP ports with SO_REUSEPORT, with which two nodes on one port both succeed
// and each gets a random half of the other's connections.
func portFree(a ma.Multiaddr) error {
	if addrs.KindOf(a) != addrs.TCP {
		return nil
	}
	netw, hostport, err := manet.DialArgs(a)
	if err != nil || strings.HasSuffix(hostport, ":0") {
		return nil //nolint:nilerr // the transport itself reports what is wrong
	}
	l, err := net.Listen(netw, hostport) //nolint:noctx // it returns at once
	if err != nil {
		return err
	}
	return l.Close()
}
