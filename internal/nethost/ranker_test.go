package nethost

import (
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
		r := &ranker{swarm: func() network.Network { return swarmOf{conns: &open, listens: []ma.Multiaddr{listen}} }}
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
