package keeper

import (
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

// Round is the result of one round of dialing bootstrap and saved peers.
type Round struct {
	At        time.Time
	Took      time.Duration
	Connected []peer.ID // the peers of the round that are connected after it
	Failed    []Failure // those that are not, and why
	Peers     int       // how many peers of any kind are connected after it
}

// Failure is a peer that was not reached, or a name that led to none.
type Failure struct {
	ID  peer.ID // empty for a name
	Err error
}

// rounds is the state of dialing in rounds: all bootstrap peers at once, along
// with some saved peers. While there are too few peers, which is an outage, one
// round follows another. Neither the DHT's own bootstrap (which runs every two
// minutes, with two random peers, and only if its table is empty) nor boxo's
// (which without saved peers runs a single round) does that. With enough peers,
// there is a round when a bootstrap peer is due by its policy.
type rounds struct {
	outage bool
	since  time.Time       // when the outage began, or the network changed in it
	retry  backoff.Backoff // of an outage that is not fresh
	next   time.Time       // when the next round of the outage may begin

	begun time.Time // when the last round began
	moved bool      // the network may have changed since
	turn  int       // which saved peers are next

	on    bool // a round is under way
	list  []peer.ID
	fresh map[peer.ID]bool // dialed in this round
}

// early reports whether there is an outage that began recently.
func (r *rounds) early(now time.Time) bool { return r.outage && now.Sub(r.since) < QuickFor }

// roundsLocked advances the rounds.
func (k *Keeper) roundsLocked(v view, p *plan) {
	r := &k.rounds
	r.moved = r.moved || v.moved
	if r.on {
		if end := r.begun.Add(roundLimit); k.dialsUnderWayLocked() && v.now.Before(end) {
			p.at(end)
			return
		}
		k.endRoundLocked(v, p)
	}
	if v.enough {
		if r.outage {
			k.endOutageLocked(v, p)
		}
		k.roundWithEnoughLocked(v, p)
		return
	}
	if len(k.boots)+len(k.saved) == 0 && k.cfg.Names == nil {
		return
	}
	if !r.outage {
		r.outage, r.since, r.next = true, v.now, v.now
		r.retry.Reset()
		p.log = append(p.log, func() { k.cfg.Log.Info("too few peers: dialing bootstrap and saved peers") })
	}
	if r.moved {
		r.moved = false
		r.since, r.next = v.now, v.now
		r.retry.Reset()
	}
	if begin := latest(r.next, r.begun.Add(roundGap)); v.now.Before(begin) {
		p.at(begin)
		return
	}
	k.beginRoundLocked(k.candidatesLocked(v), nil, v, p)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// endOutageLocked ends what applies only while there are too few peers.
func (k *Keeper) endOutageLocked(v view, p *plan) {
	r := &k.rounds
	r.outage = false
	p.refresh = true
	p.log = append(p.log, func() { k.cfg.Log.Info("enough peers are connected") })
	for _, e := range k.peers {
		k.keepLocked(e, false, p)
		e.tries = 0
		for _, s := range []Source{Bootstrap, Saved} {
			// Rounds have dialed them, except saved peers whose turn did not come.
			if d := &e.duties[s]; d.on && !(policies[s].quick && d.fresh(v.now)) && d.once {
				d.retry.Reset()
				d.next = v.now.Add(d.retry.Next())
			}
		}
	}
}

// roundWithEnoughLocked begins a round when a bootstrap peer is due, and when
// the network may have changed: the node may not have noticed which peers it
// lost.
func (k *Keeper) roundWithEnoughLocked(v view, p *plan) {
	r := &k.rounds
	moved := r.moved
	if k.cfg.Content {
		r.moved = false
		return
	}
	few := len(v.up) < fewPeers && !slices.ContainsFunc(k.boots, func(id peer.ID) bool { return k.peers[id].up })
	var due []peer.ID
	for _, id := range k.boots {
		e := k.peers[id]
		if e.up || e.dialing() || slices.Contains(k.released, id) {
			continue
		}
		d := &e.duties[Bootstrap]
		next := d.next
		if soon := r.begun.Add(k.cfg.Longest); few && d.short <= freeLosses && soon.Before(next) {
			next = soon
		}
		if next.After(v.now) {
			p.at(next)
			continue
		}
		due = append(due, id)
	}
	if !moved && len(due) == 0 {
		return
	}
	if begin := r.begun.Add(roundGap); v.now.Before(begin) {
		p.at(begin)
		return
	}
	r.moved = false
	if moved {
		for _, id := range k.boots {
			k.peers[id].duties[Bootstrap].retry.Reset()
		}
		k.beginRoundLocked(k.candidatesLocked(v), nil, v, p)
		return
	}
	k.beginRoundLocked(slices.Clone(k.boots), due, v, p)
}

// candidatesLocked returns the peers of a round: every bootstrap peer, and the
// next of the saved ones.
func (k *Keeper) candidatesLocked(v view) []peer.ID {
	list := slices.Clone(k.boots)
	var saved []peer.ID
	for _, p := range k.saved {
		if v.allowed[p.ID] {
			saved = append(saved, p.ID)
		}
	}
	for i := range min(savedAtOnce, len(saved)) {
		if id := saved[(k.rounds.turn+i)%len(saved)]; !slices.Contains(list, id) {
			list = append(list, id)
		}
	}
	k.rounds.turn += savedAtOnce
	return slices.DeleteFunc(list, func(id peer.ID) bool {
		e := k.peers[id]
		return e == nil || !e.up && slices.Contains(k.released, id)
	})
}

// beginRoundLocked dials all peers of the list that are neither connected nor
// being dialed; only the due ones, unless due is nil.
func (k *Keeper) beginRoundLocked(list, due []peer.ID, v view, p *plan) {
	r := &k.rounds
	r.on, r.begun, r.list, r.fresh = true, v.now, list, make(map[peer.ID]bool)
	k.askLocked(p)
	for _, id := range list {
		e := k.peers[id]
		if e.up || e.dialing() || due != nil && !slices.Contains(due, id) {
			continue
		}
		r.fresh[id] = true
		e.duties[Bootstrap].due = e.duties[Bootstrap].on
		e.duties[Saved].due = e.duties[Saved].on
		k.dialLocked(e, numSources, k.limitLocked(e, v.now), p)
	}
	if len(r.fresh) == 0 {
		k.endRoundLocked(v, p)
		k.roundsAgainLocked(p)
		return
	}
	p.at(v.now.Add(roundLimit))
}

// dialsUnderWayLocked reports whether a dial of this round is still running.
func (k *Keeper) dialsUnderWayLocked() bool {
	for id := range k.rounds.fresh {
		if e := k.peers[id]; e != nil && e.dialing() {
			return true
		}
	}
	return false
}

// roundsAgainLocked schedules the next round of an outage.
func (k *Keeper) roundsAgainLocked(p *plan) {
	if r := &k.rounds; r.outage {
		p.at(latest(r.next, r.begun.Add(roundGap)))
	}
}

// endRoundLocked reports a round, and decides when the next one of an outage
// begins. A peer that takes longer than the round does not hold up the others.
func (k *Keeper) endRoundLocked(v view, p *plan) {
	r := &k.rounds
	r.on = false
	res := Round{
		At: r.begun, Took: v.now.Sub(r.begun), Peers: len(v.up),
		Connected: []peer.ID{}, Failed: []Failure{}, // never null in JSON
	}
	reached := false
	for _, id := range r.list {
		e := k.peers[id]
		if e == nil { // removed meanwhile
			continue
		}
		err := e.err
		if e.dialing() {
			err = fmt.Errorf("connect to %s: no answer yet", id)
			if !e.up {
				p.waiting = append(p.waiting, e.info())
			}
		}
		switch {
		case e.up:
			res.Connected = append(res.Connected, id)
			reached = reached || r.fresh[id]
			if !v.enough {
				k.keepLocked(e, true, p)
			}
		case err != nil:
			res.Failed = append(res.Failed, Failure{id, err})
		}
	}
	for _, err := range k.named.failed {
		res.Failed = append(res.Failed, Failure{Err: err})
	}
	if reached {
		r.retry.Reset()
	}
	switch {
	case !r.outage:
	case r.early(r.begun):
		r.next = v.now.Add(k.pauseLocked())
	default:
		r.next = r.begun.Add(r.retry.Next())
	}
	if len(res.Failed) == 0 && len(r.fresh) == 0 {
		// Every bootstrap peer is connected and there are still too few peers:
		// find others through them.
		p.refresh = true
		return
	}
	if reached && v.enough {
		p.refresh = true
	}
	p.report = &res
	p.log = append(p.log, func() {
		k.cfg.Log.Debug("bootstrap round", "connected", len(res.Connected), "failed", len(res.Failed), "took", res.Took)
	})
}
