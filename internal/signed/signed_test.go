package signed

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	envelope "github.com/libp2p/go-libp2p/core/record"
)

const network = "/test"

// newKey returns a private key and its peer ID.
func newKey(tb testing.TB, kind int) (crypto.PrivKey, peer.ID) {
	tb.Helper()
	key, _, err := crypto.GenerateKeyPairWithReader(kind, 2048, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return key, id
}

func seal(tb testing.TB, key string, owner crypto.PrivKey, r Record) []byte {
	tb.Helper()
	value, err := Seal(network, key, owner, r)
	if err != nil {
		tb.Fatal(err)
	}
	return value
}

func soon() time.Time { return time.Now().Add(time.Hour).Truncate(time.Second) }

// A record of each kind of key is read as it was sealed.
func TestSealAndRead(t *testing.T) {
	for name, kind := range map[string]int{"Ed25519": crypto.Ed25519, "RSA": crypto.RSA, "ECDSA": crypto.ECDSA, "secp256k1": crypto.Secp256k1} {
		owner, id := newKey(t, kind)
		for _, key := range []string{"/app/" + id.String(), "/app/" + id.String() + "/a/b"} {
			want := Record{math.MaxUint64, soon(), bytes.Repeat([]byte{7}, MaxPayload)}
			value := seal(t, key, owner, want)
			if err := (Validator{network}).Validate(key, value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got, err := Read(value); err != nil || got.Seq != want.Seq || !got.Expires.Equal(want.Expires) || !bytes.Equal(got.Payload, want.Payload) {
				t.Errorf("%s: read %d, %v, %d bytes, %v", name, got.Seq, got.Expires, len(got.Payload), err)
			}
		}
	}
}

func TestSealRefuses(t *testing.T) {
	owner, _ := newKey(t, crypto.Ed25519)
	for name, r := range map[string]Record{
		"a large payload":    {1, soon(), make([]byte, MaxPayload+1)},
		"the year 10000":     {1, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), nil},
		"a time before 1970": {1, time.Unix(-1, 0), nil},
	} {
		if _, err := Seal(network, "/app/x", owner, r); err == nil {
			t.Errorf("%s is sealed", name)
		}
	}
}

// What is wrong with a record or its key is refused, with words that say what.
func TestValidateRefuses(t *testing.T) {
	owner, id := newKey(t, crypto.Ed25519)
	other, otherID := newKey(t, crypto.Ed25519)
	key := "/app/" + id.String()
	good := seal(t, key, owner, Record{1, soon(), []byte("x")})
	elsewhere, err := Seal("/other", key, owner, Record{1, soon(), []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	raw := func(payload []byte, as func(*body) envelope.Record) []byte {
		e, err := envelope.Seal(as(&body{Record{Payload: payload}, domain(network, key)}), owner)
		if err != nil {
			t.Fatal(err)
		}
		value, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	plain := func(b *body) envelope.Record { return bare{b} }
	far := binary.BigEndian.AppendUint64(make([]byte, 8), math.MaxUint64)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, row := range map[string]struct {
		key   string
		value []byte
		want  string
	}{
		"nothing":                 {key, nil, "shortest form"},
		"rubbish":                 {key, []byte("rubbish"), "shortest form"},
		"a record with a tail":    {key, append(bytes.Clone(good), 0x7a, 0), "shortest form"},
		"a flipped bit":           {key, flipped, "signature"},
		"of another":              {key, seal(t, key, other, Record{1, soon(), nil}), "signed by " + otherID.String()},
		"for another key":         {key + "/x", good, "another key"},
		"for another network":     {key, elsewhere, "network"},
		"expired":                 {key, seal(t, key, owner, Record{1, time.Now(), nil}), "expired"},
		"too large":               {key, make([]byte, maxRecord+1), "above"},
		"no header":               {key, raw(make([]byte, header-1), plain), "shortest form"},
		"a payload too large":     {key, raw(make([]byte, header+MaxPayload+1), plain), "shortest form"},
		"expires in a far year":   {key, raw(far, plain), "9999"},
		"of another payload type": {key, raw(make([]byte, header), func(b *body) envelope.Record { return retyped{bare{b}} }), "shortest form"},
		"a key without an owner":  {"/app", good, "must look like"},
		"a key without a slash":   {"app/" + id.String(), good, "must look like"},
		"an owner of no shape":    {"/app/x", good, "not a peer ID"},
		"another form of the ID":  {"/app/" + peer.ToCid(id).String(), good, "write the peer ID as " + id.String()},
		"an empty name":           {key + "/", good, "last slash"},
		"a key too long":          {key + "/" + strings.Repeat("x", MaxKey), good, "512"},
	} {
		if err := (Validator{network}).Validate(row.key, row.value); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// bare is a record whose payload has no header but what is in it.
type bare struct{ *body }

func (b bare) MarshalRecord() ([]byte, error) { return b.Payload, nil }

// retyped is a record of another payload type.
type retyped struct{ bare }

func (retyped) Codec() []byte { return []byte("other") }

// The order of records does not depend on the order in which they come.
func TestSelect(t *testing.T) {
	owner, id := newKey(t, crypto.Ed25519)
	key, at := "/app/"+id.String(), soon()
	better := [][]byte{ // each than the ones before
		[]byte("rubbish"),
		seal(t, key, owner, Record{1, at.Add(time.Hour), []byte("z")}),
		seal(t, key, owner, Record{2, at, []byte("a")}),
		seal(t, key, owner, Record{2, at, []byte("b")}),
		seal(t, key, owner, Record{2, at.Add(time.Second), []byte("a")}),
		seal(t, key, owner, Record{math.MaxUint64, at, nil}),
	}
	for i := range better {
		for j := range better {
			if i == j {
				continue
			}
			if got, err := (Validator{}).Select(key, [][]byte{better[i], better[j]}); err != nil || (got == 1) != (j > i) {
				t.Errorf("of %d and %d: number %d, %v", i, j, got, err)
			}
		}
	}
	if got, err := (Validator{}).Select(key, better); err != nil || got != len(better)-1 {
		t.Errorf("of all: %d, %v", got, err)
	}
	if _, err := (Validator{}).Select(key, better[:1]); err == nil {
		t.Error("of rubbish one is selected")
	}
}

// FuzzValidate feeds records of strangers to the validator: nothing panics, what
// is accepted is signed by the owner, and sealing it again gives the same bytes.
func FuzzValidate(f *testing.F) {
	owner, id := fixedKey(f)
	key := "/app/" + id.String()
	expires := time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, r := range []Record{{1, expires, []byte("x")}, {math.MaxUint64, expires, nil}, {0, time.Unix(0, 0), []byte("expired")}} {
		f.Add(key, seal(f, key, owner, r), []byte("other"))
	}
	f.Add("/app/x", []byte{}, []byte{0x0a})
	f.Add("", []byte{0x0a, 0x02, 0x08, 0x01}, []byte{0x12, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, key string, value, other []byte) {
		v := Validator{network}
		if best, err := v.Select(key, [][]byte{value, other}); err == nil {
			if again, err := v.Select(key, [][]byte{other, value}); err != nil || again == best && !bytes.Equal(value, other) {
				t.Errorf("the choice depends on the order: %d and %d, %v", best, again, err)
			}
		}
		if v.Validate(key, value) != nil {
			return
		}
		if signer, err := Owner(key); err != nil || signer != id {
			t.Fatalf("accepted under the key of %s, %v: nobody has its private key here", signer, err)
		}
		r, err := Read(value)
		if err != nil {
			t.Fatalf("accepted and not read: %v", err)
		}
		if again := seal(t, key, owner, r); !bytes.Equal(again, value) {
			t.Errorf("accepted %x, sealed %x", value, again)
		}
	})
}

// fixedKey returns the same key in every run.
func fixedKey(tb testing.TB) (crypto.PrivKey, peer.ID) {
	tb.Helper()
	owner, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	if err != nil {
		tb.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(owner)
	if err != nil {
		tb.Fatal(err)
	}
	return owner, id
}
