package p2pnode

import (
	"context"
	"encoding/json"
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
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// blocksName is the file of the data directory with the blocks.
	blocksName = "blocks"
	// maxBlocks bounds the list, which applications may grow by themselves.
	maxBlocks = 10_000
	// maxReason bounds a block's reason, in bytes.
	maxReason = 1000
)

// WithAllowedPeers adds peers that the node has to do with, overriding the
// default of all. With it, nobody else is dialled, accepted, relayed for or
// heard on a topic. Allow adds to it while the node runs. Bootstrap peers,
// persistent peers and relays that are not among them are an error, and so are
// peers of WithBlockedPeers.
func WithAllowedPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithAllowedPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.allowed = append(slices.Clone(c.allowed), ids...)
		return nil
	}}
}

// WithBlockedPeers adds peers that the node has nothing to do with, for good:
// they are neither dialled nor accepted, relayed for, or heard on a topic.
// Block does the same while the node runs, also for a time and for subnets,
// and Unblock undoes both.
func WithBlockedPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithBlockedPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.blocked = append(slices.Clone(c.blocked), ids...)
		return nil
	}}
}

func checkIDs(ids []peer.ID) error {
	if len(ids) == 0 {
		return errors.New("no peer given")
	}
	for _, id := range ids {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("%q is no peer ID: %w", string(id), err)
		}
	}
	return nil
}

// validateAccess checks that nobody whom the node is told to meet is shut out.
func (c *config) validateAccess(fail func(option, format string, args ...any)) {
	for _, id := range c.allowed {
		if slices.Contains(c.blocked, id) {
			fail("WithBlockedPeers", "%s is among the peers of WithAllowedPeers; drop it from one of the two", id)
		}
	}
	for option, peers := range map[string][]peer.AddrInfo{
		"WithBootstrapPeers": c.bootstrap, "WithPersistentPeers": c.persistent, "WithAutoRelay": c.autoRelays,
	} {
		for _, p := range peers {
			switch {
			case slices.Contains(c.blocked, p.ID):
				fail(option, "%s is blocked by WithBlockedPeers; drop it from one of the two", p.ID)
			case len(c.allowed) > 0 && !slices.Contains(c.allowed, p.ID):
				fail(option, "%s is not among the peers of WithAllowedPeers; add it there", p.ID)
			}
		}
	}
}

// Block shuts out a peer or a subnet: set one of the two.
type Block struct {
	Peer   peer.ID      `json:"peer,omitempty"`
	Subnet netip.Prefix `json:"subnet,omitzero"`
	Until  time.Time    `json:"until,omitzero"` // zero: for good
	Reason string       `json:"reason,omitempty"`
}

func (b Block) check() error {
	switch {
	case (b.Peer == "") == !b.Subnet.IsValid():
		return errors.New("a block is about a peer or a subnet: set one of the two")
	case b.Peer != "" && !isPeerID(b.Peer):
		return fmt.Errorf("%q is no peer ID", string(b.Peer))
	case !b.Until.IsZero() && !b.Until.After(time.Now()):
		return fmt.Errorf("the block ends at %v, which has passed", b.Until)
	case len(b.Reason) > maxReason:
		return fmt.Errorf("the reason has %d bytes, more than %d", len(b.Reason), maxReason)
	}
	return nil
}

func isPeerID(id peer.ID) bool {
	_, err := peer.IDFromBytes([]byte(id))
	return err == nil
}

// accessPart is the one list that decides about peers. It is the host's
// connection gater, the relay service's filter and gossipsub's blacklist.
type accessPart struct {
	data *dataPart // nil without WithDataDir
	log  *slog.Logger
	next connmgr.ConnectionGater // of WithLibp2pOptions; nil without one

	mu       sync.RWMutex
	allowed  map[peer.ID]bool       // nil: all; guarded by mu
	peers    map[peer.ID]Block      // guarded by mu
	subnets  map[netip.Prefix]Block // guarded by mu
	saving   sync.Mutex             // one save at a time
	warnings []string               // set before the node runs
}

// newAccess builds the list from the options and the data directory.
func newAccess(cfg *config, data *dataPart, log *slog.Logger) *accessPart {
	a := &accessPart{data: data, log: log, peers: make(map[peer.ID]Block), subnets: make(map[netip.Prefix]Block)}
	if len(cfg.allowed) > 0 {
		a.allowed = make(map[peer.ID]bool)
		for _, id := range cfg.allowed {
			a.allowed[id] = true
		}
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
		}
	}
	for _, id := range cfg.blocked {
		a.addLocked(Block{Peer: id, Reason: "WithBlockedPeers"})
	}
	return a
}

// parseBlocks reads what save wrote. Blocks that have ended are left out.
func parseBlocks(b []byte) ([]Block, error) {
	var list []Block
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	if len(list) > maxBlocks {
		return nil, fmt.Errorf("%d blocks, more than %d", len(list), maxBlocks)
	}
	var good []Block
	for _, block := range list {
		ended := !block.Until.IsZero() && !block.Until.After(time.Now())
		if ended {
			continue
		}
		if err := block.check(); err != nil {
			return nil, err
		}
		good = append(good, block)
	}
	return good, nil
}

// save writes the blocks, but for those of the options.
func (a *accessPart) save(configured []peer.ID) error {
	if a.data == nil {
		return nil
	}
	a.saving.Lock()
	defer a.saving.Unlock()
	list := slices.DeleteFunc(a.list(), func(b Block) bool { return b.Peer != "" && slices.Contains(configured, b.Peer) })
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return a.data.dir.Write(blocksName, text)
}

func (a *accessPart) addLocked(b Block) {
	if b.Peer != "" {
		a.peers[b.Peer] = b
	} else {
		b.Subnet = b.Subnet.Masked()
		a.subnets[b.Subnet] = b
	}
}

