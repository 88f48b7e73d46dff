package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
)

// libraryNode is a node of this library.
type libraryNode struct {
	*p2pnode.Node
	s *server
}

func (s *server) startNode(ctx context.Context, o Options) (node, error) {
	opts := []p2pnode.Option{p2pnode.WithNetwork(cmp.Or(o.Network, "lab"))}
	if len(o.Listen) > 0 {
		opts = append(opts, p2pnode.WithListenAddrs(o.Listen...))
	}
	if len(o.Bootstrap) > 0 {
		opts = append(opts, p2pnode.WithBootstrapAddrs(o.Bootstrap...))
	}
	if o.Server {
		opts = append(opts, p2pnode.WithRelayService(), p2pnode.WithReachability(network.ReachabilityPublic), p2pnode.WithAutoNAT())
	}
	if len(o.Relays) > 0 {
		relays, err := p2pnode.ParsePeers(o.Relays...)
		if err != nil {
			return nil, err
		}
		opts = append(opts, p2pnode.WithAutoRelay(relays...), p2pnode.WithHolePunching())
	}
	if o.Traversal {
		opts = append(opts, p2pnode.WithNATTraversal())
	}
	if o.MDNS {
		opts = append(opts, p2pnode.WithMDNS())
	}
	if o.Service != "" {
		opts = append(opts, p2pnode.WithMDNSService(o.Service))
	}
	if o.Log {
		opts = append(opts, p2pnode.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	}
	if len(o.NoAnnounce) > 0 {
		opts = append(opts, p2pnode.WithNoAnnounce(o.NoAnnounce...))
	}
	if o.PortMapping {
		opts = append(opts, p2pnode.WithPortMapping())
	}
	if o.ConnRate > 0 {
		opts = append(opts, p2pnode.WithLimits(p2pnode.Limits{ConnRatePerIP: o.ConnRate}))
	}
	n, err := p2pnode.New(ctx, opts...)
	if err != nil {
		return nil, err
	}
	events := n.Events(context.Background(), p2pnode.EventsWithState()) // until Close; New has made some already
	go func() {
		for ev := range events {
			text, err := json.Marshal(ev)
			if err != nil {
				text, _ = json.Marshal(err.Error())
			}
			s.emit(Reply{Event: text, Type: fmt.Sprintf("%T", ev)[len("p2pnode."):]})
		}
	}()
	return &libraryNode{n, s}, n.Handle(echo, func(_ context.Context, s network.Stream) error { return answerEcho(s) })
}

// do carries out what only the library has.
func (n *libraryNode) do(ctx context.Context, c Command) (r Reply, err error) {
	switch c.Do {
	case "status":
		r.Status, err = json.Marshal(n.Status())
		return r, err
	case "diagnose":
		found, err := n.Diagnose(ctx)
		if err != nil {
			return r, err
		}
		r.Status, err = json.Marshal(found)
		return r, err
	case "ready":
		return r, n.WaitReady(ctx)
	case "publish":
		return r, n.Publish(ctx, c.Topic, []byte(c.Text))
	case "subscribe":
		sub, err := n.Subscribe(context.Background(), c.Topic)
		if err != nil {
			return r, err
		}
		go func() {
			for m, err := range sub.Messages(context.Background()) {
				if err != nil {
					return
				}
				n.s.emit(Reply{Type: "message", Peer: m.Author, Text: string(m.Data)})
			}
		}()
		return r, nil
	case "advertise":
		return r, n.Advertise(ctx, c.Topic)
	case "find":
		for p, err := range n.FindPeers(ctx, c.Topic) {
			if err != nil {
				return r, err
			}
			r.Peers = append(r.Peers, p.ID)
		}
		return r, nil
	case "findpeer":
		var p peer.AddrInfo
		p, err = n.FindPeer(ctx, c.Peer)
		for _, a := range p.Addrs {
			r.Addrs = append(r.Addrs, a.String())
		}
		return r, err
	}
	return r, fmt.Errorf("%q: no such command", c.Do)
}
