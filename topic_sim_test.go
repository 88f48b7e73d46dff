package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// topicOf joins "news" and subscribes.
func topicOf(t *testing.T, n *p2ptest.Node, opts ...p2pnode.TopicOption) (*p2pnode.Topic, *p2pnode.Subscription) {
	t.Helper()
	topic, err := n.Topic("news", opts...)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := topic.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return topic, sub
}

func publishTo(t *testing.T, topic *p2pnode.Topic, text string, opts ...p2pnode.PublishOption) {
	t.Helper()
	if err := topic.Publish(t.Context(), []byte(text), opts...); err != nil {
		t.Fatal(err)
	}
}

// findings returns the kinds of what Diagnose finds.
func findings(t *testing.T, n *p2ptest.Node) map[p2pnode.FindingKind]string {
	t.Helper()
	list, err := n.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[p2pnode.FindingKind]string)
	for _, f := range list {
		kinds[f.Kind] = f.What
	}
	return kinds
}

func TestTopicHealthIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		topic, _ := topicOf(t, a)
		if h := topic.Health(); h != p2pnode.TopicHealthNone || topic.Peers() != nil || topic.Mesh() != nil {
			t.Errorf("alone: %s, %v, %v", h, topic.Peers(), topic.Mesh())
		}
		healthy := p2pnode.StageTopicHealthy("news")
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.WaitReady(ended, healthy); !errors.Is(err, p2pnode.ErrNotReady) {
			t.Errorf("alone: %v", err)
		}
		events := a.Events(t.Context())
		other, _ := topicOf(t, b)
		if err := a.WaitReady(t.Context(), healthy); err != nil {
			t.Fatal(err)
		}
		if s := a.Status().Topics[0]; s.Health != p2pnode.TopicHealthGood || len(s.Mesh) != 1 || topic.Mesh()[0] != b.ID() {
			t.Errorf("with a peer: %+v", s)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
		var got []p2pnode.TopicHealth
		for ev := range events {
			if h, ok := ev.(p2pnode.EventTopicHealth); ok {
				got = append(got, h.Health)
				if h.Health == p2pnode.TopicHealthNone {
					break
				}
			}
		}
		if !slices.Contains(got, p2pnode.TopicHealthGood) || got[len(got)-1] != p2pnode.TopicHealthNone {
			t.Errorf("told %s", got)
		}
	})
}

// Over a satellite link of 700 ms one way, topics take longer to be announced than
// Publish waits by default.
func TestPublishWaitsForASatellite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		_, sub := topicOf(t, a)
		sim.SetLink(a, p2ptest.Link{Latency: 700 * time.Millisecond})
		topic, err := b.Topic("news")
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := topic.Publish(t.Context(), nil, p2pnode.PublishWait(time.Second)); !errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("after a second: %v", err)
		}
		publishTo(t, topic, "far", p2pnode.PublishWait(time.Minute))
		t.Logf("the peer was there after %v", time.Since(begun))
		if m := sim.Delivered(sub, 1)[0]; string(m.Data) != "far" {
			t.Errorf("got %q", m.Data)
		}
		if err := topic.Publish(t.Context(), nil, p2pnode.PublishMinPeers(2)); !errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("two peers of one: %v", err)
		}
	})
}

func TestSubscriptionsAreReadInASelect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		topic, sub := topicOf(t, a)
		others, err := topic.Subscribe(t.Context(), p2pnode.SubscribeOthers(), p2pnode.SubscribeBuffer(1))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"one", "two"} {
			publishTo(t, topic, text, p2pnode.PublishNow(), p2pnode.PublishValue(len(text)))
		}
		if first, second := sub.C(), sub.C(); first != second {
			t.Error("two channels")
		}
		for _, want := range []string{"one", "two"} {
			select {
			case m := <-sub.C():
				if string(m.Data) != want || m.Author != a.ID() || m.Topic != "news" || m.Value != 3 {
					t.Errorf("got %+v", m)
				}
			case <-time.After(time.Minute):
				t.Fatal("nothing comes")
			}
		}
		select {
		case m := <-others.C():
			t.Errorf("an own message arrives: %q", m.Data)
		case <-time.After(time.Minute):
		}
		select {
		case <-sub.Done():
			t.Error("it is done before it is closed")
		default:
		}
		if err := topic.Close(); err != nil {
			t.Error(err)
		}
		for range sub.C() {
			t.Error("a closed subscription has a message")
		}
		<-sub.Done()
	})
}

