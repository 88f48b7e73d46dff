package p2pnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// peersName is the file of the data directory with the saved peers.
const peersName = "peers"

// BootstrapRound is the result of one round of dialing bootstrap peers, and
// saved peers beside them. Rounds follow one another while the node has too few
// peers; with enough, there is one when a bootstrap peer is missing and its turn
// has come.
type BootstrapRound struct {
	At        time.Time     `json:"at"`
	Took      time.Duration `json:"took"`      // nanoseconds
	Connected []peer.ID     `json:"connected"` // the bootstrap and saved peers that are connected after the round
	Failed    []DialFailure `json:"failed"`    // those that are not, and why
	Peers     int           `json:"peers"`     // how many peers of any kind are connected after the round
}

func newBootstrapRound(r *keeper.Round) *BootstrapRound {
	if r == nil {
		return nil
	}
	out := &BootstrapRound{At: r.At, Took: r.Took, Connected: slices.Clone(r.Connected), Failed: []DialFailure{}, Peers: r.Peers}
	for _, f := range r.Failed {
		out.Failed = append(out.Failed, DialFailure(f))
	}
	return out
}

// DialFailure is a peer that could not be reached. Its JSON form holds the text
// of the error, so that an error read from JSON matches no other.
type DialFailure struct {
	ID  peer.ID
	Err error
}

type dialFailureJSON struct {
	ID  peer.ID `json:"id"`
	Err string  `json:"err,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (f DialFailure) MarshalJSON() ([]byte, error) {
	out := dialFailureJSON{ID: f.ID}
	if f.Err != nil {
		out.Err = f.Err.Error()
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (f *DialFailure) UnmarshalJSON(b []byte) error {
	var in dialFailureJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*f = DialFailure{ID: in.ID}
	if in.Err != "" {
		f.Err = errors.New(in.Err)
	}
	return nil
}

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

func persistentStatus(k *keeper.Keeper) []PersistentStatus {
	var list []PersistentStatus
	for _, s := range k.Persistent() {
		p := PersistentStatus{ID: s.ID, Connected: s.Connected, Failures: s.Failures, NextDial: s.NextDial}
		if s.LastError != nil {
			p.LastError = s.LastError.Error()
		}
		list = append(list, p)
	}
	return list
}

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

// Disconnect closes all connections to a peer. The node does not dial it again
// by itself, as a bootstrap, discovered or saved peer, until Connect,
// [Node.AddBootstrapPeers] or [Node.AddPersistentPeers] asks for it; being
// discovered again does not count, for mDNS repeats itself. That holds for the
// last 1024 peers disconnected. A persistent peer is dialed again at once: call
// [Node.RemovePersistentPeers] first. The peer may dial this node; to keep it
// out, ban it. A peer that is not connected is no error. It returns ErrClosed
// after Close, and the error of ctx when that ends first.
func (n *Node) Disconnect(ctx context.Context, id peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if err := id.Validate(); err != nil {
		return fmt.Errorf("p2pnode: disconnect: no peer ID given: %w", err)
	}
	ctx, done := n.bind(ctx)
	defer done()
	n.keeper.Release(id)
	closed := make(chan error, 1)
	if !n.group.Go(func(context.Context) { closed <- n.base.Disconnect(id) }) {
		return ErrClosed
	}
	var err error
	select {
	case err = <-closed:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return n.fail(fmt.Errorf("disconnect %s: %w", id, err))
	}
	return nil
}

// startKeeper makes what keeps peers connected. It dials nobody yet, but takes
// what is discovered.
func startKeeper(n *Node) error {
	cfg := keeper.Config{
		Self: n.id, Conns: keeperConns{n.base}, Log: n.log,
		Dial:    n.dialer.Connect,
		Reached: func(err error) bool { return errors.Is(err, nethost.ErrLostAtOnce) },
		Allowed: n.access.Allows, BanEnds: n.access.NextEnd,
		Room:    func() bool { return n.base.PeerCount() < n.cfg.connLow },
		Content: n.cfg.minPeers == 0, Refresh: func() {},
		Change: &n.watch.change, Moved: &n.watch.moved,
		Enough: func() bool {
			// Whoever is told to look for peers wants one at least.
			return n.hasEnough() && (n.cfg.minPeers >= 0 || n.base.PeerCount() > 0)
		},
		New: func(p peer.AddrInfo, source string) {
			n.watch.emit(EventPeerFound{ID: p.ID, Addrs: p.Addrs, Source: source})
		},
		Report: func(r keeper.Round) {
			n.rounds.Add(1)
			n.watch.emit(EventBootstrapRound{Round: *newBootstrapRound(&r)})
			n.watch.change.Notify()
		},
	}
	if n.dht != nil {
		cfg.Refresh = n.dht.Refresh
	}
	if n.data != nil {
		cfg.Store = peerStore{n.data}
	}
	n.keeper = keeper.New(n.ctx, cfg)
	n.keeper.Add(keeper.Bootstrap, n.cfg.bootstrapPeers()...)
	n.keeper.Add(keeper.Persistent, n.cfg.persistent...)
	return nil
}

// startKeeping comes last, so that the peers connected at Close are saved while
// they still are.
func startKeeping(n *Node) error {
	n.keeper.Start()
	n.stack.Push("saved peers", closeBudget, n.keeper.Close)
	return nil
}

// peerStore keeps the saved peers in the data directory.
type peerStore struct{ *dataPart }

func (s peerStore) Read(parse func([]byte) error) error { return s.dir.Read(peersName, parse) }
func (s peerStore) Write(b []byte) error                { return s.dir.Write(peersName, b) }

// keeperConns is what the keeper sees of the host.
type keeperConns struct{ h *nethost.Host }

func (c keeperConns) Peers() []peer.ID                        { return c.h.PeerIDs() }
func (c keeperConns) Connected(id peer.ID) bool               { return c.h.Connected(id) }
func (c keeperConns) OpenedAt(id peer.ID) time.Time           { return c.h.OpenedAt(id) }
func (c keeperConns) Addrs(id peer.ID) []ma.Multiaddr         { return c.h.KnownAddrs(id) }
func (c keeperConns) Protect(id peer.ID, tag string, on bool) { c.h.Protect(id, tag, on) }

func (c keeperConns) Where(id peer.ID) (p keeper.Place) {
	for _, conn := range c.h.Conns(id) {
		if conn.Relayed { // not by being limited: a relay may have no limits
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

// alive pings a peer. Any answer will do, also that it knows no ping.
func alive(ctx context.Context, h *nethost.Host, id peer.ID) bool {
	_, err := h.Ping(ctx, id)
	return err == nil || !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
}
