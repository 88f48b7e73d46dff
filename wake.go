package p2pnode

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// clockInterval is how often the clock is looked at, and clockJump what
	// is too much between two looks: a machine that slept.
	clockInterval = 10 * time.Second
	clockJump     = 15 * time.Second
	// checkGap separates two checks of the connections, and checkTimeout is
	// how long a peer has to answer.
	checkGap     = 10 * time.Second
	checkTimeout = 5 * time.Second
	// checkAtOnce bounds how many peers are asked at a time.
	checkAtOnce = 32
)

// slept reports whether the machine was suspended between two looks at the
// clock, by the time that passed on the wall and on the monotonic clock. On
// Linux the monotonic one stands still meanwhile and the wall clock does not;
// elsewhere, and when a process is stopped, the look comes too late by both.
func slept(wall, monotonic time.Duration) bool {
	return wall-monotonic > clockJump || monotonic > clockInterval+clockJump
}

// watchClock tells when the machine wakes from sleep: nothing else does.
func watchClock(ctx context.Context, now func() time.Time, woke func()) {
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

// checker closes connections that stand no longer, after the network may have
// changed: by themselves they would time out half a minute later.
type checker struct {
	host *nethost.Host
	log  *slog.Logger
}

// run checks whenever the network may have changed, until ctx ends.
func (c *checker) run(ctx context.Context, moved *signal.Signal) {
	for ctx.Err() == nil {
		select {
		case <-moved.Wait():
		case <-ctx.Done():
			return
		}
		c.check(ctx)
		if !pauseFor(ctx, checkGap) {
			return
		}
	}
}

// check asks every peer for a sign of life.
func (c *checker) check(ctx context.Context) {
	slots := make(chan struct{}, checkAtOnce)
	var wg sync.WaitGroup
	for _, id := range c.host.PeerIDs() {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if c.alive(ctx, id) || ctx.Err() != nil {
				return
			}
			c.log.Info("a connection stands no longer", "peer", id)
			if err := c.host.Disconnect(id); err != nil {
				c.log.Debug("closing it", "peer", id, "err", err)
			}
		})
	}
	wg.Wait()
}

// alive pings a peer. Any answer will do, also that it knows no ping.
func (c *checker) alive(ctx context.Context, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := c.host.Ping(ctx, id)
	return err == nil || !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
}

// pauseFor waits for d. It reports whether ctx is still alive.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watchRecovery calls recovered when there is somebody to talk to after there
// was nobody, also for the first time.
func watchRecovery(ctx context.Context, change *signal.Signal, connected, reachesDHT func() bool, recovered func()) {
	alone := true
	for {
		changed := change.Wait()
		switch {
		case !connected():
			alone = true
		case alone && reachesDHT():
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
