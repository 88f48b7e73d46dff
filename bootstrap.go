package p2pnode

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

const (
	// bootstrapDialTimeout bounds one dial of a bootstrap peer.
	bootstrapDialTimeout = 15 * time.Second
	// The first retry comes within bootstrapRetryMin, the later ones at
	// growing distances up to bootstrapRetryMax, for ever.
	bootstrapRetryMin = time.Second
	bootstrapRetryMax = 30 * time.Second
	// bootstrapGap separates two rounds even when peers come and go at once.
	bootstrapGap = 500 * time.Millisecond
)

// bootstrapper keeps the node connected: whenever it has too few peers it
// dials the bootstrap peers, until it has enough. Neither the DHT's own
// bootstrap (which looks every two minutes, at two peers at random, and only
// when its table is empty) nor boxo's (which without saved peers runs a single
// round) does that.
type bootstrapper struct {
	peers     []peer.AddrInfo
	dial      func(context.Context, peer.AddrInfo) error
	connected func(peer.ID) bool
	count     func() int  // how many peers are connected
	enough    func() bool // the node has the peers it wants
	refresh   func()      // tell the DHT that there is somebody to ask
	change    *signal     // enough may have changed
	moved     *signal     // the network may have changed: do not wait any longer
	report    func(BootstrapRound)
	log       *slog.Logger

	mu   sync.Mutex
	last *BootstrapRound // guarded by mu
}

// run is the loop. It returns when ctx ends.
func (b *bootstrapper) run(ctx context.Context) {
	retry := backoff.Backoff{Min: bootstrapRetryMin, Max: bootstrapRetryMax}
	had := true         // so that having enough from the start is not taken for a recovery
	var begun time.Time // when the last round began
	for ctx.Err() == nil {
		change, moved := b.change.wait(), b.moved.wait()
		if b.enough() {
			if !had {
				b.refresh()
				retry.Reset()
			}
			had = true
			select {
			case <-change:
			case <-ctx.Done():
			}
			continue
		}
		had = false
		if gap := bootstrapGap - time.Since(begun); gap > 0 {
			b.pause(ctx, gap, moved, func() {})
			begun = time.Time{}
			continue
		}
		begun = time.Now()
		if b.round(ctx) {
			retry.Reset()
		}
		b.pause(ctx, retry.Next(), moved, retry.Reset)
	}
}

// pause waits for d, or until there are enough peers or the network changed.
func (b *bootstrapper) pause(ctx context.Context, d time.Duration, moved <-chan struct{}, reset func()) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		change := b.change.wait()
		if b.enough() {
			return
		}
		select {
		case <-change:
		case <-timer.C:
			return
		case <-moved:
			reset()
			return
		case <-ctx.Done():
			return
		}
	}
}

// round dials every bootstrap peer that is not connected, all at once, and
// reports whether one of them was reached.
func (b *bootstrapper) round(ctx context.Context) bool {
	started := time.Now()
	errs := make([]error, len(b.peers))
	var wg sync.WaitGroup
	dialled := 0
	for i, p := range b.peers {
		if b.connected(p.ID) {
			continue
		}
		dialled++
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, bootstrapDialTimeout)
			defer cancel()
			errs[i] = b.dial(ctx, p)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false
	}
	if dialled == 0 {
		// Every bootstrap peer is connected and still there are too few: the
		// others are to be found through them.
		b.refresh()
		return false
	}
	r := BootstrapRound{
		At: started, Took: time.Since(started), Peers: b.count(),
		Connected: []peer.ID{}, Failed: []DialFailure{}, // never null in JSON
	}
	for i, p := range b.peers {
		if errs[i] != nil {
			r.Failed = append(r.Failed, DialFailure{p.ID, errs[i]})
		} else {
			r.Connected = append(r.Connected, p.ID)
		}
	}
	b.mu.Lock()
	b.last = r.clone()
	b.mu.Unlock()
	b.log.Info("bootstrap round", "connected", len(r.Connected), "failed", len(r.Failed), "took", r.Took)
	b.report(r)
	return len(r.Failed) < dialled
}

func (b *bootstrapper) lastRound() *BootstrapRound {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// complaint is the result of the last round as a subordinate clause, for the
// errors of calls that found nobody.
func (b *bootstrapper) complaint() string {
	switch r := b.lastRound(); {
	case b == nil:
		return ""
	case r == nil:
		return "; the first bootstrap round is under way"
	case len(r.Failed) == 0:
		return ""
	default:
		var why []string
		for _, f := range r.Failed {
			why = append(why, f.Err.Error())
		}
		return fmt.Sprintf("; in the last bootstrap round %d of %d peers failed: %s",
			len(r.Failed), len(r.Failed)+len(r.Connected), strings.Join(why, "; "))
	}
}

// checkBootstrap rejects what only shows when the node's own ID is known.
func checkBootstrap(peers []peer.AddrInfo, self peer.ID, option string) error {
	for _, p := range peers {
		if p.ID == self {
			return optionErrorf(option, "%s is this node's own ID; leave it out", p.ID)
		}
	}
	return nil
}
