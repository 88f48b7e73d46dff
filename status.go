package p2pnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Status is a snapshot of a node, as [Node.Status] returns it. It shares
// nothing with the node and never changes. It marshals to JSON and back, except
// that errors keep only their text.
type Status struct {
	// ID is the node's peer ID.
	ID peer.ID `json:"id"`
	// Network is the DHT's protocol prefix, such as "/p2pnode".
	Network string `json:"network"`
	// Addrs are the announced addresses, each ending in /p2p/<id>.
	Addrs []ma.Multiaddr `json:"addrs,omitempty"`
	// ListenAddrs are the bound addresses.
	ListenAddrs []ma.Multiaddr `json:"listenAddrs,omitempty"`
	// ListenErrors are the failures that [WithPartialListen] tolerated.
	ListenErrors []*ListenError `json:"listenErrors,omitempty"`
	// Reachability says whether others can dial the node, as far as it knows.
	Reachability Reachability `json:"reachability,omitempty"`
	// AddrReachability says it for each address that others may dial, sorted by
	// address; nil without [WithAutoNAT], and until a peer is connected that can tell.
	AddrReachability []AddrReachability `json:"addrReachability,omitempty"`
	// PortMapping describes what the router forwards to the node; nil without
	// [WithPortMapping].
	PortMapping *PortMappingStatus `json:"portMapping,omitempty"`
	// Peers are the connected peers, sorted by ID.
	Peers []Peer `json:"peers,omitempty"`
	// DHT describes the DHT; nil without one.
	DHT *DHTStatus `json:"dht,omitempty"`
	// Topics are those in use, sorted by name.
	Topics []TopicStatus `json:"topics,omitempty"`
	// Scores are the pubsub scores of the connected peers, sorted by ID; nil without
	// [WithPeerScoring].
	Scores []PeerScore `json:"scores,omitempty"`
	// Bootstrap is the result of the last round of dialing; nil before the
	// first.
	Bootstrap *BootstrapRound `json:"bootstrap,omitempty"`
	// Relays are those of [WithAutoRelay] and [Node.AddRelays].
	Relays []RelayStatus `json:"relays,omitempty"`
	// RelayService describes the relay service; nil without [WithRelayService].
	RelayService *RelayServiceStatus `json:"relayService,omitempty"`
	// Persistent are the peers of [WithPersistentPeers] and
	// [Node.AddPersistentPeers].
	Persistent []PersistentStatus `json:"persistent,omitempty"`
	// PrivateNetwork is a fingerprint of the key of [WithPrivateNetwork], equal
	// on nodes with the same key; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`
	// Bans are those in force.
	Bans []Ban `json:"bans,omitempty"`
	// Allowed holds the peers of [WithAllowedPeers] and [Node.Allow]; nil if
	// all peers are allowed.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Refused is how many connections and streams each limit has refused.
	Refused Refused `json:"refused,omitzero"`
	// HandshakesFailed is how many incoming connections failed in their
	// handshake: from programs that do not speak libp2p, port scanners, or
	// peers without the key of [WithPrivateNetwork].
	HandshakesFailed uint64 `json:"handshakesFailed,omitempty"`
	// HandlersFailed is how many handlers of [Node.Handle] have returned an error
	// or panicked, of streams that their peer had not ended.
	HandlersFailed uint64 `json:"handlersFailed,omitempty"`
	// Warnings are about files of [WithDataDir] that were damaged and set
	// aside, or that could not be read and were left alone, and about a datastore
	// that does not keep what the node provides: its disk is full, for example.
	Warnings []string `json:"warnings,omitempty"`
	// Closed is true after [Node.Close].
	Closed bool `json:"closed"`
}

// PortMappingStatus describes the port mapping of [WithPortMapping].
type PortMappingStatus struct {
	// Router is true if a router on the LAN maps ports.
	Router bool `json:"router"`
	// Mappings are the ports that it forwards, as it says, sorted.
	Mappings []PortMapping `json:"mappings,omitempty"`
	// Missing is why it forwards none; empty if it does.
	Missing string `json:"missing,omitempty"`
}

