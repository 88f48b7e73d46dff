package p2pnode

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/datadir"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/logguard"
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
