package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// Each attempt to reach a bootstrap peer is bounded. In the first minute
	// of an outage the bound is short, because a peer that is silent now may
	// be back in a second, and a dial that began before may not notice: it is
	// bootstrapQuickDial, or bootstrapSlack times what it took to connect to
	// the peer before; one never reached gets bootstrapFirstDial every third
	// time, for it may be far away.
	bootstrapQuickDial  = time.Second
	bootstrapFirstDial  = 5 * time.Second
	bootstrapSlack      = 3
	bootstrapDialLimit  = 15 * time.Second
	bootstrapQuickFor   = time.Minute + 5*time.Second // so that it holds for a return at the end of the minute
	bootstrapRoundLimit = bootstrapQuickDial          // a round does not wait longer for a dial that goes on

	// In the first minute rounds follow one another after bootstrapQuickMin to
	// bootstrapQuickMax, later at growing distances from start to start, from
	// bootstrapRetryMin up to bootstrapRetryMax, for ever.
	bootstrapQuickMin = 400 * time.Millisecond
	bootstrapQuickMax = 800 * time.Millisecond
	bootstrapRetryMin = time.Second
	bootstrapRetryMax = 30 * time.Second
	// savedAtOnce is how many saved peers are dialled in a round, in turn.
	savedAtOnce = 8
	// With enough peers, bootstrap peers that are not connected are dialled after
	// bootstrapAgainMin, then at growing distances up to bootstrapAgainMax: a
	// network that was cut in two, or whose bootstrap peer started afresh, has
	// no other way to find together. They may have trimmed this node, so it is
	// not often, and begins anew only after all were connected for as long.
	bootstrapAgainMin = time.Minute
	bootstrapAgainMax = 10 * time.Minute
	// bootstrapGap separates two rounds even when peers come and go at once.
	bootstrapGap = 400 * time.Millisecond
)

// bootstrapper keeps the node connected: whenever it has too few peers it
// dials the bootstrap peers, until it has enough. Neither the DHT's own
// bootstrap (which looks every two minutes, at two peers at random, and only
// when its table is empty) nor boxo's (which without saved peers runs a single
// round) does that.
type bootstrapper struct {
	peers     []peer.AddrInfo
	saved     func() []peer.AddrInfo // some are dialled beside them; may be nil
	dial      func(context.Context, peer.AddrInfo) error
	connected func(peer.ID) bool
	count     func() int          // how many peers are connected
	enough    func() bool         // the node has the peers it wants
	content   bool                // it wants none for themselves: do not look for more
	refresh   func()              // tell the DHT that there is somebody to ask
	keep      func(peer.ID, bool) // spare a peer from trimming, or no longer
	change    *signal.Signal      // enough may have changed
	moved     *signal.Signal      // the network may have changed: do not wait any longer
	report    func(BootstrapRound)
	log       *slog.Logger
	rand      func() float64 // of the pauses; nil means math/rand/v2

	dials sync.WaitGroup // those of all rounds
	tries map[peer.ID]*try
	turn  int // which saved peers are next

	mu   sync.Mutex
	last *BootstrapRound // guarded by mu
}

// try is where things stand with one bootstrap peer.
type try struct {
	n    int           // attempts since the node had enough
	busy chan struct{} // closed when the attempt that is under way is over; nil without one
	err  error         // of the last attempt; read when busy is nil or closed
	took time.Duration // what the last dial that got through took; likewise
	kept bool          // it is spared from trimming
}

// run is the loop. It returns when ctx ends, and with it every dial.
func (b *bootstrapper) run(ctx context.Context) {
	defer b.dials.Wait()
	b.tries = make(map[peer.ID]*try)
	var begun time.Time // when the last round began
	had := true         // so that having enough from the start is not taken for a recovery
	look := lookout{retry: backoff.Backoff{Min: bootstrapAgainMin, Max: bootstrapAgainMax, Rand: b.rand}}
	for ctx.Err() == nil {
		change, moved := b.change.Wait(), b.moved.Wait()
		if !b.enough() {
			had = false
			b.outage(ctx, &begun)
			look.reset()
			continue
		}
		if !had {
			b.refresh()
		}
		had = true
		b.release()
		timer := look.timer(b.content || b.complete())
		select {
		case <-change:
		case <-timer:
			if b.due(ctx, begun) {
				begun = time.Now()
				if b.round(ctx, b.known(b.peers), bootstrapDialLimit) {
					b.refresh()
				}
				look.done()
			}
		case <-moved:
			// The node may be somewhere else now, and may not have noticed
			// what it has lost: one round at once, and no more of them when
			// there are still enough.
			if !b.content && b.due(ctx, begun) {
				begun = time.Now()
				b.round(ctx, b.candidates(), bootstrapDialLimit)
				look.reset()
			}
		case <-ctx.Done():
		}
	}
}

