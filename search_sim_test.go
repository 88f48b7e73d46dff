package p2pnode_test

import (
	"bufio"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// scripted is a peer of sim with scripted responses to DHT messages, and none if
// the response is nil.
func scripted(t *testing.T, sim *p2ptest.Network, answer func(*pb.Message) *pb.Message) *p2ptest.RawNode {
	t.Helper()
	raw := sim.Raw(t)
	raw.Host.SetStreamHandler("/p2pnode/kad/1.0.0", func(s network.Stream) {
		defer func() { _ = s.Reset() }()
		for r := bufio.NewReader(s); ; {
			var m pb.Message
			if protodelim.UnmarshalFrom(r, &m) != nil {
				return
			}
			reply := answer(&m)
			if reply == nil {
				<-t.Context().Done()
				return
			}
			if m.Type == pb.Message_ADD_PROVIDER {
				continue // which has no reply
			}
			if _, err := protodelim.MarshalTo(s, reply); err != nil {
				return
			}
		}
	})
	return raw
}

// A search is over 5 seconds after its last answer, however many providers were
// named without addresses and however long it takes to look those up.
func TestSearchDoesNotWaitForAddressesThatNobodyHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		var bare []peer.AddrInfo
		for range 40 {
			id, err := test.RandPeerID()
			if err != nil {
				t.Fatal(err)
			}
			bare = append(bare, peer.AddrInfo{ID: id})
		}
		var searching atomic.Bool
		raw := scripted(t, sim, func(m *pb.Message) *pb.Message {
			reply := pb.NewMessage(m.Type, m.Key, 0)
			switch {
			case m.Type == pb.Message_GET_PROVIDERS:
				searching.Store(true)
				reply.ProviderPeers = pb.RawPeerInfosToPBPeers(bare)
			case searching.Load():
				return nil
			}
			return reply
		})
		n := sim.Node(t, p2pnode.WithBootstrapPeers(sim.AddrInfo(raw)))
		sim.RoutingTable(n, 1)
		begun := time.Now()
		for ai, err := range n.FindProviders(t.Context(), cidOf(t, "x")) {
			t.Errorf("found %v, %v", ai, err)
		}
		if took := time.Since(begun); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("the search took %v", took)
		}
	})
}

// A peer that is silent is asked once, and given up after 10 seconds: upstream's
// sender asks again, for 10 seconds more.
func TestSilentPeersAreAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		var asked atomic.Int32
		raw := scripted(t, sim, func(m *pb.Message) *pb.Message {
			if m.Type == pb.Message_GET_VALUE {
				asked.Add(1)
				return nil
			}
			return pb.NewMessage(m.Type, m.Key, 0)
		})
		n := sim.Node(t, p2pnode.WithBootstrapPeers(sim.AddrInfo(raw)))
		sim.RoutingTable(n, 1)
		begun := time.Now()
		_, err := n.GetValue(t.Context(), "/pk/"+string(n.ID()))
		if took := time.Since(begun); !errors.Is(err, p2pnode.ErrNoPeers) || took < 10*time.Second || took > 11*time.Second || asked.Load() != 1 {
			t.Errorf("%v after %v and %d questions", err, took, asked.Load())
		}
	})
}

func cidOf(t testing.TB, text string) cid.Cid {
	t.Helper()
	c, err := p2pnode.CIDOf(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
