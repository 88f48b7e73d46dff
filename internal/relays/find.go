package relays

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Namespace is where relay services advertise themselves in the DHT.
const Namespace = "p2pnode relay"

const (
	// want is how many relays there are to be in all: two, so that others can reach
	// the node while one is replaced.
	want = 2
	// unknownFor is how long a node whose reachability is unknown has peers before it
	// uses relays: on a small network nobody may ever tell.
	unknownFor = 3 * time.Second
	// searchMin and searchMax bound the delay between two searches in the DHT, and
	// searchFor how long one takes; searchMany is when it has found enough.
	searchMin  = 2 * time.Second
	searchMax  = 2 * time.Minute
	searchFor  = 20 * time.Second
	searchMany = 16
	// maxPool bounds how many relays are remembered.
	maxPool = 64
	// tryFor bounds an attempt at a relay.
	tryFor = 15 * time.Second
	// againMin and againMax bound the delay after which a relay that failed is tried
	// again, and liarFor is that for one that did not relay.
	againMin = 40 * time.Second // AutoRelay leaves it alone for up to 20
	againMax = 10 * time.Minute
	liarFor  = 30 * time.Minute
	// pingEvery is how often a relay is pinged, and pingFor how long it has to answer;
	// without an answer twice it is dead. So one that crashes is replaced in 15
	// seconds. loopEvery is how often a node dials itself through it.
	pingEvery = 4 * time.Second
	pingFor   = 3 * time.Second
	loopEvery = 10 * time.Minute
	loopFor   = 6 * time.Second
)

// Source says how a relay became known.
type Source string

// The sources.
const (
	Named     Source = "named"
	Connected Source = "connected"
	Found     Source = "found"
)

// candidate is a relay that nobody has named.
type candidate struct {
	info     peer.AddrInfo
	source   Source
	failures int
	again    time.Time // when it may be tried again
	trying   bool
	offered  bool // to AutoRelay
	proven   bool // it relays
}

// finder is what [Client] knows of relays that nobody has named. Its mutex guards it.
type finder struct {
	pool     map[peer.ID]*candidate
	resting  bool // others can dial the node: relays that were found are left to end
	searched bool // the DHT was, once
}

// State is what there is to know about a relay.
type State struct {
	ID       peer.ID
	Source   Source
	Reserved bool
}

// States returns the named relays, and those found at which there is a
// reservation.
func (c *Client) States() []State {
	var list []State
	for _, p := range c.Relays() {
		list = append(list, State{p.ID, Named, c.Reserved(p.ID)})
	}
	c.mu.Lock()
	var found []State
	for id, p := range c.find.pool {
		if !c.namedLocked(id) {
			found = append(found, State{id, p.source, true})
		}
	}
	c.mu.Unlock()
	found = slices.DeleteFunc(found, func(s State) bool { return !c.Reserved(s.ID) })
	slices.SortFunc(found, func(a, b State) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return append(list, found...)
}

// Finds reports whether the client looks for relays by itself.
func (c *Client) Finds() bool { return c.cfg.Discover && !c.cfg.Disabled }

// Sought returns why no relay has been found, "" before the first search.
func (c *Client) Sought() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, failed := 0, ""
	for id, p := range c.find.pool {
		known++
		if err := c.failures[id]; err != nil && p.failures > 0 {
			failed = fmt.Sprintf("; %s: %s", id, causes.Line(err))
		}
	}
	switch {
	case known > 0:
		return fmt.Sprintf("%d relays are known%s", known, failed)
	case c.find.searched:
		return "no connected peer offers to relay, and the DHT has no relay"
	default:
		return ""
	}
}

// offers returns the relays found that AutoRelay is to make reservations at.
func (c *Client) offers() []peer.AddrInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []peer.AddrInfo
	for id, p := range c.find.pool {
		if p.offered && !c.held[id] {
			list = append(list, p.info)
		}
	}
	return list
}

