// Package protocodec is the codec of package topic for protobuf messages, with
// google.golang.org/protobuf:
//
//	events, err := topic.Join(node, "events", protocodec.New[pb.Event]())
//
// makes a topic of *pb.Event.
package protocodec

import "google.golang.org/protobuf/proto"

// MaxDepth is how deep messages may be nested (100): the limit of protobuf in C++
// and Java. That of Go is 10,000.
const MaxDepth = 100

// Message is the constraint of the messages of a type T that protoc-gen-go made.
type Message[T any] interface {
	*T
	proto.Message
}

// Codec is a topic.Codec of protobuf messages; [New] returns one. Its methods are
// safe for concurrent use.
type Codec[T any, M Message[T]] struct{}

// New returns a codec of the messages of a type T: New[pb.Event]() is one of
// *pb.Event. Fields that T does not have are kept, and sent if the message is
// published again, so that a schema can grow.
func New[T any, M Message[T]]() Codec[T, M] { return Codec[T, M]{} }

// Encode returns the wire format of a message. It is the same for equal messages of
// one program. It returns an error for a message without a required field.
func (Codec[T, M]) Encode(m M) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// Decode returns the message in data. It returns an error for what is not a message
// of the type, or nested deeper than [MaxDepth].
func (Codec[T, M]) Decode(data []byte) (M, error) {
	m := M(new(T))
	return m, proto.UnmarshalOptions{RecursionLimit: MaxDepth}.Unmarshal(data, m)
}
