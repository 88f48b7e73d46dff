package simhost

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// inTheLaboratory has the kinds of NATs by the kernel's NATs that do the same.
// Those that are missing differ over TCP only, or are two in a row.
var inTheLaboratory = map[natlab.Kind]NATKind{
	natlab.NoIncoming:        Firewall,
	natlab.FullCone:          FullCone,
	natlab.AddressRestricted: RestrictedCone,
	natlab.PortRestricted:    PortRestricted,
	natlab.Symmetric:         Symmetric,
}

// behind returns a function that adds machines behind a new NAT, or public ones.
func behind(n *Network, k natlab.Kind) func() *Machine {
	if kind, ok := inTheLaboratory[k]; ok {
		return n.NewNAT(kind).NewMachine
	}
	return n.NewMachine
}

// The NATs do what those of the kernel do: both are held to one table, with one
// probe (TestRoutersBehaveAsDocumented of internal/natlab).
func TestNATsAreThoseOfTheLaboratory(t *testing.T) {
	compared := 0
	for _, k := range natlab.Kinds() {
		if _, ok := inTheLaboratory[k]; !ok && k != natlab.Public {
			continue
		}
		compared++
		t.Run(string(k), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, 10*time.Millisecond)
				one, two, inside := n.NewMachine(), n.NewMachine(), behind(n, k)
				want := k.Behavior(natlab.UDP)
				got, outer, err := natlab.Probe{
					Inside: listen(t, inside(), Port), Neighbor: listen(t, inside(), Port),
					One: listen(t, one, 1), OneOther: listen(t, one, 2), Two: listen(t, two, 1),
					Patience: time.Second, Moment: time.Second,
				}.Measure(want)
				if err != nil || got != want {
					t.Errorf("%+v, in the laboratory %+v: %v", got, want, err)
				}
				if !outer.Addr().IsGlobalUnicast() || outer.Addr().IsPrivate() {
					t.Errorf("packets come from %s", outer)
				}
			})
		})
	}
	if compared != int(Symmetric)+2 {
		t.Errorf("%d kinds were compared, and there are %d and the public network", compared, Symmetric+1)
	}
}

// Hole punching with bare sockets succeeds and fails as it does through the
// kernel's NATs.
func TestHolesCanBePunchedAsInTheLaboratory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		meeting := listen(t, n.NewMachine(), 1)
		for _, a := range natlab.Kinds() {
			for _, b := range natlab.Kinds() {
				if a == natlab.NoUDP || b == natlab.NoUDP || a == natlab.DoubleNAT || b == natlab.DoubleNAT {
					continue
				}
				sides := [2]net.PacketConn{listen(t, behind(n, a)(), Port), listen(t, behind(n, b)(), Port)}
				want := natlab.Punchable(a, b, natlab.UDP)
				got, err := natlab.Punch(natlab.Side{Kind: a, Conn: sides[0]}, natlab.Side{Kind: b, Conn: sides[1]}, meeting, want, time.Second, time.Second)
				if err != nil || got != want {
					t.Errorf("%s × %s: direct %v, in the laboratory %v: %v", a, b, got, want, err)
				}
			}
		}
	})
}

// A NAT makes mappings while packets arrive that came through it: neither waits for a
// lock of the other.
func TestANATMapsWhilePacketsArrive(t *testing.T) {
	n := newNet(t, 0)
	nat, to := n.NewNAT(Symmetric), n.NewMachine()
	inside := listen(t, nat.NewMachine(), Port)
	const mappings, arrivals = 200, 10_000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range mappings {
			if _, err := inside.WriteTo([]byte("out"), &net.UDPAddr{IP: to.IP().AsSlice(), Port: 1 + i}); err != nil {
				t.Error(err)
			}
		}
	})
	for range 4 {
		wg.Go(func() {
			for i := range arrivals {
				n.machineAt(netip.AddrPortFrom(nat.site.ip, uint16(20_001+i%mappings)))
			}
		})
	}
	wg.Wait()
	if got := len(nat.endpoints()); got != mappings {
		t.Errorf("%d mappings, expected %d", got, mappings)
	}
}
