package relays

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// punchFor is how long an attempt to punch a hole may take, and how long the
	// dial before it: in a third attempt the sides change roles, which some NATs
	// need. Upstream has 10 seconds.
	punchFor = 5 * time.Second
	// punchAgain and punchPause bound the pause between two rounds of three attempts.
	punchAgain = 15 * time.Second
	punchPause = 10 * time.Minute
	// punchAtOnce bounds the peers for which that happens at the same time.
	punchAtOnce = 16
)

// punching returns the options for upstream's hole punching (DCUtR).
func (c *Client) punching() []holepunch.Option {
	return []holepunch.Option{
		holepunch.WithTracer(punchTracer{c}), holepunch.DirectDialTimeout(punchFor), holepunch.WithAddrFilter(punchAddrs{c}),
		func(s *holepunch.Service) error { // the host does not hand it out
			c.puncher = s
			return nil
		},
	}
}

// hole is a peer that has connected through a relay, and is not connected directly.
type hole struct {
	pause  backoff.Backoff
	due    time.Time
	active bool // an attempt is under way
}

// round is the end of three attempts, or none, if upstream's own were under way.
type round struct {
	id   peer.ID
	none bool
}

// PunchAgain lets upstream try again, with pauses that grow, while a peer that has
// connected to this node remains relayed. Upstream (v0.51) tries three times when the
// connection opens, and never again: a dial of the DHT that runs at that moment, a
// mapping that has expired or a router that has just restarted spoils all three. When
// the addresses of this machine change, the pauses start over. It returns when ctx
// ends, and stops hole punching then, so that no attempt outlives it.
func (c *Client) PunchAgain(ctx context.Context, h *nethost.Host, moved *signal.Signal) {
	if c.puncher == nil {
		return // the application's own libp2p.EnableHolePunching has replaced the options
	}
	holes := map[peer.ID]*hole{}
	ended := make(chan round)
	running := 0
	serving := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed, elsewhere := c.cfg.Change.Wait(), moved.Wait()
		now := time.Now()
		relayed := onlyRelayed(h)
		for id := range holes {
			if !relayed[id] && !holes[id].active {
				delete(holes, id)
			}
		}
		// Without a public address, which upstream waits for, it blocks until there is
		// one. It has one since the last look, at least.
		had := serving
		serving = slices.Contains(h.Mux().Protocols(), holepunch.Protocol)
		var next time.Time
		for id := range relayed {
			p := holes[id]
			if p == nil {
				p = &hole{pause: backoff.Backoff{Min: punchAgain, Max: punchPause}}
				p.due = now.Add(p.pause.Next())
				holes[id] = p
			}
			switch {
			case p.active:
				continue
			case now.Before(p.due):
			case !had, running == punchAtOnce:
				p.due = now.Add(punchAgain)
			default:
				p.active = true
				running++
				go func() { // ends with the service; waited for below
					// The tracer learns how each attempt ended.
					ended <- round{id, errors.Is(c.puncher.DirectConnect(id), holepunch.ErrHolePunchActive)}
				}()
				continue
			}
			if next.IsZero() || p.due.Before(next) {
				next = p.due
			}
		}
		var wake <-chan time.Time
		if !next.IsZero() {
			timer.Reset(next.Sub(now))
			wake = timer.C
		}
		select {
		case <-changed:
		case <-wake:
		case <-elsewhere:
			for _, p := range holes {
				p.pause.Reset()
				p.due = time.Now().Add(p.pause.Next())
			}
		case r := <-ended:
			running--
			p := holes[r.id]
			if p.active = false; r.none {
				p.due = time.Now().Add(punchFor)
			} else {
				p.due = time.Now().Add(p.pause.Next())
			}
		case <-ctx.Done():
			if err := c.puncher.Close(); err != nil {
				c.cfg.Log.Debug("closing hole punching", "err", err)
			}
			for ; running > 0; running-- {
				<-ended
			}
			return
		}
	}
}

// onlyRelayed returns the peers that have connected through a relay, and are not
// connected directly.
func onlyRelayed(h *nethost.Host) map[peer.ID]bool {
	list := map[peer.ID]bool{}
	direct := map[peer.ID]bool{}
	for _, conn := range h.Network().Conns() {
		switch id := conn.RemotePeer(); {
		case !addrs.IsCircuit(conn.RemoteMultiaddr()):
			direct[id] = true
		case conn.Stat().Direction == network.DirInbound:
			list[id] = true
		}
	}
	for id := range direct {
		delete(list, id)
	}
	return list
}

// punchAddrs adds to the addresses at which a hole is punched those that the node does
// not announce because nobody can dial them: the public ones of a machine behind a
// firewall. Upstream (v0.51) takes those that are announced, and those that peers see.
type punchAddrs struct{ c *Client }

// FilterLocal implements [holepunch.AddrFilter].
func (p punchAddrs) FilterLocal(_ peer.ID, list []ma.Multiaddr) []ma.Multiaddr {
	h := p.c.host.Load()
	if h == nil || p.c.cfg.Announce != nil {
		return list
	}
	own, err := h.InterfaceAddrs()
	if err != nil {
		p.c.cfg.Log.Debug("addresses of the interfaces", "err", err)
	}
	list = slices.Clone(list)
	for _, a := range own {
		if addrs.ReachOf(a) == addrs.Global && !addrs.IsCircuit(a) && !p.c.hides(a) {
			list = append(list, a)
		}
	}
	return ma.Unique(list)
}

// FilterRemote implements [holepunch.AddrFilter].
func (punchAddrs) FilterRemote(_ peer.ID, list []ma.Multiaddr) []ma.Multiaddr { return list }

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
