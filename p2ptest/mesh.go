package p2ptest

import (
	"maps"
	"slices"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// meshTracer mirrors the mesh of a gossipsub router, which reports it in no
// other way. It runs in the router's loop and must not block.
type meshTracer struct {
	changed func()

	mu     sync.Mutex
	topics map[string]map[peer.ID]bool // the joined ones; guarded by mu
}

// reset forgets all topics when the router restarts.
func (t *meshTracer) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.topics = nil
}

// peers returns the peers in the mesh of a topic, and whether it is joined.
func (t *meshTracer) peers(topic string) ([]peer.ID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, ok := t.topics[topic]
	return slices.Collect(maps.Keys(m)), ok
}

func (t *meshTracer) update(topic string, f func(map[peer.ID]bool)) {
	t.mu.Lock()
	if t.topics == nil {
		t.topics = make(map[string]map[peer.ID]bool)
	}
	if t.topics[topic] == nil {
		t.topics[topic] = make(map[peer.ID]bool)
	}
	f(t.topics[topic])
	t.mu.Unlock()
	t.changed()
}

func (t *meshTracer) Join(topic string) { t.update(topic, func(map[peer.ID]bool) {}) }

func (t *meshTracer) Leave(topic string) {
	t.mu.Lock()
	delete(t.topics, topic)
	t.mu.Unlock()
	t.changed()
}

func (t *meshTracer) Graft(p peer.ID, topic string) {
	t.update(topic, func(m map[peer.ID]bool) { m[p] = true })
}

func (t *meshTracer) Prune(p peer.ID, topic string) {
	t.mu.Lock()
	delete(t.topics[topic], p)
	t.mu.Unlock()
	t.changed()
}

// OnClosedOutboundStream removes a disconnected peer from the meshes: the router
// does so without a Prune.
func (t *meshTracer) OnClosedOutboundStream(p peer.ID) {
	t.mu.Lock()
	for _, m := range t.topics {
		delete(m, p)
	}
	t.mu.Unlock()
	t.changed()
}

// The rest of pubsub.RawTracer.
func (*meshTracer) OnNewOutboundStream(peer.ID, protocol.ID)             {}
func (*meshTracer) ValidateMessage(*pubsub.Message)                      {}
func (*meshTracer) DeliverMessage(*pubsub.Message)                       {}
func (*meshTracer) RejectMessage(*pubsub.Message, string)                {}
func (*meshTracer) DuplicateMessage(*pubsub.Message)                     {}
func (*meshTracer) ThrottlePeer(peer.ID)                                 {}
func (*meshTracer) RecvRPC(*pubsub.RPC)                                  {}
func (*meshTracer) SendRPC(*pubsub.RPC, peer.ID)                         {}
func (*meshTracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
func (*meshTracer) DropRPC(*pubsub.RPC, peer.ID)                         {}
func (*meshTracer) UndeliverableMessage(*pubsub.Message)                 {}
