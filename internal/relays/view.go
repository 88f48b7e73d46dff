package relays

import (
	"context"
	"errors"
	"slices"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// view is the host as AutoRelay (v0.51) sees it. AutoRelay decides when to renew a
// reservation and makes it; the view tells the client at which relay, and why one
// is refused, which AutoRelay itself tells nobody. Through it AutoRelay sees a
// node that is always private: when to use relays is up to the client.
type view struct {
	host.Host
	c *Client
}

// IDService returns the host's identify service, by which AutoRelay waits until a
// relay's protocols are known.
func (v view) IDService() identify.IDService {
	return v.Host.(*nethost.Host).Host.(interface{ IDService() identify.IDService }).IDService()
}

// EventBus returns the bus as AutoRelay sees it.
func (v view) EventBus() event.Bus { return bus{v.Host.EventBus()} }

// ConnManager returns the connection manager as AutoRelay sees it.
func (v view) ConnManager() connmgr.ConnManager { return conns{v.Host.ConnManager(), v.c} }

// errReleased ends the renewals at a relay that is no longer needed.
var errReleased = errors.New("the reservation is no longer needed")

// NewStream opens the stream for a request, which ends when the client closes: it
// would wait a minute for a silent relay otherwise.
func (v view) NewStream(ctx context.Context, id peer.ID, protos ...protocol.ID) (network.Stream, error) {
	if !slices.Contains(protos, proto.ProtoIDv2Hop) {
		return v.Host.NewStream(ctx, id, protos...)
	}
	if v.c.asks(id) {
		return nil, errReleased
	}
	s, err := v.Host.NewStream(ctx, id, protos...)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(v.c.ctx, func() { _ = s.Reset() }) // it is closed either way
	return hop{s, stop}, nil
}

// hop is the stream of a request for a reservation.
type hop struct {
	network.Stream
	stop func() bool
}

func (s hop) Close() error {
	s.stop()
	return s.Stream.Close()
}

// conns tells the client at which relays AutoRelay has reservations: it protects
// them.
type conns struct {
	connmgr.ConnManager
	c *Client
}

func (m conns) Protect(id peer.ID, t string) {
	m.ConnManager.Protect(id, t)
	m.c.hold(id, true)
}

func (m conns) Unprotect(id peer.ID, t string) bool {
	m.c.hold(id, false)
	return m.ConnManager.Unprotect(id, t)
}

// bus keeps AutoRelay's addresses from the host, since it announces relays with
// public addresses only, and the node's reachability from AutoRelay.
type bus struct{ event.Bus }

func (b bus) Emitter(what any, opts ...event.EmitterOpt) (event.Emitter, error) {
	if _, ok := what.(*event.EvtAutoRelayAddrsUpdated); ok {
		return mute{}, nil
	}
	return b.Bus.Emitter(what, opts...)
}

func (b bus) Subscribe(what any, opts ...event.SubscriptionOpt) (event.Subscription, error) {
	if _, ok := what.(*event.EvtLocalReachabilityChanged); ok {
		out := make(chan any, 1)
		out <- event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}
		return always(out), nil
	}
	return b.Bus.Subscribe(what, opts...)
}

type mute struct{}

func (mute) Emit(any) error { return nil }
func (mute) Close() error   { return nil }

// always is a subscription to one event.
type always chan any

func (s always) Out() <-chan any { return s }
func (always) Close() error      { return nil }
func (always) Name() string      { return "p2pnode: reachability for AutoRelay" }
