package p2pnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/diag"
	"github.com/go-p2pnode/p2pnode/internal/gossip"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

// FindingKind identifies what [Node.Diagnose] found, for programs.
type FindingKind string

// The kinds of findings, in the order in which [Node.Diagnose] returns them. The
// values do not change.
const (
	// FindingNobodyToFind ("nobody-to-find"): no peer is connected, and nothing
	// says where to find any.
	FindingNobodyToFind FindingKind = "nobody-to-find"
	// FindingNoBootstrap ("no-bootstrap-peer"): no bootstrap peer can be
	// reached; without any configured, no saved peer.
	FindingNoBootstrap FindingKind = "no-bootstrap-peer"
	// FindingPersistent ("persistent-peer-missing"): a persistent peer cannot
	// be reached.
	FindingPersistent FindingKind = "persistent-peer-missing"
	// FindingFewPeers ("few-peers"): fewer peers are connected than
	// [WithMinPeers] asks for.
	FindingFewPeers FindingKind = "few-peers"
	// FindingNetworkKey ("network-key-differs"): peers seem to have another
	// private network key.
	FindingNetworkKey FindingKind = "network-key-differs"
	// FindingLoopback ("loopback-only"): the node announces loopback addresses
	// only.
	FindingLoopback FindingKind = "loopback-only"
	// FindingDHTClient ("dht-client"): the node answers no DHT queries.
	FindingDHTClient FindingKind = "dht-client"
	// FindingNoDHTPeer ("no-dht-peer"): no connected peer serves the DHT of
	// this network.
	FindingNoDHTPeer FindingKind = "no-dht-peer"
	// FindingDeafPeer ("deaf-peer"): a connected peer has stopped sending
	// pubsub messages.
	FindingDeafPeer FindingKind = "deaf-peer"
	// FindingSignatures ("signatures-differ"): a connected peer sends messages that
	// are signed on a topic of [TopicAnonymous], or unsigned on another.
	FindingSignatures FindingKind = "signatures-differ"
	// FindingRejected ("messages-rejected"): a connected peer sends messages that a
	// [TopicValidator] rejects.
	FindingRejected FindingKind = "messages-rejected"
	// FindingGraylisted ("peers-graylisted"): connected peers are graylisted for their
	// pubsub score.
	FindingGraylisted FindingKind = "peers-graylisted"
	// FindingOverrun ("messages-overrun"): messages of a topic were dropped
	// unvalidated in the last 10 minutes, because too many arrived.
	FindingOverrun FindingKind = "messages-overrun"
	// FindingValidator ("validator-panics"): a [TopicValidator] has panicked.
	FindingValidator FindingKind = "validator-panics"
	// FindingNotOverRelays ("topics-not-relayed"): the node uses topics, which do not
	// reach a connected peer, because there are only relayed connections with limits
	// to it. See [WithRelayedPubSub].
	FindingNotOverRelays FindingKind = "topics-not-relayed"
	// FindingUDPBlocked ("udp-blocked"): almost every dial over UDP fails.
	FindingUDPBlocked FindingKind = "udp-blocked"
	// FindingNoAutoNATPeer ("no-autonat-peer"): the node has [WithAutoNAT] and does not
	// know whether others can dial it, because no connected peer answers that.
	FindingNoAutoNATPeer FindingKind = "no-autonat-peer"
	// FindingNATNoRelay ("nat-without-relay"): others cannot dial the node, and
	// it has no relay.
	FindingNATNoRelay FindingKind = "nat-without-relay"
	// FindingNoReservation ("no-reservation"): the node has no reservation at any of
	// its relays.
	FindingNoReservation FindingKind = "no-reservation"
	// FindingPortMappingFails ("port-mapping-fails"): the router says that it forwards a
	// port of [WithPortMapping], but others cannot dial it.
	FindingPortMappingFails FindingKind = "port-mapping-fails"
	// FindingNoPortMapping ("no-port-mapping"): others cannot dial the node, neither
	// through a relay, and no router maps a port for [WithPortMapping].
	FindingNoPortMapping FindingKind = "no-port-mapping"
	// FindingClock ("clock-behind"): this machine's clock is behind that of its
	// peers.
	FindingClock FindingKind = "clock-behind"
	// FindingFewFiles ("few-open-files"): the process may open fewer files than
	// its connections need.
	FindingFewFiles FindingKind = "few-open-files"
	// FindingRefused ("limits-refuse"): a limit has refused something in the
	// last 10 minutes.
	FindingRefused FindingKind = "limits-refuse"
	// FindingDamaged ("damaged-files"): files of [WithDataDir] were damaged or
	// could not be read.
	FindingDamaged FindingKind = "damaged-files"
)

