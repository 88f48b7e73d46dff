package topic

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Codec converts values to the data of messages and back. Its methods must be safe
// for concurrent use.
type Codec[T any] interface {
	// Encode returns the data of a value, in bytes of its own: the message keeps them.
	Encode(v T) ([]byte, error)
	// Decode returns the value of data from any peer. It must bound what it allocates
	// for it, must not block, since the messages of all topics wait for it, and must
	// not modify data, which others read. An error rejects the message, and so do a
	// panic and a nil pointer; an error that matches [p2pnode.ErrIgnore] drops it without blame.
	Decode(data []byte) (T, error)
}

// JSON returns a codec of package encoding/json. Fields of objects that T does not
// have are ignored, so that a schema can grow; see [StrictJSON].
func JSON[T any]() Codec[T] { return jsonCodec[T]{} }

// StrictJSON returns a codec as [JSON] does, which rejects objects with fields that
// T does not have.
func StrictJSON[T any]() Codec[T] { return jsonCodec[T]{strict: true} }

type jsonCodec[T any] struct{ strict bool }

func (jsonCodec[T]) Encode(v T) ([]byte, error) { return json.Marshal(v) }

func (c jsonCodec[T]) Decode(data []byte) (v T, err error) {
	if !c.strict {
		err = json.Unmarshal(data, &v)
		return v, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, err
	}
	if _, err := d.Token(); err != io.EOF {
		return v, errors.New("there is more than one JSON value")
	}
	return v, nil
}
