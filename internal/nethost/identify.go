package nethost

import (
	"context"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
)

// IdentifyAgain asks a connected peer once more for its protocols and addresses, which
// then replace what is known, and returns when it has answered, has not within the time
// that identify may take, or ctx is done. Libp2p (v0.51) itself asks once on each
// connection: a second service asks, which answers nobody.
func (h *Host) IdentifyAgain(ctx context.Context, id peer.ID) error {
	conns := h.swarm.ConnsToPeer(id)
	if len(conns) == 0 {
		return nil
	}
	best := conns[0]
	for _, c := range conns {
		if best.IsClosed() || best.Stat().Limited && !c.IsClosed() {
			best = c
		}
	}
	var opts []identify.Option
	if h.identifyTimeout > 0 {
		opts = append(opts, identify.WithTimeout(h.identifyTimeout))
	}
	service, err := identify.NewIDService(asking{h.Host}, opts...)
	if err != nil {
		return err
	}
	service.Start()
	defer service.Close() // it returns nil
	select {
	case <-service.IdentifyWait(best):
	case <-ctx.Done():
	}
	// Its lock is not the one that the host's service holds when the peer disconnects.
	if h.swarm.Connectedness(id) == network.NotConnected {
		h.Peerstore().UpdateAddrs(id, peerstore.ConnectedAddrTTL, peerstore.RecentlyConnectedAddrTTL)
	}
	return nil
}

// asking is a host on which a service of identify only asks.
type asking struct{ host.Host }

func (asking) SetStreamHandler(protocol.ID, network.StreamHandler) {}
func (h asking) Network() network.Network                          { return unnoticed{h.Host.Network()} }

// unnoticed is a network that tells nobody of its connections.
type unnoticed struct{ network.Network }

func (unnoticed) Notify(network.Notifiee) {}
