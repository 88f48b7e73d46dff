package p2pnode

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/hub"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
	"github.com/go-p2pnode/p2pnode/internal/watch"
)

// Event is one of the Event… types of this package: switch on it. Its JSON form
// has a "type", such as "peer-connected", and the time in "at";
// [UnmarshalEvent] reads it.
type Event interface {
	// When returns the time of the report.
	When() time.Time
	json.Marshaler

	stamped(time.Time) Event
}

// EventTime is embedded in all events.
type EventTime struct {
	// At is when the event was reported.
	At time.Time `json:"at"`
}

// When returns At.
func (t EventTime) When() time.Time { return t.At }

// EventPeerConnected reports that the first connection to a peer is open and
// the peer is identified.
type EventPeerConnected struct {
	EventTime
	Peer Peer `json:"peer"`
}

// EventPeerDisconnected reports that the last connection to a peer has closed.
// The end of a process shows at once over TCP, and over QUIC after 15 to 45
// seconds, unless it closed its connections; [WithKeepAlive] notices sooner.
type EventPeerDisconnected struct {
	EventTime
	ID peer.ID `json:"id"`
}

// EventPathChanged reports that a connected peer has another best connection than
// before, which new streams take: a direct one after a hole was punched, for example,
// or a relayed one after the direct one closed. See [Peer].
type EventPathChanged struct {
	EventTime
	// Peer describes the peer by its best connection of now.
	Peer Peer `json:"peer"`
	// Was is the remote address of the best connection before; that of a relayed
	// one has /p2p-circuit.
	Was ma.Multiaddr `json:"was"`
}

// EventPeerFound reports a peer that no option or call has added. Its source is:
//   - "mdns": multicast DNS found it, and the node dials it. It is not reported
//     again while the node remembers it.
//   - "saved": it was connected when the node last ran with its [WithDataDir],
//     and the node has reached it again.
//   - "dns": it answered at a name of [WithBootstrapDNS], and the node dials it.
//   - "rendezvous": [Node.FindPeers] yielded it, and it is not connected.
//     Dialing it is up to the caller.
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

// EventReachabilityChanged reports that the node found out, or that
// [WithReachability] set, whether others can dial it.
type EventReachabilityChanged struct {
	EventTime
	Reachability Reachability `json:"reachability"`
}

// EventAddrReachabilityChanged reports what peers found out about an address of the
// node, see [WithAutoNAT]: whether they can dial it.
type EventAddrReachabilityChanged struct {
	EventTime
	// Addr is the address, without /p2p/<id>.
	Addr         ma.Multiaddr `json:"addr"`
	Reachability Reachability `json:"reachability"`
}

// EventPortMapped reports that the router has agreed to forward a port to the node; see
// [WithPortMapping].
type EventPortMapped struct {
	EventTime
	// Protocol is "udp" or "tcp".
	Protocol string `json:"protocol"`
	// Port is the one that the node listens on.
	Port uint16 `json:"port"`
	// External is the router's address and port.
	External netip.AddrPort `json:"external"`
}

// EventPortUnmapped reports that the router no longer forwards a port to the node, or
// that the node has left its LAN. The node keeps trying.
type EventPortUnmapped struct {
	EventTime
	// Protocol is "udp" or "tcp".
	Protocol string `json:"protocol"`
	// Port is the one that the node listens on.
	Port uint16 `json:"port"`
	// External is the router's address and port.
	External netip.AddrPort `json:"external"`
}

// EventDHTModeChanged reports that the node starts or stops answering the DHT queries
// of other nodes; see [WithDHTMode].
type EventDHTModeChanged struct {
	EventTime
	// Server is true if the node answers them now.
	Server bool `json:"server"`
}

// EventBootstrapRound reports the result of a round of dialing bootstrap and
// saved peers.
type EventBootstrapRound struct {
	EventTime
	Round BootstrapRound `json:"round"`
}

// EventRelayReserved reports that the node has a reservation at a relay of
// [WithAutoRelay] or [WithRelayDiscovery]: others can reach it through that relay.
type EventRelayReserved struct {
	EventTime
	ID peer.ID `json:"id"`
	// Source is how the node came to know the relay.
	Source RelaySource `json:"source"`
}

// EventRelayLost reports that a reservation ended. The node keeps trying to get
// it back, or replaces a relay that it had found.
type EventRelayLost struct {
	EventTime
	ID peer.ID `json:"id"`
	// Source is how the node came to know the relay.
	Source RelaySource `json:"source"`
}

// EventHolePunched reports the result of an attempt to connect directly to a
// peer that is connected through a relay. There are at most three per
// connection.
type EventHolePunched struct {
	EventTime
	ID peer.ID `json:"id"`
	// Took is how long the attempt took; nanoseconds in JSON.
	Took time.Duration `json:"took"`
	// Err is nil if the peer is now connected directly. JSON has its text, "err".
	Err error `json:"-"`
}

