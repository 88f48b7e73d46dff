package p2pnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"

	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
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
		var empty error = &emptyTableError{why: cmp.Or(companyOf(n).NoRoutes(), "the DHT's routing table was empty"), err: err}
		if _, kept := errors.AsType[*kad.KeptError](err); kept {
			empty = &kad.KeptError{Err: empty}
		}
		return n.fail(fmt.Errorf("%s: %w", what, empty))
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
// otherwise those the DHT knows, once three servers have named some, or one has and
// 2 seconds have passed. They are not tried out: the peer is dialed only if it is one
// of the servers in the routing table. If the error is nil, there is at least one
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
// whose namespace needs a validator (see [WithValidator]). [Node.PublishName] and
// [Node.PutSigned] make the records of names and of [WithSignedRecords]. It returns nil once
// at least one other peer has proved to hold the record. With an empty routing
// table it first waits for a peer until ctx ends, at most 10 seconds.
//
// Records expire after 48 hours, so the node puts it again every 22 hours (see
// [WithReprovideInterval]) and when it has peers again, until another PutValue of
// the key, [Node.StopPutting] or Close: also after an error that matches
// [ErrNoPeers] or ctx's. It does not while the DHT holds a record that the
// validator prefers, or the validator no longer accepts this one. With
// [WithDataDir] or [WithDatastore] it goes on after a restart of the node.
//
// It refuses an empty record, one that the validator refuses, and one to which it
// prefers the record that the DHT holds: the error then names both sequence numbers,
// if the records have one. It returns [ErrTooLarge] for one that does not
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

// StopPutting ends what [Node.PutValue] and [Node.PutSigned] began, for good also with a data
// directory. Peers forget the records when they expire, up to 48 hours later. Keys
// that are not put are ignored. It returns [ErrDisabled] without a DHT,
// [ErrClosed] after Close, and errors of the datastore.
func (n *Node) StopPutting(ctx context.Context, keys ...string) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	return dhtError(n, "stop putting", d.StopPutting(ctx, keys...))
}

// SearchValue yields the records that the DHT holds under a key as it finds them,
// each better than the one before, as judged by the validator of the namespace.
// The last is the one that [Node.GetValue] returns. Breaking out of the loop ends
// the search. A pair with an error is the last one; the errors are those of
// GetValue, also [ErrNotFound].
func (n *Node) SearchValue(ctx context.Context, key string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		d, err := needDHT(n)
		if err != nil {
			yield(nil, err)
			return
		}
		for value, err := range d.SearchValue(ctx, key) {
			if !yield(value, dhtError(n, "search value "+quoted(key), err)) {
				return
			}
		}
	}
}

// ClosestPeers looks up the DHT servers that are closest to a CID, and returns
// them with their known addresses, the closest first: at most 20 of each DHT. They
// are the ones that hold its provider records. With an empty routing table it
// first waits for a peer until ctx ends, at most 10 seconds. It returns
// [ErrNoPeers] when there was nobody to ask or nobody answered, ctx's error when
// ctx ends first, an error for a CID that [Node.Provide] refuses, [ErrDisabled]
// without a DHT, and [ErrClosed] after Close.
func (n *Node) ClosestPeers(ctx context.Context, c cid.Cid) ([]peer.AddrInfo, error) {
	d, err := needDHT(n)
	if err != nil {
		return nil, err
	}
	if err := kad.CheckCID(c); err != nil {
		return nil, fmt.Errorf("p2pnode: closest peers: %w", err)
	}
	found, err := d.ClosestPeers(ctx, string(c.Hash()))
	return found, dhtError(n, "closest peers of "+c.String(), err)
}

// quoted returns the key of a record for an error text, cut if it is long.
func quoted(key string) string {
	const enough = 100
	if len(key) > enough {
		return fmt.Sprintf("%.*q…", enough, key)
	}
	return fmt.Sprintf("%q", key)
}

func startDHT(n *Node) (err error) {
	if n.cfg.noDHT {
		return nil
	}
	k := dhtConfig(n.cfg)
	switch {
	case n.cfg.datastore != nil:
		k.Store = n.cfg.datastore
	case n.data != nil:
		if s := n.data.openRecords(); s != nil {
			n.stack.Push("datastore", closeBudget, s.Close)
			k.Store = s
		}
	}
	k.Datastore = k.Store
	k.Host, k.Changed, k.Recovered = n.base, &n.watch.change, &n.recovered
	k.RecordBytes, k.ValueBytes = n.cfg.recordBytes()
	full := func(limit, what string) func(uint64) {
		return func(refused uint64) {
			n.log.Warn("limit reached: "+what+" of others are dropped", "limit", limit, "dropped", refused)
			n.watch.emit(EventLimitReached{Limit: limit, Refused: refused})
		}
	}
	k.RecordsFull, k.ValuesFull = full("ProviderRecords", "provider records"), full("ValueRecords", "value records")
	k.Announced = func(c cid.Cid, took time.Duration, err error) {
		n.watch.emit(EventProvided{CID: c, Took: took, Err: causes.Cleaned(dhtError(n, "provide "+c.String(), err))})
	}
	k.Progress = func(p kad.Progress) { n.watch.emit(EventProvideProgress{Keys: p.Keys, Pending: p.Pending}) }
	if n.dht, err = kad.New(n.ctx, k); err != nil {
		return err
	}
	n.stack.Push("dht", closeBudget, n.dht.Close)
	if err := n.dht.FollowMode(n.group, func(serves bool) {
		n.log.Info("DHT mode", "server", serves)
		n.watch.emit(EventDHTModeChanged{Server: serves})
	}); err != nil {
		return err
	}
	n.dialer.Via = routedhost.Wrap(n.base, n.dht)
	n.host = nethost.Facing(n.dialer.Via, n.base)
	return nil
}

var dhtModes = map[DHTMode]dht.ModeOpt{
	DHTModeAutoServer: dht.ModeAutoServer,
	DHTModeAuto:       dht.ModeAuto,
	DHTModeServer:     dht.ModeServer,
	DHTModeClient:     dht.ModeClient,
}

// dhtConfig returns the options' settings for the DHT.
func dhtConfig(c *config) kad.Config {
	k := kad.Config{
		Mode: dhtModes[c.effectiveDHTMode()], Validators: c.validators, Signed: c.signed,
		Interval: c.reprovideInterval, Lifetime: c.recordLifetime,
		Options: c.dhtOptions, Log: c.logger, Accelerated: c.accelerated,
	}
	switch {
	case c.ipfs:
		k.Layout = kad.Public
	case c.network == "ipfs":
		// Among themselves, kubo nodes without public addresses speak the LAN
		// protocol and js-libp2p nodes the other: speak both.
		k.Layout = kad.Two
	}
	if !c.ipfs {
		k.Prefix = protocol.ID(c.protocolPrefix())
	}
	return k
}
