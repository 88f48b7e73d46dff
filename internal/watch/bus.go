// Package watch drains the host's event bus.
package watch

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

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

	Connected    func(nethost.Peer) // a peer is connected and identified
	Disconnected func(peer.ID)      // a peer of Connected disconnected
	Gone         func(peer.ID)      // a peer disconnected, identified or not
	Another      func(peer.ID)      // another connection to a peer is identified
	Addrs        func()             // the host's addresses changed
	// Reachability is called with what the bus tells; nil where something else knows.
	Reachability func(network.Reachability)
	Log          *slog.Logger
}

// Bus drains the host's event bus, always: a subscriber that does not would
// stall libp2p.
type Bus struct {
	cfg       Config
	announced map[peer.ID]bool // peers that Connected was called with; of the goroutine
	reach     atomic.Int32
}

// Follow subscribes at once, before anything can happen on the host, and drains
// the bus in a goroutine of group.
func Follow(group *lifecycle.Group, cfg Config) (*Bus, error) {
	b := &Bus{cfg: cfg, announced: make(map[peer.ID]bool)}
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
	group.Go(func(ctx context.Context) {
		defer sub.Close()
		for {
			select {
			case ev := <-sub.Out():
				b.handle(ev)
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
			b.gone(ev.Peer)
		}
	case event.EvtPeerIdentificationCompleted:
		if b.announced[ev.Peer] {
			b.cfg.Another(ev.Peer)
		}
		b.here(ev.Peer)
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
	if !ok || b.announced[id] {
		return
	}
	b.announced[id] = true
	b.cfg.Log.Info("peer connected", "peer", id, "addr", p.Addr, "relayed", p.Relayed, "direction", p.Direction)
	b.cfg.Connected(p)
}

func (b *Bus) gone(id peer.ID) {
	if b.announced[id] {
		delete(b.announced, id)
		b.cfg.Log.Info("peer disconnected", "peer", id)
		b.cfg.Disconnected(id)
	}
	b.cfg.Gone(id)
}