// EventProvided reports the result of announcing a single CID, by [Node.Provide]
// or by the node itself, which announces up to 32 CIDs one by one when they are
// pending or when it has peers again after it had none; then the CID is of version
// 1 with the codec raw. What is announced in bulk, every 22 hours or by
// [Node.ProvideMany], is not reported one by one.
type EventProvided struct {
	EventTime
	CID cid.Cid `json:"cid"`
	// Took is how long the attempt took; nanoseconds in JSON.
	Took time.Duration `json:"took"`
	// Err is nil if another peer holds the record. JSON has its text, "err".
	Err error `json:"-"`
}

// EventProvideProgress reports how far announcing what is pending has come: every 10
// seconds while CIDs are announced in bulk, and at the end of each attempt.
type EventProvideProgress struct {
	EventTime
	// Keys is how many CIDs the node provides.
	Keys int `json:"keys"`
	// Pending is how many of them no peer has taken yet.
	Pending int `json:"pending"`
}

// EventTopicPeerJoined reports that from now on messages to a topic that the
// node uses reach a peer: it is subscribed, and a stream to it is open. Peers
// that are subscribed when the node joins the topic are reported too.
type EventTopicPeerJoined struct {
	EventTime
	Topic string  `json:"topic"`
	ID    peer.ID `json:"id"`
}

// EventTopicPeerLeft reports that a peer of [EventTopicPeerJoined] unsubscribed
// or disconnected. Nothing is reported when the node itself leaves the topic.
type EventTopicPeerLeft struct {
	EventTime
	Topic string  `json:"topic"`
	ID    peer.ID `json:"id"`
}

// EventTopicHealth reports that the health of a topic that the node uses has
// changed; it begins as [TopicHealthNone]. Nothing is reported when the node
// leaves the topic.
type EventTopicHealth struct {
	EventTime
	Topic  string      `json:"topic"`
	Health TopicHealth `json:"health"`
}

// EventPeerDeaf reports that a connected peer has closed its stream of pubsub
// messages and not opened another for 15 seconds, so that nothing it publishes
// arrives. The node closes the connection and dials the peer again, at most
// once in 10 minutes; meanwhile [Node.Diagnose] returns a [FindingDeafPeer].
type EventPeerDeaf struct {
	EventTime
	ID peer.ID `json:"id"`
}

// EventPeerGraylisted reports that the pubsub score of a peer has fallen below
// -100: the node ignores what it sends, and sends it nothing. It stays connected; see
// [Node.BanPeer]. The score is at most a second old.
type EventPeerGraylisted struct {
	EventTime
	ID    peer.ID `json:"id"`
	Score float64 `json:"score"`
}

// EventPeerForgiven reports that a peer of [EventPeerGraylisted] is no longer ignored,
// or has disconnected.
type EventPeerForgiven struct {
	EventTime
	ID    peer.ID `json:"id"`
	Score float64 `json:"score"`
}

// EventLimitReached reports that a limit of [WithLimits] refused a connection, a
// stream, a provider record or a value record: the first time, and then at most once
// a minute. The Memory limit is not reported; [Status] counts what it refuses.
type EventLimitReached struct {
	EventTime
	// Limit is the field of [Limits]; "files" for the process's limit of open
	// files, or "services" for those of libp2p's own protocols.
	Limit string `json:"limit"`
	// Refused is how much the limit has refused since the start.
	Refused uint64 `json:"refused"`
}

// EventBanned reports that a peer or a subnet was banned.
type EventBanned struct {
	EventTime
	Ban Ban `json:"ban"`
}

// EventUnbanned reports that [Node.UnbanPeer] or [Node.UnbanSubnet] ended a
// ban. One of the two fields is set. A ban that runs out is not reported.
type EventUnbanned struct {
	EventTime
	Peer   peer.ID      `json:"peer,omitempty"`
	Subnet netip.Prefix `json:"subnet,omitzero"`
}

// EventsLost reports that the consumer of [Node.Events] was too slow, and how
// many events before the next one it missed.
type EventsLost struct {
	EventTime
	Count uint64 `json:"count"`
}

// EventsOption configures a call of [Node.Events]: [EventsWithState].
type EventsOption interface{ applyEvents(*eventsConfig) }

type eventsConfig struct{ state bool }

type eventsOption func(*eventsConfig)

func (o eventsOption) applyEvents(c *eventsConfig) { o(c) }

