package p2pnode

import (
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Status is a snapshot of a node at one moment. It shares nothing with the
// node, never changes, and can be marshalled to JSON.
type Status struct {
	ID           peer.ID        `json:"id"`
	Network      string         `json:"network"` // the DHT's protocol prefix, such as "/p2pnode"
	Addrs        []ma.Multiaddr `json:"addrs"`   // announced, each ending in /p2p/<id>
	ListenAddrs  []ma.Multiaddr `json:"listenAddrs"`
	ListenErrors []string       `json:"listenErrors,omitempty"` // what WithPartialListen forgave
	Reachability string         `json:"reachability"`           // "Unknown", "Public" or "Private"
	Peers        []Peer         `json:"peers"`
	DHT          *DHTStatus     `json:"dht,omitempty"`    // nil without a DHT
	Topics       []TopicStatus  `json:"topics,omitempty"` // those joined, sorted by name
	// Bootstrap is the result of the last round; nil before the first, and
	// without bootstrap peers.
	Bootstrap *BootstrapRound `json:"bootstrap,omitempty"`
	Relays    []RelayStatus   `json:"relays,omitempty"` // those of WithAutoRelay
	// Persistent are the peers of WithPersistentPeers and AddPersistentPeers.
	Persistent []PersistentStatus `json:"persistent,omitempty"`
	// PrivateNetwork is a fingerprint of the key of WithPrivateNetwork, equal on
	// nodes with the same key; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`
	Bans           []Ban  `json:"bans,omitempty"`
	// Allowed are the peers of WithAllowedPeers and Allow; nil when all are.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Refused is how many connections and streams each limit has refused.
	Refused Refused `json:"refused,omitzero"`
	// HandshakesFailed is how many incoming connections ended before it was
	// known whose they are: by strangers to libp2p, port scanners, or peers
	// without the key of WithPrivateNetwork.
	HandshakesFailed uint64 `json:"handshakesFailed,omitempty"`
	// Warnings are files of WithDataDir that were damaged and set aside, or that
	// could not be read and were left as they are.
	Warnings []string `json:"warnings,omitempty"`
	Closed   bool     `json:"closed"`
}

// DHTStatus describes the DHT.
type DHTStatus struct {
	Mode   DHTMode `json:"mode"`   // as configured
	Server bool    `json:"server"` // it answers the queries of others now
	Peers  int     `json:"peers"`  // in the routing table
}

// TopicStatus describes a topic that the node subscribes to, or has published to
// within the last 30 seconds.
type TopicStatus struct {
	Name          string    `json:"name"`
	Peers         []peer.ID `json:"peers"`         // others that get what the node publishes
	Subscriptions int       `json:"subscriptions"` // of this node
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
		Reachability: n.watch.reachability().String(),
		Peers:        peersOf(n.base),
	}
	s.PrivateNetwork = fingerprint(n.cfg.psk)
	s.Warnings = warnings(n)
	for _, e := range n.listenErrors {
		s.ListenErrors = append(s.ListenErrors, e.Error())
	}
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
