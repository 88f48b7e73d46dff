package gossip

import (
	"context"
	"maps"
	"slices"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// news is something that has happened on a topic.
type news struct {
	topic string
	kind  newsKind
	id    peer.ID // of the kinds about a peer
	score float64 // of the last two kinds
}

type newsKind int

const (
	peerJoined  newsKind = iota // messages reach a peer
	peerLeft                    // messages reach it no longer
	topicLeft                   // the topic was left
	meshChanged                 // the mesh of the topic has changed
	peerGraylisted
	peerForgiven // or disconnected
)

// follow tracks the members of a topic. A peer counts once gossipsub has a
// stream to it: gossipsub hears of it earlier, on the peer's own stream, but a
// message sent then is lost unnoticed.
func (r *Router) follow(ctx context.Context, t *topic) {
	defer close(t.followed)
	for {
		ev, err := t.events.NextPeerEvent(ctx)
		if err != nil {
			return
		}
		r.mu.Lock()
		var grown bool
		switch ev.Type {
		case pubsub.PeerJoin:
			grown = r.markLocked(t, ev.Peer, r.reachedLocked(ev.Peer))
		case pubsub.PeerLeave:
			r.markLocked(t, ev.Peer, false)
			delete(t.members, ev.Peer)
		}
		r.mu.Unlock()
		if grown {
			t.came.Notify()
		}
	}
}

// link records whether gossipsub has a stream to a peer. It runs in gossipsub's
// loop.
func (r *Router) link(id peer.ID, up bool) {
	var grown []*topic
	r.mu.Lock()
	if up {
		r.links[id] = true
	} else {
		delete(r.links, id)
		if r.gray[id] {
			delete(r.gray, id)
			r.addNewsLocked(news{kind: peerForgiven, id: id, score: r.scores[id]})
		}
		delete(r.scores, id)
	}
	for _, t := range r.topics {
		if _, member := t.members[id]; member && r.markLocked(t, id, r.reachedLocked(id)) {
			grown = append(grown, t)
		}
	}
	r.mu.Unlock()
	for _, t := range grown {
		t.came.Notify()
	}
}

// markLocked records whether messages to a topic reach a peer, and reports
// whether they newly do.
func (r *Router) markLocked(t *topic, id peer.ID, linked bool) (grown bool) {
	was := t.members[id]
	t.members[id] = linked
	if was == linked || t.leaving {
		return false
	}
	if linked {
		t.peers.Add(1)
	} else {
		t.peers.Add(-1)
	}
	kind := peerLeft
	if linked {
		kind = peerJoined
	}
	r.addNewsLocked(news{topic: t.name, kind: kind, id: id})
	return linked
}

func (r *Router) addNewsLocked(n news) {
	r.news = append(r.news, n)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// tell runs the callbacks, in the order of events.
func (r *Router) tell(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		list := r.news
		r.news = nil
		r.mu.Unlock()
		touched := make(map[string]bool)
		for _, n := range list {
			if n.topic != "" {
				touched[n.topic] = true
			}
			switch n.kind {
			case topicLeft:
				r.cfg.TopicLeft(n.topic)
			case peerJoined:
				r.cfg.PeerJoined(n.topic, n.id)
			case peerLeft:
				r.cfg.PeerLeft(n.topic, n.id)
			case peerGraylisted:
				r.cfg.Graylisted(n.id, n.score)
			case peerForgiven:
				r.cfg.Forgiven(n.id, n.score)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(touched)) {
			r.tellHealth(name)
		}
		r.cfg.Changed()
	}
}

// tellHealth reports the health of a topic if it has changed.
func (r *Router) tellHealth(name string) {
	r.mu.Lock()
	t := r.topics[name]
	if t == nil || t.leaving {
		r.mu.Unlock()
		return
	}
	now := r.healthLocked(t)
	changed := now != t.health
	t.health = now
	r.mu.Unlock()
	if changed {
		r.cfg.HealthChanged(name, now)
	}
}
