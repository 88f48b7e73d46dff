package p2pnode

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// The sentinels. Compare with errors.Is: every method wraps them with what
// happened and what to do about it.
var (
	// ErrClosed is returned by every method of a [Node] after [Node.Close] was
	// called, by calls that were blocked when it was called, and by a
	// [Subscription] or listener after its own Close.
	// errors.Is(ErrClosed, net.ErrClosed) is true.
	ErrClosed error = errs.ErrClosed

	// ErrDisabled is returned by the methods of a part that is switched off.
	// The error that wraps it names the option that decides.
	ErrDisabled = errs.ErrDisabled

	// ErrNoPeers is returned when a call reached nobody: a publish to a topic
	// without peers, a provide with an empty routing table or with every peer
	// refusing the record, a lookup with nobody to ask.
	ErrNoPeers = errs.ErrNoPeers

	// ErrNotReady is returned by [Node.WaitReady] when its context ends first. The
	// error that wraps it lists what was still missing.
	ErrNotReady = errs.ErrNotReady

	// ErrNotFound is returned by [Node.FindPeer] and [Node.GetValue] when the
	// network was asked and does not know the answer, and by [Node.Unhandle] for a
	// protocol without a handler.
	ErrNotFound = errs.ErrNotFound

	// ErrBanned is returned by [Node.Connect], [Node.OpenStream] and
	// [Node.AddPersistentPeers] for a peer that [Node.BanPeer] or
	// [WithBannedPeers] bans or that is not among those of [WithAllowedPeers],
	// and for one all of whose addresses are in banned subnets, or refused by a
	// gater of [WithLibp2pOptions].
	ErrBanned = errs.ErrBanned

	// ErrTooLarge is returned by [Node.Publish] for a message above the limit that
	// [WithMaxMessageSize] sets.
	ErrTooLarge = errs.ErrTooLarge

	// ErrProtocolInUse is returned by Handle and Listen for a protocol that has
	// a handler or listener already, or that the node itself serves, and by
	// Unhandle for one that is not the application's to stop.
	ErrProtocolInUse = errs.ErrProtocolInUse
)

// OptionError reports an option whose value, or whose combination with other
// options, cannot work. [New] and [ValidateOptions] return all of them at once,
// joined: [OptionErrors] takes them apart.
type OptionError struct {
	Option string // the exported name, such as "WithListenAddrs"
	Err    error  // what is wrong, which value, and the way out
}

func (e *OptionError) Error() string { return e.Option + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *OptionError) Unwrap() error { return e.Err }

// OptionErrors returns the option errors in an error of [New], [ValidateOptions]
// or [Describe], in the order found; nil when there are none. It looks into
// joined and wrapped errors, also into a [StartError]: some options can be found
// wrong only when a part starts.
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

// StartError is what [New] returns when a part of the node could not be started.
// Nothing that New started is left running.
type StartError struct {
	Step string // the phase of New: "identity", "host", "dht", "listen", …
	Err  error
}

func (e *StartError) Error() string { return "p2pnode: starting " + e.Step + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *StartError) Unwrap() error { return e.Err }

func optionErrorf(option, format string, args ...any) error {
	return &OptionError{Option: option, Err: fmt.Errorf(format, args...)}
}

// disabled is the error of a method whose part is off; way names the option
// that would enable it or that switched it off.
func disabled(part, way string) error {
	return fmt.Errorf("%w: %s is off; %s", ErrDisabled, part, way)
}

// isNil reports whether an interface holds nothing, or a nil pointer.
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
