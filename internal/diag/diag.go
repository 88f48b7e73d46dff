// Package diag finds what keeps a node from working as well as it could. It
// reads only its argument: the caller gathers a [Situation] first. [Judge]
// finds everything; [Company.Few], [Company.NoRoutes] and [Reach.Unreachable]
// explain in the same words why a caller waits in vain.
package diag

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/causes"
)

// Kind is what was found.
type Kind string

// The kinds, in the order in which [Judge] finds them.
const (
	NobodyToFind      Kind = "nobody-to-find"
	NoBootstrapPeer   Kind = "no-bootstrap-peer"
	PersistentMissing Kind = "persistent-peer-missing"
	FewPeers          Kind = "few-peers"
	NetworkKey        Kind = "network-key-differs"
	LoopbackOnly      Kind = "loopback-only"
	DHTClient         Kind = "dht-client"
	NoDHTPeer         Kind = "no-dht-peer"
	DeafPeer          Kind = "deaf-peer"
	Signatures        Kind = "signatures-differ"
	Rejected          Kind = "messages-rejected"
	Graylisted        Kind = "peers-graylisted"
	Overrun           Kind = "messages-overrun"
	ValidatorPanics   Kind = "validator-panics"
	NotOverRelays     Kind = "topics-not-relayed"
	UDPBlocked        Kind = "udp-blocked"
	NoAutoNATPeer     Kind = "no-autonat-peer"
	NATWithoutRelay   Kind = "nat-without-relay"
	NoReservation     Kind = "no-reservation"
	PortMappingFails  Kind = "port-mapping-fails"
	NoPortMapping     Kind = "no-port-mapping"
	ClockBehind       Kind = "clock-behind"
	FewFiles          Kind = "few-open-files"
	LimitsRefuse      Kind = "limits-refuse"
	DamagedFiles      Kind = "damaged-files"
)

// Finding is something that keeps a node from working as well as it could.
type Finding struct {
	Kind     Kind
	What, Do string
}

// Situation is what a node knows about itself at one moment.
type Situation struct {
	Now       time.Time
	Company   Company
	Messaging Messaging
	Reach     Reach
	Machine   Machine
}

// Company is which peers the node is connected to, and which it knows of.
type Company struct {
	Peers     int  // connected
	Want      int  // how many are wanted at least
	Told      bool // something says where to find peers
	Server    bool // other peers dial it: having none is no fault
	Bootstrap int  // bootstrap peers given
	Names     bool // names were given that lead to bootstrap peers
	Private   bool // it has the key of a private network

	// Last is the last round of dialing bootstrap and saved peers; nil before the
	// first. Looking reports whether there are such rounds.
	Looking bool
	Last    *Round
	// PersistentErrs are why persistent peers are not connected.
	PersistentErrs []string

	// BootstrapFailed and PersistentFailed are the peers that Diagnose dialed
	// without success.
	BootstrapFailed, PersistentFailed []Failure

	// Handshakes is how many incoming connections failed in their handshake, and
	// LastHandshake when the last one did; zero for never.
	Handshakes    uint64
	LastHandshake time.Time

	// DHT is nil without one.
	DHT *DHT
}

// Messaging is about the messages of topics.
type Messaging struct {
	// Deaf are connected peers that have closed their stream of pubsub messages.
	Deaf []string
	// Unsuited are connected peers that have sent messages signed otherwise than
	// their topics, and Rejected those that have sent messages which validators
	// reject.
	Unsuited, Rejected []string
	// Limited are connected peers that speak pubsub, but to which there are only
	// relayed connections with limits, which the node's topics do not use.
	Limited []string
	// Graylisted are connected peers whose score is too low to be heard.
	Graylisted []string
	// Panicked are topics whose validators have panicked, and Overrun those of which
	// more messages came than can be validated.
	Panicked []string
	Overrun  []Flood
}

// Flood is a topic of which too many messages came, and when that was last.
type Flood struct {
	Topic string
	Last  time.Time
}

