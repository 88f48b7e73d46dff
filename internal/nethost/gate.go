package nethost

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// maxAsked bounds how many peers are remembered that the application wanted to
	// connect to.
	maxAsked = 4096
	// maxTellers bounds how many peers are remembered on whose word dials were made,
	// and maxWords how many peers that were learned.
	maxTellers = 1024
	maxWords   = 8192
	// maxDebt is how many dials may be made on the word of one peer that did not lead
	// to a connection, and debtEase how many of them are forgiven per second.
	maxDebt  = 256
	debtEase = 4
)

// gate decides which addresses are dialed on whose word. What the application
// names is dialed wherever it is. What was only learned (from the DHT, saved
// peers, a peer about itself) is dialed where a stranger's word may send the
// node: not to services of this machine, its links, or, on the public network,
// its LAN, unless peers are there or the peer was found there. And it is dialed
// only so often: a peer whose words lead nowhere is not believed for a while.
type gate struct {
	public bool // on the public network

	mu      sync.Mutex
	given   map[peer.ID]bool      // by the options, or added; guarded by mu
	asked   map[peer.ID]bool      // by Connect; guarded by mu
	order   []peer.ID             // of asked, the oldest first; guarded by mu
	near    map[peer.ID]bool      // found on the LAN; guarded by mu
	nearest []peer.ID             // of near, the oldest first; guarded by mu
	words   map[peer.ID]word      // peers that were learned, until they are connected; guarded by mu
	tellers map[string]debt       // guarded by mu
	now     func() time.Time      // for tests
	reaches func() []addrs.Reach  // where the peers are that are connected directly
	listens func() []ma.Multiaddr // where the node listens
}

// word is from whom a peer was learned, and how many dials that has led to.
type word struct {
	by    string
	dials int
}

// tellerOf returns what a peer's account is kept by: its address, which costs
// more than an ID, but in a private network, where many share one.
func tellerOf(c network.Conn) string {
	a := c.RemoteMultiaddr()
	if ip, err := manet.ToIP(a); err == nil && addrs.ReachOf(a) == addrs.Global && !addrs.IsCircuit(a) {
		if ip.To4() == nil {
			ip = ip.Mask(net.CIDRMask(56, 128))
		}
		return ip.String()
	}
	return string(c.RemotePeer())
}

// debt is how many dials a peer's words have led to in vain.
type debt struct {
	dials float64
	at    time.Time
}

func (d debt) left(now time.Time) float64 { return max(0, d.dials-debtEase*now.Sub(d.at).Seconds()) }

func newGate(public bool, h *Host) *gate {
	return &gate{
		public: public,
		given:  make(map[peer.ID]bool), asked: make(map[peer.ID]bool), near: make(map[peer.ID]bool), words: make(map[peer.ID]word), tellers: make(map[string]debt),
		now: time.Now,
		reaches: func() []addrs.Reach {
			var list []addrs.Reach
			for _, c := range h.swarm.Conns() {
				if a := c.RemoteMultiaddr(); !addrs.IsCircuit(a) {
					list = append(list, addrs.ReachOf(a))
				}
			}
			return list
		},
		listens: func() []ma.Multiaddr {
			list, err := h.InterfaceAddrs()
			if err != nil {
				return nil
			}
			return slices.DeleteFunc(list, addrs.IsCircuit)
		},
	}
}

// needsWord reports whether an address is dialed only if the application named
// the peer, or a name may lead to such an address.
func (g *gate) needsWord(a ma.Multiaddr) bool {
	return addrs.IsName(a) || addrs.IsDNSAddr(a) || !g.free(addrs.ReachOf(a))
}

// free reports whether any stranger may send the node to addresses of a reach.
func (g *gate) free(r addrs.Reach) bool {
	return r == addrs.Global || r == addrs.Private && !g.public
}

// home reports whether the node listens only on this machine.
func (g *gate) home() bool {
	list := g.listens()
	return len(list) > 0 && !slices.ContainsFunc(list, func(a ma.Multiaddr) bool { return addrs.ReachOf(a) != addrs.Loopback })
}

