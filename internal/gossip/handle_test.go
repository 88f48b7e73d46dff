package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func open(t *testing.T, r *Router, name string, spec Spec, v ...Validator) *Handle {
	t.Helper()
	h, err := r.Open(within(t), name, Opening{Spec: spec, Validators: v})
	must(t, err)
	return h
}

// pair returns two routers that are connected.
func pair(t *testing.T) (a, b *Router) {
	t.Helper()
	ha, hb := newHost(t), newHost(t)
	a, b = newRouter(t, ha, nil), newRouter(t, hb, nil)
	connect(t, ha, hb)
	return a, b
}

func next(t *testing.T, s *Subscription) *pubsub.Message {
	t.Helper()
	m, _, err := s.Next(within(t))
	must(t, err)
	return m
}

func TestHandlesShareATopic(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	a, b := open(t, r, "t", Spec{}), open(t, r, "t", Spec{})
	sa, err := a.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	sb, err := b.Subscribe(within(t), Reading{Buffer: 8, SkipOwn: true})
	must(t, err)
	must(t, b.Publish(within(t), []byte("x"), Publishing{}))
	if got := next(t, sa); string(got.Data) != "x" {
		t.Errorf("got %q", got.Data)
	}
	a.Close()
	a.Close()
	if _, _, err := sa.Next(within(t)); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("subscription of a closed handle: %v", err)
	}
	if err := a.Publish(within(t), nil, Publishing{}); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("publish on a closed handle: %v", err)
	}
	if _, err := a.Subscribe(within(t), Reading{}); !errors.Is(err, errs.ErrClosed) {
		t.Errorf("subscribe on a closed handle: %v", err)
	}
	if s := a.State(); s.Health != HealthNone || s.Name != "t" {
		t.Errorf("state of a closed handle: %+v", s)
	}
	if s, joined := r.Topic("t"); !joined || s.Subscriptions != 1 {
		t.Errorf("the other handle's topic: %+v, %t", s, joined)
	}
	if sb.queue.Len() != 0 {
		t.Error("a subscription without own messages has one")
	}
	sb.Close()
	b.Close()
	// The message keeps the topic for a while, but not against what is asked for next.
	c := open(t, r, "t", Spec{Anonymous: true})
	if _, err := r.Open(within(t), "t", Opening{Spec: Spec{MessageID: contentID}}); !errors.Is(err, errTopicInUse) {
		t.Errorf("another message ID: %v", err)
	}
	d := open(t, r, "t", Spec{Anonymous: true})
	e := open(t, r, "t", Spec{})
	c.Close()
	d.Close()
	e.Close()
	leftAlone(t, r, "t")
}

func TestCloseOfAHandleEndsAWaitingPublish(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	h := open(t, r, "t", Spec{})
	result := make(chan error, 1)
	go func() { result <- h.Publish(context.Background(), nil, Publishing{MinPeers: 1, Wait: time.Hour}) }()
	for waits := false; !waits; runtime.Gosched() {
		r.mu.Lock()
		waits = r.topics["t"].users == 2
		r.mu.Unlock()
	}
	h.Close()
	if err := <-result; !errors.Is(err, errs.ErrClosed) {
		t.Errorf("Publish = %v", err)
	}
	leftAlone(t, r, "t")
}

func TestPublishWaitsForAsManyPeersAsItIsTold(t *testing.T) {
	a, b := pair(t)
	sub, err := b.Subscribe(within(t), "t", Reading{Buffer: 8})
	must(t, err)
	must(t, a.Publish(within(t), "t", nil, waiting))
	next(t, sub)
	err = a.Publish(within(t), "t", nil, Publishing{MinPeers: 2, Wait: time.Millisecond})
	if !errors.Is(err, errs.ErrNoPeers) {
		t.Errorf("with one peer of two: %v", err)
	}
	third := newHost(t)
	c := newRouter(t, third, nil)
	subC, err := c.Subscribe(within(t), "t", Reading{Buffer: 8})
	must(t, err)
	result := make(chan error, 1)
	go func() {
		result <- a.Publish(context.Background(), "t", []byte("both"), Publishing{MinPeers: 2, Wait: time.Minute})
	}()
	connect(t, third, a.cfg.Host)
	must(t, <-result)
	if string(next(t, sub).Data) != "both" || string(next(t, subC).Data) != "both" {
		t.Error("not both have the message")
	}
}

