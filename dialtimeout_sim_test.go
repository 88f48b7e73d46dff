package p2pnode_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Over a link of 3 seconds one way, a private address is dialed with WithDialTimeout,
// and not without: libp2p's limit is 5 seconds.
func TestDialTimeoutReachesAPrivateAddressOverASlowLink(t *testing.T) {
	for name, c := range map[string]struct {
		opts []p2pnode.Option
		want bool
	}{
		"by default":      {nil, false},
		"WithDialTimeout": {[]p2pnode.Option{p2pnode.WithDialTimeout(time.Minute)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				lan := sim.NAT(p2ptest.PortRestricted)
				a, b := lan.Node(t, c.opts...), lan.Node(t, c.opts...)
				sim.SetPath(a, b, p2ptest.Path{Latency: 3 * time.Second})
				where := sim.AddrInfo(b)
				if !manet.IsPrivateAddr(where.Addrs[0]) {
					t.Fatalf("%s is not private", where.Addrs[0])
				}
				err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: where.Addrs})
				if (err == nil) != c.want {
					t.Fatal(err)
				}
				if !c.want {
					return
				}
				time.Sleep(30 * time.Second)
				if p, ok := a.Peer(b.ID()); !ok || len(p.Protocols) == 0 {
					t.Errorf("it is not identified: %+v", p)
				}
				if _, err := a.Ping(t.Context(), b.ID()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
