package topic_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/go-p2pnode/p2pnode/p2ptest"
	"github.com/go-p2pnode/p2pnode/topic"
	"github.com/go-p2pnode/p2pnode/topic/cborcodec"
	"github.com/go-p2pnode/p2pnode/topic/protocodec"
)

// exchange lets a typed topic and a peer assembled by hand from go-libp2p and pubsub
// hear each other: the peer publishes their, and hears data for mine.
func exchange[T any](t *testing.T, codec topic.Codec[T], mine T, data []byte, theirs []byte, check func(T) bool, opts ...topic.Option) {
	t.Helper()
	simulated(t, func(t *testing.T, sim *p2ptest.Network, a, _ *p2ptest.Node) {
		typed := join(t, a, codec, opts...)
		sub := subscribe(t, typed)
		peer := sim.Raw(t, p2ptest.RawConnect(a.AddrInfo()))
		up, err := peer.PubSub.Join("news")
		if err != nil {
			t.Fatal(err)
		}
		heard, err := up.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		defer heard.Cancel()
		sim.Meshed("news", p2ptest.Peers(a, peer))
		if err := up.Publish(t.Context(), theirs); err != nil {
			t.Fatal(err)
		}
		if m := next(t, sub); m.Author != peer.ID() || !check(m.Value) {
			t.Errorf("got %+v", m)
		}
		publish(t, typed, mine)
		for {
			m, err := heard.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m.ReceivedFrom == peer.ID() {
				continue
			}
			if !bytes.Equal(m.Data, data) {
				t.Errorf("the peer has %x, want %x", m.Data, data)
			}
			return
		}
	})
}

func TestJSONWithAPeerAssembledByHand(t *testing.T) {
	data, err := json.Marshal(greeting{"ada", "<hello>"})
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, topic.JSON[greeting](), greeting{"ada", "<hello>"}, data,
		[]byte(`{ "from": "raw", "text": "h\u00e9", "lang": "fr" }`), func(g greeting) bool { return g == greeting{"raw", "hé"} })
}

func TestVersionedJSONWithAPeerAssembledByHand(t *testing.T) {
	exchange(t, topic.StrictJSON[int](), 7, []byte("\xac\x027"), []byte("\xac\x02-1"), func(i int) bool { return i == -1 }, topic.VersionInEnvelope(300))
}

func TestProtobufWithAPeerAssembledByHand(t *testing.T) {
	at := &timestamppb.Timestamp{Seconds: 150, Nanos: 3}
	theirs, err := proto.Marshal(&timestamppb.Timestamp{Nanos: 9})
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, protocodec.New[timestamppb.Timestamp](), at, []byte{1 << 3, 0x96, 1, 2 << 3, 3}, theirs,
		func(at *timestamppb.Timestamp) bool { return at.Nanos == 9 && at.Seconds == 0 })
}

func TestProtobufStructsWithAPeerAssembledByHand(t *testing.T) {
	want, err := structpb.NewStruct(map[string]any{"a": 1, "b": []any{"x", true}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, protocodec.New[structpb.Struct](), want, data, data, func(s *structpb.Struct) bool { return proto.Equal(s, want) })
}

func TestCBORWithAPeerAssembledByHand(t *testing.T) {
	exchange(t, cborcodec.New[map[string]int](), map[string]int{"b": 2, "a": -1}, []byte("\xa2\x61a\x20\x61b\x02"),
		[]byte("\xa1\x61z\x18\x64"), func(m map[string]int) bool { return len(m) == 1 && m["z"] == 100 })
}
