// Package keeper keeps peers connected: one engine, with a policy for each
// source of peers. It dials bootstrap peers in rounds while the node has too
// few peers, always keeps persistent peers connected, dials discovered peers,
// and remembers peers over a restart. However many sources want a peer, it is
// dialed only once at a time.
//
// A single goroutine decides, in steps: it looks at the connections, decides
// under the lock what to do, and does it without the lock.
package keeper

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/keeper/peerfile"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// Conns is the keeper's view of the connections. Its methods are called without
// locks held and do not block.
type Conns interface {
	Peers() []peer.ID              // those connected
	Connected(peer.ID) bool        // directly or through a relay
	OpenedAt(peer.ID) time.Time    // of the oldest connection; zero without one
	Where(peer.ID) Place           // how the peer is connected
	Addrs(peer.ID) []ma.Multiaddr  // the known addresses, also once a peer is lost
	Protect(peer.ID, string, bool) // protects a peer from trimming under a tag, or no longer
}

// Place is where a peer is connected.
type Place struct {
	Since  time.Time      // when its oldest direct connection was opened; zero without one
	IP     netip.Addr     // the far end of a direct connection
	Dialed []ma.Multiaddr // the addresses at which this node has reached it
}

// Store keeps one file. See datadir.Dir.
type Store interface {
	Read(parse func([]byte) error) error
	Write([]byte) error
}

// Config configures a [Keeper]. Its functions are called without locks held, but for
// New and Forgotten, which must not call back.
type Config struct {
	Self  peer.ID
	Conns Conns
	// Dial connects to a peer now, whatever failed before.
	Dial func(context.Context, peer.AddrInfo) error
	// Names finds bootstrap peers by name: it calls found for each as soon as it is
	// known, and returns what went wrong. Nil without names.
	Names func(ctx context.Context, found func(peer.AddrInfo)) []error
	// Waiting says what is known so far of a dial that began at a time or before;
	// nil for nothing.
	Waiting func(peer.AddrInfo, time.Time) error
	// Reached reports whether a dial that failed with this error reached the peer,
	// which then hung up.
	Reached func(error) bool
	// Dials reports whether the node can dial such an address of a peer; nil means any.
	// What discovery brings is held against it.
	Dials func(peer.ID, ma.Multiaddr) bool
	// Given is called for peers that may be dialed wherever they are: the application
	// named them, or they have been connected from near. It may be nil.
	Given func(...peer.AddrInfo)
	// New is called for each peer that is discovered for the first time, or was saved
	// and has been reached for the first time; it may be nil.
	New func(ai peer.AddrInfo, source string)
	// Forgotten is called when a peer that Found has brought is remembered no more: New
	// may be called for it again. It may be nil.
	Forgotten func(peer.ID)
	Allowed   func(peer.ID) bool // reports whether a saved peer may be dialed
	BanEnds   func() time.Time   // when the next ban ends; zero for never
	Enough    func() bool        // reports whether the node has the peers it wants
	Room      func() bool        // reports whether there is room for more than it needs
	Content   bool               // dial no peers beyond Enough
	Refresh   func()             // called when there are peers to ask for more
	Report    func(Round)        // called after each round
	Store     Store              // of the saved peers; nil for none
	Change    *signal.Signal     // connections, or what Enough goes by, may have changed
	Moved     *signal.Signal     // the network may have changed: dial without waiting
	Log       *slog.Logger
	// Longest is the longest pause between rounds; 0 means RoundMax.
	Longest time.Duration
	Rand    func() float64 // of the pauses; nil means math/rand/v2
}

// Keeper keeps peers connected. Its methods are safe for concurrent use and,
// except for Close, do not block.
type Keeper struct {
	cfg   Config
	group *lifecycle.Group
	wake  signal.Signal // a peer was added, or a dial is over

	mu       sync.Mutex
	peers    map[peer.ID]*entry // guarded by mu
	boots    []peer.ID          // those of Bootstrap, in order; guarded by mu
	saved    []peerfile.Peer    // replaced, never changed; guarded by mu
	seen     map[peer.ID]*sight // peers of this run that may be saved; guarded by mu
	released []peer.ID          // the oldest first; guarded by mu
	busy     [numSources]int    // dials under way that take a place of a source; guarded by mu
	ignored  uint64             // discovered peers turned away or forgotten unreached; guarded by mu
	rounds   rounds             // guarded by mu
	named    named              // guarded by mu
	last     *Round             // replaced, never changed; guarded by mu

	saving   sync.Mutex
	written  []byte   // guarded by saving
	warnings []string // set by New
}

