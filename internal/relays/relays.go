// Package relays keeps reservations at relays, named or found, and runs the relay
// service.
package relays

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// retry is how often AutoRelay tries relays without a reservation, and backoffFor
	// how long it leaves a relay alone that refused it. Its own 30 seconds and 1
	// hour are meant for choosing among strangers; here the relays are named.
	retry      = 2 * time.Second
	backoffFor = 10 * time.Second
	// Max bounds how many relays may be named.
	Max = 16
	// unbounded is how many reservations AutoRelay wants: as many as it gets
	// candidates.
	unbounded = 1 << 10

	// tag is the tag under which AutoRelay protects its relays from trimming.
	tag = "autorelay"
)

// Config configures a [Client].
type Config struct {
	Disabled     bool // no relay client at all
	Relays       []peer.AddrInfo
	Discover     bool           // strangers' relays are found and used too
	Announce     []ma.Multiaddr // replaces the listen addresses; nil: those
	Extra        []ma.Multiaddr // announced too
	Hidden       []netip.Prefix // where no address is announced, if it is not in Announce or Extra
	HolePunching bool
	// Reserved, Lost and Punched are called on events; they must not block.
	Reserved, Lost func(peer.ID, Source)
	Punched        func(id peer.ID, took time.Duration, err error)
	Log            *slog.Logger

	// The rest is for finding relays.

	Self peer.ID
	// Search searches for relays in the DHT once; nil without a DHT.
	Search func(context.Context) iter.Seq2[peer.AddrInfo, error]
	Dial   func(context.Context, peer.AddrInfo) error
	// Welcome reports whether a peer may be used.
	Welcome func(peer.ID) bool
	Reach   func() network.Reachability
	// Change is notified when peers, or what Reach returns, may have changed.
	Change *signal.Signal
}

// Client keeps the reservations. It is safe for concurrent use.
type Client struct {
	cfg     Config
	enabled bool // it keeps reservations
	ctx     context.Context
	cancel  context.CancelFunc
	group   *lifecycle.Group     // set by Follow
	auto    *autorelay.AutoRelay // set by Follow; nil if not enabled
	puncher *holepunch.Service   // set while the host is made, with HolePunching

	// host is set once, by Open, when the node is complete: the host needs the
	// address factory before it is made.
	host   atomic.Pointer[nethost.Host]
	opened chan struct{}

	changed signal.Signal // the relays, or a reservation

	mu       sync.Mutex
	relays   []peer.AddrInfo   // replaced, never changed; guarded by mu
	held     map[peer.ID]bool  // relays that AutoRelay has a reservation at; guarded by mu
	asking   peer.ID           // the relay that AutoRelay asks; guarded by mu
	failures map[peer.ID]error // why the last request was refused, or nil; guarded by mu
	find     finder            // guarded by mu
}

