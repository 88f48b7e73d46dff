package p2pnode

import (
	"context"
	"iter"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/reach"
	"github.com/go-p2pnode/p2pnode/internal/relays"
)

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
