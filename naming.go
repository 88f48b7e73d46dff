package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/kad"
)

const (
	// signValidity is how long a signed record is valid, unless SignValidity sets it.
	signValidity = ipns.DefaultRecordLifetime
	// signTTL is the TTL of a name, unless SignTTL sets it.
	signTTL = ipns.DefaultRecordTTL
)

// SignOption configures a call of [Node.PublishName] or [Node.PutSigned].
type SignOption interface{ applySign(*kad.Signed) error }

type signOption func(*kad.Signed) error

func (o signOption) applySign(s *kad.Signed) error { return o(s) }

// SignKey sets the key that signs, overriding the default of the node's own. A
// name is that of its key. The key is kept in memory only, never stored: after a
// restart the node puts the last signed record until it expires, but cannot renew
// it before the next call.
func SignKey(key crypto.PrivKey) SignOption {
	return signOption(func(s *kad.Signed) error {
		if isNil(key) {
			return errors.New("SignKey: the key is nil; leave it out for the node's own")
		}
		s.Owner = key
		return nil
	})
}

// SignValidity sets how long a signature is valid, overriding the default of 48
// hours: at least a minute. The node signs again when half of it is over, or at
// the next turn of [WithReprovideInterval]. It is how long the record is still
// found after the node has stopped, at most 48 hours.
func SignValidity(validity time.Duration) SignOption {
	return signOption(func(s *kad.Signed) error {
		if validity < time.Minute {
			return fmt.Errorf("SignValidity: %v: it must be at least a minute", validity)
		}
		s.Validity = validity
		return nil
	})
}

// SignTTL sets how long those who resolve a name may keep the answer, overriding
// the default of 5 minutes. This library keeps none; kubo and gateways do. It is
// only for [Node.PublishName].
func SignTTL(ttl time.Duration) SignOption {
	return signOption(func(s *kad.Signed) error {
		if ttl < 0 {
			return fmt.Errorf("SignTTL: %v is negative", ttl)
		}
		s.TTL = ttl
		return nil
	})
}

// applySign applies options to a record.
func applySign(s kad.Signed, opts []SignOption) (kad.Signed, error) {
	s.Validity = signValidity
	var wrong []error
	for _, o := range opts {
		if o != nil {
			wrong = append(wrong, o.applySign(&s))
		}
	}
	return s, errors.Join(wrong...)
}

// NameOf returns the IPNS name of a peer, as kubo shows it: /ipns/ and the
// peer ID as a CID in base 36. It returns "" for an invalid ID. Specification:
// https://specs.ipfs.tech/ipns/ipns-record/#ipns-name.
func NameOf(id peer.ID) string {
	if checkID(id) != nil {
		return ""
	}
	return ipns.NameFromPeer(id).AsPath().String()
}

// PublishName points an IPNS name at a path, such as /ipfs/<CID>: the node's own
// name, [NameOf] its ID, or that of the key of [SignKey]. It returns nil once at
// least one other peer has proved to hold the record. [Node.ResolveName] reads it,
// and so do other implementations on the same DHT, such as kubo.
//
// The record gets a sequence number above that of the DHT's record and of the last
// one of this node, or the same if it points at the same path. It is valid for 48
// hours (see [SignValidity]), and as long as the node runs it is signed and put
// again before that, and when the node has peers again: until
// [Node.UnpublishName] or Close, or until another node that has the key publishes a
// newer one. With [WithDataDir] or [WithDatastore] it goes on after a restart of
// the node, with SignKey until it expires.
//
// It returns [ErrNoPeers] when nobody could be asked to hold the record or nobody
// does, and ctx's error when ctx ends first: as after [Node.PutValue], the record
// is then published as soon as there are peers, with a higher number if the DHT
// turns out to hold one. If another node publishes under the same key meanwhile,
// the error names both sequence numbers, and nothing is kept. It returns
// [ErrTooLarge] for a path that does not fit into the 10 KiB of a record, an error
// for what is not a path, [ErrDisabled] without a DHT, and [ErrClosed] after Close.
// Specification: https://specs.ipfs.tech/ipns/ipns-record/.
func (n *Node) PublishName(ctx context.Context, to string, opts ...SignOption) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	s, err := applySign(kad.Signed{TTL: signTTL}, opts)
	if err != nil {
		return fmt.Errorf("p2pnode: publish name: %w", err)
	}
	p, err := path.NewPath(to)
	if err != nil {
		if c, err := cid.Decode(to); err == nil {
			return fmt.Errorf("p2pnode: publish name: %q is a CID, not a path: write /ipfs/%s", to, c)
		}
		return fmt.Errorf("p2pnode: publish name: %s is not a path like /ipfs/<CID>: %w", quoted(to), err)
	}
	s.Payload = []byte(p.String())
	id := n.id
	if s.Owner != nil {
		if id, err = PeerID(s.Owner); err != nil {
			return err
		}
	}
	s.Key = kad.NameKey(id)
	return dhtError(n, "publish name "+ipns.NameFromPeer(id).String(), d.PutSigned(ctx, s))
}

// UnpublishName ends what [Node.PublishName] began, for good also with a data
// directory. The name is the node's own, [NameOf] its ID, or another in any form
// that [Node.ResolveName] takes. It is gone when its record expires, at most 48
// hours after it was last put. One that is not published is ignored. It returns an
// error for what is not a name, and those of [Node.StopPutting].
func (n *Node) UnpublishName(ctx context.Context, name string) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	id, err := parseName(name)
	if err != nil {
		return fmt.Errorf("p2pnode: unpublish name: %w", err)
	}
	return dhtError(n, "unpublish name "+quoted(name), d.StopPutting(ctx, kad.NameKey(id)))
}

