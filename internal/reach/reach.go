// Package reach finds out whether others can dial the node, address by address: it
// asks peers by AutoNAT v2, and answers when they ask. It is the only place that tells
// upstream's parts what the node's reachability is.
//
// Specification: github.com/libp2p/specs/blob/master/autonat/autonat-v2.md.
package reach

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// tick is how often the addresses are looked at that nobody tells of.
	tick = 5 * time.Second
	// asksAtOnce bounds the questions under way, and maxCandidates the addresses.
	asksAtOnce, maxCandidates = 8, 32
)

// Options are the host's options for reachability. Known is what the application has
// said; with ask the node finds it out otherwise.
//
// They are here, together with told, for one reason: with upstream's AutoNAT v2 in
// the host, ForceReachabilityPrivate has no effect on the addresses that the host
// announces (go-libp2p#3515), and AutoNAT v1, which upstream always asks, says
// something else than v2. So the host gets neither.
func Options(known network.Reachability, ask bool) []libp2p.Option {
	if known == network.ReachabilityUnknown && !ask {
		return nil
	}
	return []libp2p.Option{func(cfg *libp2p.Config) error {
		// Unknown too: AutoRelay waits until something says what reachability is.
		cfg.ForceReachability = &known
		return nil
	}}
}

// Config configures a [Tracker]. Its functions must not block.
type Config struct {
	Host     *nethost.Host
	Known    network.Reachability // what the application has said; unknown: found out
	Announce []ma.Multiaddr       // configured addresses; nil: those of the host
	Extra    []ma.Multiaddr       // configured addresses, besides those of the host
	// Private lets servers dial private addresses, for peers that are connected from
	// such: on a network of the application's own.
	Private bool
	// Change is notified by others when peers come and go, and by the tracker.
	Change *signal.Signal
	// Addr and Overall are called when a verdict changes.
	Addr    func(Addr)
	Overall func(network.Reachability)
	Log     *slog.Logger
}

// Addr is an address and whether others can dial it.
type Addr struct {
	Addr         ma.Multiaddr
	Reachability network.Reachability
}

// Tracker asks and answers. It is safe for concurrent use.
type Tracker struct {
	cfg     Config
	asker   *asker
	emitter event.Emitter
	results chan result

	// Of the goroutine that runs:
	candidates map[string]*candidate
	busy       map[peer.ID]bool
	resting    map[string]time.Time // servers, until when
	strikes    map[string]int       // how often in a row a server has not answered
	first      time.Time            // when the first server appeared; zero without one
	realm      addrs.Reach
	told       network.Reachability
	ips        []netip.Addr // of the machine
	moves      int          // of the machine
	moved      bool         // and nothing has been found out since

	mu      sync.Mutex
	list    []Addr               // guarded by mu
	overall network.Reachability // guarded by mu
	proven  bool                 // guarded by mu
}

// result is the end of a question.
type result struct {
	server string
	id     peer.ID
	key    string
	answer answer
	err    error
}

// Start serves AutoNAT and begins to ask. What it starts ends with group, but for the
// server, which ends with Close.
func Start(group *lifecycle.Group, cfg Config) (*Tracker, func() error, error) {
	t := &Tracker{
		cfg: cfg, asker: newAsker(cfg.Host), results: make(chan result, asksAtOnce),
		candidates: make(map[string]*candidate), busy: make(map[peer.ID]bool), resting: make(map[string]time.Time), strikes: make(map[string]int),
		overall: cfg.Known, told: cfg.Known,
	}
	dialer, err := cfg.Host.BackDialer()
	if err != nil {
		return nil, nil, err
	}
	var opts []autonatv2.AutoNATOption
	if cfg.Private {
		opts = append(opts, autonatv2.AllowPrivateAddrs)
	}
	server, err := autonatv2.New(dialer, opts...)
	if err != nil {
		return nil, nil, errors.Join(err, dialer.Close())
	}
	if err := server.Start(cfg.Host); err != nil {
		return nil, nil, errors.Join(err, dialer.Close())
	}
	// Upstream's client takes no dial-backs: it is never asked.
	cfg.Host.SetStreamHandler(autonatv2.DialBackProtocol, t.asker.handle)
	stop := func() error {
		server.Close() // closes the dialer too
		return nil
	}
	if t.emitter, err = cfg.Host.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	group.Go(t.run)
	return t, stop, nil
}

// Addrs returns the addresses that others may dial, and what is known about each.
func (t *Tracker) Addrs() []Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.list)
}

// Reachability returns the verdict about the node.
func (t *Tracker) Reachability() network.Reachability {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.overall
}

