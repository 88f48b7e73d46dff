package p2pnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// blocksName is the file of the data directory with the blocks.
	blocksName = "blocks"
	// maxBlocks bounds the list, which applications may grow by themselves.
	maxBlocks = 10_000
	// maxReason bounds a block's reason, in bytes: the whole list fits into a
	// data file.
	maxReason = 500
)

// Block shuts out a peer or a subnet: set one of the two.
type Block struct {
	Peer   peer.ID      `json:"peer,omitempty"`
	Subnet netip.Prefix `json:"subnet,omitzero"`  // bits beyond its length are dropped
	Until  time.Time    `json:"until,omitzero"`   // zero: for good
	Reason string       `json:"reason,omitempty"` // at most 500 bytes of printable text
}

// normal is the block in the one form that is kept: times in UTC and by the
// wall clock, which goes on while a machine sleeps, and subnets without the
// bits beyond their length.
func (b Block) normal() Block {
	if !b.Until.IsZero() {
		b.Until = b.Until.UTC().Round(0)
	}
	if b.Subnet.IsValid() {
		b.Subnet = b.Subnet.Masked()
	}
	return b
}

// check finds out what is wrong with a normal block.
func (b Block) check() error {
	switch {
	case b.Peer != "" && b.Subnet != netip.Prefix{}:
		return errors.New("a block is about a peer or a subnet: set one of the two")
	case (b.Peer == "") == !b.Subnet.IsValid():
		return errors.New("a block is about a peer or a subnet: set one of the two")
	case b.Peer != "" && !isPeerID(b.Peer):
		return fmt.Errorf("%q is no peer ID; peer.Decode makes one of text", string(b.Peer))
	case b.Subnet.Addr().Is4In6():
		return fmt.Errorf("the subnet %s is IPv4 in the form of IPv6: give it as IPv4", b.Subnet)
	case !b.Until.IsZero() && !b.Until.After(time.Now()):
		return fmt.Errorf("the block ends at %v, which has passed", b.Until)
	case b.Until.Year() > 9999:
		return fmt.Errorf("the block ends in the year %d; leave Until zero to block for good", b.Until.Year())
	case len(b.Reason) > maxReason:
		return fmt.Errorf("the reason has %d bytes, more than %d", len(b.Reason), maxReason)
	case strings.ContainsFunc(b.Reason, unicode.IsControl) || !utf8.ValidString(b.Reason):
		return errors.New("the reason is not printable text")
	}
	return nil
}

// parseBlocks reads what save wrote. Blocks that have ended are left out. What
// can be read is returned beside an error about the rest.
func parseBlocks(b []byte) ([]Block, error) {
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	var good []Block
	var errs []error
	for i, text := range raw {
		var block Block
		if err := json.Unmarshal(text, &block); err != nil {
			errs = append(errs, fmt.Errorf("block %d of %d: %w", i+1, len(raw), err))
			continue
		}
		if !block.Until.IsZero() && !block.holds(time.Now()) {
			continue
		}
		if err := block.check(); err != nil {
			errs = append(errs, fmt.Errorf("block %d of %d: %w", i+1, len(raw), err))
			continue
		}
		if len(good) == maxBlocks {
			errs = append(errs, fmt.Errorf("there are more than %d blocks", maxBlocks))
			break
		}
		good = append(good, block)
	}
	const told = 3 // of what may be thousands
	if len(errs) > told {
		errs = append(errs[:told], fmt.Errorf("and %d more", len(errs)-told))
	}
	return good, errors.Join(errs...)
}

// encodeBlocks is what parseBlocks reads.
func encodeBlocks(list []Block) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // which would make it grow
	err := enc.Encode(list)
	return text.Bytes(), err
}

func (b Block) holds(now time.Time) bool { return b.Until.IsZero() || b.Until.After(now) }

// Blocked says that Block has shut somebody out.
type Blocked struct{ Block Block }

func (Blocked) event() {}

