package p2pnode

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// AddBootstrapPeers adds peers to those of [WithBootstrapPeers], until the node
// closes, and dials those that are not connected, without waiting for them.
// Addresses of a peer that is already a bootstrap peer are merged. If any peer
// lacks an ID or an address that the node can dial, is this node itself, or is
// banned or not allowed ([ErrBanned]), it adds none and returns an error. It
// returns [ErrClosed] after Close.
func (n *Node) AddBootstrapPeers(peers ...peer.AddrInfo) error {
	return n.addPeers(keeper.Bootstrap, "add bootstrap peers", peers)
}

// RemoveBootstrapPeers removes bootstrap peers, including those of
// [WithBootstrapPeers]. Their connections stay open. IDs that are not bootstrap
// peers are an error, after the others are removed. It returns [ErrClosed]
// after Close.
func (n *Node) RemoveBootstrapPeers(ids ...peer.ID) error {
	return n.removePeers(keeper.Bootstrap, "remove bootstrap peers", ids)
}

// AddPersistentPeers keeps peers connected from now on, as
// [WithPersistentPeers] does from the start, and dials those that are not
// connected, without waiting for them. Addresses of a peer that is already
// persistent are merged. If any peer lacks an ID or an address that the node
// can dial, is this node itself, or is banned or not allowed ([ErrBanned]), it
// adds none and returns an error. It returns [ErrClosed] after Close.
func (n *Node) AddPersistentPeers(peers ...peer.AddrInfo) error {
	return n.addPeers(keeper.Persistent, "add persistent peers", peers)
}

// RemovePersistentPeers stops keeping peers connected, including those of
// [WithPersistentPeers]. Their connections stay open. IDs that are not
// persistent peers are an error, after the others are removed. It returns
// [ErrClosed] after Close.
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
			errs = append(errs, fmt.Errorf("p2pnode: %s: %s is not one", what, id))
		}
	}
	return errors.Join(errs...)
}

// AddRelays keeps reservations at more relays, as [WithAutoRelay] does from the
// start, at most 16 in all. Addresses of a relay that is already known are
// merged. It does not wait for the reservations: [EventRelayReserved] reports
// them, and [Node.WaitReady] with [StageReachable] waits.
//
// It returns [ErrDisabled] for a node without [WithAutoRelay] and
// [WithRelayDiscovery], because a node decides at its start whether it is reached
// through relays. If any peer lacks
// an ID or an address that the node can dial, is this node itself, or is banned
// or not allowed ([ErrBanned]), it adds none and returns an error. It returns
// [ErrClosed] after Close.
func (n *Node) AddRelays(relays ...peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	if !n.relay.Enabled() {
		return fmt.Errorf("p2pnode: add relays: %w", off("AutoRelay", "give WithAutoRelay with at least one relay, or WithRelayDiscovery"))
	}
	relays = addrs.Merge(relays...)
	if err := n.checkWanted(relays); err != nil {
		return fmt.Errorf("p2pnode: add relays: %w", err)
	}
	n.base.Given(relays...)
	if err := n.relay.Add(relays...); err != nil {
		return fmt.Errorf("p2pnode: add relays: %w", err)
	}
	return nil
}

// RemoveRelays ends the reservations at relays, including those of
// [WithAutoRelay], and closes the connections to them. IDs that are not relays
// of the node are an error, after the others are removed. It returns
// [ErrClosed] after Close.
func (n *Node) RemoveRelays(ids ...peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	var errs []error
	for _, id := range ids {
		if !n.relay.Remove(id) {
			errs = append(errs, fmt.Errorf("p2pnode: remove relays: %s is not one", id))
		}
	}
	return errors.Join(errs...)
}

// checkWanted checks peers to be added at run time.
func (n *Node) checkWanted(peers []peer.AddrInfo) error {
	if err := errors.Join(checkPeers(peers), checkNotSelf(peers, n.id)); err != nil {
		return err
	}
	if err := n.cfg.checkDials(peers); err != nil {
		return err
	}
	for _, p := range peers {
		if err := n.access.Refusal(p.ID); err != nil {
			return fmt.Errorf("%s: %w", p.ID, err)
		}
	}
	return nil
}

