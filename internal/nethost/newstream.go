package nethost

import (
	"context"
	"reflect"
	"slices"
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
// peer has answered identify.

// negotiateWithin is how long NewStream may negotiate a protocol, as in libp2p.
const negotiateWithin = 10 * time.Second

// NewStream is that of libp2p's host, but of several connections to the peer it takes
// one on which the peer has answered identify.
func (h *Host) NewStream(ctx context.Context, id peer.ID, protos ...protocol.ID) (network.Stream, error) {
	c := h.answering(ctx, id)
	if c == nil {
		return h.Host.NewStream(ctx, id, protos...)
	}
	ctx, cancel := context.WithTimeout(ctx, negotiateWithin)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	if err := h.negotiate(ctx, s, protos); err != nil {
		_ = s.ResetWithError(network.StreamProtocolNegotiationFailed)
		return nil, err
	}
	return s, nil
}

// RawStream opens a stream to a connected peer on the connection that NewStream takes,
// and negotiates no protocol.
func (h *Host) RawStream(ctx context.Context, id peer.ID) (network.Stream, error) {
	if c := h.answering(ctx, id); c != nil {
		return c.NewStream(ctx)
	}
	return h.swarm.NewStream(network.WithNoDial(ctx, "p2pnode"), id)
}

// negotiate agrees with the peer on a protocol, beginning with one that it is known to
// speak.
func (h *Host) negotiate(ctx context.Context, s network.Stream, protos []protocol.ID) error {
	id := s.Conn().RemotePeer()
	known, err := h.Peerstore().FirstSupportedProtocol(id, protos...)
	if err != nil {
		return err
	}
	if i := slices.Index(protos, known); i > 0 {
		protos = append([]protocol.ID{known}, slices.Delete(slices.Clone(protos), i, i+1)...)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	p, err := multistream.SelectOneOf(protos, s)
	if !stop() && err != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = s.SetProtocol(p)
	}
	if err == nil && known == "" {
		err = h.Peerstore().AddProtocols(id, p)
	}
	return err
}

// answering returns a direct connection on which a peer has answered identify, if there
// are several and it has not on all, and waits for the answer if it has on none.
// Otherwise it returns nil: the swarm may choose.
func (h *Host) answering(ctx context.Context, id peer.ID) network.Conn {
	direct := slices.DeleteFunc(h.swarm.ConnsToPeer(id), func(c network.Conn) bool {
		return c.IsClosed() || addrs.IsCircuit(c.RemoteMultiaddr())
	})
	if len(direct) < 2 || !slices.ContainsFunc(direct, h.unanswered) {
		return nil
	}
	return h.identified(ctx, direct)
}

// unanswered reports whether identify still waits for an answer on a connection.
func (h *Host) unanswered(c network.Conn) bool {
	known := h.Identified(c)
	select {
	case <-known:
		return false
	default:
		return known != nil
	}
}

// identified waits until a peer has answered identify on one of its connections, and
// returns that one. If it answers on none, it returns one that is open nevertheless, or
// nil without one.
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
