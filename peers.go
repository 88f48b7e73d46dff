package p2pnode

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// ParsePeers reads addresses that end in a peer ID, and joins those of one
// peer. It reports every address that it cannot read.
func ParsePeers(addresses ...string) ([]peer.AddrInfo, error) {
	var infos []peer.AddrInfo
	var errs []error
	for _, s := range addresses {
		ai, err := addrs.ParsePeer(s)
		if err != nil {
			errs = append(errs, err)
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

func checkPeers(peers []peer.AddrInfo) error {
	if len(peers) == 0 {
		return errors.New("no peer given")
	}
	for _, p := range peers {
		switch {
		case p.ID == "":
			return fmt.Errorf("a peer with the addresses %s has no ID", p.Addrs)
		case !isPeerID(p.ID):
			return fmt.Errorf("%q is no peer ID; peer.Decode makes one of text", string(p.ID))
		case len(p.Addrs) == 0:
			return fmt.Errorf("peer %s has no address", p.ID)
		}
		for _, a := range p.Addrs {
			if addrs.IsListenOnly(a) {
				return fmt.Errorf("%s is an address to listen on, not one to dial: it says every interface or any port; see Addrs on the other side", a)
			}
		}
	}
	return nil
}

func checkIDs(ids []peer.ID) error {
	if len(ids) == 0 {
		return errors.New("no peer given")
	}
	for _, id := range ids {
		if !isPeerID(id) {
			return fmt.Errorf("%q is no peer ID; peer.Decode makes one of text", string(id))
		}
	}
	return nil
}

// maxPeerID bounds a peer ID, in bytes. Those of keys have 34 to 42.
const maxPeerID = 128

// isPeerID reports whether an ID is one by the peer ID spec: a key, or the
// SHA-256 of one. An ID's text is by chance a multihash too, of another kind.
func isPeerID(id peer.ID) bool {
	if len(id) > maxPeerID {
		return false
	}
	h, err := multihash.Decode([]byte(id))
	return err == nil && (h.Code == multihash.IDENTITY || h.Code == multihash.SHA2_256)
}