// Finding is something that keeps a node from working as well as it could. Kind
// is for programs; What and Do are for people and may change.
type Finding struct {
	Kind FindingKind `json:"kind"`
	// What is wrong, in plain words.
	What string `json:"what"`
	// Do is what to do about it, naming the option to give.
	Do string `json:"do"`
}

// String returns the finding in one line.
func (f Finding) String() string { return string(f.Kind) + ": " + f.What + "; " + f.Do }

const (
	// diagnoseDial bounds the dials of Diagnose: a little more than the 5 seconds
	// after which QUIC gives up and reports why.
	diagnoseDial = 6 * time.Second
	// settled is how long a connection must have been open to count: a peer that
	// hangs up is dialed by the keeper too, and connected for moments.
	settled = 10 * time.Second
)

// Diagnose looks for what keeps the node from working as well as it could, and
// returns what it found, each with the option or action to take; nil if it
// found nothing. It dials bootstrap and persistent peers that are not
// connected, so it takes up to 6 seconds. It may be called at any time and
// concurrently.
//
// Peers that have not answered by ctx's deadline count as not reached. If ctx
// is canceled, Diagnose returns ctx's error along with what it found without
// those dials. It returns [ErrClosed] after Close.
func (n *Node) Diagnose(ctx context.Context) ([]Finding, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	bound, done := n.bind(ctx)
	defer done()
	dialCtx, stop := context.WithTimeout(bound, diagnoseDial)
	defer stop()
	boots, friends := n.keeper.Infos(keeper.Bootstrap), n.keeper.Infos(keeper.Persistent)
	udpBlocked := n.base.UDPBlocked() // before the dials, which make the swarm forget it
	failed := n.dialer.Probe(dialCtx, n.group, addrs.Merge(append(friends, boots...)...), settled)
	if n.closed() {
		return nil, ErrClosed
	}
	var err error
	if errors.Is(ctx.Err(), context.Canceled) {
		failed = nil // nobody had the time to answer
		err = fmt.Errorf("p2pnode: diagnose: %w", ctx.Err())
	}
	s := diag.Situation{Now: time.Now(), Company: companyOf(n), Messaging: messagingOf(n), Reach: reachOf(n), Machine: machineOf(n)}
	s.Company.BootstrapFailed, s.Company.PersistentFailed = failures(boots, failed), failures(friends, failed)
	s.Reach.BootstrapAddrs, s.Reach.UDPBlocked = addrsOf(boots), udpBlocked
	if s.Company.DHT != nil {
		for _, id := range n.base.PeerIDs() {
			if spoken := n.base.Protocols(id); len(spoken) > 0 {
				s.Company.DHT.Spoken = append(s.Company.DHT.Spoken, protocol.ConvertToStrings(spoken))
			}
		}
	}
	var list []Finding
	for _, f := range diag.Judge(s) {
		list = append(list, Finding{Kind: FindingKind(f.Kind), What: f.What, Do: f.Do})
	}
	return list, err
}

// companyOf returns the peers that the node has and knows of, except for what
// only dials can find out. Errors of calls that found nobody use it too.
func companyOf(n *Node) diag.Company {
	c := diag.Company{
		Peers: n.base.PeerCount(), Want: minPeers(n),
		Server:    n.cfg.dhtMode == DHTModeServer,
		Bootstrap: len(n.keeper.Infos(keeper.Bootstrap)), Private: n.cfg.psk != nil,
		Looking: n.keeper.Looks(), Names: len(n.cfg.bootstrapDNS) > 0,
	}
	friends := n.keeper.Persistent()
	c.Told = looksForPeers(n) || c.Looking
	if r := n.keeper.Last(); r != nil {
		c.Last = &diag.Round{Connected: len(r.Connected)}
		for _, f := range r.Failed {
			c.Last.Failed = append(c.Last.Failed, diag.Failure{Peer: f.ID.String(), Err: f.Err})
		}
	}
	for _, s := range friends {
		if !s.Connected && s.LastError != nil {
			c.PersistentErrs = append(c.PersistentErrs, s.LastError.Error())
		}
	}
	if n.limits != nil {
		h := n.limits.Handshakes()
		c.Handshakes, c.LastHandshake = h.Failed, h.Last
	}
	if n.dht != nil {
		mode := n.cfg.effectiveDHTMode()
		c.DHT = &diag.DHT{
			Table: n.dht.Size(), Serves: n.dht.Serves(), Client: mode == DHTModeClient, Mode: string(mode),
			Network: n.cfg.network, Protocols: protocol.ConvertToStrings(n.dht.Protocols()),
		}
	}
	return c
}