// look keeps reservations at relays that nobody has named, until ctx ends.
func (c *Client) look(ctx context.Context, h *nethost.Host) {
	retry := backoff.Backoff{Min: searchMin, Max: searchMax}
	var since, next time.Time // since when there are peers; when the next search is due
	var searching atomic.Bool
	for ctx.Err() == nil {
		change, changed := c.cfg.Change.Wait(), c.changed.Wait()
		now := time.Now()
		wait := time.Hour
		switch {
		case h.PeerCount() == 0:
			since = time.Time{}
		case since.IsZero():
			since = now
		}
		reach := c.cfg.Reach()
		c.rest(reach == network.ReachabilityPublic)
		due := since.Add(unknownFor)
		switch {
		case since.IsZero(), reach == network.ReachabilityPublic:
		case reach == network.ReachabilityUnknown && now.Before(due):
			wait = due.Sub(now)
		default:
			missing, busy := c.missing()
			picked, soonest := c.pick(h, now, missing-busy)
			for _, p := range picked {
				c.group.Go(func(ctx context.Context) { c.try(ctx, h, p) })
			}
			if !soonest.IsZero() {
				wait = min(wait, soonest.Sub(now))
			}
			if missing <= 0 {
				retry.Reset()
			} else if missing-busy > len(picked) && c.cfg.Search != nil && !searching.Load() {
				if left := next.Sub(now); left > 0 {
					wait = min(wait, left)
				} else {
					next = now.Add(retry.Next())
					searching.Store(true)
					c.group.Go(func(ctx context.Context) {
						c.search(ctx)
						searching.Store(false)
						c.changed.Notify()
					})
				}
			}
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-change:
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// rest leaves the relays that were found to end, or takes them back.
func (c *Client) rest(on bool) {
	c.mu.Lock()
	news := c.find.resting != on
	c.find.resting = on
	c.mu.Unlock()
	if news {
		c.changed.Notify()
	}
}

// missing returns how many relays there are too few, and how many are being tried.
func (c *Client) missing() (missing, busy int) {
	missing = want
	for _, s := range c.States() {
		if s.Reserved {
			missing--
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.find.pool {
		if p.trying {
			busy++
		}
	}
	return missing, busy
}

// pick chooses up to n relays to try, connected ones first, and otherwise by
// chance; it returns when the next that is left alone may be tried.
func (c *Client) pick(h *nethost.Host, now time.Time, n int) (picked []peer.AddrInfo, soonest time.Time) {
	if n <= 0 {
		return nil, time.Time{}
	}
	for _, id := range h.PeerIDs() {
		if h.Direct(id) && slices.Contains(h.Protocols(id), proto.ProtoIDv2Hop) && len(dialable(h, id)) > 0 {
			c.learn(peer.AddrInfo{ID: id}, Connected)
		}
	}
	c.mu.Lock()
	ids := slices.DeleteFunc(slices.Collect(maps.Keys(c.find.pool)), func(id peer.ID) bool {
		return c.find.pool[id].trying || c.held[id] || c.namedLocked(id)
	})
	c.mu.Unlock()
	ids = slices.DeleteFunc(ids, func(id peer.ID) bool { return !c.cfg.Welcome(id) })
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	near := make(map[peer.ID]int)
	for _, id := range ids {
		if !h.Direct(id) {
			near[id] = 1
		}
	}
	slices.SortStableFunc(ids, func(a, b peer.ID) int { return near[a] - near[b] })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		p := c.find.pool[id]
		switch {
		case p == nil:
		case now.Before(p.again):
			if soonest.IsZero() || p.again.Before(soonest) {
				soonest = p.again
			}
		case len(picked) < n:
			p.trying = true
			picked = append(picked, p.info)
		}
	}
	return picked, soonest
}

// dialable returns the addresses of a relay that are not circuit addresses
// themselves.
func dialable(h *nethost.Host, id peer.ID) []string {
	var list []string
	for _, a := range h.KnownAddrs(id) {
		if !addrs.IsCircuit(a) {
			list = append(list, a.String())
		}
	}
	return list
}

// learn remembers a relay.
func (c *Client) learn(ai peer.AddrInfo, from Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.find.pool[ai.ID]; p != nil {
		if len(ai.Addrs) > 0 {
			p.info = ai
		}
		return
	}
	if len(c.find.pool) >= maxPool {
		for id, p := range c.find.pool {
			if !p.trying && !c.held[id] {
				delete(c.find.pool, id) // strangers can advertise any number
				break
			}
		}
	}
	c.find.pool[ai.ID] = &candidate{info: ai, source: from}
}

// search looks for relays in the DHT once.
func (c *Client) search(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	var count int
	for ai, err := range c.cfg.Search(ctx) {
		if err != nil {
			c.cfg.Log.Debug("searching for relays", "err", err)
			break
		}
		if ai.ID == c.cfg.Self || !c.cfg.Welcome(ai.ID) {
			continue
		}
		c.learn(ai, Found)
		c.changed.Notify()
		if count++; count == searchMany {
			break
		}
	}
	c.mu.Lock()
	c.find.searched = true
	c.mu.Unlock()
}

// errNoRelay is the failure of a peer that does not offer to relay.
var errNoRelay = fmt.Errorf("it is not a relay: it does not offer %s", proto.ProtoIDv2Hop)

// try makes a reservation at a relay, and finds out whether it relays.
func (c *Client) try(ctx context.Context, h *nethost.Host, ai peer.AddrInfo) {
	bound, cancel := context.WithTimeout(ctx, tryFor)
	err := c.reserve(bound, h, ai)
	cancel()
	if err == nil {
		err = c.prove(ctx, h, ai.ID)
	}
	c.mu.Lock()
	p := c.find.pool[ai.ID]
	p.trying, p.offered = false, false
	if err == nil && !c.held[ai.ID] {
		err = errors.New("the reservation ended at once")
	}
	if err == nil {
		p.failures, p.again, p.proven = 0, time.Time{}, true
		delete(c.failures, ai.ID)
	}
	c.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			c.cfg.Log.Debug("relay is not used", "relay", ai.ID, "err", err)
		}
		c.fail(ai.ID, err)
		return
	}
	c.changed.Notify()
	c.group.Go(func(ctx context.Context) { c.tend(ctx, h, ai.ID, true) })
}

// reserve has AutoRelay make a reservation.
func (c *Client) reserve(ctx context.Context, h *nethost.Host, ai peer.AddrInfo) error {
	if !h.Direct(ai.ID) {
		if err := c.cfg.Dial(ctx, ai); err != nil {
			return err
		}
	}
	h.AwaitIdentify(ctx, ai.ID)
	if !slices.Contains(h.Protocols(ai.ID), proto.ProtoIDv2Hop) {
		return errNoRelay
	}
	c.mu.Lock()
	delete(c.failures, ai.ID)
	c.find.pool[ai.ID].offered = true
	c.mu.Unlock()
	c.changed.Notify()
	for {
		changed := c.changed.Wait()
		c.mu.Lock()
		held, err := c.held[ai.ID], c.failures[ai.ID]
		c.mu.Unlock()
		switch {
		case held:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.New("it has not answered")
		}
	}
}

// errNotRelaying is the failure of a relay that takes reservations and does not
// relay.
var errNotRelaying = errors.New("it took a reservation, but does not relay")

// prove finds out whether a relay relays: the node dials itself.
func (c *Client) prove(ctx context.Context, h *nethost.Host, id peer.ID) error {
	var err error
	for range 2 {
		if err = c.loop(ctx, h, id); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", errNotRelaying, err)
}

// loop dials the node itself through a relay. A silent one would hold the dial for
// a minute.
func (c *Client) loop(ctx context.Context, h *nethost.Host, id peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, loopFor)
	defer cancel()
	done := make(chan error, 1)
	if !c.group.Go(func(context.Context) { done <- h.Loop(ctx, id) }) {
		return context.Canceled
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail leaves a relay alone for a while, one that does not relay for long.
func (c *Client) fail(id peer.ID, err error) {
	c.mu.Lock()
	if p := c.find.pool[id]; p != nil {
		p.failures++
		p.proven = false
		wait := min(againMax, againMin<<min(p.failures-1, 10))
		if errors.Is(err, errNotRelaying) {
			wait = liarFor
		}
		p.again = time.Now().Add(wait/2 + rand.N(wait/2))
	}
	if !errors.Is(err, context.Canceled) {
		c.failures[id] = err
	}
	c.mu.Unlock()
	c.changed.Notify()
}

// tend looks after a reservation until it ends: a relay that has died, or one that
// was found and does not relay any more, is replaced.
func (c *Client) tend(ctx context.Context, h *nethost.Host, id peer.ID, found bool) {
	looped := time.Now()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		changed := c.changed.Wait()
		if !c.holds(id) {
			return
		}
		select {
		case <-changed:
			continue
		case <-ping.C:
		case <-ctx.Done():
			return
		}
		alive := answers(ctx, h, id)
		if !alive { // one ping may get lost
			alive = answers(ctx, h, id)
		}
		if !alive && ctx.Err() == nil {
			c.cfg.Log.Info("closing connection to dead relay", "relay", id)
			if err := h.Disconnect(id); err != nil {
				c.cfg.Log.Debug("closing connection to dead relay", "relay", id, "err", err)
			}
			return
		}
		if !found || time.Since(looped) < loopEvery {
			continue
		}
		looped = time.Now()
		if err := c.prove(ctx, h, id); err != nil && ctx.Err() == nil {
			c.cfg.Log.Info("relay does not relay any more", "relay", id, "err", err)
			c.fail(id, err)
			return
		}
	}
}

// answers reports whether a peer answers a ping, if only that it does not speak it.
func answers(ctx context.Context, h *nethost.Host, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, pingFor)
	defer cancel()
	_, err := h.Ping(ctx, id)
	return err == nil || !errors.Is(err, context.DeadlineExceeded)
}
