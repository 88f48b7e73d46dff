package p2ptest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
)

// Shape decides which nodes of a group know each other when they start. The DHT
// then opens further connections, unless the nodes have none.
type Shape struct {
	name  string
	knows func(i, n int, r intN) []int // the peers that node i of n knows
	check func(n int) error
}

// intN is the source of randomness of a shape.
type intN func(n int) int

// Star returns the shape in which all nodes know the first one, the bootstrap
// node.
func Star() Shape {
	return Shape{name: "Star", knows: func(i, _ int, _ intN) []int {
		if i == 0 {
			return nil
		}
		return []int{0}
	}}
}

// Ring returns the shape in which each node knows the next one.
func Ring() Shape {
	return Shape{name: "Ring", knows: func(i, n int, _ intN) []int {
		if n == 1 {
			return nil
		}
		return []int{(i + 1) % n}
	}}
}

// Random returns the shape in which each node knows k random others. One of them
// starts before it, so that the network is connected.
func Random(k int) Shape {
	return Shape{
		name: "Random",
		knows: func(i, n int, r intN) []int {
			var list []int
			if i > 0 {
				list = append(list, r(i))
			}
			for len(list) < min(k, n-1) {
				if j := r(n); j != i && !slices.Contains(list, j) {
					list = append(list, j)
				}
			}
			return list
		},
		check: func(n int) error {
			if k < 1 || k > n-1 && n > 1 {
				return fmt.Errorf("each of %d nodes cannot know %d others", n, k)
			}
			return nil
		},
	}
}

// Clusters returns the shape of k stars of equal size in a row. In each of them,
// as many nodes as there are bridges also know a node of the next star.
func Clusters(k, bridges int) Shape {
	return Shape{
		name: "Clusters",
		knows: func(i, n int, _ intN) []int {
			size := (n + k - 1) / k
			first := i / size * size
			var list []int
			if i != first {
				list = append(list, first)
			}
			if next := first + size + i - first; i-first < bridges && first+size < n {
				list = append(list, min(next, n-1))
			}
			return list
		},
		check: func(n int) error {
			switch {
			case k < 1 || k > n:
				return fmt.Errorf("cannot divide %d nodes into %d clusters", n, k)
			case bridges < 0 || bridges > n/k:
				return fmt.Errorf("%d bridges between clusters of %d nodes: there can be 0 to %[2]d", bridges, n/k)
			}
			return nil
		},
	}
}

// NodesOption configures [Network.Nodes]. A [Shape] is one, too.
type NodesOption interface{ applyNodes(*nodesConfig) }

type nodesConfig struct {
	shape   Shape
	opts    []p2pnode.Option
	each    func(i int) []p2pnode.Option
	started func(i int, node *Node)
	stagger time.Duration
}

func (s Shape) applyNodes(c *nodesConfig) { c.shape = s }

type nodesOption func(*nodesConfig)

func (o nodesOption) applyNodes(c *nodesConfig) { o(c) }

// Use adds options for every node of the group.
func Use(opts ...p2pnode.Option) NodesOption {
	opts = slices.Clone(opts)
	return nodesOption(func(c *nodesConfig) { c.opts = append(c.opts, opts...) })
}

// UseEach sets a function that returns options for the i-th node of the group,
// counted from 0. They are applied after those of [Use].
func UseEach(f func(i int) []p2pnode.Option) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.each = f })
}

// Started sets a function to call with each node of the group as soon as it
// runs, to start the application on it or to show progress.
func Started(f func(i int, node *Node)) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.started = f })
}

// Stagger sets the time between the starts of two nodes, overriding the default
// of 0. [Network.Nodes] returns when the last one has started.
func Stagger(d time.Duration) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.stagger = d })
}

// Nodes adds a group of nodes in the given [Shape], by default [Star], and
// returns them in order. It does not wait until they are connected:
// [Waiter.Ready] does. They close together. A count below one fails the test.
func (n *Network) Nodes(tb testing.TB, count int, opts ...NodesOption) Nodes {
	tb.Helper()
	cfg := nodesConfig{shape: Star()}
	for _, o := range opts {
		if o != nil {
			o.applyNodes(&cfg)
		}
	}
	if count < 1 {
		tb.Fatalf("p2ptest: Nodes: %d nodes: there must be at least one", count)
	}
	if cfg.stagger < 0 {
		tb.Fatalf("p2ptest: Stagger: %v is negative", cfg.stagger)
	}
	if cfg.shape.check != nil {
		if err := cfg.shape.check(count); err != nil {
			tb.Fatalf("p2ptest: %s: %v", cfg.shape.name, err)
		}
	}
	list := make([]*member, count)
	for i := range list {
		own := slices.Clone(cfg.opts)
		if cfg.each != nil {
			own = append(own, cfg.each(i)...)
		}
		list[i] = n.prepare(tb, n.public, own)
	}
	chance := n.Rand(fmt.Sprintf("shape of %d from %s", count, list[0].id)).IntN
	for i, m := range list {
		for _, j := range cfg.shape.knows(i, count, chance) {
			m.knows = append(m.knows, list[j].addrInfo())
		}
	}
	tb.Cleanup(func() { n.closeAll(tb, list) })
	nodes := make(Nodes, count)
	for i, m := range list {
		if i > 0 && cfg.stagger > 0 {
			time.Sleep(cfg.stagger)
		}
		n.start(tb, m)
		nodes[i] = &Node{net: n, m: m}
		if cfg.started != nil {
			cfg.started(i, nodes[i])
		}
	}
	return nodes
}
