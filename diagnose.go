package p2pnode

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
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
	FindingNetworkKey   FindingKind = "the keys of a private network differ"
	FindingFewFiles     FindingKind = "too few open files"
	FindingNobodyToFind FindingKind = "nothing says where to find peers"
	FindingFewPeers     FindingKind = "fewer peers than wanted"
	FindingPersistent   FindingKind = "a persistent peer is not connected"
	FindingNoPlace      FindingKind = "no reservation at a relay"
	FindingRefused      FindingKind = "limits refuse connections or streams"
	FindingDamaged      FindingKind = "damaged files"
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
	// clockNonsense is how far ahead is no clock any more.
	clockNonsense = 100 * 365 * 24 * time.Hour
	// diagnoseDial bounds the dials that Diagnose makes itself: a little more
	// than the 5 seconds after which QUIC gives up and says why.
	diagnoseDial = 6 * time.Second
	// settled is how long a connection has to stand to be one: a peer that hangs
	// up is dialled by the bootstrap loop too, and connected for moments.
	settled = 10 * time.Second
	// diagnoseLately is how long ago something may be that is not a state.
	diagnoseLately = 10 * time.Minute
)

// Diagnose looks for what keeps the node from working as it could, and returns
// what it found in plain words, each with the option or action to take; none
// means that nothing was found. Bootstrap and persistent peers that are not
// connected are dialled once more, so it takes up to 6 seconds. It may be called
// at any time and concurrently.
//
// When ctx has an earlier deadline, those that have not answered by then count
// as not reached. When it is cancelled it returns ctx's error, beside what it
// found without those dials. It returns ErrClosed after Close.
func (n *Node) Diagnose(ctx context.Context) ([]Finding, error) {
	if n.closed() {
		return nil, ErrClosed
	}
	bound, done := n.bind(ctx)
	defer done()
	boots := n.cfg.bootstrapPeers()
	udpBlocked := n.base.UDPBlocked() // before the dials, which make the swarm forget it
	failed := n.dialWanted(bound)
	if n.closed() {
		return nil, ErrClosed
	}
	var err error
	if errors.Is(ctx.Err(), context.Canceled) {
		failed = nil // nobody had the time to answer
		err = fmt.Errorf("p2pnode: diagnose: %w", ctx.Err())
	}
	var f findings
	f.peers(n, failed)
	f.network(n, boots, udpBlocked)
	f.machine(n, failed)
	return f, err
}

// findings is the list that Diagnose makes.
type findings []Finding

func (f *findings) add(kind FindingKind, is bool, do, format string, args ...any) {
	if is {
		*f = append(*f, Finding{Kind: kind, What: fmt.Sprintf(format, args...), Do: do})
	}
}

