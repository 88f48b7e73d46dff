package p2pnode

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/lan"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/relays"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/streams"
)

// closeBudget bounds each part's close, so that Close always ends.
const closeBudget = 5 * time.Second

// Node is a libp2p host, a Kademlia DHT, gossipsub, discovery and relaying
// under one handle. New makes it and Close ends it. All methods are safe for
// concurrent use, any number of nodes can live in one process, and after Close
// every method returns ErrClosed or, where it has no error, does nothing.
type Node struct {
	cfg *config // read-only
	log *slog.Logger
	id  peer.ID
	key crypto.PrivKey

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	stack  lifecycle.Stack  // the one list of what to close, in reverse
	group  *lifecycle.Group // goroutines that belong to no part

	data    *dataPart       // nil without a data directory
	limits  *limits.Manager // nil when WithLibp2pOptions brings a resource manager
	base    *nethost.Host   // the host itself
	dialer  nethost.Dialer
	host    host.Host // the same, finding unknown peers in the DHT
	watch   *watcher
	dht     *kad.DHT       // nil without a DHT
	pubsub  *gossip.Router // nil without pubsub
	streams *streams.Server
	relay   *relays.Client
	keeper  *keeper.Keeper
	access  *access.List

	recovered signal.Signal // there is somebody to talk to, after there was nobody

	listenErrors []*ListenError
	counters
}

// phase is one step of New.
type phase struct {
	name string
	run  func(*Node) error
}

// phases is the order in which a node comes up. It listens when every part
// has registered its protocols, so that no peer finds one missing, and looks
// for peers last.
func phases() []phase {
	return []phase{
		{"data directory", startDataDir},
		{"identity", startIdentity},
		{"host", startHost},
		{"events", startEvents},
		{"dht", startDHT},
		{"pubsub", startPubSub},
		{"streams", startStreams},
		{"relay", startRelay},
		{"keeper", startKeeper},
		{"metrics", startMetrics},
		{"listen", startListening},
		{"mdns", startMDNS},
		{"recovery", startRecovery},
		{"keeping peers", startKeeping},
	}
}

// New builds and starts a node. It returns once the local parts are up and
// does not wait for the network: WaitReady does. The ctx bounds New alone; the
// node runs until Close.
//
// Wrong options are reported all at once, each an *OptionError, before
// anything is started. A part that cannot start is reported as a *StartError.
// On error nothing that New started is left running.
func New(ctx context.Context, opts ...Option) (*Node, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.logger, watch: newWatcher()}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	n.group = lifecycle.NewGroup(n.ctx)
	n.stack.Push("goroutines", closeBudget, n.group.Close)
	started := false
	defer func() {
		if !started { // a phase failed, or a callback of the caller's panicked
			n.cancel()
			_ = n.stack.Close() // a failed phase has reported its result
		}
	}()
	for _, p := range phases() {
		err := ctx.Err()
		if err == nil {
			err = p.run(n)
		}
		if err == nil && cfg.afterPhase != nil {
			err = cfg.afterPhase(p.name)
		}
		if err != nil {
			n.cancel()
			return nil, &StartError{Step: p.name, Err: errors.Join(err, n.stack.Close())}
		}
	}
	started = true
	if n.log.Enabled(ctx, slog.LevelInfo) { // the addresses are not for free
		n.log.Info("node started", "id", n.id, "addrs", n.Addrs())
	}
	return n, nil
}

// Close stops the node: blocked calls return ErrClosed, topics are left,
// streams reset, connections closed, and every goroutine that the node started
// has ended when it returns. A part that hangs for 5 seconds is given up and
// named in the error, so Close always ends. All errors are joined, each
// labelled with its part. Close may be called more than once and concurrently;
// every call returns the first one's result.
func (n *Node) Close() error {
	n.cancel()
	if err := n.stack.Close(); err != nil {
		return fmt.Errorf("p2pnode: close: %w", err)
	}
	return nil
}

func startIdentity(n *Node) (err error) {
	switch {
	case n.cfg.key != nil:
		n.key = n.cfg.key
	case n.cfg.identityFile != "":
		var created bool
		if n.key, created, err = loadOrCreateIdentity(n.cfg.identityFile); err != nil {
			return &OptionError{Option: "WithIdentityFile", Err: err}
		}
		if created {
			n.log.Info("identity created", "file", n.cfg.identityFile)
		}
	case n.data != nil:
		if n.key, err = n.data.identity(); err != nil {
			return &OptionError{Option: "WithDataDir", Err: err}
		}
	default:
		if n.key, err = GenerateKey(KeyEd25519); err != nil {
			return err
		}
	}
	if n.id, err = PeerID(n.key); err != nil {
		return err
	}
	if slices.Contains(n.cfg.banned, n.id) {
		return optionErrorf("WithBannedPeers", "%s is this node's own ID; leave it out", n.id)
	}
	// One list of bootstrap peers must do for all of them.
	for _, l := range []struct {
		option string
		peers  *[]peer.AddrInfo
	}{{"WithBootstrapPeers", &n.cfg.bootstrap}, {"WithPersistentPeers", &n.cfg.persistent}, {"WithAutoRelay", &n.cfg.autoRelays}} {
		others := slices.DeleteFunc(slices.Clone(*l.peers), func(p peer.AddrInfo) bool { return p.ID == n.id })
		if len(others) < len(*l.peers) {
			n.log.Info("leaving out this node's own ID", "option", l.option)
			*l.peers = others
		}
	}
	return nil
}