// mayDial reports whether an address of a peer may be dialed, and counts the dial.
func (g *gate) mayDial(id peer.ID, a ma.Multiaddr) bool {
	g.mu.Lock()
	named := g.given[id] || g.asked[id]
	g.mu.Unlock()
	return named || g.leads(id, a) && g.charge(id)
}

// leads reports whether an address of a peer that was not named lies where the
// node may be led.
func (g *gate) leads(id peer.ID, a ma.Multiaddr) bool {
	reach := addrs.ReachOf(a)
	if g.free(reach) || reach == addrs.Loopback && g.home() {
		return true
	}
	g.mu.Lock()
	near := g.near[id]
	g.mu.Unlock()
	return near && (reach == addrs.Private || onLink(a)) || slices.Contains(g.reaches(), reach)
}

// reachOfTeller returns the reach of a peer's own address: through a relay it may
// be anywhere.
func reachOfTeller(a ma.Multiaddr) addrs.Reach {
	if addrs.IsCircuit(a) {
		return addrs.Global
	}
	return addrs.ReachOf(a)
}

// believes reports whether an address of some reach may be learned from a peer of
// another.
func (g *gate) believes(teller, reach addrs.Reach) bool {
	if g.free(reach) {
		return true
	}
	switch reach {
	case addrs.Private:
		return teller != addrs.Global
	case addrs.Loopback:
		return teller == addrs.Loopback || g.home()
	default:
		return teller == reach
	}
}

// learned notes on whose word a peer may be dialed.
func (g *gate) learned(teller string, id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.words[id]; known || g.given[id] || g.asked[id] {
		return
	}
	if len(g.words) >= maxWords {
		clear(g.words) // their dials stay on the tellers' accounts
	}
	g.words[id] = word{by: teller}
}

// charge puts a dial of a learned peer on the account of whoever told it, and
// reports whether there is room for it.
func (g *gate) charge(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.words[id]
	if !ok {
		return true
	}
	now := g.now()
	left := g.tellers[w.by].left(now)
	if left+1 > maxDebt {
		return false
	}
	if len(g.tellers) >= maxTellers {
		maps.DeleteFunc(g.tellers, func(_ string, d debt) bool { return d.left(now) == 0 })
		for other := range g.tellers {
			if len(g.tellers) < maxTellers {
				break
			}
			delete(g.tellers, other)
		}
	}
	w.dials++
	g.words[id] = w
	g.tellers[w.by] = debt{left + 1, now}
	return true
}

// wait returns for how long a peer that was learned is better not dialed: until
// half of the dials that may be made on its teller's word are free.
func (g *gate) wait(id peer.ID) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.words[id]
	if !ok {
		return 0
	}
	over := g.tellers[w.by].left(g.now()) - maxDebt/2
	return max(0, time.Duration(over/debtEase*float64(time.Second)))
}

// reached clears the account of a peer that is connected: its teller was right.
func (g *gate) reached(id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.words[id]
	if !ok {
		return
	}
	delete(g.words, id)
	now := g.now()
	if left := g.tellers[w.by].left(now) - float64(w.dials); left > 0 {
		g.tellers[w.by] = debt{left, now}
	} else {
		delete(g.tellers, w.by)
	}
}

// Given lets the node dial peers wherever they are: the application named them.
func (h *Host) Given(peers ...peer.AddrInfo) {
	h.gate.mu.Lock()
	defer h.gate.mu.Unlock()
	for _, p := range peers {
		for _, id := range namedBy(p) {
			h.gate.given[id] = true
			delete(h.gate.words, id)
		}
	}
}

// forget undoes Given.
func (g *gate) forget(id peer.ID) {
	g.mu.Lock()
	delete(g.given, id)
	g.mu.Unlock()
}

