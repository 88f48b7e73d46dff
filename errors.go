package p2pnode

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// The sentinel errors. Compare with [errors.Is]: methods wrap them with what
// happened and what to do about it.
var (
	// ErrClosed is returned by every method of a [Node] after [Node.Close], by
	// calls that Close unblocks, and by a [Subscription] or listener after its
	// own Close. It matches [net.ErrClosed].
	ErrClosed error = errs.ErrClosed

	// ErrDisabled is returned by the methods of a part that is switched off.
	// The error that wraps it names the option to change.
	ErrDisabled = errs.ErrDisabled

	// ErrNoPeers is returned when a call reached no peer: a publish to a topic
	// without peers, a provide with an empty routing table or with every peer
	// refusing the record, a lookup with nobody to ask.
	ErrNoPeers = errs.ErrNoPeers

	// ErrNotReady is returned by [Node.WaitReady] when its context ends first,
	// as a [NotReadyError] that lists what is missing.
	ErrNotReady = errs.ErrNotReady

	// ErrNotFound is returned by [Node.FindPeer], [Node.GetValue],
	// [Node.SearchValue], [Node.ResolveName] and [Node.GetSigned] when the network
	// does not know the answer, and by [Node.Unhandle] for a protocol without a
	// handler.
	ErrNotFound = errs.ErrNotFound

	// ErrRejected is returned by [Node.Publish] for a message that a
	// [TopicValidator] of this node refuses, with the validator's error.
	ErrRejected = errs.ErrRejected

	// ErrIgnore is for a [TopicValidator] to return, wrapped or not: the message is
	// dropped, and nobody is blamed.
	ErrIgnore = errs.ErrIgnore

	// ErrBanned is returned by [Node.Connect], [Node.OpenStream] and the
	// methods that add peers for a peer that is banned ([Node.BanPeer],
	// [WithBannedPeers]) or not allowed ([WithAllowedPeers]), and for one whose
	// addresses are all in banned subnets or refused by a gater of
	// [WithLibp2pOptions].
	ErrBanned = errs.ErrBanned

	// ErrTooLarge is returned by [Node.Publish] for a message above the limit of
	// [WithMaxMessageSize], by [Node.PutValue] for a record that does not fit into
	// a DHT message, by [Node.PublishName] and [Node.PutSigned] for one above the
	// size of its kind, and by [Node.Handle] and [Node.Listen] if the IDs of the
	// node's protocols do not fit into the identify message.
	ErrTooLarge = errs.ErrTooLarge

	// ErrProtocolInUse is returned by [Node.Handle] and [Node.Listen] for a
	// protocol that already has a handler or listener, or that the node itself
	// serves, and by [Node.Unhandle] for one that is not served by
	// [Node.Handle].
	ErrProtocolInUse = errs.ErrProtocolInUse

	// ErrProtocolNotSupported is returned by [Node.OpenStream] and [Node.Dial]
	// for a peer that speaks none of the protocols.
	ErrProtocolNotSupported = errs.ErrProtocolNotSupported

	// ErrLimit is returned if a limit is reached: by [Node.Connect] for
	// connections, by [Node.OpenStream] and [Node.Dial] for streams, also if the
	// limit is the peer's, by calls on a stream that the peer reset for a limit,
	// and by [Node.Publish] if too many messages wait for the peers. If the limit is
	// this node's, the error that wraps it names the field of [Limits].
	ErrLimit = errs.ErrLimit
)

// OptionError reports an option whose value, or whose combination with other
// options, is invalid. [New], [ValidateOptions] and [Describe] return all of
// them at once, joined; [OptionErrors] takes them apart. errors.As finds the
// first.
type OptionError struct {
	// Option is the exported name, such as "WithListenAddrs".
	Option string
	// Err is what is wrong, with which value, and the way out.
	Err error
}

// Error returns the option's name and the text of Err.
func (e *OptionError) Error() string { return e.Option + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *OptionError) Unwrap() error { return e.Err }

// OptionErrors returns the option errors in an error of [New],
// [ValidateOptions] or [Describe], in the order found; nil if there are none.
// It looks into joined and wrapped errors, including a [StartError]: some
// options turn out to be invalid only when a part starts.
func OptionErrors(err error) []*OptionError {
	switch e := err.(type) {
	case *OptionError:
		return []*OptionError{e}
	case interface{ Unwrap() []error }:
		var list []*OptionError
		for _, e := range e.Unwrap() {
			list = append(list, OptionErrors(e)...)
		}
		return list
	case interface{ Unwrap() error }:
		return OptionErrors(e.Unwrap())
	}
	return nil
}

// StartError is returned by [New] when a part of the node cannot start. Nothing
// that [New] started is left running.
type StartError struct {
	// Step is the phase of New that failed: "identity", "host", "dht",
	// "listen", …
	Step string
	// Err is why.
	Err error
}

// Error returns the step and the text of Err.
func (e *StartError) Error() string { return "p2pnode: starting " + e.Step + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *StartError) Unwrap() error { return e.Err }

func optionErrorf(option, format string, args ...any) error {
	return &OptionError{Option: option, Err: fmt.Errorf(format, args...)}
}

// disabled returns the error of a method whose part is off. way names the
// option that enables it or that switched it off.
func disabled(part, way string) error { return fmt.Errorf("p2pnode: %w", off(part, way)) }

// off is disabled without the prefix.
func off(part, way string) error {
	return fmt.Errorf("%w: %s is off; %s", ErrDisabled, part, way)
}

// isNil reports whether an interface is nil or holds a nil pointer.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Chan, reflect.Interface:
		return r.IsNil()
	default:
		return false
	}
}

func quoteAll[S ~string](list []S) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", string(s))
	}
	return strings.Join(quoted, ", ")
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func textError(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

// inTurn applies the options of a call, except nil ones, up to the first that is
// wrong.
func inTurn[O any](opts []O, apply func(O) error) error {
	for _, o := range opts {
		if any(o) == nil {
			continue
		}
		if err := apply(o); err != nil {
			return err
		}
	}
	return nil
}
