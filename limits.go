package p2pnode

import (
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

// Limits bound what others can make a node do. A field that is zero keeps its
// default, which for those in all is scaled to the memory and the open files of
// the machine, as libp2p does it. What is beyond a limit is refused, at once,
// with an error on this side; WithConnLimits, in contrast, is where connections
// begin to be trimmed, and should be well below Conns.
type Limits struct {
	Conns          int   // connections in all; never less than twice the upper limit of WithConnLimits
	ConnsPerIP     int   // connections with one IPv4 address or IPv6 /56; the default is 8
	ConnRatePerIP  int   // new connections a second with one of those, after 64 at once; the default is 1
	Streams        int   // streams in all
	StreamsPerPeer int   // streams with one peer
	Memory         int64 // bytes for the buffers of connections and streams, in all
}

// WithLimits raises or lowers the limits of libp2p's resource manager. What a
// limit refuses is counted in Status and by WithMetrics, and the error on this
// side names the limit. On a network of one's own, private and loopback
// addresses are not limited per IP, as a cluster often stands behind one.
// Several WithLimits add up, field by field.
func WithLimits(l Limits) Option {
	return option{"WithLimits", func(c *config) error {
		for _, v := range []int64{int64(l.Conns), int64(l.ConnsPerIP), int64(l.ConnRatePerIP), int64(l.Streams), int64(l.StreamsPerPeer), l.Memory} {
			if v < 0 {
				return fmt.Errorf("%+v: a limit is negative; zero means its default", l)
			}
		}
		if l == (Limits{}) {
			return errors.New("no limit is given; zero means its default")
		}
		setIf(&c.limits.Conns, l.Conns)
		setIf(&c.limits.ConnsPerIP, l.ConnsPerIP)
		setIf(&c.limits.ConnRatePerIP, l.ConnRatePerIP)
		setIf(&c.limits.Streams, l.Streams)
		setIf(&c.limits.StreamsPerPeer, l.StreamsPerPeer)
		setIf(&c.limits.Memory, l.Memory)
		return nil
	}}
}

// applyTo puts the limits into those of the resource manager.
func (l Limits) applyTo(p *rcmgr.PartialLimitConfig) {
	set := func(n int, fields ...*rcmgr.LimitVal) {
		for _, f := range fields {
			if n > 0 {
				*f = rcmgr.LimitVal(n)
			}
		}
	}
	set(l.Conns, &p.System.Conns, &p.System.ConnsInbound, &p.System.ConnsOutbound)
	set(l.Streams, &p.System.Streams, &p.System.StreamsInbound, &p.System.StreamsOutbound)
	set(l.StreamsPerPeer, &p.PeerDefault.Streams, &p.PeerDefault.StreamsInbound, &p.PeerDefault.StreamsOutbound)
	if l.Memory > 0 {
		p.System.Memory = rcmgr.LimitVal64(l.Memory)
	}
}

// perIP are the limits of connections with one address.
func (l Limits) perIP() []rcmgr.Option {
	if l.ConnsPerIP == 0 {
		return nil
	}
	return []rcmgr.Option{rcmgr.WithLimitPerSubnet(
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.ConnsPerIP}},
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: l.ConnsPerIP}, {PrefixLength: 48, ConnCount: 8 * l.ConnsPerIP}},
	)}
}

// rates are the limits of new connections with one address: for IPv4, for IPv6.
func (l Limits) rates() (v4, v6 []rate.SubnetLimit) {
	rps := float64(max(l.ConnRatePerIP, 1))
	burst := max(64, 4*l.ConnRatePerIP)
	one := rate.Limit{RPS: rps, Burst: burst}
	return []rate.SubnetLimit{{PrefixLength: 32, Limit: one}},
		[]rate.SubnetLimit{{PrefixLength: 56, Limit: one}, {PrefixLength: 48, Limit: rate.Limit{RPS: 2 * rps, Burst: 5 * burst}}}
}

// limitedManager is the resource manager, with errors that say which limit it
// was and what to do.
type limitedManager struct {
	network.ResourceManager
	refused func() // counts
}

func (m limitedManager) OpenConnection(dir network.Direction, usesFile bool, addr ma.Multiaddr) (network.ConnManagementScope, error) {
	s, err := m.ResourceManager.OpenConnection(dir, usesFile, addr)
	if err == nil {
		return s, nil
	}
	limit, field := "connections in all", "Conns"
	switch text := err.Error(); {
	case strings.Contains(text, "rate limit"):
		limit, field = "new connections with one address", "ConnRatePerIP"
	case strings.Contains(text, "per ip"):
		limit, field = "connections with one address", "ConnsPerIP"
	case strings.Contains(text, "memory"):
		limit, field = "memory", "Memory"
	}
	return nil, m.explain(err, limit, field)
}

func (m limitedManager) OpenStream(id peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := m.ResourceManager.OpenStream(id, dir)
	if err == nil {
		return s, nil
	}
	limit, field := "streams in all", "Streams"
	if strings.Contains(err.Error(), "peer:") {
		limit, field = "streams with one peer", "StreamsPerPeer"
	}
	return nil, m.explain(err, limit, field)
}

func (m limitedManager) explain(err error, limit, field string) error {
	m.refused()
	return fmt.Errorf("%w (the limit of %s; WithLimits(Limits{%s: …}) raises it)", err, limit, field)
}