// Servers returns how many peers are connected directly and identified, and how many
// of them answer questions.
func (t *Tracker) Servers() (peers, able int) {
	for _, id := range t.cfg.Host.PeerIDs() {
		protos := t.cfg.Host.Protocols(id)
		if len(protos) == 0 || !slices.ContainsFunc(t.cfg.Host.Conns(id), func(c nethost.Conn) bool { return !c.Relayed }) {
			continue
		}
		peers++
		if slices.Contains(protos, autonatv2.DialProtocol) {
			able++
		}
	}
	return peers, able
}

// NeedsRelay reports whether the node should keep reservations: unless strangers can
// dial it for certain. Servers that this node has sent packets to can be let in by a
// NAT that keeps strangers out (address-dependent filtering, RFC 4787, section 5), so
// an address that only such have dialed is announced, but not relied on.
func (t *Tracker) NeedsRelay() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.overall != network.ReachabilityPublic || !t.proven && t.cfg.Known != network.ReachabilityPublic
}

// Announce turns the addresses that the host would announce into those that are worth
// it: with the ones that peers see and have dialed, and without public ones that they
// could not dial. Private ones stay: a peer on the LAN may dial them.
func (t *Tracker) Announce(list []ma.Multiaddr) []ma.Multiaddr {
	if t.cfg.Announce != nil {
		return list
	}
	known := t.Addrs()
	// Those that peers see are announced once they have been dialed: the host takes up
	// what four see, or have seen before the machine moved.
	sure := slices.Concat(t.cfg.Extra, t.cfg.Host.MappedAddrs())
	out := slices.DeleteFunc(slices.Clone(list), func(a ma.Multiaddr) bool {
		return !addrs.IsCircuit(a) && addrs.ReachOf(a) == addrs.Global && t.cfg.Host.Foreign(a) && !ma.Contains(sure, a)
	})
	for _, a := range known {
		switch a.Reachability {
		case network.ReachabilityPublic:
			if !ma.Contains(out, a.Addr) {
				out = append(out, a.Addr)
			}
		case network.ReachabilityPrivate:
			out = slices.DeleteFunc(out, func(b ma.Multiaddr) bool { return b.Equal(a.Addr) && addrs.ReachOf(b) == addrs.Global })
		}
	}
	return out
}

func (t *Tracker) run(ctx context.Context) {
	defer t.emitter.Close() // it fails only when closed twice
	var asking sync.WaitGroup
	defer asking.Wait()
	timer := time.NewTimer(tick)
	defer timer.Stop()
	for {
		change := t.cfg.Change.Wait()
		now := time.Now()
		servers := t.servers()
		t.move()
		t.look(servers, now)
		t.publish(servers, now)
		t.ask(ctx, &asking, servers, now)
		wait := tick
		if left := patience - now.Sub(t.first); !t.first.IsZero() && left > 0 {
			wait = min(wait, left)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case r := <-t.results:
			t.take(r, time.Now())
		case <-change:
		case <-timer.C:
		}
	}
}

// server is a peer that serves AutoNAT v2 and is connected directly.
type server struct {
	id   peer.ID
	key  string // by which its votes are counted
	addr ma.Multiaddr
	six  bool // it has an IPv6 address
}

// servers returns those that can judge: of the widest reach there is. What a peer on
// the LAN can dial says nothing while there are others.
func (t *Tracker) servers() (list []server) {
	t.realm = addrs.Loopback + 1
	for _, id := range t.cfg.Host.PeerIDs() {
		if !slices.Contains(t.cfg.Host.Protocols(id), autonatv2.DialProtocol) {
			continue
		}
		for _, c := range t.cfg.Host.Conns(id) {
			if c.Relayed {
				continue
			}
			s := server{id: id, key: keyOf(id, c.Addr), addr: c.Addr, six: addrs.IsIP6(c.Addr)}
			s.six = s.six || slices.ContainsFunc(t.cfg.Host.KnownAddrs(id), func(a ma.Multiaddr) bool {
				return addrs.IsIP6(a) && !addrs.IsCircuit(a) && addrs.ReachOf(a) == addrs.ReachOf(c.Addr)
			})
			t.realm = min(t.realm, addrs.ReachOf(c.Addr))
			list = append(list, s)
			break
		}
	}
	list = slices.DeleteFunc(list, func(s server) bool { return addrs.ReachOf(s.addr) != t.realm })
	slices.SortFunc(list, func(a, b server) int { return cmp.Compare(a.id, b.id) })
	return list
}

// keyOf returns what a server's votes are counted by: its address, which costs more
// than an ID, but where many share one.
func keyOf(id peer.ID, a ma.Multiaddr) string {
	ip, err := manet.ToIP(a)
	if err != nil || addrs.ReachOf(a) != addrs.Global {
		return string(id)
	}
	if ip.To4() == nil {
		ip = ip.Mask(net.CIDRMask(56, 128))
	}
	return ip.String()
}

