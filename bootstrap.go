package p2pnode

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

// AddBootstrapPeers adds peers to those of [WithBootstrapPeers], until the node
// closes. For one that is a bootstrap peer already the addresses add up. Those
// that are not connected are dialed at once. Nothing is added when one of the
// peers lacks an ID or an address, is this node itself, or is banned or not
// allowed, which matches [ErrBanned]. It does not wait for connections. It
// returns [ErrClosed] after Close.
func (n *Node) AddBootstrapPeers(peers ...peer.AddrInfo) error {
	return n.addPeers(keeper.Bootstrap, "add bootstrap peers", peers)
}

// RemoveBootstrapPeers removes bootstrap peers, those of [WithBootstrapPeers]
// included: the node does not dial them any more to enter its network. Their
// connections stand until somebody closes them. IDs that are none of bootstrap
// peers are an error, after the others are removed. It returns [ErrClosed]
// after Close.
func (n *Node) RemoveBootstrapPeers(ids ...peer.ID) error {
	return n.removePeers(keeper.Bootstrap, "remove bootstrap peers", ids)
}

// AddPersistentPeers makes the node keep peers connected, as
// [WithPersistentPeers] does from the start. For one that is kept already the
// addresses add up, and it is dialed at once. Nothing is added when one of the
// peers lacks an ID or an address, is this node itself, or is banned or not
// allowed, which matches [ErrBanned]. It does not wait for connections. It
// returns [ErrClosed] after Close.
func (n *Node) AddPersistentPeers(peers ...peer.AddrInfo) error {
	return n.addPeers(keeper.Persistent, "add persistent peers", peers)
}

// RemovePersistentPeers makes the node no longer keep peers connected, those of
// [WithPersistentPeers] included. Their connections stand until somebody closes
// them. IDs that are not kept are an error, after the others are removed. It
// returns [ErrClosed] after Close.
func (n *Node) RemovePersistentPeers(ids ...peer.ID) error {
	return n.removePeers(keeper.Persistent, "remove persistent peers", ids)
}

func (n *Node) addPeers(s keeper.Source, what string, peers []peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	peers = addrs.Merge(peers...)
	if err := n.checkWanted(peers); err != nil {
		return fmt.Errorf("p2pnode: %s: %w", what, err)
	}
	n.keeper.Add(s, peers...)
	return nil
}

func (n *Node) removePeers(s keeper.Source, what string, ids []peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	var errs []error
	for _, id := range ids {
		if !n.keeper.Remove(s, id) {
			errs = append(errs, fmt.Errorf("p2pnode: %s: %s is none", what, id))
		}
	}
	return errors.Join(errs...)
}

// AddRelays makes the node keep reservations at more relays, as [WithAutoRelay]
// does from the start; for one that it knows already the addresses add up. There
// can be 16. It does not wait for the reservations: [EventRelayReserved] and
// [StageReachable] do.
//
// It returns [ErrDisabled] for a node made without WithAutoRelay, since a node
// decides at its start whether it is reached through relays. Nothing is added
// when a peer lacks an ID or an address, is this node itself, or is banned or
// not allowed. It returns [ErrClosed] after Close.
func (n *Node) AddRelays(relays ...peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	if !n.relay.Enabled() {
		return fmt.Errorf("p2pnode: add relays: %w", disabled("keeping reservations", "give WithAutoRelay with at least one relay"))
	}
	relays = addrs.Merge(relays...)
	if err := n.checkWanted(relays); err != nil {
		return fmt.Errorf("p2pnode: add relays: %w", err)
	}
	if err := n.relay.Add(relays...); err != nil {
		return fmt.Errorf("p2pnode: add relays: %w", err)
	}
	return nil
}

// RemoveRelays ends the reservations at relays, those of [WithAutoRelay]
// included, and closes the connections to them, which the reservations need. IDs
// that are not relays of the node are an error, after the others are removed. It
// returns [ErrClosed] after Close.
func (n *Node) RemoveRelays(ids ...peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	var errs []error
	for _, id := range ids {
		if !n.relay.Remove(id) {
			errs = append(errs, fmt.Errorf("p2pnode: remove relays: %s is none", id))
		}
	}
	return errors.Join(errs...)
}

// checkWanted checks peers that the node is told to meet at run time.
func (n *Node) checkWanted(peers []peer.AddrInfo) error {
	if err := errors.Join(checkPeers(peers), checkNotSelf(peers, n.id)); err != nil {
		return err
	}
	for _, p := range peers {
		if err := n.access.Refusal(p.ID); err != nil {
			return fmt.Errorf("%s: %w", p.ID, err)
		}
	}
	return nil
}
