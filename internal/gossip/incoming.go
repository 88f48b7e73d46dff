package gossip

import (
	"slices"
	"sync"
	"time"
	"weak"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/ring"
)

// sweepEvery is how often incoming looks for messages that gossipsub has dropped
// in silence.
const sweepEvery = time.Second

// incoming bounds the messages that wait for their validation, in bytes and by the
// peer that sent them: gossipsub bounds only their number, in its queue and in the
// running validators. A message counts from its arrival until gossipsub delivers or
// drops it.
type incoming struct {
	places         int // for messages
	perPeer, limit int64
	budget         *ring.Budget // shared with what waits elsewhere

	mu     sync.Mutex
	topics map[string]bool                          // those of which gossipsub takes messages; guarded by mu
	held   map[weak.Pointer[pubsub_pb.Message]]held // guarded by mu
	peers  map[peer.ID]share                        // by the peer that sent them; guarded by mu
	bytes  int64                                    // in all; guarded by mu
	swept  time.Time                                // guarded by mu
}

// share is what waits of a peer's.
type share struct {
	bytes    int64
	messages int
}

type held struct {
	from peer.ID
	size int64
}

func newIncoming(places int, perPeer, limit int64, budget *ring.Budget) *incoming {
	return &incoming{
		places: places, perPeer: perPeer, limit: limit, budget: budget, topics: make(map[string]bool),
		held: make(map[weak.Pointer[pubsub_pb.Message]]held), peers: make(map[peer.ID]share),
	}
}

// take counts a message, and reports whether it may wait. One alone always may.
func (in *incoming) take(from peer.ID, m *pubsub_pb.Message) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.topics[m.GetTopic()] {
		return true // gossipsub ignores it
	}
	size := sizeOf(&pubsub.Message{Message: m})
	if !in.fitsLocked(from, size) {
		if time.Since(in.swept) < sweepEvery {
			return false
		}
		in.sweepLocked()
		if !in.fitsLocked(from, size) {
			return false
		}
	}
	in.held[weak.Make(m)] = held{from, size}
	mine := in.peers[from]
	in.peers[from] = share{mine.bytes + size, mine.messages + 1}
	in.bytes += size
	return true
}

// fitsLocked takes a message's bytes from the budget if they are within all
// bounds.
func (in *incoming) fitsLocked(from peer.ID, size int64) bool {
	if in.bytes == 0 {
		in.budget.Force(size)
		return true
	}
	mine := in.peers[from]
	if mine.messages >= in.places-len(in.held) {
		return false
	}
	return (mine.bytes == 0 || mine.bytes+size <= in.perPeer) && in.bytes+size <= in.limit && in.budget.Take(size)
}

// sweepLocked releases messages that nobody has any more: gossipsub's peer scores
// and its last check for duplicates drop some in silence.
func (in *incoming) sweepLocked() {
	in.swept = time.Now()
	for key := range in.held {
		if key.Value() == nil {
			in.releaseLocked(key)
		}
	}
}

// release is called for a message that has been delivered or dropped, whether or
// not it was taken.
func (in *incoming) release(m *pubsub.Message) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.releaseLocked(weak.Make(m.Message))
}

func (in *incoming) releaseLocked(key weak.Pointer[pubsub_pb.Message]) {
	h, ok := in.held[key]
	if !ok {
		return
	}
	delete(in.held, key)
	mine := in.peers[h.from]
	in.peers[h.from] = share{mine.bytes - h.size, mine.messages - 1}
	if mine.messages == 1 {
		delete(in.peers, h.from)
	}
	in.bytes -= h.size
	in.budget.Give(h.size)
}

func (in *incoming) setTopic(name string, on bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if on {
		in.topics[name] = true
	} else {
		delete(in.topics, name)
	}
}

// inspect drops the messages of an RPC that may not wait. It runs in gossipsub's
// loop.
func (r *Router) inspect(from peer.ID, rpc *pubsub.RPC) error {
	r.control(from, rpc)
	if r.isGray(from) { // its topics only, for when it is forgiven
		r.wasted(from, len(rpc.Publish))
		rpc.Publish, rpc.Control = nil, nil
		return nil
	}
	waste := 0
	self := string(r.cfg.Host.ID())
	rpc.Publish = slices.DeleteFunc(rpc.Publish, func(m *pubsub_pb.Message) bool {
		if r.mismatched(from, m) || r.replayed(from, m) || string(m.GetFrom()) == self {
			// Gossipsub would hold it against the peer that a message of this node's
			// comes back, which it does when the node has restarted.
			waste++
			return true
		}
		if r.in.take(from, m) {
			return false
		}
		r.overran(m.GetTopic(), from)
		return true
	})
	r.wasted(from, waste)
	return nil
}

// replayed reports whether a message is repeated long after it was delivered, and
// counts it.
func (r *Router) replayed(from peer.ID, m *pubsub_pb.Message) bool {
	if !r.replays.repeated(m) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accountLocked(from).Replayed++
	return true
}

func (r *Router) isGray(id peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gray[id]
}

// changing returns how many changes of its topics a peer may make now.
func (r *Router) changing(id peer.ID, n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accountLocked(id).topics.take(n, topicRate, topicBurst)
}

// overran counts a message that was dropped unvalidated: in the topic first, so that
// whoever sees the total finds it there too.
func (r *Router) overran(topic string, from peer.ID) {
	r.mu.Lock()
	if t := r.topics[topic]; t != nil {
		t.counts.Overrun++
		t.counts.LastOverrun = time.Now()
	}
	total := r.overrun.Add(1)
	r.mu.Unlock()
	if r.overrunLog.Now() {
		r.cfg.Log.Warn("dropped incoming messages: too many at once", "topic", topic, "from", from, "total", total)
	}
}
