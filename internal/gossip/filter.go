package gossip

import (
	"sync"

	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// MaxTopics is how many topics a node can be on, and how many a peer can be on
	// as far as this node remembers.
	MaxTopics = 10_000
	// maxTopicBytes bounds the names of a peer's topics together.
	maxTopicBytes = 1 << 20
)

// filter bounds what peers can make gossipsub remember: it keeps every topic
// that a peer says it is on, some 300 bytes each, whether or not anybody here has
// heard of the topic.
type filter struct {
	changing func(id peer.ID, n int) int // how many changes of topics a peer may make
	refused  func(id peer.ID, n int)

	mu    sync.Mutex
	peers map[peer.ID]*announced // guarded by mu
}

// announced are the topics that a peer is on.
type announced struct {
	topics map[string]bool
	bytes  int // of their names
}

func newFilter(changing func(peer.ID, int) int, refused func(peer.ID, int)) *filter {
	return &filter{changing: changing, refused: refused, peers: make(map[peer.ID]*announced)}
}

// CanSubscribe accepts every topic of the node's own.
func (f *filter) CanSubscribe(string) bool { return true }

// FilterIncomingSubscriptions leaves out topics beyond the bounds. It runs in
// gossipsub's loop.
func (f *filter) FilterIncomingSubscriptions(id peer.ID, subs []*pubsub_pb.RPC_SubOpts) ([]*pubsub_pb.RPC_SubOpts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of := f.peers[id]
	if of == nil {
		of = &announced{topics: make(map[string]bool)}
		f.peers[id] = of
	}
	fit := f.changing(id, len(subs))
	refused := len(subs) - fit
	accepted := subs[:0]
	for _, s := range subs[:fit] {
		name := s.GetTopicid()
		switch on := of.topics[name]; {
		case !s.GetSubscribe():
			if on {
				delete(of.topics, name)
				of.bytes -= len(name)
			}
		case !on && (len(of.topics) >= MaxTopics || of.bytes+len(name) > maxTopicBytes || len(name) > MaxTopicName):
			refused++
			continue
		case !on:
			of.topics[name] = true
			of.bytes += len(name)
		}
		accepted = append(accepted, s)
	}
	if refused > 0 {
		f.refused(id, refused)
	}
	return accepted, nil
}

// forget drops what is known of a peer, as gossipsub does when the peer's stream
// ends.
func (f *filter) forget(id peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.peers, id)
}
