package nethost

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
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
	for name, c := range map[string]struct {
		list   []string
		reads  int // the interfaces
		atOnce []string
	}{
		"this machine":         {[]string{public, own}, 0, []string{own}},
		"this network":         {[]string{public, neighbour}, 1, []string{neighbour}},
		"another network":      {[]string{public, private}, 1, []string{private, public}},
		"two private networks": {[]string{public, private, neighbour, relayed}, 1, []string{neighbour}},
		"a relay nearby":       {[]string{private, relayed}, 1, []string{private, relayed}},
		"a public address":     {[]string{public}, 0, []string{public}},
	} {
		t.Run(name, func(t *testing.T) {
			reads := 0
			r := &ranker{networks: func() []*net.IPNet {
				reads++
				return []*net.IPNet{lan}
			}}
			text := make(map[string]string) // of the whole addresses
			var list []ma.Multiaddr
			for _, a := range c.list {
				whole := ma.StringCast(a)
				if a != relayed {
					whole = ma.StringCast(a + "/udp/1/quic-v1")
				}
				text[whole.String()] = a
				list = append(list, whole)
			}
			var atOnce []string
			for _, a := range r.rank(list) {
				if a.Delay == 0 {
					atOnce = append(atOnce, text[a.Addr.String()])
				}
			}
			slices.Sort(atOnce)
			slices.Sort(c.atOnce)
			if !slices.Equal(atOnce, c.atOnce) || reads != c.reads {
				t.Errorf("%v are dialed at once, not %v; the interfaces were read %d times, not %d", atOnce, c.atOnce, reads, c.reads)
			}
		})
	}
}
