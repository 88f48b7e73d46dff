package p2pnode

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

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

// doubtTimeout is how long a peer that has opened another connection has at least to
// answer on the older ones.
const doubtTimeout = 3 * time.Second

// check closes a peer's dead connections.
func check(ctx context.Context, n *Node, id peer.ID) {
	if !n.base.CloseDoubtful(ctx, id, doubtTimeout) {
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
