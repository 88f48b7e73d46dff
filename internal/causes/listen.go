package causes

import (
	"errors"
	"fmt"
	"net"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// OwnListener is the error of an address whose port the node itself uses.
type OwnListener struct {
	By  ma.Multiaddr // the address that it listens on
	Err error        // nil when nobody asked the system
}

// Error names the other address.
func (e *OwnListener) Error() string {
	return fmt.Sprintf("the node itself uses the port, for %s", e.By)
}

// Unwrap returns Err.
func (e *OwnListener) Unwrap() error { return e.Err }

// InUse reports whether a listener failed because somebody has the port.
func InUse(err error) bool {
	_, own := errors.AsType[*OwnListener](err)
	return own || is(err, inUse)
}

// Listen says why an address does not bind.
func Listen(a ma.Multiaddr, err error) string {
	raw := " (" + Line(err) + ")"
	own, isOwn := errors.AsType[*OwnListener](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isOwn:
		return own.Error() + "; drop one of the two, or choose another port"
	case InUse(err):
		return "the port is in use by another program or node" + raw
	case is(err, notHere):
		return "this machine has no interface with that IP address; listen on /ip4/0.0.0.0 or /ip6/:: with the same port, and announce the address with WithAnnounceAddrs" + raw
	case manet.IsIP6LinkLocal(a) && a[0].Protocol().Code == ma.P_IP6:
		return fmt.Sprintf("a link-local address needs the name of its interface in front of it: /ip6zone/<interface>%s%s", a, raw)
	case is(err, denied):
		return "the system does not let this process have the port; choose one above 1023" + raw
	case isDNS:
		return name(dns)
	case says(err, "without a tls.Config"):
		return "WebSocket with TLS needs a certificate: name one with WithTLSFiles or WithTLSConfig" + raw
	default:
		return Line(err)
	}
}
