package gossip

import (
	"crypto/sha256"
	"errors"
	"reflect"
	"strings"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Spec is how a topic is joined. The zero value takes a topic as it is.
type Spec struct {
	// MessageID returns what tells messages apart; nil for gossipsub's own: author
	// and sequence number, or with Anonymous the hash of the data.
	MessageID func(*pubsub_pb.Message) string
	// Anonymous messages have no author, sequence number or signature.
	Anonymous bool
	// Rate is how many messages per second are expected; 0 for the default of
	// [Scoring]. The last one given counts.
	Rate float64
}

// errTopicInUse is returned when a topic cannot be joined as it is asked for.
var errTopicInUse = errors.New("the topic is in use already with another message ID or signature policy; give all its handles the same, or close them first")

// fixed reports whether a topic has to be joined in a way of its own.
func (s Spec) fixed() bool { return s.MessageID != nil || s.Anonymous }

// equal reports whether two are the same. Functions are not.
func (s Spec) equal(other Spec) bool {
	return s.Anonymous == other.Anonymous && s.MessageID == nil && other.MessageID == nil
}

// suits reports whether a topic that was joined as s can be used as other.
func (s Spec) suits(other Spec) bool { return !other.fixed() || s.equal(other) }

// Gossipsub has one signature policy for all topics. Here each topic has its own:
// gossipsub signs, and verifies the signatures that there are; inspect drops the
// messages that are not as their topic wants them, and stripOwn takes author and
// signature off the node's own messages on an anonymous topic.
const ownPolicy = pubsub.LaxSign

var errForeignPolicy = errors.New("a topic of its own signature policy needs the node's: leave the signature options out of WithPubSubOptions")

// signaturePolicy reads which policy gossipsub has after all options: those of
// the application come last. There is no other way to learn it.
func signaturePolicy(ps *pubsub.PubSub) pubsub.MessageSignaturePolicy {
	field := reflect.ValueOf(ps).Elem().FieldByName("signPolicy")
	return pubsub.MessageSignaturePolicy(field.Uint())
}

// setPolicy makes the node take the messages that a topic is for.
func (r *Router) setPolicy(t *topic) error {
	if t.spec.Anonymous && !r.perTopic {
		return errForeignPolicy
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.spec.fixed() {
		r.special[t.name] = t.spec
	} else {
		delete(r.special, t.name)
	}
	return nil
}

// joining returns upstream's options for a topic. Upstream never forgets a topic's
// function, so that it is one for all.
func (r *Router) joining(s Spec) []pubsub.TopicOpt {
	if !s.fixed() {
		return nil
	}
	return []pubsub.TopicOpt{pubsub.WithTopicMessageIdFn(r.messageID)}
}

// messageID returns the ID of a message on a topic that is or was special.
func (r *Router) messageID(m *pubsub_pb.Message) string {
	r.mu.Lock()
	s := r.special[m.GetTopic()]
	r.mu.Unlock()
	switch {
	case s.MessageID != nil:
		return s.MessageID(m)
	case s.Anonymous:
		return contentID(m)
	default:
		return defaultID(m)
	}
}

// defaultID returns what pubsub.DefaultMsgIdFn does, with one allocation instead of
// two, for each message on each node.
func defaultID(m *pubsub_pb.Message) string {
	var b strings.Builder
	b.Grow(len(m.GetFrom()) + len(m.GetSeqno()))
	_, _ = b.Write(m.GetFrom())
	_, _ = b.Write(m.GetSeqno())
	return b.String()
}

// contentID tells messages apart by what they say.
func contentID(m *pubsub_pb.Message) string {
	sum := sha256.Sum256(m.GetData())
	return string(sum[:])
}

// noKey signs nothing: gossipsub asks for a key of every author.
type noKey struct{ crypto.PrivKey }

func (noKey) Sign([]byte) ([]byte, error) { return nil, nil }

// stripOwn makes a message of this node's anonymous.
func stripOwn(m *pubsub.Message) {
	m.From, m.Seqno, m.Signature, m.Key = nil, nil, nil, nil
}

// mismatched reports whether a message is signed although its topic is anonymous,
// or the reverse, and counts it. It runs in gossipsub's loop.
func (r *Router) mismatched(from peer.ID, m *pubsub_pb.Message) bool {
	if !r.perTopic {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var wrong bool
	if r.special[m.GetTopic()].Anonymous {
		wrong = m.Signature != nil || m.From != nil || m.Seqno != nil || m.Key != nil
	} else {
		wrong = m.Signature == nil
	}
	if wrong {
		a := r.accountLocked(from)
		a.Unsuited++
		a.soft++
	}
	return wrong
}
