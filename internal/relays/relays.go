// Package relays keeps reservations at named relays, and runs the relay
// service.
package relays

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
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
	// retry is how often AutoRelay tries relays without a reservation, and backoff
	// how long it leaves a relay alone that refused it. Its own 30 seconds and 1
	// hour are meant for choosing among strangers; here the relays are named.
	retry   = 2 * time.Second
	backoff = 10 * time.Second
	// punching is how long an attempt to punch a hole may take, and how long the
	// dial before it: in a third attempt the sides change roles, which some NATs
	// need. Upstream has 10 seconds.
	punching = 5 * time.Second
	// Max bounds how many relays a node keeps reservations at.
	Max = 16

	// tag is the tag under which AutoRelay protects its relays from trimming.
	tag = "autorelay"
)

// Config configures a [Client].
type Config struct {
	Disabled     bool // no relay client at all
	Relays       []peer.AddrInfo
	Discover     bool                 // strangers' relays are found and used too
	Announce     []ma.Multiaddr       // replaces the listen addresses; nil: those
	Extra        []ma.Multiaddr       // announced too
	Hidden       []netip.Prefix       // where no address is announced, if it is not in Announce or Extra
	Reachability network.Reachability // unknown: to be found out
	AutoNAT      bool                 // version 2, asked and served
	HolePunching bool
	PortMapping  bool
	// Reserved, Lost and Punched are called on events; they must not block.
	Reserved, Lost func(peer.ID)
	Punched        func(id peer.ID, took time.Duration, err error)
	Log            *slog.Logger
}

// Client keeps the reservations. It is safe for concurrent use.
type Client struct {
	cfg     Config
	enabled bool // relays were named at the start

	// host is set once, by Open, when the node is complete: libp2p needs
	// AutoRelay's peers and the address factory before it makes the host. This is
	// the only place that cuts that circle.
	host   atomic.Pointer[nethost.Host]
	opened chan struct{}
	asked  chan struct{} // AutoRelay runs: it has asked for candidates
	ask    sync.Once

	changed signal.Signal         // the relays, or a reservation
	failed  atomic.Pointer[error] // why the last request was refused; nil after one that was not

	mu     sync.Mutex
	relays []peer.AddrInfo // replaced, never changed; guarded by mu
}

// New returns a client for the host to be made with its Options.
func New(cfg Config) *Client {
	return &Client{
		cfg: cfg, enabled: len(cfg.Relays) > 0, relays: cfg.Relays,
		opened: make(chan struct{}), asked: make(chan struct{}),
	}
}

// Options returns the host's options for relays and NATs.
func (c *Client) Options() []libp2p.Option {
	if c.cfg.Disabled {
		return append(c.reachabilityOptions(), libp2p.DisableRelay())
	}
	// NoListenAddrs would switch the relay client off unless it is enabled
	// explicitly.
	opts := []libp2p.Option{libp2p.EnableRelay()}
	if c.enabled {
		opts = append(opts, libp2p.EnableAutoRelayWithPeerSource(c.candidates,
			autorelay.WithNumRelays(Max), autorelay.WithMinCandidates(1), autorelay.WithMaxCandidates(Max),
			autorelay.WithBootDelay(0), autorelay.WithMinInterval(retry), autorelay.WithBackoff(backoff),
			autorelay.WithMetricsTracer(relayTracer{
				autorelay.NewMetricsTracer(autorelay.WithRegisterer(nethost.NopRegisterer{})), c,
			})))
	}
	opts = append(opts, c.reachabilityOptions()...)
	if c.cfg.HolePunching {
		opts = append(opts, libp2p.EnableHolePunching(holepunch.WithTracer(punchTracer{c}), holepunch.DirectDialTimeout(punching)))
	}
	if c.cfg.PortMapping {
		opts = append(opts, libp2p.NATPortMap())
	}
	return opts
}

// reachabilityOptions are the host's options that decide what the host takes its
// reachability to be.
func (c *Client) reachabilityOptions() (opts []libp2p.Option) {
	if c.cfg.AutoNAT {
		opts = append(opts, libp2p.EnableAutoNATv2())
	}
	switch c.cfg.Reachability {
	case network.ReachabilityPublic:
		opts = append(opts, libp2p.ForceReachabilityPublic())
	case network.ReachabilityPrivate:
		opts = append(opts, libp2p.ForceReachabilityPrivate())
	default:
		if c.cfg.AutoNAT {
			// AutoRelay waits until something says what reachability is, if only that it
			// is unknown. AutoNAT v1, which would say something else than v2, stays out.
			opts = append(opts, func(cfg *libp2p.Config) error {
				unknown := network.ReachabilityUnknown
				cfg.ForceReachability = &unknown
				return nil
			})
		}
	}
	return opts
}

