package p2pnode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/certs"
	"github.com/go-p2pnode/p2pnode/internal/datadir"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/lan"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/logguard"
	"github.com/go-p2pnode/p2pnode/internal/meet"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/portmap"
	"github.com/go-p2pnode/p2pnode/internal/reach"
	"github.com/go-p2pnode/p2pnode/internal/relays"
	"github.com/go-p2pnode/p2pnode/internal/streams"
)

// phase is one step of New.
type phase struct {
	name string
	run  func(*Node) error
}

// phases is the order in which a node starts. It listens once every part has
// registered its protocols, so that no peer finds one missing, and dials peers
// last.
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
		{"reachability", startReachability},
		{"keeper", startKeeper},
		{"metrics", startMetrics},
		{"listen", startListening},
		{"mdns", startMDNS},
		{"recovery", startRecovery},
		{"rendezvous", startRendezvous},
		{"keeping peers", startKeeping},
	}
}

// New builds and starts a node. It returns once the local parts are up and does
// not wait for the network: [Node.WaitReady] does. The ctx bounds New only; the
// node runs until [Node.Close].
//
// Invalid options are reported all at once, each as an [*OptionError], before
// anything starts. A part that cannot start is reported as a [*StartError],
// which also matches ctx's error if that ended New. On error, nothing that New
// started is left running.
func New(ctx context.Context, opts ...Option) (*Node, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, watch: newWatcher()}
	if cfg.has("WithLogger") {
		guard := logguard.New(cfg.logger.Handler())
		n.stack.Push("logger", closeBudget, guard.Close) // first, to be closed last
		cfg.logger = slog.New(guard)
	}
	n.log = cfg.logger
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
	if n.log.Enabled(ctx, slog.LevelInfo) { // collecting the addresses costs
		n.log.Info("node started", "id", n.id, "addrs", n.Addrs())
	}
	return n, nil
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
	if n.self, err = ma.NewMultiaddr("/p2p/" + n.id.String()); err != nil {
		return err
	}
	if slices.Contains(n.cfg.banned, n.id) {
		return optionErrorf("WithBannedPeers", "%s is this node's own ID; leave it out", n.id)
	}
	// One list of bootstrap peers must work for all of them.
	for _, l := range []struct {
		option string
		peers  *[]peer.AddrInfo
	}{{"WithBootstrapPeers", &n.cfg.bootstrap}, {"WithTicket", &n.cfg.ticketPeers}, {"WithPersistentPeers", &n.cfg.persistent}, {"WithAutoRelay", &n.cfg.autoRelays}} {
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
		Disabled: cfg.noRelay, Relays: cfg.autoRelays, Announce: cfg.announce, Extra: cfg.announceExtra, Hidden: cfg.noAnnounce,
		Discover: cfg.findRelays, HolePunching: cfg.holePunching,
		Reserved: func(id peer.ID, from relays.Source) {
			n.watch.emit(EventRelayReserved{ID: id, Source: RelaySource(from)})
			n.watch.change.Notify()
		},
		Lost: func(id peer.ID, from relays.Source) {
			n.watch.emit(EventRelayLost{ID: id, Source: RelaySource(from)})
			n.watch.change.Notify()
		},
		Punched: func(id peer.ID, took time.Duration, err error) {
			n.watch.emit(EventHolePunched{ID: id, Took: took, Err: causes.Cleaned(err)})
		},
		Log: n.log, Self: n.id, Change: &n.watch.change,
		Dial:    func(ctx context.Context, ai peer.AddrInfo) error { return n.dialer.Connect(ctx, ai) },
		Welcome: func(id peer.ID) bool { return n.access.Allows(id) && !n.keeper.Released(id) },
		Reach:   func() network.Reachability { return relayReachability(n) },
		Search: func(ctx context.Context) iter.Seq2[peer.AddrInfo, error] {
			return findRelays(ctx, n)
		},
	})
	services := append(n.relay.Options(), reach.Options(cfg.effectiveReachability(), cfg.autoNAT)...)
	if cfg.portMapping {
		services = append(services, mapPorts(n))
	}
	if cfg.metrics != nil {
		n.bandwidth = metrics.NewBandwidthCounter()
		services = append(services, libp2p.BandwidthReporter(n.bandwidth))
	}
	host := nethost.Config{
		Key: n.key, UserAgent: cfg.userAgent, Public: cfg.ipfs,
		Transports: cfg.transportKinds(), Security: cfg.securityProtocols(), PSK: cfg.psk,
		ConnLow: cfg.connLow, ConnHigh: cfg.connHigh, Listen: cfg.listen, DialTimeout: cfg.dialTimeout,
		PeerStreams: limits.Limits(cfg.limits).PeerStreams(cfg.ipfs), AlsoTCP: cfg.holePunching,
		NewLimits: func() (network.ResourceManager, error) {
			n.limits, err = limits.New(limits.Config{
				Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: n.log,
				Reached: func(limit string, refused uint64) { n.watch.emit(EventLimitReached{Limit: limit, Refused: refused}) },
			})
			return n.limits, err
		},
		AddrsFactory: func(list []ma.Multiaddr) []ma.Multiaddr {
			if t := n.reach.Load(); t != nil {
				list = t.Announce(list)
			}
			return n.relay.Announce(list)
		},
		Gater: gater(n), AutoNAT: cfg.autoNAT, Services: services, Options: cfg.libp2pOptions,
	}
	if err := setTLS(&host, cfg, n.log); err != nil {
		return err
	}
	if n.base, err = nethost.New(host); err != nil {
		return tlsError(cfg, err)
	}
	n.stack.Push("host", closeBudget, n.base.Close)
	n.base.Given(cfg.autoRelays...)
	n.host = nethost.Facing(n.base, n.base)
	n.dialer = nethost.Dialer{Host: n.base, Via: n.base, Refusal: n.access.Refusal}
	return nil
}

