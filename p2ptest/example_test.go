package p2ptest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// Counter is the application under test: a counter that every node can
// increment, replicated over pubsub. Each node counts its own increments and
// publishes all counts that it knows; of two counts the larger one is newer (a
// grow-only counter: a CRDT).
type Counter struct {
	node *p2pnode.Node

	mu     sync.Mutex
	counts map[string]int
}

func NewCounter(ctx context.Context, node *p2pnode.Node) (*Counter, error) {
	c := &Counter{node: node, counts: make(map[string]int)}
	sub, err := node.Subscribe(ctx, "counter")
	if err != nil {
		return nil, err
	}
	go c.listen(sub)
	go c.repeat(ctx)
	return c, nil
}

func (c *Counter) Add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[c.node.ID().String()] += n
}

func (c *Counter) Value() (sum int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.counts {
		sum += n
	}
	return sum
}

// listen merges the counts of other nodes until the node closes.
func (c *Counter) listen(sub *p2pnode.Subscription) {
	for m := range sub.Messages(context.Background()) {
		var theirs map[string]int
		if json.Unmarshal(m.Data, &theirs) != nil {
			continue
		}
		c.mu.Lock()
		for id, n := range theirs {
			c.counts[id] = max(c.counts[id], n)
		}
		c.mu.Unlock()
	}
}

// repeat publishes the counts every 5 seconds, because messages get lost when
// the network is cut. It ends with ctx, as tests in virtual time require.
func (c *Counter) repeat(ctx context.Context) {
	for {
		c.mu.Lock()
		known := maps.Clone(c.counts)
		c.mu.Unlock()
		data, err := json.Marshal(known)
		if err == nil {
			err = c.node.Publish(ctx, "counter", data, p2pnode.PublishNow())
		}
		if err != nil {
			return // the node is closed
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// Testing an application: a replicated counter must survive a partition. In a
// test, use synctest.Test instead of Run.
func Example() {
	p2ptest.Run("counter", func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithLatency(p2ptest.Regions()))
		nodes := sim.Nodes(t, 8)
		sim.Ready()
		counters := make([]*Counter, len(nodes))
		for i, n := range nodes {
			c, err := NewCounter(t.Context(), n.Current())
			if err != nil {
				t.Fatal(err)
			}
			counters[i] = c
		}
		values := func(list []*Counter, want int) {
			sim.Until(fmt.Sprintf("counters at %d", want), func() error {
				for i, c := range list {
					if got := c.Value(); got != want {
						return fmt.Errorf("counter %d is at %d", i, got)
					}
				}
				return nil
			})
		}

		counters[0].Add(1)
		counters[7].Add(2)
		values(counters, 3)
		fmt.Println("connected: all counters are at 3")

		sim.Partition(nodes[:4], nodes[4:])
		counters[1].Add(10)
		counters[6].Add(100)
		values(counters[:4], 13)
		values(counters[4:], 103)
		fmt.Println("partitioned: one half is at 13, the other at 103")

		sim.Heal()
		values(counters, 113)
		fmt.Println("healed: all counters are at 113")
	})
	// Output:
	// connected: all counters are at 3
	// partitioned: one half is at 13, the other at 103
	// healed: all counters are at 113
}

// Delivery times are exact: a message between two nodes that are 40 ms apart.
func ExampleNetwork_Node() {
	p2ptest.Run("delivery", func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithLatency(p2ptest.Fixed(40*time.Millisecond)))
		a := sim.Node(t)
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		for _, n := range []*p2ptest.Node{a, b} {
			if _, err := n.Subscribe(t.Context(), "news"); err != nil {
				t.Fatal(err)
			}
		}
		sub, err := b.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		sim.Meshed("news")

		sent := time.Now()
		if err := a.Publish(t.Context(), "news", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		for _, m := range sim.Delivered(sub, 1) {
			fmt.Printf("%s after %v\n", m.Data, time.Since(sent))
		}
	})
	// Output:
	// hello after 40ms
}

// A laptop sleeps for an hour and reconnects by itself. The test takes no time.
func ExampleNetwork_Suspend() {
	p2ptest.Run("suspend", func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		laptop := nodes[2]

		sim.Suspend(laptop, time.Hour)
		time.Sleep(time.Hour)
		fmt.Println("peers after an hour:", len(laptop.Peers()))
		sim.Until("peers again", func() error {
			if len(laptop.Peers()) == 0 {
				return fmt.Errorf("there are no peers")
			}
			return nil
		})
		fmt.Println("connected again")
	})
	// Output:
	// peers after an hour: 0
	// connected again
}

// A search finds content after a neighbor of its provider has crashed.
func ExampleNetwork_Crash() {
	p2ptest.Run("crash", func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 10)
		for _, n := range nodes {
			sim.RoutingTable(n, 5) // more than the first node, which will crash
		}
		c := cidOf(t, "a file")
		if err := nodes[1].Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		sim.Provided(c)
		sim.Crash(nodes[0])
		for provider, err := range nodes[9].FindProviders(t.Context(), c) {
			fmt.Println(provider.ID == nodes[1].ID(), err)
		}
	})
	// Output:
	// true <nil>
}

// Two laptops behind home routers connect through a relay and then directly.
func ExampleNetwork_NAT() {
	p2ptest.Run("nat", func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayService())
		behind := []p2pnode.Option{
			p2pnode.WithBootstrapPeers(relay.AddrInfo()),
			p2pnode.WithAutoRelay(relay.AddrInfo()),
			p2pnode.WithHolePunching(),
		}
		a := sim.NAT(p2ptest.PortRestricted).Node(t, behind...)
		b := sim.NAT(p2ptest.PortRestricted).Node(t, behind...)
		sim.Until("a reservation", func() error {
			if !b.Status().Relays[0].Reserved {
				return fmt.Errorf("there is no reservation")
			}
			return nil
		})
		time.Sleep(time.Second) // until its public address is known
		if err := a.Connect(t.Context(), b.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		sim.Until("a direct connection", func() error {
			for _, p := range a.Peers() {
				if p.ID == b.ID() && !p.Relayed {
					return nil
				}
			}
			return fmt.Errorf("it is relayed")
		})
		fmt.Println("direct")
	})
	// Output:
	// direct
}
