package topic_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
	"github.com/go-p2pnode/p2pnode/topic"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// simulated runs a test in virtual time, with two connected nodes.
func simulated(t *testing.T, f func(t *testing.T, sim *p2ptest.Network, a, b *p2ptest.Node)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		f(t, sim, a, sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo())))
	})
}

func join[T any](t *testing.T, n *p2ptest.Node, codec topic.Codec[T], opts ...topic.Option) *topic.Topic[T] {
	t.Helper()
	typed, err := topic.Join(n, "news", codec, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return typed
}

func subscribe[T any](t *testing.T, typed *topic.Topic[T], opts ...p2pnode.SubscribeOption) *topic.Subscription[T] {
	t.Helper()
	sub, err := typed.Subscribe(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func next[T any](t *testing.T, sub *topic.Subscription[T]) topic.Message[T] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := sub.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// nothing checks that no message comes.
func nothing[T any](t *testing.T, sub *topic.Subscription[T]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if m, err := sub.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %+v, %v", m.Value, err)
	}
}

func publish[T any](t *testing.T, typed *topic.Topic[T], v T, opts ...p2pnode.PublishOption) {
	t.Helper()
	if err := typed.Publish(t.Context(), v, opts...); err != nil {
		t.Fatal(err)
	}
}

// raw publishes data.
func raw(t *testing.T, n *p2ptest.Node, data string) {
	t.Helper()
	if err := n.Publish(t.Context(), "news", []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, n *p2ptest.Node) p2pnode.TopicStatus {
	t.Helper()
	for _, s := range n.Status().Topics {
		if strings.HasPrefix(s.Name, "news") {
			return s
		}
	}
	t.Fatal("the node is not on the topic")
	return p2pnode.TopicStatus{}
}

// counting is a codec that counts, and panics over "panic".
type counting[T any] struct {
	topic.Codec[T]
	decoded *atomic.Int64
}

func newCounting[T any](codec topic.Codec[T]) counting[T] {
	return counting[T]{codec, new(atomic.Int64)}
}

func (c counting[T]) Decode(data []byte) (T, error) {
	c.decoded.Add(1)
	if string(data) == "panic" {
		panic("over a stranger's bytes")
	}
	return c.Codec.Decode(data)
}

// A message is decoded once, however many read it, and one of the node's own is not.
func TestValuesArriveDecodedOnce(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		codecA, codecB := newCounting(topic.JSON[*greeting]()), newCounting(topic.JSON[*greeting]())
		ofA, ofB := join(t, a, codecA), join(t, b, codecB, topic.Validate(func(_ context.Context, m topic.Message[*greeting]) error {
			if m.Value.Text == "" {
				return errors.New("it says nothing")
			}
			return nil
		}))
		again := join(t, b, codecB)
		var subs []*topic.Subscription[*greeting]
		for _, typed := range []*topic.Topic[*greeting]{ofB, ofB, again} {
			subs = append(subs, subscribe(t, typed))
		}
		own := subscribe(t, ofA)
		hello := &greeting{"ada", "hello"}
		publish(t, ofA, hello)
		var first *greeting
		for _, sub := range subs {
			m := next(t, sub)
			if *m.Value != *hello || m.Author != a.ID() || m.From != a.ID() || m.Topic != "news" || m.ID == "" || m.Version != 0 || m.Lost != 0 {
				t.Errorf("got %+v, %+v", m.Value, m.Message)
			}
			if first == nil {
				first = m.Value
			}
			if m.Value != first {
				t.Error("subscriptions have values of their own")
			}
		}
		if m := next(t, own); m.Value != hello || m.Message.Value != any(hello) {
			t.Errorf("the own value is another: %+v", m.Value)
		}
		if n, m := codecA.decoded.Load(), codecB.decoded.Load(); n != 0 || m != 1 {
			t.Errorf("decoded %d and %d times, want 0 and 1", n, m)
		}
		// What the node publishes untyped is decoded, and validated.
		if err := ofB.Topic().Publish(t.Context(), []byte(`{"text":""}`)); !errors.Is(err, p2pnode.ErrRejected) || !strings.Contains(err.Error(), "it says nothing") {
			t.Errorf("published with an error of %v", err)
		}
		if err := ofB.Publish(t.Context(), new(greeting)); !errors.Is(err, p2pnode.ErrRejected) {
			t.Errorf("published with an error of %v", err)
		}
		if err := ofB.Publish(t.Context(), nil); err == nil {
			t.Error("nil is published")
		}
		if err := ofB.Topic().Publish(t.Context(), []byte("{")); !errors.Is(err, p2pnode.ErrRejected) {
			t.Errorf("published with an error of %v", err)
		}
	})
}

// What does not decode, or is too large to be decoded, is held against who sent it.
func TestGarbageIsRejected(t *testing.T) {
	simulated(t, func(t *testing.T, sim *p2ptest.Network, a, _ *p2ptest.Node) {
		codec := newCounting(topic.JSON[*greeting]())
		sub := subscribe(t, join(t, a, codec, topic.MaxSize(50), topic.Validate(func(_ context.Context, m topic.Message[*greeting]) error {
			if m.Value.From == "mallory" {
				return errors.New("not you")
			}
			return nil
		})))
		peer := sim.Raw(t, p2ptest.RawConnect(a.AddrInfo()))
		theirs, err := peer.PubSub.Join("news")
		if err != nil {
			t.Fatal(err)
		}
		sim.Until("the peer knows the topic", func() error {
			if len(theirs.ListPeers()) == 0 {
				return errors.New("nobody is on it")
			}
			return nil
		})
		for _, data := range []string{"garbage", "panic", "null", `{"text":"` + strings.Repeat("x", 50) + `"}`, `{"from":"mallory"}`, `{"from":"ada"}`} {
			if err := theirs.Publish(t.Context(), []byte(data)); err != nil {
				t.Fatal(err)
			}
		}
		if m := next(t, sub); m.Value.From != "ada" {
			t.Errorf("got %+v", m.Value)
		}
		if s := status(t, a); s.Rejected != 5 || s.Ignored != 0 || s.Panics != 0 {
			t.Errorf("%+v", s)
		}
		if n := codec.decoded.Load(); n != 5 {
			t.Errorf("decoded %d times: the one that is too large, too", n)
		}
		list, err := a.Diagnose(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		named := false
		for _, f := range list {
			named = named || f.Kind == p2pnode.FindingRejected && strings.Contains(f.What, peer.ID().String())
		}
		if !named {
			t.Errorf("Diagnose does not name the peer: %v", list)
		}
	})
}

func TestSizesOfOwnMessages(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		sub := subscribe(t, join(t, a, topic.JSON[string]()))
		short := join(t, b, topic.JSON[string](), topic.MaxSize(10), topic.VersionInName(1))
		if err := short.Publish(t.Context(), "123456789"); !errors.Is(err, p2pnode.ErrTooLarge) || !strings.Contains(err.Error(), "MaxSize") {
			t.Errorf("published with an error of %v", err)
		}
		long := join(t, b, topic.JSON[string]())
		if err := long.Publish(t.Context(), strings.Repeat("x", 1<<20)); !errors.Is(err, p2pnode.ErrTooLarge) {
			t.Errorf("published with an error of %v", err)
		}
		publish(t, long, "12345678")
		next(t, sub)
		limit := long.Topic().MaxData()
		if _, err := topic.Join(b, "other", topic.JSON[string](), topic.MaxSize(limit+1)); len(p2pnode.OptionErrors(err)) != 1 {
			t.Errorf("more than the network takes: %v", err)
		}
		for _, s := range b.Status().Topics {
			if s.Name == "other" {
				t.Error("the node is on a topic whose options are invalid")
			}
		}
	})
}

