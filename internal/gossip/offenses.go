package gossip

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxOffenders bounds for how many peers offenses are kept.
const maxOffenders = 4096

// Offenses counts what a peer has sent that it should not have.
type Offenses struct {
	Unsuited  uint64 // messages of another signature policy than their topic's
	Rejected  uint64 // messages that a validator has rejected
	Replayed  uint64 // messages that were delivered long before
	Topics    uint64 // announced topics beyond the bounds
	Control   uint64 // message IDs, grafts and prunes beyond the bounds
	Malformed uint64 // what is no RPC, or above the limits of size
}

// account is what the router keeps of a peer that has sent something of note.
type account struct {
	Offenses
	points, soft, wasted float64
	ids, grafts, topics  bucket
}

// bucket is how much of what is bounded a peer has sent lately.
type bucket struct {
	used float64
	at   time.Time
}

// take returns how many of n fit, with so many per second and at once.
func (b *bucket) take(n int, rate, burst float64) int {
	now := time.Now()
	b.used = max(0, b.used-rate*now.Sub(b.at).Seconds())
	b.at = now
	fit := min(n, int(max(0, burst-b.used)))
	b.used += float64(fit)
	return fit
}

// accountLocked returns what is kept of a peer. When there are too many, a peer
// that has left makes room.
func (r *Router) accountLocked(id peer.ID) *account {
	a := r.accounts[id]
	if a != nil {
		return a
	}
	if len(r.accounts) >= maxOffenders {
		for other := range r.accounts {
			if !r.links[other] {
				delete(r.accounts, other)
				break
			}
		}
	}
	a = new(account)
	if len(r.accounts) < maxOffenders {
		r.accounts[id] = a
	}
	return a
}

// Offenses returns those of the connected peers.
func (r *Router) Offenses() map[peer.ID]Offenses {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make(map[peer.ID]Offenses)
	for id, a := range r.accounts {
		if r.links[id] && a.Offenses != (Offenses{}) {
			list[id] = a.Offenses
		}
	}
	return list
}

// wasted counts messages of a peer that were of no use to anybody.
func (r *Router) wasted(id peer.ID, n int) {
	if !r.scoring || n == 0 || id == r.cfg.Host.ID() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accountLocked(id).wasted += float64(n)
}

// malformed counts what a peer has sent that is no RPC.
func (r *Router) malformed(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.accountLocked(id)
	a.Malformed++
	a.points += malformedPoints
}
