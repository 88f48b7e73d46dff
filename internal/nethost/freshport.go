package nethost

import (
	"context"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// A hole is punched over TCP by two dials that meet, each from its side's listen port
// (RFC 5128, section 3.4). An earlier dial from that port, which the other side's router
// has dropped, prevents it: this side's router remembers its sequence number for two
// minutes. When the other side's dial comes in while there is none of this side, the
// listener answers, with another number, which the router drops as invalid, and the
// half-open connection keeps the port from dialing. Upstream dials everybody from the
// listen port, so that peers tell the node the address of that port outside.
//
// One such connection is enough for that. While there is one, a dial to the public
// network that punches no hole leaves from a port of its own.

// freshTCP is TCP that dials from ports of their own.
type freshTCP struct {
	linkTCP
	fresh  *tcp.TcpTransport
	ranker *ranker
}

// Dial implements transport.Transport.
func (t freshTCP) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, a, p, nil)
}

// DialWithUpdates implements transport.DialUpdater.
func (t freshTCP) DialWithUpdates(ctx context.Context, a ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	punching, _, _ := network.GetSimultaneousConnect(ctx)
	if !punching && onGlobal(a, addrs.TCP) && t.ranker.knowsTCP() {
		return t.fresh.DialWithUpdates(ctx, a, p, updates)
	}
	return t.linkTCP.DialWithUpdates(ctx, a, p, updates)
}
