package gossip

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/errs"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/internal/ring"
)

// waiting are the options of a message that waits for a peer.
var waiting = Publishing{MinPeers: 1, Wait: 5 * time.Second}

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay())...)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func newRouter(t *testing.T, h host.Host, set func(*Config)) *Router {
	t.Helper()
	cfg := Config{
		Host: h, Blacklist: pubsub.NewMapBlacklist(), MaxMessageSize: 1 << 20, QueueBytes: 8 << 20, TotalBytes: 64 << 20, Log: slog.New(slog.DiscardHandler),
		Changed: func() {}, PeerJoined: func(string, peer.ID) {}, PeerLeft: func(string, peer.ID) {}, TopicLeft: func(string) {}, HealthChanged: func(string, Health) {},
	}
	if set != nil {
		set(&cfg)
	}
	r, err := New(context.Background(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func connect(t *testing.T, a, b host.Host) {
	t.Helper()
	must(t, a.Connect(within(t), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
}

// settled waits until no more goroutines run than want: those that ended are
// still counted for a moment.
func settled(t *testing.T, want int) {
	t.Helper()
	for range 1_000_000 {
		if runtime.NumGoroutine() <= want {
			return
		}
		runtime.Gosched()
	}
	var dump bytes.Buffer
	buf := make([]byte, 1<<20)
	dump.Write(buf[:runtime.Stack(buf, true)])
	t.Errorf("%d goroutines, at most %d before:\n%s", runtime.NumGoroutine(), want, dump.String())
}

// leftAlone checks that the router and gossipsub have no topics.
func leftAlone(t *testing.T, r *Router, names ...string) {
	t.Helper()
	r.mu.Lock()
	topics, held := len(r.topics), len(r.held)
	r.mu.Unlock()
	if topics != 0 || held != 0 || len(r.Topics()) != 0 {
		t.Errorf("%d topics in the registry, %d held", topics, held)
	}
	if list := r.ps.GetTopics(); len(list) != 0 {
		t.Errorf("gossipsub is subscribed to %d topics", len(list))
	}
	for _, name := range names { // gossipsub joins a topic only when it is not joined
		up, err := r.ps.Join(name)
		if err != nil {
			t.Errorf("joining %q upstream: %v", name, err)
			continue
		}
		must(t, up.Close())
	}
}

func TestAThousandSubscriptionsThatCloseLeaveNothing(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	first, err := r.Subscribe(within(t), "warm up", Reading{Buffer: 1})
	must(t, err)
	first.Close()
	before := runtime.NumGoroutine()
	var names []string
	for i := range 1000 {
		name := fmt.Sprint("t", i)
		names = append(names, name)
		s, err := r.Subscribe(within(t), name, Reading{Buffer: 16})
		must(t, err)
		if i%2 == 0 { // some are read, some are not
			must(t, r.Publish(within(t), name, []byte("x"), Publishing{}))
			_, _, err := s.Next(within(t))
			must(t, err)
			r.mu.Lock()
			r.topics[name].sent = time.Time{} // as if long ago
			r.mu.Unlock()
		}
		s.Close()
	}
	settled(t, before)
	leftAlone(t, r, names...)
}

func TestAThousandPublishesToNobodyLeaveNothing(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	before := runtime.NumGoroutine()
	var names []string
	for i := range 1000 {
		name := fmt.Sprint("t", i)
		names = append(names, name)
		if err := r.Publish(ended, name, []byte("x"), waiting); !errors.Is(err, errs.ErrNoPeers) {
			t.Fatalf("Publish = %v", err)
		}
	}
	settled(t, before)
	leftAlone(t, r, names...)
}

func TestATopicLingersAfterAMessage(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	must(t, r.Publish(within(t), "t", []byte("x"), Publishing{}))
	r.mu.Lock()
	first := r.topics["t"]
	r.mu.Unlock()
	if first == nil {
		t.Fatal("the topic is left at once")
	}
	must(t, r.Publish(within(t), "t", []byte("x"), Publishing{}))
	r.mu.Lock()
	if r.topics["t"] != first || first.linger == nil {
		t.Error("the second message joined the topic anew")
	}
	first.sent = time.Now().Add(-Linger)
	r.mu.Unlock()
	r.expire(first)
	leftAlone(t, r, "t")
	// It is joined again as if for the first time.
	must(t, r.Publish(within(t), "t", []byte("x"), Publishing{}))
}

// Users join a topic while the last one leaves: none of them may get a topic that
// is being left, and the last one leaves it.
func TestLeavingAndJoiningAtOnce(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 50 {
				s, err := r.Subscribe(within(t), "t", Reading{Buffer: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				if i%5 == 0 {
					if err := r.Publish(within(t), "t", []byte("x"), Publishing{}); err != nil {
						t.Error(err)
					}
					if _, _, err := s.Next(within(t)); err != nil {
						t.Errorf("the own message does not arrive: %v", err)
					}
					r.mu.Lock()
					r.topics["t"].sent = time.Time{}
					r.mu.Unlock()
				}
				s.Close()
				if _, _, err := s.Next(within(t)); !errors.Is(err, errs.ErrClosed) {
					t.Errorf("Next after Close = %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 100 {
				if err := r.Publish(ended, "t", nil, waiting); !errors.Is(err, errs.ErrNoPeers) {
					t.Errorf("Publish = %v", err)
				}
			}
		})
	}
	wg.Wait()
	r.mu.Lock()
	left := r.topics["t"] // by the linger timer of one of the messages, if at all
	r.mu.Unlock()
	if left != nil {
		r.expire(left)
	}
	leftAlone(t, r, "t")
}

func TestCloseWhileOthersComeAndGo(t *testing.T) {
	for range 10 {
		closing := make(chan struct{})
		r := newRouter(t, newHost(t), func(c *Config) { c.Closing = closing })
		started := make(chan struct{}, 8)
		var wg sync.WaitGroup
		for i := range 4 {
			name := fmt.Sprint("t", i%2)
			wg.Go(func() {
				defer func() { started <- struct{}{} }()
				for n := 0; ; n++ {
					s, err := r.Subscribe(within(t), name, Reading{Buffer: 10})
					if err != nil {
						return
					}
					if n == 3 {
						started <- struct{}{}
						if _, _, err := s.Next(within(t)); !errors.Is(err, errs.ErrClosed) {
							t.Errorf("Next = %v", err)
						}
					}
					s.Close()
				}
			})
			wg.Go(func() {
				for r.Publish(within(t), name, nil, waiting) == nil {
				}
			})
		}
		for range 4 {
			<-started
		}
		close(closing)
		must(t, r.Close())
		wg.Wait()
		if err := r.Publish(within(t), "t", nil, Publishing{}); !errors.Is(err, errs.ErrClosed) {
			t.Errorf("Publish after Close = %v", err)
		}
		if _, err := r.Subscribe(within(t), "t", Reading{Buffer: 1}); !errors.Is(err, errs.ErrClosed) {
			t.Errorf("Subscribe after Close = %v", err)
		}
	}
}

// A topic in use through the upstream router cannot be left, and remains for the
// next user.
func TestATopicInUseUpstreamIsTakenUpAgain(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	s, err := r.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	//lint:ignore SA1019 the one way to a second handle of a topic
	foreign, err := r.ps.Subscribe("t") //nolint:staticcheck // as above
	must(t, err)
	s.Close()
	s, err = r.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	must(t, r.Publish(within(t), "t", []byte("x"), Publishing{}))
	_, _, err = s.Next(within(t))
	must(t, err)
	foreign.Cancel()
	s.Close()
}

func TestLossIsToldInBand(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	slow, err := r.Subscribe(within(t), "t", Reading{Buffer: 10})
	must(t, err)
	quick, err := r.Subscribe(within(t), "t", Reading{Buffer: 10})
	must(t, err)
	for i := range 25 {
		must(t, r.Publish(within(t), "t", fmt.Append(nil, i), Publishing{}))
		_, lost, err := quick.Next(within(t)) // the pump serves slow first
		must(t, err)
		if lost != 0 {
			t.Errorf("the quick reader lost %d", lost)
		}
	}
	for i := range 10 {
		m, lost, err := slow.Next(within(t))
		must(t, err)
		want := uint64(0)
		if i == 0 {
			want = 15
		}
		if string(m.Data) != fmt.Sprint(15+i) || lost != want {
			t.Errorf("message %q after %d lost, want %d after %d", m.Data, lost, 15+i, want)
		}
	}
	if slow.Dropped() != 15 || r.Counts().Dropped != 15 {
		t.Errorf("dropped: %d and %d", slow.Dropped(), r.Counts().Dropped)
	}
	// What gossipsub could not hand over counts as well.
	(tracer{r}).UndeliverableMessage(upstreamMessage(t, r, quick))
	must(t, r.Publish(within(t), "t", nil, Publishing{}))
	for want := range uint64(2) { // before the loss, and behind it
		if _, lost, err := slow.Next(within(t)); err != nil || lost != want {
			t.Errorf("%d lost, %v; want %d", lost, err, want)
		}
	}
}

// upstreamMessage returns some message of a topic.
func upstreamMessage(t *testing.T, r *Router, s *Subscription) *pubsub.Message {
	t.Helper()
	must(t, r.Publish(within(t), s.Topic(), nil, Publishing{}))
	m, _, err := s.Next(within(t))
	must(t, err)
	return m
}

func TestPeersOfATopicAreTold(t *testing.T) {
	type told struct {
		topic  string
		id     peer.ID
		joined bool
	}
	events := make(chan told, 10)
	changed := make(chan struct{}, 10)
	ha, hb := newHost(t), newHost(t)
	a := newRouter(t, ha, func(c *Config) {
		c.Changed = func() { changed <- struct{}{} }
		c.PeerJoined = func(topic string, id peer.ID) { events <- told{topic, id, true} }
		c.PeerLeft = func(topic string, id peer.ID) { events <- told{topic, id, false} }
	})
	b := newRouter(t, hb, nil)
	sa, err := a.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	sb, err := b.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	connect(t, ha, hb)
	next := func(joined bool) {
		t.Helper()
		if got, want := <-events, (told{"t", hb.ID(), joined}); got != want {
			t.Fatalf("told %+v, want %+v", got, want)
		}
	}
	next(true)
	<-changed
	if s, joined := a.Topic("t"); len(s.Peers) != 1 || !joined {
		t.Errorf("Topic = %+v, %t", s, joined)
	}
	sb.Close()
	next(false)
	sb, err = b.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	next(true)
	must(t, hb.Network().ClosePeer(ha.ID()))
	next(false)
	connect(t, hb, ha)
	next(true)
	if list := a.Topics(); len(list) != 1 || len(list[0].Peers) != 1 || list[0].Subscriptions != 1 {
		t.Errorf("Topics = %+v", list)
	}
	// A node that joins again gets events for the peers on the topic, and none when
	// it leaves itself.
	sa.Close()
	if _, joined := a.Topic("t"); joined {
		t.Error("joined after the last subscription has closed")
	}
	sa, err = a.Subscribe(within(t), "t", Reading{Buffer: 1})
	must(t, err)
	next(true)
	sa.Close()
	sb.Close()
}

// With one worker that checks signatures, the messages of one author arrive in
// order over a direct connection; with one worker per core, about one in twenty is
// late.
func TestABurstKeepsItsOrderOverADirectLink(t *testing.T) {
	ha, hb := newHost(t), newHost(t)
	a, b := newRouter(t, ha, nil), newRouter(t, hb, nil)
	s, err := b.Subscribe(within(t), "t", Reading{Buffer: 1000})
	must(t, err)
	connect(t, ha, hb)
	for range 5 {
		for i := range 200 {
			must(t, a.Publish(within(t), "t", fmt.Append(nil, i), waiting))
		}
		for i := range 200 {
			m, _, err := s.Next(within(t))
			must(t, err)
			if string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("message %s in place of %d", m.Data, i)
			}
		}
	}
}

// stalled connects a peer on topic "t" that treats the router's streams as it is
// told.
func stalled(t *testing.T, h host.Host, r *Router, serve network.StreamHandler) {
	t.Helper()
	for _, p := range []protocol.ID{"/meshsub/1.1.0", "/meshsub/1.2.0"} {
		h.SetStreamHandler(p, serve)
	}
	connect(t, h, r.cfg.Host)
	s, err := h.NewStream(within(t), r.cfg.Host.ID(), "/meshsub/1.1.0")
	must(t, err)
	yes, topic := true, "t"
	_, err = protodelim.MarshalTo(s, &pubsub_pb.RPC{Subscriptions: []*pubsub_pb.RPC_SubOpts{{Subscribe: &yes, Topicid: &topic}}})
	must(t, err)
}

// Publish returns nil only for messages that wait for the peer or are sent to it:
// with a peer that does not read, it waits, and returns an error, whatever the
// number of callers. When the peer reads again, so does it.
func TestAttackPublishToAStalledPeerIsAnError(t *testing.T) {
	for _, c := range []struct{ callers, messages, size int }{{1, 1500, 20_000}, {1, 10, 1_000_000}, {20, 5, 500_000}, {1, 2500, 1000}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			if c.callers == 1 && c.messages > 10 {
				needs.Time(t)
			}
			r := newRouter(t, newHost(t), func(c *Config) { c.QueueBytes = 4 << 20 })
			reads := make(chan struct{})
			var got atomic.Int64
			stalled(t, newHost(t), r, func(s network.Stream) {
				<-reads
				in := bufio.NewReader(s)
				for {
					var rpc pubsub_pb.RPC
					if err := (protodelim.UnmarshalOptions{MaxSize: -1}).UnmarshalFrom(in, &rpc); err != nil {
						return
					}
					got.Add(int64(len(rpc.GetPublish())))
				}
			})
			must(t, r.Publish(within(t), "t", nil, waiting))
			var sent, refused atomic.Int64
			sent.Store(1)
			var wg sync.WaitGroup
			for range c.callers {
				wg.Go(func() {
					for range c.messages {
						err := r.Publish(within(t), "t", make([]byte, c.size), Publishing{MinPeers: 1, Wait: time.Millisecond})
						switch {
						case err == nil:
							sent.Add(1)
						case errors.Is(err, errs.ErrLimit):
							refused.Add(1)
						default:
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			t.Logf("%d handed over, %d refused, %d lost", sent.Load(), refused.Load(), r.Counts().Unsent)
			if n := r.Counts().Unsent; n != 0 {
				t.Errorf("Publish returned nil for %d messages that nobody gets", n)
			}
			if refused.Load() == 0 || sent.Load() < 2 {
				t.Errorf("%d messages handed over, %d refused", sent.Load(), refused.Load())
			}
			close(reads)
			must(t, r.Publish(within(t), "t", make([]byte, c.size), waiting))
			for got.Load() <= sent.Load() { // until the test's time is up
				runtime.Gosched()
			}
		})
	}
}

// PublishNow does not wait for room, as it does not wait for peers.
func TestPublishWithoutWaitingDropsWhatAStalledPeerHasNoRoomFor(t *testing.T) {
	r := newRouter(t, newHost(t), func(c *Config) { c.QueueBytes = 1 << 20 })
	stalled(t, newHost(t), r, func(network.Stream) {})
	must(t, r.Publish(within(t), "t", nil, waiting))
	for r.Counts().Unsent == 0 { // until the test's time is up
		must(t, r.Publish(within(t), "t", make([]byte, 100_000), Publishing{}))
	}
}

// The messages that wait for a peer that does not read are bounded in bytes, and
// the others are lost and counted; peers that read get all (go-spacemesh#5696).
func TestPeerThatDoesNotReadHoldsFewBytes(t *testing.T) {
	needs.Time(t)
	r := newRouter(t, newHost(t), func(c *Config) { c.QueueBytes = 4 << 20 })
	deaf, reader := newHost(t), newHost(t)
	stalled(t, deaf, r, func(network.Stream) {}) // it reads nothing
	other := newRouter(t, reader, nil)
	must(t, reader.Connect(within(t), peer.AddrInfo{ID: r.cfg.Host.ID(), Addrs: r.cfg.Host.Addrs()}))
	sub, err := other.Subscribe(within(t), "t", Reading{Buffer: 1000})
	must(t, err)
	must(t, r.Publish(within(t), "t", []byte("joins the topic"), Publishing{}))
	for s := (Topic{}); len(s.Peers) < 2; s, _ = r.Topic("t") {
		runtime.Gosched()
	}
	const count, size = 60, 500_000
	for i := range count {
		data := make([]byte, size)
		data[0] = byte(i)
		must(t, r.Publish(within(t), "t", data, waiting))
		for {
			m, _, err := sub.Next(within(t))
			must(t, err)
			if len(m.Data) == size {
				break
			}
		}
		if used := r.budget.Used(); used > 4<<20+2*size { // one at least for each peer
			t.Fatalf("%d bytes wait after %d messages", used, i+1)
		}
	}
	if n := r.Counts().Unsent; n < count/2 || n >= count {
		t.Errorf("%d messages count as not sent", n)
	}
	must(t, deaf.Close())
	for r.budget.Used() > 0 { // until its messages are dropped
		runtime.Gosched()
	}
}

// The messages that wait in a subscription are bounded, too; its reader gets the
// number of lost ones.
func TestUnreadSubscriptionHoldsFewBytes(t *testing.T) {
	r := newRouter(t, newHost(t), func(c *Config) { c.QueueBytes, c.TotalBytes = 4<<20, 6<<20 })
	first, err := r.Subscribe(within(t), "t", Reading{Buffer: 1000})
	must(t, err)
	second, err := r.Subscribe(within(t), "t", Reading{Buffer: 1000})
	must(t, err)
	const count, size = 40, 500_000
	for range count {
		must(t, r.Publish(within(t), "t", make([]byte, size), Publishing{}))
	}
	for r.Counts().Delivered < count {
		runtime.Gosched()
	}
	if used := r.budget.Used(); used > 6<<20 || used < 5<<20 {
		t.Errorf("%d bytes wait", used)
	}
	for _, s := range []*Subscription{first, second} {
		m, lost, err := s.Next(within(t))
		if err != nil || len(m.Data) != size || lost == 0 || lost != s.Dropped() || lost >= count {
			t.Errorf("after %d lost of %d in all: %v", lost, s.Dropped(), err)
		}
		s.Close()
	}
	if used := r.budget.Used(); used != 0 {
		t.Errorf("%d bytes wait in closed subscriptions", used)
	}
}

// The topics that a stranger can subscribe to are bounded, in number and in bytes,
// and so are the node's own topics.
func TestTopicsOfAPeerAreBounded(t *testing.T) {
	r := newRouter(t, newHost(t), nil)
	stranger := newHost(t)
	stranger.SetStreamHandler("/meshsub/1.1.0", func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	must(t, stranger.Connect(within(t), peer.AddrInfo{ID: r.cfg.Host.ID(), Addrs: r.cfg.Host.Addrs()}))
	s, err := stranger.NewStream(within(t), r.cfg.Host.ID(), "/meshsub/1.1.0")
	must(t, err)
	say := func(yes bool, names ...string) {
		t.Helper()
		rpc := &pubsub_pb.RPC{}
		for _, name := range names {
			rpc.Subscriptions = append(rpc.Subscriptions, &pubsub_pb.RPC_SubOpts{Subscribe: &yes, Topicid: &name})
		}
		_, err := protodelim.MarshalTo(s, rpc)
		must(t, err)
	}
	on := func(name string) bool { return slices.Contains(r.ps.ListPeers(name), stranger.ID()) }
	until := func(f func() bool) {
		t.Helper()
		for ctx := within(t); !f(); runtime.Gosched() {
			must(t, ctx.Err())
		}
	}
	name := func(i int) string { return fmt.Sprintf("%06d", i) }
	for i := 0; i < MaxTopics; i += 1000 {
		var list []string
		for j := range 1000 {
			list = append(list, name(i+j))
		}
		say(true, list...)
	}
	until(func() bool { return on(name(MaxTopics - 1)) })
	say(true, "one more")
	say(false, name(0))
	until(func() bool { return !on(name(0)) })
	if on("one more") {
		t.Error("a topic beyond the bound is taken")
	}
	say(true, "in its place")
	until(func() bool { return on("in its place") })

	// In bytes.
	_ = s.Reset()
	s, err = stranger.NewStream(within(t), r.cfg.Host.ID(), "/meshsub/1.1.0")
	must(t, err)
	for i := range 2000 {
		say(true, name(i)+strings.Repeat("x", 1000))
	}
	say(false, "the end")
	say(true, "z")
	until(func() bool { return on("z") })
	if on(name(1999) + strings.Repeat("x", 1000)) {
		t.Error("a megabyte of names, and more is taken")
	}
	must(t, stranger.Close())
	until(func() bool {
		r.streams.filter.mu.Lock()
		defer r.streams.filter.mu.Unlock()
		return len(r.streams.filter.peers) == 0
	})
}

// What a peer sends faster than it is validated is bounded in bytes, for each peer;
// the rest is dropped and counted, and messages of other peers arrive.
func TestMessagesThatWaitForValidationHoldFewBytes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	const size, perPeer = 1_000_000, 4
	release := make(chan struct{})
	slow := func(_ context.Context, _ peer.ID, m *pubsub.Message) bool {
		if len(m.Data) == size {
			<-release
		}
		return true
	}
	for name, inline := range map[string]bool{"in the queue": true, "in validators": false} {
		t.Run(name, func(t *testing.T) {
			release = make(chan struct{})
			r := newRouter(t, newHost(t), func(c *Config) {
				c.QueueBytes, c.TotalBytes = 4<<20, 16<<20
				c.Options = []pubsub.Option{pubsub.WithDefaultValidator(slow, pubsub.WithValidatorInline(inline))}
			})
			free := sync.OnceFunc(func() { close(release) })
			t.Cleanup(free) // before the router closes
			sub, err := r.Subscribe(within(t), "t", Reading{Buffer: 1000})
			must(t, err)
			flooder := newRouter(t, newHost(t), func(c *Config) { c.QueueBytes, c.TotalBytes = 1<<30, 1<<30 })
			other := newRouter(t, newHost(t), nil)
			connect(t, flooder.cfg.Host, r.cfg.Host)
			connect(t, other.cfg.Host, r.cfg.Host)
			const count = 30
			for range count {
				must(t, flooder.Publish(within(t), "t", make([]byte, size), waiting))
			}
			for r.Counts().Overrun < count-perPeer {
				runtime.Gosched()
			}
			r.in.mu.Lock()
			n, bytes := len(r.in.held), r.in.bytes
			r.in.mu.Unlock()
			if n != perPeer || bytes > 4<<20 || r.budget.Used() < bytes {
				t.Errorf("%d messages wait, %d bytes", n, bytes)
			}
			if list := r.Topics(); list[0].Overrun < count-perPeer {
				t.Errorf("the topic counts %d messages", list[0].Overrun)
			}
			must(t, other.Publish(within(t), "t", []byte("small"), waiting))
			if inline {
				free() // one worker runs inline validators one after the other
			}
			for {
				m, _, err := sub.Next(within(t))
				must(t, err)
				if string(m.Data) == "small" {
					break
				}
			}
			free()
			sub.Close()
			for r.budget.Used() > 0 {
				runtime.Gosched()
			}
		})
	}
}

// What gossipsub drops in silence does not count for good.
func TestMessagesDroppedInSilenceDoNotWait(t *testing.T) {
	in := newIncoming(100, 1000, 1000, ring.NewBudget(1000))
	in.setTopic("t", true)
	topic := "t"
	message := func() *pubsub_pb.Message { return &pubsub_pb.Message{Topic: &topic, Data: make([]byte, 100)} }
	kept := message()
	if !in.take("a", kept) || in.take("a", message()) {
		t.Fatal("the bound is not 1000 bytes")
	}
	runtime.KeepAlive(kept) // and no longer
	runtime.GC()
	in.swept = time.Time{}
	if !in.take("a", message()) {
		t.Error("a message that is gone still counts")
	}
	ignored := "another"
	if !in.take("a", &pubsub_pb.Message{Topic: &ignored, Data: make([]byte, 5000)}) {
		t.Error("a message of a topic that is not joined counts")
	}
}

// Whatever some peers send, the messages of others find a place.
func TestAttackAFloodLeavesRoomForOthers(t *testing.T) {
	const places = 100
	in := newIncoming(places, 1<<40, 1<<40, ring.NewBudget(1<<40))
	in.setTopic("t", true)
	topic := "t"
	var all []*pubsub_pb.Message
	take := func(from string) bool {
		m := &pubsub_pb.Message{Topic: &topic}
		all = append(all, m)
		return in.take(peer.ID(from), m)
	}
	for range 10 * places {
		for i := range 9 {
			take(fmt.Sprint("flooder ", i))
		}
	}
	if !take("honest") {
		t.Error("an honest peer's message does not fit")
	}
	mine := in.peers["flooder 0"].messages
	if mine < places/20 || len(in.held) >= places {
		t.Errorf("%d messages of one of nine flooders wait, %d in all", mine, len(in.held))
	}
	for _, m := range all {
		in.release(&pubsub.Message{Message: m})
	}
	if len(in.held) != 0 || len(in.peers) != 0 || in.bytes != 0 {
		t.Errorf("%d messages of %d peers, %d bytes are left", len(in.held), len(in.peers), in.bytes)
	}
}

// signed returns a message of a host's, ready to be sent.
func signed(t *testing.T, h host.Host, topic string, number int) *pubsub_pb.Message {
	t.Helper()
	m := &pubsub_pb.Message{From: []byte(h.ID()), Data: []byte("flood"), Seqno: binary.BigEndian.AppendUint64(nil, uint64(number)), Topic: &topic}
	b, err := proto.Marshal(m)
	must(t, err)
	m.Signature, err = h.Peerstore().PrivKey(h.ID()).Sign(append([]byte(pubsub.SignPrefix), b...))
	must(t, err)
	return m
}

// All messages of one author arrive although another one has sent more valid
// messages than can wait.
func TestAttackAFloodLosesNoMessagesOfOthers(t *testing.T) {
	needs.Time(t)
	gate := make(chan struct{})
	closed := func(context.Context, peer.ID, *pubsub.Message) bool {
		<-gate
		return true
	}
	r := newRouter(t, newHost(t), func(c *Config) {
		c.Options = []pubsub.Option{pubsub.WithDefaultValidator(closed, pubsub.WithValidatorInline(true))}
	})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open) // before the router closes
	honest, flooder := newRouter(t, newHost(t), nil), newHost(t)
	sub, err := r.Subscribe(within(t), "t", Reading{Buffer: 10_000})
	must(t, err)
	connect(t, honest.cfg.Host, r.cfg.Host)
	flooder.SetStreamHandler("/meshsub/1.1.0", func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	connect(t, flooder, r.cfg.Host)
	s, err := flooder.NewStream(within(t), r.cfg.Host.ID(), "/meshsub/1.1.0")
	must(t, err)
	until := func(f func() bool) {
		t.Helper()
		for ctx := within(t); !f(); runtime.Gosched() {
			must(t, ctx.Err())
		}
	}
	const batch, count = 500, 40
	for i := 0; i < 2*validateQueue; i += batch {
		rpc := &pubsub_pb.RPC{}
		for j := range batch {
			rpc.Publish = append(rpc.Publish, signed(t, flooder, "t", i+j))
		}
		_, err := protodelim.MarshalTo(s, rpc)
		must(t, err)
	}
	until(func() bool { return r.Counts().Overrun >= validateQueue })
	for i := range count {
		must(t, honest.Publish(within(t), "t", fmt.Append(nil, i), waiting))
	}
	until(func() bool {
		r.in.mu.Lock()
		defer r.in.mu.Unlock()
		return r.in.peers[honest.cfg.Host.ID()].messages == count
	})
	open()
	for got := 0; got < count; {
		m, _, err := sub.Next(within(t))
		if err != nil {
			t.Fatalf("%d of %d messages arrive: %v", got, count, err)
		}
		if string(m.Data) != "flood" {
			got++
		}
	}
}

// So many of the last messages are remembered, and no more than twice as many.
func TestAttackReplaysAreRememberedInBoundedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard := newReplays(100)
		message := func(author string, number int) *pubsub_pb.Message {
			return &pubsub_pb.Message{From: []byte(author), Seqno: fmt.Append(nil, number), Signature: []byte("x")}
		}
		for i := range 1000 {
			m := message("author", i)
			if guard.repeated(m) {
				t.Fatalf("message %d counts as repeated", i)
			}
			guard.remember(m)
			if guard.repeated(m) {
				t.Fatalf("message %d counts as repeated, but gossipsub knows it", i)
			}
			if n := len(guard.now) + len(guard.old); n > 200 {
				t.Fatalf("%d messages are remembered", n)
			}
		}
		time.Sleep(replayAfter * time.Second)
		for back := range 100 {
			if !guard.repeated(message("author", 999-back)) {
				t.Fatalf("message %d is forgotten after %d others", 999-back, back)
			}
		}
		if guard.repeated(message("another", 999)) {
			t.Error("the number of another author counts as repeated")
		}
		unsigned := message("author", 999)
		unsigned.Signature = nil
		if guard.repeated(unsigned) {
			t.Error("a message without signature counts as repeated")
		}
	})
}