func TestVersionsInTheEnvelope(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		reads := join(t, a, topic.JSON[string](), topic.VersionInEnvelope(3, 2))
		sub := subscribe(t, reads)
		for _, version := range []uint64{1, 2, 3, 4, 500} {
			writes := join(t, b, topic.JSON[string](), topic.VersionInEnvelope(version))
			publish(t, writes, fmt.Sprint(version))
			if err := writes.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, version := range []uint64{2, 3} {
			if m := next(t, sub); m.Value != fmt.Sprint(version) || m.Version != version {
				t.Errorf("got %q of version %d, want %d", m.Value, m.Version, version)
			}
		}
		nothing(t, sub)
		if older, newer := reads.OtherVersions(); older != 1 || newer != 2 {
			t.Errorf("%d older, %d newer", older, newer)
		}
		if s := status(t, a); s.Ignored != 3 || s.Rejected != 0 {
			t.Errorf("%+v", s)
		}
		raw(t, b, "\x83\x00\"3\"")
		raw(t, b, "\"none\"")
		nothing(t, sub)
		if s := status(t, a); s.Rejected != 1 || s.Ignored != 4 { // a quote is the version 34
			t.Errorf("%+v", s)
		}
	})
}

func TestVersionsInTheName(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		subs := make(map[uint64]*topic.Subscription[string])
		for _, version := range []uint64{1, 2} {
			subs[version] = subscribe(t, join(t, a, topic.JSON[string](), topic.VersionInName(version)))
		}
		two := join(t, b, topic.JSON[string](), topic.VersionInName(2))
		publish(t, two, "2")
		if m := next(t, subs[2]); m.Value != "2" || m.Version != 2 || m.Topic != "news/v2" || two.Topic().Name() != "news/v2" {
			t.Errorf("got %+v", m)
		}
		nothing(t, subs[1])
	})
}

