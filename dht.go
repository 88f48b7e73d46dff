package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/ipfs/boxo/ipns"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
)

var dhtModes = map[DHTMode]dht.ModeOpt{
	DHTModeAutoServer: dht.ModeAutoServer,
	DHTModeAuto:       dht.ModeAuto,
	DHTModeServer:     dht.ModeServer,
	DHTModeClient:     dht.ModeClient,
}

// dhtPart is the node's DHT: one on a network of the application's own, two,
// for the Internet and the LAN, on the public IPFS network.
type dhtPart struct {
	routing.Routing
	host      *nethost.Host
	tables    []*dht.IpfsDHT // the Internet's before the LAN's
	protocols []protocol.ID  // those served in server mode
	stop      func() error
}

// newDHT builds the DHT. changed is called whenever a routing table gains or
// loses a peer.
func newDHT(cfg *config, h *nethost.Host, changed func()) (*dhtPart, error) {
	opts := []dht.Option{dht.Mode(dhtModes[cfg.effectiveDHTMode()])}
	if cfg.datastore != nil {
		opts = append(opts, dht.Datastore(cfg.datastore))
	}
	d := &dhtPart{host: h}
	if cfg.ipfs {
		both, err := dual.New(h, dual.DHTOption(append(opts, cfg.dhtOptions...)...))
		if err != nil {
			return nil, err
		}
		d.Routing, d.stop, d.tables = both, both.Close, []*dht.IpfsDHT{both.WAN, both.LAN}
		d.protocols = []protocol.ID{"/ipfs/kad/1.0.0", "/ipfs/lan/kad/1.0.0"}
	} else {
		prefix := protocol.ID(cfg.protocolPrefix())
		// No address filters: on an application's own network a peer on
		// loopback or on the LAN is as good as any.
		opts = append(opts, dht.ProtocolPrefix(prefix), dht.Validator(validators(cfg, h)))
		one, err := dht.New(h, append(opts, cfg.dhtOptions...)...)
		if err != nil {
			return nil, err
		}
		d.Routing, d.stop, d.tables = one, one.Close, []*dht.IpfsDHT{one}
		d.protocols = []protocol.ID{prefix + "/kad/1.0.0"}
		if cfg.network == "ipfs" {
			// Among themselves kubo nodes without public addresses speak the
			// LAN's protocol, js-libp2p ones the other: meet both.
			lan, err := dht.New(h, append(opts, append([]dht.Option{dht.ProtocolExtension(dual.LanExtension)}, cfg.dhtOptions...)...)...)
			if err != nil {
				return nil, errors.Join(err, one.Close())
			}
			both := &dual.DHT{WAN: one, LAN: lan}
			d.Routing, d.stop, d.tables = both, both.Close, []*dht.IpfsDHT{one, lan}
			d.protocols = append(d.protocols, prefix+dual.LanExtension+"/kad/1.0.0")
		}
	}
	for _, t := range d.tables {
		// The routing table has these two callbacks and nothing else to
		// subscribe to. They are set before the host has a connection, so
		// nothing reads them yet.
		added, removed := t.RoutingTable().PeerAdded, t.RoutingTable().PeerRemoved
		t.RoutingTable().PeerAdded = func(p peer.ID) { added(p); changed() }
		t.RoutingTable().PeerRemoved = func(p peer.ID) { removed(p); changed() }
	}
	return d, nil
}

// validators are those for public keys and IPNS names, which every libp2p
// network knows, and the application's.
func validators(cfg *config, h host.Host) record.NamespacedValidator {
	v := record.NamespacedValidator{
		"pk":   record.PublicKeyValidator{},
		"ipns": ipns.Validator{KeyBook: h.Peerstore()},
	}
	for namespace, own := range cfg.validators {
		v[namespace] = own
	}
	return v
}

// size is the number of peers in the routing tables, each counted once.
func (d *dhtPart) size() int {
	if len(d.tables) == 1 {
		return d.tables[0].RoutingTable().Size()
	}
	peers := make(map[peer.ID]bool)
	for _, t := range d.tables {
		for _, p := range t.RoutingTable().ListPeers() {
			peers[p] = true
		}
	}
	return len(peers)
}

