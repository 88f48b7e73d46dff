package gossip

import (
	"hash/maphash"
	"sync"
	"time"

	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
)

const (
	// replaySize is how many messages are remembered by a generation of replays. Each
	// takes about 25 bytes, so that both take 7 MiB at most.
	replaySize = 1 << 17
	// replayAfter is for how many seconds gossipsub recognizes a message itself, half
	// of its two minutes to be sure: it needs to know who else has sent it.
	replayAfter = 60
)

// replays remembers messages that were delivered: gossipsub forgets them after two
// minutes, and delivers a message that somebody repeats later a second time. It
// remembers the last replaySize messages at least, and twice as many at most. That a
// sequence number grows is no criterion: those of js-libp2p are random, and messages
// of one author overtake each other.
type replays struct {
	seed  maphash.Seed
	size  int
	start time.Time

	mu       sync.Mutex
	now, old map[uint64]int32 // by author and number, the second of the delivery; guarded by mu
}

func newReplays(size int) *replays {
	return &replays{seed: maphash.MakeSeed(), size: size, start: time.Now(), now: make(map[uint64]int32)}
}

// key returns what a message is remembered by; false for one that nobody has
// signed: nobody vouches for its author and number, if there are any.
func (r *replays) key(m *pubsub_pb.Message) (uint64, bool) {
	var h maphash.Hash
	h.SetSeed(r.seed)
	_, _ = h.Write(m.From)
	_ = h.WriteByte(byte(len(m.Seqno)))
	_, _ = h.Write(m.Seqno)
	return h.Sum64(), m.Signature != nil
}

// remember notes that a message, whose signature was verified, is delivered.
func (r *replays) remember(m *pubsub_pb.Message) {
	key, ok := r.key(m)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now[key] = int32(r.second()) //nolint:gosec // 68 years
	if len(r.now) >= r.size {
		r.now, r.old = make(map[uint64]int32), r.now
	}
}

// repeated reports whether a message was delivered so long ago that gossipsub may
// have forgotten it.
func (r *replays) repeated(m *pubsub_pb.Message) bool {
	key, ok := r.key(m)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.now[key]
	if !ok {
		at, ok = r.old[key]
	}
	return ok && r.second()-int64(at) >= replayAfter
}

func (r *replays) second() int64 { return int64(time.Since(r.start) / time.Second) }