// Two handles of one topic with different types: each has values of its own, and
// what does not suit both is rejected.
func TestTwoTypesOnOneTopic(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		greetings, maps := join(t, a, topic.JSON[greeting]()), join(t, a, topic.JSON[map[string]string]())
		subG, subM := subscribe(t, greetings), subscribe(t, maps)
		both := func(from string) {
			t.Helper()
			if m := next(t, subG); m.Value.From != from {
				t.Errorf("a greeting of %q, want %q", m.Value.From, from)
			}
			if m := next(t, subM); m.Value["from"] != from {
				t.Errorf("a map of %q, want %q", m.Value["from"], from)
			}
		}
		raw(t, b, `{"from":"bob","text":"x"}`)
		both("bob")
		publish(t, greetings, greeting{"ada", "x"}, p2pnode.PublishNow())
		both("ada")
		publish(t, maps, map[string]string{"from": "eve"}, p2pnode.PublishNow())
		both("eve")
		raw(t, b, `{"from":"bob","more":1}`) // not a map of strings
		nothing(t, subG)
		if s := status(t, a); s.Rejected != 1 {
			t.Errorf("%+v", s)
		}
		// Once nobody wants maps of strings, the others get it.
		if err := maps.Close(); err != nil {
			t.Error(err)
		}
		raw(t, b, `{"from":"bob","more":2}`)
		if m := next(t, subG); m.Value.From != "bob" {
			t.Errorf("got %+v", m.Value)
		}
	})
}

