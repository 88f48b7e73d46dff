package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	// Warnings are files of WithDataDir that were damaged and set aside.
	Warnings []string `json:"warnings,omitempty"`
	Closed   bool     `json:"closed"`
}

// DHTStatus describes the DHT.
type DHTStatus struct {
	Mode   DHTMode `json:"mode"`   // as configured
	Server bool    `json:"server"` // it answers the queries of others now
	Peers  int     `json:"peers"`  // in the routing table
}

// TopicStatus describes a joined topic.
type TopicStatus struct {
	Name          string    `json:"name"`
	Peers         []peer.ID `json:"peers"`         // others known to be subscribed
	Subscriptions int       `json:"subscriptions"` // of this node
}

// RelayStatus describes a relay that the node was told to use.
type RelayStatus struct {
	ID       peer.ID `json:"id"`
	Reserved bool    `json:"reserved"` // a reservation stands: others can reach the node through it
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
		ListenAddrs:  n.base.listenAddrs(),
		Reachability: n.watch.reachability().String(),
		Peers:        n.base.peers(),
	}
	s.PrivateNetwork = fingerprint(n.cfg.psk)
	if n.data != nil {
		s.Warnings = slices.Clone(n.data.warnings)
	}
	for _, e := range n.listenErrors {
		s.ListenErrors = append(s.ListenErrors, e.Error())
	}
	if n.dht != nil {
		s.DHT = &DHTStatus{Mode: n.cfg.effectiveDHTMode(), Server: n.dht.serves(), Peers: n.dht.size()}
	}
	if n.pubsub != nil {
		for _, t := range n.pubsub.all() {
			ts := TopicStatus{Name: t.name, Peers: t.ListPeers()}
			slices.Sort(ts.Peers)
			if f := t.feed.Load(); f != nil {
				ts.Subscriptions = len(f.subs)
			}
			s.Topics = append(s.Topics, ts)
		}
	}
	if r := n.boot.lastRound(); r != nil {
		s.Bootstrap = r.clone()
	}
	s.Persistent = n.persistent.list()
	for _, r := range n.cfg.autoRelays {
		s.Relays = append(s.Relays, RelayStatus{ID: r.ID, Reserved: n.relay.reserved(n.base, r.ID)})
	}
	return s
}

// WaitReady waits until the node is of use: it listens (unless
// WithoutListening), as many peers as WithMinPeers asks for are connected, and
// with bootstrap peers or mDNS somebody is in the DHT's routing table. A node
// that was told nothing about others is ready when it listens. When ctx ends
// first it returns ErrNotReady, with ctx's error and a list of what is still
// missing. It returns ErrClosed when the node is closed.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		if n.closed() {
			return ErrClosed
		}
		change := n.watch.change.wait()
		missing := n.missing()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-change:
		case <-n.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w (%w): %s", ErrNotReady, ctx.Err(), strings.Join(n.missing(), "; "))
		}
	}
}

// missing says in words what keeps the node from being ready.
func (n *Node) missing() []string {
	var list []string
	if !n.cfg.noListen && len(n.base.listenAddrs()) == 0 {
		list = append(list, "not listening")
	}
	peers, want := len(n.base.swarm.Peers()), n.cfg.effectiveMinPeers()
	if peers < want {
		list = append(list, fmt.Sprintf("%d of at least %d peers connected%s", peers, want, n.boot.complaint()))
	}
	if n.dht != nil && n.cfg.looksForPeers() && n.dht.size() == 0 {
		if peers == 0 {
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
	return len(n.base.swarm.Peers()) >= n.cfg.effectiveMinPeers() && (n.dht == nil || n.dht.size() > 0)
}

// fail adds the package's prefix to an error of a method, once. Whatever a
// closing node's parts say, the cause is that it closes.
func (n *Node) fail(err error) error {
	if n.closed() || errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("p2pnode: %w", err)
}
