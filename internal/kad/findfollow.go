package kad

import (
	"context"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

const (
	// findMin and findMax bound the delay between two searches that follow, which
	// doubles while nobody new is found.
	findMin = 5 * time.Second
	findMax = 2 * time.Minute
	// maxSeen bounds how many peers are remembered that were found: strangers can
	// announce any number.
	maxSeen = 16 << 10
)

// sightings remember the last peers.
type sightings struct {
	has   map[peer.ID]bool
	order []peer.ID // the oldest at next, once it is full
	next  int
	max   int
}

func (m *sightings) add(id peer.ID) {
	if m.has[id] {
		return
	}
	if len(m.order) < m.max {
		m.order = append(m.order, id)
	} else {
		delete(m.has, m.order[m.next])
		m.order[m.next] = id
		m.next = (m.next + 1) % m.max
	}
	m.has[id] = true
}

// keepFinding searches for the providers of c until ctx ends, and yields each
// once. It yields an error only if the node closes.
func (d *DHT) keepFinding(ctx context.Context, c cid.Cid, s Search, yield func(peer.AddrInfo, error) bool) {
	seen := &sightings{has: make(map[peer.ID]bool), max: maxSeen}
	s.seen = func(id peer.ID) bool { return seen.has[id] }
	retry := backoff.Backoff{Min: findMin, Max: findMax}
	recovered := d.cfg.Recovered.Wait()
	for ctx.Err() == nil {
		changed, begun, servers := d.cfg.Changed.Wait(), time.Now(), d.Size()
		if servers > 0 {
			f := &finding{Search: s, dht: d, state: make(map[peer.ID]progress)}
			f.yield = func(ai peer.AddrInfo, err error) bool {
				seen.add(ai.ID)
				return yield(ai, err)
			}
			if f.run(ctx, c); f.ended {
				return
			}
			if f.yielded > 0 {
				retry.Reset()
			}
			if s.Limit > 0 {
				s.Limit -= f.yielded
			}
		}
		next := time.Now().Add(retry.Next())
		soonest := begun // there was nobody to ask
		if servers > 0 {
			soonest = begun.Add(findMin)
		}
	waiting:
		for ctx.Err() == nil {
			timer := time.NewTimer(time.Until(next))
			select {
			case <-timer.C:
				break waiting
			case <-recovered:
				recovered = d.cfg.Recovered.Wait()
				retry.Reset()
				next = earlier(next, soonest)
			case <-changed:
				changed = d.cfg.Changed.Wait()
				// Each search of a large network learns of other servers.
				if now := d.Size(); now > servers && now < closest {
					next = earlier(next, soonest)
				}
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
	if err := context.Cause(ctx); err == errs.ErrClosed { //nolint:errorlint // it is that of bind
		yield(peer.AddrInfo{}, err)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
