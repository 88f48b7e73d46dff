package p2pnode

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

func subscribe(tb testing.TB, n *Node, topic string, opts ...SubscribeOption) *Subscription {
	tb.Helper()
	s, err := n.Subscribe(testContext(tb), topic, opts...)
	mustNot(tb, err)
	return s
}

func next(tb testing.TB, s *Subscription) *Message {
	tb.Helper()
	m, err := s.Next(testContext(tb))
	mustNot(tb, err)
	return m
}

func TestPubSubDelivers(t *testing.T) {
	a, b := pair(t)
	subs := []*Subscription{subscribe(t, a, "t"), subscribe(t, b, "t"), subscribe(t, b, "t")}
	data := []byte("hello")
	mustNot(t, a.Publish(testContext(t), "t", data))
	data[0] = 'X' // the caller may do so
	ids := map[string]bool{}
	for i, s := range subs {
		m := next(t, s)
		if string(m.Data) != "hello" || m.Author != a.ID() || m.From != a.ID() || m.Topic != "t" || m.ID == "" || s.Topic() != "t" {
			t.Errorf("subscription %d got %+v", i, m)
		}
		ids[m.ID] = true
	}
	if len(ids) != 1 {
		t.Error("one message has several IDs")
	}
	// b's own stream to a may come after the message did.
	mustNot(t, b.WaitReady(testContext(t), StageTopic("t")))
	if s := b.Status().Topics; len(s) != 1 || s[0].Name != "t" || s[0].Subscriptions != 2 || !slices.Contains(s[0].Peers, a.ID()) {
		t.Errorf("Status has %+v", s)
	}
}

// No message is lost right after connecting (pitfalls 18 and 50), when both are
// subscribed but have no mesh yet.
func TestPitfall18FirstMessagesArrive(t *testing.T) {
	for range 5 {
		a, b := newNode(t), newNode(t)
		sa, sb := subscribe(t, a, "t"), subscribe(t, b, "t")
		mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
		for i := range 50 {
			mustNot(t, a.Publish(testContext(t), "t", fmt.Appendf(nil, "%d", i)))
		}
		got := map[string]bool{}
		for range 50 {
			got[string(next(t, sb).Data)] = true
		}
		if len(got) != 50 {
			t.Errorf("%d different messages of 50", len(got))
		}
		mustNot(t, errors.Join(sa.Close(), a.Close(), b.Close()))
	}
}

func TestPublishToNobody(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(testContext(t))
	result := make(chan error, 1)
	go func() { result <- n.Publish(ctx, "t", nil) }()
	cancel()
	if err := <-result; !errors.Is(err, ErrNoPeers) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "PublishNow") {
		t.Errorf("Publish = %v", err)
	}
	mustNot(t, n.Publish(testContext(t), "t", nil, PublishNow(), nil))

	// A peer that comes while Publish waits gets the message.
	go func() { result <- n.Publish(testContext(t), "t", []byte("x")) }()
	late := newNode(t)
	s := subscribe(t, late, "t")
	mustNot(t, late.Connect(testContext(t), n.AddrInfo()))
	next(t, s)
	mustNot(t, <-result)
}

// Publish keeps no reference to data unless it may.
func TestPublishCopiesDataByDefault(t *testing.T) {
	n := newNode(t)
	sub := subscribe(t, n, "t")
	data := []byte("text")
	mustNot(t, n.Publish(testContext(t), "t", data, PublishNow()))
	if m := next(t, sub); &m.Data[0] == &data[0] {
		t.Error("the message has the caller's bytes")
	}
	mustNot(t, n.Publish(testContext(t), "t", data, PublishNow(), PublishNoCopy()))
	if m := next(t, sub); &m.Data[0] != &data[0] {
		t.Error("PublishNoCopy has copied")
	}
}

// A slow reader loses the oldest messages, and each is counted (pitfall 19).
func TestPitfall19SlowReaderIsTold(t *testing.T) {
	a := newNode(t)
	slow, quick := subscribe(t, a, "t", SubscribeBuffer(10)), subscribe(t, a, "t")
	const sent = 200
	for i := range sent {
		mustNot(t, a.Publish(testContext(t), "t", fmt.Appendf(nil, "%d", i), PublishNow()))
		if m := next(t, quick); string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("the quick reader got %q, want %d", m.Data, i)
		}
	}
	mustNot(t, waitFor(t, func() bool { return slow.Dropped() == sent-10 }))
	for i := sent - 10; i < sent; i++ {
		if m := next(t, slow); string(m.Data) != fmt.Sprint(i) {
			t.Errorf("the slow reader got %q, want %d", m.Data, i)
		}
	}
	if slow.Dropped() != sent-10 || quick.Dropped() != 0 {
		t.Errorf("dropped: %d and %d", slow.Dropped(), quick.Dropped())
	}
	if _, err := a.Subscribe(testContext(t), "t", SubscribeBuffer(0)); err == nil || !strings.Contains(err.Error(), "SubscribeBuffer") {
		t.Errorf("a buffer for nothing: %v", err)
	}
}