// peers finds out why there are none, or too few.
func (f *findings) peers(n *Node, failed map[peer.ID]DialFailure) {
	peers := n.base.PeerCount()
	boots := n.cfg.bootstrapPeers()
	var bootFailures, friendFailures, all []DialFailure
	for _, p := range boots {
		if d, ok := failed[p.ID]; ok {
			bootFailures = append(bootFailures, d)
		}
	}
	for _, s := range n.persistent.list() {
		if d, ok := failed[s.ID]; ok {
			friendFailures = append(friendFailures, d)
		}
	}
	all = slices.Concat(bootFailures, friendFailures)
	garbled, cut := brokenHandshakes(all)

	server := n.cfg.dhtMode == DHTModeServer // where others come to
	f.add(FindingNobodyToFind, peers == 0 && !server && !n.cfg.looksForPeers() && n.boot == nil && len(n.persistent.list()) == 0,
		"give WithBootstrapPeers or WithMDNS, or call Connect",
		"no peer is connected, and the node was told of none")
	do := "check their addresses and IDs, that they run, and that this machine has a network; more peers can be given with WithBootstrapPeers"
	if cut && n.cfg.psk == nil {
		do += "; one that hangs up or falls silent in the handshake may refuse this node, have no room, or be in a private network (WithPrivateNetwork)"
	}
	f.add(FindingNoBootstrap, len(boots) > 0 && len(bootFailures) == len(boots), do,
		"none of %d can be reached: %s", len(boots), describe(bootFailures))
	if r := n.boot.lastRound(); len(boots) == 0 && peers == 0 && r != nil && len(r.Failed) > 0 {
		f.add(FindingNoBootstrap, true,
			"give WithBootstrapPeers: the peers saved in WithDataDir are all there is, and they may be gone",
			"no saved peer can be reached, of the last %d: %s", len(r.Failed), describe(r.Failed))
	}
	f.add(FindingPersistent, len(friendFailures) > 0,
		"check their addresses and IDs, and that they run and let this node in; the node goes on trying",
		"%s", describe(friendFailures))
	f.add(FindingFewPeers, peers > 0 && peers < n.cfg.effectiveMinPeers() && len(bootFailures) < max(len(boots), 1),
		"give more peers with WithBootstrapPeers, or lower WithMinPeers",
		"%d are connected, of at least %d", peers, n.cfg.effectiveMinPeers())

	const compare = "compare Status().PrivateNetwork on both sides; it is made from the key of WithPrivateNetwork"
	handshakes := n.handshakes()
	broken, lately := handshakes.Failed, !handshakes.Last.IsZero() && time.Since(handshakes.Last) < diagnoseLately
	switch {
	case n.cfg.psk != nil && garbled:
		f.add(FindingNetworkKey, true, compare,
			"what peers answer in the handshake makes no sense, as when the keys differ or the other side has none")
	case n.cfg.psk != nil && cut:
		f.add(FindingNetworkKey, true, compare,
			"peers hang up or fall silent in the handshake, as they do when the keys differ or the other side has none; they may also refuse this node, or have no room")
	case garbled:
		f.add(FindingNetworkKey, true, "if it is a private network, give its key with WithPrivateNetwork",
			"what peers answer in the handshake makes no sense, as when they have the key of a private network, and this node has none")
	case n.cfg.psk != nil && peers == 0 && lately:
		f.add(FindingNetworkKey, true, compare,
			"%d incoming connections broke off in their handshake, as they do when the keys differ, and no peer is connected", broken)
	}
}

// network finds out what others cannot do with this node.
func (f *findings) network(n *Node, boots []peer.AddrInfo, udpBlocked bool) {
	peers := n.base.PeerIDs()
	reach := n.watch.reachability()
	announced := n.base.Addrs()
	f.add(FindingLoopback, len(n.base.ListenAddrs()) > 0 && all(announced, manet.IsIPLoopback) && !all(infoAddrs(boots), manet.IsIPLoopback),
		"listen on other addresses with WithListenAddrs, such as /ip4/0.0.0.0/tcp/4001",
		"the node announces %v, which only this machine can dial", announced)

	if n.dht != nil {
		mode := n.cfg.effectiveDHTMode()
		why := fmt.Sprintf("its mode is %s and reachability is %s", mode, reach)
		do := "others cannot dial this node: with WithReachability(network.ReachabilityPublic) say that they can, if you know better"
		if mode == DHTModeClient {
			why, do = "WithDHTMode says so", "leave WithDHTMode(DHTModeClient) out if the node is to hold records for others"
		}
		f.add(FindingDHTClient, !n.dht.Serves(), do, "it answers nobody's queries and holds no records, because %s", why)
		f.add(FindingNoDHTPeer, n.dht.Size() == 0 && n.noneSpeaksDHT(peers),
			"check that WithNetwork is the same everywhere, and that not all others are DHT clients",
			"%d peers are connected, and none of them serves the DHT protocol %v of the network %q: a wrong network name?", len(peers), n.dht.Protocols(), n.cfg.network)
	}
	f.add(FindingUDPBlocked, udpBlocked,
		"let UDP through the firewall, or name TCP and WebSocket alone with WithTransports",
		"95 of 100 dials over UDP have failed, and QUIC needs it; the peers may also be gone")

	f.add(FindingNATNoRelay, reach == network.ReachabilityPrivate && len(n.relay.Relays()) == 0,
		"name relays with WithAutoRelay, and add WithHolePunching, or forward a port and announce it with WithAnnounceAddrs",
		"others cannot dial this node, and no relay keeps a place for it")
	var missing []string
	for _, r := range n.relayStatus() {
		if !r.Reserved {
			missing = append(missing, fmt.Sprintf("%s: %s", r.ID, r.Missing))
		}
	}
	f.add(FindingNoPlace, len(missing) > 0 && len(missing) == len(n.relay.Relays()),
		"check the addresses of WithAutoRelay, and that those peers run a relay (WithRelayService) with room",
		"no relay keeps a place for this node, so that others cannot reach it: %s", strings.Join(missing, "; "))
}

