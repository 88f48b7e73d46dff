package p2pnode_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// churned is a network in which servers leave and others come.
type churned struct {
	sim   *p2ptest.Network
	nodes p2ptest.Nodes // the first stay
	stay  int           // how many
	opts  []p2pnode.Option
	rng   *rand.Rand
}

// seldomRefreshed is for simulations of hours: the refreshes of the routing tables
// would cost most of the time that they take.
var seldomRefreshed = p2pnode.WithDHTOptions(dht.RoutingTableRefreshPeriod(2 * time.Hour))

// newChurned starts a network in which an hour takes as long as hour.
func newChurned(t *testing.T, size int, hour time.Duration, more ...p2pnode.Option) *churned {
	t.Helper()
	sim := quiet(t, append(more, seldomRefreshed, p2pnode.WithReprovideInterval(22*hour), p2pnode.WithRecordLifetime(48*hour))...)
	c := &churned{sim: sim, stay: 1, nodes: sim.Nodes(t, size, p2ptest.Random(min(3, size-1)), p2ptest.Stagger(20*time.Millisecond)), rng: rand.New(rand.NewPCG(1, 2))}
	sim.RoutingTable(c.nodes, min(size-1, 20))
	return c
}

// pass lets time pass, in which one of five servers is replaced every six hours. The
// one that leaves crashes; whoever comes holds nothing.
func (c *churned) pass(t *testing.T, hours int, hour time.Duration, churn bool) {
	t.Helper()
	step := 6 * hour * 5 / time.Duration(len(c.nodes))
	for passed := time.Duration(0); passed < time.Duration(hours)*hour; passed += step {
		time.Sleep(step)
		if !churn {
			continue
		}
		i := c.stay + c.rng.IntN(len(c.nodes)-c.stay)
		c.sim.Crash(c.nodes[i])
		c.nodes[i] = c.sim.Node(t, append([]p2pnode.Option{p2pnode.WithBootstrapPeers(c.nodes[0].AddrInfo())}, c.opts...)...)
	}
}

// found reports how many of a provider's CIDs a newcomer and a server find.
func (c *churned) found(t *testing.T, provider *p2ptest.Node, list []cid.Cid) (found int) {
	t.Helper()
	fresh := c.sim.Node(t, p2pnode.WithBootstrapPeers(c.nodes[0].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
	c.sim.RoutingTable(fresh, 1)
	for _, want := range list {
		if findsProvider(t, fresh, provider, want) {
			found++
		}
	}
	if err := fresh.Close(); err != nil {
		t.Error(err)
	}
	return found
}

// With one of five servers replaced every six hours, what is provided is found when
// the first records have expired, and, with -long, after a week. An hour takes a
// minute: that leaves the nodes less time to notice who has gone.
func TestProvideOutlivesChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	const hour = time.Minute
	size, keys, hours := 21, 20, []int{49}
	if longRun() {
		size, keys, hours = 60, 200, []int{49, 7 * 24}
	}
	synctest.Test(t, func(t *testing.T) {
		c := newChurned(t, size, hour)
		// A DHT client: nobody asks the provider itself.
		provider := c.sim.Node(t, p2pnode.WithBootstrapPeers(c.nodes[0].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		c.sim.RoutingTable(provider, 1)
		list := contents(t, keys)
		if err := provider.ProvideMany(t.Context(), slices.Values(list)); err != nil {
			t.Fatal(err)
		}
		passed := 0
		for _, h := range hours {
			c.pass(t, h-passed, hour, true)
			passed = h
			if got := c.found(t, provider, list); got < keys {
				t.Errorf("after %d hours %d of %d are found", h, got, keys)
			}
		}
	})
}

// BenchmarkWatching counts what the nodes of a network send that provide 100 CIDs, or
// 1,000 with -long: in messages an hour and node, without churn and with that of
// TestProvideOutlivesChurn, and without the announcing itself, which it ends before
// and whose cycle comes later. Of 1,000 nodes 20 provide something, and stay.
func BenchmarkWatching(b *testing.B) {
	keys := 100
	if longRun() {
		keys = 1000
	}
	for _, of := range []struct{ nodes, providers int }{{30, 30}, {60, 60}, {1000, 20}} {
		b.Run(fmt.Sprintf("nodes=%d/keys=%d", of.nodes, keys), func(b *testing.B) {
			if of.nodes > 100 && !longRun() {
				b.Skip("takes more than an hour of processor time and 12 GB: run it with -long")
			}
			for b.Loop() {
				p2ptest.Run(b.Name(), func(t *testing.T) {
					var asked requests
					c := newChurned(t, of.nodes, time.Hour, asked.counted())
					sum := asked.sum
					if of.providers < of.nodes {
						c.stay = of.providers
						sum = func() map[pb.Message_MessageType]int { return asked.of(c.nodes[:of.providers]...) }
					}
					for i, n := range c.nodes[:of.providers] {
						list := make([]cid.Cid, keys)
						for j := range list {
							list[j] = cidOf(t, fmt.Sprint(i, " ", j))
						}
						if err := n.ProvideMany(context.Background(), slices.Values(list)); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(10 * time.Minute)
					for _, churn := range []bool{false, true} {
						before := sum()
						hours := 2
						if churn {
							hours = 4
						}
						c.pass(t, hours, time.Hour, churn)
						after := sum()
						for _, kind := range []pb.Message_MessageType{pb.Message_FIND_NODE, pb.Message_ADD_PROVIDER, pb.Message_GET_PROVIDERS} {
							what := map[bool]string{false: "idle-", true: "churn-"}[churn]
							b.ReportMetric(float64(after[kind]-before[kind])/float64(of.providers*hours), what+kind.String()+"/h")
						}
					}
				})
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
