// Package kad runs the node's distributed hash table: one on an application's
// own network, two on the public IPFS network, for the Internet and the LAN. It
// announces and finds providers and values, and verifies what the upstream DHT
// does not: that a peer holds what was announced, and that a peer answered what
// was asked.
package kad

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/amino"
	"github.com/libp2p/go-libp2p-kad-dht/dual"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/signed"
)

// TableWait is how long a call waits for the first peer in the routing table.
const TableWait = 10 * time.Second

// ErrEmptyTable reports that the routing table has no peer to ask. It matches
// errs.ErrNoPeers.
var ErrEmptyTable = fmt.Errorf("%w: the routing table is empty", errs.ErrNoPeers)

// Layout selects the DHTs.
type Layout int

const (
	// One is a single DHT, for peers everywhere.
	One Layout = iota
	// Two are an Internet DHT and a LAN DHT, neither of which filters addresses.
	Two
	// Public are the two of the public IPFS network, each with the addresses that
	// belong to it.
	Public
)

// Host is the host that a DHT runs on.
type Host interface {
	host.Host
	// Connected reports whether there is a connection to a peer.
	Connected(peer.ID) bool
	// AwaitIdentify returns when a connected peer is identified, or ctx ends.
	AwaitIdentify(context.Context, peer.ID)
	// Learned returns which addresses of a peer may be dialed on the word of
	// another, whose connection it is given.
	Learned(network.Conn, peer.ID, [][]byte) [][]byte
	// AwaitBelief waits until a peer that was learned would be dialed, or ctx ends.
	AwaitBelief(context.Context, peer.ID)
}

// Config configures a [DHT].
type Config struct {
	Host      Host
	Layout    Layout
	Prefix    protocol.ID // of the protocols; not for Public
	Mode      dht.ModeOpt
	Datastore datastore.Batching // of the records of others; nil: in memory
	Store     datastore.Batching // of what is provided; nil: in memory
	Interval  time.Duration      // between two announcements; 0: AnnounceInterval
	Lifetime  time.Duration      // of the records of others; 0: RecordLifetime
	// RecordBytes and ValueBytes bound the provider records and the values of others,
	// unless Options set a datastore for them; 0 is no bound. RecordsFull and
	// ValuesFull are called when some are refused, at most once a minute, with how many
	// there have been.
	RecordBytes, ValueBytes int64
	RecordsFull, ValuesFull func(refused uint64)
	Validators              map[string]record.Validator // by namespace, in addition to pk and ipns; not for Public
	Signed                  []string                    // the namespaces of signed records; not for Public
	Options                 []dht.Option                // applied last
	Accelerated             bool                        // with upstream's accelerated client; only for Public
	Log                     *slog.Logger

	Changed   *signal.Signal // notified when the routing table changes
	Recovered *signal.Signal // there are peers again, after there were none

	// Announced is called after each attempt to announce a CID, with its error.
	Announced func(c cid.Cid, took time.Duration, err error)
	// Progress is called while many CIDs are announced.
	Progress func(Progress)
}

const (
	// AnnounceInterval is how often what is provided is announced, as everywhere on
	// the public network.
	AnnounceInterval = 22 * time.Hour
	// RecordLifetime is how long a provider record is kept.
	RecordLifetime = 48 * time.Hour
)

func (c *Config) interval() time.Duration { return cmp.Or(c.Interval, AnnounceInterval) }

// DHT is a running DHT. Its methods are safe for concurrent use; those that
// wait return errs.ErrClosed when the context of New ends.
type DHT struct {
	cfg        Config
	self       peer.ID
	routing    routing.Routing
	tables     []*dht.IpfsDHT // the Internet's before the LAN's
	protocols  []protocol.ID  // those served in server mode
	validators record.NamespacedValidator
	stop       func() error
	records    *records // nil without a bound
	held       *held    // nil without a bound
	group      *lifecycle.Group
	keep       *keeper
	values     *values
	adverts    *adverts

	accelerated *accelerated // nil without
}