// messagingOf returns what is wrong with topics, and with the messages of peers.
func messagingOf(n *Node) diag.Messaging {
	var m diag.Messaging
	if n.pubsub == nil {
		return m
	}
	for _, id := range n.pubsub.Deaf() {
		m.Deaf = append(m.Deaf, id.String())
	}
	for _, s := range scoresOf(n.pubsub) {
		if s.Graylisted {
			m.Graylisted = append(m.Graylisted, s.ID.String())
		}
	}
	offenses := n.pubsub.Offenses()
	for _, id := range slices.Sorted(maps.Keys(offenses)) {
		if offenses[id].Unsuited > 0 {
			m.Unsuited = append(m.Unsuited, id.String())
		}
		if offenses[id].Rejected > 0 {
			m.Rejected = append(m.Rejected, id.String())
		}
	}
	topics := n.pubsub.Topics()
	if len(topics) > 0 && n.cfg.relayedPubSub == 0 {
		for _, p := range n.base.Peers() {
			if p.Limited && slices.ContainsFunc(p.Protocols, gossip.Speaks) {
				m.Limited = append(m.Limited, p.ID.String())
			}
		}
	}
	for _, t := range topics {
		if t.Panics > 0 {
			m.Panicked = append(m.Panicked, t.Name)
		}
		if t.Overrun > 0 {
			m.Overrun = append(m.Overrun, diag.Flood{Topic: t.Name, Last: t.LastOverrun})
		}
	}
	return m
}

// reachOf returns how others can reach the node.
func reachOf(n *Node) diag.Reach {
	r := diag.Reach{
		Reachability: reachability(n).String(), Listening: len(n.base.ListenAddrs()) > 0,
		Announced: addrsOf([]peer.AddrInfo{{Addrs: n.base.Addrs()}}),
		Looks:     n.relay.Finds(), Sought: n.relay.Sought(),
	}
	if t := n.reach.Load(); t != nil && n.cfg.reachability == network.ReachabilityUnknown {
		peers, able := t.Servers()
		r.Asks, r.Unasked, r.Asked = true, peers-able, able
	}
	if p := portMappingStatus(n); p != nil {
		r.Unmapped = p.Missing
		for _, m := range p.Mappings {
			inside := addrs.ReachOfIP(m.External.Addr()) != addrs.Global
			// Peers outside are not asked whether they can dial what is inside.
			refuted := m.Reachability == ReachabilityPrivate || inside && m.Reachability == ReachabilityUnknown && reachability(n) == network.ReachabilityPrivate
			r.Ports = append(r.Ports, diag.Port{Text: m.Protocol + " " + m.External.String(), Refuted: refuted, Inside: inside})
		}
	}
	for _, s := range relayStatus(n.relay) {
		r.Relays = append(r.Relays, diag.Relay{Peer: s.ID.String(), Reserved: s.Reserved, Missing: s.Missing})
	}
	return r
}

// machineOf returns the state of the machine's clock, files and limits.
func machineOf(n *Node) diag.Machine {
	m := diag.Machine{MaxConns: n.cfg.connHigh, Warnings: warnings(n)}
	for _, id := range n.base.PeerIDs() {
		if at, ok := n.base.SignedAt(id); ok {
			m.Signed = append(m.Signed, diag.Signed{Peer: id.String(), At: at})
		}
	}
	m.OpenFiles, _ = openFiles() // 0 when it is not known
	if n.limits != nil {
		counts, _ := json.Marshal(Refused(n.limits.Counts())) // it has numbers alone
		m.Refused, m.LastRefusal = string(counts), n.limits.LastRefusal()
	}
	return m
}

// failures returns the dial failures, in the order of the peers.
func failures(peers []peer.AddrInfo, failed map[peer.ID]error) []diag.Failure {
	var list []diag.Failure
	for _, p := range peers {
		if err := failed[p.ID]; err != nil {
			list = append(list, diag.Failure{Peer: p.ID.String(), Err: err})
		}
	}
	return list
}

// addrsOf returns the addresses of peers, except circuit addresses.
func addrsOf(peers []peer.AddrInfo) []diag.Addr {
	var list []diag.Addr
	for _, p := range peers {
		for _, a := range p.Addrs {
			if !addrs.IsCircuit(a) {
				list = append(list, diag.Addr{Text: a.String(), Loopback: manet.IsIPLoopback(a)})
			}
		}
	}
	return list
}
