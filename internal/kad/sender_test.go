package kad

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

func ping() *pb.Message { return pb.NewMessage(pb.Message_PING, nil, 0) }

// linked is a sender, and the host that it speaks to.
func linked(tb testing.TB, answer func(*pb.Message) *pb.Message) (*sender, *nethost.Host) {
	tb.Helper()
	from, to := newHost(tb), scripted(tb, answer)
	must(tb, from.Connect(testContext(tb), hosttest.Info(to)))
	return newSender(from, []protocol.ID{"/test/kad/1.0.0"}).(*sender), to
}

func (s *sender) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.links)
}

func streams(h *nethost.Host) (n int) {
	for _, c := range h.Network().Conns() {
		for _, s := range c.GetStreams() {
			if s.Protocol() == "/test/kad/1.0.0" {
				n++
			}
		}
	}
	return n
}

// One stream carries the messages to a peer, from however many goroutines, and
// a stream that the peer has ended is replaced unseen.
func TestSenderKeepsOneStream(t *testing.T) {
	s, to := linked(t, func(m *pb.Message) *pb.Message { return m })
	ctx := testContext(t)
	for range 3 {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if reply, err := s.SendRequest(ctx, to.ID(), ping()); err != nil || reply.Type != pb.Message_PING {
					t.Errorf("got %v, %v", reply, err)
				}
			})
		}
		wg.Wait()
		if s.count() != 1 || streams(s.host.(*nethost.Host)) != 1 {
			t.Errorf("%d links and %d streams", s.count(), streams(s.host.(*nethost.Host)))
		}
		for _, c := range to.Network().Conns() {
			for _, stream := range c.GetStreams() {
				if stream.Protocol() == "/test/kad/1.0.0" {
					_ = stream.Reset()
				}
			}
		}
	}
	s.OnDisconnect(ctx, to.ID())
	s.OnDisconnect(ctx, to.ID())
	if s.count() != 0 || streams(s.host.(*nethost.Host)) != 0 {
		t.Error("a stream is left after the disconnect")
	}
	if err := s.SendMessage(ctx, to.ID(), ping()); err != nil {
		t.Errorf("after a disconnect: %v", err)
	}
}

// A request to a peer that does not answer ends with its context, also one that
// waits for its turn, and leaves nothing.
func TestSenderEndsWithItsContext(t *testing.T) {
	block, asked := make(chan struct{}), make(chan struct{}, 10)
	defer close(block)
	s, to := linked(t, func(m *pb.Message) *pb.Message {
		asked <- struct{}{}
		<-block
		return m
	})
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	for range 2 {
		go func() { _, err := s.SendRequest(ctx, to.ID(), ping()); results <- err }()
	}
	<-asked
	cancel()
	for range 2 {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	for range 20 { // whether it has a turn or sees the end first is chance
		if err := s.SendMessage(ctx, to.ID(), ping()); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
		if s.count() != 0 {
			t.Fatal("a link is left")
		}
	}
}

// Requests that wait for a peer that disconnects continue on a new stream.
func TestSenderSurvivesADisconnect(t *testing.T) {
	block, asked := make(chan struct{}), make(chan struct{}, 10)
	var second atomic.Bool
	s, to := linked(t, func(m *pb.Message) *pb.Message {
		if !second.Swap(true) {
			asked <- struct{}{}
			<-block
		}
		return m
	})
	defer close(block)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := s.SendRequest(ctx, to.ID(), ping()); first <- err }()
	<-asked
	next := make(chan error, 1)
	go func() { _, err := s.SendRequest(testContext(t), to.ID(), ping()); next <- err }()
	s.OnDisconnect(ctx, to.ID())
	if err := <-next; err != nil {
		t.Errorf("the next request: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first request: %v", err)
	}
	if n := streams(s.host.(*nethost.Host)); n != 1 {
		t.Errorf("%d streams are left, not the new one alone", n)
	}
}

