package p2pnode

import (
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// What is wrong with the addresses of a peer that this node cannot dial.
const (
	noneCarriesKey = "%s has no address that the transports %v can dial, only %v; name a TCP or WebSocket address, because other transports cannot carry the key of WithPrivateNetwork"
	noneDials      = "%s has no address that the transports %v can dial, only %v; name another address, or add its transport with WithTransports"
	onlyByRelay    = "%s can be dialed only through a relay, at %v, and WithoutRelay rules that out; name another address, or drop WithoutRelay"
)

// canDial reports whether an enabled transport can dial one of a peer's
// addresses.
func (c *config) canDial(p peer.AddrInfo) bool { return slices.ContainsFunc(p.Addrs, c.dials) }

// dials reports whether an enabled transport can dial an address. A /dnsaddr has
// no kind: it resolves to other addresses.
func (c *config) dials(a ma.Multiaddr) bool {
	switch kind := addrs.KindOf(a); {
	case addrs.Undialable(a) != nil && !addrs.IsZoned(a):
		return false
	case kind == addrs.Circuit:
		return !c.noRelay
	case slices.Contains(c.enabledTransports(), Transport(kind)), kind == addrs.Unknown && addrs.IsDNSAddr(a):
		return true
	default:
		return c.bringsTransports()
	}
}

// bringsTransports reports whether WithLibp2pOptions brings transports, of which
// nobody knows what they dial.
func (c *config) bringsTransports() bool {
	if len(c.libp2pOptions) == 0 {
		return false
	}
	theirs, err := nethost.Probe(c.libp2pOptions)
	return err == nil && len(theirs.Transports) > 0
}

// needsRelay reports whether only the relay client, which is off, could dial a
// peer.
func (c *config) needsRelay(p peer.AddrInfo) bool {
	return !c.canDial(p) && slices.ContainsFunc(p.Addrs, addrs.IsCircuit)
}

// checkDials reports peers that no transport of the node can dial, as validate
// does of those that the options name.
func (c *config) checkDials(peers []peer.AddrInfo) error {
	var errs []error
	for _, p := range peers {
		switch {
		case c.canDial(p):
		case c.needsRelay(p):
			errs = append(errs, fmt.Errorf(onlyByRelay, p.ID, p.Addrs))
		case c.psk != nil:
			errs = append(errs, fmt.Errorf(c.keyOption(noneCarriesKey), p.ID, c.enabledTransports(), p.Addrs))
		default:
			errs = append(errs, fmt.Errorf(noneDials, p.ID, c.enabledTransports(), p.Addrs))
		}
	}
	return errors.Join(errs...)
}
