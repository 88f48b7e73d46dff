package kad

import (
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxPeerID is the longest peer ID accepted from others, in bytes. Real ones
// have 34 to 42, because longer keys are hashed. Upstream accepts whatever fits
// into a message, and formatting an ID takes time quadratic in its length.
const maxPeerID = 128

func plausible(id peer.ID) bool { return len(id) > 0 && len(id) <= maxPeerID }

// queryFilter keeps absurdly long IDs, and what next refuses, out of lookups.
func queryFilter(next dht.QueryFilterFunc) dht.QueryFilterFunc {
	return func(d any, ai peer.AddrInfo) bool {
		return plausible(ai.ID) && (next == nil || next(d, ai))
	}
}

// tableFilter keeps absurdly long IDs, and what next refuses, out of the
// routing table.
func tableFilter(next dht.RouteTableFilterFunc) dht.RouteTableFilterFunc {
	return func(d any, id peer.ID) bool {
		return plausible(id) && (next == nil || next(d, id))
	}
}
