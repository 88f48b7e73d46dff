package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
)

var errNoNamespace = errors.New("the namespace is empty")

// Advertise announces this node under a namespace, for others to find with
// [Node.FindPeers], until ctx ends or the node closes: every 3 hours, when the
// node has peers again after it had none, and after a failure with delays that
// grow from 1 second to 1 minute.
//
// It returns after the first attempt: nil if another peer holds the
// announcement, otherwise the reason, [ErrNoPeers] if there was nobody to hold
// it. The announcing goes on in either case. It does not begin with an empty
// namespace, without a DHT ([ErrDisabled]), or after Close ([ErrClosed]).
// Namespaces of different networks (see [WithNetwork]) do not mix.
func (n *Node) Advertise(ctx context.Context, namespace string) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	if namespace == "" {
		return fmt.Errorf("p2pnode: advertise: %w", errNoNamespace)
	}
	return dhtError(n, fmt.Sprintf("advertise %q", namespace), d.Advertise(ctx, namespace))
}

// FindPeers searches the DHT once for the peers that advertise a namespace with
// [Node.Advertise]. It yields as [Node.FindProviders] does, with the same
// options and errors. It does not connect to the peers.
func (n *Node) FindPeers(ctx context.Context, namespace string, opts ...FindOption) iter.Seq2[peer.AddrInfo, error] {
	if namespace == "" {
		return failedSearch(n, fmt.Errorf("p2pnode: find peers: %w", errNoNamespace))
	}
	found := search(ctx, n, fmt.Sprintf("find peers of %q", namespace), kad.NamespaceCID(namespace), opts)
	return func(yield func(peer.AddrInfo, error) bool) {
		for ai, err := range found {
			if err == nil && ai.ID != n.id && !n.base.Connected(ai.ID) {
				n.watch.emit(EventPeerFound{ID: ai.ID, Addrs: ai.Addrs, Source: "rendezvous"})
			}
			if !yield(ai, err) {
				return
			}
		}
	}
}
