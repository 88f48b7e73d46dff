package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Connect makes sure that there is a connection to a peer. It dials the given
// addresses and those already known; without any, it looks the peer up in the
// DHT. Circuit addresses, /…/p2p/<relay>/p2p-circuit, work like any other.
// Earlier failures do not delay it. It returns once the peer is identified, and
// ends a [Node.Disconnect].
//
// It returns [ErrClosed] after Close, [ErrBanned] for a peer that is banned or
// not allowed, and otherwise an error with the reason for every address. It is
// also an error if the peer hangs up at once, as a peer that has banned this
// node does, or does not answer identify; in the latter case the connection
// stays open.
func (n *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	if err := checkID(p.ID); err != nil {
		return fmt.Errorf("p2pnode: connect: %w", err)
	}
	if p.ID == n.id {
		return fmt.Errorf("p2pnode: connect: %s is this node itself", p.ID)
	}
	n.keeper.Want(p.ID)
	n.base.Asked(p)
	ctx, done := n.bind(ctx)
	defer done()
	if err := n.dialer.ConnectAndIdentify(ctx, p); err != nil {
		return n.fail(err)
	}
	return nil
}

// Ping measures the round-trip time to a peer with /ipfs/ping/1.0.0, connecting
// first if needed. It returns the errors of [Node.Connect], and [ErrClosed]
// after Close.
func (n *Node) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	if n.closed() {
		return 0, ErrClosed
	}
	if err := checkID(id); err != nil {
		return 0, fmt.Errorf("p2pnode: ping: %w", err)
	}
	if id == n.id {
		return 0, fmt.Errorf("p2pnode: ping: %s is this node itself", id)
	}
	ctx, done := n.bind(ctx)
	defer done()
	rtt, err := n.dialer.Ping(ctx, id)
	if err != nil {
		if _, dialed := errors.AsType[*nethost.ConnectError](err); dialed {
			return 0, n.fail(fmt.Errorf("ping: %w", err)) // which names the peer
		}
		return 0, n.fail(fmt.Errorf("ping %s: %w", id, err))
	}
	return rtt, nil
}

// Disconnect closes all connections to a peer. The node does not dial it again
// by itself, as a bootstrap, discovered or saved peer, until [Node.Connect],
// [Node.AddBootstrapPeers] or [Node.AddPersistentPeers] asks for it;
// discovering it again does not count, because mDNS repeats itself. That holds
// for the last 1024 peers disconnected. A persistent peer is dialed again at
// once: call [Node.RemovePersistentPeers] first. The peer may dial this node;
// [Node.BanPeer] keeps it out.
//
// Disconnecting a peer that is not connected is no error. It returns
// [ErrClosed] after Close, and ctx's error when ctx ends first.
func (n *Node) Disconnect(ctx context.Context, id peer.ID) error {
	if n.closed() {
		return ErrClosed
	}
	if err := checkID(id); err != nil {
		return fmt.Errorf("p2pnode: disconnect: %w", err)
	}
	ctx, done := n.bind(ctx)
	defer done()
	n.keeper.Release(id)
	closed := make(chan error, 1)
	if !n.group.Go(func(context.Context) { closed <- n.base.Disconnect(id) }) {
		return ErrClosed
	}
	var err error
	select {
	case err = <-closed:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return n.fail(fmt.Errorf("disconnect %s: %w", id, err))
	}
	return nil
}
