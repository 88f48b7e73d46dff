package nethost_test

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// at is a connection as one from another place.
type at struct {
	network.Conn
	remote ma.Multiaddr
}

func (c at) RemoteMultiaddr() ma.Multiaddr { return c.remote }

// What a stranger says of a peer opens no connection to a service of this
// machine, even if its address has come into the address book.
func TestAttackC3AnAnswerOpensNoConnectionHere(t *testing.T) {
	var service atomic.Int32
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			service.Add(1)
			_ = c.Close()
		}
	}()
	victim, stranger := hosttest.New(t), hosttest.New(t, ma.StringCast("/ip4/127.0.0.1/tcp/0"))
	id, err := test.RandPeerID()
	must(t, err)
	there, err := manet.FromNetAddr(l.Addr())
	must(t, err)
	victim.Given(hosttest.Info(stranger))
	must(t, victim.Connect(t.Context(), hosttest.Info(stranger)))
	conn := at{victim.Network().ConnsToPeer(stranger.ID())[0], ma.StringCast("/ip4/8.8.8.8/tcp/4001")}
	if got := victim.Learned(conn, id, [][]byte{there.Bytes()}); len(got) > 0 {
		t.Errorf("learned %s", got)
	}
	must(t, victim.Disconnect(stranger.ID()))
	victim.Peerstore().AddAddr(id, there, time.Hour)
	if err := victim.Connect(t.Context(), peer.AddrInfo{ID: id}); !errors.Is(err, swarm.ErrNoGoodAddresses) {
		t.Errorf("got %v", err)
	}
	must(t, l.Close())
	<-served
	if n := service.Load(); n > 0 {
		t.Errorf("%d connections came to the service", n)
	}
	// The application may.
	host := nethost.Facing(victim, victim)
	if err := host.Connect(t.Context(), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{there}}); err == nil || errors.Is(err, swarm.ErrNoGoodAddresses) {
		t.Errorf("on the application's word: %v", err)
	}
}
