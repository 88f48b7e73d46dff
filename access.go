package p2pnode

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

// BanPeer bans a peer, replacing an earlier ban of it: the node closes its
// connections and, until the ban ends, does not dial, accept or relay for it,
// drops its messages and keeps it out of the routing table. The ban ends at
// until, without an event; the zero time bans for good. The reason is up to 500
// bytes of printable text, for [Node.Bans], errors and logs. With [WithDataDir]
// the ban survives a restart.
//
// A node holds at most 10,000 bans. BanPeer returns an error for an invalid
// ban; for one that could not be saved, in which case it holds until the node
// closes; and [ErrClosed] after Close.
func (n *Node) BanPeer(id peer.ID, until time.Time, reason string) error {
	if id == n.id {
		return fmt.Errorf("p2pnode: ban: %s is this node itself", id)
	}
	return n.ban(access.Ban{Peer: id, Until: until, Reason: reason})
}

// BanSubnet bans all addresses of a subnet, as [Node.BanPeer] bans a peer and
// with the same errors. Bits beyond the prefix's length are dropped. It does
// not affect peers that connect through a relay elsewhere, and mutes nobody on
// topics.
func (n *Node) BanSubnet(prefix netip.Prefix, until time.Time, reason string) error {
	return n.ban(access.Ban{Subnet: prefix, Until: until, Reason: reason})
}

func (n *Node) ban(b access.Ban) error {
	if n.closed() {
		return ErrClosed
	}
	b = b.Normal()
	if err := n.access.Add(b); err != nil {
		return fmt.Errorf("p2pnode: ban: %w", err)
	}
	n.log.Info("banned", logged(b)...)
	n.cutOff()
	n.watch.emit(EventBanned{Ban: Ban(b)})
	if err := n.access.Save(); err != nil {
		return n.fail(fmt.Errorf("ban: it holds, but is not saved: %w", err))
	}
	return nil
}

// UnbanPeer ends the ban of a peer; that of [WithBannedPeers] until the node
// closes. It returns an error for a peer that is not banned and for a list that
// could not be saved, and [ErrClosed] after Close.
func (n *Node) UnbanPeer(id peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if !n.access.UnbanPeer(id) {
		return fmt.Errorf("p2pnode: unban: %s is not banned", id)
	}
	n.keeper.Wake(id)
	return n.unbanned(access.Ban{Peer: id})
}

// UnbanSubnet ends the ban of a subnet. It returns an error for a subnet that
// is not banned as such and for a list that could not be saved, and [ErrClosed]
// after Close.
func (n *Node) UnbanSubnet(prefix netip.Prefix) error {
	if n.closed() {
		return ErrClosed
	}
	if !n.access.UnbanSubnet(prefix) {
		return fmt.Errorf("p2pnode: unban: %s is not banned", prefix)
	}
	n.keeper.Wake() // any of them may be in the subnet
	return n.unbanned(access.Ban{Subnet: prefix.Masked()})
}

func (n *Node) unbanned(b access.Ban) error {
	n.log.Info("unbanned", logged(b)...)
	n.watch.emit(EventUnbanned{Peer: b.Peer, Subnet: b.Subnet})
	if err := n.access.Save(); err != nil {
		return n.fail(fmt.Errorf("unban: the ban has ended, but that is not saved: %w", err))
	}
	return nil
}

// Bans returns the bans in force, sorted by peer and subnet; nil after Close.
func (n *Node) Bans() []Ban {
	if n.closed() {
		return nil
	}
	return bansOf(n.access)
}

// Allow adds peers to those of [WithAllowedPeers], until the node closes.
// Without that option all peers are allowed, and Allow returns an error,
// because it would shut out all others. It also returns an error for a banned
// peer, adding none, and [ErrClosed] after Close.
func (n *Node) Allow(ids ...peer.ID) error {
	if err := n.changeAllowed("allow", ids, n.access.Allow); err != nil {
		return err
	}
	n.keeper.Wake(ids...)
	return nil
}

// Disallow removes peers from those of [WithAllowedPeers] and [Node.Allow],
// until the node closes, and closes their connections. It returns an error
// without [WithAllowedPeers] and for a peer that is not allowed, removing none,
// and [ErrClosed] after Close.
func (n *Node) Disallow(ids ...peer.ID) error {
	if err := n.changeAllowed("disallow", ids, n.access.Disallow); err != nil {
		return err
	}
	n.cutOff()
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

// cutOff closes the connections that the list forbids, and a second later those
// that had just passed the gater.
func (n *Node) cutOff() {
	cut := func() {
		for id, err := range n.base.CloseConns(n.access.AllowReserve) {
			n.log.Debug("closing forbidden connection", "peer", id, "err", err)
		}
		if n.dht != nil {
			n.dht.Forget(func(id peer.ID) bool { return !n.access.Allows(id) || n.allAddrsBanned(id) })
		}
	}
	cut()
	n.group.Go(func(ctx context.Context) {
		if backoff.Sleep(ctx, time.Second) {
			cut()
		}
	})
}

// allAddrsBanned reports whether every known address of a peer is in a banned
// subnet.
func (n *Node) allAddrsBanned(id peer.ID) bool {
	known := n.base.KnownAddrs(id)
	for _, a := range known {
		if n.access.AllowsAddr(a) {
			return false
		}
	}
	return len(known) > 0
}

// logged returns a ban as the attributes of a log line, without empty ones.
func logged(b access.Ban) []any {
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