// Round is a round of dialing.
type Round struct {
	Connected int
	Failed    []Failure
}

// Failure is a peer that was not reached.
type Failure struct {
	Peer string
	Err  error
}

// DHT is the state of the DHT.
type DHT struct {
	Table     int    // peers in the routing table
	Serves    bool   // it answers queries
	Client    bool   // it was told to be a client
	Mode      string // as configured
	Network   string
	Protocols []string
	// Spoken are the protocols of each connected peer that is identified.
	Spoken [][]string
}

// Reach is how others can reach the node.
type Reach struct {
	Reachability string // "Unknown", "Public" or "Private"
	Listening    bool
	// Asks reports whether the node asks peers for its reachability, Unasked how many
	// peers it could ask if they answered, and Asked how many do.
	Asks           bool
	Unasked, Asked int
	// Announced are the addresses that the node announces, except circuit
	// addresses.
	Announced []Addr
	// BootstrapAddrs are those of the bootstrap peers, likewise.
	BootstrapAddrs []Addr
	Relays         []Relay // those of WithAutoRelay and AddRelays, and those found
	Looks          bool    // it looks for relays by itself
	Sought         string  // why it has found none
	UDPBlocked     bool    // almost every dial over UDP fails
	// Ports are those that the router says it forwards, and Unmapped is why it forwards
	// none; "" also if it is not asked to.
	Ports    []Port
	Unmapped string
}

// Port is a port that the router says it forwards.
type Port struct {
	Text    string // protocol, address and port outside
	Refuted bool   // others cannot dial it
	Inside  bool   // the router's address is not a public one
}

// Addr is an address.
type Addr struct {
	Text     string
	Loopback bool
}

// Relay is a relay that the node was told to use.
type Relay struct {
	Peer     string
	Reserved bool
	Missing  string // why there is no reservation
}

// Machine is the state of the machine and of what it stores.
type Machine struct {
	Signed      []Signed // when connected peers signed their addresses, by their clocks
	OpenFiles   uint64   // how many files the process may open; 0 when it is not known
	MaxConns    int      // how many connections there may be before some are trimmed
	Refused     string   // what limits have refused since the start
	LastRefusal time.Time
	Warnings    []string // about files that were damaged or not read
}

// Signed is when a peer signed its addresses, by the peer's clock.
type Signed struct {
	Peer string
	At   time.Time
}

const (
	// clockSlack is how far ahead of this node's clock a peer may have signed
	// its addresses before the clock is called wrong.
	clockSlack = time.Minute
	// clockNonsense is how far ahead a time is no longer taken for a clock's.
	clockNonsense = 100 * 365 * 24 * time.Hour
	// lately is how long an occurrence counts as recent.
	lately = 10 * time.Minute
)

// Texts that several findings share.
const (
	nothingTold = "nothing says where to find peers"
	tellIt      = "give WithBootstrapPeers or WithMDNS, or call Connect"
	checkDHT    = "check that WithNetwork is the same everywhere, and that not all other nodes are DHT clients"
)

// Judge returns what is wrong; nil if nothing is.
func Judge(s Situation) []Finding {
	j := judge{now: s.Now}
	j.company(s.Company)
	j.keys(s.Company)
	j.messaging(s.Messaging)
	j.reach(s.Reach, s.Company.DHT, s.Company)
	j.ports(s.Reach)
	j.machine(s.Machine, slices.Concat(s.Company.BootstrapFailed, s.Company.PersistentFailed))
	return j.found
}

type judge struct {
	now   time.Time
	found []Finding
}

func (j *judge) add(kind Kind, do, format string, args ...any) {
	j.found = append(j.found, Finding{Kind: kind, What: fmt.Sprintf(format, args...), Do: do})
}

func (j *judge) recent(at time.Time) bool { return !at.IsZero() && j.now.Sub(at) < lately }