// connected reports whether there is a connection to a peer of a routing
// table: those that are gone stay in it for a while.
func (d *dhtPart) connected() bool {
	for _, t := range d.tables {
		if slices.ContainsFunc(t.RoutingTable().ListPeers(), d.host.Connected) {
			return true
		}
	}
	return false
}

// serves reports whether the node answers queries now.
func (d *dhtPart) serves() bool {
	return slices.ContainsFunc(d.host.Mux().Protocols(), func(p protocol.ID) bool { return slices.Contains(d.protocols, p) })
}

// active are the DHTs that records go to: those that have peers, or else the
// first.
func (d *dhtPart) active() []*dht.IpfsDHT {
	var list []*dht.IpfsDHT
	for _, t := range d.tables {
		if t.RoutingTable().Size() > 0 {
			list = append(list, t)
		}
	}
	if len(list) == 0 {
		list = d.tables[:1]
	}
	return list
}

// refresh asks every DHT to fill its routing table, in the background.
func (d *dhtPart) refresh() {
	for _, t := range d.tables {
		t.RefreshRoutingTable()
	}
}

// drop removes peers from the routing tables.
func (d *dhtPart) drop(which func(peer.ID) bool) {
	for _, t := range d.tables {
		for _, id := range t.RoutingTable().ListPeers() {
			if which(id) {
				t.RoutingTable().RemovePeer(id)
			}
		}
	}
}

func (d *dhtPart) close() error { return d.stop() }

// needDHT is the guard of the methods that use the DHT.
func (n *Node) needDHT() error {
	switch {
	case n.closed():
		return ErrClosed
	case n.dht == nil:
		return disabled("the DHT", "leave WithoutDHT out")
	default:
		return nil
	}
}

// lookupError explains a failed lookup: with an empty routing table there is
// nobody to ask.
func (n *Node) lookupError(what string, err error) error {
	if n.dht.size() == 0 || errors.Is(err, kb.ErrLookupFailure) {
		return n.fail(fmt.Errorf("%s: %w: %s", what, ErrNoPeers, n.emptyTable()))
	}
	if errors.Is(err, routing.ErrNotFound) {
		return n.fail(fmt.Errorf("%s: %w", what, ErrNotFound))
	}
	return n.fail(fmt.Errorf("%s: %w", what, err))
}

// emptyTable says why the routing table may be empty and what to do.
func (n *Node) emptyTable() string {
	why := "the routing table is empty"
	switch {
	case !n.cfg.looksForPeers() && n.base.PeerCount() == 0:
		return why + " and nothing says where to find peers; give WithBootstrapPeers or WithMDNS, or call Connect"
	case n.base.PeerCount() == 0:
		return why + " because no peer is connected" + n.boot.complaint()
	default:
		return fmt.Sprintf("%s though %d peers are connected: none of them serves the DHT protocol %v; check that WithNetwork is the same everywhere and that not all are DHT clients",
			why, n.base.PeerCount(), n.dht.protocols)
	}
}

// FindPeer returns the addresses of a peer: those of a connected peer at once,
// otherwise what the DHT knows. It never returns a peer without an address and
// no error. The error is ErrNotFound when the DHT does not know the peer,
// ErrNoPeers when there was nobody to ask, ErrDisabled without a DHT, and
// ErrClosed after Close.
func (n *Node) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	if err := n.needDHT(); err != nil {
		return peer.AddrInfo{}, err
	}
	if err := id.Validate(); err != nil {
		return peer.AddrInfo{}, fmt.Errorf("p2pnode: find peer: %w", err)
	}
	if id == n.id {
		return n.AddrInfo(), nil
	}
	ctx, done := n.bind(ctx)
	defer done()
	ai, err := n.findPeer(ctx, id)
	if err != nil {
		return peer.AddrInfo{}, n.lookupError("find peer "+id.String(), err)
	}
	return ai, nil
}

// finder lets the host look peers up as FindPeer does.
type finder func(context.Context, peer.ID) (peer.AddrInfo, error)

