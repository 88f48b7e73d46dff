package p2ptest_test

import (
	"flag"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// largeFlag runs networks at full size, and tests that exist only for large
// ones. thousandFlag runs the largest, which takes minutes and gigabytes.
var (
	largeFlag    = flag.Bool("p2ptest.large", false, "test with networks of up to 200 nodes, which takes minutes")
	thousandFlag = flag.Bool("p2ptest.thousand", false, "test with 1,000 nodes, which takes minutes and 4 GB")
)

// size returns how many nodes a test runs: all of them with -p2ptest.large.
func size(reduced, full int) int {
	if *largeFlag {
		return full
	}
	return reduced
}

// deployment limits the connections of a node, as in production.
func deployment() p2pnode.Option { return p2pnode.WithConnLimits(16, 24) }

// stagger is the time between two starts. New connections are protected from
// trimming for 20 seconds, so a longer start means fewer connections at a time.
const stagger = 200 * time.Millisecond

// thrifty returns the options for a thousand nodes. Nearly all of their cost is
// the connections that lookups open, so lookups query 3 peers at a time, as in
// the Kademlia paper, and buckets hold 8.
func thrifty() p2ptest.Option {
	return p2ptest.WithNodeOptions(p2pnode.WithDHTOptions(dht.Concurrency(3), dht.BucketSize(8)))
}

// scenario is the measured workload: n nodes join and fill their routing tables,
// one provides a CID that ten others find, and a message reaches all.
func scenario(tb testing.TB, n int, opts ...p2ptest.Option) {
	tb.Helper()
	sim := p2ptest.NewNetwork(tb, append(opts, p2ptest.WithNodeOptions(deployment()))...)
	begun := time.Now()
	nodes := sim.Nodes(tb, n, p2ptest.Random(min(3, n-1)), p2ptest.Stagger(stagger))
	sim.Ready()
	filled := min(20, n-1)
	for _, node := range nodes {
		sim.RoutingTable(node, filled)
	}
	tb.Logf("%d nodes: tables filled after %v", n, time.Since(begun))

	subs := subscribeAll(tb, "news", nodes)
	sim.Meshed("news")
	c := cidOf(tb, "content")
	provider := nodes[n/3]
	begun = time.Now()
	mustNot(tb, provider.Provide(tb.Context(), c))
	tb.Logf("provided after %v", time.Since(begun))
	for i := range 10 {
		begun = time.Now()
		if !finds(nodes[(n/3+1+i*n/11)%n], c, provider.ID()) {
			tb.Errorf("node %d does not find the content", i)
		}
	}
	tb.Logf("found by the last of ten after %v", time.Since(begun))
	tb.Logf("one message reached all after %v", publish(tb, sim, nodes[n/2], "news", "to all", subs))

	conns, table := 0, 0
	for _, node := range nodes {
		s := node.Status()
		conns, table = conns+len(s.Peers), table+s.DHT.Peers
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	tb.Logf("a node has %d connections and %d peers in its routing table; the heap has %d MB, %d goroutines run",
		conns/n, table/n, mem.HeapAlloc>>20, runtime.NumGoroutine())
}

func TestTwoHundredNodes(t *testing.T) {
	crowded(t)
	if !*largeFlag {
		t.Skip("takes a minute or more: run it with -p2ptest.large")
	}
	synctest.Test(t, func(t *testing.T) { scenario(t, 200, p2ptest.WithMemoryTransport()) })
}

// TestTwentyNodes runs the scenario in a small network.
func TestTwentyNodes(t *testing.T) {
	slow(t)
	crowded(t)
	synctest.Test(t, func(t *testing.T) { scenario(t, 20, p2ptest.WithMemoryTransport()) })
}

func TestThousandNodes(t *testing.T) {
	crowded(t)
	if !*thousandFlag {
		t.Skip("takes minutes and gigabytes: run it with -p2ptest.thousand")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(60)) // slower, with less memory
	synctest.Test(t, func(t *testing.T) { scenario(t, 1000, p2ptest.WithMemoryTransport(), thrifty()) })
}

// BenchmarkTwentyNodes runs a typical test: bootstrap, one message to all, close.
func BenchmarkTwentyNodes(b *testing.B) {
	benchmark(b, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 20)
		sim.Ready()
		subs := subscribeAll(t, "news", nodes)
		sim.Subscribed("news")
		sim.Meshed("news")
		publish(t, sim, nodes[7], "news", "to all", subs)
	})
}

// BenchmarkHundredNodes runs the scenario over QUIC.
func BenchmarkHundredNodes(b *testing.B) {
	benchmark(b, func(t *testing.T) { scenario(t, 100) })
}

// BenchmarkHundredNodesInMemory runs the scenario without packets.
func BenchmarkHundredNodesInMemory(b *testing.B) {
	benchmark(b, func(t *testing.T) { scenario(t, 100, p2ptest.WithMemoryTransport()) })
}

// BenchmarkIdleHour runs 50 connected, idle nodes for a virtual hour.
func BenchmarkIdleHour(b *testing.B) {
	for _, memory := range []bool{false, true} {
		b.Run(map[bool]string{false: "QUIC", true: "memory"}[memory], func(b *testing.B) {
			benchmark(b, func(t *testing.T) {
				opts := []p2ptest.Option{p2ptest.WithNodeOptions(deployment())}
				if memory {
					opts = append(opts, p2ptest.WithMemoryTransport())
				}
				sim := p2ptest.NewNetwork(t, opts...)
				nodes := sim.Nodes(t, 50)
				sim.Ready()
				subscribeAll(t, "news", nodes)
				time.Sleep(time.Hour)
			})
		})
	}
}

// benchmark runs f in virtual time, which only a test can.
func benchmark(b *testing.B, f func(t *testing.T)) {
	b.Helper()
	for b.Loop() {
		if !p2ptest.Run(b.Name(), f) {
			b.Fatal("the simulation failed")
		}
	}
}