func TestAnonymousTopicsAndThoseWhoSignNameEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := sim.Nodes(t, 3, p2ptest.Random(2))
		signs, a, b := nodes[0], nodes[1], nodes[2]
		signed, _ := topicOf(t, signs)
		topicA, _ := topicOf(t, a, p2pnode.TopicAnonymous())
		_, sub := topicOf(t, b, p2pnode.TopicAnonymous())
		publishTo(t, topicA, "who?", p2pnode.PublishMinPeers(2))
		m := sim.Delivered(sub, 1)[0]
		if string(m.Data) != "who?" || m.Author != "" || m.From != a.ID() {
			t.Errorf("got %+v", m)
		}
		publishTo(t, signed, "I!", p2pnode.PublishMinPeers(2))
		time.Sleep(time.Second)
		for n, culprit := range map[*p2ptest.Node]*p2ptest.Node{b: signs, signs: a} {
			if what := findings(t, n)[p2pnode.FindingSignatures]; !strings.Contains(what, culprit.ID().String()) {
				t.Errorf("Diagnose does not name %s: %q", culprit.ID(), what)
			}
		}
	})
}

func TestValidatorsAreSeenInStatusAndDiagnose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		judged := p2pnode.TopicValidator(func(ctx context.Context, m *p2pnode.Message) error {
			switch string(m.Data) {
			case "old":
				return p2pnode.ErrIgnore
			case "bad":
				return errors.New("no good")
			case "slow":
				<-ctx.Done()
			case "broken":
				panic("broken")
			}
			m.Value = strings.ToUpper(string(m.Data))
			return nil
		}, p2pnode.ValidatorConcurrency(1), p2pnode.ValidatorTimeout(time.Second))
		_, sub := topicOf(t, a, judged)
		topic, _ := topicOf(t, b)
		for _, text := range []string{"old", "bad", "slow", "broken", "fine"} {
			publishTo(t, topic, text)
			time.Sleep(2 * time.Second)
		}
		publishTo(t, topic, "slow")
		time.Sleep(100 * time.Millisecond)
		publishTo(t, topic, "crowded")
		if m := sim.Delivered(sub, 1)[0]; string(m.Data) != "fine" || m.Value != "FINE" {
			t.Errorf("got %+v", m)
		}
		time.Sleep(2 * time.Second)
		if s := a.Status().Topics[0]; s.Rejected != 1 || s.Ignored != 4 || s.Panics != 1 || s.Overrun != 1 {
			t.Errorf("%+v", s)
		}
		found := findings(t, a)
		if !strings.Contains(found[p2pnode.FindingRejected], b.ID().String()) {
			t.Errorf("Diagnose does not name the peer: %v", found)
		}
		for _, kind := range []p2pnode.FindingKind{p2pnode.FindingOverrun, p2pnode.FindingValidator} {
			if !strings.Contains(found[kind], "news") {
				t.Errorf("Diagnose does not name the topic of %s: %v", kind, found)
			}
		}
		time.Sleep(10 * time.Minute)
		if _, still := findings(t, a)[p2pnode.FindingOverrun]; still {
			t.Error("an overrun is found for ever")
		}
	})
}

// One author's messages stay in order with a validator that runs in order.
func TestMessagesStayInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		fine := func(context.Context, *p2pnode.Message) error { return nil }
		_, sub := topicOf(t, a, p2pnode.TopicValidator(fine, p2pnode.ValidatorInOrder()))
		topic, _ := topicOf(t, b)
		if err := b.WaitReady(t.Context(), p2pnode.StageTopicHealthy("news")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // a second connection may have come and gone
		const n = 300
		for i := range n {
			publishTo(t, topic, fmt.Sprint(i))
		}
		for i, m := range sim.Delivered(sub, n) {
			if string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("message %q is the %d.", m.Data, i)
			}
		}
	})
}

func TestMessageIDsAreGuarded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		id := p2pnode.TopicMessageID(func(m *p2pnode.Message) string {
			switch string(m.Data) {
			case "panic":
				panic("no ID")
			case "none":
				return ""
			}
			return m.Topic + m.Author.String() + string(m.Data[:1])
		})
		_, sub := topicOf(t, a, id)
		topic, _ := topicOf(t, b, id)
		for _, text := range []string{"panic", "none", "first", "five", "second"} { // five is first's twin
			publishTo(t, topic, text)
		}
		var got []string
		for _, m := range sim.Delivered(sub, 4) {
			got = append(got, string(m.Data))
		}
		if s := fmt.Sprint(got); s != "[panic none first second]" {
			t.Errorf("got %s", s)
		}
		if _, err := a.Topic("news", p2pnode.TopicMessageID(func(*p2pnode.Message) string { return "x" })); err == nil {
			t.Error("another message ID is taken while the topic is in use")
		}
	})
}
