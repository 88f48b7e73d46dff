package kad

import (
	"bufio"
	"cmp"
	"context"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// replyTimeout bounds one exchange with a peer: writing a message and, for a
// request, reading the reply.
const replyTimeout = 10 * time.Second

// sender exchanges messages with peers, over one open stream to each. Questions
// that would wait for others get a stream of their own, for that time: a search
// does not wait for the lookups of addresses that it has started. It replaces
// upstream's sender, which cannot be wrapped: upstream formats the IDs of the
// peers in a reply as they come, in time quadratic in their length, dials
// whatever addresses they have, asks a silent peer twice, and asks a peer one
// question at a time.
type sender struct {
	host   Host
	protos []protocol.ID

	mu    sync.Mutex
	links map[peer.ID]*link // guarded by mu
}

// link is the stream to one peer. Whoever has the turn may use stream and read.
type link struct {
	turn   chan struct{}  // holds a token while somebody has the turn
	gone   chan struct{}  // closed when the peer has disconnected
	unread bool           // the peer may not have read the last message, which has no reply; guarded by the sender's mu
	aside  int            // exchanges on streams of their own; guarded by the sender's mu
	stream network.Stream // nil when there is none
	read   *bufio.Reader  // of stream
}

func newSender(h Host, protos []protocol.ID) pb.MessageSenderWithDisconnect {
	return &sender{host: h, protos: protos, links: make(map[peer.ID]*link)}
}

const (
	// maxCloser is how many closer peers are taken from a reply: honest ones have
	// 20, the size of a bucket.
	maxCloser = 32
	// maxAddrs is how many addresses of a peer are.
	maxAddrs = 16
	// maxAside is how many questions may have streams of their own to one peer: the
	// resource manager of a peer admits 64 by default.
	maxAside = 60
)

// SendRequest sends a message and returns the reply, without peers whose IDs
// cannot be real, and addresses that are not dialed on the peer's word.
func (s *sender) SendRequest(ctx context.Context, p peer.ID, m *pb.Message) (*pb.Message, error) {
	reply := new(pb.Message)
	begun := time.Now()
	conn, err := s.exchange(ctx, p, m, reply)
	if err != nil {
		return nil, err
	}
	s.host.Peerstore().RecordLatency(p, time.Since(begun))
	reply.CloserPeers = s.learned(conn, reply.CloserPeers, maxCloser)
	reply.ProviderPeers = s.learned(conn, reply.ProviderPeers, len(reply.ProviderPeers))
	return reply, nil
}

// learned returns the first n peers of a reply whose IDs can be real, with those
// of their addresses that may be dialed on the word of who sent it.
func (s *sender) learned(from network.Conn, list []*pb.Message_Peer, n int) []*pb.Message_Peer {
	out := list[:0]
	for _, p := range list {
		id := peer.ID(p.GetId())
		if len(out) == n || !plausible(id) {
			continue
		}
		good := s.host.Learned(from, id, p.Addrs)
		p.Addrs = good[:min(len(good), maxAddrs)]
		out = append(out, p)
	}
	return out
}

// SendMessage sends a message that has no reply.
func (s *sender) SendMessage(ctx context.Context, p peer.ID, m *pb.Message) error {
	_, err := s.exchange(ctx, p, m, nil)
	return err
}

// OnDisconnect closes the stream to a peer.
func (s *sender) OnDisconnect(_ context.Context, p peer.ID) {
	s.mu.Lock()
	l := s.links[p]
	delete(s.links, p)
	idle := false
	if l != nil {
		close(l.gone)
		select {
		case l.turn <- struct{}{}: // for good: nobody else has it
			idle = true
		default: // who has the turn sees at its end that the link is gone
		}
	}
	s.mu.Unlock()
	if idle {
		l.reset()
	}
}

// exchange sends a message and reads the reply into reply, when that is not nil.
// It returns the connection that they took.
// When the stream fails the message goes out once more, on a new one: it may be
// one from earlier that the peer has closed, or have gone with one of two
// connections that both sides opened at once.
func (s *sender) exchange(ctx context.Context, p peer.ID, m, reply *pb.Message) (network.Conn, error) {
	if l := s.stepAside(p, m); l != nil {
		conn, final, err := s.ask(ctx, p, m, reply)
		s.mu.Lock()
		l.aside--
		s.mu.Unlock()
		if err == nil || final {
			return conn, err
		}
	}
	l, err := s.take(ctx, p)
	if err != nil {
		return nil, err
	}
	defer s.release(p, l)
	for again := false; ; again = true {
		if l.stream == nil {
			stream, err := s.host.NewStream(ctx, p, s.protos...)
			if err != nil {
				return nil, cmp.Or(ctx.Err(), err)
			}
			l.stream, l.read = stream, bufio.NewReader(stream)
		}
		silent, err := l.exchange(ctx, m, reply)
		if err == nil {
			s.mu.Lock()
			l.unread = reply == nil
			s.mu.Unlock()
			return l.stream.Conn(), nil
		}
		l.reset()
		if again || silent {
			return nil, err
		}
	}
}

// stepAside returns the link to a peer if somebody has the turn and the message
// need not wait for it: a question, unless a record may come after it that was
// sent before.
func (s *sender) stepAside(p peer.ID, m *pb.Message) *link {
	switch m.Type {
	case pb.Message_FIND_NODE, pb.Message_GET_PROVIDERS, pb.Message_GET_VALUE:
	default:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.links[p]
	if l == nil || len(l.turn) == 0 || l.unread || l.aside >= maxAside {
		return nil
	}
	l.aside++
	return l
}

// ask is an exchange on a stream of its own. An error is final if there is no
// need to try again.
func (s *sender) ask(ctx context.Context, p peer.ID, m, reply *pb.Message) (conn network.Conn, final bool, err error) {
	stream, err := s.host.NewStream(ctx, p, s.protos...)
	if err != nil {
		return nil, ctx.Err() != nil || !s.host.Connected(p), cmp.Or(ctx.Err(), err)
	}
	l := &link{stream: stream, read: bufio.NewReader(stream)}
	silent, err := l.exchange(ctx, m, reply)
	if err != nil {
		l.reset()
		return nil, silent, err
	}
	_ = stream.Close() // the reply is there
	return stream.Conn(), true, nil
}

// take waits for the turn at the link to a peer.
func (s *sender) take(ctx context.Context, p peer.ID) (*link, error) {
	for {
		s.mu.Lock()
		l := s.links[p]
		if l == nil {
			l = &link{turn: make(chan struct{}, 1), gone: make(chan struct{})}
			s.links[p] = l
		}
		s.mu.Unlock()
		select {
		case l.turn <- struct{}{}:
			return l, nil
		case <-l.gone: // take a new one
		case <-ctx.Done():
			select {
			case l.turn <- struct{}{}:
				s.release(p, l) // it may be a new one, which nobody else ends
			default:
			}
			return nil, ctx.Err()
		}
	}
}

// release ends the turn at a link, and the link when it has no stream or was
// replaced.
func (s *sender) release(p peer.ID, l *link) {
	s.mu.Lock()
	current := s.links[p] == l
	if current && l.stream == nil {
		delete(s.links, p)
	}
	if current {
		<-l.turn // never blocks: this is the token of the turn
	}
	s.mu.Unlock()
	if !current {
		l.reset()
		<-l.turn // those who wait open a stream of their own, and reset it
	}
}

func (l *link) reset() {
	if l.stream != nil {
		_ = l.stream.Reset() // it is given up
		l.stream, l.read = nil, nil
	}
}

// exchange is one attempt. It reports whether the peer was silent, or ctx ended:
// another attempt would not help then.
func (l *link) exchange(ctx context.Context, m, reply *pb.Message) (silent bool, err error) {
	message, err := proto.MarshalOptions{}.MarshalAppend(protowire.AppendVarint(nil, uint64(proto.Size(m))), m)
	if err != nil {
		return true, err
	}
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	stream := l.stream
	stop := context.AfterFunc(ctx, func() { _ = stream.Reset() })
	if _, err = stream.Write(message); err == nil && reply != nil {
		err = protodelim.UnmarshalOptions{MaxSize: network.MessageSizeMax}.UnmarshalFrom(l.read, reply)
	}
	if !stop() {
		return true, ctx.Err() // the stream is reset
	}
	return false, err
}