// lookout says when to dial bootstrap peers again with enough others.
type lookout struct {
	retry    backoff.Backoff
	next     time.Time // zero: not decided
	complete time.Time // since when all are connected; zero when they are not
}

func (l *lookout) reset() { l.retry.Reset(); l.next, l.complete = time.Time{}, time.Time{} }
func (l *lookout) done()  { l.next = time.Time{} }

// timer returns a channel that fires when it is time, nil for never.
func (l *lookout) timer(complete bool) <-chan time.Time {
	if complete {
		if l.complete.IsZero() {
			l.complete = time.Now()
		}
		l.next = time.Time{}
		return nil
	}
	if !l.complete.IsZero() && time.Since(l.complete) > bootstrapAgainMax {
		l.retry.Reset()
	}
	l.complete = time.Time{}
	if l.next.IsZero() {
		l.next = time.Now().Add(l.retry.Next())
	}
	return time.After(time.Until(l.next))
}

// complete reports whether every bootstrap peer is connected.
func (b *bootstrapper) complete() bool {
	for _, p := range b.peers {
		if !b.connected(p.ID) {
			return false
		}
	}
	return true
}

// outage dials until there are enough peers.
func (b *bootstrapper) outage(ctx context.Context, begun *time.Time) {
	since := time.Now()
	retry := backoff.Backoff{Min: bootstrapRetryMin, Max: bootstrapRetryMax, Rand: b.rand}
	quick := backoff.Backoff{Min: bootstrapQuickMax, Max: bootstrapQuickMax, Rand: b.rand}
	for b.due(ctx, *begun) && !b.enough() {
		*begun = time.Now()
		moved := b.moved.Wait()
		fresh := time.Since(since) < bootstrapQuickFor
		limit := bootstrapDialLimit
		if fresh {
			limit = 0
		}
		if b.round(ctx, b.candidates(), limit) {
			retry.Reset()
		}
		pause := quick.Next()
		if !fresh {
			pause = retry.Next() - time.Since(*begun)
		}
		if b.pause(ctx, pause, moved) {
			since = time.Now()
			retry.Reset()
		}
	}
}