func (b Block) holds(now time.Time) bool { return b.Until.IsZero() || b.Until.After(now) }

// allows reports whether the node has to do with a peer.
func (a *accessPart) allows(id peer.ID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.allowed != nil && !a.allowed[id] {
		return false
	}
	b, ok := a.peers[id]
	return !ok || !b.holds(time.Now())
}

// allowsAddr reports whether no blocked subnet has the address. Relayed
// addresses are those of relays, which is their own affair.
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

// list returns the blocks that hold, sorted, and forgets the others.
func (a *accessPart) list() []Block {
	now := time.Now()
	a.mu.Lock()
	maps.DeleteFunc(a.peers, func(_ peer.ID, b Block) bool { return !b.holds(now) })
	maps.DeleteFunc(a.subnets, func(_ netip.Prefix, b Block) bool { return !b.holds(now) })
	list := append(slices.Collect(maps.Values(a.peers)), slices.Collect(maps.Values(a.subnets))...)
	a.mu.Unlock()
	slices.SortFunc(list, func(x, y Block) int {
		if c := strings.Compare(string(x.Peer), string(y.Peer)); c != 0 {
			return c
		}
		return x.Subnet.Addr().Compare(y.Subnet.Addr())
	})
	return list
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
	return a.allows(id) && a.allowsAddr(c.RemoteMultiaddr()) && (a.next == nil || a.next.InterceptSecured(dir, id, c))
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

// Blocked says that Block has shut somebody out.
type Blocked struct{ Block Block }

func (Blocked) event() {}

// Block shuts out a peer or a subnet, replacing an earlier block of the same:
// connections are cut, and until it ends nobody there is dialled, accepted,
// relayed for, or (a peer) heard on a topic. It ends by itself at Until, and
// with WithDataDir survives a restart. Blocking a subnet does not reach those
// who come through a relay elsewhere.
//
// The error says what is wrong with the block, or that it could not be saved,
// in which case it holds all the same; ErrClosed after Close.
func (n *Node) Block(b Block) error {
	if n.closed() {
		return ErrClosed
	}
	if err := b.check(); err != nil {
		return fmt.Errorf("p2pnode: block: %w", err)
	}
	if b.Peer == n.id {
		return fmt.Errorf("p2pnode: block: %s is this node itself", b.Peer)
	}
	a := n.access
	if len(a.list()) >= maxBlocks {
		return fmt.Errorf("p2pnode: block: there are %d blocks already; block a subnet, or end some with Unblock", maxBlocks)
	}
	a.mu.Lock()
	a.addLocked(b)
	a.mu.Unlock()
	n.log.Info("blocked", "peer", b.Peer, "subnet", b.Subnet, "until", b.Until, "reason", b.Reason)
	n.cutOff()
	// And those that passed the gate just before.
	n.group.Go(func(ctx context.Context) {
		if pauseFor(ctx, time.Second) {
			n.cutOff()
		}
	})
	n.watch.emit(Blocked{b})
	if err := a.save(n.cfg.blocked); err != nil {
		return n.fail(fmt.Errorf("block: it holds, but is not saved: %w", err))
	}
	return nil
}

// cutOff closes the connections that the list forbids.
func (n *Node) cutOff() {
	for _, c := range n.base.swarm.Conns() {
		if !n.access.allows(c.RemotePeer()) || !n.access.allowsAddr(c.RemoteMultiaddr()) {
			if err := c.Close(); err != nil {
				n.log.Debug("cutting off", "peer", c.RemotePeer(), "err", err)
			}
		}
	}
	if n.dht == nil {
		return
	}
	for _, t := range n.dht.tables {
		for _, id := range t.RoutingTable().ListPeers() {
			if !n.access.allows(id) {
				t.RoutingTable().RemovePeer(id)
			}
		}
	}
}

// Unblock ends the block of a peer or a subnet, those of WithBlockedPeers
// included; of the Block its Peer or Subnet matters. One that does not exist is
// an error. It returns ErrClosed after Close.
func (n *Node) Unblock(b Block) error {
	if n.closed() {
		return ErrClosed
	}
	a := n.access
	a.mu.Lock()
	_, peerKnown := a.peers[b.Peer]
	_, subnetKnown := a.subnets[b.Subnet.Masked()]
	switch {
	case b.Peer != "" && peerKnown:
		delete(a.peers, b.Peer)
	case b.Peer == "" && subnetKnown:
		delete(a.subnets, b.Subnet.Masked())
	default:
		a.mu.Unlock()
		return fmt.Errorf("p2pnode: unblock: neither the peer %q nor the subnet %q is blocked", b.Peer.String(), b.Subnet)
	}
	a.mu.Unlock()
	n.log.Info("unblocked", "peer", b.Peer, "subnet", b.Subnet)
	if err := a.save(n.cfg.blocked); err != nil {
		return n.fail(fmt.Errorf("unblock: it is ended, but that is not saved: %w", err))
	}
	return nil
}

// Blocks returns the blocks that hold, sorted by peer and subnet. After Close
// it returns nil.
func (n *Node) Blocks() []Block {
	if n.closed() {
		return nil
	}
	return n.access.list()
}

// Allow adds peers to those of WithAllowedPeers, until the node closes. Without
// that option all are allowed, and Allow is an error, as it would shut out all
// others. It returns ErrClosed after Close.
func (n *Node) Allow(ids ...peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if err := checkIDs(ids); err != nil {
		return fmt.Errorf("p2pnode: allow: %w", err)
	}
	a := n.access
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.allowed == nil {
		return errors.New("p2pnode: allow: everybody is allowed; give WithAllowedPeers to allow some alone")
	}
	for _, id := range ids {
		a.allowed[id] = true
	}
	return nil
}
