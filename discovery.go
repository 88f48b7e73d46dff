package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/lan"
	"github.com/go-p2pnode/p2pnode/internal/meet"
)

var errNoNamespace = errors.New("the namespace is empty")

// maxNamespace is how many bytes a namespace may have.
const maxNamespace = 1 << 10

func checkRoom(namespace string) error {
	switch {
	case namespace == "":
		return errNoNamespace
	case len(namespace) > maxNamespace:
		return fmt.Errorf("the namespace has %d bytes; it may have %d", len(namespace), maxNamespace)
	default:
		return nil
	}
}

// Advertise announces this node under a namespace of up to 1,024 bytes, for
// others to find with [Node.FindPeers], until [Node.StopAdvertising] or Close:
// every 3 hours (or half of [WithRecordLifetime], if that is less), within a minute
// when the node has peers again after it had none, to peers that have restarted and
// lost the announcement, and after a failure with delays that grow from 1 second
// to 1 minute. With [WithDataDir] or [WithDatastore] it goes on after a restart of
// the node.
//
// It returns after the first attempt, which ctx bounds: nil if another peer holds
// the announcement, otherwise the reason, such as [ErrNoPeers] if there was nobody
// to hold it. The announcing goes on in either case. It does not begin with an
// empty or too long namespace, if it cannot be written to the datastore, without a
// DHT ([ErrDisabled]), or after Close ([ErrClosed]). A namespace that is advertised
// already is announced again. Namespaces of different networks (see
// [WithNetwork]) do not mix.
func (n *Node) Advertise(ctx context.Context, namespace string) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	if err := checkRoom(namespace); err != nil {
		return fmt.Errorf("p2pnode: advertise: %w", err)
	}
	return dhtError(n, "advertise "+quoted(namespace), d.Advertise(ctx, namespace))
}

// StopAdvertising ends what [Node.Advertise] began, for good also with a data
// directory. Peers, and this node itself, forget the announcement when it expires,
// up to 48 hours later (see [WithRecordLifetime]). Namespaces that are not
// advertised are ignored. It returns [ErrDisabled] without a DHT, [ErrClosed] after
// Close, and errors of the datastore.
func (n *Node) StopAdvertising(ctx context.Context, namespaces ...string) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	return dhtError(n, "stop advertising", d.StopAdvertising(ctx, namespaces...))
}

// Advertising returns the namespaces that the node advertises, announced or not,
// sorted; nil without a DHT and after Close.
func (n *Node) Advertising() []string {
	d, err := needDHT(n)
	if err != nil {
		return nil
	}
	return d.Advertising()
}

// FindPeers searches the DHT for the peers that advertise a namespace with
// [Node.Advertise]: once, or with [FindFollow] until ctx ends. It yields as [Node.FindProviders] does, with the same
// options and errors. It does not connect to the peers.
func (n *Node) FindPeers(ctx context.Context, namespace string, opts ...FindOption) iter.Seq2[peer.AddrInfo, error] {
	if err := checkRoom(namespace); err != nil {
		return failedSearch(n, fmt.Errorf("p2pnode: find peers: %w", err))
	}
	found := search(ctx, n, "find peers of "+quoted(namespace), kad.NamespaceCID(namespace), opts)
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

// startRendezvous begins to keep peers of WithRendezvous connected.
func startRendezvous(n *Node) error {
	for _, r := range n.cfg.rendezvous {
		n.group.Go(func(ctx context.Context) { meetBy(ctx, n, r.Namespace, r.Peers, nil) })
	}
	return nil
}

// meetBy advertises a namespace and keeps peers that are found under it connected
// until ctx ends. Without a member function, each of them counts.
func meetBy(ctx context.Context, n *Node, namespace string, want int, member func(peer.ID) bool) {
	n.group.Go(func(context.Context) { n.dht.AdvertiseWhile(ctx, namespace, member == nil) })
	meet.Run(ctx, meet.Config{
		Self: n.id, Want: want, Member: member, Change: &n.watch.change, Log: n.log,
		Find: func(ctx context.Context) iter.Seq2[peer.AddrInfo, error] {
			return n.dht.FindProviders(ctx, kad.NamespaceCID(namespace), kad.Search{})
		},
		Dial: n.dialer.Connect, Connected: n.base.Connected,
		Welcome: func(id peer.ID) bool { return n.access.Allows(id) && !n.keeper.Released(id) },
		Room:    func() bool { return n.base.PeerCount() < n.cfg.connHigh },
		Protect: func(id peer.ID, on bool) { n.base.Protect(id, "p2pnode-rendezvous "+namespace, on) },
		Found:   func(ai peer.AddrInfo) { n.watch.emit(EventPeerFound{ID: ai.ID, Addrs: ai.Addrs, Source: "rendezvous"}) },
	})
}

func startMDNS(n *Node) error {
	if !n.cfg.mdns {
		return nil
	}
	m, err := lan.Start(n.base, n.cfg.mdnsServiceName(), func(ai peer.AddrInfo) { foundNearby(n, ai) }, n.log)
	if err != nil {
		return err
	}
	n.stack.Push("mdns", closeBudget, m.Close)
	n.group.Go(func(ctx context.Context) { m.Follow(ctx, &n.watch.moved) })
	return nil
}

// foundNearby keeps a peer that was found on the LAN.
func foundNearby(n *Node, ai peer.AddrInfo) {
	n.base.Nearby(ai.ID)
	n.keeper.Found(ai, "mdns")
}