// mapPorts is the host's option for port mapping.
func mapPorts(n *Node) libp2p.Option {
	return libp2p.NATManager(func(on network.Network) basichost.NATManager {
		n.ports = portmap.Start(portmap.Config{
			Listen: on.ListenAddresses, Log: n.log,
			Changed: func(m portmap.Mapping, mapped bool) {
				if mapped {
					n.watch.emit(EventPortMapped{Protocol: m.Protocol, Port: m.Port, External: m.External})
				} else {
					n.watch.emit(EventPortUnmapped{Protocol: m.Protocol, Port: m.Port, External: m.External})
				}
				n.watch.change.Notify()
			},
		})
		listens := func(network.Network, ma.Multiaddr) { n.ports.Look() }
		on.Notify(&network.NotifyBundle{ListenF: listens, ListenCloseF: listens})
		// The host closes it too, but not if it cannot be made.
		n.stack.Push("port mapping", closeBudget, n.ports.Close)
		return n.ports
	})
}

// setTLS sets the host's TLS for WebSocket. It reads the files of WithTLSFiles.
func setTLS(to *nethost.Config, c *config, log *slog.Logger) error {
	conf := c.tls
	if conf != nil {
		dial := conf.Clone()
		// These are the listener's.
		dial.ServerName, dial.NextProtos = "", nil
		to.DialTLS = dial
	}
	if !c.hasCertificate() {
		return nil
	}
	to.TLS = conf.Clone() // nil stays nil
	current := func() *tls.Certificate { return nil }
	if c.tlsCert != "" {
		files, err := certs.Open(c.tlsCert, c.tlsKey, log)
		if err != nil {
			return &OptionError{Option: "WithTLSFiles", Err: err}
		}
		if to.TLS == nil {
			to.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		to.TLS.GetCertificate = files.Get
		current = files.Current
	} else if len(conf.Certificates) > 0 {
		current = func() *tls.Certificate { return &conf.Certificates[0] }
	}
	to.ServerName = func(ip net.IP) string {
		if pair := current(); pair != nil {
			return certs.Name(pair, ip)
		}
		return ""
	}
	if pair := current(); pair != nil {
		if leaf, err := x509.ParseCertificate(pair.Certificate[0]); err == nil && time.Now().After(leaf.NotAfter) {
			log.Warn("certificate has expired: nobody can dial WebSocket with TLS", "at", leaf.NotAfter)
		}
	}
	return nil
}

// tlsError files an error of the host's start under its option.
func tlsError(c *config, err error) error {
	if !errors.Is(err, nethost.ErrWebSocketReplaced) {
		return err
	}
	option := "WithTLSConfig"
	if c.tlsCert != "" {
		option = "WithTLSFiles"
	}
	return &OptionError{Option: option, Err: nethost.ErrWebSocketReplaced}
}

func startEvents(n *Node) error {
	// Closed before the host, whose close would wait for a subscriber that no
	// longer drains.
	group := lifecycle.NewGroup(context.WithoutCancel(n.ctx))
	n.stack.Push("events", closeBudget, group.Close)
	n.watch.found = n.cfg.autoNAT && n.cfg.reachability == network.ReachabilityUnknown
	return n.watch.follow(group, n.base, n.self, func(id peer.ID) {
		n.relay.Disconnected(id)
		n.losses.Add(id)
	}, func(id peer.ID) {
		if n.base.Doubtful(id) {
			n.group.Go(func(ctx context.Context) { check(ctx, n, id) })
		}
	}, n.log)
}

func startDHT(n *Node) (err error) {
	if n.cfg.noDHT {
		return nil
	}
	k := dhtConfig(n.cfg)
	switch {
	case n.cfg.datastore != nil:
		k.Store = n.cfg.datastore
	case n.data != nil:
		if s := n.data.openRecords(); s != nil {
			n.stack.Push("datastore", closeBudget, s.Close)
			k.Store = s
		}
	}
	k.Datastore = k.Store
	k.Host, k.Changed, k.Recovered = n.base, &n.watch.change, &n.recovered
	k.RecordBytes = n.cfg.recordBytes()
	k.RecordsFull = func(refused uint64) {
		n.log.Warn("limit reached: provider records of others are dropped", "limit", "ProviderRecords", "dropped", refused)
		n.watch.emit(EventLimitReached{Limit: "ProviderRecords", Refused: refused})
	}
	k.Announced = func(c cid.Cid, took time.Duration, err error) {
		n.watch.emit(EventProvided{CID: c, Took: took, Err: causes.Cleaned(dhtError(n, "provide "+c.String(), err))})
	}
	k.Progress = func(p kad.Progress) { n.watch.emit(EventProvideProgress{Keys: p.Keys, Pending: p.Pending}) }
	if n.dht, err = kad.New(n.ctx, k); err != nil {
		return err
	}
	n.stack.Push("dht", closeBudget, n.dht.Close)
	if err := n.dht.FollowMode(n.group, func(serves bool) {
		n.log.Info("DHT mode", "server", serves)
		n.watch.emit(EventDHTModeChanged{Server: serves})
	}); err != nil {
		return err
	}
	n.dialer.Via = routedhost.Wrap(n.base, n.dht)
	n.host = nethost.Facing(n.dialer.Via, n.base)
	return nil
}

func startPubSub(n *Node) (err error) {
	if n.cfg.noPubSub {
		return nil
	}
	queue, total := n.cfg.pubsubBytes()
	n.pubsub, err = gossip.New(context.WithoutCancel(n.ctx), gossip.Config{
		Host: n.base, Blacklist: access.Blacklist{List: n.access}, MaxMessageSize: n.cfg.maxMessageSize, QueueBytes: queue, TotalBytes: total,
		Options: n.cfg.pubsubOptions, Log: n.log, Closing: n.ctx.Done(), Scoring: scoringOf(n.cfg), Learned: n.base.Learned,
		Trace: n.cfg.pubsubTrace, RelayedBytes: n.cfg.relayedPubSub,
		Changed:    n.watch.change.Notify,
		PeerJoined: func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerJoined{Topic: topic, ID: id}) },
		TopicLeft:  n.watch.topicLeft,
		PeerLeft:   func(topic string, id peer.ID) { n.watch.emit(EventTopicPeerLeft{Topic: topic, ID: id}) },
		HealthChanged: func(topic string, health gossip.Health) {
			n.watch.emit(EventTopicHealth{Topic: topic, Health: TopicHealth(health)})
		},
		Graylisted: func(id peer.ID, score float64) {
			n.log.Warn("peer is graylisted: nothing of it is heard", "peer", id, "score", score)
			n.watch.emit(EventPeerGraylisted{ID: id, Score: score})
		},
		Forgiven: func(id peer.ID, score float64) { n.watch.emit(EventPeerForgiven{ID: id, Score: score}) },
		Meet: func(ctx context.Context, topic string, want int) {
			meetBy(ctx, n, "p2pnode topic "+topic, want, func(id peer.ID) bool { return n.pubsub.Reaches(topic, id) })
		},
		Deaf: func(ctx context.Context, id peer.ID) {
			n.watch.emit(EventPeerDeaf{ID: id})
			n.log.Warn("reconnecting to peer that has stopped sending pubsub messages", "peer", id)
			if err := errors.Join(n.base.Disconnect(id), n.dialer.Connect(ctx, peer.AddrInfo{ID: id})); err != nil {
				n.log.Info("reconnecting failed", "peer", id, "err", err)
			}
		},
	})
	if err != nil {
		return scoringError(err)
	}
	n.stack.Push("pubsub", closeBudget, n.pubsub.Close)
	return nil
}

