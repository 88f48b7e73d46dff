package p2pnode

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// ParsePeers parses multiaddrs that end in a peer ID, such as
// /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…, and merges those of the same peer. Its
// error reports every address that cannot be parsed, one a line.
func ParsePeers(addresses ...string) ([]peer.AddrInfo, error) {
	return parsePeers("p2pnode: parse peer: %w", addresses)
}

// parsePeers is ParsePeers with the format of an error.
func parsePeers(format string, addresses []string) ([]peer.AddrInfo, error) {
	var infos []peer.AddrInfo
	var errs []error
	for _, s := range addresses {
		ai, err := addrs.ParsePeer(s)
		if err != nil {
			errs = append(errs, fmt.Errorf(format, err))
			continue
		}
		infos = append(infos, ai)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return addrs.Merge(infos...), nil
}

func parseAddrs(texts []string, ifNone string, check func(ma.Multiaddr) error) ([]ma.Multiaddr, error) {
	if len(texts) == 0 {
		return nil, fmt.Errorf("no address given; %s", ifNone)
	}
	var list []ma.Multiaddr
	var errs []error
	for _, s := range texts {
		a, err := addrs.Parse(s)
		if err == nil {
			err = check(a)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !ma.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, errors.Join(errs...)
}

// checkListenAddr checks an address of WithListenAddrs.
func checkListenAddr(a ma.Multiaddr) error {
	switch kind := addrs.KindOf(a); {
	case kind == addrs.Circuit:
		return fmt.Errorf("%s goes through a relay; use WithAutoRelay to make reservations", a)
	case addrs.HasPeerID(a):
		return fmt.Errorf("%s names a peer; leave out the /p2p part, or use WithBootstrapAddrs if this is a peer to connect to", a)
	case addrs.Misshapen(a) != nil:
		return fmt.Errorf("%s: %w", a, addrs.Misshapen(a))
	case kind == addrs.Unknown:
		return fmt.Errorf("%s has no known transport; use an address like /ip4/0.0.0.0/tcp/4001 or /ip4/0.0.0.0/udp/4001/quic-v1", a)
	}
	return nil
}

// checkAnnounceAddr checks an address of WithAnnounceAddrs.
func checkAnnounceAddr(a ma.Multiaddr) error {
	switch {
	case addrs.IsCircuit(a):
		return fmt.Errorf("%s goes through a relay; WithAutoRelay announces such addresses", a)
	case addrs.HasPeerID(a):
		return fmt.Errorf("%s names a peer; leave out the /p2p part, which is added", a)
	}
	if err := addrs.Undialable(a); err != nil {
		return fmt.Errorf("nobody can dial %s: %w", a, err)
	}
	return nil
}

// checkNameAddr checks an address of WithBootstrapDNS.
func checkNameAddr(a ma.Multiaddr) error {
	switch kind := addrs.KindOf(a); {
	case addrs.HasPeerID(a):
		return fmt.Errorf("%s names a peer: use WithBootstrapAddrs, which checks that it is the one who answers", a)
	case addrs.IsDNSAddr(a):
		return fmt.Errorf("%s stands for addresses that name peers: append /p2p/<peer ID> and use WithBootstrapAddrs", a)
	case !addrs.IsName(a):
		return fmt.Errorf("%s does not begin with a name: write /dns/<name>, /dns4/<name> or /dns6/<name>", a)
	case addrs.Undialable(a) != nil:
		return fmt.Errorf("%s cannot be dialed: %w", a, addrs.Undialable(a))
	case kind != addrs.TCP && kind != addrs.QUIC && kind != addrs.WebSocket:
		return fmt.Errorf("%s is for a transport that does not tell who answers; use /tcp/<port>, /udp/<port>/quic-v1 or /tcp/<port>/ws", a)
	}
	return nil
}

// checkPeers reports peers that no transport can dial.
func checkPeers(peers []peer.AddrInfo) error {
	if len(peers) == 0 {
		return errors.New("no peer given")
	}
	var errs []error
	for _, p := range peers {
		errs = append(errs, checkPeer(p))
	}
	return errors.Join(errs...)
}

func checkPeer(p peer.AddrInfo) error {
	switch {
	case p.ID == "":
		return fmt.Errorf("a peer with the addresses %s has no ID", p.Addrs)
	case !addrs.IsPeerID(p.ID):
		return notAPeerID(p.ID)
	case len(p.Addrs) == 0:
		return fmt.Errorf("peer %s has no address", p.ID)
	}
	for _, a := range p.Addrs {
		if len(a) == 0 {
			return fmt.Errorf("an address of peer %s is nil", p.ID)
		}
		if err := addrs.Undialable(a); err != nil && !addrs.IsZoned(a) {
			return fmt.Errorf("%s cannot be dialed: %w; Addrs of the other side returns addresses that can", a, err)
		}
	}
	return nil
}

// checkID checks the argument of a method that is about one peer.
func checkID(id peer.ID) error {
	switch {
	case id == "":
		return errNoID{}
	case !addrs.IsPeerID(id):
		return notAPeerID(id)
	default:
		return nil
	}
}

// errNoID is the error of an empty peer ID.
type errNoID struct{}

func (errNoID) Error() string        { return "no peer ID given" }
func (errNoID) Is(target error) bool { return target == peer.ErrEmptyPeerID }

func checkIDs(ids []peer.ID) error {
	if len(ids) == 0 {
		return errors.New("no peer given")
	}
	for _, id := range ids {
		if !addrs.IsPeerID(id) {
			return notAPeerID(id)
		}
	}
	return nil
}

func notAPeerID(id peer.ID) error {
	return fmt.Errorf("%q is not a peer ID; peer.Decode parses its text form", string(id))
}

// checkNotSelf rejects the node's own ID.
func checkNotSelf(peers []peer.AddrInfo, self peer.ID) error {
	for _, p := range peers {
		if p.ID == self {
			return errors.New(p.ID.String() + " is this node's own ID; leave it out")
		}
	}
	return nil
}
