// Package access holds the one list of allowed and banned peers and banned
// subnets. It decides, and closes no connections.
package access

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

const (
	// fileName is the file of the store with the bans.
	fileName = "bans"
	// oldFileName is its name from when bans were called blocks.
	oldFileName = "blocks"
	// byOption is the reason of a ban by an option.
	byOption = "WithBannedPeers"
)

// Store keeps files that survive a restart.
type Store interface {
	Read(name string, parse func([]byte) error) error // absent is no error
	Write(name string, content []byte) error
	Remove(name string) error // absent is no error
}

// Config configures a [List].
type Config struct {
	Allowed []peer.ID // nil: all
	Banned  []peer.ID // for good, and never saved
	Store   Store     // nil: bans end with the process
	Now     func() time.Time
	Log     *slog.Logger
}

// List decides about peers and addresses. It is safe for concurrent use.
type List struct {
	store    Store
	now      func() time.Time
	warnings []string // about the store, at the start; never changes

	mu      sync.RWMutex
	allowed map[peer.ID]bool     // nil: all; guarded by mu
	banned  map[peer.ID]bool     // by Config.Banned; guarded by mu
	peers   map[peer.ID]Ban      // guarded by mu
	subnets map[netip.Prefix]Ban // guarded by mu
	saving  sync.Mutex           // one save at a time
}

// New builds the list. A file that cannot be used is reported as a warning, not
// an error.
func New(cfg Config) *List {
	l := &List{
		store: cfg.Store, now: cfg.Now,
		banned: make(map[peer.ID]bool), peers: make(map[peer.ID]Ban), subnets: make(map[netip.Prefix]Ban),
	}
	if len(cfg.Allowed) > 0 {
		l.allowed = make(map[peer.ID]bool)
		for _, id := range cfg.Allowed {
			l.allowed[id] = true
		}
	}
	for _, id := range cfg.Banned {
		l.banned[id] = true
	}
	if l.store != nil {
		l.load(cfg.Log)
	}
	return l
}

func (l *List) load(log *slog.Logger) {
	warn := func(err error) {
		log.Warn("loading bans", "err", err)
		l.warnings = append(l.warnings, "bans: "+err.Error())
	}
	renamed, damaged := false, false
	for _, name := range []string{oldFileName, fileName} { // the newer one wins
		err := l.store.Read(name, func(b []byte) error {
			renamed = renamed || name == oldFileName
			list, err := parseBans(b, l.now())
			for _, ban := range list {
				l.addLocked(ban)
			}
			return err
		})
		if err != nil {
			warn(err)
			damaged = true
		}
	}
	// Keep what could be read of a damaged file.
	if !renamed && !(damaged && len(l.peers)+len(l.subnets) > 0) {
		return
	}
	err := l.Save()
	if err == nil && renamed {
		err = l.store.Remove(oldFileName) // or what is unbanned would come back
	}
	if err != nil {
		warn(err)
	}
}

// Warnings returns what was wrong with files that were damaged or could not be
// read.
func (l *List) Warnings() []string { return l.warnings }

// Save writes the bans, except those of Config.Banned.
func (l *List) Save() error {
	if l.store == nil {
		return nil
	}
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	list := l.sweepLocked()
	l.mu.Unlock()
	text, err := encodeBans(list)
	if err != nil {
		return err
	}
	return l.store.Write(fileName, text)
}

// errFull is the error of a ban beyond MaxBans.
var errFull = fmt.Errorf("the limit of %d bans is reached; ban a subnet, or end some with UnbanPeer", MaxBans)

