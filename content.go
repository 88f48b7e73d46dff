package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/kad"

	// The hash functions that CIDOf can name register themselves.
	_ "github.com/multiformats/go-multihash/register/all"
)

// CIDOption configures a call of [CIDOf].
type CIDOption interface{ applyCID(*cid.Prefix) }

type cidOption func(*cid.Prefix)

func (o cidOption) applyCID(p *cid.Prefix) { o(p) }

// CIDCodec sets the content's multicodec, overriding the default of raw (0x55).
func CIDCodec(code uint64) CIDOption { return cidOption(func(p *cid.Prefix) { p.Codec = code }) }

// CIDHash sets the hash function by its multicodec, overriding the default of
// sha2-256 (0x12).
func CIDHash(code uint64) CIDOption { return cidOption(func(p *cid.Prefix) { p.MhType = code }) }

// CIDOf returns the version 1 CID, by default raw and sha2-256, of everything
// that r delivers, without keeping it in memory. Equal content has equal CIDs.
// For a string or a byte slice, use strings.NewReader or bytes.NewReader. It
// returns the error of r, or one for an unknown hash function. Specification:
// github.com/multiformats/cid.
func CIDOf(r io.Reader, opts ...CIDOption) (cid.Cid, error) {
	prefix := cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_256, MhLength: -1}
	for _, o := range opts {
		if o != nil {
			o.applyCID(&prefix)
		}
	}
	h, err := multihash.GetHasher(prefix.MhType)
	if err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: hash function 0x%x: %w", prefix.MhType, err)
	}
	if _, err := io.Copy(h, r); err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: %w", err)
	}
	mh, err := multihash.Encode(h.Sum(nil), prefix.MhType)
	if err != nil {
		return cid.Undef, fmt.Errorf("p2pnode: CIDOf: %w", err)
	}
	return cid.NewCidV1(prefix.Codec, mh), nil
}

// Provide announces that this node has the content of a CID, until
// [Node.StopProviding] or Close. It stores a provider record with the peers
// closest to the CID, and returns nil once at least one of them has proved to
// hold it. From then on the node announces the CID again every 22 hours (see
// [WithReprovideInterval]), and to peers that have restarted and lost the record.
// With [WithDataDir] or [WithDatastore] it goes on after a restart of the node.
//
// As long as nobody holds the record, Provide waits, trying again with delays that
// grow from 1 second to 1 minute and whenever the node has peers again. When ctx
// ends first, it returns ctx's error with the reason; the CID is kept, and
// announced as soon as there is a peer for it. The same holds for a node without an
// address to announce, which gets an error at once. Each attempt is an
// [EventProvided]. A CID that is provided already is announced and verified again.
//
// The CID is written to the datastore first. If that fails, Provide returns the
// error, the CID is not kept, and Warnings of [Status] reports it until writing works
// again. A datastore that hangs holds up no call for more than a second after ctx
// has ended. StopProviding ends calls that wait, with an error.
//
// The error matches [ErrNoPeers] if no peer held the record: the routing table was
// empty, or the peers refused. It is [ErrDisabled] without a DHT, [ErrClosed]
// after Close, and one of its own for a CID that nobody can look up: an undefined
// one, one of an unknown hash function, or one with its content inside (identity
// hash). Two CIDs of one hash are the same to the DHT. Specification:
// github.com/libp2p/specs/tree/master/kad-dht.
func (n *Node) Provide(ctx context.Context, c cid.Cid) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	if err := kad.CheckCID(c); err != nil {
		return fmt.Errorf("p2pnode: provide: %w", err)
	}
	return dhtError(n, "provide "+c.String(), d.Provide(ctx, c))
}

// ProvideMany does what [Node.Provide] does for any number of CIDs, much faster
// than one call for each: it visits the peers of one region of the key space after
// the other. Its memory does not grow with the number of CIDs, except for what the
// node's datastore needs. It reports progress as [EventProvideProgress].
//
// It returns nil once a peer has taken the record of each CID that is still
// provided. A peer is asked every 10 minutes whether it holds what it takes. What
// others gave holds up a call only if it has more than 65,536 CIDs. At the first
// invalid CID it stops reading and returns the error; when ctx ends, it returns
// ctx's error. What it has read by then is kept and announced in the background.
// The other errors are those of [Node.Provide].
func (n *Node) ProvideMany(ctx context.Context, cids iter.Seq[cid.Cid]) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	return dhtError(n, "provide many", d.ProvideMany(ctx, cids))
}

// StopProviding ends what [Node.Provide] and [Node.ProvideMany] began, for good
// also with a data directory. Peers, and this node itself, forget the records when
// they expire, up to 48 hours later (see [WithRecordLifetime]). CIDs that are not provided are ignored. It returns [ErrDisabled]
// without a DHT, [ErrClosed] after Close, and errors of the datastore.
func (n *Node) StopProviding(ctx context.Context, cids ...cid.Cid) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	for _, c := range cids {
		if err := kad.CheckCID(c); err != nil {
			return fmt.Errorf("p2pnode: stop providing: %w", err)
		}
	}
	return dhtError(n, "stop providing", d.StopProviding(ctx, cids...))
}

