package nethost

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

// sweepEvery is how often the address book is swept.
const sweepEvery = 10 * time.Minute

// KeepTidy sweeps the address book until ctx ends. An address that was a live
// connection's is never collected by libp2p's book (v0.51), though it expires
// like others: about 1.4 KiB for every peer that ever connected.
func (h *Host) KeepTidy(ctx context.Context) {
	for backoff.Sleep(ctx, sweepEvery) {
		sweep(h.Peerstore(), func(id peer.ID) bool {
			return id == h.ID() || h.Network().Connectedness(id) != network.NotConnected
		})
	}
}

// sweep drops what the book keeps of peers that are not in use and have no
// address that is valid, and returns how many those were.
func sweep(book peerstore.Peerstore, used func(peer.ID) bool) (dropped int) {
	for _, id := range book.PeersWithAddrs() {
		if !used(id) && len(book.Addrs(id)) == 0 {
			book.ClearAddrs(id)
			dropped++
		}
	}
	return dropped
}
