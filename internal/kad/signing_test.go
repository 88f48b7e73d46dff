package kad

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
	"github.com/ipfs/boxo/path"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signed"
)

// newKey returns a private key and its peer ID.
func newKey(tb testing.TB, kind int) (crypto.PrivKey, peer.ID) {
	tb.Helper()
	key, _, err := crypto.GenerateKeyPairWithReader(kind, 2048, rand.Reader)
	must(tb, err)
	id, err := peer.IDFromPrivateKey(key)
	must(tb, err)
	return key, id
}

var keyTypes = map[string]int{"Ed25519": crypto.Ed25519, "RSA": crypto.RSA, "ECDSA": crypto.ECDSA, "secp256k1": crypto.Secp256k1}

const content = "/ipfs/bafkqac3imvwgy3zao5xxe3de"

// boxoRecord makes a record as kubo does, with boxo's options.
func boxoRecord(tb testing.TB, key crypto.PrivKey, seq uint64, opts ...ipns.Option) []byte {
	tb.Helper()
	p, err := path.NewPath(content)
	must(tb, err)
	r, err := ipns.NewRecord(key, p, seq, time.Now().Add(ipns.DefaultRecordLifetime), ipns.DefaultRecordTTL, opts...)
	must(tb, err)
	value, err := ipns.MarshalRecord(r)
	must(tb, err)
	return value
}

// Records that boxo makes, as kubo does, are valid and read here.
func TestReadsNamesOfBoxo(t *testing.T) {
	validator := Validators(newHost(t), nil, slog.New(slog.DiscardHandler))
	for name, kind := range keyTypes {
		for _, v1 := range []bool{true, false} {
			key, id := newKey(t, kind)
			value := boxoRecord(t, key, 7, ipns.WithV1Compatibility(v1))
			if err := validator.Validate(NameKey(id), value); err != nil {
				t.Errorf("%s, version 1 %v: %v", name, v1, err)
			}
			s, err := ipnsForm{}.read(value)
			if err != nil || s.seq != 7 || string(s.payload) != content || s.ttl != ipns.DefaultRecordTTL || time.Until(s.expires) < 47*time.Hour {
				t.Errorf("%s, version 1 %v: %+v, %v", name, v1, s, err)
			}
		}
	}
}

