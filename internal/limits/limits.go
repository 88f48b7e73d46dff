// Package limits is a node's resource manager: libp2p's, with limits that one
// option raises, errors that name the limit, and counts of what each refused.
package limits

import (
	"errors"
	"fmt"
	"math"

	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// Limits are documented in the root package. A zero field keeps its default.
type Limits struct {
	Conns           int
	ConnsPerPeer    int
	ConnsPerIP      int
	ConnRatePerIP   int
	Streams         int
	StreamsPerPeer  int
	Memory          int64
	PubSub          int64
	PubSubQueue     int64
	ProviderRecords int64
	ValueRecords    int64
}

// DefaultStreamsPerPeer is the default on an application's own network: 1,000
// requests at once each way, and what the node itself needs. Libp2p's scales
// with the machine, and begins at 64 of one protocol.
const DefaultStreamsPerPeer = 2048

// streamWindow is the memory that a stream counts for over TCP and WebSocket:
// yamux's receive window, which is rarely filled.
const streamWindow = 256 << 10

// The range of a limit: below, the node's own parts do not work; above, sums
// would overflow.
const (
	minStreams        = 128
	minStreamsPerPeer = 16
	minMemory         = 16 << 20
	minPubSub         = 64 << 10
	minRecords        = 64 << 10
	Max               = 100_000_000
)

// Check returns an error if a field is out of range, or none is set.
func (l Limits) Check() error {
	if l == (Limits{}) {
		return errors.New("no limit is given; zero means its default")
	}
	for _, f := range []struct {
		name            string
		value, min, max int64
	}{
		{"Conns", int64(l.Conns), 1, Max},
		{"ConnsPerPeer", int64(l.ConnsPerPeer), 1, Max},
		{"ConnsPerIP", int64(l.ConnsPerIP), 1, Max},
		{"ConnRatePerIP", int64(l.ConnRatePerIP), 1, Max},
		{"Streams", int64(l.Streams), minStreams, Max},
		{"StreamsPerPeer", int64(l.StreamsPerPeer), minStreamsPerPeer, Max},
		{"Memory", l.Memory, minMemory, math.MaxInt64},
		{"PubSub", l.PubSub, minPubSub, math.MaxInt64},
		{"PubSubQueue", l.PubSubQueue, minPubSub, math.MaxInt64},
		{"ProviderRecords", l.ProviderRecords, minRecords, math.MaxInt64},
		{"ValueRecords", l.ValueRecords, minRecords, math.MaxInt64},
	} {
		if f.value != 0 && (f.value < f.min || f.value > f.max) {
			return fmt.Errorf("%s is %d: it must be 0, for its default, or %d to %d", f.name, f.value, f.min, f.max)
		}
	}
	return nil
}

// Or returns the limits with zero fields replaced by those of m.
func (l Limits) Or(m Limits) Limits {
	setIfZero(&l.Conns, m.Conns)
	setIfZero(&l.ConnsPerPeer, m.ConnsPerPeer)
	setIfZero(&l.ConnsPerIP, m.ConnsPerIP)
	setIfZero(&l.ConnRatePerIP, m.ConnRatePerIP)
	setIfZero(&l.Streams, m.Streams)
	setIfZero(&l.StreamsPerPeer, m.StreamsPerPeer)
	setIfZero(&l.Memory, m.Memory)
	setIfZero(&l.PubSub, m.PubSub)
	setIfZero(&l.PubSubQueue, m.PubSubQueue)
	setIfZero(&l.ProviderRecords, m.ProviderRecords)
	setIfZero(&l.ValueRecords, m.ValueRecords)
	return l
}

func setIfZero[T int | int64](dst *T, v T) {
	if *dst == 0 {
		*dst = v
	}
}

// PeerStreams is how many streams one peer may have, 0 for libp2p's default.
func (l Limits) PeerStreams(public bool) int {
	if l.StreamsPerPeer == 0 && !public {
		return DefaultStreamsPerPeer
	}
	return l.StreamsPerPeer
}

// applyTo applies the limits to those of the resource manager, which has many
// more: those that would get in the way of a raised limit are raised too.
func (l Limits) applyTo(p *rcmgr.PartialLimitConfig, public bool) {
	set := func(n int, fields ...*rcmgr.LimitVal) {
		for _, f := range fields {
			if n > 0 {
				*f = rcmgr.LimitVal(n)
			}
		}
	}
	conns := func(r *rcmgr.ResourceLimits) []*rcmgr.LimitVal {
		return []*rcmgr.LimitVal{&r.Conns, &r.ConnsInbound, &r.ConnsOutbound}
	}
	streams := func(r *rcmgr.ResourceLimits) []*rcmgr.LimitVal {
		return []*rcmgr.LimitVal{&r.Streams, &r.StreamsInbound, &r.StreamsOutbound}
	}
	set(l.Conns, conns(&p.System)...)
	atLeast(l.Conns/2, conns(&p.Transient)...)
	set(l.ConnsPerPeer, conns(&p.PeerDefault)...)
	// Over TCP each is a file. What the process may open stays the limit.
	atLeast(min(l.ConnsPerPeer, int(p.System.FD)), &p.PeerDefault.FD)
	atLeast(min(l.Conns/2, int(p.System.FD)), &p.Transient.FD)
	set(l.Streams, streams(&p.System)...)
	atLeast(l.Streams/8, streams(&p.Transient)...)
	atLeast(l.Streams, streams(&p.ProtocolDefault)...)
	// One peer that uses what it may must leave room for others, all of it may
	// be of one protocol, and be negotiated at once.
	perPeer := l.PeerStreams(public)
	set(perPeer, streams(&p.PeerDefault)...)
	atLeast(perPeer, streams(&p.ProtocolPeerDefault)...)
	atLeast(perPeer, streams(&p.Transient)...)
	atLeast(2*perPeer, streams(&p.ProtocolDefault)...)
	if l.Streams == 0 {
		atLeast(2*perPeer, streams(&p.System)...)
	}
	memory := int64(perPeer) * streamWindow
	p.PeerDefault.Memory = max(p.PeerDefault.Memory, rcmgr.LimitVal64(memory))
	switch {
	case l.Memory > 0:
		p.System.Memory = rcmgr.LimitVal64(l.Memory)
	case l.StreamsPerPeer > 0: // not by default: a small machine is to stay within its memory
		p.System.Memory = max(p.System.Memory, rcmgr.LimitVal64(memory))
	}
}

// atLeast raises limits that are below n.
func atLeast(n int, fields ...*rcmgr.LimitVal) {
	for _, f := range fields {
		if *f > 0 && int(*f) < n { // zero and negative values mean something else
			*f = rcmgr.LimitVal(n)
		}
	}
}

// perIP returns the limits of connections per address.
func (l Limits) perIP() []rcmgr.Option {
	if l.ConnsPerIP == 0 {
		return nil
	}
	return []rcmgr.Option{rcmgr.WithLimitPerSubnet(
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.ConnsPerIP}},
		[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: l.ConnsPerIP}, {PrefixLength: 48, ConnCount: 8 * l.ConnsPerIP}},
	)}
}

// rates returns the limits of new connections per address, for IPv4 and IPv6.
func (l Limits) rates() (v4, v6 []rate.SubnetLimit) {
	rps := float64(max(l.ConnRatePerIP, 1))
	burst := max(64, 4*l.ConnRatePerIP)
	one := rate.Limit{RPS: rps, Burst: burst}
	return []rate.SubnetLimit{{PrefixLength: 32, Limit: one}},
		[]rate.SubnetLimit{{PrefixLength: 56, Limit: one}, {PrefixLength: 48, Limit: rate.Limit{RPS: 2 * rps, Burst: 5 * burst}}}
}
