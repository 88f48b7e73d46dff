package topic

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode"
)

func TestEnvelope(t *testing.T) {
	t.Parallel()
	s := &schema{version: 3, envelope: true, also: []uint64{2, math.MaxUint64}}
	if data := s.seal([]byte("x")); string(data) != "\x03x" {
		t.Errorf("sealed: %x", data)
	}
	for _, row := range []struct {
		data    string
		rest    string
		version uint64
		ignored bool
		err     error
	}{
		{data: "\x03x", rest: "x", version: 3},
		{data: "\x02", version: 2},
		{data: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x", rest: "x", version: math.MaxUint64},
		{data: "\x01x", version: 1, ignored: true},
		{data: "\x80\x01x", version: 128, ignored: true},
		{data: "", err: errNoVersion},
		{data: "\x00x", err: errNoVersion},
		{data: "\x83\x00x", err: errNoVersion}, // 3, and not in its shortest form
		{data: "\x80", err: errNoVersion},
		{data: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", err: errNoVersion}, // more than 64 bits
	} {
		rest, version, err := s.open([]byte(row.data))
		if string(rest) != row.rest || version != row.version || errors.Is(err, p2pnode.ErrIgnore) != row.ignored ||
			!row.ignored && !errors.Is(err, row.err) {
			t.Errorf("%q: %q, version %d, %v", row.data, rest, version, err)
		}
	}
	named := &schema{version: 4} // VersionInName
	if rest, version, err := named.open([]byte("\x03x")); string(rest) != "\x03x" || version != 4 || err != nil {
		t.Errorf("%q, %d, %v", rest, version, err)
	}
}

// There is one encoding of each version, and what is sealed is opened.
func FuzzEnvelope(f *testing.F) {
	for _, data := range []string{"", "\x00", "\x03x", "\x83\x00x", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x"} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		version, rest, err := cutVersion(data)
		if err != nil {
			return
		}
		if again := append(binary.AppendUvarint(nil, version), rest...); !bytes.Equal(again, data) || version == 0 {
			t.Errorf("version %d of %x is encoded as %x", version, data, again)
		}
		s := &schema{version: version, envelope: true}
		if got, v, err := s.open(s.seal(rest)); err != nil || v != version || !bytes.Equal(got, rest) {
			t.Errorf("%x comes back as %x of version %d, %v", rest, got, v, err)
		}
	})
}

type person struct {
	Name    string             `json:"name"`
	Age     int                `json:"age,omitempty"`
	Friends []person           `json:"friends,omitempty"`
	More    map[string]float64 `json:"more,omitempty"`
}

func TestJSON(t *testing.T) {
	t.Parallel()
	want := person{Name: "ada", Age: 36, Friends: []person{{Name: "bob"}}, More: map[string]float64{"b": 1, "a": 2}}
	for _, c := range []Codec[person]{JSON[person](), StrictJSON[person]()} {
		data, err := c.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := json.Marshal(want); err != nil || !bytes.Equal(plain, data) {
			t.Errorf("encoded as %s", data)
		}
		if got, err := c.Decode(data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v", got, err)
		}
		for _, bad := range []string{"", "{", `{"name":1}`, `{"name":"x"}{}`, `{"name":"x"} x`, `[]`, strings.Repeat("[", 1<<15)} {
			if got, err := c.Decode([]byte(bad)); err == nil {
				t.Errorf("%.20q is decoded: %+v", bad, got)
			}
		}
		if got, err := c.Decode([]byte(` {"name":"x"} `)); err != nil || got.Name != "x" {
			t.Errorf("spaces: %+v, %v", got, err)
		}
	}
	newer := []byte(`{"name":"ada","born":1815}`)
	if got, err := JSON[person]().Decode(newer); err != nil || got.Name != "ada" {
		t.Errorf("JSON: %+v, %v", got, err)
	}
	if _, err := StrictJSON[person]().Decode(newer); err == nil {
		t.Error("StrictJSON accepts an unknown field")
	}
}

// No data makes the codec panic, or allocate more than a multiple of its size.
func FuzzJSON(f *testing.F) {
	for _, data := range []string{"", "null", "{}", `{"name":"ada","age":1}`, `{"friends":[{},{},{}]}`, `{"more":{"x":1e300}}`, "[[[[", "{}{}"} {
		f.Add([]byte(data))
	}
	lenient, strict, pointers := newForm(JSON[person]()), newForm(StrictJSON[person]()), newForm(JSON[*person]())
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := lenient.decode(data)
		exact, strictErr := strict.decode(data)
		p, pointerErr := pointers.decode(data)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(data))*1024 {
			t.Errorf("%d bytes take %d in memory", len(data), n)
		}
		if pointerErr == nil && p == nil {
			t.Error("a nil pointer gets through")
		}
		if strictErr == nil && (err != nil || !reflect.DeepEqual(v, exact)) {
			t.Errorf("StrictJSON accepts what JSON does not: %v", err)
		}
		if err != nil {
			return
		}
		again, err := lenient.encode(v)
		if err != nil {
			t.Fatalf("what was decoded is not encoded: %v", err)
		}
		if got, err := strict.decode(again); err != nil || !sameJSON(t, got, v) {
			t.Errorf("%s comes back as %+v, %v", again, got, err)
		}
	})
}

// sameJSON compares values without telling empty from nil.
func sameJSON(t *testing.T, a, b person) bool {
	t.Helper()
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}