// PortMapping is a port that the router forwards to the node, as it says.
type PortMapping struct {
	// Protocol is "udp" or "tcp".
	Protocol string `json:"protocol"`
	// Port is the one that the node listens on.
	Port uint16 `json:"port"`
	// External is the router's address and port.
	External netip.AddrPort `json:"external"`
	// Reachability says whether others can dial it, as peers have found out with
	// [WithAutoNAT].
	Reachability Reachability `json:"reachability,omitempty"`
}

// DHTStatus describes the DHT.
type DHTStatus struct {
	// Mode is the configured one.
	Mode DHTMode `json:"mode"`
	// Server is true while the node answers other nodes' queries.
	Server bool `json:"server"`
	// Peers is the size of the routing table.
	Peers int `json:"peers"`
	// Provides is how many CIDs the node provides. This and the next are what they
	// last were while the datastore does not answer, which Warnings of [Status] tells.
	Provides int `json:"provides"`
	// Pending is how many of them no peer has taken yet.
	Pending int `json:"pending"`
	// Values is how many records the node puts again, see [Node.PutValue],
	// [Node.PublishName] and [Node.PutSigned].
	Values int `json:"values"`
	// Advertises is how many namespaces the node advertises, see [Node.Advertise].
	Advertises int `json:"advertises"`
	// Unadvertised is how many of them no peer has taken yet.
	Unadvertised int `json:"unadvertised"`
	// NextReprovide is when the next region of the key space is announced again;
	// zero if nothing is provided.
	NextReprovide time.Time `json:"nextReprovide,omitzero"`
	// ProvideFailures is how many announcements in bulk no peer has taken since the
	// start, at least. They are tried again.
	ProvideFailures uint64 `json:"provideFailures,omitempty"`
	// Accelerated describes the client of [WithAcceleratedDHT]; nil without it.
	Accelerated *AcceleratedStatus `json:"accelerated,omitempty"`
}

// AcceleratedStatus describes the client of [WithAcceleratedDHT].
type AcceleratedStatus struct {
	// Ready is true while the node needs no lookups: the last crawl reached its end,
	// within the last hour, and found at least 20 servers.
	Ready bool `json:"ready"`
	// Peers is how many servers of the public DHT the last crawl found; 0 before the
	// first one ends.
	Peers int `json:"peers"`
}

// TopicStatus describes a topic that the node subscribes to, or has published
// to within the last 30 seconds.
type TopicStatus struct {
	Name string `json:"name"`
	// Peers are those that receive what the node publishes, which graylisted ones do
	// not.
	Peers []peer.ID `json:"peers,omitempty"`
	// Mesh are those of them with which the node exchanges messages in full.
	Mesh []peer.ID `json:"mesh,omitempty"`
	// Relayed are those of Peers to which there are only relayed connections.
	Relayed []peer.ID `json:"relayed,omitempty"`
	// Health says how well the node is connected on the topic.
	Health TopicHealth `json:"health"`
	// Subscriptions is how many this node has.
	Subscriptions int `json:"subscriptions"`
	// Dropped is how many messages they have dropped because their readers were too
	// slow.
	Dropped uint64 `json:"dropped,omitempty"`
	// Overrun is how many incoming messages were dropped unvalidated, because more
	// arrived than fit into [Limits].PubSub or the queue of 1,024, since the node
	// joined the topic. Other peers may have delivered the same messages.
	Overrun uint64 `json:"overrun,omitempty"`
	// Rejected and Ignored are how many messages of others validators have rejected
	// and ignored, and Panics over how many they have panicked, since the node joined
	// the topic. See [TopicValidator].
	Rejected uint64 `json:"rejected,omitempty"`
	Ignored  uint64 `json:"ignored,omitempty"`
	Panics   uint64 `json:"panics,omitempty"`
}

// TopicHealth says how well a node is connected on a topic.
type TopicHealth string

// The kinds of health.
const (
	// TopicHealthNone ("none"): messages reach nobody.
	TopicHealthNone TopicHealth = "none"
	// TopicHealthThin ("thin"): messages reach a peer, but the mesh of the topic has
	// neither all of its known peers nor 5 of them.
	TopicHealthThin TopicHealth = "thin"
	// TopicHealthGood ("good"): it has; or the node is not subscribed, and messages
	// reach a peer.
	TopicHealthGood TopicHealth = "good"
)

