package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// The tags under which peers are protected from trimming.
const (
	tagBootstrap  = "p2pnode-bootstrap"
	tagPersistent = "p2pnode-persistent"
)

// entry is a peer that some source wants connected. Keeper.mu guards all of it.
type entry struct {
	id     peer.ID
	duties [numSources]duty
	heard  time.Time // when it was last discovered
	kept   bool      // protected from trimming as a bootstrap peer, while there are too few peers
	friend bool      // protected from trimming as a persistent peer

	up     bool      // connected, as of the last step
	opened time.Time // when, while it is up

	cancel context.CancelFunc // ends the dial under way; nil without one
	done   bool               // a dial has ended, and no step has handled it yet
	slot   Source             // the source whose slot the dial takes; numSources for none
	tries  int                // dials since the node had enough peers, or this one was connected
	err    error              // why it is not connected, after a dial or a loss
	hungUp bool               // the last dial reached it
	back   bool               // a saved peer has been reached
	took   time.Duration      // what the last dial that reached it took; 0 when none has
}

func (e *entry) dialing() bool { return e.cancel != nil }

func (e *entry) wanted() bool {
	return slices.ContainsFunc(e.duties[:], func(d duty) bool { return d.on })
}

// discoveredOnly reports whether nobody vouches for the peer.
func (e *entry) discoveredOnly() bool {
	return !slices.ContainsFunc([]Source{Bootstrap, Persistent, Saved}, func(s Source) bool { return e.duties[s].on })
}

// info is what to dial.
func (e *entry) info() peer.AddrInfo {
	all := peer.AddrInfo{ID: e.id}
	for _, d := range e.duties {
		all = addrs.Merge(all, peer.AddrInfo{ID: e.id, Addrs: d.addrs})[0]
	}
	return all
}

// renewLocked makes a peer due at once if it is not connected, and resets its
// delays.
func (e *entry) renewLocked(s Source) {
	if d := &e.duties[s]; d.on && !e.up {
		d.retry.Reset()
		d.next = time.Time{}
	}
}

// duty is one reason to keep a peer connected.
type duty struct {
	on     bool
	addrs  []ma.Multiaddr // replaced, never changed
	next   time.Time      // when to dial, unless connected
	retry  backoff.Backoff
	lost   time.Time // when the peer was lost, if it is redialed at once; zero otherwise
	short  int       // losses in a row of connections that were not stable
	failed int       // dials in a row that failed, or led to such a connection
	due    bool      // the dial under way is for this duty
	once   bool      // the peer was dialed, or connected, since the start
}

// begin switches a duty on, or makes its next dial due at once.
func (d *duty) begin(k *Keeper, s Source) {
	if !d.on {
		d.on, d.retry = true, policies[s].backoff(k.cfg.Rand)
	}
	d.retry.Reset()
	d.next = time.Time{}
}

func (k *Keeper) entryLocked(id peer.ID) *entry {
	e := k.peers[id]
	if e == nil {
		e = &entry{id: id, slot: numSources}
		k.peers[id] = e
	}
	return e
}

// headStart breaks the tie between two peers that discover each other at the
// same moment. If both dialed at once from their listen ports, TCP would treat
// it as a simultaneous open and both handshakes could fail; so the peer with
// the lower ID dials at once and the other waits to be dialed.
func (k *Keeper) headStart(id peer.ID) time.Duration {
	if bytes.Compare([]byte(k.cfg.Self), []byte(id)) < 0 {
		return 0
	}
	return time.Second + rand.N(time.Second)
}

// view is the input of a step: the connections at one moment.
type view struct {
	now     time.Time
	up      map[peer.ID]time.Time // connected peers, and since when those of an entry are
	enough  bool
	room    bool
	moved   bool                       // the network may have changed since the last step
	banEnds time.Time                  // when the next ban ends; zero for never
	allowed map[peer.ID]bool           // the saved peers that may be dialed
	places  map[peer.ID]Place          // of peers that are new
	left    map[peer.ID][]ma.Multiaddr // addresses of those that are gone
}

