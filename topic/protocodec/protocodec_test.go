package protocodec

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMessagesSurvive(t *testing.T) {
	want, err := structpb.NewStruct(map[string]any{"a": 1, "b": []any{"x", nil, true}, "c": map[string]any{"d": 2}})
	if err != nil {
		t.Fatal(err)
	}
	c := New[structpb.Struct]()
	data, err := c.Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // the order of maps differs
		if again, err := c.Encode(want); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("the same message has other bytes: %x, %v", again, err)
		}
	}
	if got, err := c.Decode(data); err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := c.Decode(nil); err != nil || got == nil {
		t.Errorf("no data is an empty message, and decodes to %v, %v", got, err)
	}
}

// A field of a newer schema survives a peer with an older one.
func TestUnknownFieldsAreKept(t *testing.T) {
	newer := &timestamppb.Timestamp{Seconds: 1, Nanos: 2}
	data, err := New[timestamppb.Timestamp]().Encode(newer)
	if err != nil {
		t.Fatal(err)
	}
	older, err := New[wrapperspb.Int64Value]().Decode(data) // which has the first field only
	if err != nil || older.Value != 1 {
		t.Fatalf("got %v, %v", older, err)
	}
	if data, err = New[wrapperspb.Int64Value]().Encode(older); err != nil {
		t.Fatal(err)
	}
	if got, err := New[timestamppb.Timestamp]().Decode(data); err != nil || !proto.Equal(got, newer) {
		t.Errorf("got %v, %v", got, err)
	}
}

// nested is a list in a list in a list.
func nested(t testing.TB, depth int) []byte {
	t.Helper()
	v := structpb.NewNullValue()
	for range depth {
		v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
	}
	data, err := New[structpb.Value]().Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestHostileData(t *testing.T) {
	if _, err := New[structpb.Value]().Decode(nested(t, MaxDepth/2-1)); err != nil { // each takes two levels
		t.Errorf("a message of less than MaxDepth: %v", err)
	}
	for name, data := range map[string][]byte{
		"deep":          nested(t, MaxDepth/2+1),
		"not protobuf":  []byte("hello"),
		"a cut text":    {3<<3 | 2, 100, 'x'},
		"not UTF-8":     {3<<3 | 2, 1, 0xff},
		"a long varint": []byte("\x08" + strings.Repeat("\xff", 11)),
	} {
		if got, err := New[structpb.Value]().Decode(data); err == nil {
			t.Errorf("%s is decoded: %v", name, got)
		}
	}
}

// No data makes the decoder panic, or allocate more than a multiple of its size.
func FuzzDecode(f *testing.F) {
	f.Add(nested(f, 10))
	f.Add(nested(f, MaxDepth))
	f.Add(bytes.Repeat([]byte{10, 0}, 1000))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := New[structpb.Struct]().Decode(data)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(data))*1024 {
			t.Errorf("%d bytes take %d in memory", len(data), n)
		}
		if err != nil {
			return
		}
		if _, err := New[structpb.Struct]().Encode(m); err != nil {
			t.Errorf("what was decoded is not encoded: %v", err)
		}
	})
}
