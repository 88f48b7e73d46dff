package p2pnode

import (
	"net"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// overTCP is a node's address over TCP.
func overTCP(t *testing.T, n *Node) (peer.AddrInfo, string) {
	t.Helper()
	for _, a := range n.base.Addrs() {
		if netw, hostport, err := manet.DialArgs(a); err == nil && netw == "tcp4" {
			return peer.AddrInfo{ID: n.ID(), Addrs: []ma.Multiaddr{a}}, hostport
		}
	}
	t.Fatal("the node does not listen on TCP")
	return peer.AddrInfo{}, ""
}

// Connections on which nobody speaks, as many as a node takes and more, do not
// keep others out, although they come from the same address.
func TestAttackC4SilentConnectionsLockNobodyOut(t *testing.T) {
	n := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	at, hostport := overTCP(t, n)
	silence := func() {
		c, err := net.Dial("tcp4", hostport)
		mustNot(t, err)
		t.Cleanup(func() { _ = c.Close() }) // the node may have closed it
	}
	for opened := 0; n.Status().Refused.Total() == 0; opened++ {
		if opened == 5000 {
			t.Fatal("no limit was reached")
		}
		silence()
	}
	for range 20 {
		silence()
		honest, err := New(testContext(t), WithoutListening(), WithoutDHT(), WithoutPubSub())
		mustNot(t, err)
		mustNot(t, honest.Connect(testContext(t), at))
		mustClose(t, honest)
	}
}