// company finds why there are no peers, or too few.
func (j *judge) company(c Company) {
	if c.Peers == 0 && !c.Server && !c.Told {
		j.add(NobodyToFind, tellIt, "no peer is connected, and %s", nothingTold)
	}
	switch {
	case c.Bootstrap > 0 && len(c.BootstrapFailed) == c.Bootstrap:
		do := "check their addresses and IDs, that they run, and that this machine has a network; add peers with WithBootstrapPeers"
		if _, cut := broken(slices.Concat(c.BootstrapFailed, c.PersistentFailed)); cut && !c.Private {
			do += "; a peer that hangs up or falls silent in the handshake may refuse this node, be full, or be in a private network (WithPrivateNetwork)"
		}
		j.add(NoBootstrapPeer, do, "none of %d bootstrap peers can be reached: %s", c.Bootstrap, texts(c.BootstrapFailed))
	case c.Names && c.Bootstrap == 0 && c.Peers == 0 && c.Last != nil && len(c.Last.Failed) > 0:
		j.add(NoBootstrapPeer, "check the names and ports, that somebody runs there, and that this machine has a network and a DNS",
			"no name of WithBootstrapDNS led to a peer: %s", texts(c.Last.Failed))
	case c.Bootstrap == 0 && c.Peers == 0 && c.Last != nil && len(c.Last.Failed) > 0:
		j.add(NoBootstrapPeer, "give WithBootstrapPeers: the node knows only the peers saved in WithDataDir, and they may be gone",
			"none of the last saved peers dialed (%d) can be reached: %s", len(c.Last.Failed), texts(c.Last.Failed))
	}
	if len(c.PersistentFailed) > 0 {
		j.add(PersistentMissing, "check their addresses and IDs, and that they run and allow this node; the node keeps trying",
			"%s", texts(c.PersistentFailed))
	}
	if c.Peers > 0 && c.Peers < c.Want && len(c.BootstrapFailed) < max(c.Bootstrap, 1) {
		j.add(FewPeers, "add peers with WithBootstrapPeers, or lower WithMinPeers", "%s", c.count(c.Want))
	}
}

// keys finds out whether the keys of a private network differ.
func (j *judge) keys(c Company) {
	const compare = "compare Status().PrivateNetwork on both sides; it is the fingerprint of the key of WithPrivateNetwork"
	garbled, cut := broken(slices.Concat(c.BootstrapFailed, c.PersistentFailed))
	switch {
	case c.Private && garbled:
		j.add(NetworkKey, compare, "peers answer the handshake with garbage, as happens when the keys differ or the other side has none")
	case c.Private && cut:
		j.add(NetworkKey, compare, "peers hang up or fall silent in the handshake, as happens when the keys differ or the other side has none; they may also refuse this node, or be full")
	case garbled:
		j.add(NetworkKey, "if it is a private network, give its key with WithPrivateNetwork",
			"peers answer the handshake with garbage, as happens when they have the key of a private network and this node has none")
	case c.Private && c.Peers == 0 && j.recent(c.LastHandshake):
		j.add(NetworkKey, compare, "%d incoming connections failed in their handshake, as happens when the keys differ, and no peer is connected", c.Handshakes)
	}
}