// machine finds out what is wrong with the machine, and what was refused.
func (f *findings) machine(n *Node, failed map[peer.ID]DialFailure) {
	const setClock = "set this machine's clock; records and certificates are dated"
	now := time.Now().UTC().Format(time.RFC3339)
	if id, from := notYetValid(failed); id != "" {
		f.add(FindingClock, true, setClock,
			"the certificate of %s holds from %s on, and this machine's clock says %s", id, from, now)
	} else if ahead, who := n.clockBehind(n.base.PeerIDs()); ahead > clockSlack {
		f.add(FindingClock, true, setClock,
			"%s signed its addresses %v in the future of this machine's clock, which says %s", who, ahead.Round(time.Second), now)
	}
	if limit, ok := openFiles(); ok {
		need := uint64(2 * n.cfg.connHigh)
		f.add(FindingFewFiles, limit < need,
			fmt.Sprintf("raise it (ulimit -n %d), or lower WithConnLimits", 2*need),
			"the process may open %d files, and %d connections need up to %d", limit, n.cfg.connHigh, need)
	}
	if n.limits != nil && !n.limits.LastRefusal().IsZero() && time.Since(n.limits.LastRefusal()) < diagnoseLately {
		counts, _ := json.Marshal(Refused(n.limits.Counts())) // it has numbers alone
		f.add(FindingRefused, true, "raise them with WithLimits, those of files with ulimit -n, or find out who opens so many",
			"since the start, and lately too: %s", counts)
	}
	warnings := n.warnings()
	f.add(FindingDamaged, len(warnings) > 0,
		"look at the files that were set aside or left; bans that were lost can be made again with BanPeer and BanSubnet",
		"%s", strings.Join(warnings, "; "))
}

// noneSpeaksDHT reports whether every connected peer that has said what it
// speaks has said nothing of this network's DHT.
func (n *Node) noneSpeaksDHT(peers []peer.ID) bool {
	told := false
	for _, id := range peers {
		protos := n.base.Protocols(id)
		told = told || len(protos) > 0
		if slices.ContainsFunc(protos, func(p protocol.ID) bool { return slices.Contains(n.dht.Protocols(), p) }) {
			return false
		}
	}
	return told
}

// dialWanted dials the bootstrap and persistent peers that are not connected,
// or only just, and returns those that are not afterwards.
func (n *Node) dialWanted(ctx context.Context) map[peer.ID]DialFailure {
	ctx, cancel := context.WithTimeout(ctx, diagnoseDial)
	defer cancel()
	var mu sync.Mutex
	failed := make(map[peer.ID]DialFailure)
	var dials sync.WaitGroup
	for _, p := range addrs.Merge(append(slices.Clone(n.cfg.bootstrapPeers()), n.persistent.infos()...)...) {
		if n.base.ConnectedFor(p.ID, settled) {
			continue
		}
		dials.Add(1)
		started := n.group.Go(func(context.Context) {
			defer dials.Done()
			if err := n.dialAndAsk(ctx, p); err != nil {
				if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
					err = &nethost.ConnectError{ID: p.ID, Err: errNoAnswer}
				}
				mu.Lock()
				defer mu.Unlock()
				failed[p.ID] = DialFailure{p.ID, err}
			}
		})
		if !started { // closing
			dials.Done()
		}
	}
	dials.Wait()
	return failed
}

