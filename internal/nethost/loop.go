package nethost

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Loop dials the node itself through a relay that it has a reservation at, and
// closes the connection. It returns nil if the relay relays: on the other side
// somebody has proven to have the node's key.
func (h *Host) Loop(ctx context.Context, relay peer.ID) error {
	a, err := ma.NewMultiaddr("/p2p/" + relay.String() + "/p2p-circuit")
	if err != nil {
		return err
	}
	t := h.swarm.TransportForDialing(a)
	if t == nil {
		return errors.New("the relay client is off")
	}
	// The swarm refuses to dial the node itself, and its end of the connection is
	// refused once the handshake is done.
	c, err := t.Dial(network.WithNoDial(ctx, "p2pnode: loop"), a, h.ID())
	if err != nil {
		return err
	}
	return c.Close()
}

// InterceptUpgraded refuses connections of the node to itself.
func (g gated) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	if c.RemotePeer() == c.LocalPeer() {
		return false, 0
	}
	return g.ConnectionGater.InterceptUpgraded(c)
}
