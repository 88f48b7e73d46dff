package p2pnode_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

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