// check returns a validator that rejects "bad", ignores "dull", panics over
// "panic" and never returns for "slow" until its ctx ends.
func check(calls *atomic.Int32) Validator {
	return Validator{
		Concurrency: 8, Timeout: time.Minute,
		Check: func(ctx context.Context, m *pubsub.Message) (any, error) {
			calls.Add(1)
			switch string(m.Data) {
			case "bad":
				return nil, errors.New("it is bad")
			case "dull":
				return nil, fmt.Errorf("%w: it is dull", errs.ErrIgnore)
			case "panic":
				panic("no")
			case "slow":
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return len(m.Data), nil
		},
	}
}

func TestValidatorsJudgeMessages(t *testing.T) {
	for _, inOrder := range []bool{false, true} {
		t.Run(fmt.Sprintf("in order %t", inOrder), func(t *testing.T) {
			a, b := pair(t)
			var calls atomic.Int32
			v := check(&calls)
			v.InOrder = inOrder
			h := open(t, b, "t", Spec{}, v)
			sub, err := h.Subscribe(within(t), Reading{Buffer: 8})
			must(t, err)
			for _, text := range []string{"bad", "dull", "panic", "good"} {
				must(t, a.Publish(within(t), "t", []byte(text), waiting))
			}
			if m := next(t, sub); string(m.Data) != "good" || ValueOf(m) != 4 {
				t.Errorf("got %q with %v", m.Data, ValueOf(m))
			}
			for s := (Topic{}); s.Rejected != 1 || s.Ignored != 2 || s.Panics != 1; s, _ = b.Topic("t") {
				runtime.Gosched() // without order, the good one may be first
			}
			if o := b.Offenses()[a.cfg.Host.ID()]; o.Rejected != 1 {
				t.Errorf("offenses %+v", o)
			}
			// The node's own are judged too, and say why.
			err = h.Publish(within(t), []byte("bad"), Publishing{})
			if !errors.Is(err, errs.ErrRejected) || err.Error() != "message refused by a validator: it is bad" {
				t.Errorf("own bad message: %v", err)
			}
			if err = h.Publish(within(t), []byte("dull"), Publishing{}); !errors.Is(err, errs.ErrRejected) || !errors.Is(err, errs.ErrIgnore) {
				t.Errorf("own dull message: %v", err)
			}
			must(t, h.Publish(within(t), []byte("mine"), Publishing{Value: "known"}))
			if m := next(t, sub); ValueOf(m) != "known" {
				t.Errorf("own message has the value %v", ValueOf(m))
			}
			if s := h.State(); s.Rejected != 1 || s.Ignored != 2 {
				t.Errorf("own messages count: %+v", s)
			}
			// A second handle's validator is asked too, and ends with the handle.
			var more atomic.Int32
			w := check(&more)
			w.InOrder = inOrder
			other := open(t, b, "t", Spec{}, w)
			must(t, h.Publish(within(t), []byte("x"), Publishing{}))
			if other.Close(); more.Load() != 1 {
				t.Errorf("%d calls of the second validator", more.Load())
			}
			must(t, h.Publish(within(t), []byte("x"), Publishing{}))
			if more.Load() != 1 {
				t.Error("it is asked after its handle was closed")
			}
			w.InOrder = !inOrder
			if _, err := b.Open(within(t), "t", Opening{Validators: []Validator{w}}); err == nil {
				t.Error("a validator of another order is taken")
			}
			h.Close()
			next := open(t, b, "t", Spec{}, w) // the topic was kept for a while only
			next.Close()
		})
	}
}

func TestValidatorsHaveTimeAndPlaces(t *testing.T) {
	a, b := pair(t)
	var calls atomic.Int32
	v := check(&calls)
	v.Concurrency, v.Timeout = 1, 50*time.Millisecond
	block, began := make(chan struct{}), make(chan struct{})
	inner := v.Check
	v.Check = func(ctx context.Context, m *pubsub.Message) (any, error) {
		if string(m.Data) == "stuck" { // it does not look at its ctx
			close(began)
			<-block
		}
		return inner(ctx, m)
	}
	h := open(t, b, "t", Spec{}, v)
	sub, err := h.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	must(t, a.Publish(within(t), "t", []byte("slow"), waiting))
	for s := (Topic{}); s.Ignored != 1; s, _ = b.Topic("t") {
		runtime.Gosched()
	}
	must(t, a.Publish(within(t), "t", []byte("stuck"), waiting))
	<-began
	must(t, a.Publish(within(t), "t", []byte("no place"), waiting))
	for s := (Topic{}); s.Overrun != 1 || s.Ignored != 2; s, _ = b.Topic("t") {
		runtime.Gosched()
	}
	close(block)
	must(t, h.Publish(within(t), []byte("mine"), Publishing{})) // waits for the place
	if m := next(t, sub); string(m.Data) != "mine" {
		t.Errorf("got %q", m.Data)
	}
}

// A verdict counts even when it comes before anybody waits for it, and leaves its
// place to the next message.
func TestVerdictInTimeIsNotATimeout(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	v := newValidator(r, nil, Validator{
		Check:       func(context.Context, *pubsub.Message) (any, error) { return "value", nil },
		Concurrency: 1, Timeout: time.Minute,
	})
	for range 5000 {
		if value, err := v.run(t.Context(), nil, false); err != nil || value != "value" {
			t.Fatalf("run = %v, %v", value, err)
		}
	}
}

// A validator that gives up when its time is over, and returns nil, accepts nothing.
func TestVerdictAfterTheTimeIsNone(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	v := newValidator(r, nil, Validator{
		Check:       func(ctx context.Context, _ *pubsub.Message) (any, error) { <-ctx.Done(); return "value", nil },
		Concurrency: 1, Timeout: 100 * time.Microsecond,
	})
	for range 1000 {
		if value, err := v.run(t.Context(), nil, true); !errors.Is(err, errs.ErrIgnore) {
			t.Fatalf("run = %v, %v", value, err)
		}
	}
}

func TestForeignValidatorIsAnError(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	must(t, r.ps.RegisterTopicValidator("t", func(context.Context, peer.ID, *pubsub.Message) bool { return true }))
	var calls atomic.Int32
	if _, err := r.Open(within(t), "t", Opening{Validators: []Validator{check(&calls)}}); err == nil {
		t.Error("no error")
	}
	leftAlone(t, r, "t")
	open(t, r, "t", Spec{}).Close()
}

func topicName(name string) *string { return &name }

// send hands a message to a router as a peer would that writes what it likes.
func send(t *testing.T, from *Router, to *Router, m *pubsub_pb.Message) bool {
	t.Helper()
	rpc := &pubsub.RPC{RPC: pubsub_pb.RPC{Publish: []*pubsub_pb.Message{m}}}
	must(t, to.inspect(from.cfg.Host.ID(), rpc))
	return len(rpc.Publish) == 1
}

func TestTopicsHaveSignaturePoliciesOfTheirOwn(t *testing.T) {
	ha, hb := newHost(t), newHost(t)
	a := newRouter(t, ha, nil)
	b := newRouter(t, hb, nil)
	connect(t, ha, hb)
	secret, signed := open(t, b, "secret", Spec{Anonymous: true}), open(t, b, "signed", Spec{})
	subSecret, err := secret.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	subSigned, err := signed.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	mine := open(t, a, "secret", Spec{Anonymous: true})
	must(t, mine.Publish(within(t), []byte("whisper"), waiting))
	m := next(t, subSecret)
	if m.From != nil || m.Seqno != nil || m.Signature != nil || m.Key != nil || m.ReceivedFrom != ha.ID() || m.ID != contentID(m.Message) {
		t.Errorf("anonymous message: %+v", m)
	}
	must(t, a.Publish(within(t), "signed", []byte("loud"), waiting))
	if m := next(t, subSigned); m.GetFrom() != ha.ID() || m.Signature == nil {
		t.Errorf("signed message: %+v", m)
	}
	// The same again is no second message.
	must(t, mine.Publish(within(t), []byte("whisper"), waiting))
	must(t, mine.Publish(within(t), []byte("other"), waiting))
	if m := next(t, subSecret); string(m.Data) != "other" {
		t.Errorf("got %q", m.Data)
	}

	bare := &pubsub_pb.Message{Topic: topicName("signed"), Data: []byte("x")}
	if send(t, a, b, bare) {
		t.Error("an unsigned message gets through on a signed topic")
	}
	bare.Topic = topicName("secret")
	if !send(t, a, b, bare) {
		t.Error("an anonymous message does not get through")
	}
	bare.From = []byte(ha.ID())
	if send(t, a, b, bare) {
		t.Error("a message with an author gets through on an anonymous topic")
	}
	if o := b.Offenses()[ha.ID()]; o.Unsuited != 2 {
		t.Errorf("offenses %+v", o)
	}
	// What the application joins through the upstream router is signed.
	raw, err := a.ps.Join("raw")
	must(t, err)
	rawSub, err := raw.Subscribe()
	must(t, err)
	must(t, raw.Publish(within(t), []byte("x")))
	rm, err := rawSub.Next(within(t))
	must(t, err)
	if rm.Signature == nil {
		t.Error("a message of the upstream router is not signed")
	}
	rawSub.Cancel()
	must(t, raw.Close())

	// A policy of the application's is for all topics.
	hc := newHost(t)
	c := newRouter(t, hc, func(c *Config) {
		c.Options = []pubsub.Option{pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor(), pubsub.WithMessageIdFn(contentID)}
	})
	if _, err := c.Open(within(t), "t", Opening{Spec: Spec{Anonymous: true}}); !errors.Is(err, errForeignPolicy) {
		t.Errorf("an anonymous topic beside another policy: %v", err)
	}
	connect(t, hc, hb)
	open(t, c, "secret", Spec{}) // as raw pubsub with StrictNoSign
	must(t, c.Publish(within(t), "secret", []byte("from elsewhere"), waiting))
	if m := next(t, subSecret); string(m.Data) != "from elsewhere" {
		t.Errorf("got %q", m.Data)
	}
}

// Identities whose IDs do not contain the key send it with each message.
func TestAnonymousMessagesOfAnRSAIdentity(t *testing.T) {
	key, _, err := crypto.GenerateKeyPair(crypto.RSA, 2048)
	must(t, err)
	h := newHost(t, libp2p.Identity(key))
	r := newRouter(t, h, nil)
	topic := open(t, r, "t", Spec{Anonymous: true})
	sub, err := topic.Subscribe(within(t), Reading{Buffer: 1})
	must(t, err)
	must(t, topic.Publish(within(t), []byte("x"), Publishing{}))
	if m := next(t, sub); m.Key != nil || m.Signature != nil || m.From != nil {
		t.Errorf("got %+v", m.Message)
	}
}

func TestMessageIDsOfATopicEndWithIt(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	same := func(*pubsub_pb.Message) string { return "same" }
	h := open(t, r, "t", Spec{MessageID: same})
	sub, err := h.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	for range 2 {
		must(t, h.Publish(within(t), []byte("x"), Publishing{}))
	}
	if m := next(t, sub); m.ID != "same" || sub.queue.Len() != 0 {
		t.Errorf("ID %q, %d more", m.ID, sub.queue.Len())
	}
	h.Close() // the message keeps the topic for a while
	plain := open(t, r, "t", Spec{})
	sub, err = plain.Subscribe(within(t), Reading{Buffer: 8})
	must(t, err)
	must(t, plain.Publish(within(t), []byte("x"), Publishing{}))
	if m := next(t, sub); m.ID == "same" {
		t.Error("the function outlives its topic")
	}
}

func TestSubscriptionsReadAsTheyAreTold(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	subscribe := func(o Reading) *Subscription {
		s, err := r.Subscribe(within(t), "t", o)
		must(t, err)
		return s
	}
	oldest := subscribe(Reading{Buffer: 2})
	newest := subscribe(Reading{Buffer: 2, DropNewest: true})
	patient := subscribe(Reading{Buffer: 2, Wait: time.Hour})
	sized := subscribe(Reading{Buffer: 100, Bytes: 2 * sizeOf(&pubsub.Message{Message: &pubsub_pb.Message{Topic: topicName("t"), Data: []byte("0")}})})
	last := subscribe(Reading{Buffer: 100}) // the pump serves it last
	for i := range 5 {
		must(t, r.Publish(within(t), "t", fmt.Append(nil, i), Publishing{}))
	}
	for range 5 {
		next(t, last)
	}
	for _, c := range []struct {
		name string
		sub  *Subscription
		want []string
		lost uint64
	}{
		{"oldest", oldest, []string{"3", "4"}, 3},
		{"newest", newest, []string{"0", "1"}, 3},
		{"patient", patient, []string{"0", "1", "2", "3", "4"}, 0},
		{"bytes", sized, []string{"3", "4"}, 3},
	} {
		for _, want := range c.want {
			if m := next(t, c.sub); string(m.Data) != want {
				t.Errorf("%s: got %q, want %q", c.name, m.Data, want)
			}
		}
		if c.sub.Dropped() != c.lost || c.sub.queue.Len() != 0 {
			t.Errorf("%s: %d dropped, %d left", c.name, c.sub.Dropped(), c.sub.queue.Len())
		}
	}
	if s, _ := r.Topic("t"); s.Dropped != 9 {
		t.Errorf("the topic has dropped %d", s.Dropped)
	}
}

func TestMessagesAreForwardedToAChannel(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	s, err := r.Subscribe(within(t), "t", Reading{Buffer: 8})
	must(t, err)
	c := Forward(s, func(m *pubsub.Message, _ uint64) string { return string(m.Data) })
	for _, text := range []string{"a", "b"} {
		must(t, r.Publish(within(t), "t", []byte(text), Publishing{}))
	}
	if <-c != "a" || <-c != "b" {
		t.Error("not the messages in order")
	}
	must(t, r.Publish(within(t), "t", []byte("unread"), Publishing{}))
	s.Close()
	for range c { // one may be waiting in it
	}
	late, err := r.Subscribe(within(t), "t", Reading{Buffer: 8})
	must(t, err)
	must(t, r.Close())
	if _, open := <-Forward(late, func(*pubsub.Message, uint64) int { return 0 }); open {
		t.Error("a channel of a closed router is open")
	}
}

func TestTopicsOfHandlesUsedOnceLeaveNothing(t *testing.T) {
	n := 8000
	if testing.Short() || raced.Detector {
		n = 200
	}
	r := newRouter(t, newHost(t), nil)
	open(t, r, "warm up", Spec{}).Close()
	ctx := within(t)
	before, heap := runtime.NumGoroutine(), heapInUse()
	var calls atomic.Int32
	var names []string
	for i := range n {
		name := fmt.Sprint("t", i)
		h, err := r.Open(ctx, name, Opening{Spec: Spec{Anonymous: i%2 == 0}, Validators: []Validator{check(&calls)}})
		must(t, err)
		s, err := h.Subscribe(ctx, Reading{Buffer: 1})
		must(t, err)
		h.Close()
		if _, _, err := s.Next(ctx); !errors.Is(err, errs.ErrClosed) {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	leftAlone(t, r, names...)
	r.mu.Lock()
	if len(r.special) != 0 || len(r.held) != 0 {
		t.Errorf("%d special topics, %d held", len(r.special), len(r.held))
	}
	r.mu.Unlock()
	settled(t, before+10) // some of gossipsub's and the host's may start late
	// Upstream keeps the names of topics with a message ID function of their own.
	if grown := heapInUse() - heap; grown > 2<<20 {
		t.Errorf("the heap has grown by %d KiB over %d topics", grown>>10, n)
	} else {
		t.Logf("the heap has grown by %d KiB over %d topics", grown>>10, n)
	}
	runtime.KeepAlive(r)
}

// heapInUse returns the bytes of the live objects.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // finalizers and weak pointers
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // a machine has less
}

func TestHandlesAreSafeForConcurrentUse(t *testing.T) {
	a, b := pair(t)
	hb := open(t, b, "t", Spec{})
	sub, err := hb.Subscribe(within(t), Reading{Buffer: 10_000})
	must(t, err)
	var calls atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				h, err := a.Open(within(t), "t", Opening{Validators: []Validator{check(&calls)}})
				if err != nil {
					t.Error(err)
					return
				}
				s, err := h.Subscribe(within(t), Reading{Buffer: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if err := h.Publish(within(t), []byte("x"), waiting); err != nil {
					t.Error(err)
				}
				wg.Go(s.Close)
				wg.Go(h.Close)
				h.State()
			}
		})
	}
	wg.Wait()
	for range 100 {
		next(t, sub)
	}
}