// A message that passed the node's validators before the topic had a type is
// skipped, and counts as lost.
func TestMessagesOnTheirWayAreSkipped(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		entered, release := make(chan struct{}, 2), make(chan struct{})
		slow, err := a.Topic("news", p2pnode.TopicValidator(func(ctx context.Context, _ *p2pnode.Message) error {
			entered <- struct{}{}
			<-release
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := slow.Subscribe(t.Context()); err != nil {
			t.Fatal(err)
		}
		raw(t, b, "garbage")
		<-entered
		sub := subscribe(t, join(t, a, topic.JSON[string](), topic.With(p2pnode.TopicValidator(func(_ context.Context, m *p2pnode.Message) error {
			if m.Value != "fine" {
				t.Errorf("another validator finds %v", m.Value)
			}
			return nil
		}))))
		close(release)
		synctest.Wait()
		raw(t, b, `"fine"`)
		if m := next(t, sub); m.Value != "fine" || m.Lost != 1 || sub.Dropped() != 1 {
			t.Errorf("got %q, lost %d, dropped %d", m.Value, m.Lost, sub.Dropped())
		}
	})
}

// A validator with options has a time limit, and does not hold up others.
func TestValidateWithATimeLimit(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, b *p2ptest.Node) {
		slow := func(ctx context.Context, m topic.Message[greeting]) error {
			if m.Value.Text == "slow" {
				<-ctx.Done()
			}
			return nil
		}
		sub := subscribe(t, join(t, a, topic.JSON[greeting](), topic.Validate(slow, p2pnode.ValidatorTimeout(time.Minute)), topic.Validate(fine)))
		writes := join(t, b, topic.JSON[greeting]())
		publish(t, writes, greeting{Text: "slow"})
		publish(t, writes, greeting{Text: "fast"})
		if m := next(t, sub); m.Value.Text != "fast" {
			t.Errorf("got %+v", m.Value)
		}
		time.Sleep(2 * time.Minute)
		if s := status(t, a); s.Ignored != 1 || s.Rejected != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestMessagesInASelect(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, _ *p2ptest.Node) {
		typed := join(t, a, topic.JSON[int]())
		sub, unread, late := subscribe(t, typed), subscribe(t, typed, p2pnode.SubscribeBuffer(1)), subscribe(t, typed)
		if one, other := sub.C(), sub.C(); one != other {
			t.Error("two channels")
		}
		waiting := unread.C()
		for i := range 5 {
			publish(t, typed, i, p2pnode.PublishNow())
			synctest.Wait()
		}
		for i := range 5 {
			select {
			case m := <-sub.C():
				if m.Value != i || m.Author != a.ID() {
					t.Errorf("got %d, want %d", m.Value, i)
				}
			case <-time.After(time.Minute):
				t.Fatal("nothing comes")
			}
		}
		if n := unread.Dropped(); n != 3 { // one waits in the channel, one in the buffer
			t.Errorf("dropped %d, want 3", n)
		}
		if err := late.Close(); err != nil {
			t.Error(err)
		}
		for range late.C() {
			t.Error("a closed subscription has a message")
		}
		if err := a.Close(); err != nil { // with a message that waits in the channel
			t.Error(err)
		}
		synctest.Wait()
		for range waiting {
			t.Error("a closed node has a message")
		}
		for range sub.C() {
			t.Error("a closed node has a message")
		}
	})
}

