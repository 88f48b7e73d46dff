package gossip

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// Validator judges the messages of a topic.
type Validator struct {
	// Check returns nil for a message that is fine, an error that matches
	// errs.ErrIgnore for one that is to be dropped, and any other error for one that
	// its sender should not have sent on. The value is what readers get with the
	// message; see [ValueOf].
	Check func(ctx context.Context, m *pubsub.Message) (value any, err error)
	// Timeout is how long Check may take. A message that takes longer is ignored.
	Timeout time.Duration
	// Concurrency is how many messages are checked at once; what comes meanwhile is
	// ignored.
	Concurrency int
	// InOrder makes gossipsub check one message after the other, of all topics.
	InOrder bool
}

// own is the validator data of a message of this node's.
type own struct {
	value any
	err   error // why it was refused
}

// ValueOf returns what a validator has made of a message, or what it was published
// with.
func ValueOf(m *pubsub.Message) any {
	if o, ok := m.ValidatorData.(*own); ok {
		return o.value
	}
	return m.ValidatorData
}

// validator is a Validator at work.
type validator struct {
	Validator
	r     *Router
	t     *topic
	slots chan struct{}
}

func newValidator(r *Router, t *topic, v Validator) *validator {
	return &validator{v, r, t, make(chan struct{}, max(v.Concurrency, 1))}
}

// errOverrun is the verdict on a message that came while too many were checked.
var errOverrun = fmt.Errorf("%w: too many messages are being validated", errs.ErrIgnore)

// addValidators makes a topic check its messages with more validators.
func (r *Router) addValidators(ctx context.Context, t *topic, list []*validator) error {
	if len(list) == 0 && !t.spec.Anonymous {
		return nil
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.turn }()
	inOrder := !slices.ContainsFunc(list, func(v *validator) bool { return !v.InOrder })
	if old := t.validators.Load(); old != nil {
		if len(*old) == 0 || len(list) == 0 || t.inOrder == inOrder {
			all := slices.Concat(*old, list)
			t.validators.Store(&all)
			return nil
		}
		return errors.New("the topic has validators already, and either all or none of them run in order; see ValidatorInOrder")
	}
	t.inOrder = inOrder
	t.validators.Store(&list)
	if err := r.ps.RegisterTopicValidator(t.name, r.judge(t), pubsub.WithValidatorInline(inOrder)); err != nil {
		t.validators.Store(nil)
		return fmt.Errorf("%w; it was registered with the router of Node.PubSub", err)
	}
	return nil
}

// removeValidators takes validators away again.
func (r *Router) removeValidators(t *topic, list []*validator) {
	if len(list) == 0 {
		return
	}
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	if old := t.validators.Load(); old != nil {
		left := slices.DeleteFunc(slices.Clone(*old), func(v *validator) bool { return slices.Contains(list, v) })
		t.validators.Store(&left)
	}
}

// unregister ends the validation of a topic that is left.
func (r *Router) unregister(t *topic) {
	if t.validators.Swap(nil) == nil {
		return
	}
	if err := r.ps.UnregisterTopicValidator(t.name); err != nil {
		r.cfg.Log.Debug("ending validation", "topic", t.name, "err", err)
	}
}

// judge returns gossipsub's validator of a topic: all of the topic's have to
// accept a message.
func (r *Router) judge(t *topic) pubsub.ValidatorEx {
	self := r.cfg.Host.ID()
	return func(ctx context.Context, src peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		mine, _ := m.ValidatorData.(*own)
		if t.spec.Anonymous && src == self {
			stripOwn(m)
		}
		var list []*validator
		if p := t.validators.Load(); p != nil {
			list = *p
		}
		for _, v := range list {
			value, err := v.run(ctx, m, mine != nil)
			if err != nil {
				return r.refuse(t, src, mine, err)
			}
			if value != nil && mine == nil {
				m.ValidatorData = value
			} else if value != nil && mine.value == nil {
				mine.value = value
			}
		}
		return pubsub.ValidationAccept
	}
}

// refuse counts a message that a validator does not accept.
func (r *Router) refuse(t *topic, src peer.ID, mine *own, err error) pubsub.ValidationResult {
	result := pubsub.ValidationReject
	ignored := errors.Is(err, errs.ErrIgnore)
	if ignored || mine == nil && r.scoring {
		// Gossipsub would graylist whoever sends on what its own validators accept,
		// such as a node of another version: see account.soft.
		result = pubsub.ValidationIgnore
	}
	if mine != nil {
		mine.err = err
		return result
	}
	if errors.Is(err, errOverrun) {
		r.overran(t.name, src)
		return result
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ignored {
		t.counts.Ignored++
	} else {
		t.counts.Rejected++
		a := r.accountLocked(src)
		a.Rejected++
		a.soft++
	}
	return result
}

// run checks a message. One of the node's own waits for its turn.
func (v *validator) run(ctx context.Context, m *pubsub.Message, wait bool) (any, error) {
	select {
	case v.slots <- struct{}{}:
	default:
		if !wait {
			return nil, errOverrun
		}
		select {
		case v.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, errs.ErrClosed
		}
	}
	if v.Timeout <= 0 {
		defer func() { <-v.slots }()
		return v.guarded(ctx, m)
	}
	ctx, cancel := context.WithTimeout(ctx, v.Timeout)
	type verdict struct {
		value any
		err   error
		late  bool // Check returned because its time was over, or after it
	}
	done := make(chan verdict, 1)
	ran := v.r.group.Go(func(context.Context) {
		d := verdict{err: fmt.Errorf("%w: the validator has ended its goroutine", errs.ErrIgnore)}
		defer func() {
			<-v.slots // only when Check has returned: it may outlast its time
			done <- d
		}()
		d.value, d.err = v.guarded(ctx, m)
		d.late = ctx.Err() != nil
	})
	if !ran {
		<-v.slots
		cancel()
		return nil, errs.ErrClosed
	}
	defer cancel()
	select {
	case d := <-done:
		if !d.late {
			return d.value, d.err
		}
	case <-ctx.Done():
		select {
		case d := <-done: // in time, but nobody was waiting yet
			if !d.late {
				return d.value, d.err
			}
		default:
		}
	}
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, errs.ErrClosed
	}
	return nil, fmt.Errorf("%w: the validator took more than %v", errs.ErrIgnore, v.Timeout)
}

// guarded calls Check. A message over which it panics is ignored: its sender may
// be right.
func (v *validator) guarded(ctx context.Context, m *pubsub.Message) (value any, err error) {
	defer func() {
		if p := recover(); p != nil {
			value, err = nil, fmt.Errorf("%w: the validator has panicked: %v", errs.ErrIgnore, p)
			v.r.panicked(v.t, p, debug.Stack())
		}
	}()
	return v.Check(ctx, m)
}

func (r *Router) panicked(t *topic, p any, stack []byte) {
	r.mu.Lock()
	t.counts.Panics++
	r.mu.Unlock()
	if r.panicLog.Now() {
		r.cfg.Log.Error("a validator has panicked", "topic", t.name, "panic", p, "stack", string(stack))
	}
}
