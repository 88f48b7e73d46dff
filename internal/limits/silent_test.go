package limits

import (
	"fmt"
	"net"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// arrival is an incoming connection whose peer is not known yet.
type arrival struct {
	net.Conn
	addr   ma.Multiaddr
	scope  network.ConnManagementScope
	closed bool
}

func (c *arrival) LocalMultiaddr() ma.Multiaddr  { return ma.StringCast("/ip4/8.8.8.8/tcp/4001") }
func (c *arrival) RemoteMultiaddr() ma.Multiaddr { return c.addr }
func (c *arrival) Close() error                  { c.closed = true; return nil }

func arrive(m *Manager, ip string, port int) (*arrival, error) {
	version := "ip4"
	if net.ParseIP(ip).To4() == nil {
		version = "ip6"
	}
	c := &arrival{addr: ma.StringCast(fmt.Sprintf("/%s/%s/tcp/%d", version, ip, port))}
	m.Accepting(c)
	scope, err := m.OpenConnection(network.DirInbound, false, c.addr)
	c.scope = scope
	return c, err
}

// fill opens silent connections until one had to go, and returns them in the
// order in which they arrived.
func fill(t *testing.T, m *Manager, from func(i int) string) []*arrival {
	t.Helper()
	var all []*arrival
	for m.Counts().Total() == 0 {
		c, err := arrive(m, from(len(all)), 1000+len(all)%60_000)
		mustNot(t, err)
		all = append(all, c)
	}
	return all
}

// Where silent connections from one private address, or from several public
// ones, take all places, the oldest of them go, and an honest one stays.
func TestAttackC4TheOldestSilentConnectionGoes(t *testing.T) {
	for name, from := range map[string]func(i int) string{
		"one private address":   func(int) string { return "10.0.0.1" },
		"a private subnet":      func(i int) string { return fmt.Sprintf("192.168.7.%d", i%200+1) },
		"public addresses":      func(i int) string { return fmt.Sprintf("8.8.%d.%d", i/1600, i/8%200) },
		"addresses of a subnet": func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i/8<<8) },
	} {
		t.Run(name, func(t *testing.T) {
			m, _, _ := limitedFor(t, Limits{})
			honest, err := arrive(m, "203.0.113.9", 4001) // before all others
			mustNot(t, err)
			all := fill(t, m, from)
			if !all[0].closed || all[1].closed {
				t.Errorf("the oldest is closed: %v, the next: %v", all[0].closed, all[1].closed)
			}
			for i := range 100 {
				c, err := arrive(m, fmt.Sprintf("198.51.%d.7", i), 4001)
				mustNot(t, err)
				mustNot(t, c.scope.SetPeer(peer.ID(fmt.Sprint("peer", i))))
				c.scope.Done()
			}
			if honest.closed {
				t.Error("the honest connection is closed")
			}
			mustNot(t, honest.scope.SetPeer("honest"))
			for _, c := range append(all, honest) {
				c.scope.Done()
			}
			if n := len(m.silent.conns) + len(m.silent.accepted); n > 0 {
				t.Errorf("%d connections are remembered", n)
			}
		})
	}
}

// Whoever has taken all places of one public address makes room for others
// behind it, and for nobody else.
func TestAttackC4OneAddressMakesRoomForItself(t *testing.T) {
	m, _, _ := limitedFor(t, Limits{})
	other, err := arrive(m, "8.8.4.4", 1)
	mustNot(t, err)
	all := fill(t, m, func(int) string { return "8.8.8.8" })
	if !all[0].closed || other.closed {
		t.Errorf("the oldest of the address is closed: %v, one of another: %v", all[0].closed, other.closed)
	}
	for _, c := range all[1:] {
		mustNot(t, c.scope.SetPeer(peer.ID(c.addr.Bytes())))
	}
	if _, err := arrive(m, "8.8.8.8", 1); err == nil || other.closed {
		t.Errorf("with connections whose peers are known: %v; another address lost its place: %v", err, other.closed)
	}
}
