package p2pnode_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// sentRecords counts the provider records that DHT servers are sent, by key and
// server.
type sentRecords struct {
	mu    sync.Mutex
	count map[string]map[peer.ID]int // guarded by mu
}

// counted is an option of those that are sent records.
func (s *sentRecords) counted() p2pnode.Option {
	return p2pnode.WithDHTOptions(dht.OnRequestHook(func(_ context.Context, stream network.Stream, m *pb.Message) {
		if m.GetType() == pb.Message_ADD_PROVIDER {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.count == nil {
				s.count = make(map[string]map[peer.ID]int)
			}
			if s.count[string(m.GetKey())] == nil {
				s.count[string(m.GetKey())] = make(map[peer.ID]int)
			}
			s.count[string(m.GetKey())][stream.Conn().LocalPeer()]++
		}
	}))
}

// all returns what was sent since the last time.
func (s *sentRecords) all() map[string]map[peer.ID]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.count
	s.count = nil
	return all
}

// take returns how many records of how many keys were sent since the last time, and
// the least and the most of a key.
func (s *sentRecords) take() (keys, sum, least, most int) {
	for _, to := range s.all() {
		n := 0
		for _, times := range to {
			n += times
		}
		if keys == 0 || n < least {
			least = n
		}
		most = max(most, n)
		sum += n
		keys++
	}
	return keys, sum, least, most
}

// Each record is sent to the 20 closest peers, once in a cycle: not once more when
// the cycle begins, or when the node restarts.
func TestRecordsAreSentOnceACycle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	raced.Skip(t)
	t.Parallel()
	const size, keys, single, interval = 23, 100, 3, 20 * time.Minute
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t, seldomRefreshed)
		var sent sentRecords
		nodes := sim.Nodes(t, size, p2ptest.Use(sent.counted()))
		opts := []p2pnode.Option{p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDataDir(dir),
			p2pnode.WithReprovideInterval(interval), p2pnode.WithRecordLifetime(2 * interval)}
		provider := sim.Node(t, opts...)
		sim.RoutingTable(append(nodes, provider), 20)
		list := contents(t, keys+single)
		check := func(when string, want int) {
			t.Helper()
			got, sum, least, most := sent.take()
			if got != want || want > 0 && (least < 20 || most > 21) {
				t.Errorf("%s: %d records of %d keys, want %d; %d to %d of each", when, sum, got, want, least, most)
			}
		}
		if err := provider.ProvideMany(t.Context(), slices.Values(list[:keys])); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		check("many", keys)
		for _, c := range list[keys:] {
			if err := provider.Provide(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		check("one by one", single)
		if err := provider.Close(); err != nil {
			t.Fatal(err)
		}
		sim.Restart(provider)
		sim.RoutingTable(provider, 20)
		time.Sleep(2 * time.Minute)
		check("after the restart", 0)
		time.Sleep(interval)
		check("in the cycle", len(list))
	})
}

// The sweeping provider of kad-dht 0.42 sends all records of a region to much the same
// peers. Here the 20 closest peers to a key get its record, once, and nobody else.
func TestRecordsAreWithTheClosestPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	raced.Skip(t)
	t.Parallel()
	const interval = 20 * time.Minute
	// Upstream is wrong where it divides the keys into regions, each with 20 peers or
	// more: nearly always on the larger network, and with this seed on the smaller one.
	size, keys, seed := 42, 20, uint64(1)
	if longRun() {
		size, keys, seed = 60, 200, rand.Uint64()
	}
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithSeed(seed),
			p2ptest.WithNodeOptions(seldomRefreshed, p2pnode.WithoutPubSub()))
		var sent sentRecords
		nodes := sim.Nodes(t, size, p2ptest.Use(sent.counted()))
		provider := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()),
			p2pnode.WithReprovideInterval(interval), p2pnode.WithRecordLifetime(2*interval))
		sim.RoutingTable(append(nodes, provider), 20)
		for _, n := range append(nodes, provider) { // lookups find the closest peers if all tables are complete
			if err := <-tableOf(n).ForceRefresh(); err != nil {
				t.Fatal(err)
			}
		}
		list := contents(t, keys)
		check := func(when string) {
			t.Helper()
			all, wrong := sent.all(), 0
			for _, c := range list {
				closest := byDistance(nodes, c)[:20]
				to := all[string(c.Hash())]
				for _, n := range closest {
					if to[n.ID()] != 1 {
						wrong++
					}
				}
				wrong += max(0, len(to)-len(closest))
			}
			if len(all) != keys || wrong > 0 {
				t.Errorf("%s: of the records of %d keys, %d are missing, sent twice or with peers that are not the closest", when, len(all), wrong)
			}
		}
		if err := provider.ProvideMany(t.Context(), slices.Values(list)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		check("at first")
		time.Sleep(interval)
		check("in the cycle")
	})
}

// Many CIDs are announced at least 50 times faster, each, than by the DHT itself, with at
// most 21 requests, and all are found: on a network of 60 nodes with links of 40 ms.
func TestProvideManyIsFiftyTimesAsFast(t *testing.T) {
	if !longRun() {
		t.Skip("takes many seconds: run it with -long")
	}
	t.Parallel()
	const size, keys, sampled = 60, 10_000, 200
	synctest.Test(t, func(t *testing.T) {
		var asked requests
		sim := quiet40(t)
		nodes := sim.Nodes(t, size, p2ptest.Use(asked.counted()))
		client := []p2pnode.Option{p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient),
			p2pnode.WithDHTOptions(dht.DisableAutoRefresh())}
		n := sim.Node(t, client...)
		sim.RoutingTable(append(nodes, n), 20)
		list := contents(t, keys+5)
		for _, c := range list[:5] { // connections are open after these
			if err := tableOf(n).Provide(t.Context(), c, true); err != nil {
				t.Fatal(err)
			}
		}
		const looped = 20
		begun := time.Now()
		for _, c := range contents(t, looped) {
			if err := tableOf(n).Provide(t.Context(), c, true); err != nil {
				t.Fatal(err)
			}
		}
		raw := time.Since(begun) / looped

		before := asked.of(n)
		begun = time.Now()
		if err := n.ProvideMany(t.Context(), slices.Values(list)); err != nil {
			t.Fatal(err)
		}
		own := time.Since(begun) / time.Duration(len(list))
		time.Sleep(time.Minute)
		sent := 0
		for kind, count := range asked.of(n) {
			sent += count - before[kind]
		}
		t.Logf("%d CIDs: %v each, %v with the DHT itself; %.2f requests each", keys, own, raw, float64(sent)/float64(len(list)))
		if raw < 50*own || sent > 21*len(list) {
			t.Error("that is too slow, or too much")
		}
		searcher := sim.Node(t, client...)
		sim.RoutingTable(searcher, 1)
		for i := range sampled {
			if !findsProvider(t, searcher, n, list[i*len(list)/sampled]) {
				t.Errorf("CID %d is not found", i)
			}
		}
	})
}
