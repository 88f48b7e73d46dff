package p2pnode

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/watch"
)

// Event is one of the Event… types of this package: switch on it. Its JSON form
// has a "type", such as "peer-connected", and the time in "at"; [UnmarshalEvent]
// reads it.
type Event interface {
	// When is the time at which it was reported.
	When() time.Time
	json.Marshaler

	stamped(time.Time) Event
}

// EventTime is the part that all events have.
type EventTime struct {
	At time.Time `json:"at"`
}

// When returns At.
func (t EventTime) When() time.Time { return t.At }

// EventPeerConnected reports that the first connection to a peer stands and that
// the peer is identified.
type EventPeerConnected struct {
	EventTime
	Peer Peer `json:"peer"`
}

// EventPeerDisconnected reports that the last connection to a peer is gone.
type EventPeerDisconnected struct {
	EventTime
	ID peer.ID `json:"id"`
}

// EventPeerFound reports a peer that the node was not told of. Its source is:
//   - "mdns": multicast DNS found it, and the node dials it. It is not reported
//     again while the node remembers it.
//   - "saved": it was connected when the node last ran with its [WithDataDir],
//     and the node has reached it again.
//   - "rendezvous": [Node.FindPeers] yields it, and it is not connected. To dial
//     it is up to the caller.
type EventPeerFound struct {
	EventTime
	ID    peer.ID        `json:"id"`
	Addrs []ma.Multiaddr `json:"addrs"`
	// Source is what found it.
	Source string `json:"source"`
}

// EventAddrsChanged reports that the announced addresses changed. Each ends in
// /p2p/<id>.
type EventAddrsChanged struct {
	EventTime
	Addrs []ma.Multiaddr `json:"addrs"`
}

// EventReachabilityChanged reports that it became known, or was told by
// [WithReachability], whether others can dial the node.
type EventReachabilityChanged struct {
	EventTime
	Reachability Reachability `json:"reachability"`
}

// EventBootstrapRound reports the result of a round of dialing bootstrap peers.
type EventBootstrapRound struct {
	EventTime
	Round BootstrapRound `json:"round"`
}

// EventRelayReserved reports that a reservation at a relay of [WithAutoRelay]
// stands: others can reach the node through it.
type EventRelayReserved struct {
	EventTime
	ID peer.ID `json:"id"`
}

// EventRelayLost reports that a reservation ended. The node goes on trying to get
// it back.
type EventRelayLost struct {
	EventTime
	ID peer.ID `json:"id"`
}

// EventHolePunched is the result of one attempt to connect directly to a peer that
// is connected by a relay; there are three at most for a connection.
type EventHolePunched struct {
	EventTime
	ID peer.ID `json:"id"`
	// Took is in nanoseconds in JSON.
	Took time.Duration `json:"took"`
	// Err is nil when there is a direct connection now. JSON has its text, "err".
	Err error `json:"-"`
}

// EventProvided is the result of announcing a CID, by [Node.Provide] or by the
// node itself when it had been without peers.
type EventProvided struct {
	EventTime
	CID cid.Cid `json:"cid"`
	// Took is in nanoseconds in JSON.
	Took time.Duration `json:"took"`
	// Err is nil when another peer holds the record. JSON has its text, "err".
	Err error `json:"-"`
}

// EventTopicPeerJoined reports that messages to a topic that the node uses reach a
// peer from now on: it is subscribed, and there is a stream to it. Peers that are
// there already when the node joins the topic are reported too.
type EventTopicPeerJoined struct {
	EventTime
	Topic string  `json:"topic"`
	ID    peer.ID `json:"id"`
}

// EventTopicPeerLeft reports that a peer of [EventTopicPeerJoined] unsubscribed, or
// is not connected any more. Nothing is reported when the node itself leaves the
// topic.
type EventTopicPeerLeft struct {
	EventTime
	Topic string  `json:"topic"`
	ID    peer.ID `json:"id"`
}

// EventLimitReached reports that a limit of [WithLimits] refused a connection or
// stream: the first time, and then at most once a minute. The limit of memory is
// not reported; [Status] counts what it refuses.
type EventLimitReached struct {
	EventTime
	// Limit is the field of [Limits], "files" for those that the process may open,
	// or "services" for libp2p's own protocols.
	Limit string `json:"limit"`
	// Refused is how much the limit has refused since the start.
	Refused uint64 `json:"refused"`
}

// EventBanned reports that a peer or a subnet was banned.
type EventBanned struct {
	EventTime
	Ban Ban `json:"ban"`
}

