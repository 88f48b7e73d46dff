// Package cborcodec is the codec of package topic for CBOR (RFC 8949), with
// github.com/fxamacker/cbor:
//
//	readings, err := topic.Join(node, "readings", cborcodec.New[Reading]())
//
// Struct tags have the key cbor, or json without one. A value is encoded
// deterministically (section 4.2.1): equal values have equal bytes.
package cborcodec

import "github.com/fxamacker/cbor/v2"

// What is decoded may have.
const (
	// MaxDepth is how deep arrays, maps and tags may be nested (32).
	MaxDepth = 32
	// MaxElements is how many elements an array may have, and how many pairs a map
	// (131,072).
	MaxElements = 1 << 17
)

// Codec is a topic.Codec of CBOR; [New] and [Strict] return one. Its methods are
// safe for concurrent use.
type Codec[T any] struct{ dec cbor.DecMode }

// New returns a codec that ignores fields that T does not have, so that a schema can
// grow; see [Strict].
func New[T any]() Codec[T] { return Codec[T]{lenient} }

// Strict returns a codec as [New] does, which rejects maps with fields that T does
// not have.
func Strict[T any]() Codec[T] { return Codec[T]{strict} }

// Encode returns a value as CBOR. A [time.Time] is a text with nanoseconds (tag 0).
func (Codec[T]) Encode(v T) ([]byte, error) { return encoding.Marshal(v) }

// Decode returns the value in data. It returns an error for what is not one value of
// the type, for maps with a key twice, for items of indefinite length, and for what
// exceeds [MaxDepth] or [MaxElements].
func (c Codec[T]) Decode(data []byte) (v T, err error) {
	err = c.dec.Unmarshal(data, &v)
	return v, err
}

// The modes do not change. A test checks that there are no errors.
var (
	encoding, errEncoding = encodingOptions().EncMode()
	lenient, errLenient   = decodingOptions(cbor.ExtraDecErrorNone).DecMode()
	strict, errStrict     = decodingOptions(cbor.ExtraDecErrorUnknownField).DecMode()
)

func encodingOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.Time, o.TimeTag = cbor.TimeRFC3339Nano, cbor.EncTagRequired // the default has whole seconds
	return o
}

func decodingOptions(extra cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF, // which of two counts is up to the decoder
		IndefLength:       cbor.IndefLengthForbidden, // there is one encoding of a value
		MaxNestedLevels:   MaxDepth,
		MaxArrayElements:  MaxElements,
		MaxMapPairs:       MaxElements,
		ExtraReturnErrors: extra,
	}
}
