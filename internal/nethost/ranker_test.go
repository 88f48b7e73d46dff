package nethost

import (
	"maps"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
)

// conn is a connection that was dialed.
type conn struct {
	network.Conn
	from, to ma.Multiaddr
}

func (c conn) LocalMultiaddr() ma.Multiaddr  { return c.from }
func (c conn) RemoteMultiaddr() ma.Multiaddr { return c.to }
func (c conn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: network.DirOutbound}}
}

// swarmOf is a swarm with connections, which listens.
type swarmOf struct {
	network.Network
	conns   *[]network.Conn
	listens []ma.Multiaddr
}

func (s swarmOf) Conns() []network.Conn           { return *s.conns }
func (s swarmOf) ListenAddresses() []ma.Multiaddr { return s.listens }

// The first of several peers is dialed over QUIC, the second over TCP, and others
// over QUIC again, until there is no connection over TCP from the listen port.
func TestOneOfSeveralPeersIsDialedOverTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open []network.Conn
		listen, other := ma.StringCast("/ip4/192.168.1.2/tcp/4001"), ma.StringCast("/ip4/192.168.1.2/tcp/40001")
		r := &ranker{networks: func() []*net.IPNet { return nil }, swarm: func() network.Network { return swarmOf{conns: &open, listens: []ma.Multiaddr{listen}} }}
		peer := func(ip string) (list []ma.Multiaddr) {
			for _, rest := range []string{"/udp/1/quic-v1", "/tcp/1", "/tcp/2/ws"} {
				list = append(list, ma.StringCast("/ip4/"+ip+rest))
			}
			return list
		}
		// first is the transport that is dialed at once, alone.
		first := func(list []ma.Multiaddr) string {
			t.Helper()
			ranked := r.rank(list)
			if len(ranked) != len(list) || ranked[0].Delay != 0 || ranked[1].Delay == 0 {
				t.Fatalf("ranked %v", ranked)
			}
			_, last := ma.SplitLast(ranked[0].Addr)
			return last.Protocol().Name
		}
		expect := func(ip, transport string) {
			t.Helper()
			if got := first(peer(ip)); got != transport {
				t.Errorf("%s is dialed over %s first, not %s", ip, got, transport)
			}
		}
		one, two, three := "5.1.0.1", "5.2.0.1", "5.3.0.1"
		expect(one, "quic-v1")
		expect(one, "quic-v1") // again
		expect(two, "tcp")     // at the same time as another
		expect(three, "quic-v1")
		time.Sleep(time.Minute)
		expect(one, "quic-v1") // alone
		open = []network.Conn{conn{from: listen, to: peer(one)[0]}}
		time.Sleep(time.Minute)
		expect(two, "tcp") // besides one over QUIC
		expect(three, "quic-v1")
		open = append(open, conn{from: listen, to: peer(two)[1]})
		time.Sleep(time.Minute)
		expect(three, "quic-v1")
		open[1] = conn{from: other, to: peer(two)[1]} // nobody else sees that port
		expect(three, "tcp")
		open[1] = conn{from: listen, to: peer(two)[1]}
		time.Sleep(time.Minute)
		open = open[:1] // the one over TCP is lost
		expect(three, "tcp")
		time.Sleep(time.Minute)
		expect("192.168.1.1", "quic-v1") // says nothing about a NAT
	})
}

// A peer on this machine or in one of its networks is dialed there, and elsewhere only
// if that takes long.
func TestNearbyAddressesAreDialedFirst(t *testing.T) {
	_, lan, err := net.ParseCIDR("192.168.1.7/24")
	if err != nil {
		t.Fatal(err)
	}
	const (
		own, neighbour, private, public = "/ip4/127.0.0.1", "/ip4/192.168.1.9", "/ip4/10.1.2.3", "/ip6/2606::1"
		relayed                         = "/ip4/192.168.1.1/tcp/1/p2p/12D3KooWHb5AYRa86MtnRnbQ3ywoHbRWYVhLsxsuDfhXW56yp5L9/p2p-circuit"
	)
	const first, later = 0, swarm.PrivateQUICDelay
	for name, c := range map[string]struct {
		delays map[string]time.Duration
		reads  int // the interfaces
	}{
		"this machine":         {map[string]time.Duration{own: first, public: later}, 0},
		"this network":         {map[string]time.Duration{neighbour: first, public: later}, 1},
		"another network":      {map[string]time.Duration{private: first, public: first}, 1},
		"two private networks": {map[string]time.Duration{neighbour: first, private: later, public: later, relayed: later + swarm.RelayDelay}, 1},
		"a relay nearby":       {map[string]time.Duration{private: first, relayed: first}, 1},
		"a public address":     {map[string]time.Duration{public: first}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			reads := 0
			r := &ranker{networks: func() []*net.IPNet {
				reads++
				return []*net.IPNet{lan}
			}}
			text := make(map[string]string) // of the whole addresses
			var list []ma.Multiaddr
			for a := range c.delays {
				whole := ma.StringCast(a)
				if a != relayed {
					whole = ma.StringCast(a + "/udp/1/quic-v1")
				}
				text[whole.String()] = a
				list = append(list, whole)
			}
			got := make(map[string]time.Duration)
			for _, a := range r.rank(list) {
				got[text[a.Addr.String()]] = a.Delay
			}
			if !maps.Equal(got, c.delays) || reads != c.reads {
				t.Errorf("%v, want %v; the interfaces were read %d times, not %d", got, c.delays, reads, c.reads)
			}
		})
	}
}