// look brings the candidates up to date.
func (t *Tracker) look(servers []server, now time.Time) {
	if len(servers) == 0 {
		t.first = time.Time{}
		return // what is known stays
	}
	if t.first.IsZero() {
		t.first = now
	}
	for _, a := range t.addresses() {
		if addrs.ReachOf(a) != t.realm {
			continue
		}
		key := string(a.Bytes())
		c := t.candidates[key]
		if c == nil {
			if len(t.candidates) >= maxCandidates {
				continue
			}
			c = newCandidate(a)
			t.candidates[key] = c
		}
		c.seen = now
		c.foreign = t.cfg.Announce == nil && t.cfg.Host.Foreign(a) && !ma.Contains(slices.Concat(t.cfg.Extra, t.cfg.Host.MappedAddrs()), a)
	}
	for key, c := range t.candidates {
		// Peers' observations end with their connections.
		keeps := c.foreign && c.verdict == network.ReachabilityPublic && now.Sub(c.seen) <= keep
		if addrs.ReachOf(c.addr) != t.realm || c.seen.Before(now) && !keeps {
			delete(t.candidates, key)
		}
	}
}

// addresses returns those at which others may reach the node.
func (t *Tracker) addresses() []ma.Multiaddr {
	if t.cfg.Announce != nil {
		return t.cfg.Announce
	}
	own, err := t.cfg.Host.InterfaceAddrs()
	if err != nil {
		t.cfg.Log.Debug("addresses of the interfaces", "err", err)
	}
	own = slices.DeleteFunc(slices.Clone(own), addrs.IsCircuit)
	return ma.Unique(slices.Concat(own, t.cfg.Extra, t.cfg.Host.MappedAddrs(), t.cfg.Host.ObservedAddrs()))
}

// move forgets everything when the machine has other addresses than before.
func (t *Tracker) move() {
	ips, moves := t.cfg.Host.OwnIPs(), t.cfg.Host.Moves()
	if slices.Equal(ips, t.ips) && moves == t.moves {
		return
	}
	t.ips, t.moves, t.first = ips, moves, time.Time{}
	clear(t.candidates)
	clear(t.resting)
	clear(t.strikes)
	t.moved = true
}

// take records the end of a question.
func (t *Tracker) take(r result, now time.Time) {
	delete(t.busy, r.id)
	c := t.candidates[r.key]
	if c != nil {
		c.asking--
	}
	if r.err != nil {
		t.cfg.Log.Debug("asking whether an address can be reached", "peer", r.id, "err", r.err)
		if t.strikes[r.server]++; t.strikes[r.server] >= 3 {
			t.resting[r.server] = now.Add(rest)
			delete(t.strikes, r.server)
		} else {
			t.resting[r.server] = now.Add(tick)
		}
		return
	}
	delete(t.strikes, r.server)
	if c == nil {
		return
	}
	switch r.answer {
	case refused:
		c.unfit[r.server] = now.Add(rest)
	default:
		c.record(r.server, r.answer == dialed, now)
	}
}

// able returns the servers that may still answer.
func (t *Tracker) able(servers []server, now time.Time) []server {
	return slices.DeleteFunc(slices.Clone(servers), func(s server) bool {
		until, resting := t.resting[s.key]
		return resting && until.Sub(now) > tick
	})
}

