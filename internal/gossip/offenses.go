package gossip

import "github.com/libp2p/go-libp2p/core/peer"

// maxOffenders bounds for how many peers offenses are kept.
const maxOffenders = 1024

// Offenses counts what a peer has sent that it should not have.
type Offenses struct {
	Unsuited uint64 // messages of another signature policy than their topic's
	Rejected uint64 // messages that a validator has rejected
	Replayed uint64 // messages that were delivered long before
	Topics   uint64 // announced topics beyond the bounds
}

// offenseLocked returns the counters of a peer. When there are too many, those of
// a peer that has left make room.
func (r *Router) offenseLocked(id peer.ID) *Offenses {
	o := r.offenses[id]
	if o != nil {
		return o
	}
	if len(r.offenses) >= maxOffenders {
		for other := range r.offenses {
			if !r.links[other] {
				delete(r.offenses, other)
				break
			}
		}
	}
	o = new(Offenses)
	if len(r.offenses) < maxOffenders {
		r.offenses[id] = o
	}
	return o
}

// Offenses returns those of the connected peers.
func (r *Router) Offenses() map[peer.ID]Offenses {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make(map[peer.ID]Offenses)
	for id, o := range r.offenses {
		if r.links[id] {
			list[id] = *o
		}
	}
	return list
}
