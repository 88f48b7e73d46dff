// Package signed is the format of the records that applications sign for
// namespaces of their own, and their validator. Under /<namespace>/<peer ID>, or
// the same with /<anything> behind it, only the key of that peer can sign a
// record, and of two the one with the higher sequence number counts.
//
// A record is an envelope of libp2p (RFC 0002 of github.com/libp2p/specs) in its
// one shortest form. Its domain is the word "p2pnode-signed-record", the prefix of
// the network's DHT protocol and the key, with a newline in between, so that a
// record is worth nothing under another key or on another network. Its payload is
// the sequence number and the seconds from 1970 to its expiry, 8 bytes each, the
// highest first, and what the application has to say.
package signed

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	envelope "github.com/libp2p/go-libp2p/core/record"
)

const (
	// MaxPayload is the size of the largest payload, in bytes.
	MaxPayload = 64 << 10
	// MaxKey is the length of the longest key, in bytes.
	MaxKey = 512

	// maxRecord bounds a record: next to the payload it has the header, a public key
	// and a signature, of which those of RSA are the largest.
	maxRecord = MaxPayload + 4<<10

	word   = "p2pnode-signed-record"
	codec  = "/p2pnode/signed-record/1"
	header = 16
)

// lastExpiry is the end of the year 9999, in seconds: the last that has a text.
var lastExpiry = uint64(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix())

var errShape = errors.New("it is not a signed record in its shortest form")

// Record is what a record says.
type Record struct {
	Seq     uint64
	Expires time.Time // in whole seconds
	Payload []byte
}

// Owner returns the peer that signs the records under a key.
func Owner(key string) (peer.ID, error) {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) < 3 || parts[0] != "" || parts[1] == "" {
		return "", errors.New("a key must look like /<namespace>/<peer ID> or /<namespace>/<peer ID>/<name>")
	}
	if len(key) > MaxKey {
		return "", fmt.Errorf("the key has %d bytes; at most %d are possible", len(key), MaxKey)
	}
	id, err := peer.Decode(parts[2])
	switch {
	case err != nil:
		return "", fmt.Errorf("a key must look like /<namespace>/<peer ID> or /<namespace>/<peer ID>/<name>: %q is not a peer ID", parts[2])
	case id.String() != parts[2]:
		return "", fmt.Errorf("write the peer ID as %s", id)
	case len(parts) == 4 && parts[3] == "":
		return "", errors.New("the name behind the peer ID is empty; leave out the last slash")
	}
	return id, nil
}

// body is a record and the domain for which it is signed.
type body struct {
	Record
	domain string
}

func domain(network, key string) string { return word + "\n" + network + "\n" + key }

func (b *body) Domain() string { return b.domain }
func (b *body) Codec() []byte  { return []byte(codec) }

func (b *body) MarshalRecord() ([]byte, error) {
	out := binary.BigEndian.AppendUint64(nil, b.Seq)
	out = binary.BigEndian.AppendUint64(out, uint64(b.Expires.Unix()))
	return append(out, b.Payload...), nil
}

func (b *body) UnmarshalRecord(p []byte) error {
	if len(p) < header || len(p) > header+MaxPayload {
		return errShape
	}
	expires := binary.BigEndian.Uint64(p[8:])
	if expires > lastExpiry {
		return errors.New("it expires after the year 9999")
	}
	b.Seq, b.Expires, b.Payload = binary.BigEndian.Uint64(p), time.Unix(int64(expires), 0), p[header:]
	return nil
}

// Seal signs a record for a key of a network.
func Seal(network, key string, owner crypto.PrivKey, r Record) ([]byte, error) {
	switch {
	case len(r.Payload) > MaxPayload:
		return nil, fmt.Errorf("the payload has %d bytes, above the %d of a signed record", len(r.Payload), MaxPayload)
	case r.Expires.Unix() < 0 || uint64(r.Expires.Unix()) > lastExpiry:
		return nil, fmt.Errorf("%v is not a time at which a record can expire", r.Expires)
	}
	e, err := envelope.Seal(&body{r, domain(network, key)}, owner)
	if err != nil {
		return nil, err
	}
	return e.Marshal()
}

// parse returns what a record says, without looking at the signature.
func parse(value []byte) (Record, *envelope.Envelope, error) {
	if len(value) > maxRecord {
		return Record{}, nil, fmt.Errorf("it has %d bytes, above the %d of a signed record", len(value), maxRecord)
	}
	e, err := envelope.UnmarshalEnvelope(value)
	if err != nil {
		return Record{}, nil, fmt.Errorf("%w: %w", errShape, err)
	}
	// Strangers could otherwise make as many records of one as they like.
	if shortest, err := e.Marshal(); err != nil || !bytes.Equal(shortest, value) || string(e.PayloadType) != codec {
		return Record{}, nil, errShape
	}
	var b body
	if err := b.UnmarshalRecord(e.RawPayload); err != nil {
		return Record{}, nil, err
	}
	return b.Record, e, nil
}

// Read returns what a record says that has been validated.
func Read(value []byte) (Record, error) {
	r, _, err := parse(value)
	return r, err
}

// Validator accepts the records of one network.
type Validator struct{ Network string }

var _ record.Validator = Validator{}

// Validate checks that a record is signed by the owner of the key, for this key
// and network, and has not expired.
func (v Validator) Validate(key string, value []byte) error {
	owner, err := Owner(key)
	if err != nil {
		return err
	}
	r, e, err := parse(value)
	if err != nil {
		return err
	}
	signer, err := peer.IDFromPublicKey(e.PublicKey)
	if err != nil {
		return err
	}
	if signer != owner {
		return fmt.Errorf("the key names %s, and the record is signed by %s", owner, signer)
	}
	if _, err := envelope.ConsumeTypedEnvelope(value, &body{domain: domain(v.Network, key)}); err != nil {
		return fmt.Errorf("the signature does not match, or is for another key or network: %w", err)
	}
	if !time.Now().Before(r.Expires) {
		return fmt.Errorf("it expired at %v", r.Expires.UTC())
	}
	return nil
}

// Select returns the record with the highest sequence number; of several the one
// that expires last, then the one whose payload, or else the whole of which, is
// the highest in the order of bytes.
func (v Validator) Select(_ string, values [][]byte) (int, error) {
	best, found := -1, Record{}
	for i, value := range values {
		r, _, err := parse(value)
		if err == nil && (best < 0 || compare(r, found, value, values[best]) > 0) {
			best, found = i, r
		}
	}
	if best < 0 {
		return 0, errShape
	}
	return best, nil
}

func compare(a, b Record, valueA, valueB []byte) int {
	return cmp.Or(
		cmp.Compare(a.Seq, b.Seq), a.Expires.Compare(b.Expires),
		bytes.Compare(a.Payload, b.Payload), bytes.Compare(valueA, valueB),
	)
}
