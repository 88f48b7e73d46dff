package watch

import (
	"context"
	"hash/maphash"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// together is how close two identify messages of a peer are that may have
	// overtaken each other: longer than libp2p waits for one.
	together = 10 * time.Second
	// settle is how long after the first such two the peer is asked again, by when it
	// has mostly sent all that it has to send.
	settle = time.Second
	// maxAsking bounds how many peers are asked at a time.
	maxAsking = 16
)

// order notices identify messages that may have overtaken each other. A peer answers
// identify, and pushes each change of its protocols and addresses, on streams of
// their own, and libp2p (v0.51) takes what it reads last for the peer's present
// state, though it may be the older one: two handlers that a peer sets one after
// another, or one that it sets while somebody connects, may then stay unknown for as
// long as the connection is open. A relay is not asked for a reservation, a server of
// the DHT is in no routing table. Messages that come close together and differ
// therefore lead to a question, whose answer is the present state.
type order struct {
	seed   maphash.Seed
	last   map[peer.ID]message
	due    map[peer.ID]time.Time // when a peer is to be asked again
	asking map[peer.ID]bool      // asked, without an answer so far
	timer  *time.Timer
}

// message is the last identify message of a connected peer.
type message struct {
	sum uint64
	at  time.Time
}

func newOrder() order {
	o := order{
		seed: maphash.MakeSeed(), last: make(map[peer.ID]message), due: make(map[peer.ID]time.Time), asking: make(map[peer.ID]bool),
		timer: time.NewTimer(settle),
	}
	o.timer.Stop()
	return o
}

// heard notes a message of a connected peer.
func (o *order) heard(ev event.EvtPeerIdentificationCompleted, now time.Time) {
	before, known := o.last[ev.Peer]
	m := message{o.sum(ev), now}
	o.last[ev.Peer] = m
	if !known || m.sum == before.sum || now.Sub(before.at) > together {
		return
	}
	if _, waits := o.due[ev.Peer]; waits {
		return
	}
	o.due[ev.Peer] = now.Add(settle)
	if len(o.due) == 1 {
		o.timer.Reset(settle)
	}
}

// sum sums up what a message says of the peer on whatever connection it comes: the
// addresses that are not signed depend on it.
func (o *order) sum(ev event.EvtPeerIdentificationCompleted) uint64 {
	var h maphash.Hash
	h.SetSeed(o.seed)
	for _, p := range slices.Sorted(slices.Values(ev.Protocols)) {
		_, _ = h.WriteString(string(p))
		_ = h.WriteByte(0)
	}
	if r := ev.SignedPeerRecord; r != nil {
		_, _ = h.Write(r.RawPayload)
	}
	return h.Sum64()
}

// forget drops what is known of a peer that has disconnected.
func (o *order) forget(id peer.ID) {
	delete(o.last, id)
	delete(o.due, id)
}

// ripe returns the peers that are to be asked now. One that has not answered the last
// question waits: peers that push and never answer would make the questions grow.
func (o *order) ripe(now time.Time) []peer.ID {
	var list []peer.ID
	next := settle
	for id, at := range o.due {
		if wait := at.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if o.asking[id] {
			o.due[id] = now.Add(settle)
			continue
		}
		delete(o.due, id)
		o.asking[id] = true
		list = append(list, id)
	}
	if len(o.due) > 0 {
		o.timer.Reset(next)
	}
	return list
}

// answered notes that a question has ended, with or without an answer.
func (o *order) answered(id peer.ID) { delete(o.asking, id) }

// ask asks a peer again, once there is room, and says when that has ended.
func (b *Bus) ask(ctx context.Context, room chan struct{}, ended chan<- peer.ID, id peer.ID) {
	select {
	case room <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() {
		<-room
		select {
		case ended <- id:
		case <-ctx.Done():
		}
	}()
	if err := b.cfg.Host.IdentifyAgain(ctx, id); err != nil {
		b.cfg.Log.Warn("asking a peer for its protocols again", "peer", id, "err", err)
	}
}