// topicStatus converts the state of a topic; connected are the peers of the node.
func topicStatus(t gossip.Topic, connected []Peer) TopicStatus {
	var relayed []peer.ID
	for _, p := range connected {
		if p.Relayed && slices.Contains(t.Peers, p.ID) {
			relayed = append(relayed, p.ID)
		}
	}
	return TopicStatus{
		Relayed: relayed,
		Name:    t.Name, Peers: t.Peers, Mesh: t.Mesh, Health: TopicHealth(t.Health), Subscriptions: t.Subscriptions,
		Dropped: t.Dropped, Overrun: t.Overrun, Rejected: t.Rejected, Ignored: t.Ignored, Panics: t.Panics,
	}
}

// Peer describes a connected peer, as [Node.Peer] and [Node.Peers] return it.
type Peer struct {
	// ID is the peer's ID.
	ID peer.ID `json:"id"`
	// Addr is the remote address of the best connection: direct before relayed,
	// then the oldest.
	Addr ma.Multiaddr `json:"addr"`
	// Transport is that of the best connection, such as "quic-v1", "tcp" or
	// "p2p-circuit".
	Transport string `json:"transport"`
	// Relayed is true if there is no direct connection.
	Relayed bool `json:"relayed"`
	// Limited is true if there are only relayed connections with limits, which topics
	// do not use without [WithRelayedPubSub].
	Limited bool `json:"limited,omitempty"`
	// Direction is that of the best connection, "inbound" or "outbound".
	Direction string `json:"direction"`
	// Latency is a moving average of the round-trip time, in nanoseconds in
	// JSON; 0 before it is measured.
	Latency time.Duration `json:"latency,omitempty"`
	// Since is when the best connection was opened.
	Since time.Time `json:"since"`
	// LastSeen is when the best connection was opened, or when the peer last
	// answered [Node.Ping], [WithKeepAlive] or another check of its connections,
	// whichever is later.
	LastSeen time.Time `json:"lastSeen"`
	// Agent is the peer's user agent.
	Agent string `json:"agent,omitempty"`
	// Protocols are those that the peer says it speaks, sorted; empty until it
	// is identified.
	Protocols []protocol.ID `json:"protocols,omitempty"`
}

// peerOf converts a peer of the host.
func peerOf(p nethost.Peer) Peer {
	return Peer{
		ID: p.ID, Addr: p.Addr, Transport: p.Transport, Relayed: p.Relayed, Limited: p.Limited,
		Direction: strings.ToLower(p.Direction.String()), Latency: p.Latency,
		Since: p.Since, LastSeen: p.LastSeen, Agent: p.Agent, Protocols: p.Protocols,
	}
}

func peersOf(h *nethost.Host) []Peer {
	list := h.Peers()
	out := make([]Peer, len(list))
	for i, p := range list {
		out[i] = peerOf(p)
	}
	return out
}

// ListenError reports why the node does not listen on an address. It matches
// syscall.EADDRINUSE if the port is in use, on every system.
type ListenError struct {
	// Addr is the address that did not bind.
	Addr ma.Multiaddr
	// Err is why.
	Err error
}

// Error returns the address and the reason.
func (e *ListenError) Error() string {
	return fmt.Sprintf("cannot listen on %s: %s", e.Addr, causes.Listen(e.Addr, e.Err))
}

// Is reports whether target is syscall.EADDRINUSE and the port is in use.
func (e *ListenError) Is(target error) bool {
	return target == syscall.EADDRINUSE && causes.InUse(e.Err)
}

// Unwrap returns Err.
func (e *ListenError) Unwrap() error { return e.Err }

type listenErrorJSON struct {
	Addr ma.Multiaddr `json:"addr"`
	Err  string       `json:"err"`
}

// MarshalJSON implements [json.Marshaler]: the address and the error's text.
func (e *ListenError) MarshalJSON() ([]byte, error) {
	why := ""
	if e.Err != nil {
		why = causes.Listen(e.Addr, e.Err)
	}
	return json.Marshal(listenErrorJSON{e.Addr, why})
}

