// Package connector is the one sink for peers that were discovered: whatever
// found them, each is dialled once at a time, with backoff, until it is
// connected or was not heard of for a while.
package connector

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

const (
	// maxPeers bounds how many discovered peers are remembered: discovery
	// brings bytes from strangers.
	maxPeers = 512
	// maxAddrs bounds the addresses kept of each, the newest ones.
	maxAddrs = 32
	// maxDials bounds how many are dialled at a time.
	maxDials = 16
	// dialTimeout bounds one dial.
	dialTimeout = 15 * time.Second
	// forgetAfter is how long a peer that nobody mentions again is retried.
	forgetAfter = 10 * time.Minute

	retryMin = time.Second
	retryMax = 30 * time.Second
	// stable is how long a connection must have stood for its loss to be
	// answered at once. A peer that trims this node again and again is dialled
	// with the delays of one that cannot be reached.
	stable = time.Minute
)

// Config is what a Connector needs to know.
type Config struct {
	Self      peer.ID
	Dial      func(context.Context, peer.AddrInfo) error
	Connected func(peer.ID) bool
	// New is called for a peer that was not known, without a lock held; nil means
	// nobody.
	New func(p peer.AddrInfo, source string)
	Log *slog.Logger
}

// Connector dials discovered peers. Its methods are safe for concurrent use
// and never block.
type Connector struct {
	cfg   Config
	group *lifecycle.Group
	slots chan struct{}

	mu    sync.Mutex
	peers map[peer.ID]*entry // guarded by mu
	full  uint64             // peers turned away because the table was full; guarded by mu
}

type entry struct {
	info    peer.AddrInfo
	heardAt time.Time
	busy    bool // a goroutine is at work on it
	// since is when it was connected, and retry the delays so far; both belong
	// to the goroutine while there is one.
	since time.Time
	retry backoff.Backoff
}

// New returns a connector whose goroutines belong to group.
func New(group *lifecycle.Group, cfg Config) *Connector {
	if cfg.New == nil {
		cfg.New = func(peer.AddrInfo, string) {}
	}
	return &Connector{cfg: cfg, group: group, slots: make(chan struct{}, maxDials), peers: make(map[peer.ID]*entry)}
}

// Found hands over a discovered peer. Addresses of several reports add up.
func (c *Connector) Found(ai peer.AddrInfo, source string) {
	if ai.ID == c.cfg.Self || len(ai.Addrs) == 0 {
		return
	}
	if c.note(ai, source) {
		c.cfg.New(ai, source)
	}
}

// note remembers a discovered peer and dials it. It reports whether the peer is
// new.
func (c *Connector) note(ai peer.AddrInfo, source string) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	e, known := c.peers[ai.ID]
	if !known {
		if len(c.peers) >= maxPeers && !c.evictLocked(now) {
			c.full++
			c.cfg.Log.Warn("discovered peer ignored: too many are known", "peer", ai.ID, "source", source, "ignored", c.full)
			return false
		}
		e = &entry{info: peer.AddrInfo{ID: ai.ID}, retry: backoff.Backoff{Min: retryMin, Max: retryMax}}
		c.peers[ai.ID] = e
		c.cfg.Log.Debug("peer discovered", "peer", ai.ID, "source", source)
	}
	e.heardAt = now
	e.info = addrs.Merge(ai, e.info)[0] // the newest addresses first
	e.info.Addrs = e.info.Addrs[:min(len(e.info.Addrs), maxAddrs)]
	c.startLocked(e)
	return !known
}

// Lost tells that a peer has disconnected: if it was discovered lately, it is
// dialled again.
func (c *Connector) Lost(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.peers[id]; ok && time.Since(e.heardAt) < forgetAfter {
		c.startLocked(e)
	}
}

// evictLocked makes room by forgetting one peer that is connected or stale.
func (c *Connector) evictLocked(now time.Time) bool {
	for id, e := range c.peers {
		if !e.busy && (c.cfg.Connected(id) || now.Sub(e.heardAt) > forgetAfter) {
			delete(c.peers, id)
			return true
		}
	}
	return false
}

func (c *Connector) startLocked(e *entry) {
	if e.busy || c.cfg.Connected(e.info.ID) {
		return
	}
	id := e.info.ID
	delay := c.headStart(id)
	if time.Since(e.since) < stable {
		delay = max(delay, e.retry.Next())
	} else {
		e.retry.Reset()
	}
	e.busy = c.group.Go(func(ctx context.Context) { c.pursue(ctx, id, e, delay) })
}

// pursue dials one peer until it is connected or forgotten.
func (c *Connector) pursue(ctx context.Context, id peer.ID, e *entry, delay time.Duration) {
	for ; wait(ctx, delay); delay = e.retry.Next() {
		ai, ok := c.next(id)
		if !ok {
			return
		}
		if err := c.dial(ctx, ai); err != nil {
			c.cfg.Log.Debug("discovered peer not reached", "peer", id, "err", err)
		}
	}
	c.idle(id)
}

// headStart breaks the tie between two peers that discover each other at the
// same moment. Were both to dial at once from their listen ports, TCP would
// take it for a simultaneous open and both handshakes could fail; so the peer
// with the lower ID dials at once and the other one waits to be dialled.
func (c *Connector) headStart(id peer.ID) time.Duration {
	if bytes.Compare([]byte(c.cfg.Self), []byte(id)) < 0 {
		return 0
	}
	return time.Second + rand.N(time.Second)
}

// next returns what to dial, or false when the pursuit is over.
func (c *Connector) next(id peer.ID) (peer.AddrInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.peers[id]
	if !ok {
		return peer.AddrInfo{}, false
	}
	if c.cfg.Connected(id) {
		e.busy, e.since = false, time.Now()
		return peer.AddrInfo{}, false
	}
	if time.Since(e.heardAt) > forgetAfter {
		delete(c.peers, id)
		return peer.AddrInfo{}, false
	}
	return e.info, true
}

func (c *Connector) idle(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.peers[id]; ok {
		e.busy = false
	}
}

func (c *Connector) dial(ctx context.Context, ai peer.AddrInfo) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return c.cfg.Dial(ctx, ai)
}

// wait sleeps for d and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