// Subscriptions come and go at will (pitfall 22), and a message is delivered
// to each that is there once.
func TestPitfall22SubscribeAndCloseAtWill(t *testing.T) {
	a, b := pair(t)
	keep := subscribe(t, b, "t")
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 20 {
				s, err := b.Subscribe(testContext(t), "t")
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if _, err := s.Next(testContext(t)); !errors.Is(err, ErrClosed) {
					t.Errorf("Next after Close = %v", err)
				}
			}
		})
	}
	for i := range 50 {
		mustNot(t, a.Publish(testContext(t), "t", fmt.Appendf(nil, "%d", i)))
	}
	wg.Wait()
	got := map[string]bool{} // gossipsub keeps no order
	for range 50 {
		got[string(next(t, keep).Data)] = true
	}
	if len(got) != 50 {
		t.Errorf("%d different messages of 50", len(got))
	}
	// The node leaves the topic with its last subscription, and comes back.
	mustNot(t, keep.Close())
	mustNot(t, keep.Close())
	mustNot(t, waitFor(t, func() bool { s, _ := a.pubsub.Topic("t"); return len(s.Peers) == 0 }))
	again := subscribe(t, b, "t")
	mustNot(t, a.Publish(testContext(t), "t", []byte("again")))
	if m := next(t, again); string(m.Data) != "again" {
		t.Errorf("got %q", m.Data)
	}
}

// A message of the maximum size crosses three hops; with one byte more, Publish
// returns an error (pitfalls 24 and 48).
func TestPitfall48MessageSizes(t *testing.T) {
	size := WithMaxMessageSize(64 << 10)
	var chain []*Node
	for i := range 4 {
		n := newNode(t, size, WithoutDHT())
		if i > 0 {
			mustNot(t, n.Connect(testContext(t), chain[i-1].AddrInfo()))
		}
		chain = append(chain, n)
	}
	var last *Subscription
	for _, n := range chain {
		last = subscribe(t, n, "t")
	}
	// The hops after the first one need a mesh, which gossipsub forms at its
	// heartbeats: it is complete once a small message arrives.
	through := make(chan *Message, 1)
	go func() { through <- next(t, last) }()
	for arrived := false; !arrived; {
		mustNot(t, chain[0].Publish(testContext(t), "t", []byte("small")))
		select {
		case <-through:
			arrived = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	limit := 64<<10 - messageOverhead - len("t")
	data := bytes.Repeat([]byte("x"), limit)
	mustNot(t, chain[0].Publish(testContext(t), "t", data))
	m := next(t, last)
	for len(m.Data) < limit { // more small ones
		m = next(t, last)
	}
	if m.Author != chain[0].ID() || m.From != chain[2].ID() {
		t.Errorf("by %s from %s", m.Author, m.From)
	}
	err := chain[0].Publish(testContext(t), "t", append(data, 'x'))
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "WithMaxMessageSize") || !strings.Contains(err.Error(), fmt.Sprint(limit)) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestMessagesIterator(t *testing.T) {
	n := newNode(t)
	s := subscribe(t, n, "t")
	for i := range 3 {
		mustNot(t, n.Publish(testContext(t), "t", fmt.Appendf(nil, "%d", i), PublishNow()))
	}
	i := 0
	for m, err := range s.Messages(testContext(t)) {
		mustNot(t, err)
		if string(m.Data) != fmt.Sprint(i) {
			t.Errorf("message %d is %q", i, m.Data)
		}
		if i++; i == 3 {
			mustNot(t, s.Close()) // which ends the loop
		}
	}
	other := subscribe(t, n, "t")
	for _, err := range other.Messages(ended()) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
}

// A hand-assembled gossipsub peer, both ways; unsigned messages are not
// delivered (pitfall 20).
func TestPitfall20PubSubSignsAndMeetsAHandAssembledPeer(t *testing.T) {
	raw := func(policy pubsub.MessageSignaturePolicy) (*pubsub.Topic, *pubsub.Subscription, libp2pHost) {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), nethost.NoMetrics)
		mustNot(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithMessageSignaturePolicy(policy), pubsub.WithFloodPublish(true))
		mustNot(t, err)
		topic, err := ps.Join("t")
		mustNot(t, err)
		sub, err := topic.Subscribe()
		mustNot(t, err)
		t.Cleanup(func() { cancel(); mustNot(t, h.Close()) })
		return topic, sub, h
	}
	n := newNode(t, WithoutDHT())
	ours := subscribe(t, n, "t")
	signed, heard, h1 := raw(pubsub.StrictSign)
	unsigned, _, h2 := raw(pubsub.StrictNoSign)
	for _, h := range []libp2pHost{h1, h2} {
		mustNot(t, n.Connect(testContext(t), addrInfoOf(h)))
	}
	mustNot(t, waitFor(t, func() bool { return len(signed.ListPeers()) > 0 && len(unsigned.ListPeers()) > 0 }))
	mustNot(t, unsigned.Publish(t.Context(), []byte("anonymous")))
	mustNot(t, signed.Publish(t.Context(), []byte("signed")))
	if m := next(t, ours); string(m.Data) != "signed" || m.Author != h1.ID() {
		t.Errorf("got %q by %s", m.Data, m.Author)
	}
	mustNot(t, n.Publish(testContext(t), "t", []byte("ours")))
	for {
		m, err := heard.Next(testContext(t))
		mustNot(t, err)
		if string(m.Data) == "ours" && m.GetFrom() == n.ID() {
			break
		}
	}
}

// lockedBuffer is a writer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func TestPubSubTrace(t *testing.T) {
	var out lockedBuffer
	n, err := New(testContext(t), loopback(), WithPubSubTrace(&out))
	mustNot(t, err)
	mustNot(t, n.Publish(testContext(t), "news", []byte("the text"), PublishNow()))
	mustClose(t, n)
	if strings.Contains(out.buf.String(), base64.StdEncoding.EncodeToString([]byte("the text"))) {
		t.Error("the trace has the data of a message")
	}
	published := false
	lines := json.NewDecoder(&out.buf)
	for {
		var e pubsub_pb.TraceEvent
		if err := lines.Decode(&e); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		published = published || e.GetType() == pubsub_pb.TraceEvent_PUBLISH_MESSAGE && e.GetPublishMessage().GetTopic() == "news"
	}
	if !published {
		t.Error("the trace does not have the message")
	}
}