// UnmarshalJSON implements [json.Unmarshaler]. Err is then a plain error with
// the text, matching no other.
func (e *ListenError) UnmarshalJSON(data []byte) error {
	var in listenErrorJSON
	err := json.Unmarshal(data, &in)
	*e = ListenError{in.Addr, textError(in.Err)}
	return err
}

// BootstrapRound is the result of one round of dialing bootstrap peers, along
// with some saved ones. While the node has too few peers, one round follows
// another; with enough, there is a round when a missing bootstrap peer is due.
type BootstrapRound struct {
	// At is when the round began.
	At time.Time `json:"at"`
	// Took is how long it took; nanoseconds in JSON.
	Took time.Duration `json:"took"`
	// Connected are the peers of the round that are connected after it.
	Connected []peer.ID `json:"connected"`
	// Failed are those that are not, and why.
	Failed []DialFailure `json:"failed"`
	// Peers is how many peers of any kind are connected after the round.
	Peers int `json:"peers"`
}

func newBootstrapRound(r *keeper.Round) *BootstrapRound {
	if r == nil {
		return nil
	}
	out := &BootstrapRound{At: r.At, Took: r.Took, Connected: slices.Clone(r.Connected), Failed: []DialFailure{}, Peers: r.Peers}
	for _, f := range r.Failed {
		out.Failed = append(out.Failed, DialFailure(f))
	}
	return out
}

// DialFailure is a peer that could not be reached. Its JSON form holds the
// error's text, so an Err read from JSON matches no other.
type DialFailure struct {
	// ID is the peer that was dialed; empty for a name of [WithBootstrapDNS], which
	// Err contains.
	ID peer.ID
	// Err is why it was not reached.
	Err error
}

type dialFailureJSON struct {
	ID  peer.ID `json:"id,omitempty"`
	Err string  `json:"err,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (f DialFailure) MarshalJSON() ([]byte, error) {
	out := dialFailureJSON{ID: f.ID}
	if f.Err != nil {
		out.Err = f.Err.Error()
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (f *DialFailure) UnmarshalJSON(b []byte) error {
	var in dialFailureJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*f = DialFailure{ID: in.ID}
	if in.Err != "" {
		f.Err = errors.New(in.Err)
	}
	return nil
}

// PersistentStatus describes a peer of [WithPersistentPeers] or
// [Node.AddPersistentPeers]. Failures, LastError and NextDial are zero while
// the peer is connected.
type PersistentStatus struct {
	// ID is the persistent peer.
	ID peer.ID `json:"id"`
	// Connected is true while there is a connection, direct or relayed.
	Connected bool `json:"connected"`
	// Failures is how many dials in a row have failed, or led to a connection
	// that closed within a minute.
	Failures int `json:"failures,omitempty"`
	// LastError is why the last of them failed.
	LastError string `json:"lastError,omitempty"`
	// NextDial is when the node dials next.
	NextDial time.Time `json:"nextDial,omitzero"`
}

func persistentStatus(k *keeper.Keeper) []PersistentStatus {
	var list []PersistentStatus
	for _, s := range k.Persistent() {
		p := PersistentStatus{ID: s.ID, Connected: s.Connected, Failures: s.Failures, NextDial: s.NextDial}
		if s.LastError != nil {
			p.LastError = s.LastError.Error()
		}
		list = append(list, p)
	}
	return list
}

// Ban is a ban of a peer or a subnet: one of the two is set. See [Node.BanPeer]
// and [Node.BanSubnet].
type Ban struct {
	// Peer is the banned peer.
	Peer peer.ID `json:"peer,omitempty"`
	// Subnet is the banned subnet, with no bits set beyond its length.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// Until is when the ban ends; the zero time means never.
	Until time.Time `json:"until,omitzero"`
	// Reason is up to 500 bytes of printable text.
	Reason string `json:"reason,omitempty"`
}

func bansOf(list *access.List) []Ban {
	var out []Ban
	for _, b := range list.Bans() {
		out = append(out, Ban(b))
	}
	return out
}