// scoringOf returns the scores of the options for the router.
func scoringOf(c *config) *gossip.Scoring {
	if c.scoring == nil {
		return nil
	}
	s := c.scoring.inner()
	named := make(map[peer.ID]bool)
	for _, p := range slices.Concat(c.bootstrapPeers(), c.persistent) {
		named[p.ID] = true
	}
	s.Trusted = func(id peer.ID) bool { return named[id] }
	return &s
}

// scoringError files an error of the router's start under its option.
func scoringError(err error) error {
	if errors.Is(err, gossip.ErrOwnScore) {
		return &OptionError{Option: "WithPeerScoring", Err: err}
	}
	return err
}

// protocolBytes returns how many bytes the IDs of the node's protocols may have
// together. Identify sends them in one message, of which peers read 4 KiB
// (rust-libp2p) or 8 KiB; if it is larger, they learn no protocols. The same
// message has the public key, the agent, and a few addresses.
func protocolBytes(n *Node) int {
	const message, rest = 4 << 10, 512
	key, err := crypto.MarshalPublicKey(n.key.GetPublic())
	if err != nil {
		return 0 // the host has not started with such a key
	}
	return message - rest - len(key) - len(n.cfg.userAgent)
}

func startStreams(n *Node) error {
	n.streams = streams.New(n.ctx, streams.Config{
		Host: n.base, Own: n.cfg.dhtProtocols(), Log: n.log, ProtocolBytes: protocolBytes(n), Identified: n.base.Identified,
		Connect: func(ctx context.Context, id peer.ID) error {
			if n.base.Connected(id) {
				return nil
			}
			bound, done := n.bind(ctx)
			defer done()
			return n.dialer.Connect(bound, peer.AddrInfo{ID: id})
		},
	})
	n.stack.Push("stream handlers", closeBudget, n.streams.Close)
	return nil
}

