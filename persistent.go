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
)

const (
	// A persistent peer that cannot be reached is dialled again after growing
	// delays, each peer by itself.
	persistentRetryMin    = 5 * time.Second
	persistentRetryMax    = 10 * time.Minute
	persistentDialTimeout = 15 * time.Second
)

// WithPersistentPeers adds peers that the node keeps connected: each is dialled
// at start and whenever it is lost, again and again with jittered delays that
// grow from 5 seconds to 10 minutes, and is never trimmed. Unlike bootstrap
// peers, which are there to enter the network, they are wanted for themselves.
// AddPersistentPeers and RemovePersistentPeers change them while the node
// runs, and Status lists them.
func WithPersistentPeers(peers ...peer.AddrInfo) Option {
	peers = addrs.Merge(peers...)
	return option{"WithPersistentPeers", func(c *config) error {
		if err := checkPeers(peers); err != nil {
			return err
		}
		c.persistent = addrs.Merge(append(slices.Clone(c.persistent), peers...)...)
		return nil
	}}
}

// PersistentStatus describes a persistent peer.
type PersistentStatus struct {
	ID        peer.ID `json:"id"`
	Connected bool    `json:"connected"`
	// Failures is how many dials in a row have failed, LastError why the last
	// of them did, and NextDial when the next one comes. They are zero while
	// the peer is connected.
	Failures  int       `json:"failures,omitempty"`
	LastError string    `json:"lastError,omitempty"`
	NextDial  time.Time `json:"nextDial,omitzero"`
}

// persistentPart keeps peers connected.
type persistentPart struct {
	group     *lifecycle.Group
	dial      func(context.Context, peer.AddrInfo) error
	connected func(peer.ID) bool
	keep      func(peer.ID, bool) // spare a peer from trimming, or no longer
	change    *signal             // a peer may have come or gone
	moved     *signal             // the network may have changed: do not wait any longer
	log       *slog.Logger

	mu    sync.Mutex
	peers map[peer.ID]*persistentPeer // guarded by mu
}

type persistentPeer struct {
	info   peer.AddrInfo    // replaced, never changed; guarded by persistentPart.mu
	status PersistentStatus // guarded by persistentPart.mu, but for the ID
	cancel context.CancelFunc
	renew  chan struct{} // the addresses are others: dial now
}

// add begins to keep a peer connected, or adds to its addresses.
func (p *persistentPart) add(ai peer.AddrInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.peers[ai.ID]; known != nil {
		known.info = addrs.Merge(known.info, ai)[0]
		select {
		case known.renew <- struct{}{}:
		default:
		}
		return
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
		return
	}
	p.peers[ai.ID] = pp
	p.keep(ai.ID, true)
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
		change, moved := p.change.wait(), p.moved.wait()
		if p.connected(pp.status.ID) {
			p.note(pp, nil, time.Time{})
			retry.Reset()
			select {
			case <-change:
			case <-ctx.Done():
			}
			continue
		}
		err := p.attempt(ctx, pp)
		if err == nil || ctx.Err() != nil {
			continue
		}
		delay := retry.Next()
		p.note(pp, err, time.Now().Add(delay))
		p.log.Info("persistent peer not reached", "peer", pp.status.ID, "again", delay, "err", err)
		timer := time.NewTimer(delay)
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-moved:
				retry.Reset()
				waiting = false
			case <-pp.renew:
				retry.Reset()
				waiting = false
			case <-change: // it may have dialled us
				change = p.change.wait()
				waiting = !p.connected(pp.status.ID)
			case <-ctx.Done():
				waiting = false
			}
		}
		timer.Stop()
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

func (n *Node) startPersistent() error {
	n.persistent = &persistentPart{
		group: n.group, connected: n.base.isConnected, keep: n.base.keepPersistent,
		change: &n.watch.change, moved: &n.watch.moved, log: n.log,
		peers: make(map[peer.ID]*persistentPeer),
		dial: func(ctx context.Context, p peer.AddrInfo) error {
			if err := n.connect(ctx, p); err != nil {
				return &connectError{p.ID, err}
			}
			return nil
		},
	}
	for _, p := range n.cfg.persistent {
		n.persistent.add(p)
	}
	return nil
}

// AddPersistentPeers makes the node keep peers connected, as WithPersistentPeers
// does from the start. For one that is kept already the addresses add up, and
// it is dialled at once. Nothing is added when one of the peers lacks an ID or
// an address, or is this node itself. It does not wait for connections. It
// returns ErrClosed after Close.
func (n *Node) AddPersistentPeers(peers ...peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	peers = addrs.Merge(peers...)
	if err := errors.Join(checkPeers(peers), checkBootstrap(peers, n.id, "AddPersistentPeers")); err != nil {
		return fmt.Errorf("p2pnode: add persistent peers: %w", err)
	}
	for _, p := range peers {
		n.persistent.add(p)
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
