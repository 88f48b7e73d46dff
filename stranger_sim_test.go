package p2pnode_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// A stranger that connects during an outage does not keep a node from its bootstrap
// peer, whether it speaks the DHT's protocol or not.
func TestAttackAStrangerDoesNotKeepANodeFromItsBootstrapPeer(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	for _, c := range []struct {
		stranger string
		opts     []p2pnode.Option
	}{
		{"nobody", nil},
		{"a peer without the DHT", []p2pnode.Option{p2pnode.WithoutDHT(), p2pnode.WithoutPubSub()}},
		{"a client of the DHT", []p2pnode.Option{p2pnode.WithDHTMode(p2pnode.DHTModeClient)}},
		{"a server of the DHT", []p2pnode.Option{p2pnode.WithDHTMode(p2pnode.DHTModeServer)}},
	} {
		for _, down := range []time.Duration{10 * time.Second, 10 * time.Minute, time.Hour} {
			if raced.Detector && down == time.Hour {
				continue // it takes the detector half a minute
			}
			t.Run(fmt.Sprint(c.stranger, " ", down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
					boot := sim.Node(t)
					n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
					sim.Ready()
					if err := boot.Close(); err != nil {
						t.Fatal(err)
					}
					if c.opts != nil {
						time.Sleep(time.Second)
						if err := sim.Node(t, c.opts...).Connect(t.Context(), n.AddrInfo()); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(down)
					sim.Restart(boot)
					back := time.Now()
					sim.Within(time.Hour).Connected(n, boot)
					limit := 2 * time.Second
					if down > time.Minute {
						limit = 35 * time.Second // the longest delay, and the round under way
					}
					if took := time.Since(back); took > limit {
						t.Errorf("connected again after %v", took)
					} else {
						t.Logf("connected again after %v", took)
					}
				})
			})
		}
	}
}
