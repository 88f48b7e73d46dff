package kad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/signed"
)

// Signed is a record that its owner signs, with a sequence number, and again
// before it expires.
type Signed struct {
	Key      string
	Payload  []byte         // of an IPNS record: the path
	TTL      time.Duration  // of an IPNS record
	Validity time.Duration  // from each signature on
	Owner    crypto.PrivKey // nil: the node's
}

// statement is what an owner signs.
type statement struct {
	payload []byte
	ttl     time.Duration
	seq     uint64
	expires time.Time
}

// says reports whether two statements say the same to those who read them.
func (s statement) says(other statement) bool {
	return bytes.Equal(s.payload, other.payload) && s.ttl == other.ttl
}

// form is how the records of a namespace are signed and read.
type form interface {
	// check refuses a key under which the owner cannot sign.
	check(key string, owner peer.ID) error
	sign(key string, owner crypto.PrivKey, s statement) ([]byte, error)
	// read returns what a validated record says.
	read(value []byte) (statement, error)
	lastSeq() uint64
}

// formOf returns the form of the records under a key, or nil if they are not
// signed in a form known here.
func (d *DHT) formOf(key string) form {
	switch namespace, _, _ := record.SplitKey(key); {
	case namespace == "ipns":
		return ipnsForm{}
	case slices.Contains(d.cfg.Signed, namespace):
		return appForm{string(d.cfg.Prefix)}
	default:
		return nil
	}
}

// ipnsForm is that of IPNS records, in the versions 1 and 2.
type ipnsForm struct{}

func (ipnsForm) check(key string, owner peer.ID) error {
	if name := ipns.NameFromPeer(owner); key != string(name.RoutingKey()) {
		return fmt.Errorf("the key is not that of the name %s", name)
	}
	return nil
}

func (ipnsForm) sign(_ string, owner crypto.PrivKey, s statement) ([]byte, error) {
	p, err := path.NewPath(string(s.payload))
	if err != nil {
		return nil, err
	}
	r, err := ipns.NewRecord(owner, p, s.seq, s.expires, s.ttl)
	if err != nil {
		return nil, err
	}
	value, err := ipns.MarshalRecord(r)
	if err == nil && len(value) > ipns.MaxRecordSize {
		err = fmt.Errorf("%w: with this path the record has %d bytes; an IPNS record has at most %d", errs.ErrTooLarge, len(value), ipns.MaxRecordSize)
	}
	return value, err
}

func (ipnsForm) read(value []byte) (s statement, err error) {
	r, err := ipns.UnmarshalRecord(value)
	if err != nil {
		return s, err
	}
	if s.seq, err = r.Sequence(); err != nil {
		return s, err
	}
	if s.expires, err = r.Validity(); err != nil {
		return s, err
	}
	s.ttl, _ = r.TTL() // some have none
	p, err := r.Value()
	if err != nil {
		return s, err
	}
	s.payload = []byte(p.String())
	return s, nil
}

// A sequence number is a signed number in the record's CBOR.
func (ipnsForm) lastSeq() uint64 { return math.MaxInt64 }

// appForm is that of applications' signed records, of one network.
type appForm struct{ network string }

func (appForm) check(key string, owner peer.ID) error {
	id, err := signed.Owner(key)
	if err == nil && id != owner {
		err = fmt.Errorf("the key names %s, and the record would be signed by %s; give the right key with SignKey", id, owner)
	}
	return err
}

func (f appForm) sign(key string, owner crypto.PrivKey, s statement) ([]byte, error) {
	return signed.Seal(f.network, key, owner, signed.Record{Seq: s.seq, Expires: s.expires, Payload: s.payload})
}

func (appForm) read(value []byte) (statement, error) {
	r, err := signed.Read(value)
	return statement{payload: r.Payload, seq: r.Seq, expires: r.Expires}, err
}

func (appForm) lastSeq() uint64 { return math.MaxUint64 }

// NameKey returns the key of a peer's IPNS record.
func NameKey(id peer.ID) string { return string(ipns.NameFromPeer(id).RoutingKey()) }

// ErrNewer reports that the DHT holds a record that the validator prefers.
var ErrNewer = errors.New("the DHT holds a newer record")

// newer returns the error for a record of which the DHT holds a better one.
func (d *DHT) newer(key string, value, better []byte) error {
	if f := d.formOf(key); f != nil {
		mine, err := f.read(value)
		theirs, err2 := f.read(better)
		if err == nil && err2 == nil {
			return fmt.Errorf("%w: its sequence number is %d, that of this one %d", ErrNewer, theirs.seq, mine.seq)
		}
	}
	return fmt.Errorf("%w: the validator prefers it to this one", ErrNewer)
}

// prefers reports whether the validator prefers another record to one.
func (d *DHT) prefers(key string, other, value []byte) bool {
	v := d.tables[0].Validator
	if len(other) == 0 || bytes.Equal(other, value) || v.Validate(key, other) != nil {
		return false
	}
	i, err := v.Select(key, [][]byte{value, other})
	return err == nil && i == 1
}

