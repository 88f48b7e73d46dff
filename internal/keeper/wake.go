package keeper

import (
	"context"
	"log/slog"
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
	// how long a peer has to answer.
	checkGap     = 10 * time.Second
	checkTimeout = 5 * time.Second
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
	// Alive reports whether a peer responds before ctx ends.
	Alive func(context.Context, peer.ID) bool
	Close func(peer.ID) error
	Log   *slog.Logger
}

// Run checks the connections at each signal, until ctx ends.
func (c *Checker) Run(ctx context.Context, moved *signal.Signal) {
	for ctx.Err() == nil {
		select {
		case <-moved.Wait():
		case <-ctx.Done():
			return
		}
		c.check(ctx)
		if !backoff.Sleep(ctx, checkGap) {
			return
		}
	}
}

// Every checks the connections at an interval, until ctx ends.
func (c *Checker) Every(ctx context.Context, interval time.Duration) {
	for backoff.Sleep(ctx, interval) {
		c.check(ctx)
	}
}

// check closes the connections of peers that do not respond.
func (c *Checker) check(ctx context.Context) {
	slots := make(chan struct{}, checkAtOnce)
	var wg sync.WaitGroup
	for _, id := range c.Peers() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			asked, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			if c.Alive(asked, id) || ctx.Err() != nil {
				return
			}
			c.Log.Info("closing dead connection", "peer", id)
			if err := c.Close(id); err != nil {
				c.Log.Debug("closing dead connection", "peer", id, "err", err)
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
