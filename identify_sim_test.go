package p2pnode_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	identify_pb "github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// A relay that begins to serve while a node connects pushes that to it, and the push
// overtakes the answer to identify, which does not say so. The node asks again, and
// gets its reservation.
func TestAPushThatOvertakesTheAnswerToIdentifyIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		raw := sim.Raw(t)
		known := make(chan func() bool, 1)
		asked := make(chan struct{}, 10)
		overtaken := make(chan struct{})
		raw.SetStreamHandler(identify.ID, func(s network.Stream) {
			defer s.Close()
			old := &identify_pb.Identify{Protocols: protocol.ConvertToStrings(raw.Mux().Protocols())}
			for _, a := range raw.Addrs() {
				old.ListenAddrs = append(old.ListenAddrs, a.Bytes())
			}
			asked <- struct{}{}
			if len(asked) == 1 {
				service, err := relay.New(raw)
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { _ = service.Close() })
				for knows := <-known; !knows(); {
					time.Sleep(time.Millisecond)
				}
				close(overtaken)
			}
			if _, err := protodelim.MarshalTo(s, old); err != nil {
				t.Error(err)
			}
		})
		hidden := sim.NAT(p2ptest.PortRestricted).Node(t, p2pnode.WithAutoRelay(peer.AddrInfo{ID: raw.ID(), Addrs: raw.Addrs()}), p2pnode.WithMinPeers(0))
		knows := func() bool {
			served, err := hidden.Host().Peerstore().SupportsProtocols(raw.ID(), proto.ProtoIDv2Hop)
			return err == nil && len(served) > 0
		}
		known <- knows
		<-overtaken
		soonly(t, time.Second, "the answer that was overtaken", func() bool { return !knows() })
		took := soonly(t, 10*time.Second, "a reservation", func() bool { return len(relaysOf(hidden)) == 1 })
		t.Logf("reserved %v later, after %d questions", took, len(asked))
		if len(asked) != 2 {
			t.Errorf("it asked %d times", len(asked))
		}
	})
}
