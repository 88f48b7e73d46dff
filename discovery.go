package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

const (
	// advertiseInterval is how often a namespace is announced again, well
	// within the lifetime of a provider record and of the addresses with it.
	advertiseInterval = 3 * time.Hour
	// A failed announcement is repeated within advertiseRetryMin, and later
	// at growing distances up to advertiseRetryMax.
	advertiseRetryMin = time.Second
	advertiseRetryMax = time.Minute
)

// rendezvousKey is the CID that stands for a namespace in the DHT. It is the
// one that go-libp2p's routing discovery uses, so that both find each other.
func rendezvousKey(namespace string) (cid.Cid, error) {
	if namespace == "" {
		return cid.Undef, errors.New("the namespace is empty")
	}
	h, err := multihash.Sum([]byte(namespace), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(cid.Raw, h), nil
}

// Advertise announces this node under a namespace, for others to find with
// FindPeers, and goes on announcing it until ctx ends or the node closes: every
// 3 hours, when the node has peers again after it had none, and after a failure
// with delays that grow from 1 second to 1 minute.
//
// It returns once the first attempt is over: nil when another peer holds the
// announcement, otherwise an error that says why not yet, ErrNoPeers if nobody
// was there to hold it. The announcing goes on even then, for as long as ctx
// lives; only with ErrDisabled (no DHT), ErrClosed or an empty namespace there
// is none. Namespaces of different networks (see WithNetwork) do not mix.
func (n *Node) Advertise(ctx context.Context, namespace string) error {
	if err := n.needDHT(); err != nil {
		return err
	}
	key, err := rendezvousKey(namespace)
	if err != nil {
		return fmt.Errorf("p2pnode: advertise: %w", err)
	}
	what := fmt.Sprintf("advertise %q", namespace)
	first := make(chan error, 1)
	started := n.group.Go(func(group context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(group, cancel)()
		n.keepAdvertising(ctx, what, key.Hash(), first)
	})
	if !started {
		return ErrClosed
	}
	return <-first // keepAdvertising sends it, whatever ends it
}

// keepAdvertising sends the result of its first attempt.
func (n *Node) keepAdvertising(ctx context.Context, what string, key multihash.Multihash, first chan<- error) {
	retry := backoff.Backoff{Min: advertiseRetryMin, Max: advertiseRetryMax}
	for ctx.Err() == nil {
		recovered := n.recovered.Wait()
		err := n.provide(ctx, what, key)
		if first != nil {
			first <- err
			first = nil
		}
		delay := advertiseInterval
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			n.log.Warn("not advertised, trying again", "what", what, "err", err)
			delay = retry.Next()
		} else {
			retry.Reset()
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-recovered: // others may have forgotten it meanwhile
		case <-ctx.Done():
		}
		timer.Stop()
	}
	if first != nil {
		first <- n.fail(fmt.Errorf("%s: %w", what, context.Cause(ctx)))
	}
}

// FindPeers searches the DHT once for the peers that advertise a namespace. It
// yields as FindProviders does, with the same options and errors. Yielded
// peers are not connected to: that is the caller's choice.
func (n *Node) FindPeers(ctx context.Context, namespace string, opts ...FindOption) iter.Seq2[peer.AddrInfo, error] {
	return func(yield func(peer.AddrInfo, error) bool) {
		if err := n.needDHT(); err != nil {
			yield(peer.AddrInfo{}, err)
			return
		}
		key, err := rendezvousKey(namespace)
		if err != nil {
			yield(peer.AddrInfo{}, fmt.Errorf("p2pnode: find peers: %w", err))
			return
		}
		n.findProviders(ctx, fmt.Sprintf("find peers of %q", namespace), key, opts, yield)
	}
}
