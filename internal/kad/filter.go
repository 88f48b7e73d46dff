package kad

import (
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxPeerID is the longest peer ID that is taken from a stranger, in bytes.
// Real ones have 34 to 42: longer keys are hashed. Upstream takes whatever fits
// into a message, and printing an ID takes time that grows with the square of
// its length.
const maxPeerID = 128

func plausible(id peer.ID) bool { return len(id) > 0 && len(id) <= maxPeerID }

// queryFilter keeps absurd IDs out of look-ups, and what next keeps out.
func queryFilter(next dht.QueryFilterFunc) dht.QueryFilterFunc {
	return func(d any, ai peer.AddrInfo) bool {
		return plausible(ai.ID) && (next == nil || next(d, ai))
	}
}

// tableFilter keeps absurd IDs out of the routing table, and what next keeps
// out.
func tableFilter(next dht.RouteTableFilterFunc) dht.RouteTableFilterFunc {
	return func(d any, id peer.ID) bool {
		return plausible(id) && (next == nil || next(d, id))
	}
}