// New starts the DHT. Its goroutines and waiting calls end with ctx or Close,
// the upstream DHT with Close. Call it before the host has a connection.
func New(ctx context.Context, cfg Config) (*DHT, error) {
	d := &DHT{cfg: cfg, self: cfg.Host.ID()}
	d.keep, d.values, d.adverts = newKeeper(d), newValues(d), newAdverts(d)
	if err := d.start(); err != nil {
		return nil, err
	}
	for _, t := range d.tables {
		// These two callbacks are the only notifications of the routing table.
		// Nothing reads them before the first connection.
		table := t.RoutingTable()
		added, removed := table.PeerAdded, table.PeerRemoved
		table.PeerAdded = func(p peer.ID) { added(p); cfg.Changed.Notify() }
		table.PeerRemoved = func(p peer.ID) { removed(p); cfg.Changed.Notify() }
	}
	d.group = lifecycle.NewGroup(ctx)
	if d.cfg.Accelerated {
		if err := d.accelerate(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if d.records != nil {
		d.group.Go(d.records.run)
	}
	if cfg.Store != nil { // there may be something from an earlier run
		if err := errors.Join(d.keep.open(), d.values.load(ctx), d.adverts.load(ctx)); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if d.held != nil { // needs the values of an earlier run
		d.group.Go(func(ctx context.Context) { d.held.count(ctx, d.tables[0].Validator, d.values.value) })
	}
	return d, nil
}

// start builds the upstream DHTs. Upstream applies options in order, the last
// one wins, so the application's come last.
func (d *DHT) start() error {
	always := []dht.Option{
		dht.Mode(d.cfg.Mode), dht.WithCustomMessageSender(func(_ host.Host, protos []protocol.ID) pb.MessageSenderWithDisconnect {
			return newSender(d.cfg.Host, protos)
		}),
		dht.RoutingTableFilter(tableFilter(nil)), dht.QueryFilter(queryFilter(nil)),
	}
	if d.cfg.Lifetime > 0 {
		always = append(always, dht.ProviderManagerOpts(dhtrecords.ProvideValidity(d.cfg.Lifetime)))
	}
	if d.cfg.Datastore != nil {
		always = append(always, dht.Datastore(d.cfg.Datastore))
	}
	if d.cfg.RecordBytes > 0 && !bringsStore(d.cfg.Options, "ProviderDatastore") {
		d.records = newRecords(d.cfg.Datastore, d.self, d.cfg.RecordBytes, d.cfg.RecordsFull)
		always = append(always, dht.ProviderDatastore(d.records))
	}
	if d.cfg.ValueBytes > 0 && !bringsStore(d.cfg.Options, "ValueDatastore") {
		d.held = newHeld(d.cfg.Datastore, d.self, d.cfg.ValueBytes, d.cfg.ValuesFull)
		always = append(always, dht.ValueDatastore(d.held))
	}
	h := bookHost{d.cfg.Host, nil}
	with := func(more ...dht.Option) []dht.Option { return slices.Concat(always, more, d.cfg.Options) }

	if d.cfg.Layout == Public {
		// As dual.New does, except that the two have hosts of their own.
		wan, err := dht.New(bookHost{d.cfg.Host, manet.IsPublicAddr}, with(
			dht.RoutingTableFilter(tableFilter(dht.PublicRoutingTableFilter)),
			dht.QueryFilter(queryFilter(dht.PublicQueryFilter)),
			dht.RoutingTablePeerDiversityFilter(dht.NewRTPeerDiversityFilter(h, amino.DefaultMaxPeersPerIPGroupPerCpl, amino.DefaultMaxPeersPerIPGroup)),
			dht.AddressFilter(only(manet.IsPublicAddr)))...)
		if err != nil {
			return err
		}
		near := with(
			dht.ProtocolExtension(dual.LanExtension),
			dht.RoutingTableFilter(tableFilter(dht.PrivateRoutingTableFilter)),
			dht.QueryFilter(queryFilter(dht.PrivateQueryFilter)),
			dht.AddressFilter(only(func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })))
		if wan.Mode() != dht.ModeClient {
			near = append(near, dht.Mode(dht.ModeServer))
		}
		lan, err := dht.New(h, near...)
		if err != nil {
			return errors.Join(err, wan.Close())
		}
		d.use(&dual.DHT{WAN: wan, LAN: lan})
		d.protocols = []protocol.ID{"/ipfs/kad/1.0.0", "/ipfs/lan/kad/1.0.0"}
		return nil
	}

	d.validators = Validators(d.cfg.Host, d.cfg.Validators, d.cfg.Log)
	for _, namespace := range d.cfg.Signed {
		d.validators[namespace] = signed.Validator{Network: string(d.cfg.Prefix)}
	}
	own := []dht.Option{dht.ProtocolPrefix(d.cfg.Prefix), dht.Validator(d.validators)}
	one, err := dht.New(h, with(own...)...)
	if err != nil {
		return err
	}
	d.routing, d.stop, d.tables = one, one.Close, []*dht.IpfsDHT{one}
	d.protocols = []protocol.ID{d.cfg.Prefix + "/kad/1.0.0"}
	if d.cfg.Layout == Two {
		lan, err := dht.New(h, with(slices.Concat(own, []dht.Option{dht.ProtocolExtension(dual.LanExtension)})...)...)
		if err != nil {
			return errors.Join(err, one.Close())
		}
		d.use(&dual.DHT{WAN: one, LAN: lan})
		d.protocols = append(d.protocols, d.cfg.Prefix+dual.LanExtension+"/kad/1.0.0")
	}
	return nil
}

// only returns a filter of addresses.
func only(good func(ma.Multiaddr) bool) func([]ma.Multiaddr) []ma.Multiaddr {
	return func(list []ma.Multiaddr) []ma.Multiaddr { return ma.FilterAddrs(list, good) }
}

func (d *DHT) use(both *dual.DHT) {
	d.routing, d.stop, d.tables = both, both.Close, []*dht.IpfsDHT{both.WAN, both.LAN}
}

// Close stops announcing and the DHT, and waits for both.
func (d *DHT) Close() error {
	return errors.Join(d.group.Close(), d.keep.close(), d.accelerated.close(), d.stop())
}

// Routing returns the upstream DHT: a *dht.IpfsDHT, or a *dual.DHT for two.
func (d *DHT) Routing() routing.Routing { return d.routing }

// Tables returns the upstream DHTs, the Internet's before the LAN's.
func (d *DHT) Tables() []*dht.IpfsDHT { return slices.Clone(d.tables) }

// Protocols returns the protocols that a DHT server serves.
func (d *DHT) Protocols() []protocol.ID { return slices.Clone(d.protocols) }

// Size returns the number of peers in the routing tables, each counted once.
func (d *DHT) Size() int {
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

// Connected reports whether a peer of a routing table is connected: peers that
// disconnected stay in it for a while.
func (d *DHT) Connected() bool {
	for _, t := range d.tables {
		if slices.ContainsFunc(t.RoutingTable().ListPeers(), d.cfg.Host.Connected) {
			return true
		}
	}
	return false
}

// Serves reports whether the node answers queries now.
func (d *DHT) Serves() bool {
	return slices.ContainsFunc(d.cfg.Host.Mux().Protocols(), func(p protocol.ID) bool { return slices.Contains(d.protocols, p) })
}

// Refresh asks every DHT to fill its routing table, in the background.
func (d *DHT) Refresh() {
	for _, t := range d.tables {
		t.RefreshRoutingTable()
	}
}

// Forget removes the peers for which drop returns true from the routing tables.
func (d *DHT) Forget(drop func(peer.ID) bool) {
	for _, t := range d.tables {
		for _, id := range t.RoutingTable().ListPeers() {
			if drop(id) {
				t.RoutingTable().RemovePeer(id)
			}
		}
	}
}

// active returns the DHTs that records go to: those that have peers, otherwise
// the first.
func (d *DHT) active() []*dht.IpfsDHT {
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

// awaitTable waits until the routing table has a peer.
func (d *DHT) awaitTable(ctx context.Context) error {
	timer := time.NewTimer(TableWait)
	defer timer.Stop()
	for {
		changed := d.cfg.Changed.Wait()
		if d.Size() > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return ErrEmptyTable
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrEmptyTable, context.Cause(ctx))
		}
	}
}

// bind returns a context that ends with ctx or with the node, in that case with
// the cause errs.ErrClosed.
func (d *DHT) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.group.Context(), func() { cancel(errs.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// explain turns the errors of the upstream DHT into those of this package.
func (d *DHT) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrEmptyTable):
		return err
	case errors.Is(err, kb.ErrLookupFailure) || d.Size() == 0:
		return fmt.Errorf("%w: %w", ErrEmptyTable, err)
	case errors.Is(err, routing.ErrNotFound):
		return errs.ErrNotFound
	default:
		return err
	}
}