// Open sets the complete host: from now on relays are dialed.
func (c *Client) Open(h *nethost.Host) {
	c.host.Store(h)
	close(c.opened)
}

// Settle waits until AutoRelay runs, before the host is closed: if its close
// (v0.51) overtakes its start, what it then starts is never stopped.
func (c *Client) Settle() {
	if !c.enabled {
		return
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-c.asked:
	case <-timer.C:
	}
}

// Enabled reports whether the client keeps reservations: relays were named
// before the host was made.
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

// candidates feeds AutoRelay the relays without a reservation, once the host is
// complete and there are any.
func (c *Client) candidates(ctx context.Context, _ int) <-chan peer.AddrInfo {
	c.ask.Do(func() { close(c.asked) })
	ch := make(chan peer.AddrInfo, Max)
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
			if len(missing) > 0 {
				for _, p := range missing {
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

// Reserved reports whether there is a reservation at a relay.
func (c *Client) Reserved(id peer.ID) bool {
	h := c.host.Load()
	return h != nil && c.reserved(h, id)
}

func (c *Client) reserved(h *nethost.Host, id peer.ID) bool {
	return h.Direct(id) && h.ConnManager().IsProtected(id, tag)
}

// Disconnected unprotects a relay whose connection closed, which AutoRelay
// (v0.51) does not do: the reservation ended with the connection.
func (c *Client) Disconnected(id peer.ID) {
	h := c.host.Load()
	if h != nil && c.names(id) {
		h.Protect(id, tag, false)
		c.changed.Notify()
	}
}

func (c *Client) names(id peer.ID) bool {
	return slices.ContainsFunc(c.Relays(), func(p peer.AddrInfo) bool { return p.ID == id })
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
		return fmt.Sprintf("it is not a relay: it does not offer %s", proto.ProtoIDv2Hop)
	}
	if err := c.failed.Load(); err != nil {
		return "the last request failed: " + causes.Line(*err) // at this relay, or at another
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
	for _, p := range c.Relays() {
		if !c.reserved(h, p.ID) {
			continue
		}
		circuit := ma.StringCast(fmt.Sprintf("/p2p/%s/p2p-circuit", p.ID))
		for _, a := range h.KnownAddrs(p.ID) {
			if !addrs.IsCircuit(a) {
				out = append(out, a.Encapsulate(circuit))
			}
		}
	}
	return out
}

// Follow makes the host update its addresses when a reservation changes,
// instead of at its next 5-second tick. It emits the event by which AutoRelay
// announces relays; Announce adds the addresses.
func (c *Client) Follow(group *lifecycle.Group, h *nethost.Host) error {
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return err
	}
	started := group.Go(func(ctx context.Context) {
		defer emitter.Close() // it fails only when closed twice
		held := make(map[peer.ID]bool)
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
	return nil
}

// compare reports reservations made and lost since the last call.
func (c *Client) compare(h *nethost.Host, held map[peer.ID]bool) (news bool) {
	relays := c.Relays()
	for _, p := range relays {
		if now := c.reserved(h, p.ID); now && !held[p.ID] {
			held[p.ID] = true
			news = true
			c.cfg.Log.Info("relay reserved", "relay", p.ID)
			c.cfg.Reserved(p.ID)
		}
	}
	for id := range held {
		named := slices.ContainsFunc(relays, func(p peer.AddrInfo) bool { return p.ID == id })
		if named && c.reserved(h, id) {
			continue
		}
		delete(held, id)
		news = true
		c.cfg.Log.Info("relay reservation lost", "relay", id)
		c.cfg.Lost(id)
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
func (t relayTracer) ReservationRequestFinished(_ bool, err error) {
	if err == nil {
		t.c.failed.Store(nil)
	} else {
		t.c.failed.Store(&err)
	}
	t.c.changed.Notify()
}

// punchTracer reports the end of a hole punching attempt.
type punchTracer struct{ c *Client }

func (t punchTracer) Trace(ev *holepunch.Event) {
	end, ok := ev.Evt.(*holepunch.EndHolePunchEvt)
	if !ok {
		return
	}
	var err error
	if !end.Success {
		err = errors.New(strings.ReplaceAll(end.Error, "\n", " "))
	}
	if err == nil {
		t.c.cfg.Log.Info("hole punched", "peer", ev.Remote, "took", end.EllapsedTime)
	} else {
		t.c.cfg.Log.Debug("hole punching failed", "peer", ev.Remote, "took", end.EllapsedTime, "err", err)
	}
	t.c.cfg.Punched(ev.Remote, end.EllapsedTime, err)
}