// Add adds a normal ban, or replaces the one of the same peer or subnet.
func (l *List) Add(b Ban) error {
	if err := b.check(l.now()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.peers[b.Peer]
	if b.Peer == "" {
		_, known = l.subnets[b.Subnet]
	}
	if !known && len(l.peers)+len(l.subnets) >= MaxBans && len(l.sweepLocked()) >= MaxBans {
		return errFull
	}
	l.addLocked(b)
	return nil
}

func (l *List) addLocked(b Ban) {
	if b.Peer != "" {
		l.peers[b.Peer] = b
	} else {
		l.subnets[b.Subnet.Masked()] = b
	}
}

// UnbanPeer ends a peer's ban, also one of Config.Banned. It reports whether
// there was one.
func (l *List) UnbanPeer(id peer.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweepLocked()
	_, known := l.peers[id]
	known = known || l.banned[id]
	delete(l.peers, id)
	delete(l.banned, id)
	return known
}

// UnbanSubnet ends a subnet's ban. It reports whether there was one.
func (l *List) UnbanSubnet(prefix netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweepLocked()
	prefix = prefix.Masked()
	_, known := l.subnets[prefix]
	delete(l.subnets, prefix)
	return known
}

// Bans returns the bans in force, sorted by peer and subnet.
func (l *List) Bans() []Ban {
	l.mu.Lock()
	list := l.sweepLocked()
	for id := range l.banned {
		if _, ok := l.peers[id]; !ok {
			list = append(list, Ban{Peer: id, Reason: byOption})
		}
	}
	l.mu.Unlock()
	slices.SortFunc(list, func(x, y Ban) int {
		return cmp.Or(strings.Compare(string(x.Peer), string(y.Peer)), x.Subnet.Addr().Compare(y.Subnet.Addr()), x.Subnet.Bits()-y.Subnet.Bits())
	})
	return list
}

// NextEnd returns when the next ban ends, zero if none does.
func (l *List) NextEnd() (end time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.sweepLocked() {
		if !b.Until.IsZero() && (end.IsZero() || b.Until.Before(end)) {
			end = b.Until
		}
	}
	return end
}

// sweepLocked forgets the bans that have ended and returns the others.
func (l *List) sweepLocked() []Ban {
	now := l.now()
	maps.DeleteFunc(l.peers, func(_ peer.ID, b Ban) bool { return !b.holds(now) })
	maps.DeleteFunc(l.subnets, func(_ netip.Prefix, b Ban) bool { return !b.holds(now) })
	return append(slices.Collect(maps.Values(l.peers)), slices.Collect(maps.Values(l.subnets))...)
}

// Allows reports whether a peer is allowed and not banned.
func (l *List) Allows(id peer.ID) bool { return l.Refusal(id) == nil }

// Refusal returns why a peer is refused; nil if it is not. The error matches
// errs.ErrBanned and the swarm's own error for a gater's refusal.
func (l *List) Refusal(id peer.ID) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.allowed != nil && !l.allowed[id] {
		return &refusal{}
	}
	if b, ok := l.peers[id]; ok && b.holds(l.now()) {
		held := b // b itself would escape to the heap, banned or not
		return &refusal{ban: &held}
	}
	if l.banned[id] {
		return &refusal{ban: &Ban{Peer: id, Reason: byOption}}
	}
	return nil
}

// refusal is the error of dialing a refused peer.
type refusal struct {
	ban *Ban // nil: not allowed
}

func (r *refusal) Unwrap() error        { return swarm.ErrGaterDisallowedConnection }
func (r *refusal) Is(target error) bool { return target == errs.ErrBanned }

func (r *refusal) Error() string {
	if r.ban == nil {
		return "it is not among the peers of WithAllowedPeers; add it with Allow"
	}
	text := "it is banned"
	if !r.ban.Until.IsZero() {
		text += " until " + r.ban.Until.Format(time.RFC3339)
	}
	if r.ban.Reason != "" {
		text += fmt.Sprintf(" (%s)", r.ban.Reason)
	}
	return text + "; UnbanPeer ends the ban"
}

// AllowsAddr reports whether an address is in no banned subnet. For a circuit
// address, the relay's address counts.
func (l *List) AllowsAddr(addr ma.Multiaddr) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.subnets) == 0 {
		return true
	}
	ip, err := manet.ToIP(addr)
	if err != nil {
		return true // a name: its addresses are checked once resolved
	}
	n, ok := netip.AddrFromSlice(ip)
	if !ok {
		return true
	}
	n = n.Unmap()
	now := l.now()
	for prefix, b := range l.subnets {
		if prefix.Contains(n) && b.holds(now) {
			return false
		}
	}
	return true
}

// Allowed returns the allowed peers, sorted; nil if all are.
func (l *List) Allowed() []peer.ID {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.allowed == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(l.allowed))
}

// Allow adds to the allowed peers: all of the IDs, or none on error.
func (l *List) Allow(ids []peer.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.allowed == nil {
		return errors.New("all peers are allowed; give WithAllowedPeers to let only some in")
	}
	for _, id := range ids {
		if b, ok := l.peers[id]; ok && b.holds(l.now()) || l.banned[id] {
			return fmt.Errorf("%s is banned; call UnbanPeer first", id)
		}
	}
	for _, id := range ids {
		l.allowed[id] = true
	}
	return nil
}

// Disallow removes from the allowed peers: all of the IDs, or none on error.
func (l *List) Disallow(ids []peer.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.allowed == nil {
		return errors.New("all peers are allowed; give WithAllowedPeers to let only some in, or use BanPeer")
	}
	for _, id := range ids {
		if !l.allowed[id] {
			return fmt.Errorf("%s is not allowed", id)
		}
	}
	for _, id := range ids {
		delete(l.allowed, id)
	}
	return nil
}
