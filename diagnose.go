package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// FindingKind names what Diagnose can find.
type FindingKind string

// The kinds of findings.
const (
	FindingNoBootstrap  FindingKind = "no bootstrap peer reached"
	FindingLoopback     FindingKind = "loopback addresses only"
	FindingDHTClient    FindingKind = "the DHT is a client"
	FindingNoDHTPeer    FindingKind = "no peer of the DHT"
	FindingClock        FindingKind = "the clock is behind"
	FindingUDPBlocked   FindingKind = "UDP seems blocked"
	FindingNATNoRelay   FindingKind = "behind a NAT without a relay"
	FindingNetworkKey   FindingKind = "another key of the private network"
	FindingFewFiles     FindingKind = "too few open files"
	FindingNobodyToFind FindingKind = "nothing says where to find peers"
)

// Finding is something that keeps a node from working as it could.
type Finding struct {
	Kind FindingKind `json:"kind"`
	What string      `json:"what"` // in plain words
	Do   string      `json:"do"`   // the option to give, or what else to do
}

// String is the finding in one line.
func (f Finding) String() string { return string(f.Kind) + ": " + f.What + "; " + f.Do }

const (
	// clockSlack is how far ahead of this node's clock a peer may have signed
	// its addresses before the clock is called wrong.
	clockSlack = time.Minute
	// diagnoseDial bounds the dials that Diagnose makes itself: a little more
	// than the 5 seconds after which QUIC gives up and says why.
	diagnoseDial = 6 * time.Second
)

// Diagnose looks for what keeps the node from working as it could, and returns
// what it found in plain words, each with the option or action to take; none
// means that nothing was found. Bootstrap peers that are not connected are
// dialled once more, so it takes up to 6 seconds, or until ctx ends. It may be
// called at any time; the error is ErrClosed after Close.
func (n *Node) Diagnose(ctx context.Context) ([]Finding, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	ctx, done := n.bind(ctx)
	defer done()
	udpBlocked := n.base.udpBlocked() // before the dials, which make the swarm forget it
	failures := n.dialBootstrap(ctx)
	if n.closed() {
		return nil, ErrClosed
	}
	var list []Finding
	add := func(kind FindingKind, is bool, do, format string, args ...any) {
		if is {
			list = append(list, Finding{Kind: kind, What: fmt.Sprintf(format, args...), Do: do})
		}
	}
	peers := n.base.swarm.Peers()
	boots := n.cfg.bootstrapPeers()

	keyMismatch := n.cfg.psk != nil && refusedByKey(failures)
	add(FindingNobodyToFind, len(peers) == 0 && !n.cfg.looksForPeers() && n.boot == nil,
		"give WithBootstrapPeers or WithMDNS, or call Connect",
		"no peer is connected, and the node was told of none")
	add(FindingNoBootstrap, len(boots) > 0 && len(failures) == len(boots) && !keyMismatch,
		"check their addresses and IDs, that they run, and that this machine has a network; more peers can be given with WithBootstrapPeers",
		"none of %d answers: %s", len(boots), describe(failures))
	add(FindingNetworkKey, keyMismatch,
		"compare Status().PrivateNetwork on both sides; it is made from the key of WithPrivateNetwork",
		"a connection to a bootstrap peer breaks off in the handshake, as it does when the keys differ: %s", describe(failures))

	listens := n.base.listenAddrs()
	add(FindingLoopback, len(listens) > 0 && all(n.base.Addrs(), manet.IsIPLoopback) && !all(infoAddrs(boots), manet.IsIPLoopback),
		"listen on other addresses with WithListenAddrs, such as /ip4/0.0.0.0/tcp/4001",
		"the node announces %v, which only this machine can dial", n.base.Addrs())

	if n.dht != nil {
		mode, reach := n.cfg.effectiveDHTMode(), n.watch.reachability()
		why := fmt.Sprintf("its mode is %s and reachability is %s", mode, reach)
		do := "others cannot dial this node: with WithReachability(network.ReachabilityPublic) say that they can, if you know better"
		if mode == DHTModeClient {
			why, do = "WithDHTMode says so", "leave WithDHTMode(DHTModeClient) out if the node is to hold records for others"
		}
		add(FindingDHTClient, !n.dht.serves(), do, "it answers nobody's queries and holds no records, because %s", why)
		add(FindingNoDHTPeer, len(peers) > 0 && n.dht.size() == 0,
			"check that WithNetwork is the same everywhere, and that not all others are DHT clients",
			"%d peers are connected, and none of them serves the DHT protocol %v of the network %q: a wrong network name?", len(peers), n.dht.protocols, n.cfg.network)
	}

	ahead, who := n.clockBehind(peers)
	add(FindingClock, ahead > clockSlack,
		"set this machine's clock; records and certificates are dated",
		"%s signed its addresses %v in the future of this machine's clock, which says %s", who, ahead.Round(time.Second), time.Now().UTC().Format(time.RFC3339))

	add(FindingUDPBlocked, udpBlocked,
		"let UDP through the firewall, or name TCP and WebSocket alone with WithTransports",
		"95 of the last 100 dials over UDP have failed, and QUIC needs it")

	add(FindingNATNoRelay, n.watch.reachability() == network.ReachabilityPrivate && len(n.cfg.autoRelays) == 0,
		"name relays with WithAutoRelay, and add WithHolePunching, or forward a port and announce it with WithAnnounceAddrs",
		"others cannot dial this node, and no relay keeps a place for it")

	if limit, ok := openFiles(); ok {
		need := uint64(2 * n.cfg.connHigh)
		add(FindingFewFiles, limit < need,
			fmt.Sprintf("raise it (ulimit -n %d), or lower WithConnLimits", 2*need),
			"the process may open %d files, and %d connections need up to %d", limit, n.cfg.connHigh, need)
	}
	return list, nil
}