func startHost(n *Node) (err error) {
	cfg := n.cfg
	n.access = access.New(access.Config{
		Allowed: cfg.allowed, Banned: cfg.banned, Store: n.data.store(), Now: time.Now, Log: n.log,
	})
	n.relay = relays.New(relays.Config{
		Disabled: cfg.noRelay, Relays: cfg.autoRelays, Announce: cfg.announce,
		Reachability: cfg.reachability, HolePunching: cfg.holePunching, PortMapping: cfg.portMapping,
		Reserved: func(id peer.ID) { n.watch.emit(EventRelayReserved{ID: id}) },
		Lost:     func(id peer.ID) { n.watch.emit(EventRelayLost{ID: id}) },
		Punched: func(id peer.ID, took time.Duration, err error) {
			n.watch.emit(EventHolePunched{ID: id, Took: took, Err: err})
		},
		Log: n.log,
	})
	services := n.relay.Options()
	if cfg.metrics != nil {
		n.bandwidth = metrics.NewBandwidthCounter()
		services = append(services, libp2p.BandwidthReporter(n.bandwidth))
	}
	n.base, err = nethost.New(nethost.Config{
		Key: n.key, UserAgent: cfg.userAgent,
		Transports: cfg.transportKinds(), Security: cfg.securityProtocols(), PSK: cfg.psk,
		ConnLow: cfg.connLow, ConnHigh: cfg.connHigh,
		NewLimits: func() (network.ResourceManager, error) {
			n.limits, err = limits.New(limits.Config{
				Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: n.log,
				Reached: func(limit string, refused uint64) { n.watch.emit(EventLimitReached{Limit: limit, Refused: refused}) },
			})
			return n.limits, err
		},
		AddrsFactory: n.relay.Announce, Gater: gater(n.access),
		Services: services, Options: cfg.libp2pOptions,
	})
	if err != nil {
		return err
	}
	n.stack.Push("host", closeBudget, func() error {
		n.relay.Settle()
		return n.base.Close()
	})
	n.host = n.base
	n.dialer = nethost.Dialer{Host: n.base, Via: n.base, Refusal: n.access.Refusal}
	return nil
}

func startEvents(n *Node) error {
	// Before the host: its close would wait for a bus that nobody drains.
	group := lifecycle.NewGroup(context.WithoutCancel(n.ctx))
	n.stack.Push("events", closeBudget, group.Close)
	return n.watch.follow(group, n.base, n.relay.Disconnected, n.log)
}

func startDHT(n *Node) (err error) {
	if n.cfg.noDHT {
		return nil
	}
	k := dhtConfig(n.cfg)
	k.Host, k.Changed, k.Recovered = n.base, &n.watch.change, &n.recovered
	k.Announced = func(c cid.Cid, took time.Duration, err error) {
		n.watch.emit(EventProvided{CID: c, Took: took, Err: dhtError(n, "provide "+c.String(), err)})
	}
	if n.dht, err = kad.New(n.ctx, k); err != nil {
		return err
	}
	n.stack.Push("dht", closeBudget, n.dht.Close)
	n.host = routedhost.Wrap(n.base, n.dht)
	n.dialer.Via = n.host
	return nil
}

func startPubSub(n *Node) (err error) {
	if n.cfg.noPubSub {
		return nil
	}
	n.pubsub, err = gossip.New(context.WithoutCancel(n.ctx), gossip.Config{
		Host: n.base, Blacklist: access.Blacklist{List: n.access}, MaxMessageSize: n.cfg.maxMessageSize,
		Options: n.cfg.pubsubOptions, Log: n.log, Closing: n.ctx.Done(),
		Changed:    n.watch.change.Notify,
		PeerJoined: func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerJoined{Topic: topic, ID: id}) },
		TopicLeft:  n.watch.topicLeft,
		PeerLeft:   func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerLeft{Topic: topic, ID: id}) },
	})
	if err != nil {
		return err
	}
	n.stack.Push("pubsub", closeBudget, n.pubsub.Close)
	return nil
}