// startKeeper makes the keeper. It does not dial yet, but accepts discovered
// peers.
func startKeeper(n *Node) error {
	cfg := keeper.Config{
		Self: n.id, Conns: keeperConns{n.base}, Log: n.log, Longest: n.cfg.bootstrapPause,
		Dial:    n.dialer.Connect,
		Dials:   func(id peer.ID, a ma.Multiaddr) bool { return n.cfg.dials(a) && n.base.MayDial(id, a) },
		Given:   n.base.Given,
		Waiting: n.dialer.Waiting,
		Reached: func(err error) bool { return errors.Is(err, nethost.ErrLostAtOnce) },
		Allowed: n.access.Allows, BanEnds: n.access.NextEnd,
		Room:    func() bool { return n.base.PeerCount() < n.cfg.connLow },
		Content: n.cfg.minPeers == 0, Refresh: func() {},
		Change: &n.watch.change, Moved: &n.watch.moved,
		Enough: func() bool {
			// A node that has anybody to dial wants at least one peer.
			return n.hasEnough() && (n.cfg.minPeers >= 0 || n.base.PeerCount() > 0)
		},
		New: func(p peer.AddrInfo, source string) {
			n.watch.emit(EventPeerFound{ID: p.ID, Addrs: p.Addrs, Source: source})
		},
		Forgotten: func(id peer.ID) { n.watch.hub.Drop(statePart{"found", string(id)}) },
		Report: func(r keeper.Round) {
			n.rounds.Add(1)
			n.watch.emit(EventBootstrapRound{Round: *newBootstrapRound(&r)})
			n.watch.change.Notify()
		},
	}
	if n.dht != nil {
		cfg.Refresh = n.dht.Refresh
	}
	if len(n.cfg.bootstrapDNS) > 0 {
		names := &nethost.Names{Dialer: n.dialer, Addrs: n.cfg.bootstrapDNS}
		cfg.Names = names.Ask
	}
	if n.data != nil {
		cfg.Store = peerStore{n.data}
	}
	n.keeper = keeper.New(n.ctx, cfg)
	n.keeper.Add(keeper.Bootstrap, n.cfg.bootstrapPeers()...)
	n.keeper.Add(keeper.Persistent, n.cfg.persistent...)
	return nil
}

// startKeeping comes last, so that Close saves the peers while they are still
// connected.
func startKeeping(n *Node) error {
	n.keeper.Start()
	n.stack.Push("saved peers", closeBudget, n.keeper.Close)
	return nil
}

// peersName is the data directory's file with the saved peers.
const peersName = "peers"

// peerStore keeps the saved peers in the data directory.
type peerStore struct{ *dataPart }

func (s peerStore) Read(parse func([]byte) error) error { return s.dir.Read(peersName, parse) }

func (s peerStore) Write(b []byte) error { return s.dir.Write(peersName, b) }

// keeperConns is what the keeper sees of the host.
type keeperConns struct{ h *nethost.Host }

func (c keeperConns) Peers() []peer.ID { return c.h.PeerIDs() }

func (c keeperConns) Connected(id peer.ID) bool { return c.h.Connected(id) }

func (c keeperConns) OpenedAt(id peer.ID) time.Time { return c.h.OpenedAt(id) }

func (c keeperConns) Addrs(id peer.ID) []ma.Multiaddr { return c.h.KnownAddrs(id) }

func (c keeperConns) Protect(id peer.ID, tag string, on bool) { c.h.Protect(id, tag, on) }

func (c keeperConns) Where(id peer.ID) (p keeper.Place) {
	for _, conn := range c.h.Conns(id) {
		if conn.Relayed { // not whether it is limited: a relay may have no limits
			continue
		}
		if p.Since.IsZero() || conn.Opened.Before(p.Since) {
			p.Since = conn.Opened
		}
		if ip, err := manet.ToIP(conn.Addr); err == nil {
			p.IP, _ = netip.AddrFromSlice(ip)
		}
		if conn.Outbound {
			p.Dialed = append(p.Dialed, conn.Addr)
		}
	}
	return p
}