// Records made here are valid for boxo, and have both signatures.
func TestBoxoReadsOurNames(t *testing.T) {
	for name, kind := range keyTypes {
		key, id := newKey(t, kind)
		want := statement{payload: []byte(content), ttl: time.Minute, seq: 3, expires: time.Now().Add(time.Hour)}
		value, err := ipnsForm{}.sign(NameKey(id), key, want)
		must(t, err)
		r, err := ipns.UnmarshalRecord(value)
		must(t, err)
		if err := ipns.ValidateWithName(r, ipns.NameFromPeer(id)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p, err1 := r.Value()
		seq, err2 := r.Sequence()
		ttl, err3 := r.TTL()
		if err := errors.Join(err1, err2, err3); err != nil || p.String() != content || seq != 3 || ttl != time.Minute {
			t.Errorf("%s: %v, %d, %v, %v", name, p, seq, ttl, err)
		}
		var old pb.IpnsRecord
		must(t, proto.Unmarshal(value, &old))
		if len(old.GetSignatureV1()) == 0 || string(old.GetValue()) != content {
			t.Errorf("%s: readers of version 1 find nothing", name)
		}
	}
}

// A record of a public key is taken under its own key only.
func TestPublicKeyRecords(t *testing.T) {
	a, b := newDHT(t), newDHT(t)
	meet(t, a, b.cfg.Host.(*nethost.Host))
	ctx := testContext(t)
	key, id := newKey(t, crypto.RSA)
	value, err := crypto.MarshalPublicKey(key.GetPublic())
	must(t, err)
	must(t, a.PutValue(ctx, "/pk/"+string(id), value))
	if got, err := b.GetValue(ctx, "/pk/"+string(id)); err != nil || !bytes.Equal(got, value) {
		t.Errorf("got %x, %v", got, err)
	}
	_, other := newKey(t, crypto.RSA)
	if err := a.PutValue(ctx, "/pk/"+string(other), value); err == nil || !strings.Contains(err.Error(), "does not match") {
		t.Errorf("under the key of another: %v", err)
	}
	for key, want := range map[string]string{
		"/pk/" + id.String(): "not its text", "/ipns/" + id.String(): "not its text", "/pk/" + b.self.String(): "not its text", "/pk/x": "not the binary form",
	} {
		if _, err := a.GetValue(ctx, key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// signing are two DHTs with signed records of "app", of which the first signs.
func signing(t *testing.T) (a, b *DHT) {
	t.Helper()
	with := func(c *Config) { c.Signed = []string{"app"} }
	a, b = newDHT(t, with), newDHT(t, with)
	meet(t, a, b.cfg.Host.(*nethost.Host))
	return a, b
}

// The sequence number goes up when the record says something else, or would expire
// sooner; the DHT's record counts as well as the last one of the node.
func TestSequenceNumbers(t *testing.T) {
	a, b := signing(t)
	ctx := testContext(t)
	key := "/app/" + a.self.String()
	number := func(d *DHT) uint64 {
		t.Helper()
		_, r, err := d.SignedValue(ctx, key)
		must(t, err)
		return r.Seq
	}
	for _, row := range []struct {
		payload  string
		validity time.Duration
		want     uint64
	}{{"x", time.Hour, 1}, {"x", 2 * time.Hour, 1}, {"x", time.Hour, 2}, {"y", time.Hour, 3}, {"", time.Hour, 4}} {
		must(t, a.PutSigned(ctx, Signed{Key: key, Payload: []byte(row.payload), Validity: row.validity}))
		if got := number(b); got != row.want {
			t.Errorf("%q for %v: number %d, want %d", row.payload, row.validity, got, row.want)
		}
	}
	// A second node with the same key.
	owner := a.cfg.Host.Peerstore().PrivKey(a.self)
	must(t, b.PutSigned(ctx, Signed{Key: key, Payload: []byte("z"), Validity: time.Hour, Owner: owner}))
	if got := number(a); got != 5 {
		t.Errorf("of the second node: number %d", got)
	}
	// Without its own, the node finds the number in the DHT.
	must(t, a.StopPutting(ctx, key))
	must(t, a.PutSigned(ctx, Signed{Key: key, Payload: []byte("a"), Validity: time.Hour}))
	if got := number(b); got != 6 {
		t.Errorf("after StopPutting: number %d", got)
	}
	if n := a.Values(); n != 1 {
		t.Errorf("%d records are kept", n)
	}
}

// Calls at the same time give each record a number of its own.
func TestSequenceNumbersOfCallsAtTheSameTime(t *testing.T) {
	a, b := signing(t)
	ctx := testContext(t)
	key := "/app/" + a.self.String()
	done := make(chan error)
	for i := range 8 {
		go func() { done <- a.PutSigned(ctx, Signed{Key: key, Payload: []byte{byte(i)}, Validity: time.Hour}) }()
	}
	for range 8 {
		must(t, <-done)
	}
	if _, r, err := b.SignedValue(ctx, key); err != nil || r.Seq != 8 {
		t.Errorf("number %d, %v", r.Seq, err)
	}
	// One whose context has ended does not wait for its turn.
	free, err := a.values.turns.take(ctx, key)
	must(t, err)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.PutSigned(ended, Signed{Key: key, Payload: []byte("x"), Validity: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("PutSigned = %v", err)
	}
	free()
}

// The highest number cannot be replaced, of either kind.
func TestLastSequenceNumber(t *testing.T) {
	for f, last := range map[form]uint64{ipnsForm{}: math.MaxInt64, appForm{"/test"}: math.MaxUint64} {
		owner, id := newKey(t, crypto.Ed25519)
		key := NameKey(id)
		if f != (ipnsForm{}) {
			key = "/app/" + id.String()
		}
		old := statement{payload: []byte(content), seq: last, expires: time.Now().Add(time.Hour)}
		value, err := f.sign(key, owner, old)
		must(t, err)
		next := statement{payload: []byte(content + "/x"), expires: time.Now().Add(time.Hour)}
		if seq, err := nextSeq(f, next, [][]byte{nil, value}); err == nil {
			t.Errorf("%T: after the last one comes %d", f, seq)
		}
		next.payload, next.expires = old.payload, next.expires.Add(time.Hour)
		if seq, err := nextSeq(f, next, [][]byte{value}); err != nil || seq != last {
			t.Errorf("%T: the same again has %d, %v", f, seq, err)
		}
	}
}

// Older records, and those by the wrong key, are refused with words that name the
// numbers and the peers: by the node itself, and when other peers hold the newer
// one.
func TestRefusesOlderAndForeignRecords(t *testing.T) {
	a, b := signing(t)
	ctx := testContext(t)
	mine, theirs := "/app/"+a.self.String(), "/app/"+b.self.String()
	owner, id := newKey(t, crypto.Ed25519)
	for key, s := range map[string]Signed{
		mine:        {Key: mine, Validity: time.Hour, Payload: []byte("x")},
		NameKey(id): {Key: NameKey(id), Validity: time.Hour, Payload: []byte(content), Owner: owner},
	} {
		must(t, a.PutSigned(ctx, s))
		old, err := b.GetValue(ctx, key)
		must(t, err)
		s.Payload = append(slices.Clone(s.Payload), "/y"...)
		must(t, a.PutSigned(ctx, s))
		for name, d := range map[string]*DHT{"the node itself": a, "another": b} {
			err := d.PutValue(ctx, key, old)
			if !errors.Is(err, ErrNewer) || errors.Is(err, errs.ErrNoPeers) || !strings.Contains(err.Error(), "its sequence number is 2, that of this one 1") {
				t.Errorf("%s, %q: %v", name, key, err)
			}
		}
		if n := b.Values(); n != 0 {
			t.Errorf("%d refused records are kept", n)
		}
	}
	err := a.PutSigned(ctx, Signed{Key: theirs, Validity: time.Hour, Payload: []byte("x")})
	if err == nil || !strings.Contains(err.Error(), a.self.String()) || !strings.Contains(err.Error(), b.self.String()) {
		t.Errorf("under another's key: %v", err)
	}
	value, err := a.GetValue(ctx, mine)
	must(t, err)
	if err := a.PutValue(ctx, theirs, value); err == nil || !strings.Contains(err.Error(), "is signed by "+a.self.String()) {
		t.Errorf("another's record: %v", err)
	}
	if err := a.PutSigned(ctx, Signed{Key: mine, Validity: time.Hour, Payload: make([]byte, signed.MaxPayload+1)}); !errors.Is(err, errs.ErrTooLarge) {
		t.Errorf("a large payload: %v", err)
	}
	if err := a.PutSigned(ctx, Signed{Key: NameKey(a.self), Validity: time.Hour, Payload: []byte(content + "/" + strings.Repeat("x", ipns.MaxRecordSize))}); !errors.Is(err, errs.ErrTooLarge) {
		t.Errorf("a long path: %v", err)
	}
	if err := a.PutSigned(ctx, Signed{Key: NameKey(b.self), Validity: time.Hour, Payload: []byte(content)}); err == nil {
		t.Error("another's name is published")
	}
}

// What is stored of a record is read as it was; anything else is skipped.
func FuzzParseKept(f *testing.F) {
	f.Add((&kept{value: []byte("x"), validity: time.Hour, unseen: true}).encode())
	f.Add((&kept{value: []byte("x")}).encode())
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, ok := parseKept(b)
		if !ok {
			return
		}
		again, ok := parseKept(k.encode())
		if !ok || again.unseen != k.unseen || again.validity != k.validity || !bytes.Equal(again.value, k.value) {
			t.Errorf("%x: %+v, again %+v, %v", b, k, again, ok)
		}
	})
}

// A name is published in the Internet's and in the LAN's DHT, and whoever is only in
// one of them reads it.
func TestNamesGoToBothDHTs(t *testing.T) {
	two := func(c *Config) { c.Layout = Two }
	d := newDHT(t, two)
	var holders []*nethost.Host
	for _, p := range []protocol.ID{"/test/kad/1.0.0", "/test/lan/kad/1.0.0"} {
		var held atomic.Pointer[dhtpb.Message]
		holders = append(holders, scriptedAs(t, p, func(m *dhtpb.Message) *dhtpb.Message {
			switch m.Type {
			case dhtpb.Message_PUT_VALUE:
				held.Store(m)
				return m
			case dhtpb.Message_GET_VALUE:
				reply := dhtpb.NewMessage(m.Type, m.Key, 0)
				if has := held.Load(); has != nil && bytes.Equal(has.Key, m.Key) {
					reply.Record = has.Record
				}
				return reply
			}
			return dhtpb.NewMessage(m.Type, m.Key, 0)
		}))
		meet(t, d, holders[len(holders)-1])
	}
	must(t, d.PutSigned(testContext(t), Signed{Key: NameKey(d.self), Payload: []byte(content), TTL: time.Minute, Validity: time.Hour}))
	for i, h := range holders {
		reader := newDHT(t, two)
		meet(t, reader, h)
		if got, err := reader.Resolve(testContext(t), d.self); err != nil || got != content {
			t.Errorf("in DHT %d the name points at %q, %v", i, got, err)
		}
	}
}
