package p2pnode_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// sentRecords counts the provider records that DHT servers are sent, by key.
type sentRecords struct {
	mu    sync.Mutex
	count map[string]int // guarded by mu
}

// counted is an option of those that are sent records.
func (s *sentRecords) counted() p2pnode.Option {
	return p2pnode.WithDHTOptions(dht.OnRequestHook(func(_ context.Context, _ network.Stream, m *pb.Message) {
		if m.GetType() == pb.Message_ADD_PROVIDER {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.count == nil {
				s.count = make(map[string]int)
			}
			s.count[string(m.GetKey())]++
		}
	}))
}

// take returns how many records of how many keys were sent since the last time, and
// the least and the most of a key.
func (s *sentRecords) take() (keys, sum, least, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.count {
		if keys == 0 || n < least {
			least = n
		}
		most = max(most, n)
		sum += n
		keys++
	}
	clear(s.count)
	return keys, sum, least, most
}

// Each record is sent to the 20 closest peers, once in a cycle: not once more when
// the cycle begins, or when the node restarts.
func TestRecordsAreSentOnceACycle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	const size, keys, single, interval = 23, 100, 3, 20 * time.Minute
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
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