// New returns a keeper that only reads the saved peers until Start. If their
// file cannot be used, that is a warning.
func New(parent context.Context, cfg Config) *Keeper {
	if cfg.New == nil {
		cfg.New = func(peer.AddrInfo, string) {}
	}
	if cfg.Forgotten == nil {
		cfg.Forgotten = func(peer.ID) {}
	}
	if cfg.Given == nil {
		cfg.Given = func(...peer.AddrInfo) {}
	}
	cfg.Longest = cmp.Or(cfg.Longest, RoundMax)
	k := &Keeper{
		cfg: cfg, group: lifecycle.NewGroup(parent),
		peers: make(map[peer.ID]*entry), seen: make(map[peer.ID]*sight),
	}
	k.rounds.retry = backoff.Backoff{Min: RoundMin, Max: cfg.Longest, Rand: cfg.Rand}
	k.load(time.Now())
	return k
}

// Start starts dialing and saving.
func (k *Keeper) Start() {
	k.group.Go(k.run)
	if k.cfg.Store != nil {
		k.group.Go(k.keepSaving)
	}
}

// Close ends all dials, and saves the peers that are connected.
func (k *Keeper) Close() error {
	_ = k.group.Close() // it returns nil always
	if k.cfg.Store == nil {
		return nil
	}
	return k.save(time.Now(), 0)
}

// Add starts keeping peers connected, or adds to their addresses, and dials
// them at once. The source is Bootstrap or Persistent.
func (k *Keeper) Add(s Source, peers ...peer.AddrInfo) {
	k.cfg.Given(peers...)
	k.mu.Lock()
	for _, p := range peers {
		k.releaseLocked(p.ID, false)
		e := k.entryLocked(p.ID)
		d := &e.duties[s]
		if !d.on && s == Bootstrap {
			k.boots = append(k.boots, p.ID)
		}
		d.addrs = addrs.Merge(peer.AddrInfo{ID: p.ID, Addrs: d.addrs}, p)[0].Addrs
		d.begin(k, s)
	}
	k.mu.Unlock()
	k.wake.Notify()
}

// Remove stops keeping a peer connected, and reports whether it was kept. The
// connection stays open.
func (k *Keeper) Remove(s Source, id peer.ID) bool {
	k.mu.Lock()
	defer k.wake.Notify()
	defer k.mu.Unlock()
	e := k.peers[id]
	if e == nil || !e.duties[s].on {
		return false
	}
	e.duties[s] = duty{}
	if s == Bootstrap {
		k.boots = slices.DeleteFunc(k.boots, func(b peer.ID) bool { return b == id })
	}
	if !e.wanted() && e.dialing() {
		e.cancel()
	}
	return true
}

// Infos returns the peers of a source, with their addresses.
func (k *Keeper) Infos(s Source) []peer.AddrInfo {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := k.boots
	if s != Bootstrap {
		ids = slices.Sorted(maps.Keys(k.peers))
	}
	var list []peer.AddrInfo
	for _, id := range ids {
		if e := k.peers[id]; e.duties[s].on {
			list = append(list, peer.AddrInfo{ID: id, Addrs: slices.Clone(e.duties[s].addrs)})
		}
	}
	return list
}

// Found adds a discovered peer. Addresses of several reports are merged, but
// for those that the node cannot dial.
func (k *Keeper) Found(ai peer.AddrInfo, by string) {
	if k.cfg.Dials != nil {
		ai.Addrs = slices.DeleteFunc(slices.Clone(ai.Addrs), func(a ma.Multiaddr) bool { return !k.cfg.Dials(ai.ID, a) })
	}
	if ai.ID == k.cfg.Self || len(ai.Addrs) == 0 || k.group.Context().Err() != nil {
		return
	}
	up := k.cfg.Conns.Connected(ai.ID)
	now := time.Now()
	k.mu.Lock()
	e := k.peers[ai.ID]
	known := e != nil && e.duties[Discovered].on
	before := k.ignored
	if !known && !k.makeRoomLocked(now) {
		k.ignored++
		ignored := k.ignored
		k.mu.Unlock()
		k.tellIgnored(ignored, by)
		return
	}
	e = k.entryLocked(ai.ID)
	if !known {
		if e.up = e.up || up; e.up && e.opened.IsZero() {
			e.opened = now
		}
		e.duties[Discovered].begin(k, Discovered)
		e.duties[Discovered].next = now.Add(k.headStart(ai.ID))
	}
	d := &e.duties[Discovered]
	e.heard = now
	d.addrs = addrs.Merge(ai, peer.AddrInfo{ID: ai.ID, Addrs: d.addrs})[0].Addrs // the newest first
	d.addrs = d.addrs[:min(len(d.addrs), maxAddrs)]
	ignored := k.ignored
	if !known {
		k.cfg.New(ai, by) // before it can be forgotten
	}
	k.mu.Unlock()
	if ignored > before {
		k.tellIgnored(ignored, by)
	}
	if !known {
		k.cfg.Log.Debug("peer discovered", "peer", ai.ID, "source", by)
		k.wake.Notify()
	}
}