// publish decides, and tells what has changed.
func (t *Tracker) publish(servers []server, now time.Time) {
	able := t.able(servers, now)
	keys := make(map[string]bool)
	for _, s := range able {
		keys[s.key] = true
	}
	patient := !t.first.IsZero() && now.Sub(t.first) >= patience
	var list, judged []*candidate
	var changed []Addr
	for _, c := range t.candidates {
		list = append(list, c)
		fit := c.fit(able, now)
		if fit > 0 || len(c.votes) > 0 {
			judged = append(judged, c)
		}
		if c.decide(fit == 1 && patient) {
			c.next = now.Add(c.pause())
			changed = append(changed, Addr{c.addr, c.verdict})
			t.cfg.Log.Info("address", "addr", c.addr, "reachability", c.verdict)
		}
		if !c.open() && len(keys) > margin {
			for _, liar := range c.liars() {
				t.cfg.Log.Debug("a server contradicts the others", "server", liar, "addr", c.addr)
				t.resting[liar] = now.Add(rest)
			}
		}
	}
	slices.SortFunc(list, func(a, b *candidate) int { return bytes.Compare(a.addr.Bytes(), b.addr.Bytes()) })
	slices.SortFunc(changed, func(a, b Addr) int { return bytes.Compare(a.Addr.Bytes(), b.Addr.Bytes()) })
	var known []Addr
	for _, c := range list {
		known = append(known, Addr{c.addr, c.verdict})
	}
	verdict, proven := t.verdict(list, judged, len(keys) > 0, patient), t.proves(list)
	t.mu.Lock()
	news := verdict != t.overall || proven != t.proven || len(changed) > 0 || len(known) != len(t.list)
	overallChanged := verdict != t.overall
	t.list, t.overall, t.proven = known, verdict, proven
	t.mu.Unlock()
	for _, a := range changed {
		t.cfg.Addr(a)
	}
	if overallChanged {
		t.cfg.Log.Info("reachability", "is", verdict)
		t.cfg.Overall(verdict)
	}
	// With each address that changes, too: the host then computes what it announces, and
	// does not wait for its next turn.
	if tell := told(t.cfg.Known, verdict, proven); tell != t.told || len(changed) > 0 {
		t.told = tell
		if err := t.emitter.Emit(event.EvtLocalReachabilityChanged{Reachability: tell}); err != nil {
			t.cfg.Log.Warn("telling the host's parts about reachability", "err", err)
		}
	}
	if news {
		t.cfg.Change.Notify()
	}
}

// verdict is that about the node.
func (t *Tracker) verdict(list, judged []*candidate, served, patient bool) network.Reachability {
	before := t.Reachability()
	switch {
	case t.cfg.Known != network.ReachabilityUnknown:
		return t.cfg.Known
	case !served && t.moved:
		return network.ReachabilityUnknown
	case !served:
		return before // nobody says otherwise
	}
	nothing := network.ReachabilityUnknown
	if len(list) == 0 && patient {
		nothing = network.ReachabilityPrivate // there is no address to dial
	}
	verdict := overall(judged, nothing)
	if verdict != network.ReachabilityUnknown {
		t.moved = false
	} else if before == network.ReachabilityPrivate && !t.moved {
		// Behind a NAT that uses another port for each peer, there is always an address
		// that nobody has tried yet.
		return before
	}
	return verdict
}

// told is what upstream's parts are told: the DHT, which serves or not, AutoRelay,
// which makes reservations or not, and the host, which announces public addresses or
// not. They would give up their relays for an address that strangers may be unable to
// dial.
func told(known, verdict network.Reachability, proven bool) network.Reachability {
	switch {
	case known != network.ReachabilityUnknown:
		return known
	case verdict == network.ReachabilityPublic && !proven:
		return network.ReachabilityUnknown
	default:
		return verdict
	}
}

// proves reports whether strangers can dial the node, see NeedsRelay.
func (t *Tracker) proves(list []*candidate) bool {
	for _, c := range list {
		if c.verdict == network.ReachabilityPublic && (!c.foreign || time.Since(t.cfg.Host.StrangerCame()) < time.Hour) {
			return true
		}
	}
	return false
}

// ask gives each server that has nothing to do a question, about the address of which
// least is known.
func (t *Tracker) ask(ctx context.Context, asking *sync.WaitGroup, servers []server, now time.Time) {
	for _, s := range servers {
		if t.busy[s.id] || len(t.busy) >= asksAtOnce || now.Before(t.resting[s.key]) {
			continue
		}
		var best *candidate
		for _, c := range t.candidates {
			if t.worth(s, c, now) && (best == nil || c.before(best)) {
				best = c
			}
		}
		if best == nil {
			continue
		}
		if !best.open() { // a check, by one server
			best.next = now.Add(best.pause())
		}
		best.asking++
		t.busy[s.id] = true
		key, addr := string(best.addr.Bytes()), best.addr
		asking.Go(func() {
			got, err := t.asker.ask(ctx, s.id, addr)
			select {
			case t.results <- result{server: s.key, id: s.id, key: key, answer: got, err: err}:
			case <-ctx.Done():
			}
		})
	}
}

// worth reports whether a server is to be asked about an address.
func (t *Tracker) worth(s server, c *candidate, now time.Time) bool {
	if now.Before(c.unfit[s.key]) || addrs.IsIP6(c.addr) && !s.six {
		return false
	}
	v, voted := c.votes[s.key]
	if !c.open() {
		return !now.Before(c.next) && c.asking == 0
	}
	return !voted || now.Sub(v.at) > checkUnknown
}

// before reports whether less is known about an address than about another.
func (c *candidate) before(other *candidate) bool {
	if a, b := len(c.votes)+c.asking, len(other.votes)+other.asking; a != b {
		return a < b
	}
	return bytes.Compare(c.addr.Bytes(), other.addr.Bytes()) < 0
}
