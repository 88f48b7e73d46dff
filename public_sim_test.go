package p2pnode_test

import (
	"bufio"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// onPublic returns the options of a reachable node of the public network, which
// is simulated here: it knows only the given peers.
func onPublic(known ...peer.AddrInfo) []p2pnode.Option {
	return []p2pnode.Option{
		p2pnode.WithIPFS(), p2pnode.WithBootstrapPeers(known...), p2pnode.WithDHTMode(p2pnode.DHTModeServer), p2pnode.WithReachability(network.ReachabilityPublic),
	}
}

func strangeID(tb testing.TB) peer.ID {
	tb.Helper()
	id, err := test.RandPeerID()
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func privates(list []ma.Multiaddr) []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(list), manet.IsPublicAddr)
}

// A node with addresses in a LAN tells the public network's DHT only its public
// ones: not in provider records, not when it is asked for itself or for a peer of
// its LAN, and not those of others.
func TestPublicNetworkLearnsNoPrivateAddress(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		boot := sim.Raw(t, p2ptest.RawNetwork("ipfs"))
		peers := sim.Nodes(t, 3, p2ptest.Use(onPublic(sim.AddrInfo(boot))...))
		private := []ma.Multiaddr{
			ma.StringCast("/ip4/192.168.1.7/udp/4001/quic-v1"), ma.StringCast("/ip4/10.9.8.7/udp/4001/quic-v1"), ma.StringCast("/ip4/127.0.0.1/udp/4001/quic-v1"),
		}
		n := sim.Node(t, append(onPublic(sim.AddrInfo(boot)), p2pnode.WithLibp2pOptions(libp2p.AddrsFactory(func(list []ma.Multiaddr) []ma.Multiaddr {
			return slices.Concat(list, private)
		})))...)
		stranger := sim.Raw(t, p2ptest.RawNetwork("ipfs"))
		if err := stranger.Connect(t.Context(), sim.AddrInfo(boot)); err != nil {
			t.Fatal(err)
		}
		sim.RoutingTable(append(peers, n), 1)
		time.Sleep(time.Minute)
		if len(privates(n.Addrs())) != len(private) {
			t.Fatalf("the node should have %d private addresses: %v", len(private), n.Addrs())
		}
		// A peer of the LAN, as mDNS and the LAN's DHT find it.
		near := peer.AddrInfo{ID: strangeID(t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.168.1.8/udp/4001/quic-v1")}}
		n.Host().Peerstore().AddAddrs(near.ID, near.Addrs, time.Hour)

		many := contents(t, 40)
		one := cidOf(t, "one")
		if err := n.Provide(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		if err := n.ProvideMany(t.Context(), slices.Values(many)); err != nil {
			t.Fatal(err)
		}
		if err := stranger.Connect(t.Context(), peer.AddrInfo{ID: n.ID(), Addrs: slices.DeleteFunc(n.Addrs(), func(a ma.Multiaddr) bool { return !manet.IsPublicAddr(a) })}); err != nil {
			t.Fatal(err)
		}
		ask, err := pb.NewProtocolMessenger(stranger.DHT.MessageSender())
		if err != nil {
			t.Fatal(err)
		}
		records := 0
		check := func(who peer.ID, what string, list []*peer.AddrInfo) {
			for _, ai := range list {
				if bad := privates(ai.Addrs); len(bad) > 0 {
					t.Errorf("%s tells in %s: %v", who, what, bad)
				}
				if ai.ID == n.ID() && len(ai.Addrs) > 0 {
					records++
				}
			}
		}
		servers := []peer.ID{n.ID()}
		for _, p := range peers {
			servers = append(servers, p.ID())
		}
		for _, s := range servers {
			for _, c := range append(many, one) {
				providers, closer, err := ask.GetProviders(t.Context(), s, c.Hash())
				if err != nil {
					t.Fatal(err)
				}
				check(s, "a provider record", providers)
				check(s, "the closer peers", closer)
			}
			for _, id := range append(servers, near.ID) {
				found, err := ask.GetClosestPeers(t.Context(), s, id)
				if err != nil {
					t.Fatal(err)
				}
				check(s, "what it finds", found)
			}
		}
		if records == 0 {
			t.Error("the node's public address is not told either")
		}
		// What a peer keeps of what identify tells: all addresses are in the message,
		// and libp2p drops private ones that come from a public address.
		if bad := privates(stranger.Peerstore().Addrs(n.ID())); len(bad) > 0 {
			t.Errorf("the stranger would dial %v", bad)
		}
	})
}

// A private address that comes from the public network is not dialed, whoever
// told it; one that the application names is.
func TestPublicNetworkLeadsIntoNoLAN(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		boot := sim.Raw(t, p2ptest.RawNetwork("ipfs"))
		n := sim.Node(t, onPublic(sim.AddrInfo(boot))...)
		sim.RoutingTable(n, 1)
		private := ma.StringCast("/ip4/192.168.1.7/udp/4001/quic-v1")
		global := ma.StringCast("/ip4/99.1.2.3/udp/4001/quic-v1")
		// From now on the only server names a peer for everything, as a provider too.
		var named atomic.Pointer[pb.Message_Peer]
		boot.SetStreamHandler("/ipfs/kad/1.0.0", func(s network.Stream) {
			defer s.Close()
			for r := bufio.NewReader(s); ; {
				m := new(pb.Message)
				if err := protodelim.UnmarshalFrom(r, m); err != nil {
					return
				}
				reply := pb.NewMessage(m.Type, m.Key, 0)
				reply.CloserPeers = []*pb.Message_Peer{named.Load()}
				if m.Type == pb.Message_GET_PROVIDERS {
					reply.ProviderPeers = reply.CloserPeers
				}
				if _, err := protodelim.MarshalTo(s, reply); err != nil {
					return
				}
			}
		})
		for _, c := range n.Host().Network().ConnsToPeer(boot.ID()) {
			for _, s := range c.GetStreams() {
				if s.Protocol() == "/ipfs/kad/1.0.0" {
					_ = s.Reset() // the old handler has it
				}
			}
		}
		for _, row := range []struct {
			source string
			learn  func(id peer.ID)
		}{
			{"a provider record", func(peer.ID) {
				for ai, err := range n.FindProviders(t.Context(), cidOf(t, "x")) {
					if bad := privates(ai.Addrs); err != nil || len(bad) > 0 {
						t.Errorf("found a provider at %v, %v", bad, err)
					}
				}
			}},
			{"the answer to FindPeer", func(id peer.ID) {
				if ai, err := n.FindPeer(t.Context(), id); len(privates(ai.Addrs)) > 0 {
					t.Errorf("found %v, %v", ai, err)
				}
			}},
			{"the address book, as from an earlier connection", func(id peer.ID) {
				n.Host().Peerstore().AddAddrs(id, []ma.Multiaddr{global, private}, time.Hour)
			}},
		} {
			id := strangeID(t)
			named.Store(&pb.Message_Peer{Id: []byte(id), Addrs: [][]byte{global.Bytes(), private.Bytes()}})
			row.learn(id)
			if got := dialed(n.Connect(t.Context(), peer.AddrInfo{ID: id})); !slices.ContainsFunc(got, global.Equal) || slices.ContainsFunc(got, private.Equal) {
				t.Errorf("from %s: dialed %v, want the public address only", row.source, got)
			}
			if got := dialed(n.Connect(t.Context(), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{private}})); !slices.ContainsFunc(got, private.Equal) {
				t.Errorf("from %s, then from the application: dialed %v", row.source, got)
			}
		}
		// What a peer says of itself.
		other := sim.Node(t, append(onPublic(sim.AddrInfo(boot)), p2pnode.WithLibp2pOptions(libp2p.AddrsFactory(func(list []ma.Multiaddr) []ma.Multiaddr {
			return append(slices.Clone(list), private)
		})))...)
		there := peer.AddrInfo{ID: other.ID(), Addrs: []ma.Multiaddr{other.Addrs()[0]}}
		if err := n.Connect(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		sim.Crash(other)
		if err := n.Disconnect(t.Context(), other.ID()); err != nil {
			t.Fatal(err)
		}
		if got := dialed(n.Connect(t.Context(), peer.AddrInfo{ID: other.ID()})); len(got) == 0 || len(privates(got)) > 0 {
			t.Errorf("from identify: dialed %v", got)
		}
	})
}

// dialed returns the addresses that a failed dial has tried.
func dialed(err error) (list []ma.Multiaddr) {
	var failed *swarm.DialError
	if errors.As(err, &failed) {
		for _, e := range failed.DialErrors {
			if !errors.Is(e.Cause, swarm.ErrGaterDisallowedConnection) {
				list = append(list, e.Address)
			}
		}
	}
	return list
}
