package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// A persistent peer that cannot be reached is dialled again after growing
	// delays, each peer by itself.
	persistentRetryMin    = 5 * time.Second
	persistentRetryMax    = 10 * time.Minute
	persistentDialTimeout = 15 * time.Second
	// A peer that is blocked is dialled so long after the end of a block.
	persistentAfterBlock = 10 * time.Millisecond
	// persistentStable is how long a connection must have stood for its loss to
	// be answered at once. One that ends sooner counts as a failed dial: a peer
	// that hangs up on everybody would otherwise be dialled without end.
	persistentStable = time.Minute
)

// PersistentStatus describes a persistent peer.
type PersistentStatus struct {
	ID        peer.ID `json:"id"`
	Connected bool    `json:"connected"`
	// Failures is how many dials in a row have failed, or brought a connection
	// that stood for less than a minute; LastError is why the last of them did,
	// and NextDial when the next one comes. They are zero while the peer is
	// connected.
	Failures  int       `json:"failures,omitempty"`
	LastError string    `json:"lastError,omitempty"`
	NextDial  time.Time `json:"nextDial,omitzero"`
}

// persistentPart keeps peers connected.
type persistentPart struct {
	group     *lifecycle.Group
	dial      func(context.Context, peer.AddrInfo) error
	connected func(peer.ID) bool
	opened    func(peer.ID) time.Time // of the oldest connection
	blocked   func() time.Time        // when the next block of a peer or subnet ends; zero for never
	keep      func(peer.ID, bool)     // spare a peer from trimming, or no longer
	change    *signal.Signal          // a peer may have come or gone
	moved     *signal.Signal          // the network may have changed: do not wait any longer
	log       *slog.Logger

	mu    sync.Mutex
	peers map[peer.ID]*persistentPeer // guarded by mu
}

type persistentPeer struct {
	info   peer.AddrInfo    // replaced, never changed; guarded by persistentPart.mu
	status PersistentStatus // guarded by persistentPart.mu, but for the ID
	cancel context.CancelFunc
	renew  chan struct{} // a dial may go better now
}

func (pp *persistentPeer) wake() {
	select {
	case pp.renew <- struct{}{}:
	default:
	}
}

// wake ends the waits for those of the peers that are persistent ones.
func (p *persistentPart) wake(ids ...peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if pp := p.peers[id]; pp != nil {
			pp.wake()
		}
	}
}

func (p *persistentPart) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pp := range p.peers {
		pp.wake()
	}
}

// add begins to keep a peer connected, or adds to its addresses. It reports
// whether the node still runs. It asks the connection manager under the lock,
// so that a remove at the same time is not overtaken; that calls nobody.
func (p *persistentPart) add(ai peer.AddrInfo) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.peers[ai.ID]; known != nil {
		known.info = addrs.Merge(known.info, ai)[0]
		known.wake()
		return true
	}
	ctx, cancel := context.WithCancel(context.Background())
	pp := &persistentPeer{info: ai, status: PersistentStatus{ID: ai.ID}, cancel: cancel, renew: make(chan struct{}, 1)}
	started := p.group.Go(func(group context.Context) {
		defer cancel()
		defer context.AfterFunc(group, cancel)()
		p.pursue(ctx, pp)
	})
	if !started { // the node is closing
		cancel()
		return false
	}
	p.peers[ai.ID] = pp
	p.keep(ai.ID, true)
	return true
}

// remove stops keeping a peer connected. It reports whether it was kept.
func (p *persistentPart) remove(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	pp := p.peers[id]
	if pp == nil {
		return false
	}
	delete(p.peers, id)
	pp.cancel()
	p.keep(id, false)
	return true
}

// pursue keeps one peer connected until ctx ends.
func (p *persistentPart) pursue(ctx context.Context, pp *persistentPeer) {
	retry := backoff.Backoff{Min: persistentRetryMin, Max: persistentRetryMax}
	for ctx.Err() == nil {
		err := p.stay(ctx, pp)
		moved := p.moved.Wait()
		if err == nil { // it was never connected, or for long
			retry.Reset()
			p.note(pp, nil, time.Time{})
			err = p.attempt(ctx, pp)
		}
		for err != nil && ctx.Err() == nil {
			delay := retry.Next()
			if end := p.blocked(); errors.Is(err, ErrBanned) && !end.IsZero() {
				delay = min(delay, max(time.Until(end), 0)+persistentAfterBlock)
			}
			p.note(pp, err, time.Now().Add(delay))
			p.log.Info("persistent peer not reached", "peer", pp.status.ID, "again", delay, "err", err)
			if p.pause(ctx, pp, delay, moved) {
				retry.Reset()
			}
			moved = p.moved.Wait()
			err = nil
			if !p.connected(pp.status.ID) { // it may have dialled this node
				err = p.attempt(ctx, pp)
			}
		}
	}
}