func startRelay(n *Node) error {
	if n.cfg.relayService {
		service, err := relays.Serve(n.base, relays.ServiceConfig{
			Limits: relays.Limits(n.cfg.relayLimits), ACL: n.access, Access: n.cfg.relayAdmits(), AnyAddr: !n.cfg.ipfs, Log: n.log,
		})
		if err != nil {
			return err
		}
		n.relayService = service
		n.stack.Push("relay service", closeBudget, service.Close)
		if n.dht != nil {
			n.group.Go(func(ctx context.Context) { advertiseRelay(ctx, n) })
		}
	}
	if n.cfg.holePunching {
		n.group.Go(func(ctx context.Context) { n.relay.PunchAgain(ctx, n.base, &n.watch.moved) })
	}
	if n.relay.Enabled() {
		n.stack.Push("relays", closeBudget, n.relay.Close)
		return n.relay.Follow(n.group, n.base)
	}
	return nil
}

// findRelays searches the DHT for relays that advertise themselves.
func findRelays(ctx context.Context, n *Node) iter.Seq2[peer.AddrInfo, error] {
	if n.dht == nil {
		return func(func(peer.AddrInfo, error) bool) {}
	}
	return n.dht.FindProviders(ctx, kad.NamespaceCID(relays.Namespace), kad.Search{})
}