// tellIgnored logs that discovered peers are not dialed: not each, because a
// stranger can announce any number.
func (k *Keeper) tellIgnored(ignored uint64, by string) {
	if ignored&(ignored-1) == 0 {
		k.cfg.Log.Warn("too many discovered peers: some are not dialed", "source", by, "ignored", ignored)
	}
}

// makeRoomLocked makes room for another discovered peer, by forgetting one that
// is connected or has not been heard of for long, or else one that was never
// reached, the one with the most failures first: anybody on the LAN can announce
// any number. It reports whether there is room.
func (k *Keeper) makeRoomLocked(now time.Time) bool {
	count := 0
	var idle, dead *entry
	for _, e := range k.peers {
		d := e.duties[Discovered]
		if !d.on {
			continue
		}
		count++
		switch {
		case e.dialing():
		case e.up || now.Sub(e.heard) > policies[Discovered].forget:
			idle = e
		case e.took == 0 && (dead == nil || d.failed > dead.duties[Discovered].failed):
			dead = e // any of those that were not dialed yet: the order of a map is random
		}
	}
	if count < maxDiscovered {
		return true
	}
	if idle == nil {
		idle = dead
	}
	if idle == nil {
		return false
	}
	if !idle.up {
		k.ignored++
	}
	k.undiscoverLocked(idle)
	return true
}

// undiscoverLocked forgets that a peer was discovered. The next step forgets the entry.
func (k *Keeper) undiscoverLocked(e *entry) {
	e.duties[Discovered] = duty{}
	k.cfg.Forgotten(e.id)
}

// Release makes the keeper leave a peer alone, unless it is persistent, until
// Want or Add. It holds for the last 1024 peers.
func (k *Keeper) Release(id peer.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.releaseLocked(id, true)
	if e := k.peers[id]; e != nil && e.cancel != nil && !e.duties[Persistent].on {
		e.cancel()
	}
}

// Released reports whether the keeper leaves a peer alone.
func (k *Keeper) Released(id peer.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.released, id)
}

// Want undoes Release.
func (k *Keeper) Want(id peer.ID) {
	k.mu.Lock()
	k.releaseLocked(id, false)
	k.mu.Unlock()
}

func (k *Keeper) releaseLocked(id peer.ID, on bool) {
	k.released = slices.DeleteFunc(k.released, func(r peer.ID) bool { return r == id })
	if on {
		k.released = append(k.released, id)
		if len(k.released) > maxReleased {
			k.released = k.released[1:]
		}
	}
}

// Wake immediately dials persistent peers that are not connected: those with
// the IDs, or all without any.
func (k *Keeper) Wake(ids ...peer.ID) {
	k.mu.Lock()
	for id, e := range k.peers {
		if len(ids) == 0 || slices.Contains(ids, id) {
			e.renewLocked(Persistent)
		}
	}
	k.mu.Unlock()
	k.wake.Notify()
}

// State is the state of a persistent peer. All but the first two fields are
// zero while it is connected.
type State struct {
	ID        peer.ID
	Connected bool
	Failures  int       // dials in a row that failed, or led to a short-lived connection
	LastError error     // of the last of them
	NextDial  time.Time // when the next one comes
}

// Persistent describes the persistent peers, sorted by ID.
func (k *Keeper) Persistent() []State {
	k.mu.Lock()
	var list []State
	for id, e := range k.peers {
		if d := e.duties[Persistent]; d.on {
			s := State{ID: id, Failures: d.failed}
			if d.failed > 0 {
				s.LastError, s.NextDial = e.err, d.next
			}
			list = append(list, s)
		}
	}
	k.mu.Unlock()
	for i, s := range list {
		if k.cfg.Conns.Connected(s.ID) {
			list[i] = State{ID: s.ID, Connected: true}
		}
	}
	slices.SortFunc(list, func(a, b State) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// Told reports whether there is a bootstrap or persistent peer.
func (k *Keeper) Told() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.boots) > 0 || k.cfg.Names != nil {
		return true
	}
	for _, e := range k.peers {
		if e.duties[Persistent].on {
			return true
		}
	}
	return false
}

// Looks reports whether there is anybody to dial when the node has too few
// peers: bootstrap or saved peers.
func (k *Keeper) Looks() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.boots)+len(k.saved) > 0 || k.cfg.Names != nil
}

// Last returns the result of the last round, nil before the first. Do not
// modify it.
func (k *Keeper) Last() *Round {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// Warnings returns what was wrong with the saved peers when New read them.
func (k *Keeper) Warnings() []string { return k.warnings }