// Providing yields what the node provides, announced or not, in no particular
// order. The DHT knows content by its hash, so each CID is of version 1 with the
// codec raw, whatever the one given had. CIDs added or removed meanwhile may be
// missing. A pair with an error is the last one: [ErrDisabled] without a DHT,
// [ErrClosed] after Close, ctx's error, or one of the datastore.
func (n *Node) Providing(ctx context.Context) iter.Seq2[cid.Cid, error] {
	return func(yield func(cid.Cid, error) bool) {
		d, err := needDHT(n)
		if err != nil {
			yield(cid.Undef, err)
			return
		}
		for c, err := range d.Providing(ctx) {
			if !yield(c, dhtError(n, "providing", err)) {
				return
			}
		}
	}
}

// FindOption configures a call of [Node.FindProviders] or [Node.FindPeers].
type FindOption interface{ applyFind(*kad.Search) error }

type findOption func(*kad.Search) error

func (o findOption) applyFind(s *kad.Search) error { return o(s) }

// FindSelf makes a search yield this node too if it is among the results. By
// default it does not.
func FindSelf() FindOption {
	return findOption(func(s *kad.Search) error {
		s.Self = true
		return nil
	})
}

// FindLimit ends a search after n results, at least 1. By default a search ends
// when the DHT knows no more.
func FindLimit(n int) FindOption {
	return findOption(func(s *kad.Search) error {
		if n < 1 {
			return fmt.Errorf("FindLimit: %d is below 1; leave it out for no limit", n)
		}
		s.Limit = n
		return nil
	})
}

// FindWithoutAddrs makes a search also yield peers whose addresses cannot be
// found, with their ID only. By default they are left out, because nobody can
// dial them.
func FindWithoutAddrs() FindOption {
	return findOption(func(s *kad.Search) error {
		s.WithoutAddrs = true
		return nil
	})
}

// FindDirectFirst makes a search yield peers that only relays reach, or whose
// addresses cannot be found, at its end, after those with direct addresses. By
// default peers come in the order in which they are found.
func FindDirectFirst() FindOption {
	return findOption(func(s *kad.Search) error {
		s.DirectFirst = true
		return nil
	})
}

// FindFollow makes a search go on until ctx ends, and yield each peer that comes
// later: it searches again 2.5 to 5 seconds after a search that has found somebody
// new, then after delays that grow to 2 minutes, and immediately, but at most every
// 5 seconds, when the node has peers again after it had none, or, in a network of
// less than 20 DHT servers, when one comes. A peer is yielded once, as long as
// fewer than 16,384 others have come since, and not again when it leaves and comes
// back.
//
// With nobody to ask, such a search waits for peers, without [ErrNoPeers]. It ends
// without an error when ctx ends, or after [FindLimit] results in all.
// [FindDirectFirst] applies to each search by itself.
func FindFollow() FindOption {
	return findOption(func(s *kad.Search) error {
		s.Follow = true
		return nil
	})
}

// FindProviders searches the DHT for peers that have the content of a CID, and
// yields each once, as soon as it is known, with addresses to dial, direct ones
// before relayed ones. Breaking out of the loop ends the search. With an empty
// routing table it first waits for a peer until ctx ends, at most 10 seconds. It
// ends when the 20 peers closest to the CID have answered, and does not wait for
// those that are silent for 2 seconds, unless all are.
//
// Provider records may lack addresses. The search looks those up in the
// background, 48 at a time for at most 5 seconds each; peers whose addresses are
// not found within 5 seconds of its end are left out, unless [FindWithoutAddrs]
// is given.
//
// A pair with an error is the last one. The error is [ErrNoPeers] when there
// was nobody to ask or nobody answered, ctx's error when ctx ends first, that
// of an invalid option, [ErrDisabled] without a DHT, and [ErrClosed] when the
// node is closed. A search that finds nobody ends without an error. [FindFollow]
// makes the search go on.
func (n *Node) FindProviders(ctx context.Context, c cid.Cid, opts ...FindOption) iter.Seq2[peer.AddrInfo, error] {
	if err := kad.CheckCID(c); err != nil {
		return failedSearch(n, fmt.Errorf("p2pnode: find providers: %w", err))
	}
	return search(ctx, n, "find providers of "+c.String(), c, opts)
}

// search implements [Node.FindProviders] and [Node.FindPeers].
func search(ctx context.Context, n *Node, what string, c cid.Cid, opts []FindOption) iter.Seq2[peer.AddrInfo, error] {
	var s kad.Search
	var wrong []error
	for _, o := range opts {
		if o != nil {
			wrong = append(wrong, o.applyFind(&s))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return failedSearch(n, fmt.Errorf("p2pnode: %s: %w", what, err))
	}
	return func(yield func(peer.AddrInfo, error) bool) {
		d, err := needDHT(n)
		if err != nil {
			yield(peer.AddrInfo{}, err)
			return
		}
		for ai, err := range d.FindProviders(ctx, c, s) {
			if !yield(ai, dhtError(n, what, err)) {
				return
			}
		}
	}
}

// failedSearch yields an error: [ErrClosed] or [ErrDisabled] before the
// caller's.
func failedSearch(n *Node, err error) iter.Seq2[peer.AddrInfo, error] {
	return func(yield func(peer.AddrInfo, error) bool) {
		if _, guard := needDHT(n); guard != nil {
			err = guard
		}
		yield(peer.AddrInfo{}, err)
	}
}
