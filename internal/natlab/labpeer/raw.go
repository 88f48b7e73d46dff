package main

import (
	"context"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// rawNode is a host of libp2p.
type rawNode struct{ h host.Host }

// startRaw assembles a host with every feature that helps behind a NAT.
func startRaw(ctx context.Context, o Options) (node, error) {
	opts := []libp2p.Option{libp2p.EnableAutoNATv2()}
	if len(o.Listen) > 0 {
		opts = append(opts, libp2p.ListenAddrStrings(o.Listen...))
	}
	if o.Server {
		opts = append(opts, libp2p.EnableRelayService(), libp2p.EnableNATService(), libp2p.ForceReachabilityPublic())
	} else {
		opts = append(opts, libp2p.EnableHolePunching(), libp2p.NATPortMap())
	}
	relays, err := infos(o.Relays)
	if err != nil {
		return nil, err
	}
	if len(relays) > 0 {
		opts = append(opts, libp2p.EnableAutoRelayWithStaticRelays(relays))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, err
	}
	h.SetStreamHandler(echo, func(s network.Stream) {
		if answerEcho(s) != nil {
			_ = s.Reset() // it always succeeds
			return
		}
		_ = s.Close() // the other side may have reset it
	})
	bootstrap, err := infos(o.Bootstrap)
	if err != nil {
		return nil, err
	}
	for _, p := range bootstrap {
		if err := h.Connect(ctx, p); err != nil {
			return nil, err
		}
	}
	return &rawNode{h}, nil
}

func infos(addrs []string) ([]peer.AddrInfo, error) {
	var list []ma.Multiaddr
	for _, a := range addrs {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return peer.AddrInfosFromP2pAddrs(list...)
}

func (n *rawNode) Host() host.Host { return n.h }

func (n *rawNode) Connect(ctx context.Context, p peer.AddrInfo) error {
	return n.h.Connect(network.WithAllowLimitedConn(ctx, "lab"), p)
}

func (n *rawNode) OpenStream(ctx context.Context, p peer.ID, protos ...protocol.ID) (network.Stream, error) {
	return n.h.NewStream(network.WithAllowLimitedConn(ctx, "lab"), p, protos...)
}

func (n *rawNode) Close() error { return n.h.Close() }
