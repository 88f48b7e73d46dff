package nethost

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
)

const (
	// maxFailures bounds how many failed addresses are remembered.
	maxFailures = 256
	// longestDial is how long a dial of the swarm may take. An attempt may join one
	// that began earlier.
	longestDial = 15 * time.Second
)

// fasterText is the swarm's cause for ending dials of a peer that is connected.
const fasterText = "concurrent dial successful"

// failures remembers for a while why dials of addresses and lookups of DNS names
// failed. The swarm does not return the failures if a deadline ends a dial, and
// never those of lookups; but it reports to its metrics and calls its resolver.
type failures struct {
	mu   sync.Mutex
	last map[string]failure // by address; guarded by mu
}

type failure struct {
	at  time.Time
	err error
}

// note records a failure.
func (f *failures) note(a ma.Multiaddr, err error) {
	if errors.Is(err, context.Canceled) || err != nil && err.Error() == fasterText {
		return // canceled, or another address was faster
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := string(a.Bytes())
	if _, known := f.last[key]; !known && len(f.last) >= maxFailures {
		oldest, at := "", time.Time{}
		for k, v := range f.last {
			if at.IsZero() || v.at.Before(at) {
				oldest, at = k, v.at
			}
		}
		delete(f.last, oldest)
	}
	if f.last == nil {
		f.last = make(map[string]failure)
	}
	f.last[key] = failure{time.Now(), err}
}

// forget forgets the failure of an address.
func (f *failures) forget(a ma.Multiaddr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.last, string(a.Bytes()))
}

// of returns why the dial of an address, or the lookup of its name, failed in an
// attempt to reach a peer, given when that began.
func (f *failures) of(id peer.ID, a ma.Multiaddr, begun time.Time) (error, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, ok := f.last[string(a.Bytes())]
	if !ok && madns.Matches(a) {
		last, ok = f.last[string(nameOf(a).Bytes())]
	}
	return last.err, ok && last.at.After(begun.Add(-longestDial)) && forPeer(id, last.err)
}

// nameOf returns the name with which an address begins. The rest of the address
// changes when the name is resolved.
func nameOf(a ma.Multiaddr) ma.Multiaddr { return a[:1] }

// tracer records the swarm's failed dials in failures.
type tracer struct{ *failures }

var _ swarm.MetricsTracer = tracer{}

func (t tracer) FailedDialing(a ma.Multiaddr, err, _ error) { t.note(a, err) }

func (tracer) OpenedConnection(network.Direction, crypto.PubKey, network.ConnectionState, ma.Multiaddr) {
}
func (tracer) ClosedConnection(network.Direction, time.Duration, network.ConnectionState, ma.Multiaddr) {
}
func (tracer) CompletedHandshake(time.Duration, network.ConnectionState, ma.Multiaddr) {}
func (tracer) DialCompleted(bool, int, time.Duration)                                  {}
func (tracer) DialRankingDelay(time.Duration)                                          {}
func (tracer) UpdatedBlackHoleSuccessCounter(string, swarm.BlackHoleState, int, float64) {
}

// resolver wraps a resolver, and records failed lookups in failures. A lookup
// counts as failed until there is an answer.
type resolver struct {
	*failures
	network.MultiaddrDNSResolver
}

func (r resolver) ResolveDNSAddr(ctx context.Context, id peer.ID, a ma.Multiaddr, depth, limit int) ([]ma.Multiaddr, error) {
	return r.watch(a, func() ([]ma.Multiaddr, error) {
		return r.MultiaddrDNSResolver.ResolveDNSAddr(ctx, id, a, depth, limit)
	})
}

func (r resolver) ResolveDNSComponent(ctx context.Context, a ma.Multiaddr, limit int) ([]ma.Multiaddr, error) {
	return r.watch(a, func() ([]ma.Multiaddr, error) {
		return r.MultiaddrDNSResolver.ResolveDNSComponent(ctx, a, limit)
	})
}

func (r resolver) watch(a ma.Multiaddr, resolve func() ([]ma.Multiaddr, error)) ([]ma.Multiaddr, error) {
	name := nameOf(a)
	r.note(name, &net.DNSError{Err: "no answer", Name: name[0].Value(), IsTimeout: true})
	list, err := resolve()
	if err == nil {
		r.forget(name)
	} else {
		r.note(name, err)
	}
	return list, err
}
