// Package meet keeps a node connected to members of a group that it finds by
// rendezvous. It chooses them by chance among all that it finds, whoever is
// connected already: so the members of a group make one network, also those that
// came in clusters of their own.
package meet

import (
	"context"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// searchMin and searchMax bound the delay between two searches for missing
	// members, which grows while they bring nobody.
	searchMin = 5 * time.Second
	searchMax = 2 * time.Minute
	// freshen is how often a member is exchanged for another: a network that has
	// fallen apart, each part with enough members, grows together again.
	freshen = 10 * time.Minute
	// maxFound bounds how many peers of a search are considered: strangers can
	// announce any number.
	maxFound = 1024
	// dialLimit bounds a dial, and atOnce how many there are at a time.
	dialLimit = 10 * time.Second
	atOnce    = 4
	// grace is how long a peer may take, once it is connected, to prove a member.
	grace = 10 * time.Second
)

// Config configures [Run]. Its functions are called without locks held.
type Config struct {
	Self peer.ID
	Want int // how many members are to be connected
	// Find searches for members once.
	Find func(ctx context.Context) iter.Seq2[peer.AddrInfo, error]
	Dial func(context.Context, peer.AddrInfo) error
	// Connected reports whether there is a connection to a peer.
	Connected func(peer.ID) bool
	// Member reports whether a connected peer is a member; nil means all are.
	Member func(peer.ID) bool
	// Welcome reports whether a peer may be dialed; Room whether there is room for
	// another connection.
	Welcome func(peer.ID) bool
	Room    func() bool
	// Protect protects a peer from trimming, or no longer.
	Protect func(peer.ID, bool)
	// Found is called for each peer that is found and not connected.
	Found  func(peer.AddrInfo)
	Change *signal.Signal // connections or members may have changed
	Log    *slog.Logger
}

// group is a group whose members a node keeps connected.
type group struct {
	cfg    Config
	chosen map[peer.ID]time.Time // and since when
	order  []peer.ID             // of chosen, the oldest first
}

// Run keeps members connected until ctx ends.
func Run(ctx context.Context, cfg Config) {
	g := &group{cfg: cfg, chosen: make(map[peer.ID]time.Time)}
	defer g.release()
	retry := backoff.Backoff{Min: searchMin, Max: searchMax}
	var search, exchange time.Time // when the next of them is due
	for ctx.Err() == nil {
		change := cfg.Change.Wait()
		now := time.Now()
		wait, lost := g.check(now)
		if lost {
			retry.Reset()
			search = now
		}
		switch missing := cfg.Want - len(g.chosen); {
		case missing > 0 && !cfg.Room():
			wait = sooner(wait, searchMax)
		case missing > 0 && now.Before(search):
			wait = sooner(wait, search.Sub(now))
		case missing > 0:
			if g.fill(ctx, g.find(ctx)) {
				retry.Reset()
			}
			search, exchange = time.Now().Add(retry.Next()), time.Now().Add(freshen)
			continue
		case now.Before(exchange):
			wait = sooner(wait, exchange.Sub(now))
		default:
			g.exchange(ctx)
			exchange = time.Now().Add(freshen)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-change:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// sooner returns the shorter of two waits, the first of which may be none.
func sooner(a, b time.Duration) time.Duration {
	if a <= 0 {
		return b
	}
	return min(a, b)
}

// check leaves those chosen that are lost, or no members, and reports whether any
// are lost. It returns how long to wait for one that may prove to be a member; 0
// without any.
func (g *group) check(now time.Time) (wait time.Duration, lost bool) {
	for id, since := range g.chosen {
		left := since.Add(grace).Sub(now)
		switch {
		case !g.cfg.Connected(id):
			g.leave(id)
			lost = true
		case g.member(id):
		case left > 0:
			wait = sooner(wait, left)
		default:
			g.leave(id)
		}
	}
	return wait, lost
}

func (g *group) member(id peer.ID) bool { return g.cfg.Member == nil || g.cfg.Member(id) }

// find searches once, and returns whom it has found, in random order.
func (g *group) find(ctx context.Context) []peer.AddrInfo {
	var found []peer.AddrInfo
	for ai, err := range g.cfg.Find(ctx) {
		if err != nil {
			g.cfg.Log.Debug("searching for members", "err", err)
			break
		}
		if ai.ID == g.cfg.Self || !g.cfg.Welcome(ai.ID) {
			continue
		}
		if !g.cfg.Connected(ai.ID) {
			g.cfg.Found(ai)
		}
		if found = append(found, ai); len(found) == maxFound {
			break
		}
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return found
}

// fill chooses from those found until there are enough, and reports whether it has
// chosen anybody.
func (g *group) fill(ctx context.Context, found []peer.AddrInfo) (chosen bool) {
	found = slices.DeleteFunc(found, func(ai peer.AddrInfo) bool { return !g.chosen[ai.ID].IsZero() })
	for len(found) > 0 && len(g.chosen) < g.cfg.Want && ctx.Err() == nil && g.cfg.Room() {
		n := min(len(found), g.cfg.Want-len(g.chosen), atOnce)
		ok := make([]bool, n)
		var wg sync.WaitGroup
		for i, ai := range found[:n] {
			if g.cfg.Connected(ai.ID) {
				ok[i] = g.member(ai.ID)
				continue
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, dialLimit)
				defer cancel()
				err := g.cfg.Dial(ctx, ai)
				if err != nil {
					g.cfg.Log.Debug("dialing a member", "peer", ai.ID, "err", err)
				}
				ok[i] = err == nil
			})
		}
		wg.Wait()
		for i, ai := range found[:n] {
			if ok[i] {
				g.choose(ai.ID)
				chosen = true
			}
		}
		found = found[n:]
	}
	return chosen
}

// exchange takes another member in place of the oldest.
func (g *group) exchange(ctx context.Context) {
	if len(g.order) == 0 {
		return
	}
	found := slices.DeleteFunc(g.find(ctx), func(ai peer.AddrInfo) bool { return !g.chosen[ai.ID].IsZero() })
	if len(found) == 0 {
		return
	}
	oldest := g.order[0]
	g.leave(oldest)
	if !g.fill(ctx, found) && g.cfg.Connected(oldest) {
		g.choose(oldest)
	}
}

func (g *group) choose(id peer.ID) {
	if !g.chosen[id].IsZero() {
		return
	}
	g.chosen[id] = time.Now()
	g.order = append(g.order, id)
	g.cfg.Protect(id, true)
}

func (g *group) leave(id peer.ID) {
	delete(g.chosen, id)
	g.order = slices.DeleteFunc(g.order, func(o peer.ID) bool { return o == id })
	g.cfg.Protect(id, false)
}

func (g *group) release() {
	for _, id := range slices.Clone(g.order) {
		g.leave(id)
	}
}