// stay returns when the peer is not connected, with an error when it was, but
// not for long.
func (p *persistentPart) stay(ctx context.Context, pp *persistentPeer) error {
	var opened time.Time
	for {
		change := p.change.Wait()
		if !p.connected(pp.status.ID) {
			if stood := time.Since(opened); !opened.IsZero() && stood < persistentStable {
				return fmt.Errorf("connect to %s: the connection was lost after %v", pp.status.ID, stood.Round(time.Second/10))
			}
			return nil
		}
		if at := p.opened(pp.status.ID); !at.IsZero() {
			opened = at
		}
		select {
		case <-pp.renew: // it is connected already
		default:
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil
		}
	}
}

// pause waits for d, or until the peer is connected. It reports whether
// something happened that promises a dial to go better.
func (p *persistentPart) pause(ctx context.Context, pp *persistentPeer, d time.Duration, moved <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		change := p.change.Wait()
		if p.connected(pp.status.ID) {
			return false
		}
		select {
		case <-timer.C:
			return false
		case <-moved:
			return true
		case <-pp.renew:
			return true
		case <-change:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *persistentPart) attempt(ctx context.Context, pp *persistentPeer) error {
	ctx, cancel := context.WithTimeout(ctx, persistentDialTimeout)
	defer cancel()
	p.mu.Lock()
	info := pp.info
	p.mu.Unlock()
	return p.dial(ctx, info)
}

// note remembers how the last dial went.
func (p *persistentPart) note(pp *persistentPeer, err error, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		pp.status = PersistentStatus{ID: pp.status.ID}
		return
	}
	pp.status.Failures++
	pp.status.LastError, pp.status.NextDial = err.Error(), next
}

// list describes the peers, sorted by ID.
func (p *persistentPart) list() []PersistentStatus {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	var list []PersistentStatus
	for _, pp := range p.peers {
		list = append(list, pp.status)
	}
	p.mu.Unlock()
	for i, s := range list {
		if p.connected(s.ID) {
			list[i] = PersistentStatus{ID: s.ID, Connected: true}
		}
	}
	slices.SortFunc(list, func(a, b PersistentStatus) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// infos are the peers with their addresses.
func (p *persistentPart) infos() []peer.AddrInfo {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []peer.AddrInfo
	for _, pp := range p.peers {
		list = append(list, pp.info)
	}
	return addrs.Merge(list...) // a copy
}

func (n *Node) startPersistent() error {
	n.persistent = &persistentPart{
		group: n.group, connected: n.base.Connected, keep: func(id peer.ID, on bool) { n.base.Protect(id, "p2pnode-persistent", on) },
		opened: n.base.OpenedAt, blocked: n.access.NextEnd,
		change: &n.watch.change, moved: &n.watch.moved, log: n.log,
		peers: make(map[peer.ID]*persistentPeer),
		dial:  n.dialer.Connect,
	}
	for _, p := range n.cfg.persistent {
		n.persistent.add(p)
	}
	return nil
}

// AddPersistentPeers makes the node keep peers connected, as WithPersistentPeers
// does from the start. For one that is kept already the addresses add up, and
// it is dialled at once. Nothing is added when one of the peers lacks an ID or
// an address, is this node itself, or is shut out by Block or WithAllowedPeers.
// It does not wait for connections. It returns ErrClosed after Close.
func (n *Node) AddPersistentPeers(peers ...peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	peers = addrs.Merge(peers...)
	if err := n.checkWanted(peers); err != nil {
		return fmt.Errorf("p2pnode: add persistent peers: %w", err)
	}
	for _, p := range peers {
		if !n.persistent.add(p) {
			return ErrClosed
		}
	}
	return nil
}

// RemovePersistentPeers makes the node keep peers connected no longer, those of
// WithPersistentPeers included. Their connections stand until somebody closes
// them. IDs that are not kept are an error, after the others are removed. It
// returns ErrClosed after Close.
func (n *Node) RemovePersistentPeers(ids ...peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	var errs []error
	for _, id := range ids {
		if !n.persistent.remove(id) {
			errs = append(errs, fmt.Errorf("p2pnode: remove persistent peers: %s is none", id))
		}
	}
	return errors.Join(errs...)
}
