package p2pnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
)

// tableWait is how long a call waits for the first peer in the routing table.
const tableWait = kad.TableWait

// needDHT guards the methods that use the DHT.
func needDHT(n *Node) (*kad.DHT, error) {
	switch {
	case n.closed():
		return nil, ErrClosed
	case n.dht == nil:
		return nil, disabled("the DHT", "leave WithoutDHT out")
	default:
		return n.dht, nil
	}
}

// dhtError turns an error of internal/kad into the user's. For an empty routing
// table it adds the likely reason and what to do.
func dhtError(n *Node, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kad.ErrEmptyTable):
		return n.fail(fmt.Errorf("%s: %w", what, &emptyTableError{why: cmp.Or(companyOf(n).NoRoutes(), "the DHT's routing table was empty"), err: err}))
	default:
		return n.fail(fmt.Errorf("%s: %w", what, err))
	}
}

// emptyTableError reports why there was nobody to ask. It matches [ErrNoPeers]
// and the error of the context that ended the wait.
type emptyTableError struct {
	why string
	err error
}

func (e *emptyTableError) Error() string { return ErrNoPeers.Error() + ": " + e.why }
func (e *emptyTableError) Unwrap() error { return e.err }

// FindPeer returns the addresses of a peer: those of a connected peer at once,
// otherwise those the DHT knows. If the error is nil, there is at least one
// address. It returns [ErrNotFound] when the DHT does not know the peer,
// [ErrNoPeers] when there was nobody to ask or nobody answered, [ErrDisabled]
// without a DHT, and [ErrClosed] after Close.
func (n *Node) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	d, err := needDHT(n)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	if err := checkID(id); err != nil {
		return peer.AddrInfo{}, fmt.Errorf("p2pnode: find peer: %w", err)
	}
	if id == n.id {
		return n.AddrInfo(), nil
	}
	ai, err := d.FindPeer(ctx, id)
	if err != nil {
		return peer.AddrInfo{}, dhtError(n, "find peer "+id.String(), err)
	}
	return ai, nil
}

// PutValue stores a record in the DHT under a key like /pk/… or /<namespace>/…,
// whose namespace needs a validator (see [WithValidator]). It returns nil once
// at least one other peer has proved to hold the record. With an empty routing
// table it first waits for a peer until ctx ends, at most 10 seconds. Records
// expire after 48 hours.
//
// It refuses an empty record, and returns [ErrTooLarge] for one that does not
// fit into a DHT message of 4 MiB along with its key and the peers named in an
// answer: up to 3.8 MiB fit. It returns [ErrNoPeers] when nobody could be asked
// to hold the record or nobody does, [ErrDisabled] without a DHT, and
// [ErrClosed] after Close.
func (n *Node) PutValue(ctx context.Context, key string, value []byte) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	return dhtError(n, "put value "+quoted(key), d.PutValue(ctx, key, value))
}

// GetValue returns the best record that the DHT holds under a key, as judged by
// the validator of its namespace. It returns [ErrNotFound] when there is none,
// [ErrNoPeers] when there was nobody to ask or nobody answered, [ErrDisabled]
// without a DHT, and [ErrClosed] after Close.
func (n *Node) GetValue(ctx context.Context, key string) ([]byte, error) {
	d, err := needDHT(n)
	if err != nil {
		return nil, err
	}
	value, err := d.GetValue(ctx, key)
	return value, dhtError(n, "get value "+quoted(key), err)
}

// quoted returns the key of a record for an error text, cut if it is long.
func quoted(key string) string {
	const enough = 100
	if len(key) > enough {
		return fmt.Sprintf("%.*q…", enough, key)
	}
	return fmt.Sprintf("%q", key)
}
