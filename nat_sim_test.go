package p2pnode_test

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// simulated are the NATs of p2ptest, by the kinds of the laboratory. The two others
// differ over TCP only, which the simulation does not have ("no UDP"), or do what
// PortRestricted does ("double NAT").
var simulated = map[natlab.Kind]p2ptest.NATKind{
	natlab.NoIncoming:        p2ptest.Firewall,
	natlab.FullCone:          p2ptest.FullCone,
	natlab.AddressRestricted: p2ptest.RestrictedCone,
	natlab.PortRestricted:    p2ptest.PortRestricted,
	natlab.Symmetric:         p2ptest.Symmetric,
}

// The table of docs/nat.md in virtual time: every NAT against every NAT, with
// WithNATTraversal and four public nodes, and Connect by peer ID alone. Cell by cell,
// the result over UDP is that of the laboratory (TestNATByNAT of
// internal/natlab/labpeer), and so are the verdicts of the nodes about themselves.
// They do not serve the DHT, where they would meet before.
func TestNATByNATIsThatOfTheLaboratory(t *testing.T) {
	needs.Time(t)
	const echo = protocol.ID("/echo")
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		var public []peer.AddrInfo
		for _, n := range sim.Nodes(t, 4, p2ptest.Use(p2pnode.WithProfile(p2pnode.ProfileServer))) {
			public = append(public, n.AddrInfo())
		}
		type side struct {
			*p2ptest.Node
			mu    sync.Mutex
			tries map[peer.ID]int // attempts to punch a hole that failed; guarded by mu
		}
		sides := map[natlab.Kind][2]*side{}
		var kinds []natlab.Kind
		for _, k := range natlab.Kinds() {
			kind, nat := simulated[k]
			if !nat && k != natlab.Public {
				continue
			}
			kinds = append(kinds, k)
			var pair [2]*side
			for i := range pair {
				place := sim.Node
				if nat {
					place = sim.NAT(kind).Node // each behind its own
				}
				n := &side{Node: place(t, p2pnode.WithNATTraversal(), p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(public...)), tries: map[peer.ID]int{}}
				if err := n.Handle(echo, func(_ context.Context, s network.Stream) error {
					_, err := io.Copy(s, s)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				events := n.Events(t.Context())
				go func() {
					for ev := range events {
						if ev, ok := ev.(p2pnode.EventHolePunched); ok && ev.Err != nil {
							n.mu.Lock()
							n.tries[ev.ID]++
							n.mu.Unlock()
						}
					}
				}()
				pair[i] = n
			}
			sides[k] = pair
		}
		time.Sleep(20 * time.Second)
		for _, k := range kinds {
			want := p2pnode.ReachabilityPrivate
			if k.DialedBack() {
				want = p2pnode.ReachabilityPublic
			}
			for _, n := range sides[k] {
				if got := n.Status().Reachability; got != want {
					t.Errorf("%s: %s, in the laboratory %s", k, got, want)
				}
				if k != natlab.Public && k != natlab.FullCone && len(relaysOf(n.Node)) == 0 {
					t.Errorf("%s: no relay", k)
				}
			}
		}
		var wg sync.WaitGroup
		for _, k := range kinds {
			for _, l := range kinds {
				a, b := sides[k][0], sides[l][1]
				wg.Go(func() {
					cell := fmt.Sprintf("%s × %s", k, l)
					if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID()}); err != nil {
						t.Errorf("%s: %v", cell, err)
						return
					}
					time.Sleep(40 * time.Second) // three attempts
					p, _ := a.Peer(b.ID())
					want := natlab.Punchable(k, l, natlab.UDP)
					if p.ID == "" || p.Relayed == want {
						t.Errorf("%s: relayed %v, in the laboratory direct %v", cell, p.Relayed, want)
					}
					a.mu.Lock()
					tries := a.tries[b.ID()]
					a.mu.Unlock()
					b.mu.Lock()
					tries += b.tries[a.ID()]
					b.mu.Unlock()
					if !want && tries == 0 {
						t.Errorf("%s: relayed without an attempt to punch a hole", cell)
					}
					s, err := a.OpenStream(t.Context(), b.ID(), echo)
					if err != nil {
						t.Errorf("%s: %v", cell, err)
						return
					}
					_, err = s.Write([]byte(cell))
					if err == nil {
						err = s.CloseWrite()
					}
					if got, readErr := io.ReadAll(s); err != nil || readErr != nil || string(got) != cell {
						t.Errorf("%s: the echo is %q: %v, %v", cell, got, err, readErr)
					}
				})
			}
		}
		wg.Wait()
	})
}

// Upstream tries three times to punch a hole when a relayed connection opens, and never
// again. What spoils these attempts passes: here, the path between the two networks is
// down for half a minute. The nodes try again, and are connected directly soon after, on
// the relayed connection that they have.
func TestAPairThatIsRelayedIsPunchedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithProfile(p2pnode.ProfileServer))
		var pair [2]*p2ptest.Node
		for i := range pair {
			pair[i] = sim.NAT(p2ptest.PortRestricted).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching(),
				p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(relay.AddrInfo()))
		}
		a, b := pair[0], pair[1]
		for _, n := range pair {
			soonly(t, 30*time.Second, "a reservation", func() bool { return len(relaysOf(n)) == 1 })
		}
		sim.SetPath(a, b, p2ptest.Path{Loss: 1})
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if p, _ := a.Peer(b.ID()); !p.Relayed {
			t.Fatalf("connected by %v, with a path that loses everything", p)
		}
		sim.SetPath(a, b, p2ptest.Path{})
		soonly(t, 55*time.Second, "a direct connection", func() bool {
			p, _ := a.Peer(b.ID())
			return p.ID != "" && !p.Relayed
		})
	})
}