// Asked is Given for a peer that the application wants to connect to. It holds
// for the last 4096 of them.
func (h *Host) Asked(p peer.AddrInfo) {
	g := h.gate
	if !slices.ContainsFunc(p.Addrs, g.needsWord) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range namedBy(p) {
		delete(g.words, id)
		g.order = remember(g.asked, g.order, id)
	}
}

// Nearby lets the node dial the private addresses of a peer that was found on
// the LAN. It holds for the last 4096 of them.
func (h *Host) Nearby(id peer.ID) {
	g := h.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nearest = remember(g.near, g.nearest, id)
}

// remember adds a peer to a set of the last maxAsked.
func remember(set map[peer.ID]bool, order []peer.ID, id peer.ID) []peer.ID {
	if set[id] {
		return order
	}
	set[id] = true
	if order = append(order, id); len(order) > maxAsked {
		delete(set, order[0])
		order = order[1:]
	}
	return order
}

// namedBy returns a peer, and the relays in its addresses, which are dialed first.
func namedBy(p peer.AddrInfo) []peer.ID {
	ids := []peer.ID{p.ID}
	for _, a := range p.Addrs {
		if !addrs.IsCircuit(a) {
			continue
		}
		text, err := a.ValueForProtocol(ma.P_P2P) // the first, which is the relay
		if err != nil {
			continue
		}
		if id, err := peer.Decode(text); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Facing returns a host as the application sees it: it dials what the application
// names.
func Facing(via host.Host, h *Host) host.Host { return facing{via, h} }

type facing struct {
	host.Host
	base *Host
}

func (f facing) Connect(ctx context.Context, p peer.AddrInfo) error {
	f.base.Asked(p)
	return f.Host.Connect(ctx, p)
}

// beliefCheck is how often AwaitBelief looks whether a dial has led somewhere.
const beliefCheck = time.Second

// AwaitBelief waits until a peer that was learned would be dialed, or ctx ends. It
// is for those who have many peers to dial and time, such as a crawl of the DHT:
// the dials on one peer's word stay bounded, but honest peers lose none.
func (h *Host) AwaitBelief(ctx context.Context, id peer.ID) {
	for ctx.Err() == nil {
		wait := h.gate.wait(id)
		if wait == 0 {
			return
		}
		timer := time.NewTimer(min(wait+time.Millisecond, beliefCheck))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// Learned returns which addresses of a peer may be dialed on the word of another
// that is connected by c, and remembers whose word that is. The addresses are in
// their binary form, and most are not parsed; list is overwritten.
func (h *Host) Learned(c network.Conn, id peer.ID, list [][]byte) [][]byte {
	teller := addrs.Reach(-1) // not known yet
	list = slices.DeleteFunc(list, func(b []byte) bool {
		reach, ok := addrs.ReachOfBytes(b)
		if !ok {
			a, err := ma.NewMultiaddrBytes(b)
			if err != nil || addrs.Undialable(a) != nil {
				return true
			}
			reach = addrs.ReachOf(a)
		}
		if h.gate.free(reach) {
			return false
		}
		if teller < 0 {
			teller = reachOfTeller(c.RemoteMultiaddr())
		}
		return !h.gate.believes(teller, reach)
	})
	if len(list) > 0 && id != h.ID() && id != c.RemotePeer() && !h.Connected(id) {
		h.gate.learned(tellerOf(c), id)
	}
	return list
}

// MayDial reports whether an address of a peer that was not named by the
// application may be dialed now.
func (h *Host) MayDial(id peer.ID, a ma.Multiaddr) bool { return h.gate.leads(id, a) }

// gated is a connection gater in front of which the gate stands.
type gated struct {
	connmgr.ConnectionGater
	gate     *gate
	contacts *contacts
}

// InterceptAddrDial decides about dialing an address.
func (g gated) InterceptAddrDial(id peer.ID, a ma.Multiaddr) bool {
	if !g.ConnectionGater.InterceptAddrDial(id, a) || !g.gate.mayDial(id, a) {
		return false
	}
	g.contacts.sent(a)
	return true
}