func startStreams(n *Node) error {
	n.streams = streams.New(n.ctx, streams.Config{Host: n.base, Own: n.cfg.dhtProtocols(), Log: n.log})
	n.stack.Push("stream handlers", closeBudget, n.streams.Close)
	return nil
}

func startRelay(n *Node) error {
	if n.cfg.relayService {
		service, err := relays.Serve(n.base, relays.Limits(n.cfg.relayLimits), n.access, !n.cfg.ipfs)
		if err != nil {
			return err
		}
		n.stack.Push("relay service", closeBudget, service.Close)
	}
	if n.relay.Enabled() {
		return n.relay.Follow(n.group, n.base)
	}
	return nil
}

func startMetrics(n *Node) error {
	if n.cfg.metrics == nil {
		return nil
	}
	c := newCollector(n)
	if err := n.cfg.metrics.Register(c); err != nil {
		return &OptionError{Option: "WithMetrics", Err: err}
	}
	n.stack.Push("metrics", closeBudget, func() error {
		n.cfg.metrics.Unregister(c)
		return nil
	})
	return nil
}

func startListening(n *Node) error {
	list, _ := n.cfg.listenAddrs()
	for _, f := range n.base.Listen(list) {
		n.log.Warn("not listening", "addr", f.Addr, "err", f.Err)
		n.listenErrors = append(n.listenErrors, &ListenError{Addr: f.Addr, Err: f.Err})
	}
	if err := checkListening(n.cfg, n.listenErrors); err != nil {
		return err
	}
	n.relay.Open(n.base)
	return nil
}

func startMDNS(n *Node) error {
	if !n.cfg.mdns {
		return nil
	}
	m, err := lan.Start(n.base, n.cfg.mdnsServiceName(), func(ai peer.AddrInfo) { n.keeper.Found(ai, "mdns") }, n.log)
	if err != nil {
		return err
	}
	n.stack.Push("mdns", closeBudget, m.Close)
	n.group.Go(func(ctx context.Context) { m.Follow(ctx, &n.watch.moved) })
	return nil
}

// startRecovery begins to watch for what a node has to recover from by itself:
// a machine that slept, a network that changed, peers that are back.
func startRecovery(n *Node) error {
	n.group.Go(func(ctx context.Context) {
		keeper.WatchClock(ctx, time.Now, func() {
			n.log.Info("the machine has slept")
			n.watch.moved.Notify()
		})
	})
	check := &keeper.Checker{
		Peers: n.base.PeerIDs, Close: n.base.Disconnect, Log: n.log,
		Alive: func(ctx context.Context, id peer.ID) bool { return alive(ctx, n.base, id) },
	}
	n.group.Go(func(ctx context.Context) { check.Run(ctx, &n.watch.moved) })
	if n.dht == nil {
		return nil
	}
	n.group.Go(func(ctx context.Context) {
		keeper.WatchRecovery(ctx, &n.watch.change,
			func() bool { return n.base.PeerCount() > 0 },
			n.dht.Connected,
			n.recovered.Notify)
	})
	return nil
}

// closed reports whether Close has begun.
func (n *Node) closed() bool { return n.ctx.Err() != nil }

// bind returns a context that ends with ctx or with the node, then with the
// cause ErrClosed.
func (n *Node) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(n.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// ID returns the node's peer ID, also after Close.
func (n *Node) ID() peer.ID { return n.id }

// Addrs returns the addresses that the node announces, each ending in
// /p2p/<id>, so that every one of them can be handed to somebody else as it
// is. After Close it returns nil.
func (n *Node) Addrs() []ma.Multiaddr {
	if n.closed() {
		return nil
	}
	return withID(n.base, n.base.Addrs())
}

// AddrInfo returns the node's ID with the addresses that it announces, the
// form that Connect takes. After Close it holds the ID alone.
func (n *Node) AddrInfo() peer.AddrInfo {
	if n.closed() {
		return peer.AddrInfo{ID: n.id}
	}
	return peer.AddrInfo{ID: n.id, Addrs: n.base.Addrs()}
}

// Host returns the libp2p host, for what the node does not offer itself. It
// finds peers without known addresses in the DHT. The node closes it.
func (n *Node) Host() host.Host { return n.host }

// DHT returns the DHT, nil without one. The node closes it.
func (n *Node) DHT() routing.Routing {
	if n.dht == nil {
		return nil
	}
	return n.dht.Routing()
}

// PubSub returns the gossipsub router, nil without one. A topic can be joined
// once in a router: those in use by Publish and Subscribe are joined already.
func (n *Node) PubSub() *pubsub.PubSub {
	if n.pubsub == nil {
		return nil
	}
	return n.pubsub.PubSub()
}

// shortHash names something that cannot stand for itself.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
