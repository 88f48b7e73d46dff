package gossip

import (
	"bytes"
	"slices"
	"strings"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"
)

// What a peer may send in control messages, per second and at once. Gossipsub
// bounds only what it does with most of it.
const (
	idRate, idBurst       = 20_000, 40_000 // message IDs; an honest peer sends 5,000 for each topic at most
	graftRate, graftBurst = 100, 200       // grafts and prunes, and for each topic of this node's:
	graftRateEach         = 2
	graftBurstEach        = 4
	topicRate, topicBurst = 2_000, 4 * MaxTopics // changes of topics; a peer announces all when a stream is replaced

	// maxBackoff bounds for how long a peer can ask not to be grafted: gossipsub
	// remembers it as long as it says.
	maxBackoff     = time.Hour
	defaultBackoff = time.Minute

	// Peers that are named with a prune.
	prunePeers     = 16
	maxNamedID     = 64
	maxNamedRecord = 8 << 10
)

// edge is a peer on a topic.
type edge struct {
	id    peer.ID
	topic string
}

// pruned is when an edge was pruned, and until when it is not to be grafted.
type pruned struct{ at, until time.Time }

// control takes out of an RPC's control messages what is beyond the bounds. It
// runs in gossipsub's loop.
func (r *Router) control(from peer.ID, rpc *pubsub.RPC) {
	c := rpc.GetControl()
	if c == nil {
		return
	}
	self := string(r.cfg.Host.ID())
	r.mu.Lock()
	a := r.accountLocked(from)
	over := 0
	ids := func(list []string) []string {
		fit := a.ids.take(len(list)+1, idRate, idBurst) // each list counts, even an empty one
		over += len(list) + 1 - fit
		return list[:max(0, fit-1)]
	}
	for _, m := range c.Ihave {
		if m == nil {
			continue
		}
		m.MessageIDs = ids(m.MessageIDs)
		if !r.special[m.GetTopicID()].fixed() {
			// Those of this node's messages before it restarted: gossipsub would ask for
			// them, and hold them against the peer.
			m.MessageIDs = slices.DeleteFunc(m.MessageIDs, func(id string) bool { return strings.HasPrefix(id, self) })
		}
	}
	for _, m := range c.Iwant {
		if m != nil {
			m.MessageIDs = ids(m.MessageIDs)
		}
	}
	for _, m := range c.Idontwant {
		if m != nil {
			m.MessageIDs = ids(m.MessageIDs)
		}
	}
	a.points += float64(over) * idPoints

	topics := float64(len(r.topics))
	fits := func(n int) int {
		fit := a.grafts.take(n, graftRate+graftRateEach*topics, graftBurst+graftBurstEach*topics)
		a.points += float64(n-fit) * graftPoints
		over += n - fit
		return fit
	}
	c.Graft = c.Graft[:fits(len(c.Graft))]
	c.Prune = c.Prune[:fits(len(c.Prune))]
	a.Control += uint64(over)
	accept := r.exchange && r.scores[from] >= exchangeThreshold
	r.mu.Unlock()
	if over > 0 && r.controlLog.Now() {
		r.cfg.Log.Warn("control messages of a peer are dropped: too many", "peer", from)
	}
	for _, m := range c.Prune {
		if m == nil {
			continue
		}
		if limit := uint64(maxBackoff / time.Second); m.GetBackoff() > limit {
			m.Backoff = &limit
		}
		m.Peers = r.named(from, m.Peers, accept)
		r.prune(from, m)
	}
	r.forgetful(from, c)
}

// prune remembers that an edge was pruned, by either side.
func (r *Router) prune(id peer.ID, m *pubsub_pb.ControlPrune) {
	topic, backoff := m.GetTopicID(), defaultBackoff
	if m.GetBackoff() > 0 {
		backoff = time.Duration(m.GetBackoff()) * time.Second
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.topics[topic] == nil {
		return
	}
	now := time.Now()
	if len(r.pruned) >= r.prunedSweep {
		for e, p := range r.pruned {
			if now.After(p.until) {
				delete(r.pruned, e)
			}
		}
		r.prunedSweep = max(1024, 2*len(r.pruned))
	}
	e := edge{id, topic}
	until := now.Add(backoff)
	if old := r.pruned[e].until; old.After(until) {
		until = old
	}
	r.pruned[e] = pruned{now, until}
}

// forgetful takes out the grafts of a peer that cannot know that it was pruned: it
// has restarted, or lost its stream. Gossipsub would hold each against it. It is
// told again.
func (r *Router) forgetful(from peer.ID, c *pubsub_pb.ControlMessage) {
	if len(c.Graft) == 0 {
		return
	}
	born := r.streams.bornAt(from)
	now := time.Now()
	var again []*pubsub_pb.ControlPrune
	r.mu.Lock()
	c.Graft = slices.DeleteFunc(c.Graft, func(m *pubsub_pb.ControlGraft) bool {
		p, ok := r.pruned[edge{from, m.GetTopicID()}]
		if !ok || !p.at.Before(born) || !now.Before(p.until) {
			return false
		}
		topic, left := m.GetTopicID(), uint64(p.until.Sub(now)/time.Second)+1
		again = append(again, &pubsub_pb.ControlPrune{TopicID: &topic, Backoff: &left})
		return true
	})
	r.mu.Unlock()
	if len(again) == 0 {
		return
	}
	var b bytes.Buffer
	if _, err := protodelim.MarshalTo(&b, &pubsub_pb.RPC{Control: &pubsub_pb.ControlMessage{Prune: again}}); err == nil {
		r.streams.write(from, b.Bytes())
	}
}

// named returns the peers of a prune that may be dialed on the word of from.
// Gossipsub prints IDs in time that grows with the square of their length, and
// verifies as many records as there are.
func (r *Router) named(from peer.ID, list []*pubsub_pb.PeerInfo, accept bool) []*pubsub_pb.PeerInfo {
	if !accept || len(list) == 0 {
		return nil
	}
	conns := r.cfg.Host.Network().ConnsToPeer(from)
	if len(conns) == 0 {
		return nil
	}
	list = list[:min(len(list), prunePeers)]
	return slices.DeleteFunc(list, func(p *pubsub_pb.PeerInfo) bool {
		if len(p.GetPeerID()) > maxNamedID || len(p.GetSignedPeerRecord()) > maxNamedRecord {
			return true
		}
		id, err := peer.IDFromBytes(p.GetPeerID())
		if err != nil || id == r.cfg.Host.ID() {
			return true
		}
		_, rec, err := record.ConsumeEnvelope(p.SignedPeerRecord, peer.PeerRecordEnvelopeDomain)
		pr, ok := rec.(*peer.PeerRecord)
		if err != nil || !ok || pr.PeerID != id {
			return true
		}
		return len(r.cfg.Learned(conns[0], id, binaries(pr.Addrs))) == 0
	})
}

func binaries(list []ma.Multiaddr) [][]byte {
	var out [][]byte
	for _, a := range list {
		out = append(out, a.Bytes())
	}
	return out
}
