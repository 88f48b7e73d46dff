package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
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
	s.Warnings = n.warnings()
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
	if r := n.boot.lastRound(); r != nil {
		s.Bootstrap = r.clone()
	}
	s.Persistent = n.persistent.list()
	s.Bans = bansOf(n.access)
	s.Allowed = n.access.Allowed()
	if n.limits != nil {
		s.Refused = Refused(n.limits.Counts())
		s.HandshakesFailed = n.limits.Handshakes().Failed
	}
	s.Relays = n.relayStatus()
	return s
}

// warnings are about the files of the data directory.
func (n *Node) warnings() []string {
	if n.data == nil {
		return nil
	}
	return slices.Concat(n.data.warnings, n.access.Warnings())
}

// Stage is one thing that WaitReady can wait for.
type Stage string

// The stages of WaitReady; StageTopic makes more.
const (
	// StageListening: the node listens on an address.
	StageListening Stage = "listening"
	// StageConnected: as many peers are connected as WithMinPeers asks for, at
	// least one.
	StageConnected Stage = "connected"
	// StageRouting: somebody is in the DHT's routing table.
	StageRouting Stage = "routing"
	// StageReachable: others can dial the node. It is known to be public, or a
	// reservation at a relay stands.
	StageReachable Stage = "reachable"
)

// topicStage is what the stages of StageTopic begin with.
const topicStage = "topic "

// StageTopic is the stage in which the node has joined a topic, and a message
// that it publishes has somebody to go to.
func StageTopic(topic string) Stage { return Stage(topicStage + topic) }

// WaitReady waits until the node is of use: it listens (unless
// WithoutListening), as many peers as WithMinPeers asks for are connected, and
// with bootstrap peers, persistent peers or mDNS somebody is in the DHT's
// routing table. A node that was told nothing about others is ready when it
// listens. With stages it waits for those instead, all of them.
//
// When ctx ends first it returns ErrNotReady, with ctx's error and, for each
// stage, what is still missing. A stage that cannot come, because the part is
// off, is ErrDisabled at once. It returns ErrClosed when the node is closed.
func (n *Node) WaitReady(ctx context.Context, stages ...Stage) error {
	if err := n.checkStages(stages); err != nil {
		return err
	}
	for {
		if n.closed() {
			return ErrClosed
		}
		change := n.watch.change.Wait()
		missing := n.missing(stages)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-change:
		case <-n.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			if now := n.missing(stages); len(now) > 0 {
				missing = now
			}
			return fmt.Errorf("%w (%w): %s", ErrNotReady, ctx.Err(), strings.Join(missing, "; "))
		}
	}
}

// checkStages rejects stages that can never be reached.
func (n *Node) checkStages(stages []Stage) error {
	for _, s := range stages {
		topic, isTopic := strings.CutPrefix(string(s), topicStage)
		switch {
		case s == StageListening:
			if n.cfg.noListen {
				return fmt.Errorf("p2pnode: wait for %s: %w", s, disabled("listening", "leave WithoutListening out"))
			}
		case s == StageRouting:
			if n.dht == nil {
				return fmt.Errorf("p2pnode: wait for %s: %w", s, disabled("the DHT", "leave WithoutDHT out"))
			}
		case isTopic && topic != "":
			if n.pubsub == nil {
				return fmt.Errorf("p2pnode: wait for %s: %w", s, disabled("pubsub", "leave WithoutPubSub out"))
			}
		case s == StageConnected, s == StageReachable:
		default:
			return fmt.Errorf("p2pnode: there is no stage %q to wait for; use one of the constants, or StageTopic", s)
		}
	}
	return nil
}

// missing says in words what keeps the node from being ready, or from the
// stages when there are any.
func (n *Node) missing(stages []Stage) []string {
	if len(stages) == 0 {
		return n.missingByDefault()
	}
	var list []string
	for _, s := range stages {
		if why := n.missingFor(s); why != "" {
			list = append(list, string(s)+": "+why)
		}
	}
	return list
}

// missingFor says what keeps the node from a stage, "" when nothing does.
func (n *Node) missingFor(s Stage) string {
	switch s {
	case StageListening:
		if len(n.base.ListenAddrs()) == 0 {
			return "not listening"
		}
	case StageConnected:
		return n.fewPeers(max(n.cfg.effectiveMinPeers(), 1))
	case StageRouting:
		if n.dht.Size() == 0 {
			return n.emptyTable()
		}
	case StageReachable:
		if n.watch.reachability() == network.ReachabilityPublic {
			return ""
		}
		for _, r := range n.relay.Relays() {
			if n.relay.Reserved(r.ID) {
				return ""
			}
		}
		why := fmt.Sprintf("reachability is %s", n.watch.reachability())
		if len(n.relay.Relays()) == 0 {
			return why + ", and no relay is named; name one with WithAutoRelay, or say WithReachability if you know better"
		}
		for _, r := range n.relayStatus() {
			why += fmt.Sprintf("; relay %s: %s", r.ID, r.Missing)
		}
		return why
	default:
		topic := strings.TrimPrefix(string(s), topicStage)
		peers, joined := n.pubsub.Reach(topic)
		switch {
		case !joined:
			return "the node has not joined it; call Subscribe or Publish"
		case peers == 0:
			return "nobody else is known to be subscribed"
		}
	}
	return ""
}

// fewPeers says how many peers lack to a number, "" when none do.
func (n *Node) fewPeers(want int) string {
	peers := n.base.PeerCount()
	if peers >= want {
		return ""
	}
	return fmt.Sprintf("%d of at least %d peers connected%s%s", peers, want, n.boot.complaint(), n.persistent.complaint())
}

// missingByDefault is missing without stages.
func (n *Node) missingByDefault() []string {
	var list []string
	if !n.cfg.noListen && len(n.base.ListenAddrs()) == 0 {
		list = append(list, "not listening")
	}
	if why := n.fewPeers(n.cfg.effectiveMinPeers()); why != "" {
		list = append(list, why)
	}
	if n.dht != nil && n.cfg.looksForPeers() && n.dht.Size() == 0 {
		if n.base.PeerCount() == 0 {
			list = append(list, "the DHT's routing table is empty")
		} else {
			list = append(list, n.emptyTable())
		}
	}
	return list
}

// hasEnough is what bootstrap works for: the minimum of peers, and somebody
// in the routing table.
func (n *Node) hasEnough() bool {
	return n.base.PeerCount() >= n.cfg.effectiveMinPeers() && (n.dht == nil || n.dht.Size() > 0)
}

// fail adds the package's prefix to an error of a method, once. Whatever a
// closing node's parts say, the cause is that it closes.
func (n *Node) fail(err error) error {
	if n.closed() || errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("p2pnode: %w", err)
}
