package p2pnode

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

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// accessPart is the one list that decides about peers. It is the host's
// connection gater, the relay service's filter and gossipsub's blacklist.
type accessPart struct {
	data *dataPart // nil without WithDataDir
	log  *slog.Logger
	next connmgr.ConnectionGater // of WithLibp2pOptions; nil without one
	// shutOut is told of incoming connections that are refused though it is
	// known whose they are.
	shutOut func(ma.Multiaddr)

	mu       sync.RWMutex
	allowed  map[peer.ID]bool       // nil: all; guarded by mu
	blocked  map[peer.ID]bool       // by WithBlockedPeers, and never saved; guarded by mu
	peers    map[peer.ID]Block      // by Block; guarded by mu
	subnets  map[netip.Prefix]Block // guarded by mu
	saving   sync.Mutex             // one save at a time
	warnings []string               // set before the node runs
}

// newAccess builds the list from the options and the data directory.
func newAccess(cfg *config, data *dataPart, log *slog.Logger) *accessPart {
	a := &accessPart{
		data: data, log: log,
		blocked: make(map[peer.ID]bool), peers: make(map[peer.ID]Block), subnets: make(map[netip.Prefix]Block),
	}
	if len(cfg.allowed) > 0 {
		a.allowed = make(map[peer.ID]bool)
		for _, id := range cfg.allowed {
			a.allowed[id] = true
		}
	}
	for _, id := range cfg.blocked {
		a.blocked[id] = true
	}
	if data != nil {
		err := data.dir.Read(blocksName, func(b []byte) error {
			list, err := parseBlocks(b)
			for _, block := range list {
				a.addLocked(block)
			}
			return err
		})
		if err != nil {
			log.Warn("blocks", "err", err)
			a.warnings = append(a.warnings, "blocks: "+err.Error())
			// What could be read shall not be lost with the file.
			if len(a.peers)+len(a.subnets) > 0 {
				if err := a.save(); err != nil {
					log.Warn("blocks", "err", err)
					a.warnings = append(a.warnings, "blocks: "+err.Error())
				}
			}
		}
	}
	return a
}

// save writes the blocks, but for those of the options.
func (a *accessPart) save() error {
	if a.data == nil {
		return nil
	}
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	list := a.sweepLocked()
	a.mu.Unlock()
	text, err := encodeBlocks(list)
	if err != nil {
		return err
	}
	return a.data.dir.Write(blocksName, text)
}

// errTooManyBlocks is the error of a block beyond maxBlocks.
var errTooManyBlocks = fmt.Errorf("there are %d blocks already; block a subnet, or end some with Unblock", maxBlocks)

// add adds a block, or replaces the one of the same peer or subnet.
func (a *accessPart) add(b Block) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, known := a.peers[b.Peer]
	if b.Peer == "" {
		_, known = a.subnets[b.Subnet.Masked()]
	}
	if !known && len(a.peers)+len(a.subnets) >= maxBlocks && len(a.sweepLocked()) >= maxBlocks {
		return errTooManyBlocks
	}
	a.addLocked(b)
	return nil
}

func (a *accessPart) addLocked(b Block) {
	if b.Peer != "" {
		a.peers[b.Peer] = b
	} else {
		b.Subnet = b.Subnet.Masked()
		a.subnets[b.Subnet] = b
	}
}

// allows reports whether the node has to do with a peer.
func (a *accessPart) allows(id peer.ID) bool { return a.refusal(id) == nil }

// refusal says why the node has nothing to do with a peer, nil when it may.
func (a *accessPart) refusal(id peer.ID) *refusal {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.allowed != nil && !a.allowed[id] {
		return &refusal{id: id}
	}
	if b, ok := a.peers[id]; ok && b.holds(time.Now()) {
		return &refusal{id: id, block: &b}
	}
	if a.blocked[id] {
		return &refusal{id: id, block: &Block{Peer: id, Reason: byOption}}
	}
	return nil
}

// byOption is the reason of a block that an option gave.
const byOption = "WithBlockedPeers"

// refusal is the error of dialling somebody who is shut out. It matches the
// swarm's own.
type refusal struct {
	id    peer.ID
	block *Block // nil: not allowed
}

func (r *refusal) Unwrap() error        { return swarm.ErrGaterDisallowedConnection }
func (r *refusal) Is(target error) bool { return target == ErrBanned }

func (r *refusal) Error() string {
	if r.block == nil {
		return "it is not among the peers of WithAllowedPeers; Allow adds it"
	}
	text := "it is blocked"
	if !r.block.Until.IsZero() {
		text += " until " + r.block.Until.Format(time.RFC3339)
	}
	if r.block.Reason != "" {
		text += fmt.Sprintf(" (%s)", r.block.Reason)
	}
	return text + "; Unblock ends that"
}

// allowsAddr reports whether no blocked subnet has the address; of a relayed
// one it is the relay's that counts.
func (a *accessPart) allowsAddr(addr ma.Multiaddr) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if len(a.subnets) == 0 {
		return true
	}
	ip, err := manet.ToIP(addr)
	if err != nil {
		return true // a name: its addresses are asked about when it is resolved
	}
	n, ok := netip.AddrFromSlice(ip)
	if !ok {
		return true
	}
	n = n.Unmap()
	now := time.Now()
	for prefix, b := range a.subnets {
		if prefix.Contains(n) && b.holds(now) {
			return false
		}
	}
	return true
}