// advertiseRelay advertises the relay service in the DHT until ctx ends, unless
// nobody can dial the node.
func advertiseRelay(ctx context.Context, n *Node) {
	stop := func() {}
	defer func() { stop() }()
	advertised := false
	for {
		change := n.watch.change.Wait()
		if wanted := reachability(n) != network.ReachabilityPrivate; wanted != advertised {
			advertised = wanted
			stop()
			if wanted {
				bound, cancel := context.WithCancel(ctx)
				stop = cancel
				n.group.Go(func(context.Context) { n.dht.AdvertiseWhile(bound, relays.Namespace, false) })
			}
		}
		select {
		case <-change:
		case <-ctx.Done():
			return
		}
	}
}

// startReachability begins to find out whether others can dial the node.
func startReachability(n *Node) error {
	if !n.cfg.autoNAT {
		return nil
	}
	t, stop, err := reach.Start(n.group, reach.Config{
		Host: n.base, Known: n.cfg.reachability, Announce: n.cfg.announce, Extra: n.cfg.announceExtra, Private: !n.cfg.ipfs, Change: &n.watch.change, Log: n.log,
		Addr: func(a reach.Addr) {
			n.watch.emit(EventAddrReachabilityChanged{Addr: a.Addr, Reachability: reachabilityOf(a.Reachability)})
		},
		Overall: func(r network.Reachability) { n.watch.emit(EventReachabilityChanged{Reachability: reachabilityOf(r)}) },
	})
	if err != nil {
		return err
	}
	n.reach.Store(t)
	n.stack.Push("reachability", closeBudget, stop)
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
	m, err := lan.Start(n.base, n.cfg.mdnsServiceName(), func(ai peer.AddrInfo) { foundNearby(n, ai) }, n.log)
	if err != nil {
		return err
	}
	n.stack.Push("mdns", closeBudget, m.Close)
	n.group.Go(func(ctx context.Context) { m.Follow(ctx, &n.watch.moved) })
	return nil
}

// foundNearby keeps a peer that was found on the LAN.
func foundNearby(n *Node, ai peer.AddrInfo) {
	n.base.Nearby(ai.ID)
	n.keeper.Found(ai, "mdns")
}

// doubtTimeout is how long a peer that has opened another connection has at least to
// answer on the older ones.
const doubtTimeout = 3 * time.Second

// check closes a peer's dead connections.
func check(ctx context.Context, n *Node, id peer.ID) {
	bound, cancel := context.WithTimeout(ctx, n.base.Patience(id, doubtTimeout))
	alive := n.base.CloseDead(bound, id)
	cancel()
	if !alive {
		bound, cancel := context.WithTimeout(ctx, againTimeout)
		defer cancel()
		dialAgain(bound, n, id)
	}
}

// againTimeout is how long a dial takes of a peer whose connections were dead.
const againTimeout = 20 * time.Second

// dialAgain dials a peer whose connections were dead.
func dialAgain(ctx context.Context, n *Node, id peer.ID) {
	if n.keeper.Released(id) {
		return
	}
	if err := n.dialer.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
		n.log.Debug("peer not reached again", "peer", id, "err", err)
	}
}

