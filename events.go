package p2pnode

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// Event is one of the types below: switch on it.
type Event interface{ event() }

// EventPeerConnected says that the first connection to a peer stands and that the
// peer is identified.
type EventPeerConnected struct{ Peer Peer }

// EventPeerDisconnected says that the last connection to a peer is gone.
type EventPeerDisconnected struct{ ID peer.ID }

// EventAddrsChanged says that the node's own addresses are others now. Each ends in
// /p2p/<id>.
type EventAddrsChanged struct{ Addrs []ma.Multiaddr }

// EventReachabilityChanged says that it became known, or was told by
// WithReachability, whether others can dial the node.
type EventReachabilityChanged struct{ Reachability network.Reachability }

// BootstrapRound is the result of one round of dialling the bootstrap peers.
type BootstrapRound struct {
	At        time.Time     `json:"at"`
	Took      time.Duration `json:"took"`      // nanoseconds
	Connected []peer.ID     `json:"connected"` // the bootstrap and saved peers that are connected after the round
	Failed    []DialFailure `json:"failed"`    // those that are not, and why
	Peers     int           `json:"peers"`     // how many peers of any kind are connected after the round
}

func (r BootstrapRound) clone() *BootstrapRound {
	r.Connected, r.Failed = slices.Clone(r.Connected), slices.Clone(r.Failed)
	return &r
}

// EventRelayReserved says that a reservation at a relay of WithAutoRelay stands:
// others can reach the node through it.
type EventRelayReserved struct{ ID peer.ID }

// EventRelayLost says that a reservation does not stand any more. The node goes on
// trying to get it back.
type EventRelayLost struct{ ID peer.ID }

// EventHolePunched is the result of one attempt to connect directly to a peer that
// is connected by a relay; there are three at most for a connection.
type EventHolePunched struct {
	ID   peer.ID
	Took time.Duration
	Err  error // nil when there is a direct connection now
}

// EventProvided is the result of announcing a CID, by Provide or by the node itself
// when it had been without peers.
type EventProvided struct {
	CID  cid.Cid
	Took time.Duration
	Err  error // nil when another peer holds the record
}

// EventTopicPeerJoined says that messages to a topic that the node uses reach a
// peer from now on: it is subscribed, and there is a stream to it. Peers that are
// there already when the node joins the topic are reported too.
type EventTopicPeerJoined struct {
	Topic string
	ID    peer.ID
}

// EventTopicPeerLeft says that a peer of EventTopicPeerJoined unsubscribed, or is
// not connected any more. Nothing is reported when the node itself leaves the
// topic.
type EventTopicPeerLeft struct {
	Topic string
	ID    peer.ID
}

// EventBanned reports that a peer or a subnet was banned.
type EventBanned struct{ Ban Ban }

// EventUnbanned reports that a ban was ended by UnbanPeer or UnbanSubnet: that
// of the one of the two fields that is set. A ban that ends by itself sends
// none.
type EventUnbanned struct {
	Peer   peer.ID
	Subnet netip.Prefix
}

// DialFailure is a peer that could not be reached.
type DialFailure struct {
	ID  peer.ID
	Err error
}

// MarshalJSON writes the error as its text.
func (f DialFailure) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"id": f.ID.String(), "err": f.Err.Error()})
}

// EventsLost says that the consumer of Events was too slow: so many events
// before the next one are missing.
type EventsLost struct{ Count uint64 }

func (EventPeerConnected) event()       {}
func (EventPeerDisconnected) event()    {}
func (EventAddrsChanged) event()        {}
func (EventReachabilityChanged) event() {}
func (BootstrapRound) event()           {}
func (EventsLost) event()               {}
func (EventRelayReserved) event()       {}
func (EventRelayLost) event()           {}
func (EventHolePunched) event()         {}
func (EventProvided) event()            {}
func (EventTopicPeerJoined) event()     {}
func (EventTopicPeerLeft) event()       {}
func (EventBanned) event()              {}
func (EventUnbanned) event()            {}

// eventBuffer is how many events wait for a consumer of Events.
const eventBuffer = 256

// Events streams what happens to the node from the moment of the call, until
// the loop ends, ctx ends or the node closes. A consumer that falls more than
// 256 events behind loses the oldest ones and is told how many by an
// EventsLost; it never holds up the node. Each call has a stream of its own,
// for one loop: a second loop over it ends at once, and one that is never looped
// over goes with ctx or the node. What is unread when the node closes is lost.
func (n *Node) Events(ctx context.Context) iter.Seq[Event] {
	sub := n.watch.subscribe()
	stop := context.AfterFunc(ctx, func() { n.watch.unsubscribe(sub) })
	return func(yield func(Event) bool) {
		defer stop()
		defer n.watch.unsubscribe(sub)
		for {
			ev, ok := sub.next(ctx, n.ctx)
			if !ok || !yield(ev) {
				return
			}
		}
	}
}

// watcher drains the host's event bus, always: a subscriber that does not
// would stall libp2p. It turns what it reads into the node's own events, and
// wakes whoever waits for a change of state.
type watcher struct {
	log   *slog.Logger
	host  *nethost.Host
	addrs func() []ma.Multiaddr

	change signal.Signal // something that WaitReady or bootstrap looks at may be different
	moved  signal.Signal // the node's own addresses changed

	mu        sync.Mutex
	subs      map[*eventSub]struct{} // guarded by mu
	announced map[peer.ID]bool       // peers whose EventPeerConnected was sent; guarded by mu
	reach     network.Reachability   // guarded by mu
	lost      func(peer.ID)          // called for each peer that is gone; guarded by mu
}