// messaging finds what is wrong with messages, and whose fault it is.
func (j *judge) messaging(m Messaging) {
	if len(m.Deaf) > 0 {
		j.add(DeafPeer, "look at their logs, and give WithMaxMessageSize the same value on every node; the node redials them by itself",
			"connected peers have stopped sending pubsub messages: %s", strings.Join(m.Deaf, ", "))
	}
	if len(m.Unsuited) > 0 {
		j.add(Signatures, "give TopicAnonymous to all nodes on the topic or to none, and other programs StrictSign, or StrictNoSign without an author",
			"peers send messages signed otherwise than their topic's, which are dropped: %s", strings.Join(m.Unsuited, ", "))
	}
	if len(m.Rejected) > 0 {
		j.add(Rejected, "compare the versions and the TopicValidator of both sides, or ban the peers with BanPeer",
			"peers send messages that a validator of this node rejects: %s", strings.Join(m.Rejected, ", "))
	}
	if len(m.Graylisted) > 0 {
		j.add(Graylisted, "ban them with BanPeer; if they are honest, compare their versions and limits with this node's, and report it",
			"nothing of these peers is heard, because they flood or break the rules: %s", strings.Join(m.Graylisted, ", "))
	}
	var overrun []string
	for _, o := range m.Overrun {
		if j.recent(o.Last) {
			overrun = append(overrun, fmt.Sprintf("%q", o.Topic))
		}
	}
	if len(overrun) > 0 {
		j.add(Overrun, "make the validators faster or raise ValidatorConcurrency, raise PubSub with WithLimits, or publish less",
			"more messages arrive than this node validates, and some were dropped on the topics %s", strings.Join(overrun, ", "))
	}
	if len(m.Panicked) > 0 {
		j.add(ValidatorPanics, "mend the function given to TopicValidator; the log has the stack",
			"a validator has panicked, and its messages were ignored, on the topics %s", strings.Join(m.Panicked, ", "))
	}
	if len(m.Limited) > 0 {
		j.add(NotOverRelays, "add WithHolePunching to both sides for direct connections, let the relay lift its limits (RelayLimits), or give both sides WithRelayedPubSub for small messages",
			"topics do not reach these peers, because the only connections to them are relayed ones with limits: %s", strings.Join(m.Limited, ", "))
	}
}

// reach finds why others cannot reach or use this node.
func (j *judge) reach(r Reach, d *DHT, c Company) {
	if r.Listening && loopback(r.Announced) && !loopback(r.BootstrapAddrs) {
		var list []string
		for _, a := range r.Announced {
			list = append(list, a.Text)
		}
		j.add(LoopbackOnly, "listen on other addresses with WithListenAddrs, such as /ip4/0.0.0.0/tcp/4001",
			"the node announces %v, which only this machine can dial", list)
	}
	if d != nil && !d.Serves {
		why := fmt.Sprintf("its mode is %s and reachability is %s", d.Mode, r.Reachability)
		do := "if others can dial this node, give WithReachability(network.ReachabilityPublic)"
		if d.Client {
			why, do = "WithDHTMode says so", "leave WithDHTMode(DHTModeClient) out if the node is to hold records for others"
		}
		j.add(DHTClient, do, "the node answers no DHT queries and holds no records, because %s", why)
	}
	if d != nil && d.Table == 0 && d.unspoken() {
		j.add(NoDHTPeer, checkDHT, "%s of the network %q; is the network name correct?", c.nobodyServes(), d.Network)
	}
	if r.UDPBlocked {
		j.add(UDPBlocked, "let UDP through the firewall, or enable only TCP and WebSocket with WithTransports",
			"95 of 100 dials over UDP, which QUIC uses, have failed; the peers may also be gone")
	}
	if r.Asks && r.Reachability == "Unknown" && r.Listening && r.Asked == 0 && r.Unasked > 0 {
		j.add(NoAutoNATPeer, "give WithAutoNAT or WithNATTraversal to nodes that others can dial, or say with WithReachability what is known",
			"the node cannot find out whether others can dial it: none of %d connected peers answers AutoNAT's questions", r.Unasked)
	}
	switch {
	case r.Reachability != "Private" || len(r.Relays) > 0:
	case r.Looks:
		j.add(NATWithoutRelay, "give WithRelayService to nodes of the network with public addresses, or name relays with WithAutoRelay",
			"others cannot dial this node, and it has found no relay: %s", r.sought())
	default:
		j.add(NATWithoutRelay, "give WithNATTraversal, or name relays with WithAutoRelay and add WithHolePunching, or forward a port and announce it with WithAnnounceAddrs",
			"others cannot dial this node, and it has no relay")
	}
	if missing := r.missing(); len(missing) > 0 && len(missing) == len(r.Relays) {
		j.add(NoReservation, "check the addresses of WithAutoRelay, and that those peers run a relay (WithRelayService) that is not full",
			"the node has no reservation at a relay, so others cannot reach it: %s", strings.Join(missing, "; "))
	}
}