// plan is what a step decided to do.
type plan struct {
	dials   []dial
	protect []protection
	refresh bool
	ask     bool // whom the names lead to
	report  *Round
	waiting []peer.AddrInfo // those of the report that are still being dialed
	log     []func()
	next    time.Time // when to look again at the latest; zero for never
}

// protection protects a peer from trimming, or no longer.
type protection struct {
	id  peer.ID
	tag string
	on  bool
}

type dial struct {
	ctx   context.Context
	e     *entry
	info  peer.AddrInfo
	limit time.Duration
}

// at schedules the next step for t at the latest.
func (p *plan) at(t time.Time) {
	if p.next.IsZero() || t.Before(p.next) {
		p.next = t
	}
}

// run is the loop. It returns when ctx ends.
func (k *Keeper) run(ctx context.Context) {
	movedSignal := k.cfg.Moved.Wait()
	moved := false
	for ctx.Err() == nil {
		change, wake := k.cfg.Change.Wait(), k.wake.Wait()
		v := k.look(moved)
		k.mu.Lock()
		p := k.stepLocked(v)
		k.mu.Unlock()
		moved = false
		k.carryOut(p)

		var timer *time.Timer
		var fired <-chan time.Time
		if !p.next.IsZero() {
			timer = time.NewTimer(time.Until(p.next))
			fired = timer.C
		}
		select {
		case <-change:
		case <-wake:
		case <-fired:
		case <-movedSignal:
			moved, movedSignal = true, k.cfg.Moved.Wait()
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// look takes a view. It holds no lock while it asks.
func (k *Keeper) look(moved bool) view {
	ids := k.cfg.Conns.Peers()
	v := view{
		now: time.Now(), up: make(map[peer.ID]time.Time, len(ids)), moved: moved,
		enough: k.cfg.Enough(), room: k.cfg.Room(), banEnds: k.cfg.BanEnds(),
	}
	var mine, fresh, gone []peer.ID
	k.mu.Lock()
	for _, id := range ids {
		v.up[id] = time.Time{}
		if k.peers[id] != nil {
			mine = append(mine, id)
		}
	}
	if k.cfg.Store != nil {
		fresh, gone = k.changedLocked(v)
	}
	saved := k.saved
	k.mu.Unlock()
	for _, id := range mine {
		v.up[id] = k.cfg.Conns.OpenedAt(id)
	}
	v.allowed = make(map[peer.ID]bool, len(saved))
	for _, p := range saved {
		v.allowed[p.ID] = k.cfg.Allowed(p.ID)
	}
	v.places = make(map[peer.ID]Place, len(fresh))
	for _, id := range fresh {
		v.places[id] = k.cfg.Conns.Where(id)
	}
	v.left = make(map[peer.ID][]ma.Multiaddr, len(gone))
	for _, id := range gone {
		v.left[id] = k.cfg.Conns.Addrs(id)
	}
	return v
}

// stepLocked decides what to do now.
func (k *Keeper) stepLocked(v view) *plan {
	p := new(plan)
	k.sightLocked(v)
	for id, e := range k.peers {
		if on := e.duties[Persistent].on; on != e.friend {
			e.friend = on
			p.protect = append(p.protect, protection{id, tagPersistent, on})
		}
		if e.kept && !e.duties[Bootstrap].on && !e.duties[Saved].on {
			k.keepLocked(e, false, p)
		}
		if !e.wanted() && !e.dialing() {
			delete(k.peers, id)
			continue
		}
		k.syncLocked(e, v, p)
	}
	if v.moved {
		for _, e := range k.peers {
			e.renewLocked(Persistent)
		}
	}
	k.roundsLocked(v, p)
	// Whoever was never dialed comes first, lest peers that are made up take all
	// places again and again.
	for _, first := range []bool{true, false} {
		for _, e := range k.peers {
			if e.duties[Discovered].once != first {
				k.pursueLocked(e, v, p)
			}
		}
	}
	return p
}

// keepLocked protects a peer from trimming while there are too few.
func (k *Keeper) keepLocked(e *entry, on bool, p *plan) {
	if e.kept != on {
		e.kept = on
		p.protect = append(p.protect, protection{e.id, tagBootstrap, on})
	}
}

// syncLocked handles a peer that came or left, and a dial that ended.
func (k *Keeper) syncLocked(e *entry, v view, p *plan) {
	opened, up := v.up[e.id]
	done := e.done && !e.dialing()
	if done {
		e.done = false
	}
	switch {
	case up:
		if !e.up {
			e.up, e.tries, e.opened = true, 0, v.now
		}
		if !opened.IsZero() {
			e.opened = opened
		}
		for s := range e.duties {
			e.duties[s].due, e.duties[s].once = false, true
		}
	case e.up:
		e.up = false
		k.lostLocked(e, v)
	case done:
		k.failedLocked(e, v, p)
	}
}

// lostLocked decides when to redial a peer whose connection was lost.
func (k *Keeper) lostLocked(e *entry, v view) {
	stood := v.now.Sub(e.opened)
	e.err = fmt.Errorf("connect to %s: the connection was lost after %v", e.id, stood.Round(time.Second/10))
	for s := range e.duties {
		d, p := &e.duties[s], policies[s]
		d.due = false
		if !d.on {
			continue
		}
		d.lost = v.now
		d.short++
		stable := stood >= p.stable
		if stable {
			d.retry.Reset()
			d.failed, d.short = 0, 0
		}
		var delay time.Duration
		if !stable && (!p.quick || d.short > freeLosses) {
			d.lost = time.Time{}
			d.failed++
			delay = d.retry.Next()
		}
		if p.yield {
			delay = max(delay, k.headStart(e.id))
		}
		d.next = v.now.Add(delay)
	}
}

// failedLocked decides when to redial a peer that was not reached.
func (k *Keeper) failedLocked(e *entry, v view, p *plan) {
	for s := range e.duties {
		d := &e.duties[s]
		if !d.due {
			continue
		}
		d.due = false
		d.failed++
		if e.hungUp {
			if d.short++; d.short > freeLosses {
				d.lost = time.Time{} // it does not accept this node now
			}
		}
		var delay time.Duration
		if policies[s].quick && d.fresh(v.now) {
			delay = k.pauseLocked()
		} else {
			delay = d.retry.Next()
		}
		if Source(s) == Persistent {
			if end := v.banEnds; errors.Is(e.err, errs.ErrBanned) && !end.IsZero() {
				delay = min(delay, max(end.Sub(v.now), 0)+afterBan)
			}
			p.tellFailure(k.cfg.Log, e.id, e.err, d.failed, delay)
		}
		d.next = v.now.Add(delay)
	}
}

// tellFailure logs that a persistent peer was not reached: the first time, that
// is a change of state.
func (p *plan) tellFailure(log *slog.Logger, id peer.ID, err error, failed int, again time.Duration) {
	level := slog.LevelDebug
	if failed == 1 {
		level = slog.LevelInfo
	}
	p.log = append(p.log, func() {
		log.Log(context.Background(), level, "persistent peer cannot be reached", "peer", id, "again", again, "err", err)
	})
}

// fresh reports whether the peer was lost recently enough to be dialed quickly
// if the policy says so.
func (d *duty) fresh(now time.Time) bool { return !d.lost.IsZero() && now.Sub(d.lost) < QuickFor }

// fresh reports whether the peer is dialed quickly.
func (e *entry) fresh(now time.Time) bool {
	return e.duties[Bootstrap].fresh(now) || e.duties[Persistent].fresh(now)
}

// pauseLocked returns a pause between quick dials.
func (k *Keeper) pauseLocked() time.Duration {
	b := backoff.Backoff{Min: QuickMax, Max: QuickMax, Rand: k.cfg.Rand}
	return b.Next()
}

// pursueLocked dials a peer that is due. Rounds dial bootstrap peers.
func (k *Keeper) pursueLocked(e *entry, v view, p *plan) {
	if e.up || e.dialing() || !e.wanted() {
		return
	}
	if d := e.duties[Discovered]; d.on && v.now.Sub(e.heard) > policies[Discovered].forget {
		k.undiscoverLocked(e)
	}
	var due []Source
	slot, free := numSources, false
	for _, s := range []Source{Persistent, Discovered, Saved} {
		d := &e.duties[s]
		if !d.on || s != Persistent && slices.Contains(k.released, e.id) || s == Saved && !k.looksForLocked(d, e.id, v) {
			continue
		}
		if d.next.After(v.now) {
			p.at(d.next)
			continue
		}
		due = append(due, s)
		switch {
		case policies[s].atOnce == 0:
			slot, free = numSources, true
		case !free && k.busy[s] < policies[s].atOnce:
			slot, free = s, true
		}
	}
	if !free {
		return // until another dial ends
	}
	for _, s := range due {
		e.duties[s].due = true
	}
	k.dialLocked(e, slot, k.limitLocked(e, v.now), p)
}

// looksForLocked reports whether a saved peer is dialed outside of rounds, with
// enough peers: once in any case, and again in a small network. Rounds dial
// saved peers while there are too few.
func (k *Keeper) looksForLocked(d *duty, id peer.ID, v view) bool {
	return v.enough && !k.cfg.Content && v.room && v.allowed[id] && (!d.once || len(v.up) < smallNetwork)
}

// limitLocked returns how long the next dial of a peer may take.
func (k *Keeper) limitLocked(e *entry, now time.Time) time.Duration {
	switch {
	case e.took == 0 && e.discoveredOnly():
		return firstDial // others wait for its place
	case !e.fresh(now) && !k.rounds.early(now):
		return dialLimit
	case e.took > 0:
		return min(max(quickDial, slack*e.took), dialLimit)
	case e.tries%3 != 0:
		return quickDial
	case e.fresh(now):
		return lostDial
	default:
		return firstDial
	}
}

// dialLocked plans a dial.
func (k *Keeper) dialLocked(e *entry, slot Source, limit time.Duration, p *plan) {
	ctx, cancel := context.WithCancel(k.group.Context())
	e.cancel, e.slot, e.done = cancel, slot, false
	e.tries++
	for s := range e.duties {
		e.duties[s].once = true
	}
	if slot < numSources {
		k.busy[slot]++
	}
	p.dials = append(p.dials, dial{ctx, e, e.info(), limit})
}

// carryOut does what a step decided.
func (k *Keeper) carryOut(p *plan) {
	for _, d := range p.dials {
		k.group.Go(func(context.Context) { k.dial(d) })
	}
	if p.ask && !k.group.Go(k.ask) {
		return // it is closing
	}
	for _, c := range p.protect {
		k.cfg.Conns.Protect(c.id, c.tag, c.on)
	}
	for _, log := range p.log {
		log()
	}
	if p.report != nil {
		for _, w := range p.waiting {
			k.tellWaiting(p.report, w)
		}
		k.mu.Lock()
		k.last = p.report
		k.mu.Unlock()
		k.cfg.Report(*p.report)
	}
	if p.refresh {
		k.cfg.Refresh()
	}
}

// tellWaiting puts into a round what is known so far of a dial that goes on.
func (k *Keeper) tellWaiting(r *Round, p peer.AddrInfo) {
	if k.cfg.Waiting == nil {
		return
	}
	for i := range r.Failed {
		if r.Failed[i].ID == p.ID {
			r.Failed[i].Err = k.cfg.Waiting(p, r.At)
		}
	}
}

func (k *Keeper) dial(d dial) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(d.ctx, d.limit)
	err := k.cfg.Dial(ctx, d.info)
	cancel()
	took := max(time.Since(begun), 1) // 0 means never
	reached := err == nil || k.cfg.Reached(err)
	if err != nil {
		k.cfg.Log.Debug("peer not reached", "peer", d.info.ID, "err", err)
	}
	k.mu.Lock()
	e := d.e
	e.cancel()
	e.cancel, e.done, e.err, e.hungUp = nil, true, err, reached
	if err == nil { // the error if no step sees the peer connected
		e.err = fmt.Errorf("connect to %s: the connection was lost at once", e.id)
	}
	if reached {
		e.took = took
	}
	if e.slot < numSources {
		k.busy[e.slot]--
	}
	back := err == nil && !e.back && e.duties[Saved].on && !e.duties[Bootstrap].on && !e.duties[Persistent].on && !e.duties[Discovered].on
	e.back = e.back || back
	k.mu.Unlock()
	if back {
		k.cfg.New(d.info, "saved")
	}
	k.wake.Notify()
}
