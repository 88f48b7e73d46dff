package nethost

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// The swarm dials several addresses of a peer at once, and cancels the others when the
// first has connected. A QUIC dial that is canceled (quic-go v0.64) ends without telling
// the peer, which may have completed the handshake by then. It keeps that connection
// until it times out, and its swarm opens streams on the newest connection, or on that
// with the most streams: on one where nobody answers, not even to identify, or which is
// about to be closed, with what has been written to it. So streams are opened where the
// peer has answered identify, as far as that is known.

// negotiateWithin is how long NewStream may take if ctx has no deadline, as in libp2p.
const negotiateWithin = 10 * time.Second

// answers are the connections on which peers have answered identify.
type answers struct {
	mu    sync.Mutex
	conns map[network.Conn]bool // guarded by mu
}

func (a *answers) has(c network.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conns[c]
}

func (a *answers) forget(c network.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
}

// Answered notes a connection on which the event bus says that the peer has answered
// identify.
func (h *Host) Answered(c network.Conn) {
	a := &h.answers
	a.mu.Lock()
	if a.conns == nil {
		a.conns = make(map[network.Conn]bool)
	}
	a.conns[c] = true
	a.mu.Unlock()
	if c.IsClosed() { // otherwise it is forgotten when it closes
		a.forget(c)
	}
}

// NewStream is that of libp2p's host, but takes the connection of [Host.Answering] if
// there is one, where it negotiates the protocol at once.
func (h *Host) NewStream(ctx context.Context, id peer.ID, protos ...protocol.ID) (network.Stream, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, negotiateWithin)
		defer cancel()
	}
	if c := h.Answering(ctx, id); c != nil {
		s, err := h.newStreamOn(ctx, c, protos)
		if err == nil || !c.IsClosed() {
			return s, err
		}
	}
	return h.Host.NewStream(ctx, id, protos...)
}

// newStreamOn opens a stream on one connection. It offers a protocol first that the peer
// is known to speak.
func (h *Host) newStreamOn(ctx context.Context, c network.Conn, protos []protocol.ID) (network.Stream, error) {
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	id := c.RemotePeer()
	known, err := h.Peerstore().FirstSupportedProtocol(id, protos...)
	if err != nil {
		_ = s.Reset()
		return nil, err
	}
	if i := slices.Index(protos, known); i > 0 {
		protos = append([]protocol.ID{known}, slices.Delete(slices.Clone(protos), i, i+1)...)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.ResetWithError(network.StreamProtocolNegotiationFailed) })
	p, err := multistream.SelectOneOf(protos, s)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = s.ResetWithError(network.StreamProtocolNegotiationFailed)
		return nil, err
	}
	if err := s.SetProtocol(p); err != nil {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, err
	}
	if known == "" {
		_ = h.Peerstore().AddProtocols(id, p) // if it fails, the next stream asks again
	}
	return s, nil
}

// Answering returns the connection to open a stream to a peer on, if there are several
// direct ones and the peer has not answered identify on all: the newest on which it has,
// or that on which it does first, for which it waits. Otherwise it returns nil: the swarm
// may choose. So it may if a connection is much newer than those that are answered: the
// peer may have moved, and they may be dead.
func (h *Host) Answering(ctx context.Context, id peer.ID) network.Conn {
	direct := h.swarm.ConnsToPeer(id)
	if len(direct) < 2 {
		return nil
	}
	direct = slices.DeleteFunc(direct, func(c network.Conn) bool {
		return c.IsClosed() || addrs.IsCircuit(c.RemoteMultiaddr())
	})
	c, wait := choose(direct, h.answers.has, h.asks)
	if wait {
		return h.identified(ctx, direct)
	}
	return c
}

// choose returns the connection of Answering, from the oldest to the newest, or whether
// to wait for it.
func choose(list []network.Conn, answered, asks func(network.Conn) bool) (last network.Conn, wait bool) {
	all := true
	for _, c := range list {
		switch {
		case answered(c):
			last = c
			continue
		case last != nil && c.Stat().Opened.Sub(last.Stat().Opened) >= settled && asks(c):
			return nil, false
		}
		all = false
	}
	if all || len(list) < 2 {
		return nil, false
	}
	return last, last == nil
}

// asks reports whether identify still waits for an answer on a connection.
func (h *Host) asks(c network.Conn) bool {
	known := h.Identified(c)
	select {
	case <-known:
		return false
	default:
		return known != nil
	}
}

// identified waits until identify has ended on one of a peer's connections that is open,
// and the peer's protocols are known, and returns that one. If that does not come, it
// returns one that is open nevertheless, or nil without one.
func (h *Host) identified(ctx context.Context, list []network.Conn) (open network.Conn) {
	ends := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
	for _, c := range list {
		known := h.Identified(c)
		if known == nil { // nobody asks
			return c
		}
		ends = append(ends, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(known)})
	}
	for list = slices.Clone(list); len(list) > 0; {
		i, _, _ := reflect.Select(ends)
		if i == 0 {
			return open
		}
		c := list[i-1]
		if !c.IsClosed() {
			open = c
			if len(h.Protocols(c.RemotePeer())) > 0 {
				return c
			}
		}
		ends, list = slices.Delete(ends, i, i+1), slices.Delete(list, i-1, i)
	}
	return open
}
