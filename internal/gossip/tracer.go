package gossip

import (
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"
)

// tracer receives what gossipsub reports in no other way. It runs in
// gossipsub's loop and must not block.
type tracer struct{ r *Router }

func (d tracer) OnNewOutboundStream(id peer.ID, _ protocol.ID) { d.r.link(id, true) }
func (d tracer) OnClosedOutboundStream(id peer.ID)             { d.r.link(id, false) }

// UndeliverableMessage counts a message that gossipsub dropped because a pump
// was too far behind, for every subscription of the topic.
func (d tracer) UndeliverableMessage(m *pubsub.Message) {
	d.r.mu.Lock()
	t := d.r.topics[m.GetTopic()]
	d.r.mu.Unlock()
	if t == nil {
		return
	}
	f := t.feed.Load()
	if f == nil {
		return
	}
	for _, s := range f.subs {
		s.queue.Lose(1)
		s.missed(1)
	}
}

// RejectMessage counts messages dropped unvalidated because too many arrived at
// once.
func (d tracer) RejectMessage(m *pubsub.Message, reason string) {
	d.r.in.release(m)
	if reason == pubsub.RejectValidationQueueFull || reason == pubsub.RejectValidationThrottled {
		d.r.overran(m.GetTopic(), m.ReceivedFrom)
	}
	switch reason {
	case pubsub.RejectValidationIgnored:
		d.r.wasted(m.ReceivedFrom, 1)
	case pubsub.RejectInvalidSignature:
		d.r.unscored(m.ReceivedFrom)
	}
}

// A message waits no longer for its validation.
func (d tracer) DeliverMessage(m *pubsub.Message) {
	d.r.in.release(m)
	if m.ReceivedFrom != d.r.cfg.Host.ID() { // others cannot repeat those: see RejectSelfOrigin
		d.r.replays.remember(m.Message)
	}
}

func (d tracer) DuplicateMessage(m *pubsub.Message) {
	d.r.in.release(m)
	d.r.wasted(m.ReceivedFrom, 1)
}

// Gossipsub takes messages of the topics that it has joined.
func (d tracer) Join(topic string)  { d.r.in.setTopic(topic, true) }
func (d tracer) Leave(topic string) { d.r.in.setTopic(topic, false) }

// DropRPC counts messages that a peer does not receive because it, or the
// connection to it, is too slow.
func (d tracer) DropRPC(rpc *pubsub.RPC, id peer.ID) {
	n := len(rpc.GetPublish())
	if n == 0 {
		return
	}
	d.r.notSent(id, n)
}

// notSent counts messages that a peer does not get.
func (r *Router) notSent(id peer.ID, n int) {
	total := r.unsent.Add(uint64(n))
	if r.unsentLog.Now() {
		r.cfg.Log.Warn("messages not sent: the peer, or the connection to it, is too slow", "peer", id, "total", total)
	}
}

// The mesh of a topic.
func (d tracer) Graft(id peer.ID, topic string) { d.r.graft(id, topic, true) }
func (d tracer) Prune(id peer.ID, topic string) { d.r.graft(id, topic, false) }

// SendRPC records what waits in gossipsub's queue for a peer, and whom the node has
// pruned.
func (d tracer) SendRPC(rpc *pubsub.RPC, id peer.ID) {
	if len(rpc.GetPublish()) > 0 {
		d.r.streams.queued(id, proto.Size(&rpc.RPC))
	}
	for _, m := range rpc.GetControl().GetPrune() {
		d.r.prune(id, m)
	}
}

// The rest of pubsub.RawTracer.
func (tracer) ValidateMessage(*pubsub.Message)                      {}
func (tracer) ThrottlePeer(peer.ID)                                 {}
func (tracer) RecvRPC(*pubsub.RPC)                                  {}
func (tracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
