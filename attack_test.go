package p2pnode

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
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

// What a peer says of itself, and the names in addresses, cannot steer a terminal.
func TestAttackEscapeSequencesReachNobody(t *testing.T) {
	n := newNode(t)
	events := n.Events(testContext(t))
	evil, err := New(testContext(t), loopback(), WithLibp2pOptions(libp2p.UserAgent("evil\x1b[2J\u202e")))
	mustNot(t, err)
	defer mustClose(t, evil)
	evil.Host().SetStreamHandler("/evil\x1b]0;x\a", func(s network.Stream) { _ = s.Reset() })
	mustNot(t, evil.Connect(testContext(t), n.AddrInfo()))
	for ev := range events {
		c, ok := ev.(EventPeerConnected)
		if !ok {
			continue
		}
		if c.Peer.Agent != "evil�[2J�" || !slices.Contains(c.Peer.Protocols, "/evil�]0;x�") {
			t.Errorf("%q %q", c.Peer.Agent, c.Peer.Protocols)
		}
		break
	}
	name, err := ma.NewComponent("dns4", "\x1b[31m.invalid")
	mustNot(t, err)
	id, err := test.RandPeerID()
	mustNot(t, err)
	err = n.Connect(testContext(t), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{name.Encapsulate(ma.StringCast("/tcp/1"))}})
	if err == nil || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("got %q", err)
	}
}

// A peer that is connected but never identified is not a success.
func TestAttackAPeerThatIsNeverIdentifiedIsAnError(t *testing.T) {
	n, mute := newNode(t), newNode(t)
	mute.Host().SetStreamHandler(identify.ID, func(s network.Stream) { _ = s.Reset() })
	for range 2 { // the second time it is connected already
		if err := n.Connect(testContext(t), mute.AddrInfo()); err == nil || !strings.Contains(err.Error(), "identify") {
			t.Errorf("got %v", err)
		}
	}
}
