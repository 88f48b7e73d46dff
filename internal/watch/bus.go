// Package watch drains the host's event bus.
package watch

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// Config configures a [Bus]. Its functions run one after the other, in the
// goroutine that drains the bus.
type Config struct {
	Host *nethost.Host
	// Change is notified of every event, Moved of new addresses.
	Change, Moved *signal.Signal

	Connected    func(nethost.Peer)                     // a peer is connected and identified
	Rerouted     func(p nethost.Peer, was ma.Multiaddr) // a peer of Connected has another best connection
	Disconnected func(peer.ID)                          // a peer of Connected disconnected
	Gone         func(peer.ID)                          // a peer disconnected, identified or not
	Another      func(peer.ID)                          // another connection to a peer is identified
	Addrs        func()                                 // the host's addresses changed
	// Reachability is called with what the bus tells; nil where something else knows.
	Reachability func(network.Reachability)
	Log          *slog.Logger
}

// Bus drains the host's event bus, always: a subscriber that does not would
// stall libp2p.
type Bus struct {
	cfg   Config
	order order                    // of the goroutine
	paths map[peer.ID]ma.Multiaddr // of the peers that Connected was called with; of the goroutine
	reach atomic.Int32

	wake    chan struct{} // touched has peers
	mu      sync.Mutex
	touched map[peer.ID]struct{} // peers with connections opened or closed; guarded by mu
}

// Follow subscribes at once, before anything can happen on the host, and drains
// the bus in a goroutine of group.
func Follow(group *lifecycle.Group, cfg Config) (*Bus, error) {
	b := &Bus{cfg: cfg, order: newOrder(), paths: make(map[peer.ID]ma.Multiaddr), wake: make(chan struct{}, 1), touched: make(map[peer.ID]struct{})}
	sub, err := cfg.Host.EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged),
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerIdentificationFailed),
		new(event.EvtLocalAddressesUpdated),
		new(event.EvtLocalReachabilityChanged),
		new(event.EvtAutoRelayAddrsUpdated),
	}, eventbus.BufSize(256), eventbus.Name("p2pnode"))
	if err != nil {
		return nil, err
	}
	// The bus tells of the first connection to a peer and the last, not of those
	// between them.
	touch := func(_ network.Network, c network.Conn) { b.touch(c.RemotePeer()) }
	notified := &network.NotifyBundle{ConnectedF: touch, DisconnectedF: touch}
	cfg.Host.Network().Notify(notified)
	group.Go(func(ctx context.Context) {
		defer sub.Close()
		defer cfg.Host.Network().StopNotify(notified)
		defer b.order.timer.Stop()
		room, ended := make(chan struct{}, maxAsking), make(chan peer.ID)
		for {
			select {
			case ev := <-sub.Out():
				b.handle(ev)
			case <-b.wake:
				b.reroute()
			case <-b.order.timer.C:
				for _, id := range b.order.ripe(time.Now()) {
					group.Go(func(ctx context.Context) { b.ask(ctx, room, ended, id) })
				}
			case id := <-ended:
				b.order.answered(id)
			case <-ctx.Done():
				return
			}
		}
	})
	return b, nil
}

// Reachability returns whether others can dial the node, as far as known.
func (b *Bus) Reachability() network.Reachability { return network.Reachability(b.reach.Load()) }

func (b *Bus) handle(ev any) {
	switch ev := ev.(type) {
	case event.EvtPeerConnectednessChanged:
		if ev.Connectedness == network.NotConnected {
			b.order.forget(ev.Peer)
			b.gone(ev.Peer)
		}
	case event.EvtPeerIdentificationCompleted:
		b.cfg.Host.Answered(ev.Conn)
		if b.paths[ev.Peer] != nil {
			b.cfg.Another(ev.Peer)
		}
		b.here(ev.Peer)
		if b.cfg.Host.Network().Connectedness(ev.Peer) != network.NotConnected {
			b.order.heard(ev, time.Now())
		}
	case event.EvtPeerIdentificationFailed:
		b.here(ev.Peer)
	case event.EvtLocalAddressesUpdated:
		b.cfg.Addrs()
		b.cfg.Moved.Notify()
	case event.EvtAutoRelayAddrsUpdated:
		b.cfg.Host.Relayed(ev.RelayAddrs)
	case event.EvtLocalReachabilityChanged:
		b.reach.Store(int32(ev.Reachability))
		if b.cfg.Reachability != nil {
			b.cfg.Log.Info("reachability", "is", ev.Reachability)
			b.cfg.Reachability(ev.Reachability)
		}
	}
	b.cfg.Change.Notify()
}

// here reports a peer once it is identified, so that consumers of the event can
// open streams.
func (b *Bus) here(id peer.ID) {
	p, ok := b.cfg.Host.Peer(id)
	if !ok || b.paths[id] != nil {
		return
	}
	b.paths[id] = p.Addr
	b.cfg.Log.Info("peer connected", "peer", id, "addr", p.Addr, "relayed", p.Relayed, "direction", p.Direction)
	b.cfg.Connected(p)
}

func (b *Bus) gone(id peer.ID) {
	if b.paths[id] != nil {
		delete(b.paths, id)
		b.cfg.Log.Info("peer disconnected", "peer", id)
		b.cfg.Disconnected(id)
	}
	b.cfg.Gone(id)
}

// touch notes that a connection to a peer has opened or closed. It does not block.
func (b *Bus) touch(id peer.ID) {
	b.mu.Lock()
	b.touched[id] = struct{}{}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// reroute reports the peers whose best connection is another one now.
func (b *Bus) reroute() {
	b.mu.Lock()
	touched := b.touched
	b.touched = make(map[peer.ID]struct{})
	b.mu.Unlock()
	for id := range touched {
		was := b.paths[id]
		if was == nil {
			continue // not reported yet
		}
		p, ok := b.cfg.Host.Peer(id)
		if !ok || p.Addr.Equal(was) {
			continue
		}
		b.paths[id] = p.Addr
		b.cfg.Log.Info("peer has another path", "peer", id, "addr", p.Addr, "relayed", p.Relayed, "was", was)
		b.cfg.Rerouted(p, was)
	}
}