// New returns a client for the host to be made with its Options.
func New(cfg Config) *Client {
	c := &Client{
		cfg: cfg, enabled: !cfg.Disabled && (len(cfg.Relays) > 0 || cfg.Discover), relays: cfg.Relays, opened: make(chan struct{}),
		held: make(map[peer.ID]bool), failures: make(map[peer.ID]error), find: finder{pool: make(map[peer.ID]*candidate)},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Options returns the host's options for relays and NATs.
func (c *Client) Options() []libp2p.Option {
	if c.cfg.Disabled {
		return []libp2p.Option{libp2p.DisableRelay()}
	}
	// NoListenAddrs would switch the relay client off unless it is enabled
	// explicitly.
	opts := []libp2p.Option{libp2p.EnableRelay()}
	if c.cfg.HolePunching {
		opts = append(opts, libp2p.EnableHolePunching(c.punching()...))
	}
	return opts
}

// Open sets the complete host: from now on relays are dialed.
func (c *Client) Open(h *nethost.Host) {
	c.host.Store(h)
	close(c.opened)
}

// Enabled reports whether the client keeps reservations: relays were named
// before the host was made, or are found.
func (c *Client) Enabled() bool { return c.enabled }

// Relays returns the named relays.
func (c *Client) Relays() []peer.AddrInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relays
}

// Add adds relays, or addresses of relays.
func (c *Client) Add(relays ...peer.AddrInfo) error {
	c.mu.Lock()
	merged := addrs.Merge(append(slices.Clone(c.relays), relays...)...)
	if len(merged) > Max {
		c.mu.Unlock()
		return fmt.Errorf("%d relays exceed the limit of %d", len(merged), Max)
	}
	c.relays = merged
	c.mu.Unlock()
	c.changed.Notify()
	return nil
}

// Remove ends the reservation at a relay, and the connection that it needs. It
// reports whether the relay was known.
func (c *Client) Remove(id peer.ID) bool {
	c.mu.Lock()
	left := slices.DeleteFunc(slices.Clone(c.relays), func(p peer.AddrInfo) bool { return p.ID == id })
	known := len(left) < len(c.relays)
	c.relays = left
	c.mu.Unlock()
	if h := c.host.Load(); known && h != nil {
		// AutoRelay renews its reservation while the connection is open.
		h.Protect(id, tag, false)
		if err := h.Disconnect(id); err != nil {
			c.cfg.Log.Debug("closing connection to removed relay", "relay", id, "err", err)
		}
	}
	c.changed.Notify()
	return known
}

// candidates feeds AutoRelay the named relays without a reservation, and those
// found that it is to try, once the host is complete and there are any.
func (c *Client) candidates(ctx context.Context, _ int) <-chan peer.AddrInfo {
	ch := make(chan peer.AddrInfo, 2*Max)
	go func() { // ends with ctx, which AutoRelay's close ends
		defer close(ch)
		select {
		case <-c.opened:
		case <-ctx.Done():
			return
		}
		h := c.host.Load()
		for {
			changed := c.changed.Wait()
			missing := slices.DeleteFunc(slices.Clone(c.Relays()), func(p peer.AddrInfo) bool { return c.reserved(h, p.ID) })
			missing = append(missing, c.offers()...)
			if len(missing) > 0 {
				for _, p := range missing[:min(len(missing), cap(ch))] {
					if !h.Direct(p.ID) {
						h.ClearBackoff(p.ID)
					}
					ch <- p
				}
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}

// Reserved reports whether there is a reservation at a relay, through which others
// can reach the node. At a relay that was found, it counts once the relay has
// proven to relay.
func (c *Client) Reserved(id peer.ID) bool {
	h := c.host.Load()
	return h != nil && c.reserved(h, id)
}

func (c *Client) reserved(h *nethost.Host, id peer.ID) bool {
	c.mu.Lock()
	p := c.find.pool[id]
	held := c.held[id] && (c.namedLocked(id) || p != nil && p.proven && !c.find.resting)
	c.mu.Unlock()
	return held && h.Direct(id)
}

// holds reports whether AutoRelay has a reservation at a relay.
func (c *Client) holds(id peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[id]
}

// hold notes that AutoRelay has a reservation at a relay, or no longer.
func (c *Client) hold(id peer.ID, on bool) {
	c.mu.Lock()
	if on {
		c.held[id] = true
		delete(c.failures, id)
	} else {
		delete(c.held, id)
		if p := c.find.pool[id]; p != nil {
			p.proven = false
		}
	}
	c.mu.Unlock()
	c.changed.Notify()
}

// asks notes which relay AutoRelay asks for a reservation. It reports whether the
// request is one for a renewal that is not wanted: the relay was found, and others
// can dial the node, or it does not relay.
func (c *Client) asks(id peer.ID) (unwanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held[id] {
		c.asking = id
		return false
	}
	p := c.find.pool[id]
	return !c.namedLocked(id) && (p == nil || c.find.resting || !p.proven && !p.trying)
}

// answered notes how AutoRelay's last request for a reservation, not a renewal,
// ended.
func (c *Client) answered(err error) {
	c.mu.Lock()
	if err != nil && c.asking != "" {
		c.failures[c.asking] = err
	}
	c.asking = ""
	c.mu.Unlock()
	c.changed.Notify()
}

// Disconnected unprotects a relay whose connection closed, which AutoRelay
// (v0.51) does not do: the reservation ended with the connection.
func (c *Client) Disconnected(id peer.ID) {
	h := c.host.Load()
	if h != nil && (c.holds(id) || c.names(id)) {
		h.Protect(id, tag, false)
		c.hold(id, false)
	}
}

func (c *Client) names(id peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.namedLocked(id)
}

func (c *Client) namedLocked(id peer.ID) bool {
	return slices.ContainsFunc(c.relays, func(p peer.AddrInfo) bool { return p.ID == id })
}

// Missing returns why there is no reservation at a relay.
func (c *Client) Missing(id peer.ID) string {
	h := c.host.Load()
	if h == nil {
		return "it is not connected"
	}
	if !h.Direct(id) {
		for _, r := range c.Relays() {
			if r.ID != id {
				continue
			}
			if why := h.WhyNot(r); why != "" {
				return "it is not connected: " + why
			}
		}
		return "it is not connected"
	}
	switch protos := h.Protocols(id); {
	case len(protos) == 0:
		return "it is not identified yet"
	case !slices.Contains(protos, proto.ProtoIDv2Hop):
		return errNoRelay.Error()
	}
	c.mu.Lock()
	err := c.failures[id]
	c.mu.Unlock()
	if err != nil {
		return "the last request failed: " + causes.Line(err)
	}
	return "it has not answered yet"
}

// Announce is the host's address factory: it announces the configured
// addresses, or those the host listens on, and in either case those through its
// relays. AutoRelay itself announces only relays with public addresses, so on a
// private network nobody would learn of a reservation.
func (c *Client) Announce(list []ma.Multiaddr) []ma.Multiaddr {
	var out []ma.Multiaddr
	if c.cfg.Announce != nil {
		out = slices.Clone(c.cfg.Announce)
		for _, a := range list {
			if addrs.IsCircuit(a) {
				out = append(out, a)
			}
		}
	} else {
		out = slices.DeleteFunc(slices.Clone(list), c.hides)
	}
	for _, a := range c.cfg.Extra {
		out = addrs.Add(out, a)
	}
	h := c.host.Load()
	if h == nil {
		return out
	}
	for _, a := range c.circuitAddrs(h) {
		if !ma.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// hides reports whether an address is not to be announced.
func (c *Client) hides(a ma.Multiaddr) bool {
	if len(c.cfg.Hidden) == 0 || addrs.IsCircuit(a) {
		return false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	n, _ := netip.AddrFromSlice(ip)
	n = n.Unmap().WithZone("")
	return slices.ContainsFunc(c.cfg.Hidden, func(p netip.Prefix) bool { return p.Contains(n) })
}

// circuitAddrs returns this node's circuit addresses at the relays that it has
// a reservation with.
func (c *Client) circuitAddrs(h *nethost.Host) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, p := range c.States() {
		if !p.Reserved {
			continue
		}
		circuit := ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", p.ID))
		// Of a relay that is elsewhere, its loopback and private addresses are nobody's
		// here.
		from := addrs.Loopback
		for _, conn := range h.Conns(p.ID) {
			if !conn.Relayed {
				from = min(from, addrs.ReachOf(conn.Addr))
			}
		}
		for _, a := range h.KnownAddrs(p.ID) {
			if !addrs.IsCircuit(a) && addrs.ReachOf(a) <= from {
				out = append(out, a.Encapsulate(circuit))
			}
		}
	}
	return out
}

// Follow makes AutoRelay, which begins when the client is opened, and makes the
// host update its addresses when a reservation changes, instead of at its next
// 5-second tick. It emits the event by which AutoRelay announces relays; Announce
// adds the addresses. With Discover it looks for relays. It is for a client that is
// enabled.
func (c *Client) Follow(group *lifecycle.Group, h *nethost.Host) (err error) {
	c.group = group
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return err
	}
	c.auto, err = autorelay.NewAutoRelay(view{h, c}, autorelay.WithPeerSource(c.candidates),
		autorelay.WithNumRelays(unbounded), autorelay.WithMinCandidates(1), autorelay.WithMaxCandidates(2*Max),
		autorelay.WithBootDelay(0), autorelay.WithMinInterval(retry), autorelay.WithBackoff(backoffFor),
		autorelay.WithMetricsTracer(relayTracer{
			autorelay.NewMetricsTracer(autorelay.WithRegisterer(nethost.NopRegisterer{})), c,
		}))
	if err != nil {
		return errors.Join(err, emitter.Close())
	}
	c.auto.Start()
	started := group.Go(func(ctx context.Context) {
		defer emitter.Close() // it fails only when closed twice
		held := make(map[peer.ID]Source)
		var told []ma.Multiaddr
		for {
			changed := c.changed.Wait()
			news := c.compare(h, held)
			if list := c.circuitAddrs(h); news || !slices.EqualFunc(list, told, ma.Multiaddr.Equal) {
				told = list
				if err := emitter.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: list}); err != nil {
					c.cfg.Log.Warn("announcing circuit addresses", "err", err)
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	if !started {
		return emitter.Close()
	}
	if c.Finds() {
		group.Go(func(ctx context.Context) {
			select {
			case <-c.opened:
				c.look(ctx, h)
			case <-ctx.Done():
			}
		})
	}
	return nil
}

// Close stops AutoRelay, and ends its requests.
func (c *Client) Close() error {
	c.cancel()
	if c.auto == nil {
		return nil
	}
	err := c.auto.Close()
	// A close (v0.51) that overtakes the start does not stop what is then started.
	return errors.Join(err, c.auto.Close())
}

// compare reports reservations made and lost since the last call.
func (c *Client) compare(h *nethost.Host, held map[peer.ID]Source) (news bool) {
	now := make(map[peer.ID]bool)
	for _, s := range c.States() {
		if !s.Reserved {
			continue
		}
		now[s.ID] = true
		if _, before := held[s.ID]; before {
			continue
		}
		held[s.ID] = s.Source
		news = true
		c.cfg.Log.Info("relay reserved", "relay", s.ID, "source", s.Source)
		c.cfg.Reserved(s.ID, s.Source)
		if s.Source == Named && c.Finds() {
			c.group.Go(func(ctx context.Context) { c.tend(ctx, h, s.ID, false) })
		}
	}
	for id, source := range held {
		if now[id] {
			continue
		}
		delete(held, id)
		news = true
		c.cfg.Log.Info("relay reservation lost", "relay", id, "source", source)
		c.cfg.Lost(id, source)
	}
	return news
}

// relayTracer learns when AutoRelay made, lost or failed to make a reservation.
// Upstream's own tracer, whose metrics are not registered, provides the methods
// whose types are not exported.
type relayTracer struct {
	autorelay.MetricsTracer
	c *Client
}

func (t relayTracer) ReservationEnded(int) { t.c.changed.Notify() }
func (t relayTracer) ReservationRequestFinished(renewal bool, err error) {
	if !renewal {
		t.c.answered(err)
	}
}