// ports finds what is wrong with port mapping.
func (j *judge) ports(r Reach) {
	var refuted, inside []string
	for _, p := range r.Ports {
		switch {
		case p.Refuted && p.Inside:
			inside = append(inside, p.Text)
		case p.Refuted:
			refuted = append(refuted, p.Text)
		}
	}
	if len(inside) > 0 {
		j.add(PortMappingFails, "ask the provider for a public address, or use relays (WithNATTraversal)",
			"the router forwards %s, but is behind another NAT itself, and others cannot dial that", strings.Join(inside, ", "))
	}
	if len(refuted) > 0 {
		j.add(PortMappingFails, "restart the router, forward a port in its settings and announce it with WithExtraAnnounceAddrs, or use relays (WithNATTraversal)",
			"the router says that it forwards %s, but others cannot dial that: it does not, or a firewall stands in between", strings.Join(refuted, ", "))
	}
	if r.Unmapped != "" && r.Reachability == "Private" && len(r.missing()) == len(r.Relays) {
		j.add(NoPortMapping, "switch UPnP or NAT-PMP on in the router, or forward a port in its settings and announce it with WithExtraAnnounceAddrs",
			"others cannot dial this node, and no port is mapped: %s", r.Unmapped)
	}
}

// machine finds what is wrong with the machine, and what was refused.
func (j *judge) machine(m Machine, failed []Failure) {
	const setClock = "set this machine's clock; records and certificates carry times"
	now := j.now.UTC().Format(time.RFC3339)
	if who, from := notYetValid(failed); who != "" {
		j.add(ClockBehind, setClock, "the certificate of %s is valid from %s, and this machine's clock says %s", who, from, now)
	} else if who, ahead := ahead(j.now, m.Signed); ahead > clockSlack {
		j.add(ClockBehind, setClock, "%s signed its addresses %v in the future of this machine's clock, which says %s", who, ahead.Round(time.Second), now)
	}
	if need := uint64(2 * m.MaxConns); m.OpenFiles > 0 && m.OpenFiles < need {
		j.add(FewFiles, fmt.Sprintf("raise the limit (ulimit -n %d), or lower WithConnLimits", 2*need),
			"the process may open %d files, and %d connections need up to %d", m.OpenFiles, m.MaxConns, need)
	}
	if j.recent(m.LastRefusal) {
		j.add(LimitsRefuse, "raise the limits with WithLimits, that of files with ulimit -n, or find out which peers open so many",
			"limits refused connections or streams in the last 10 minutes; in all since the start: %s", m.Refused)
	}
	if len(m.Warnings) > 0 {
		j.add(DamagedFiles, "look at the files that were set aside or left alone; restore lost bans with BanPeer and BanSubnet",
			"%s", strings.Join(m.Warnings, "; "))
	}
}

// Few returns why fewer peers are connected than wanted, "" if enough are.
func (c Company) Few(want int) string {
	if c.Peers >= want {
		return ""
	}
	return c.count(want) + c.because()
}

// NoRoutes returns why the DHT's routing table is empty, "" if it is not.
func (c Company) NoRoutes() string {
	const empty = "the DHT's routing table is empty"
	switch {
	case c.DHT == nil || c.DHT.Table > 0:
		return ""
	case c.Peers > 0:
		return empty + ": " + c.nobodyServes() + "; " + checkDHT
	default:
		return empty + ": no peer is connected" + c.because()
	}
}

func (r Reach) sought() string { return cmp.Or(r.Sought, "it has only begun to look") }