// startRecovery watches for what a node recovers from by itself: a machine that
// slept, a network that changed, peers that are back.
func startRecovery(n *Node) error {
	n.group.Go(func(ctx context.Context) {
		keeper.WatchClock(ctx, time.Now, func() {
			n.log.Info("woke from sleep")
			n.watch.moved.Notify()
		})
	})
	check := &keeper.Checker{
		Peers: n.base.PeerIDs, Alive: n.base.CloseDead, Leave: n.base.CloseLeft, Lost: n.losses.By, Log: n.log,
		Again: func(ctx context.Context, id peer.ID) { dialAgain(ctx, n, id) },
	}
	n.group.Go(func(ctx context.Context) {
		n.base.WatchInterfaces(ctx, func(began time.Time) {
			n.log.Info("addresses of the interfaces changed")
			n.group.Go(func(ctx context.Context) { check.Moved(ctx, began) })
			n.watch.moved.Notify()
			n.watch.change.Notify()
		})
	})
	n.group.Go(func(ctx context.Context) { check.Run(ctx, &n.watch.moved) })
	if every := n.cfg.keepAlive; every > 0 {
		n.group.Go(func(ctx context.Context) { check.Every(ctx, every) })
	}
	n.group.Go(n.base.KeepTidy)
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

var dhtModes = map[DHTMode]dht.ModeOpt{
	DHTModeAutoServer: dht.ModeAutoServer,
	DHTModeAuto:       dht.ModeAuto,
	DHTModeServer:     dht.ModeServer,
	DHTModeClient:     dht.ModeClient,
}

// dhtConfig returns the options' settings for the DHT.
func dhtConfig(c *config) kad.Config {
	k := kad.Config{
		Mode: dhtModes[c.effectiveDHTMode()], Validators: c.validators, Signed: c.signed,
		Interval: c.reprovideInterval, Lifetime: c.recordLifetime,
		Options: c.dhtOptions, Log: c.logger, Accelerated: c.accelerated,
	}
	switch {
	case c.ipfs:
		k.Layout = kad.Public
	case c.network == "ipfs":
		// Among themselves, kubo nodes without public addresses speak the LAN
		// protocol and js-libp2p nodes the other: speak both.
		k.Layout = kad.Two
	}
	if !c.ipfs {
		k.Prefix = protocol.ID(c.protocolPrefix())
	}
	return k
}

// startRendezvous begins to keep peers of WithRendezvous connected.
func startRendezvous(n *Node) error {
	for _, r := range n.cfg.rendezvous {
		n.group.Go(func(ctx context.Context) { meetBy(ctx, n, r.Namespace, r.Peers, nil) })
	}
	return nil
}

// meetBy advertises a namespace and keeps peers that are found under it connected
// until ctx ends. Without a member function, each of them counts.
func meetBy(ctx context.Context, n *Node, namespace string, want int, member func(peer.ID) bool) {
	n.group.Go(func(context.Context) { n.dht.AdvertiseWhile(ctx, namespace, member == nil) })
	meet.Run(ctx, meet.Config{
		Self: n.id, Want: want, Member: member, Change: &n.watch.change, Log: n.log,
		Find: func(ctx context.Context) iter.Seq2[peer.AddrInfo, error] {
			return n.dht.FindProviders(ctx, kad.NamespaceCID(namespace), kad.Search{})
		},
		Dial: n.dialer.Connect, Connected: n.base.Connected,
		Welcome: func(id peer.ID) bool { return n.access.Allows(id) && !n.keeper.Released(id) },
		Room:    func() bool { return n.base.PeerCount() < n.cfg.connHigh },
		Protect: func(id peer.ID, on bool) { n.base.Protect(id, "p2pnode-rendezvous "+namespace, on) },
		Found:   func(ai peer.AddrInfo) { n.watch.emit(EventPeerFound{ID: ai.ID, Addrs: ai.Addrs, Source: "rendezvous"}) },
	})
}

// startDataDir comes first, so that the directory's lock is released after
// every part that writes to it has ended.
func startDataDir(n *Node) error {
	if n.cfg.dataDir == "" {
		return nil
	}
	dir, err := datadir.Open(n.cfg.dataDir)
	if err != nil {
		return &OptionError{Option: "WithDataDir", Err: err}
	}
	n.stack.Push("data directory", closeBudget, dir.Close)
	n.data = &dataPart{dir: dir, log: n.log}
	return nil
}

// peersName is the data directory's file with the saved peers.
const peersName = "peers"

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

// gater puts the list in front of the application's connection gater.
func gater(n *Node) func(connmgr.ConnectionGater) connmgr.ConnectionGater {
	return func(next connmgr.ConnectionGater) connmgr.ConnectionGater {
		g := access.Gater{List: n.access, Next: next}
		if n.limits != nil {
			g.Accepting = n.limits.Accepting
		}
		return g
	}
}

// checkListening decides whether addresses that did not bind fail New. At least
// one must bind, and all of them unless [WithPartialListen] is given or the
// machine lacks an IP version of the default addresses.
func checkListening(cfg *config, failed []*ListenError) error {
	list, defaults := cfg.listenAddrs()
	var errs []error
	for _, f := range failed {
		missingIP6 := defaults && addrs.IsIP6(f.Addr) && !errors.Is(f, syscall.EADDRINUSE)
		if !cfg.partialListen && !missingIP6 || len(failed) == len(list) {
			errs = append(errs, f)
		}
	}
	return errors.Join(errs...)
}
