package keeper

import (
	"context"
	"maps"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxNamed bounds how many bootstrap peers are known by name alone.
const maxNamed = 64

// named is the state of names that lead to bootstrap peers. Who is behind a name
// changes: peers that were found and are found no more are forgotten, unless
// they are connected.
type named struct {
	asking bool
	peers  map[peer.ID]bool // bootstrap peers that only a name led to
	failed []error          // of the last time
}

// askLocked has names asked, unless they are being asked.
func (k *Keeper) askLocked(p *plan) {
	if k.cfg.Names != nil && !k.named.asking {
		k.named.asking, p.ask = true, true
	}
}

// ask asks names for bootstrap peers. A round does not wait for it: who answers
// is dialed at once.
func (k *Keeper) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	present := make(map[peer.ID]bool) // guarded by mu
	failed := k.cfg.Names(ctx, func(ai peer.AddrInfo) {
		k.mu.Lock()
		present[ai.ID] = true
		e := k.peers[ai.ID]
		known := e != nil && e.duties[Bootstrap].on
		room := len(k.named.peers) < maxNamed
		fresh := !known && room && !slices.Contains(k.released, ai.ID)
		if fresh {
			if k.named.peers == nil {
				k.named.peers = make(map[peer.ID]bool)
			}
			k.named.peers[ai.ID] = true
		}
		mine := k.named.peers[ai.ID]
		k.mu.Unlock()
		switch {
		case fresh:
			k.cfg.Log.Debug("peer found by name", "peer", ai.ID, "addrs", ai.Addrs)
			k.Add(Bootstrap, ai)
			k.cfg.New(ai, "dns")
		case mine:
			k.mu.Lock()
			k.moveLocked(ai)
			k.mu.Unlock()
		}
	})
	var gone []peer.ID
	k.mu.Lock()
	k.named.asking, k.named.failed = false, failed
	if len(present) > 0 { // else the names may be unknown for a moment only
		for _, id := range slices.Sorted(maps.Keys(k.named.peers)) {
			if e := k.peers[id]; !present[id] && (e == nil || !e.up) {
				gone = append(gone, id)
				delete(k.named.peers, id)
			}
		}
	}
	k.mu.Unlock()
	for _, id := range gone {
		k.Remove(Bootstrap, id)
	}
	k.wake.Notify()
}

// moveLocked gives a peer that a name led to its new address, in place of those
// that other peers may have by now.
func (k *Keeper) moveLocked(ai peer.AddrInfo) {
	if e := k.peers[ai.ID]; e != nil && !slices.ContainsFunc(e.duties[Bootstrap].addrs, ai.Addrs[0].Equal) {
		e.duties[Bootstrap].addrs = append(slices.Clone(ai.Addrs), e.duties[Bootstrap].addrs...)
		e.duties[Bootstrap].addrs = e.duties[Bootstrap].addrs[:min(len(e.duties[Bootstrap].addrs), maxAddrs)]
	}
}