// stuck is a writer that takes its time, and then fails.
type stuck struct {
	wait    chan struct{}
	written bytes.Buffer
	err     error
}

func (w *stuck) Write(p []byte) (int, error) {
	<-w.wait
	if w.err != nil {
		return 0, w.err
	}
	return w.written.Write(p)
}

func TestTraceDropsWhatItsWriterDoesNotTake(t *testing.T) {
	w := &stuck{wait: make(chan struct{})}
	tr := newTrace(w)
	for range traceBuffer + 7 {
		tr.Trace(&pubsub_pb.TraceEvent{})
	}
	close(w.wait)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr.write(ctx, func(err error) { t.Error(err) })
	if first, _, _ := strings.Cut(w.written.String(), "\n"); first != `{"lost":7}` {
		t.Errorf("the first line is %s", first)
	}
	if n := strings.Count(w.written.String(), "\n"); n != traceBuffer+1 {
		t.Errorf("%d lines", n)
	}

	w.err = errors.New("the disk is full")
	tr = newTrace(w)
	tr.Trace(&pubsub_pb.TraceEvent{})
	var failed error
	tr.write(t.Context(), func(err error) { failed = err })
	if !errors.Is(failed, w.err) {
		t.Errorf("the trace ends with %v", failed)
	}
}

// The IDs are upstream's, so that nodes of other libraries know a message again.
func TestDefaultIDIsUpstreams(t *testing.T) {
	t.Parallel()
	m := &pubsub_pb.Message{From: bytes.Repeat([]byte{7}, 38), Seqno: []byte("12345678")}
	for _, m := range []*pubsub_pb.Message{m, {From: []byte("x")}, {Seqno: []byte("x")}, {}} {
		if got, want := defaultID(m), pubsub.DefaultMsgIdFn(m); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDefaultIDAllocatesOnce(t *testing.T) {
	m := &pubsub_pb.Message{From: bytes.Repeat([]byte{7}, 38), Seqno: []byte("12345678")}
	if n := testing.AllocsPerRun(100, func() { _ = defaultID(m) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