// list returns the blocks that hold, sorted.
func (a *accessPart) list() []Block {
	a.mu.Lock()
	list := a.sweepLocked()
	for id := range a.blocked {
		if _, ok := a.peers[id]; !ok {
			list = append(list, Block{Peer: id, Reason: byOption})
		}
	}
	a.mu.Unlock()
	slices.SortFunc(list, func(x, y Block) int {
		return cmp.Or(strings.Compare(string(x.Peer), string(y.Peer)), x.Subnet.Addr().Compare(y.Subnet.Addr()), x.Subnet.Bits()-y.Subnet.Bits())
	})
	return list
}

// sweepLocked forgets the blocks that have ended and returns the others.
func (a *accessPart) sweepLocked() []Block {
	now := time.Now()
	maps.DeleteFunc(a.peers, func(_ peer.ID, b Block) bool { return !b.holds(now) })
	maps.DeleteFunc(a.subnets, func(_ netip.Prefix, b Block) bool { return !b.holds(now) })
	return append(slices.Collect(maps.Values(a.peers)), slices.Collect(maps.Values(a.subnets))...)
}

// nextEnd returns when the next of the blocks ends, zero when none does.
func (a *accessPart) nextEnd() (end time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.sweepLocked() {
		if !b.Until.IsZero() && (end.IsZero() || b.Until.Before(end)) {
			end = b.Until
		}
	}
	return end
}

// gate makes the list the host's connection gater, in front of one that the
// application gave.
func (a *accessPart) gate(cfg *libp2p.Config) error {
	a.next = cfg.ConnectionGater
	cfg.ConnectionGater = a
	return nil
}

func (a *accessPart) InterceptPeerDial(id peer.ID) bool {
	return a.allows(id) && (a.next == nil || a.next.InterceptPeerDial(id))
}

func (a *accessPart) InterceptAddrDial(id peer.ID, addr ma.Multiaddr) bool {
	return a.allowsAddr(addr) && (a.next == nil || a.next.InterceptAddrDial(id, addr))
}

func (a *accessPart) InterceptAccept(c network.ConnMultiaddrs) bool {
	return a.allowsAddr(c.RemoteMultiaddr()) && (a.next == nil || a.next.InterceptAccept(c))
}

func (a *accessPart) InterceptSecured(dir network.Direction, id peer.ID, c network.ConnMultiaddrs) bool {
	ok := a.allows(id) && a.allowsAddr(c.RemoteMultiaddr()) && (a.next == nil || a.next.InterceptSecured(dir, id, c))
	if !ok && dir == network.DirInbound {
		a.shutOut(c.RemoteMultiaddr())
	}
	return ok
}

func (a *accessPart) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	if !a.allows(c.RemotePeer()) || !a.allowsAddr(c.RemoteMultiaddr()) {
		return false, 0
	}
	if a.next == nil {
		return true, 0
	}
	return a.next.InterceptUpgraded(c)
}

// AllowReserve and AllowConnect are the relay service's questions.
func (a *accessPart) AllowReserve(id peer.ID, addr ma.Multiaddr) bool {
	return a.allows(id) && a.allowsAddr(addr)
}

func (a *accessPart) AllowConnect(src peer.ID, addr ma.Multiaddr, dst peer.ID) bool {
	return a.allows(src) && a.allowsAddr(addr) && a.allows(dst)
}

// Add and Contains are gossipsub's: messages of these authors are dropped
// whoever passes them on.
func (a *accessPart) Add(peer.ID) bool         { return false } // Block is the way
func (a *accessPart) Contains(id peer.ID) bool { return !a.allows(id) }

// remove ends a block and reports whether there was one.
func (a *accessPart) remove(b Block) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweepLocked()
	if b.Peer == "" {
		prefix := b.Subnet.Masked()
		_, known := a.subnets[prefix]
		delete(a.subnets, prefix)
		return known
	}
	_, known := a.peers[b.Peer]
	known = known || a.blocked[b.Peer]
	delete(a.peers, b.Peer)
	delete(a.blocked, b.Peer)
	return known
}

func (a *accessPart) disallow(ids []peer.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.allowed == nil {
		return errors.New("everybody is allowed; give WithAllowedPeers to allow some alone, or use Block")
	}
	for _, id := range ids {
		if !a.allowed[id] {
			return fmt.Errorf("%s is not allowed anyway", id)
		}
	}
	for _, id := range ids {
		delete(a.allowed, id)
	}
	return nil
}

// allowedList returns who is allowed, sorted; nil when all are.
func (a *accessPart) allowedList() []peer.ID {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.allowed == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(a.allowed))
}

func (a *accessPart) allow(ids []peer.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.allowed == nil {
		return errors.New("everybody is allowed; give WithAllowedPeers to allow some alone")
	}
	for _, id := range ids {
		if b, ok := a.peers[id]; ok && b.holds(time.Now()) || a.blocked[id] {
			return fmt.Errorf("%s is blocked; end that with Unblock", id)
		}
	}
	for _, id := range ids {
		a.allowed[id] = true
	}
	return nil
}
