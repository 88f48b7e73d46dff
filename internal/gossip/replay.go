package gossip

import (
	"context"
	"hash/maphash"
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// replaySize is how many messages are remembered by a generation of replays. Each
// takes about 20 bytes, so that both take 5 MiB at most.
const replaySize = 1 << 17

// replays remembers messages that were delivered: gossipsub forgets them after two
// minutes, and delivers a message that somebody repeats later a second time. It
// remembers the last replaySize messages at least, and twice as many at most. That a
// sequence number grows is no criterion: those of js-libp2p are random, and messages
// of one author overtake each other.
type replays struct {
	seed maphash.Seed
	size int

	mu       sync.Mutex
	now, old map[uint64]struct{} // by author and number; guarded by mu
}

func newReplays(size int) *replays {
	return &replays{seed: maphash.MakeSeed(), size: size, now: make(map[uint64]struct{})}
}

// seen reports whether a message was there before, and remembers it.
func (r *replays) seen(author, number []byte) bool {
	key := maphash.Comparable(r.seed, [2]string{string(author), string(number)})
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.now[key]; ok {
		return true
	}
	_, ok := r.old[key]
	r.now[key] = struct{}{}
	if len(r.now) >= r.size {
		r.now, r.old = make(map[uint64]struct{}), r.now
	}
	return ok
}

// validate is a validator of gossipsub, which calls it once the signature is checked.
// Without one, as an option of the application's can have it, nobody vouches for the
// author and the number, if there are any.
func (r *replays) validate(self peer.ID) pubsub.ValidatorEx {
	return func(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if from != self && m.Signature != nil && r.seen(m.From, m.Seqno) {
			return pubsub.ValidationIgnore
		}
		return pubsub.ValidationAccept
	}
}