// Block shuts out a peer or a subnet, replacing an earlier block of the same:
// connections are cut, and until it ends nobody there is dialled, accepted,
// relayed for, or (a peer) heard on a topic. It ends by itself at Until, and
// with WithDataDir survives a restart. Blocking a subnet does not reach those
// who come through a relay elsewhere.
//
// There can be 10,000 blocks. The error says what is wrong with the block, or
// that it could not be saved, in which case it holds all the same; ErrClosed
// after Close.
func (n *Node) Block(b Block) error {
	if n.closed() {
		return ErrClosed
	}
	b = b.normal()
	if err := b.check(); err != nil {
		return fmt.Errorf("p2pnode: block: %w", err)
	}
	if b.Peer == n.id {
		return fmt.Errorf("p2pnode: block: %s is this node itself", b.Peer)
	}
	if err := n.access.add(b); err != nil {
		return fmt.Errorf("p2pnode: block: %w", err)
	}
	n.log.Info("blocked", b.logged()...)
	n.cutOffTwice()
	n.watch.emit(Blocked{b})
	if err := n.access.save(); err != nil {
		return n.fail(fmt.Errorf("block: it holds, but is not saved: %w", err))
	}
	return nil
}

// cutOffTwice closes the connections that the list forbids, and in a second
// those that had passed the gate just before.
func (n *Node) cutOffTwice() {
	n.cutOff()
	n.group.Go(func(ctx context.Context) {
		if pauseFor(ctx, time.Second) {
			n.cutOff()
		}
	})
}

// logged is the block as the attributes of a log line, without the empty ones.
func (b Block) logged() []any {
	var list []any
	if b.Peer != "" {
		list = append(list, "peer", b.Peer)
	} else {
		list = append(list, "subnet", b.Subnet)
	}
	if !b.Until.IsZero() {
		list = append(list, "until", b.Until)
	}
	if b.Reason != "" {
		list = append(list, "reason", b.Reason)
	}
	return list
}

// cutOff closes the connections that the list forbids.
func (n *Node) cutOff() {
	for _, c := range n.base.swarm.Conns() {
		if !n.access.allows(c.RemotePeer()) || !n.access.allowsAddr(c.RemoteMultiaddr()) {
			if err := c.CloseWithError(network.ConnGated); err != nil {
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

// Unblock ends the block of a peer or a subnet, until the node closes also one
// of WithBlockedPeers. Of the Block only Peer or Subnet matter: set one of the
// two. One that does not hold is an error. It returns ErrClosed after Close.
func (n *Node) Unblock(b Block) error {
	if n.closed() {
		return ErrClosed
	}
	if (b.Peer == "") == !b.Subnet.IsValid() {
		return errors.New("p2pnode: unblock: set a peer or a subnet, one of the two")
	}
	if !n.access.remove(b) {
		if b.Peer != "" {
			return fmt.Errorf("p2pnode: unblock: %s is not blocked", b.Peer)
		}
		return fmt.Errorf("p2pnode: unblock: %s is not blocked", b.Subnet)
	}
	n.log.Info("unblocked", Block{Peer: b.Peer, Subnet: b.Subnet}.logged()...)
	if b.Peer != "" {
		n.persistent.wake(b.Peer)
	} else {
		n.persistent.wakeAll() // some of them may be there
	}
	if err := n.access.save(); err != nil {
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
// others. A peer that is blocked is an error too, and nobody is added then. It
// returns ErrClosed after Close.
func (n *Node) Allow(ids ...peer.ID) error {
	if err := n.changeAllowed("allow", ids, n.access.allow); err != nil {
		return err
	}
	n.persistent.wake(ids...)
	return nil
}

// Disallow removes peers from those of WithAllowedPeers and Allow, until the
// node closes, and cuts their connections. Peers that are not among them are an
// error, and so is every call without WithAllowedPeers; nobody is removed then.
// It returns ErrClosed after Close.
func (n *Node) Disallow(ids ...peer.ID) error {
	if err := n.changeAllowed("disallow", ids, n.access.disallow); err != nil {
		return err
	}
	n.cutOffTwice()
	return nil
}

func (n *Node) changeAllowed(what string, ids []peer.ID, change func([]peer.ID) error) error {
	if n.closed() {
		return ErrClosed
	}
	err := checkIDs(ids)
	if err == nil {
		err = change(ids)
	}
	if err != nil {
		return fmt.Errorf("p2pnode: %s: %w", what, err)
	}
	return nil
}