func (f finder) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) { return f(ctx, id) }

func (n *Node) findPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	known := func() peer.AddrInfo { return n.base.Peerstore().PeerInfo(id) }
	n.base.AwaitIdentify(ctx, id)
	if n.base.Connected(id) && len(known().Addrs) > 0 {
		return known(), nil
	}
	ai, err := n.dht.FindPeer(ctx, id)
	switch {
	case err == nil && len(ai.Addrs) == 0:
		// The lookup may have ended because the peer has just connected to
		// us; its addresses arrive with identify.
		n.base.AwaitIdentify(ctx, id)
		ai = known()
	case errors.Is(err, routing.ErrNotFound):
		// The DHT (v0.42) says so too when it was told the addresses of the
		// peer but did not get to dial it before the lookup ended, as happens
		// with DHT clients. They are in the peerstore.
		ai = known()
	case err != nil:
		return peer.AddrInfo{}, err
	}
	if len(ai.Addrs) == 0 {
		return peer.AddrInfo{}, routing.ErrNotFound
	}
	return ai, nil
}

// PutValue stores a record in the DHT under a key like /pk/… or
// /<namespace>/…, for whose namespace there is a validator (see
// WithValidator). It returns nil once at least one other peer has proved to
// hold the record. Records expire after 48 hours. The error is ErrNoPeers when
// nobody could be asked to hold it, ErrDisabled without a DHT, and ErrClosed
// after Close.
func (n *Node) PutValue(ctx context.Context, key string, value []byte) error {
	if err := n.needDHT(); err != nil {
		return err
	}
	ctx, done := n.bind(ctx)
	defer done()
	what := fmt.Sprintf("put value %q", key)
	if err := n.checkKey(key); err != nil {
		return fmt.Errorf("p2pnode: %s: %w", what, err)
	}
	if err := n.content.waitForTable(ctx); err != nil {
		return n.lookupError(what, err)
	}
	var errs []error
	held := false
	for _, table := range n.dht.active() {
		err := putValue(ctx, table, key, value)
		held = held || err == nil
		errs = append(errs, err)
	}
	if !held {
		return n.lookupError(what, errors.Join(errs...))
	}
	return nil
}

// putValue stores a record in one DHT, and asks for it: the DHT does not tell
// who took it.
func putValue(ctx context.Context, table *dht.IpfsDHT, key string, value []byte) error {
	if err := table.PutValue(ctx, key, value); err != nil {
		return err
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return err
	}
	closest, err := table.GetClosestPeers(ctx, key)
	if err != nil {
		return err
	}
	for _, p := range closest {
		if rec, _, err := messenger.GetValue(ctx, p, key); err == nil && rec != nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: none of the %d closest peers keeps the record", ErrNoPeers, len(closest))
}

// GetValue returns the best record that the DHT has under a key, as the
// validator of its namespace judges. The error is ErrNotFound when there is
// none, ErrNoPeers when there was nobody to ask, ErrDisabled without a DHT, and
// ErrClosed after Close.
func (n *Node) GetValue(ctx context.Context, key string) ([]byte, error) {
	if err := n.needDHT(); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("get value %q", key)
	if err := n.checkKey(key); err != nil {
		return nil, fmt.Errorf("p2pnode: %s: %w", what, err)
	}
	ctx, done := n.bind(ctx)
	defer done()
	value, err := n.dht.GetValue(ctx, key)
	if err != nil {
		return nil, n.lookupError(what, err)
	}
	return value, nil
}

// checkKey refuses a key for whose namespace there is no validator: the DHT
// would say that it found nothing. What WithDHTOptions added is not known here.
func (n *Node) checkKey(key string) error {
	namespace, _, err := record.SplitKey(key)
	if err != nil {
		return errors.New("a key looks like /namespace/name")
	}
	if namespace == "pk" || namespace == "ipns" || n.cfg.validators[namespace] != nil || len(n.cfg.dhtOptions) > 0 {
		return nil
	}
	return fmt.Errorf("no validator for the namespace %q; give WithValidator, on every node", namespace)
}