// ResolveName returns the path at which an IPNS name points, according to the best
// record that the DHT holds. The name is a peer ID or a CID of one, in base 36 or
// any other base, with or without /ipns/ before it. The path may itself begin with
// /ipns/: it is not resolved further, and neither are DNS names. Answers are not
// cached.
//
// It returns [ErrNotFound] for a name that is not published or whose record has
// expired, an error for what is not a name, [ErrNoPeers] when there was nobody to
// ask or nobody answered, ctx's error when ctx ends first, [ErrDisabled] without a
// DHT, and [ErrClosed] after Close. Specification:
// https://specs.ipfs.tech/ipns/ipns-record/.
func (n *Node) ResolveName(ctx context.Context, name string) (string, error) {
	d, err := needDHT(n)
	if err != nil {
		return "", err
	}
	id, err := parseName(name)
	if err != nil {
		return "", fmt.Errorf("p2pnode: resolve name: %w", err)
	}
	to, err := d.Resolve(ctx, id)
	return to, dhtError(n, "resolve name "+quoted(name), err)
}

// parseName returns the peer whose name it is.
func parseName(name string) (peer.ID, error) {
	short := strings.TrimPrefix(name, ipns.NamespacePrefix)
	if at := strings.IndexByte(short, '/'); at > 0 && short != name {
		return "", fmt.Errorf("%s has something behind the name: resolve /ipns/%s, and append %s", quoted(name), short[:at], short[at:])
	}
	id, err := peer.Decode(short)
	if err != nil {
		if strings.Contains(short, ".") {
			return "", fmt.Errorf("%s is a DNS name: only names of keys are resolved", quoted(name))
		}
		return "", fmt.Errorf("%s is not an IPNS name: give a peer ID, or a CID of one like k51…: %w", quoted(name), err)
	}
	return id, nil
}

// SignedRecord is a record of [Node.GetSigned].
type SignedRecord struct {
	// Owner is the peer whose key has signed the record.
	Owner peer.ID
	// Seq is the sequence number, from 1 on: of two records, the higher one
	// counts.
	Seq uint64
	// Expires is when the record stops being valid, unless it is renewed.
	Expires time.Time
	// Payload is what the owner has to say.
	Payload []byte
}

// PutSigned stores a record that only the owner of its key can write, in a
// namespace of [WithSignedRecords]. The key is /<namespace>/<peer ID>, with the
// node's ID or that of the key of [SignKey], or the same with /<anything> behind
// it, and has at most 512 bytes. It returns nil once at least one other peer has
// proved to hold the record. [Node.GetSigned] reads it.
//
// The signature covers the name of the network and the key: the record is worth
// nothing elsewhere. It has a sequence number above that of the DHT's record and
// of the last one of this node, or the same if the payload is the same. Peers
// refuse an older one. Of two records with the same number, the one that expires
// last counts, and then the one whose payload is higher in the order of bytes.
//
// It is valid for 48 hours (see [SignValidity]), and as long as the node runs it is
// signed and put again before that, and when the node has peers again: until
// [Node.StopPutting] of the key or Close, or until another node that has the key
// puts a newer one. With [WithDataDir] or [WithDatastore] it goes on after a
// restart of the node, with SignKey until it expires.
//
// It returns [ErrTooLarge] for a payload above 64 KiB, an error that names both for
// a key of another peer, and otherwise those of [Node.PublishName].
func (n *Node) PutSigned(ctx context.Context, key string, payload []byte, opts ...SignOption) error {
	d, err := needDHT(n)
	if err != nil {
		return err
	}
	s, err := applySign(kad.Signed{Key: key, Payload: payload, TTL: -1}, opts)
	if err == nil && s.TTL >= 0 {
		err = errors.New("SignTTL: only names have a TTL; leave it out")
	}
	if err != nil {
		return fmt.Errorf("p2pnode: put signed %s: %w", quoted(key), err)
	}
	s.TTL = 0
	if strings.HasPrefix(key, ipns.NamespacePrefix) {
		return fmt.Errorf("p2pnode: put signed %s: names are published with PublishName", quoted(key))
	}
	return dhtError(n, "put signed "+quoted(key), d.PutSigned(ctx, s))
}

// GetSigned returns the best record that the DHT holds under a key of
// [Node.PutSigned], signed by the peer that the key names. It returns
// [ErrNotFound] when there is none or it has expired, an error for a key of
// another shape or namespace, [ErrNoPeers] when there was nobody to ask or nobody
// answered, ctx's error when ctx ends first, [ErrDisabled] without a DHT, and
// [ErrClosed] after Close.
func (n *Node) GetSigned(ctx context.Context, key string) (SignedRecord, error) {
	d, err := needDHT(n)
	if err != nil {
		return SignedRecord{}, err
	}
	owner, r, err := d.SignedValue(ctx, key)
	if err != nil {
		return SignedRecord{}, dhtError(n, "get signed "+quoted(key), err)
	}
	return SignedRecord{Owner: owner, Seq: r.Seq, Expires: r.Expires, Payload: r.Payload}, nil
}