// due waits until a round may follow one that began then. It reports whether
// ctx is still alive.
func (b *bootstrapper) due(ctx context.Context, begun time.Time) bool {
	if gap := bootstrapGap - time.Since(begun); gap > 0 {
		timer := time.NewTimer(gap)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// pause waits for d, or until there are enough peers. It reports whether the
// network changed, which ends it too.
func (b *bootstrapper) pause(ctx context.Context, d time.Duration, moved <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		change := b.change.Wait()
		if b.enough() {
			return false
		}
		select {
		case <-change:
		case <-timer.C:
			return false
		case <-moved:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// candidates are the peers of a round: every bootstrap peer, and the next of
// the saved ones.
func (b *bootstrapper) candidates() []peer.AddrInfo {
	list := slices.Clone(b.peers)
	if b.saved != nil {
		saved := b.saved()
		b.forget(saved)
		for i := range min(savedAtOnce, len(saved)) {
			list = append(list, saved[(b.turn+i)%len(saved)])
		}
		b.turn += savedAtOnce
		list = addrs.Merge(list...)
	}
	return b.known(list)
}

// known makes sure that there is a try for each peer, and returns them.
func (b *bootstrapper) known(list []peer.AddrInfo) []peer.AddrInfo {
	for _, p := range list {
		if b.tries[p.ID] == nil {
			b.tries[p.ID] = new(try)
		}
	}
	return list
}

// forget drops what is known of dialling peers that are not saved any more.
func (b *bootstrapper) forget(saved []peer.AddrInfo) {
	here := make(map[peer.ID]bool)
	for _, p := range slices.Concat(b.peers, saved) {
		here[p.ID] = true
	}
	maps.DeleteFunc(b.tries, func(id peer.ID, t *try) bool { return !here[id] && !t.kept && !t.dialling() })
}

// round dials those of the peers that are neither connected nor being dialled
// already, all at once. It waits for the results, for a second at most: a peer
// that takes longer does not hold up the others. The limit is that of each
// dial, 0 for the short one of a fresh outage. It reports whether somebody was
// reached.
func (b *bootstrapper) round(ctx context.Context, peers []peer.AddrInfo, limit time.Duration) bool {
	started := time.Now()
	fresh := make(map[peer.ID]bool) // dialled in this round
	for _, p := range peers {
		t := b.tries[p.ID]
		if b.connected(p.ID) || t.dialling() {
			continue
		}
		fresh[p.ID] = true
		b.attempt(ctx, p, t, limit)
	}
	timer := time.NewTimer(bootstrapRoundLimit)
	defer timer.Stop()
	late := false
	for _, p := range peers {
		if t := b.tries[p.ID]; fresh[p.ID] && !late {
			select {
			case <-t.busy:
			case <-timer.C:
				late = true
			}
		}
	}
	if ctx.Err() != nil {
		return false
	}
	r := BootstrapRound{
		At: started, Took: time.Since(started), Peers: b.count(),
		Connected: []peer.ID{}, Failed: []DialFailure{}, // never null in JSON
	}
	reached, out := false, 0
	for _, p := range peers {
		t := b.tries[p.ID]
		switch {
		case b.connected(p.ID):
			r.Connected = append(r.Connected, p.ID)
			reached = reached || fresh[p.ID]
			if !t.kept && !b.enough() {
				t.kept = true
				b.keep(p.ID, true)
			}
		case t.dialling():
			out++
			r.Failed = append(r.Failed, DialFailure{p.ID, fmt.Errorf("connect to %s: no answer yet", p.ID)})
		case t.err != nil:
			out++
			r.Failed = append(r.Failed, DialFailure{p.ID, t.err})
		default: // reached, and gone again
			out++
			r.Failed = append(r.Failed, DialFailure{p.ID, fmt.Errorf("connect to %s: the connection was lost at once", p.ID)})
		}
	}
	if out == 0 && len(fresh) == 0 {
		// Every bootstrap peer is connected and still there are too few: the
		// others are to be found through them.
		b.refresh()
		return false
	}
	b.mu.Lock()
	b.last = r.clone()
	b.mu.Unlock()
	b.log.Info("bootstrap round", "connected", len(r.Connected), "failed", len(r.Failed), "took", r.Took)
	b.report(r)
	return reached
}

// attempt dials one peer in the background.
func (b *bootstrapper) attempt(ctx context.Context, p peer.AddrInfo, t *try, limit time.Duration) {
	if limit == 0 {
		limit = bootstrapQuickDial
		if t.took > 0 {
			limit = min(max(limit, bootstrapSlack*t.took), bootstrapDialLimit)
		} else if t.n%3 == 0 {
			limit = bootstrapFirstDial
		}
	}
	t.n++
	busy := make(chan struct{})
	t.busy = busy
	b.dials.Go(func() {
		defer close(busy)
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		begun := time.Now()
		if t.err = b.dial(ctx, p); t.err == nil || errors.Is(t.err, nethost.ErrLostAtOnce) {
			t.took = max(time.Since(begun), 1) // 0 means never
		}
	})
}

func (t *try) dialling() bool {
	if t.busy == nil {
		return false
	}
	select {
	case <-t.busy:
		return false
	default:
		return true
	}
}

// release ends what holds only while there are too few peers.
func (b *bootstrapper) release() {
	for id, t := range b.tries {
		if t.kept {
			t.kept = false
			b.keep(id, false)
		}
		t.n = 0
	}
}

func (b *bootstrapper) lastRound() *BootstrapRound {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}