// A question does not wait for another that is not answered, and leaves no stream;
// but one that comes after a message without a reply does, as the peer may read
// them in another order.
func TestQuestionsDoNotWaitForOthers(t *testing.T) {
	block, asked := make(chan struct{}), make(chan struct{}, 1)
	s, to := linked(t, func(m *pb.Message) *pb.Message {
		if m.Type == pb.Message_PING {
			asked <- struct{}{}
			<-block
		}
		return m
	})
	ctx := testContext(t)
	blocked := make(chan error, 1)
	go func() { _, err := s.SendRequest(ctx, to.ID(), ping()); blocked <- err }()
	<-asked
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			question := pb.NewMessage(pb.Message_FIND_NODE, []byte("key"), 0)
			if reply, err := s.SendRequest(ctx, to.ID(), question); err != nil || string(reply.Key) != "key" {
				t.Errorf("got %v, %v", reply, err)
			}
		})
	}
	wg.Wait()
	if n := streams(s.host.(*nethost.Host)); n != 1 {
		t.Errorf("%d streams are left", n)
	}
	close(block)
	must(t, <-blocked)

	must(t, s.SendMessage(ctx, to.ID(), pb.NewMessage(pb.Message_ADD_PROVIDER, []byte("key"), 0)))
	l, err := s.take(ctx, to.ID())
	must(t, err)
	question := pb.NewMessage(pb.Message_GET_PROVIDERS, []byte("key"), 0)
	if s.stepAside(to.ID(), question) != nil {
		t.Error("a question may overtake a record")
	}
	s.release(to.ID(), l)
	_, err = s.SendRequest(ctx, to.ID(), question)
	must(t, err)
	l, err = s.take(ctx, to.ID())
	must(t, err)
	if s.stepAside(to.ID(), question) == nil {
		t.Error("a question waits, although the record has been read")
	}
	s.release(to.ID(), l)
}

func TestSenderRefusesLargeReplies(t *testing.T) {
	s, to := linked(t, func(m *pb.Message) *pb.Message {
		return pb.NewMessage(m.Type, make([]byte, network.MessageSizeMax), 0)
	})
	if _, err := s.SendRequest(testContext(t), to.ID(), ping()); err == nil {
		t.Error("a reply above the limit is taken")
	}
}

// strangers is a host on which nothing is learned of private addresses.
type strangers struct {
	*nethost.Host
	asked atomic.Int32
}

func (h *strangers) Learned(c network.Conn, _ peer.ID, list [][]byte) [][]byte {
	if c.RemotePeer() != "" {
		h.asked.Add(1)
	}
	return slices.DeleteFunc(list, func(b []byte) bool {
		a, err := ma.NewMultiaddrBytes(b)
		return err != nil || !manet.IsPublicAddr(a)
	})
}

// Of an answer only the addresses are left that the host lets be learned, and no
// more than an honest one has.
func TestAttackC3AnswersAreHeldAgainstTheGate(t *testing.T) {
	var all []*pb.Message_Peer
	for i := range 100 {
		p := &pb.Message_Peer{Id: []byte(newID(t)), Addrs: [][]byte{ma.StringCast("/ip4/127.0.0.1/tcp/80/ws").Bytes()}}
		for j := range 100 {
			p.Addrs = append(p.Addrs, ma.StringCast(fmt.Sprintf("/ip4/8.8.%d.%d/tcp/80/ws", i, j)).Bytes())
		}
		all = append(all, p)
	}
	s, to := linked(t, func(m *pb.Message) *pb.Message {
		reply := pb.NewMessage(m.Type, nil, 0)
		reply.CloserPeers, reply.ProviderPeers = all, all
		return reply
	})
	h := &strangers{Host: s.host.(*nethost.Host)}
	s.host = h
	reply, err := s.SendRequest(testContext(t), to.ID(), ping())
	must(t, err)
	if len(reply.CloserPeers) != maxCloser || len(reply.ProviderPeers) != len(all) || int(h.asked.Load()) != maxCloser+len(all) {
		t.Errorf("%d closer peers and %d providers; the host was asked %d times", len(reply.CloserPeers), len(reply.ProviderPeers), h.asked.Load())
	}
	for _, p := range slices.Concat(reply.CloserPeers, reply.ProviderPeers) {
		if list := p.Addresses(); len(list) != maxAddrs || !manet.IsPublicAddr(list[0]) {
			t.Fatalf("%s", list)
		}
	}
}
