package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/portmap"
	"github.com/go-p2pnode/p2pnode/internal/reach"
	"github.com/go-p2pnode/p2pnode/internal/relays"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/streams"
)

// closeBudget bounds each part's close, so that Close always ends.
const closeBudget = 5 * time.Second

// Node is a libp2p host, a Kademlia DHT, gossipsub, discovery and relaying
// behind one handle. [New] starts it and [Node.Close] stops it. All methods are
// safe for concurrent use, and a process can run any number of nodes. After
// Close, methods that return an error return [ErrClosed].
type Node struct {
	cfg  *config // read-only
	log  *slog.Logger
	id   peer.ID
	key  crypto.PrivKey
	self ma.Multiaddr // /p2p/<id>

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	stack  lifecycle.Stack  // the one list of what to close, in reverse
	group  *lifecycle.Group // goroutines that belong to no part

	data         *dataPart       // nil without a data directory
	limits       *limits.Manager // nil when WithLibp2pOptions brings a resource manager
	base         *nethost.Host   // the host itself
	dialer       nethost.Dialer
	host         host.Host // the same, finding unknown peers in the DHT
	watch        *watcher
	dht          *kad.DHT       // nil without a DHT
	pubsub       *gossip.Router // nil without pubsub
	streams      *streams.Server
	relay        *relays.Client
	ports        *portmap.Manager              // nil without port mapping
	reach        atomic.Pointer[reach.Tracker] // nil without AutoNAT, and before it starts
	relayService *relays.Service               // nil without the relay service
	keeper       *keeper.Keeper
	access       *access.List

	recovered signal.Signal // the node has peers again, after it had none
	losses    keeper.Losses // for when the machine has moved

	listenErrors []*ListenError
	counters
}

// Close stops the node: blocked calls return [ErrClosed], topics are left,
// streams reset and connections closed. When it returns, every goroutine that
// the node started has ended. Close gives up on a part that hangs for 5 seconds
// and names it in the error, so it always returns. All errors are joined, each
// labeled with its part. Close may be called more than once and concurrently;
// every call returns the first one's result.
func (n *Node) Close() error {
	n.cancel()
	if err := n.stack.Close(); err != nil {
		return fmt.Errorf("p2pnode: close: %w", err)
	}
	return nil
}

// closed reports whether Close has begun.
func (n *Node) closed() bool { return n.ctx.Err() != nil }

// bind returns a context that ends with ctx or with the node, in that case with
// the cause [ErrClosed].
func (n *Node) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(n.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// ID returns the node's peer ID. It also works after Close.
func (n *Node) ID() peer.ID { return n.id }

// String returns the node's peer ID, so that printing a node shows no key. It also
// works after Close.
func (n *Node) String() string { return n.id.String() }

// Addrs returns the addresses that the node announces, each ending in
// /p2p/<id>, ready to be given to another peer. After Close it returns nil.
func (n *Node) Addrs() []ma.Multiaddr {
	if n.closed() {
		return nil
	}
	return withID(n.self, n.base.Addrs())
}

// AddrInfo returns the node's ID and the addresses that it announces, the form
// that [Node.Connect] takes. After Close it holds the ID only.
func (n *Node) AddrInfo() peer.AddrInfo {
	if n.closed() {
		return peer.AddrInfo{ID: n.id}
	}
	return peer.AddrInfo{ID: n.id, Addrs: n.base.Addrs()}
}

// Ticket returns a ticket of the node's network: one word, its Text, by which
// others join with [WithTicket], through this node. It holds the name of the
// network, the node's ID, and up to 6 of the addresses that it announces now, also
// those through relays, the best first. Addresses that help only on this machine or
// its links are left out unless there are no others. [TicketWithKey] adds the key of
// a private network.
//
// It returns an error if the node has no address that others could dial, for
// instance before its first reservation at a relay, for which
// [Node.WaitReady] with [StageReachable] waits; an error for TicketWithKey without a
// private network; and [ErrClosed] after Close.
func (n *Node) Ticket(opts ...TicketOption) (Ticket, error) {
	if n.closed() {
		return Ticket{}, ErrClosed
	}
	network := n.cfg.network
	if n.cfg.ipfs {
		network = ""
	}
	t, err := newTicket(network, n.cfg.psk, n.AddrInfo(), opts)
	if err != nil {
		return Ticket{}, n.fail(fmt.Errorf("ticket: %w", err))
	}
	return t, nil
}

// Host returns the libp2p host, for what [Node] does not offer itself. It looks
// up peers without known addresses in the DHT. The node closes it.
func (n *Node) Host() host.Host { return n.host }

// DHT returns the DHT, or nil with [WithoutDHT]. The node closes it.
func (n *Node) DHT() routing.Routing {
	if n.dht == nil {
		return nil
	}
	return n.dht.Routing()
}

// PubSub returns the gossipsub router, or nil with [WithoutPubSub]. The node
// closes it. A router can join a topic only once: [Node.Publish] and
// [Node.Subscribe] have already joined those in use.
func (n *Node) PubSub() *pubsub.PubSub {
	if n.pubsub == nil {
		return nil
	}
	return n.pubsub.PubSub()
}

// fail adds the package's prefix to a method's error, once. Whatever error the
// parts of a closing node return, the cause is that it closes.
func (n *Node) fail(err error) error {
	if n.closed() || errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("p2pnode: %w", causes.Cleaned(err))
}

// counters holds what no part counts.
type counters struct {
	rounds    atomic.Uint64
	bandwidth *metrics.BandwidthCounter
}

// minPeers returns the minimum of [WithMinPeers]: by default 1 if the node looks
// for peers.
func minPeers(n *Node) int {
	switch {
	case n.cfg.minPeers >= 0:
		return n.cfg.minPeers
	case looksForPeers(n):
		return 1
	default:
		return 0
	}
}

// looksForPeers reports whether the options set bootstrap peers, persistent peers
// or mDNS, or such peers were added at run time.
func looksForPeers(n *Node) bool { return n.cfg.mdns || n.keeper.Told() }