// PutSigned signs a record with a sequence number above all known ones, or the
// same if it says the same, and stores it. It is signed and put again until
// StopPutting, also if nobody was there to hold it.
func (d *DHT) PutSigned(ctx context.Context, s Signed) error {
	ctx, done := d.bind(ctx)
	defer done()
	if err := d.checkKey(s.Key); err != nil {
		return err
	}
	f := d.formOf(s.Key)
	if f == nil {
		return notSigned(s.Key)
	}
	if len(s.Payload) > signed.MaxPayload {
		return fmt.Errorf("%w: the payload has %d bytes; a signed record carries %d", errs.ErrTooLarge, len(s.Payload), signed.MaxPayload)
	}
	if s.Owner == nil {
		s.Owner = d.cfg.Host.Peerstore().PrivKey(d.self)
	}
	owner, err := peer.IDFromPrivateKey(s.Owner)
	if err != nil {
		return err
	}
	if err := f.check(s.Key, owner); err != nil {
		return err
	}
	free, err := d.values.turns.take(ctx, s.Key)
	if err != nil {
		return err
	}
	defer free()

	empty := d.awaitTable(ctx)
	if errors.Is(empty, errs.ErrClosed) {
		return empty
	}
	var earlier [][]byte
	if k := d.values.get(s.Key); k != nil {
		earlier = append(earlier, k.value)
	}
	unseen := true
	if empty == nil {
		best, err := d.GetValue(ctx, s.Key)
		if errors.Is(err, errs.ErrClosed) {
			return err
		}
		unseen = err != nil && !errors.Is(err, errs.ErrNotFound)
		earlier = append(earlier, best)
	}
	want := statement{payload: s.Payload, ttl: s.TTL, expires: time.Now().Add(s.Validity)}
	if want.seq, err = nextSeq(f, want, earlier); err != nil {
		return err
	}
	value, err := f.sign(s.Key, s.Owner, want)
	if err != nil {
		return err
	}
	if err := d.tables[0].Validator.Validate(s.Key, value); err != nil {
		return err
	}
	// It is kept first: its number must not be given to another one.
	k := &kept{value: value, owner: s.Owner, validity: s.Validity, unseen: unseen, next: time.Now().Add(retryMax)}
	if empty != nil {
		k.next = time.Now()
	}
	if err := d.values.keep(context.WithoutCancel(ctx), s.Key, k); err != nil {
		return d.closing(err)
	}
	if empty != nil {
		return empty
	}
	err = d.put(ctx, s.Key, value)
	switch {
	case err == nil:
		return d.closing(d.values.placed(context.WithoutCancel(ctx), s.Key, k))
	case errors.Is(err, ErrNewer): // of somebody else with the key, just now
		return errors.Join(err, d.closing(d.values.replace(context.WithoutCancel(ctx), s.Key, k, nil)))
	default:
		return err
	}
}

// nextSeq returns the sequence number of a statement that is to count more than
// earlier records: that of one that says the same, otherwise one more.
func nextSeq(f form, s statement, earlier [][]byte) (uint64, error) {
	next := uint64(1)
	for _, value := range earlier {
		old, err := f.read(value)
		switch {
		case err != nil: // there is none, or none that counts
		case s.says(old) && !old.expires.After(s.expires):
			next = max(next, old.seq)
		case old.seq >= f.lastSeq():
			return 0, fmt.Errorf("the record has the highest sequence number, %d: it cannot be replaced", old.seq)
		default:
			next = max(next, old.seq+1)
		}
	}
	return next, nil
}

// SignedValue returns the best record under a key of an application's namespace,
// and who has signed it.
func (d *DHT) SignedValue(ctx context.Context, key string) (owner peer.ID, r signed.Record, err error) {
	if err := d.checkKey(key); err != nil {
		return "", r, err
	}
	if _, ok := d.formOf(key).(appForm); !ok {
		return "", r, notSigned(key)
	}
	if owner, err = signed.Owner(key); err != nil {
		return "", r, err
	}
	value, err := d.GetValue(ctx, key)
	if err != nil {
		return "", r, err
	}
	r, err = signed.Read(value)
	return owner, r, err
}

// notSigned is the error for a key of a namespace without signed records.
func notSigned(key string) error {
	namespace, _, _ := record.SplitKey(key)
	return fmt.Errorf("the records of the namespace %q are not signed ones; give WithSignedRecords on every node", namespace)
}

// Resolve returns the path to which the best IPNS record of a peer points.
func (d *DHT) Resolve(ctx context.Context, id peer.ID) (string, error) {
	value, err := d.GetValue(ctx, NameKey(id))
	if err != nil {
		return "", err
	}
	s, err := ipnsForm{}.read(value)
	return string(s.payload), err
}

// owns reports whether the node's own key signs the records under a key.
func (d *DHT) owns(key string) bool {
	f := d.formOf(key)
	return f != nil && f.check(key, d.self) == nil
}

// renew signs a kept record again, and puts it. It is no longer kept if somebody
// else who has the key has published since.
func (d *DHT) renew(ctx context.Context, key string) error {
	free, err := d.values.turns.take(ctx, key)
	if err != nil {
		return err
	}
	defer free()
	f, k := d.formOf(key), d.values.get(key)
	if f == nil || k == nil || k.owner == nil {
		return nil
	}
	mine, err := f.read(k.value)
	if err != nil {
		return err
	}
	best, err := d.GetValue(ctx, key)
	if err != nil && !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	fresh := d.values.copied(k)
	fresh.unseen = false
	mine.expires = later(mine.expires, time.Now().Add(k.validity))
	if d.prefers(key, best, k.value) {
		theirs, err := f.read(best)
		switch {
		case err != nil:
			return err
		case mine.says(theirs) && (k.unseen || mine.seq == theirs.seq):
			mine.seq, mine.expires = theirs.seq, later(mine.expires, theirs.expires)
		case k.unseen && theirs.seq < f.lastSeq():
			mine.seq = theirs.seq + 1
		default:
			d.cfg.Log.Info("no longer renewing a record: the DHT holds a newer one", "key", key, "err", d.newer(key, k.value, best))
			return d.values.replace(ctx, key, k, nil)
		}
	}
	if fresh.value, err = f.sign(key, k.owner, mine); err != nil {
		return err
	}
	if err := d.values.replace(ctx, key, k, fresh); err != nil {
		return err
	}
	return d.put(ctx, key, fresh.value)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