var errNoAnswer = errors.New("no answer in the time that there was")

// dialAndAsk connects to a peer and waits for a sign of life: one that shuts
// this node out hangs up some time after the handshake.
func (n *Node) dialAndAsk(ctx context.Context, p peer.AddrInfo) error {
	err := n.dialer.Connect(ctx, p)
	if n.base.Connected(p.ID) { // it may have dialled this node
		_, asked := n.base.Ping(ctx, p.ID)
		var unsupported multistream.ErrNotSupported[protocol.ID]
		if asked == nil || errors.As(asked, &unsupported) {
			return nil
		}
	}
	if err == nil {
		err = &nethost.ConnectError{ID: p.ID, Err: nethost.ErrLostAtOnce}
	}
	return err
}

func describe(list []DialFailure) string {
	var texts []string
	for _, f := range list {
		texts = append(texts, f.Err.Error())
	}
	return strings.Join(texts, "; ")
}

// garbledTexts are what multistream and varint say of bytes that make no sense.
var garbledTexts = []string{
	"incoming message was too large", "message did not have trailing newline", "received mismatch in protocol id",
	"varint not minimally encoded", "varints larger than uint63", "varints malformed",
}

// brokenHandshakes reports whether dials ended as they do when the two sides
// have different pre-shared keys: what arrives makes no sense (garbled), or the
// other side, to which it makes none, hangs up or waits for more (cut). The
// second has other causes too.
func brokenHandshakes(list []DialFailure) (garbled, cut bool) {
	for _, f := range list {
		text := f.Err.Error()
		in := func(s string) bool { return strings.Contains(text, s) }
		garbled = garbled || slices.ContainsFunc(garbledTexts, in)
		cut = cut || errors.Is(f.Err, io.EOF) || in("could not read full nonce") ||
			in("negotiate security protocol") && (in("connection reset") || in("broken pipe") || in("EOF") || in("forcibly closed") || in("deadline exceeded"))
	}
	return garbled, cut
}

// notYetValid finds a dial that failed because the peer's certificate, which
// libp2p dates an hour back, begins to hold later than this machine's clock.
func notYetValid(list map[peer.ID]DialFailure) (id peer.ID, from string) {
	for _, f := range list {
		_, text, ok := strings.Cut(f.Err.Error(), "is not yet valid: current time ")
		if !ok {
			continue
		}
		_, text, ok = strings.Cut(text, " is before ")
		if !ok {
			continue // it has expired, says the same error otherwise
		}
		end := strings.IndexFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789-:TZ+", r) })
		if end < 0 {
			end = len(text)
		}
		return f.ID, text[:end]
	}
	return "", ""
}

// clockBehind returns by how much signed addresses of peers are ahead of this
// machine's clock: they carry the time of their making. With several peers, two
// have to say so, for one may be lying.
func (n *Node) clockBehind(peers []peer.ID) (ahead time.Duration, who peer.ID) {
	type sign struct {
		ahead time.Duration
		who   peer.ID
	}
	var signs []sign
	for _, id := range peers {
		if at, ok := n.base.SignedAt(id); ok {
			if d := time.Until(at); d < clockNonsense {
				signs = append(signs, sign{d, id})
			}
		}
	}
	slices.SortFunc(signs, func(a, b sign) int { return cmp.Compare(b.ahead, a.ahead) })
	switch len(signs) {
	case 0:
		return 0, ""
	case 1:
		return signs[0].ahead, signs[0].who
	default:
		return signs[1].ahead, signs[1].who
	}
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

func (n *Node) handshakes() limits.Handshakes {
	if n.limits == nil {
		return limits.Handshakes{}
	}
	return n.limits.Handshakes()
}

func (n *Node) refusedCounts() limits.Counts {
	if n.limits == nil {
		return limits.Counts{}
	}
	return n.limits.Counts()
}