// What waits for messages ends with the subscription, the topic and the node.
func TestCloseWhileReading(t *testing.T) {
	for name, end := range map[string]func(n *p2ptest.Node, typed *topic.Topic[int], sub *topic.Subscription[int]) error{
		"subscription": func(_ *p2ptest.Node, _ *topic.Topic[int], sub *topic.Subscription[int]) error { return sub.Close() },
		"topic":        func(_ *p2ptest.Node, typed *topic.Topic[int], _ *topic.Subscription[int]) error { return typed.Close() },
		"node":         func(n *p2ptest.Node, _ *topic.Topic[int], _ *topic.Subscription[int]) error { return n.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			simulated(t, func(t *testing.T, _ *p2ptest.Network, a, _ *p2ptest.Node) {
				typed := join(t, a, topic.JSON[int]())
				sub := subscribe(t, typed)
				ended := make(chan error, 3)
				go func() {
					_, err := sub.Next(context.Background())
					if !errors.Is(err, p2pnode.ErrClosed) {
						ended <- fmt.Errorf("Next: %w", err)
					}
					ended <- nil
				}()
				go func() {
					for _, err := range sub.Messages(context.Background()) {
						ended <- fmt.Errorf("Messages: %w", err)
					}
					ended <- nil
				}()
				go func() {
					for m := range sub.C() {
						ended <- fmt.Errorf("C: %v", m.Value)
					}
					ended <- nil
				}()
				synctest.Wait()
				if err := end(a, typed, sub); err != nil {
					t.Error(err)
				}
				for range 3 {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
				if err := sub.Close(); err != nil {
					t.Error(err)
				}
				if name == "subscription" {
					return
				}
				if err := typed.Publish(t.Context(), 1); !errors.Is(err, p2pnode.ErrClosed) {
					t.Errorf("published with an error of %v", err)
				}
				if err := typed.Each(t.Context(), nil); !errors.Is(err, p2pnode.ErrClosed) {
					t.Errorf("Each: %v", err)
				}
				if err := typed.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestEachEnds(t *testing.T) {
	simulated(t, func(t *testing.T, _ *p2ptest.Network, a, _ *p2ptest.Node) {
		typed := join(t, a, topic.JSON[int]())
		ctx, cancel := context.WithCancel(t.Context())
		read := func(f func(context.Context, topic.Message[int]) error, opts ...p2pnode.SubscribeOption) <-chan error {
			ended := make(chan error, 1)
			go func() {
				defer func() {
					if p := recover(); p != nil {
						ended <- fmt.Errorf("panic: %v", p)
					}
				}()
				ended <- typed.Each(ctx, f, opts...)
			}()
			synctest.Wait()
			return ended
		}
		enough := errors.New("enough")
		var got []int
		untilTwo := read(func(given context.Context, m topic.Message[int]) error {
			if given != ctx {
				t.Error("another context")
			}
			if got = append(got, m.Value); m.Value == 2 {
				return enough
			}
			return nil
		})
		panics := read(func(context.Context, topic.Message[int]) error { panic("at the disco") })
		all := read(func(context.Context, topic.Message[int]) error { return nil })
		others := read(func(context.Context, topic.Message[int]) error { return enough }, p2pnode.SubscribeOthers())
		for i := range 4 {
			publish(t, typed, i, p2pnode.PublishNow())
		}
		if err := <-untilTwo; !errors.Is(err, enough) || fmt.Sprint(got) != "[0 1 2]" {
			t.Errorf("ended with %v after %v", err, got)
		}
		if err := <-panics; err == nil || err.Error() != "panic: at the disco" {
			t.Errorf("ended with %v", err)
		}
		if n := status(t, a).Subscriptions; n != 2 {
			t.Errorf("%d subscriptions, want 2", n)
		}
		cancel()
		for _, ended := range []<-chan error{all, others} {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		}
		ctx = t.Context()
		all = read(func(context.Context, topic.Message[int]) error { return nil })
		if err := typed.Close(); err != nil {
			t.Error(err)
		}
		if err := <-all; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

// Only programs that import a codec link what it needs.
func TestDependenciesOfCodecs(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	const module = "github.com/go-p2pnode/p2pnode"
	deps := func(packages ...string) string {
		out, err := exec.Command("go", append([]string{"list", "-deps"}, packages...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	list := deps(module, module+"/topic")
	for _, unwanted := range []string{"github.com/fxamacker/cbor", "github.com/x448/float16", module + "/topic/"} {
		if strings.Contains(list, unwanted) {
			t.Errorf("the root or topic depend on %s", unwanted)
		}
	}
	// What the search does find.
	if list := deps(module + "/topic/cborcodec"); !strings.Contains(list, "github.com/fxamacker/cbor") || strings.Contains(list, "libp2p") {
		t.Errorf("package cborcodec depends on\n%s", list)
	}
	if list := deps(module + "/topic/protocodec"); !strings.Contains(list, "google.golang.org/protobuf/proto\n") || strings.Contains(list, "libp2p") {
		t.Errorf("package protocodec depends on\n%s", list)
	}
}
