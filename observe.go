package p2pnode

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Status returns a snapshot of the node. After Close it holds the ID and Closed
// only.
func (n *Node) Status() Status {
	if n.closed() {
		return Status{ID: n.id, Closed: true}
	}
	s := Status{
		ID:           n.id,
		Network:      n.cfg.protocolPrefix(),
		Addrs:        n.Addrs(),
		ListenAddrs:  n.base.ListenAddrs(),
		Reachability: reachabilityOf(reachability(n)), AddrReachability: addrReachability(n),
		PortMapping: portMappingStatus(n),
		Peers:       peersOf(n.base),
	}
	s.PrivateNetwork = fingerprint(n.cfg.psk)
	s.ListenErrors = slices.Clone(n.listenErrors)
	if n.dht != nil {
		s.DHT = dhtStatus(n)
	}
	s.Warnings = warnings(n) // after dhtStatus, which asks the datastore
	if n.pubsub != nil {
		for _, t := range n.pubsub.Topics() {
			s.Topics = append(s.Topics, topicStatus(t, s.Peers))
		}
	}
	s.Scores = scoresOf(n.pubsub)
	s.Bootstrap = newBootstrapRound(n.keeper.Last())
	s.Persistent = persistentStatus(n.keeper)
	s.Bans = bansOf(n.access)
	s.Allowed = n.access.Allowed()
	s.Refused, s.HandshakesFailed = refusedOf(n), handshakesFailed(n)
	s.HandlersFailed = n.streams.Failures()
	s.Relays, s.RelayService = relayStatus(n.relay), relayServiceStatus(n.relayService)
	return s
}

// reachability returns whether others can dial the node, as far as known.
func reachability(n *Node) network.Reachability {
	if t := n.reach.Load(); t != nil {
		return t.Reachability()
	}
	return n.watch.bus.Reachability()
}

// relayReachability is what decides whether the node looks for relays: private too
// while strangers may be unable to dial it.
func relayReachability(n *Node) network.Reachability {
	if t := n.reach.Load(); t != nil && t.NeedsRelay() && t.Reachability() == network.ReachabilityPublic {
		return network.ReachabilityPrivate
	}
	return reachability(n)
}

func addrReachability(n *Node) (list []AddrReachability) {
	if t := n.reach.Load(); t != nil {
		for _, a := range t.Addrs() {
			list = append(list, AddrReachability{a.Addr, reachabilityOf(a.Reachability)})
		}
	}
	return list
}

// portMappingStatus returns what the router forwards; nil if it is not asked to.
func portMappingStatus(n *Node) *PortMappingStatus {
	if n.ports == nil {
		return nil
	}
	state := n.ports.State()
	s := &PortMappingStatus{Router: state.Found, Missing: state.Missing}
	known := addrReachability(n)
	for _, m := range state.Mappings {
		one := PortMapping{Protocol: m.Protocol, Port: m.Port, External: m.External, Reachability: ReachabilityUnknown}
		for _, a := range known {
			protocol, at, ok := addrs.AddrPort(a.Addr)
			if !ok || protocol != m.Protocol || at != m.External || one.Reachability == ReachabilityPublic || a.Reachability == ReachabilityUnknown {
				continue
			}
			one.Reachability = a.Reachability
		}
		s.Mappings = append(s.Mappings, one)
	}
	return s
}

// statusPatience is how long Status waits for a datastore.
const statusPatience = time.Second

func dhtStatus(n *Node) *DHTStatus {
	s := &DHTStatus{Mode: n.cfg.effectiveDHTMode(), Server: n.dht.Serves(), Peers: n.dht.Size()}
	ctx, cancel := context.WithTimeout(n.ctx, statusPatience)
	defer cancel()
	p, _ := n.dht.Progress(ctx) // with an error, what it was last; see warnings
	s.Provides, s.Pending, s.NextReprovide, s.ProvideFailures = p.Keys, p.Pending, p.Next, p.Failed
	s.Values = n.dht.Values()
	s.Advertises, s.Unadvertised = n.dht.Adverts()
	if ready, peers, ok := n.dht.Accelerated(); ok {
		s.Accelerated = &AcceleratedStatus{Ready: ready, Peers: peers}
	}
	return s
}

// warnings returns what was wrong with the files of the data directory, and what
// is with the datastore.
func warnings(n *Node) (list []string) {
	if n.data != nil {
		list = slices.Concat(n.keeper.Warnings(), n.access.Warnings(), n.data.warnings)
	}
	if n.dht != nil {
		list = append(list, n.dht.Warnings()...)
	}
	return list
}

// refusedOf returns what limits have refused; zero with an application's own
// resource manager.
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

// Peers returns the connected peers, sorted by ID; nil after Close.
func (n *Node) Peers() []Peer {
	if n.closed() {
		return nil
	}
	return peersOf(n.base)
}

// Peer returns a connected peer, and reports whether it is connected. After
// Close none is.
func (n *Node) Peer(id peer.ID) (Peer, bool) {
	if n.closed() {
		return Peer{}, false
	}
	p, ok := n.base.Peer(id)
	return peerOf(p), ok
}

// Events streams what happens to the node from the moment of the call, until
// the loop ends, ctx ends or the node closes; what is unread by then is lost. A
// consumer that falls more than 256 events behind loses the oldest ones and
// gets an [EventsLost] with their number; it never holds up the node. Each call
// has its own stream, for one loop: a second loop over it ends at once, and a
// stream that is never looped over ends with ctx or the node. After Close the
// stream is empty.
func (n *Node) Events(ctx context.Context, opts ...EventsOption) iter.Seq[Event] {
	var cfg eventsConfig
	for _, o := range opts {
		if o != nil {
			o.applyEvents(&cfg)
		}
	}
	sub := n.watch.hub.Subscribe(cfg.state)
	stop := context.AfterFunc(ctx, sub.Close)
	return func(yield func(Event) bool) {
		defer stop()
		defer sub.Close()
		for {
			ev, lost, ok := sub.Next(ctx.Done(), n.ctx.Done())
			if !ok || lost > 0 && !yield(EventsLost{EventTime{time.Now()}, lost}) || !yield(ev) {
				return
			}
		}
	}
}
