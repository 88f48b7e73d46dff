package p2pnode_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Nodes that are connected to each other reconnect to a bootstrap peer and to a
// persistent one within 3 seconds of its return, if they had noticed its loss.
func TestPeerThatRestartsIsMetSoonByThoseWhoHaveOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	for _, kind := range []string{"bootstrap", "persistent"} {
		for _, end := range []string{"close", "crash"} {
			for _, transport := range []string{"QUIC", "memory"} {
				t.Run(kind+" "+end+" "+transport, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var opts []p2ptest.Option
						if transport == "memory" {
							opts = append(opts, p2ptest.WithMemoryTransport())
						}
						sim := p2ptest.NewNetwork(t, opts...)
						boot := sim.Node(t)
						with := []p2pnode.Option{p2pnode.WithBootstrapPeers(boot.AddrInfo())}
						if kind == "persistent" {
							with = append(with, p2pnode.WithPersistentPeers(boot.AddrInfo()))
						}
						nodes := p2ptest.Nodes{boot}
						for range 4 {
							nodes = append(nodes, sim.Node(t, with...))
						}
						for i, n := range nodes[1:] {
							for _, other := range nodes[1+i+1:] {
								if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
									t.Fatal(err)
								}
							}
						}
						sim.Ready()
						time.Sleep(time.Minute)
						if end == "close" {
							if err := boot.Close(); err != nil {
								t.Fatal(err)
							}
						} else {
							sim.Crash(boot)
						}
						time.Sleep(5 * time.Second)
						sim.Restart(boot)
						back := time.Now()
						sim.Within(2*time.Minute).Until("a peer of the one that is back", func() error {
							if len(boot.Peers()) == 0 {
								return errors.New("it is alone")
							}
							return nil
						})
						first := time.Since(back)
						for _, n := range nodes[1:] {
							sim.Within(2*time.Minute).Connected(n, boot)
						}
						limit := 3 * time.Second
						if end == "crash" && transport == "QUIC" {
							// The others notice a crash when the connection is
							// idle for 30 seconds, and dial then.
							limit = 30 * time.Second
						}
						if took := time.Since(back); first > limit {
							t.Errorf("it is alone for %v, all are connected after %v", first, took)
						}
					})
				})
			}
		}
	}
}

// Three nodes that know each other stop one after another, so that the last one
// has no connections, and start again without bootstrap peers.
func TestSmallNetworkComesBackFromSavedPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		for _, pause := range []time.Duration{time.Second, 20 * time.Minute} {
			t.Run(fmt.Sprint(order, pause), func(t *testing.T) {
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t)
					var nodes p2ptest.Nodes
					for i := range 3 {
						nodes = append(nodes, sim.Node(t, p2pnode.WithDataDir(filepath.Join(dir, fmt.Sprint(i)))))
					}
					for i, n := range nodes {
						if err := n.Connect(t.Context(), nodes[(i+1)%3].AddrInfo()); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(time.Second)
					for _, n := range nodes {
						if err := n.Close(); err != nil {
							t.Fatal(err)
						}
						time.Sleep(pause)
					}
					for _, i := range order {
						sim.Restart(nodes[i])
						time.Sleep(pause)
					}
					begun := time.Now()
					for i, n := range nodes {
						sim.Within(time.Minute).Connected(n, nodes[(i+1)%3])
					}
					if took := time.Since(begun); took > 5*time.Second {
						t.Errorf("together after %v", took)
					}
				})
			})
		}
	}
}

// TestSavedPeersBringANodeBackWithEveryBootstrapPeerDead: within 2 seconds,
// after an orderly end and after a crash.
func TestSavedPeersBringANodeBackWithEveryBootstrapPeerDead(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	for _, c := range []struct {
		name  string
		crash bool
		after time.Duration
	}{{"restarted", false, time.Minute}, {"crashed", true, 11 * time.Minute}, {"crashed early", true, 2 * time.Minute}} {
		t.Run(c.name, func(t *testing.T) {
			crash := c.crash
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				nodes := sim.Nodes(t, 6)
				n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo(), nodes[1].AddrInfo()), p2pnode.WithDataDir(dir))
				sim.Ready()
				sim.RoutingTable(n, 6)
				time.Sleep(c.after)
				if crash {
					sim.Crash(n)
				}
				sim.Crash(nodes[0], nodes[1])
				begun := time.Now()
				sim.Restart(n)
				if !crash {
					begun = time.Now() // its Close came before
				}
				sim.Until("peers", func() error {
					if len(n.Peers()) == 0 {
						return errors.New("there are none")
					}
					return nil
				})
				if took := time.Since(begun); took > 2*time.Second {
					t.Errorf("it has peers after %v", took)
				}
				sim.Ready(n)
			})
		})
	}
}

// TestPeersReachedByARelayAreNotSaved includes a relay without limits, whose
// connections are not marked as limited.
func TestPeersReachedByARelayAreNotSaved(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
		relay := sim.Node(t, p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: true}))
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()))
		if err := hidden.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		n := sim.Node(t, p2pnode.WithBootstrapPeers(relay.AddrInfo()), p2pnode.WithDataDir(dir))
		if err := n.Connect(t.Context(), hidden.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		// It may announce more than relayed addresses.
		n.Host().Peerstore().AddAddr(hidden.ID(), ma.StringCast("/ip4/16.9.9.9/udp/1/quic-v1"), time.Hour)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "peers"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), relay.ID().String()) || strings.Contains(string(text), hidden.ID().String()) {
			t.Errorf("saved are: %s", text)
		}
	})
}