// EventsWithState makes the stream begin with the events that make up the
// current state, with the times at which they happened: [EventPeerFound] of each peer
// of the LAN that the node remembers, [EventPeerConnected], the last
// [EventPathChanged] of each connected peer, [EventAddrsChanged],
// [EventReachabilityChanged], [EventAddrReachabilityChanged], [EventPortMapped],
// [EventDHTModeChanged], [EventRelayReserved] and [EventTopicPeerJoined]. Between
// them and the events that follow, nothing is missing or repeated.
func EventsWithState() EventsOption {
	return eventsOption(func(c *eventsConfig) { c.state = true })
}

// eventBuffer is how many events wait for a consumer of [Node.Events].
const eventBuffer = 256

// watcher reports changes: by events to users, by signals to the node's parts.
type watcher struct {
	change signal.Signal // something that WaitReady or the keeper looks at may have changed
	moved  signal.Signal // the node's own addresses changed
	hub    *hub.Hub[Event]
	bus    *watch.Bus
	found  bool // reachability is found out by internal/reach, not told by the bus
}

func newWatcher() *watcher { return &watcher{hub: hub.New(eventBuffer, stateOf)} }

// follow starts turning the host's bus events into this package's. gone is
// called for each peer that disconnected, and another for each that has opened another
// connection.
func (w *watcher) follow(group *lifecycle.Group, h *nethost.Host, self ma.Multiaddr, gone, another func(peer.ID), log *slog.Logger) (err error) {
	reachable := func(r network.Reachability) { w.emit(EventReachabilityChanged{Reachability: reachabilityOf(r)}) }
	if w.found {
		reachable = nil
	}
	w.bus, err = watch.Follow(group, watch.Config{
		Host: h, Change: &w.change, Moved: &w.moved, Gone: gone, Log: log,
		Connected: func(p nethost.Peer) { w.emit(EventPeerConnected{Peer: peerOf(p)}) },
		Rerouted:  func(p nethost.Peer, was ma.Multiaddr) { w.emit(EventPathChanged{Peer: peerOf(p), Was: was}) },
		Disconnected: func(id peer.ID) {
			w.hub.Drop(statePart{"path", string(id)})
			w.emit(EventPeerDisconnected{ID: id})
		},
		Another:      another,
		Addrs:        func() { w.emit(EventAddrsChanged{Addrs: withID(self, h.Addrs())}) },
		Reachability: reachable,
	})
	return err
}

// emit sends an event, stamped with the current time, to all consumers.
func (w *watcher) emit(ev Event) { w.hub.Emit(ev.stamped(time.Now())) }

// topicLeft drops what EventsWithState would report of a topic that the node
// left.
func (w *watcher) topicLeft(topic string) {
	w.hub.Forget(func(ev Event) bool {
		joined, ok := ev.(EventTopicPeerJoined)
		return ok && joined.Topic == topic
	})
}

// statePart names a part of a node's state.
type statePart struct{ what, id string }

// stateOf returns which part of a node's state an event is about, and whether
// that part is now present or gone.
func stateOf(ev Event) (key any, present bool) {
	switch ev := ev.(type) {
	case EventPeerFound:
		if ev.Source != "mdns" {
			return nil, false
		}
		return statePart{"found", string(ev.ID)}, true
	case EventPeerConnected:
		return statePart{"peer", string(ev.Peer.ID)}, true
	case EventPathChanged:
		return statePart{"path", string(ev.Peer.ID)}, true
	case EventPeerDisconnected:
		return statePart{"peer", string(ev.ID)}, false
	case EventAddrsChanged:
		return statePart{what: "addrs"}, true
	case EventReachabilityChanged:
		return statePart{what: "reachability"}, true
	case EventAddrReachabilityChanged:
		return statePart{"addr", string(ev.Addr.Bytes())}, ev.Reachability != ReachabilityUnknown
	case EventPortMapped:
		return statePart{"port " + ev.Protocol, strconv.Itoa(int(ev.Port))}, true
	case EventPortUnmapped:
		return statePart{"port " + ev.Protocol, strconv.Itoa(int(ev.Port))}, false
	case EventDHTModeChanged:
		return statePart{what: "dht"}, true
	case EventRelayReserved:
		return statePart{"relay", string(ev.ID)}, true
	case EventRelayLost:
		return statePart{"relay", string(ev.ID)}, false
	case EventTopicPeerJoined:
		return statePart{"topic " + ev.Topic, string(ev.ID)}, true
	case EventTopicPeerLeft:
		return statePart{"topic " + ev.Topic, string(ev.ID)}, false
	default:
		return nil, false
	}
}

// withID appends self, the node's /p2p/<id>, to each address.
func withID(self ma.Multiaddr, list []ma.Multiaddr) []ma.Multiaddr {
	out := make([]ma.Multiaddr, len(list))
	for i, a := range list {
		out[i] = a.Encapsulate(self)
	}
	return out
}