// dialBootstrap dials the bootstrap peers that are not connected, and returns
// those that do not answer.
func (n *Node) dialBootstrap(ctx context.Context) []DialFailure {
	ctx, cancel := context.WithTimeout(ctx, diagnoseDial)
	defer cancel()
	boots := n.cfg.bootstrapPeers()
	errs := make(chan DialFailure, len(boots))
	for _, p := range boots {
		if n.base.isConnected(p.ID) {
			errs <- DialFailure{ID: p.ID}
			continue
		}
		started := n.group.Go(func(context.Context) {
			f := DialFailure{ID: p.ID}
			if err := n.connect(ctx, p); err != nil && !n.base.isConnected(p.ID) {
				f.Err = &connectError{p.ID, err}
			}
			errs <- f
		})
		if !started {
			return nil // closing
		}
	}
	byID := make(map[peer.ID]error)
	for range boots {
		f := <-errs
		byID[f.ID] = f.Err
	}
	var failed []DialFailure
	for _, p := range boots {
		if err := byID[p.ID]; err != nil {
			failed = append(failed, DialFailure{p.ID, err})
		}
	}
	return failed
}

func describe(list []DialFailure) string {
	var texts []string
	for _, f := range list {
		texts = append(texts, f.Err.Error())
	}
	return strings.Join(texts, "; ")
}

// refusedByKey reports whether a dial ended as it does when the two sides have
// different pre-shared keys: what arrives makes no sense to either.
func refusedByKey(list []DialFailure) bool {
	for _, f := range list {
		text := f.Err.Error()
		if errors.Is(f.Err, io.EOF) || strings.Contains(text, "negotiate security protocol") || strings.Contains(text, "message did not have trailing newline") {
			return true
		}
	}
	return false
}

// clockBehind returns by how much the newest signed addresses of a peer are
// ahead of this machine's clock: they carry the time of their making.
func (n *Node) clockBehind(peers []peer.ID) (ahead time.Duration, who peer.ID) {
	book, ok := peerstore.GetCertifiedAddrBook(n.base.Peerstore())
	if !ok {
		return 0, ""
	}
	for _, id := range peers {
		envelope := book.GetPeerRecord(id)
		if envelope == nil {
			continue
		}
		rec, err := envelope.Record()
		if err != nil {
			continue
		}
		if r, ok := rec.(*peer.PeerRecord); ok {
			if d := time.Until(time.Unix(0, int64(r.Seq))); d > ahead {
				ahead, who = d, id
			}
		}
	}
	return ahead, who
}

func all(list []ma.Multiaddr, is func(ma.Multiaddr) bool) bool {
	for _, a := range list {
		if !addrs.IsCircuit(a) && !is(a) {
			return false
		}
	}
	return len(list) > 0
}

func infoAddrs(list []peer.AddrInfo) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, p := range list {
		out = append(out, p.Addrs...)
	}
	return out
}

// udpBlocked reports whether the swarm has given up UDP.
func (h *hostPart) udpBlocked() bool {
	for _, b := range h.blackHoles {
		if b.Name == "UDP" && b.State().String() == "Blocked" {
			return true
		}
	}
	return false
}
