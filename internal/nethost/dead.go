package nethost

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multistream"
	"github.com/quic-go/quic-go"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// settled is how old a connection is when another one to the same peer is a reason to
// check it, whoever dialed: those of simultaneous dials and of hole punching are younger.
const settled = time.Second

// relayedNew is how old a relayed connection may be that is closed to get a direct one:
// an older one may have streams from before.
const relayedNew = 20 * time.Second

// patientTrips is how many round trips patience adds: what is lost on the way is sent
// again.
const patientTrips = 6

const (
	// chances is how often a peer is asked that does not answer, while this machine is
	// busy or the peer seems to be.
	chances = 3
	// pace is how long a process sleeps that is watched whether it keeps up.
	pace = 25 * time.Millisecond
)

// checks are the peers whose connections are being checked.
type checks struct {
	mu   sync.Mutex
	busy map[peer.ID]bool // guarded by mu
}

// begin reports whether nobody else checks a peer's connections.
func (c *checks) begin(id peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[id] {
		return false
	}
	if c.busy == nil {
		c.busy = make(map[peer.ID]bool)
	}
	c.busy[id] = true
	return true
}

func (c *checks) end(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.busy, id)
}

// Doubtful reports whether a peer has a connection that another one makes doubtful:
// a peer that moved, or whose router forgot about the old one, dials again, while this
// side would use the old one for half a minute. And a QUIC dial that the peer has
// canceled, as the swarm does when it has dialed two addresses and one has connected,
// may have left a connection here that the peer knows nothing of: quic-go (v0.64) does
// not tell this side. A relayed one is not doubtful: it ends when the relay's connection
// to the peer does.
func (h *Host) Doubtful(id peer.ID) bool { return len(doubtful(h.swarm.ConnsToPeer(id))) > 0 }

// doubtful returns which of a peer's connections are to be checked: all if one of them
// is settled, otherwise those that the peer has dialed over QUIC.
func doubtful(list []network.Conn) []network.Conn {
	if len(list) < 2 {
		return nil
	}
	if slices.ContainsFunc(list, func(c network.Conn) bool {
		return time.Since(c.Stat().Opened) >= settled && !addrs.IsCircuit(c.RemoteMultiaddr())
	}) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(c network.Conn) bool {
		return c.Stat().Direction != network.DirInbound || !c.As(new(*quic.Conn))
	})
}

// patience returns how long a peer has to answer: more if its answers take long.
func (h *Host) patience(id peer.ID, least time.Duration) time.Duration {
	return least + patientTrips*h.Peerstore().LatencyEWMA(id)
}

// CloseDead asks a peer over each of its connections, and closes those on which it does
// not answer in time, unless ctx ends before. It reports whether any is left. The peer
// has more time if its answers take long, if this machine is too busy to take them, or
// if the peer's machine is so busy that only its QUIC answers.
//
// If a direct connection was dead and only new relayed ones are left, it closes those
// too: upstream punches no hole while it believes in a direct connection, and not
// later either. The caller is to dial again.
func (h *Host) CloseDead(ctx context.Context, id peer.ID, least time.Duration) (alive bool) {
	return h.closeDead(ctx, id, least, func(list []network.Conn) []network.Conn { return list })
}

// CloseDoubtful is CloseDead for the connections for which a peer is [Host.Doubtful].
func (h *Host) CloseDoubtful(ctx context.Context, id peer.ID, least time.Duration) (alive bool) {
	return h.closeDead(ctx, id, least, doubtful)
}

func (h *Host) closeDead(ctx context.Context, id peer.ID, least time.Duration, which func([]network.Conn) []network.Conn) (alive bool) {
	if !h.checks.begin(id) {
		return true
	}
	defer h.checks.end(id)
	patience := h.patience(id, least)
	var wg sync.WaitGroup
	var lost atomic.Bool // a direct one
	for _, c := range which(h.swarm.ConnsToPeer(id)) {
		wg.Go(func() {
			switch answers, silent := asked(ctx, c, patience, keepsUp, packets); {
			case answers:
				_ = h.Peerstore().Put(id, answered, time.Now()) // if it fails, only Peer.LastSeen is missing
			case silent:
				_ = c.Close() // it closes in any case
				if !addrs.IsCircuit(c.RemoteMultiaddr()) {
					lost.Store(true)
				}
			}
		})
	}
	wg.Wait()
	left := h.Conns(id)
	stays := slices.ContainsFunc(left, func(c Conn) bool { return !c.Relayed || time.Since(c.Opened) > relayedNew })
	if lost.Load() && len(left) > 0 && !stays {
		_ = h.Disconnect(id) // it closes in any case
	}
	return h.Connected(id)
}

// asked reports whether a peer answers over a connection, or is silent for a time. It
// has another chance if this process gets too little of a busy machine to see answers in
// time, or if packets came from the peer, whose own process may be slow.
func asked(ctx context.Context, c network.Conn, patience time.Duration, keepsUp func(context.Context) func() bool, packets func(network.Conn) uint64) (answers, silent bool) {
	for range chances {
		before := packets(c)
		bound, cancel := context.WithTimeout(ctx, patience)
		kept := keepsUp(bound)
		err := ask(bound, c)
		silent = err != nil && ctx.Err() == nil && errors.Is(bound.Err(), context.DeadlineExceeded)
		cancel()
		if on := kept(); !silent || on && packets(c) == before {
			return err == nil, silent
		}
	}
	return false, true
}

// packets returns how many packets came over a QUIC connection, and 0 for others.
func packets(c network.Conn) uint64 {
	var q *quic.Conn
	if !c.As(&q) {
		return 0
	}
	return q.ConnectionStats().PacketsReceived
}

// keepsUp watches this process until ctx ends. The function that it returns waits for
// that, and reports whether the process slept and woke at least half as often as on an
// idle machine.
func keepsUp(ctx context.Context) func() bool {
	done := make(chan bool, 1)
	go func() {
		begun, woken := time.Now(), 0
		tick := time.NewTimer(pace)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				woken++
				tick.Reset(pace)
			case <-ctx.Done():
				done <- 2*time.Duration(woken+1)*pace >= time.Since(begun)
				return
			}
		}
	}()
	return func() bool { return <-done }
}

// ask asks a peer over one connection whether it speaks ping. Any answer will do, and a
// peer that is busy gives this one sooner than that to a ping.
func ask(ctx context.Context, c network.Conn) error {
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "p2pnode: ask"))
	if err != nil {
		return err
	}
	defer func() { _ = s.Reset() }() // everything is read by then
	// Not a deadline of the stream, which may come before that of ctx.
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := s.SetProtocol(ping.ID); err != nil {
		return err
	}
	err = multistream.SelectProtoOrFail(protocol.ID(ping.ID), s)
	if _, unsupported := errors.AsType[multistream.ErrNotSupported[protocol.ID]](err); unsupported {
		return nil
	}
	return err
}
