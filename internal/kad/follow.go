package kad

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

const (
	// patience is how long a lookup waits for a peer once it waits for nobody
	// else: five round trips, for a dial and a question, of 400 ms.
	patience = 2 * time.Second
	// patienceCheck is how often a lookup is looked at.
	patienceCheck = patience / 8
	// closest is how many peers closest to a key a lookup asks: the size of a
	// bucket.
	closest = 20
)

// watch is what a lookup is followed with. Either may be nil.
type watch struct {
	each func(*routing.QueryEvent) // called for every event
	// busy returns when the lookup last waited for its caller, not for peers.
	busy func() time.Time
}

// follow runs a lookup of upstream, and reports whether a peer answered it:
// without an answer, upstream returns nothing and no error. The context of run
// ends when the lookup waits only for silent peers: upstream waits 10 seconds for
// one that has crashed, and 5 for dialing it.
func follow[T any](ctx context.Context, d *DHT, key string, w watch, run func(context.Context) (T, error)) (found T, answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, events := routing.RegisterForQueryEvents(ctx)
	l := lookup{self: d.self, target: kb.ConvertKey(key), asked: make(map[peer.ID]time.Time), done: make(map[peer.ID]bool)}
	var drain sync.WaitGroup
	drain.Go(func() {
		check := time.NewTicker(patienceCheck)
		defer check.Stop()
		for {
			select {
			case e, ok := <-events:
				if !ok { // ctx has ended
					return
				}
				l.note(e)
				if w.each != nil {
					w.each(e)
				}
			case now := <-check.C:
				var busy time.Time
				if w.busy != nil {
					busy = w.busy()
				}
				if l.over(now, busy) {
					cancel()
				}
			}
		}
	})
	found, err = run(ctx)
	cancel()
	drain.Wait()
	return found, l.answered, err
}

// lookup is how far a lookup has come.
type lookup struct {
	self     peer.ID
	target   kb.ID
	asked    map[peer.ID]time.Time // when; zero for those only heard of
	done     map[peer.ID]bool      // those that have answered or failed
	answered bool
}

func (l *lookup) note(e *routing.QueryEvent) {
	switch e.Type {
	case routing.DialingPeer, routing.SendingQuery:
		l.asked[e.ID] = time.Now()
	case routing.QueryError:
		delete(l.asked, e.ID) // another is asked instead
		l.done[e.ID] = true
	case routing.PeerResponse:
		l.answered, l.done[e.ID] = true, true
		for _, p := range e.Responses {
			if _, ok := l.asked[p.ID]; !ok && !l.done[p.ID] && p.ID != l.self {
				l.asked[p.ID] = time.Time{}
			}
		}
	}
}

// over reports whether somebody has answered, and all that is left of the
// closest are peers that have been silent for too long.
func (l *lookup) over(now, busy time.Time) bool {
	if !l.answered || now.Sub(busy) < patience {
		return false
	}
	list := kb.SortClosestPeers(slices.Collect(maps.Keys(l.asked)), l.target)
	for _, id := range list[:min(len(list), closest)] {
		if at := l.asked[id]; !l.done[id] && (at.IsZero() || now.Sub(at) < patience) {
			return false
		}
	}
	return true
}

// caller is who takes the results of a lookup. While it does something else, the
// lookup stands still, and nobody is silent.
type caller struct {
	mu     sync.Mutex
	taking bool      // guarded by mu
	took   time.Time // guarded by mu
}

// give sends a result, unless ctx ends: the lookup ends too then.
func give[T any](ctx context.Context, c *caller, results chan<- T, result T) {
	c.set(true)
	select {
	case results <- result:
	case <-ctx.Done():
	}
	c.set(false)
}

func (c *caller) set(taking bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taking, c.took = taking, time.Now()
}

// busy returns when the lookup last waited for the caller.
func (c *caller) busy() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taking {
		return time.Now()
	}
	return c.took
}