// newWatcher subscribes at once, before anything can happen on the host.
func newWatcher(group *lifecycle.Group, h *nethost.Host, addrs func() []ma.Multiaddr, log *slog.Logger) (*watcher, error) {
	w := &watcher{
		log: log, host: h, addrs: addrs,
		subs: make(map[*eventSub]struct{}), announced: make(map[peer.ID]bool),
	}
	sub, err := h.EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged),
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerIdentificationFailed),
		new(event.EvtLocalAddressesUpdated),
		new(event.EvtLocalReachabilityChanged),
	}, eventbus.BufSize(256), eventbus.Name("p2pnode"))
	if err != nil {
		return nil, err
	}
	group.Go(func(ctx context.Context) {
		defer sub.Close()
		for {
			select {
			case ev := <-sub.Out():
				w.handle(ev)
			case <-ctx.Done():
				return
			}
		}
	})
	return w, nil
}

func (w *watcher) handle(ev any) {
	switch ev := ev.(type) {
	case event.EvtPeerConnectednessChanged:
		if ev.Connectedness == network.NotConnected {
			w.peerGone(ev.Peer)
		}
	case event.EvtPeerIdentificationCompleted:
		w.peerHere(ev.Peer)
	case event.EvtPeerIdentificationFailed:
		w.peerHere(ev.Peer)
	case event.EvtLocalAddressesUpdated:
		if w.wanted() {
			w.emit(EventAddrsChanged{Addrs: w.addrs()})
		}
		w.moved.Notify()
	case event.EvtLocalReachabilityChanged:
		w.mu.Lock()
		w.reach = ev.Reachability
		w.mu.Unlock()
		w.log.Info("reachability", "is", ev.Reachability)
		w.emit(EventReachabilityChanged{ev.Reachability})
	}
	w.change.Notify()
}

// peerHere announces a peer after its identification, so that whoever acts on
// the event can open streams.
func (w *watcher) peerHere(id peer.ID) {
	known, ok := w.host.Peer(id)
	p := peerOf(known)
	w.mu.Lock()
	news := ok && !w.announced[id]
	if news {
		w.announced[id] = true
	}
	w.mu.Unlock()
	if news {
		w.log.Info("peer connected", "peer", id, "addr", p.Addr, "relayed", p.Relayed, "direction", p.Direction)
		w.emit(EventPeerConnected{p})
	}
}

func (w *watcher) peerGone(id peer.ID) {
	w.mu.Lock()
	known := w.announced[id]
	delete(w.announced, id)
	lost := w.lost
	w.mu.Unlock()
	if known {
		w.log.Info("peer disconnected", "peer", id)
		w.emit(EventPeerDisconnected{id})
	}
	if lost != nil {
		lost(id)
	}
}

// onLost sets what is called for each peer that is gone.
func (w *watcher) onLost(f func(peer.ID)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = f
}

func (w *watcher) reachability() network.Reachability {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reach
}

func (w *watcher) emit(ev Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.subs {
		s.push(ev)
	}
}

// wanted reports whether anybody listens.
func (w *watcher) wanted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.subs) > 0
}

func (w *watcher) subscribe() *eventSub {
	s := &eventSub{wake: make(chan struct{}, 1), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.subs[s] = struct{}{}
	return s
}

func (w *watcher) unsubscribe(s *eventSub) {
	w.mu.Lock()
	delete(w.subs, s)
	w.mu.Unlock()
	s.once.Do(func() { close(s.done) })
}

// eventSub is the bounded queue of one consumer of Events.
type eventSub struct {
	wake chan struct{}
	done chan struct{}
	once sync.Once

	mu    sync.Mutex
	queue []Event // guarded by mu
	lost  uint64  // guarded by mu
}

func (s *eventSub) push(ev Event) {
	s.mu.Lock()
	if len(s.queue) == eventBuffer {
		s.queue = s.queue[1:]
		s.lost++
	}
	s.queue = append(s.queue, ev)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *eventSub) pop() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 {
		ev := EventsLost{s.lost}
		s.lost = 0
		return ev, true
	}
	if len(s.queue) == 0 {
		return nil, false
	}
	ev := s.queue[0]
	s.queue = s.queue[1:]
	return ev, true
}

// next waits for an event until ctx ends or the node closes.
func (s *eventSub) next(ctx, node context.Context) (Event, bool) {
	for {
		if ctx.Err() != nil || node.Err() != nil {
			return nil, false
		}
		if ev, ok := s.pop(); ok {
			return ev, true
		}
		select {
		case <-s.wake:
		case <-s.done:
			return nil, false
		case <-ctx.Done():
		case <-node.Done():
		}
	}
}

// withID ends each address in /p2p/<id>.
func withID(h host.Host, list []ma.Multiaddr) []ma.Multiaddr {
	id := ma.StringCast(fmt.Sprintf("/p2p/%s", h.ID()))
	out := make([]ma.Multiaddr, len(list))
	for i, a := range list {
		out[i] = a.Encapsulate(id)
	}
	return slices.Clip(out)
}
