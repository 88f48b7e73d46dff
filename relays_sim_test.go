package p2pnode_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// relaysOf returns the relays at which a node has reservations.
func relaysOf(n *p2ptest.Node) (list []peer.ID) {
	for _, r := range n.Status().Relays {
		if r.Reserved {
			list = append(list, r.ID)
		}
	}
	return list
}

// soonly waits until something is true, and returns how long that took.
func soonly(t *testing.T, limit time.Duration, what string, is func() bool) time.Duration {
	t.Helper()
	begun := time.Now()
	for !is() {
		if time.Since(begun) > limit {
			t.Fatalf("after %v, not yet: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(begun)
}

// With nothing but bootstrap peers, a node behind a NAT is reachable within 10
// seconds through relays that it finds in the DHT, and whoever knows its ID connects.
// One that crashes is replaced within 15 seconds.
func TestRelaysAreFoundAndReplaced(t *testing.T) {
	needs.Time(t)
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		via := p2pnode.WithBootstrapPeers(boot.AddrInfo())
		var relays p2ptest.Nodes
		for range 3 {
			relays = append(relays, sim.Node(t, via, p2pnode.WithRelayService()))
		}
		sim.Ready()
		time.Sleep(10 * time.Second)
		hidden := sim.NAT(p2ptest.PortRestricted).Node(t, via, p2pnode.WithRelayDiscovery(), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		begun := time.Now()
		if err := hidden.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begun)
		t.Logf("reachable after %v", took)
		if took > 10*time.Second {
			t.Errorf("reachable after %v", took)
		}
		soonly(t, 10*time.Second, "two relays", func() bool { return len(relaysOf(hidden)) == 2 })
		for _, r := range hidden.Status().Relays {
			if r.Source == p2pnode.RelayNamed {
				t.Errorf("%+v", r)
			}
		}
		time.Sleep(10 * time.Second)

		// By its ID alone.
		dialer := sim.NAT(p2ptest.Symmetric).Node(t, via)
		if err := dialer.WaitReady(t.Context(), p2pnode.StageRouting); err != nil {
			t.Fatal(err)
		}
		if err := dialer.Connect(t.Context(), peer.AddrInfo{ID: hidden.ID()}); err != nil {
			t.Fatal(err)
		}
		if p, ok := dialer.Peer(hidden.ID()); !ok || !p.Relayed {
			t.Errorf("connected by %+v", p)
		}

		first := relaysOf(hidden)[0]
		i := slices.IndexFunc(relays, func(n *p2ptest.Node) bool { return n.ID() == first })
		sim.Crash(relays[i])
		took = soonly(t, 15*time.Second, "another relay in place of the one that crashed", func() bool {
			list := relaysOf(hidden)
			return len(list) == 2 && !slices.Contains(list, first)
		})
		t.Logf("replaced after %v", took)
	})
}

// A node known to be public uses no relays; one with a named relay finds only one.
func TestRelaysAreFoundOnlyWhereNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t, p2pnode.WithRelayService())
		via := p2pnode.WithBootstrapPeers(boot.AddrInfo())
		named := sim.Node(t, via, p2pnode.WithRelayService())
		other := sim.Node(t, via, p2pnode.WithRelayService())
		sim.Ready()
		public := sim.Node(t, via, p2pnode.WithRelayDiscovery(), p2pnode.WithReachability(network.ReachabilityPublic))
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, via, p2pnode.WithRelayDiscovery(), p2pnode.WithAutoRelay(named.AddrInfo()))
		none := sim.NAT(p2ptest.Symmetric).Node(t, via)
		time.Sleep(time.Minute)
		if list := relaysOf(public); len(list) != 0 {
			t.Errorf("a public node uses %v", list)
		}
		if list := relaysOf(none); len(list) != 0 {
			t.Errorf("a node that was not asked to uses %v", list)
		}
		var sources []string
		for _, r := range hidden.Status().Relays {
			if !r.Reserved || (r.Source == p2pnode.RelayNamed) != (r.ID == named.ID()) {
				t.Errorf("%+v", r)
			}
			sources = append(sources, string(r.Source))
		}
		if len(sources) != 2 || sources[0] != "named" {
			t.Errorf("sources %v; the relays are %v, %v, %v", sources, boot.ID(), named.ID(), other.ID())
		}
	})
}

// A relay that takes reservations and does not relay is not announced, and the
// next one is used.
func TestARelayThatDoesNotRelayIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		liar := sim.Node(t)
		via := p2pnode.WithBootstrapPeers(liar.AddrInfo())
		asked := make(chan struct{}, 100)
		liar.Host().SetStreamHandler(proto.ProtoIDv2Hop, func(s network.Stream) {
			defer s.Close()
			var msg pb.HopMessage
			if util.NewDelimitedReader(s, 4096).ReadMsg(&msg) != nil {
				return
			}
			answer := pb.HopMessage{Type: pb.HopMessage_STATUS.Enum(), Status: pb.Status_OK.Enum()}
			if msg.GetType() == pb.HopMessage_RESERVE {
				asked <- struct{}{}
				expire := uint64(time.Now().Add(time.Hour).Unix())
				answer.Reservation = &pb.Reservation{Expire: &expire}
			}
			_ = util.NewDelimitedWriter(s).WriteMsg(&answer)
		})
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, via, p2pnode.WithRelayDiscovery())
		time.Sleep(time.Minute)
		if len(asked) == 0 {
			t.Fatal("the liar was not asked")
		}
		if list := relaysOf(hidden); len(list) != 0 {
			t.Errorf("it uses %v", list)
		}
		for _, a := range hidden.Addrs() {
			if strings.Contains(a.String(), "p2p-circuit") {
				t.Errorf("it announces %s", a)
			}
		}
		honest := sim.Node(t, via, p2pnode.WithRelayService())
		soonly(t, 3*time.Minute, "the honest relay", func() bool { return slices.Equal(relaysOf(hidden), []peer.ID{honest.ID()}) })
		time.Sleep(10 * time.Minute)
		if n := len(asked); n > 3 {
			t.Errorf("the liar was asked %d times", n)
		}
	})
}
