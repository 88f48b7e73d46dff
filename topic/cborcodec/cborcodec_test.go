package cborcodec

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"runtime"
	"testing"
	"time"
)

func TestModes(t *testing.T) {
	if err := errors.Join(errEncoding, errLenient, errStrict); err != nil {
		t.Fatal(err)
	}
}

type reading struct {
	Place string         `cbor:"place"`
	At    time.Time      `cbor:"at"`
	Temps []float64      `cbor:"temps"`
	Raw   []byte         `cbor:"raw,omitempty"`
	Tags  map[string]int `cbor:"tags,omitempty"`
	More  any            `cbor:"more,omitempty"`
}

func TestValuesSurvive(t *testing.T) {
	want := reading{
		Place: "pier", At: time.Date(2026, 11, 28, 8, 0, 0, 123456789, time.UTC), Temps: []float64{1.5, -2},
		Raw: []byte{0, 255}, Tags: map[string]int{"b": 1, "a": -2, "cc": 3},
	}
	for _, c := range []Codec[reading]{New[reading](), Strict[reading]()} {
		data, err := c.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // the order of maps differs
			if again, err := c.Encode(want); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("the same value has other bytes: %x, %v", again, err)
			}
		}
		if got, err := c.Decode(data); err != nil || !got.At.Equal(want.At) || got.Place != want.Place ||
			!reflect.DeepEqual(got.Tags, want.Tags) || !reflect.DeepEqual(got.Temps, want.Temps) || !bytes.Equal(got.Raw, want.Raw) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if _, err := New[chan int]().Encode(nil); err == nil {
		t.Error("a channel is encoded")
	}
}

func TestUnknownFields(t *testing.T) {
	data, err := New[map[string]string]().Encode(map[string]string{"place": "pier", "who": "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := New[reading]().Decode(data); err != nil || got.Place != "pier" {
		t.Errorf("New: %+v, %v", got, err)
	}
	if _, err := Strict[reading]().Decode(data); err == nil {
		t.Error("Strict accepts an unknown field")
	}
}

// hostile is what is not decoded, in hex.
var hostile = map[string]string{
	"nothing":                    "",
	"two values":                 "a0a0",
	"a key twice":                "a265706c6163656161" + "65706c6163656162",
	"an indefinite map":          "bf65706c6163656161ff",
	"an indefinite text":         "a165706c6163657f6161ff",
	"another type":               "a165706c61636501",
	"text that is not UTF-8":     "a165706c61636561ff",
	"a cut text":                 "a165706c6163656a61",
	"an array of 2^63":           "a16574656d70739b8000000000000000",
	"an array of 2^31, cut":      "a16574656d70739a80000000",
	"a map of 2^32, cut":         "a1647461677" + "3ba" + "ffffffff",
	"a byte string of 2^40, cut": "a163726177" + "5b0000010000000000",
}

func TestHostileData(t *testing.T) {
	deep := append(bytes.Repeat([]byte{0x81}, MaxDepth+1), 1)                           // an array in an array
	many := append([]byte{0x9a, 0, 2, 0, 1}, bytes.Repeat([]byte{1}, MaxElements+1)...) // an array of MaxElements+1
	tags := append(bytes.Repeat([]byte{0xd8, 99}, MaxDepth+2), 1)
	for _, c := range []Codec[any]{New[any](), Strict[any]()} {
		for name, data := range map[string][]byte{"deep": deep, "many": many, "tags": tags} {
			if _, err := c.Decode(data); err == nil {
				t.Errorf("%s is decoded", name)
			}
		}
		if got, err := c.Decode(append([]byte{0x9a, 0, 2, 0, 0}, bytes.Repeat([]byte{1}, MaxElements)...)); err != nil || len(got.([]any)) != MaxElements {
			t.Errorf("MaxElements: %v", err)
		}
	}
	for name, text := range hostile {
		data, err := hex.DecodeString(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := New[reading]().Decode(data); err == nil {
			t.Errorf("%s is decoded: %+v", name, got)
		}
	}
}

// No data makes the decoder panic, or allocate more than a multiple of its size.
func FuzzDecode(f *testing.F) {
	for _, text := range hostile {
		data, err := hex.DecodeString(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, v := range []any{reading{Place: "pier"}, []any{1, "a", nil, 2.5, true}, map[string]any{"a": map[string]int{"b": 1}}, time.Unix(1, 2)} {
		data, err := New[any]().Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v, err := New[any]().Decode(data)
		_, _ = Strict[reading]().Decode(data)
		_, _ = New[*reading]().Decode(data)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(data))*2048 {
			t.Errorf("%d bytes take %d in memory", len(data), n)
		}
		if err != nil {
			return
		}
		if _, err := New[any]().Encode(v); err != nil {
			t.Logf("what was decoded is not encoded: %v", err) // such as a tag with content of its own
		}
	})
}
