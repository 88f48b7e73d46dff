package keeper

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// clockInterval is how often the clock is read, and clockJump is the excess
	// between two readings that means that the machine slept.
	clockInterval = 10 * time.Second
	clockJump     = 15 * time.Second
	// checkGap separates two checks of the connections, and checkTimeout is
	// how long a peer has to answer; once the machine has moved, moveTimeout.
	checkGap     = 10 * time.Second
	checkTimeout = 5 * time.Second
	moveTimeout  = 3 * time.Second
	// againTimeout is how long a dial of a peer takes that was lost by moving: one whose
	// connection closed between beforeMove before the machine's addresses began to change
	// and afterMove after that. maxLost bounds how many are remembered.
	againTimeout = 20 * time.Second
	beforeMove   = 5 * time.Second
	afterMove    = time.Minute
	maxLost      = 256
	// checkAtOnce bounds how many peers are asked at a time.
	checkAtOnce = 32
)

// slept reports whether the machine was suspended between two readings of the
// clock, by the time that passed on the wall clock and on the monotonic clock.
// On Linux, suspension stops only the monotonic clock; elsewhere, and when a
// process is stopped, the reading comes too late by both.
func slept(wall, monotonic time.Duration) bool {
	return wall-monotonic > clockJump || monotonic > clockInterval+clockJump
}

// WatchClock calls woke when the machine wakes from sleep, which nothing else
// reports. It returns when ctx ends.
func WatchClock(ctx context.Context, now func() time.Time, woke func()) {
	tick := time.NewTicker(clockInterval)
	defer tick.Stop()
	before := now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		after := now()
		if slept(after.Round(0).Sub(before.Round(0)), after.Sub(before)) {
			woke()
		}
		before = after
	}
}

// Checker closes dead connections when the network may have changed: otherwise
// they would time out half a minute later.
type Checker struct {
	Peers func() []peer.ID
	// Alive closes the connections on which a peer does not respond in time, at least,
	// and reports whether any is left.
	Alive func(ctx context.Context, id peer.ID, least time.Duration) bool
	// Leave closes connections that cannot go on after a move.
	Leave func()
	// Again dials a peer that is not connected any more because the network may have
	// changed: it does not know.
	Again func(context.Context, peer.ID)
	// Lost returns the peers that were lost by a change of addresses that began at a
	// time.
	Lost func(began time.Time) []peer.ID
	Log  *slog.Logger
}

// Losses remembers which peers disconnected lately. It is safe for concurrent use; the
// zero value is ready.
type Losses struct {
	mu   sync.Mutex
	lost map[peer.ID]time.Time // guarded by mu
}

// Add notes that a peer disconnected: the first packet after the loss of the network
// ends its connection.
func (c *Losses) Add(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost == nil {
		c.lost = make(map[peer.ID]time.Time)
	}
	if len(c.lost) >= maxLost {
		oldest := id
		for p, at := range c.lost {
			if first, ok := c.lost[oldest]; !ok || at.Before(first) {
				oldest = p
			}
		}
		delete(c.lost, oldest)
	}
	c.lost[id] = time.Now()
}

// By returns the peers that were lost by a change of addresses that began at a
// time, and forgets those of before.
func (c *Losses) By(began time.Time) (list []peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, at := range c.lost {
		if at.After(began.Add(-beforeMove)) && at.Before(began.Add(afterMove)) {
			list = append(list, id)
		}
	}
	clear(c.lost)
	return list
}

// Run checks the connections at each signal, and dials peers again that do not respond,
// until ctx ends.
func (c *Checker) Run(ctx context.Context, moved *signal.Signal) {
	wake := moved.Wait()
	for ctx.Err() == nil {
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
		wake = moved.Wait()
		c.check(ctx, c.Peers(), checkTimeout, c.Again)
		if !backoff.Sleep(ctx, checkGap) {
			return
		}
	}
}

// Every checks the connections at an interval, until ctx ends.
func (c *Checker) Every(ctx context.Context, interval time.Duration) {
	for backoff.Sleep(ctx, interval) {
		c.check(ctx, c.Peers(), checkTimeout, nil)
	}
}

// Moved checks the connections once the machine has moved to another network, which
// began at a time, and dials the peers again that were lost: they would send to where
// the machine was.
func (c *Checker) Moved(ctx context.Context, began time.Time) {
	peers := c.Peers()
	for _, id := range c.Lost(began) {
		if !slices.Contains(peers, id) {
			peers = append(peers, id)
		}
	}
	c.Leave()
	c.check(ctx, peers, moveTimeout, c.Again)
}

// check closes the dead connections of peers, and calls again for those that have
// none left.
func (c *Checker) check(ctx context.Context, peers []peer.ID, timeout time.Duration, again func(context.Context, peer.ID)) {
	slots := make(chan struct{}, checkAtOnce)
	var wg sync.WaitGroup
	for _, id := range peers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if c.Alive(ctx, id, timeout) || ctx.Err() != nil {
				return
			}
			c.Log.Info("dead connection", "peer", id)
			if again != nil {
				bound, cancel := context.WithTimeout(ctx, againTimeout)
				defer cancel()
				again(bound, id)
			}
		})
	}
	wg.Wait()
}

// WatchRecovery calls recovered when the node has DHT peers again after it had
// no peers, including the first time. It returns when ctx ends.
func WatchRecovery(ctx context.Context, change *signal.Signal, connected, served func() bool, recovered func()) {
	alone := true
	for {
		changed := change.Wait()
		switch {
		case !connected():
			alone = true
		case alone && served():
			alone = false
			recovered()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