// EventUnbanned reports that a ban was ended by [Node.UnbanPeer] or
// [Node.UnbanSubnet]: that of the one of the two fields that is set. A ban that
// ends by itself sends none.
type EventUnbanned struct {
	EventTime
	Peer   peer.ID      `json:"peer,omitempty"`
	Subnet netip.Prefix `json:"subnet,omitzero"`
}

// EventsLost reports that the consumer of [Node.Events] was too slow: so many
// events before the next one are missing.
type EventsLost struct {
	EventTime
	Count uint64 `json:"count"`
}

// EventsOption changes one [Node.Events]: [EventsWithState].
type EventsOption interface{ applyEvents(*eventsConfig) }

type eventsConfig struct{ state bool }

type eventsOption func(*eventsConfig)

func (o eventsOption) applyEvents(c *eventsConfig) { o(c) }

// EventsWithState makes the stream begin with the events that make up the present
// state, with the times at which they happened: [EventPeerConnected],
// [EventAddrsChanged], [EventReachabilityChanged], [EventRelayReserved] and
// [EventTopicPeerJoined] for what stands. Nothing between them and what follows is
// missing or told twice.
func EventsWithState() EventsOption {
	return eventsOption(func(c *eventsConfig) { c.state = true })
}

// eventBuffer is how many events wait for a consumer of Events.
const eventBuffer = 256

// watcher holds what tells of changes: events for users, signals for the node's
// own parts.
type watcher struct {
	change signal.Signal // something that WaitReady or bootstrap looks at may be different
	moved  signal.Signal // the node's own addresses changed
	hub    *watch.Hub[Event]
	bus    *watch.Bus
}

func newWatcher() *watcher { return &watcher{hub: watch.NewHub(eventBuffer, stateOf)} }

// follow begins to turn what the host's bus brings into events. gone is called
// for each peer that is not connected any more.
func (w *watcher) follow(group *lifecycle.Group, h *nethost.Host, self ma.Multiaddr, gone func(peer.ID), log *slog.Logger) (err error) {
	w.bus, err = watch.Follow(group, watch.Config{
		Host: h, Change: &w.change, Moved: &w.moved, Gone: gone, Log: log,
		Connected:    func(p nethost.Peer) { w.emit(EventPeerConnected{Peer: peerOf(p)}) },
		Disconnected: func(id peer.ID) { w.emit(EventPeerDisconnected{ID: id}) },
		Addrs:        func() { w.emit(EventAddrsChanged{Addrs: withID(self, h.Addrs())}) },
		Reachability: func(r network.Reachability) { w.emit(EventReachabilityChanged{Reachability: reachabilityOf(r)}) },
	})
	return err
}

// emit sends an event to whoever listens, with the present time.
func (w *watcher) emit(ev Event) { w.hub.Emit(ev.stamped(time.Now())) }

func (w *watcher) reachability() network.Reachability { return w.bus.Reachability() }

// topicLeft drops what EventsWithState would tell of a topic that the node left.
func (w *watcher) topicLeft(topic string) {
	w.hub.Forget(func(ev Event) bool {
		joined, ok := ev.(EventTopicPeerJoined)
		return ok && joined.Topic == topic
	})
}

// stateOf tells which part of a node's state an event is about, and whether it
// stands from now on or ends.
func stateOf(ev Event) (key any, stands bool) {
	type part struct{ what, id string }
	switch ev := ev.(type) {
	case EventPeerConnected:
		return part{"peer", string(ev.Peer.ID)}, true
	case EventPeerDisconnected:
		return part{"peer", string(ev.ID)}, false
	case EventAddrsChanged:
		return part{what: "addrs"}, true
	case EventReachabilityChanged:
		return part{what: "reachability"}, true
	case EventRelayReserved:
		return part{"relay", string(ev.ID)}, true
	case EventRelayLost:
		return part{"relay", string(ev.ID)}, false
	case EventTopicPeerJoined:
		return part{"topic " + ev.Topic, string(ev.ID)}, true
	case EventTopicPeerLeft:
		return part{"topic " + ev.Topic, string(ev.ID)}, false
	default:
		return nil, false
	}
}

// withID ends each address in self, the node's /p2p/<id>.
func withID(self ma.Multiaddr, list []ma.Multiaddr) []ma.Multiaddr {
	out := make([]ma.Multiaddr, len(list))
	for i, a := range list {
		out[i] = a.Encapsulate(self)
	}
	return out
}