// Unreachable returns why others may not be able to reach the node, "" if they
// can: it is public, or has a reservation at a relay.
func (r Reach) Unreachable() string {
	missing := r.missing()
	switch {
	case r.Reachability == "Public" || len(missing) < len(r.Relays):
		return ""
	case len(r.Relays) == 0 && r.Looks:
		return fmt.Sprintf("reachability is %s, and the node has found no relay: %s", r.Reachability, r.sought())
	case len(r.Relays) == 0:
		return fmt.Sprintf("reachability is %s, and the node has no relay; give WithNATTraversal, name one with WithAutoRelay, or give WithReachability if you know better", r.Reachability)
	default:
		return fmt.Sprintf("reachability is %s, and the node has no reservation at a relay: %s", r.Reachability, strings.Join(missing, "; "))
	}
}

func (c Company) count(want int) string {
	return fmt.Sprintf("%d of at least %d peers connected", c.Peers, want)
}

// because returns why there are no more peers, as far as known without dialing.
func (c Company) because() string {
	var why string
	switch {
	case !c.Told:
		why = "; " + nothingTold + "; " + tellIt
	case !c.Looking:
	case c.Last == nil:
		why = "; the first bootstrap round is under way"
	case len(c.Last.Failed) > 0:
		why = fmt.Sprintf("; in the last bootstrap round %d of %d peers failed: %s",
			len(c.Last.Failed), len(c.Last.Failed)+c.Last.Connected, texts(c.Last.Failed))
	}
	if len(c.PersistentErrs) > 0 {
		why += "; persistent peers are not connected: " + strings.Join(c.PersistentErrs, "; ")
	}
	return why
}

func (c Company) nobodyServes() string {
	return fmt.Sprintf("none of the connected peers (%d) serves the DHT protocol %v", c.Peers, c.DHT.Protocols)
}

// unspoken reports whether no identified peer speaks this network's DHT
// protocol, and at least one is identified.
func (d *DHT) unspoken() bool {
	for _, list := range d.Spoken {
		if slices.ContainsFunc(list, func(p string) bool { return slices.Contains(d.Protocols, p) }) {
			return false
		}
	}
	return len(d.Spoken) > 0
}

func (r Reach) missing() (list []string) {
	for _, relay := range r.Relays {
		if !relay.Reserved {
			list = append(list, relay.Peer+": "+relay.Missing)
		}
	}
	return list
}

// loopback reports whether there are addresses, and all are loopback.
func loopback(list []Addr) bool {
	return len(list) > 0 && !slices.ContainsFunc(list, func(a Addr) bool { return !a.Loopback })
}

func texts(list []Failure) string {
	var out []string
	for _, f := range list {
		out = append(out, f.Err.Error())
	}
	return strings.Join(out, "; ")
}

// broken reports whether dials ended as they do when the two sides have
// different pre-shared keys.
func broken(list []Failure) (garbled, cut bool) {
	for _, f := range list {
		g, c := causes.Handshake(f.Err)
		garbled, cut = garbled || g, cut || c
	}
	return garbled, cut
}

// notYetValid finds a dial that failed because the peer's certificate begins to
// hold later than this machine's clock.
func notYetValid(list []Failure) (who, from string) {
	for _, f := range list {
		if from, ok := causes.NotYetValid(f.Err); ok {
			return f.Peer, from
		}
	}
	return "", ""
}

// ahead returns by how much the signed addresses of peers, which carry the time
// of signing, are ahead of this machine's clock. With several peers, two have to
// agree, because one may lie.
func ahead(now time.Time, list []Signed) (who string, by time.Duration) {
	list = slices.DeleteFunc(slices.Clone(list), func(s Signed) bool { return s.At.Sub(now) >= clockNonsense })
	slices.SortFunc(list, func(a, b Signed) int { return b.At.Compare(a.At) })
	if len(list) == 0 {
		return "", 0
	}
	second := list[min(1, len(list)-1)]
	return second.Peer, second.At.Sub(now)
}
