package p2pnode

import (
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

var allInterfaces = WithListenAddrs("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")

func TestMDNSFindsPeersOfTheNetworkAlone(t *testing.T) {
	needMulticast(t)
	a := newNode(t, allInterfaces, WithMDNS(), WithNetwork("mdns-one"))
	b := newNode(t, allInterfaces, WithMDNS(), WithNetwork("mdns-one"))
	stranger := newNode(t, allInterfaces, WithMDNS(), WithNetwork("mdns-two"))
	ready(t, a, b)
	for _, n := range []*Node{a, b} {
		for _, p := range n.Peers() {
			if p.ID == stranger.ID() {
				t.Error("networks mix on the LAN")
			}
		}
	}
}

// Both discover each other at the same moment, and connect (pitfall 13).
func TestPitfall13SimultaneousDiscoveryConnects(t *testing.T) {
	needs.Time(t)
	needMulticast(t)
	for range 10 {
		nodes := make([]*Node, 2)
		var wg sync.WaitGroup
		for i := range nodes {
			wg.Go(func() {
				n, err := New(testContext(t), WithListenAddrs("/ip4/0.0.0.0/tcp/0"), WithMDNS(), WithNetwork("mdns-race"))
				if err != nil {
					t.Error(err)
					return
				}
				nodes[i] = n
			})
		}
		wg.Wait()
		for _, n := range nodes {
			mustNot(t, n.WaitReady(testContext(t)))
		}
		for _, n := range nodes {
			mustNot(t, n.Close())
		}
	}
}

type foundFunc func(peer.AddrInfo)

func (f foundFunc) HandlePeerFound(ai peer.AddrInfo) { f(ai) }

// The standard service name works with other implementations.
func TestMDNSMeetsAHandAssembledPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	needMulticast(t)
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/0.0.0.0/tcp/0"), nethost.NoMetrics)
	mustNot(t, err)
	defer h.Close()
	found := make(chan peer.AddrInfo, 16)
	s := mdns.NewMdnsService(h, "", foundFunc(func(ai peer.AddrInfo) {
		select {
		case found <- ai:
		default:
		}
	}))
	mustNot(t, s.Start())
	defer s.Close()
	n := newNode(t, allInterfaces, WithMDNSService("_p2p._udp"), WithoutDHT())
	mustNot(t, n.WaitReady(testContext(t))) // it has connected to h
	ctx := testContext(t)
	for {
		select {
		case ai := <-found:
			if ai.ID == n.ID() {
				return
			}
		case <-ctx.Done():
			t.Fatal("the other side has not found the node")
		}
	}
}

// On the public network, a peer found on the LAN is dialed there; nobody else is.
func TestPublicNetworkDialsPeersFoundOnTheLAN(t *testing.T) {
	other := newNode(t, WithNetwork("ipfs"))
	n := newNode(t, WithIPFS(), via(other))
	at := ma.StringCast("/ip4/192.168.255.254/tcp/1")
	near, far := otherID(t), otherID(t)
	if n.base.MayDial(far, at) {
		t.Errorf("%s is dialed for anybody", at)
	}
	events := n.Events(testContext(t))
	foundNearby(n, peer.AddrInfo{ID: near, Addrs: []ma.Multiaddr{at}})
	for ev := range events {
		if f, ok := ev.(EventPeerFound); ok {
			if f.ID != near || !slices.ContainsFunc(f.Addrs, at.Equal) {
				t.Errorf("found %+v", f)
			}
			break
		}
	}
	if !n.base.MayDial(near, at) || n.base.MayDial(far, at) {
		t.Error("the peer found on the LAN is not dialed there, or others are too")
	}
}
