package topic

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/go-p2pnode/p2pnode"
)

// form is what a topic's messages must be like. It is safe for concurrent use.
type form[T any] struct {
	schema
	codec   Codec[T]
	maxSize int                                       // 0 for no limit
	checks  []func(context.Context, Message[T]) error // which only compute
	pointer bool                                      // T is a pointer, which must not be nil
}

func newForm[T any](codec Codec[T]) *form[T] {
	return &form[T]{codec: codec, pointer: reflect.TypeFor[T]().Kind() == reflect.Pointer}
}

var errNil = errors.New("the value is nil")

func (f *form[T]) isNil(v T) bool { return f.pointer && reflect.ValueOf(v).IsNil() }

// encode returns the data of a message.
func (f *form[T]) encode(v T) ([]byte, error) {
	if f.isNil(v) {
		return nil, errNil
	}
	data, err := f.codec.Encode(v)
	if err != nil {
		return nil, err
	}
	data = f.seal(data)
	return data, f.fits(data)
}

func (f *form[T]) fits(data []byte) error {
	if f.maxSize > 0 && len(data) > f.maxSize {
		return fmt.Errorf("%w: %d bytes, MaxSize is %d", p2pnode.ErrTooLarge, len(data), f.maxSize)
	}
	return nil
}

// judge is the validator of the topic. It leaves the value in the message.
func (f *form[T]) judge(ctx context.Context, m *p2pnode.Message) error {
	if err := f.fits(m.Data); err != nil {
		return err
	}
	rest, version, err := f.open(m.Data)
	if err != nil {
		if version != 0 { // there is one
			f.count(version)
		}
		return err
	}
	v, ok := m.Value.(T) // an own message has it
	if !ok {
		if v, err = f.value(m, rest); err != nil {
			return err
		}
		m.Value = v
	}
	for _, check := range f.checks {
		if err := check(ctx, Message[T]{v, version, m}); err != nil {
			return err
		}
	}
	return nil
}

// validator is a check that runs after judge, with options of its own.
func (f *form[T]) validator(check func(context.Context, Message[T]) error, opts []p2pnode.ValidatorOption) p2pnode.TopicOption {
	return p2pnode.TopicValidator(func(ctx context.Context, m *p2pnode.Message) error {
		typed, err := f.message(m)
		if err != nil {
			return err
		}
		return check(ctx, typed)
	}, opts...)
}

// message is a message with its value.
func (f *form[T]) message(m *p2pnode.Message) (Message[T], error) {
	rest, version, err := f.open(m.Data)
	if err != nil {
		return Message[T]{}, err
	}
	v, err := f.value(m, rest)
	return Message[T]{v, version, m}, err
}

// value returns the value of a message: the one that it has, if it is of the right
// type. It is not with another handle of the topic that has another type, and for a
// nil interface.
func (f *form[T]) value(m *p2pnode.Message, data []byte) (T, error) {
	if v, ok := m.Value.(T); ok {
		return v, nil
	}
	v, err := f.decode(data)
	if err != nil {
		err = fmt.Errorf("it does not decode: %w", err)
	}
	return v, err
}

// decode calls the codec. A panic over bytes of a stranger is an error of theirs, and
// so is a null, which readers do not expect.
func (f *form[T]) decode(data []byte) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the codec has panicked: %v", p)
		}
	}()
	if v, err = f.codec.Decode(data); err == nil && f.isNil(v) {
		err = errNil
	}
	return v, err
}
