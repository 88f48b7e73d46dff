package p2pnode

import (
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Status is a snapshot of a node at one moment. It shares nothing with the
// node and never changes. Its JSON form reads back to an equal Status, but for
// errors, of which the text stays.
type Status struct {
	ID peer.ID `json:"id"`
	// Network is the DHT's protocol prefix, such as "/p2pnode".
	Network string `json:"network"`
	// Addrs are those announced, each ending in /p2p/<id>.
	Addrs []ma.Multiaddr `json:"addrs,omitempty"`
	// ListenAddrs are those bound.
	ListenAddrs []ma.Multiaddr `json:"listenAddrs,omitempty"`
	// ListenErrors are what [WithPartialListen] forgave.
	ListenErrors []*ListenError `json:"listenErrors,omitempty"`
	Reachability Reachability   `json:"reachability,omitempty"`
	// Peers are those connected, sorted by ID.
	Peers []Peer `json:"peers,omitempty"`
	// DHT is nil without one.
	DHT *DHTStatus `json:"dht,omitempty"`
	// Topics are those in use, sorted by name.
	Topics []TopicStatus `json:"topics,omitempty"`
	// Bootstrap is the result of the last round; nil before the first.
	Bootstrap *BootstrapRound `json:"bootstrap,omitempty"`
	// Relays are those of [WithAutoRelay] and [Node.AddRelays].
	Relays []RelayStatus `json:"relays,omitempty"`
	// Persistent are the peers of [WithPersistentPeers] and
	// [Node.AddPersistentPeers].
	Persistent []PersistentStatus `json:"persistent,omitempty"`
	// PrivateNetwork is a fingerprint of the key of [WithPrivateNetwork], equal
	// on nodes with the same key; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`
	// Bans are those that hold.
	Bans []Ban `json:"bans,omitempty"`
	// Allowed are the peers of [WithAllowedPeers] and [Node.Allow]; nil when all
	// are.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Refused is how many connections and streams each limit has refused.
	Refused Refused `json:"refused,omitzero"`
	// HandshakesFailed is how many incoming connections ended before it was
	// known whose they were: by strangers to libp2p, port scanners, or peers
	// without the key of WithPrivateNetwork.
	HandshakesFailed uint64 `json:"handshakesFailed,omitempty"`
	// Warnings are about files of [WithDataDir] that were damaged and set aside,
	// or that could not be read and were left as they are.
	Warnings []string `json:"warnings,omitempty"`
	Closed   bool     `json:"closed"`
}

// DHTStatus describes the DHT.
type DHTStatus struct {
	// Mode is as configured.
	Mode DHTMode `json:"mode"`
	// Server is set while the node answers the queries of others.
	Server bool `json:"server"`
	// Peers is how many are in the routing table.
	Peers int `json:"peers"`
}

// TopicStatus describes a topic that the node subscribes to, or has published to
// within the last 30 seconds.
type TopicStatus struct {
	Name string `json:"name"`
	// Peers are the others that get what the node publishes.
	Peers []peer.ID `json:"peers,omitempty"`
	// Subscriptions is how many this node has.
	Subscriptions int `json:"subscriptions"`
}

// Status returns a snapshot. After Close it holds the ID and Closed alone.
func (n *Node) Status() Status {
	if n.closed() {
		return Status{ID: n.id, Closed: true}
	}
	s := Status{
		ID:           n.id,
		Network:      n.cfg.protocolPrefix(),
		Addrs:        n.Addrs(),
		ListenAddrs:  n.base.ListenAddrs(),
		Reachability: reachabilityOf(n.watch.reachability()),
		Peers:        peersOf(n.base),
	}
	s.PrivateNetwork = fingerprint(n.cfg.psk)
	s.Warnings = warnings(n)
	s.ListenErrors = slices.Clone(n.listenErrors)
	if n.dht != nil {
		s.DHT = &DHTStatus{Mode: n.cfg.effectiveDHTMode(), Server: n.dht.Serves(), Peers: n.dht.Size()}
	}
	if n.pubsub != nil {
		for _, t := range n.pubsub.Topics() {
			s.Topics = append(s.Topics, TopicStatus{Name: t.Name, Peers: t.Peers, Subscriptions: t.Subscriptions})
		}
	}
	s.Bootstrap = newBootstrapRound(n.keeper.Last())
	s.Persistent = persistentStatus(n.keeper)
	s.Bans = bansOf(n.access)
	s.Allowed = n.access.Allowed()
	s.Refused, s.HandshakesFailed = refusedOf(n), handshakesFailed(n)
	s.Relays = relayStatus(n.relay)
	return s
}

// warnings are about the files of the data directory.
func warnings(n *Node) []string {
	if n.data == nil {
		return nil
	}
	return slices.Concat(n.keeper.Warnings(), n.access.Warnings())
}

// fail adds the package's prefix to an error of a method, once. Whatever a
// closing node's parts say, the cause is that it closes.
func (n *Node) fail(err error) error {
	if n.closed() || errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("p2pnode: %w", err)
}

// refusedOf is what limits have refused: nothing when somebody else's resource
// manager counts.
func refusedOf(n *Node) Refused {
	if n.limits == nil {
		return Refused{}
	}
	return Refused(n.limits.Counts())
}

func handshakesFailed(n *Node) uint64 {
	if n.limits == nil {
		return 0
	}
	return n.limits.Handshakes().Failed
}
