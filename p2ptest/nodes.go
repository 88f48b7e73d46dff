package p2ptest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
)

// Shape says who knows whom when a group of nodes starts. The DHT, and
// gossipsub after it, then make further connections, unless the nodes have no
// DHT.
type Shape struct {
	name  string
	knows func(i, n int, r intN) []int // whom node i of n is told about
	check func(n int) error
}

// intN is the source of chance of a shape.
type intN func(n int) int

// Star is the shape with one node that all others know: the bootstrap node.
func Star() Shape {
	return Shape{name: "Star", knows: func(i, _ int, _ intN) []int {
		if i == 0 {
			return nil
		}
		return []int{0}
	}}
}

// Ring is the shape in which each node knows the next one.
func Ring() Shape {
	return Shape{name: "Ring", knows: func(i, n int, _ intN) []int {
		if n == 1 {
			return nil
		}
		return []int{(i + 1) % n}
	}}
}

// Random is the shape in which each node knows k others, drawn by chance, one
// of them older than itself so that all hang together.
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

// Clusters is the shape of k stars of one size, joined in a row by bridges:
// so many nodes of each know one of the next.
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
				return fmt.Errorf("%d nodes make no %d clusters", n, k)
			case bridges < 0 || bridges > n/k:
				return fmt.Errorf("%d bridges between clusters of %d nodes", bridges, n/k)
			}
			return nil
		},
	}
}

// NodesOption configures Nodes.
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

// UseEach adds options for the i-th node of the group, counted from 0, after
// those of Use.
func UseEach(f func(i int) []p2pnode.Option) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.each = f })
}

// Started calls f with each node of the group as soon as it runs: to start the
// application on it, or to show progress.
func Started(f func(i int, node *Node)) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.started = f })
}

// Stagger sets how long after one another the nodes start, overriding the
// default of all at once. Nodes then takes that long.
func Stagger(d time.Duration) NodesOption {
	return nodesOption(func(c *nodesConfig) { c.stagger = d })
}

// Nodes adds a group of nodes in the shape given, Star by default, and returns
// them in order. It does not wait for them to find each other: Ready does.
// They are closed together. A count below one fails the test.
func (n *Network) Nodes(tb testing.TB, count int, opts ...NodesOption) Nodes {
	tb.Helper()
	cfg := nodesConfig{shape: Star()}
	for _, o := range opts {
		if o != nil {
			o.applyNodes(&cfg)
		}
	}
	if count < 1 {
		tb.Fatalf("p2ptest: Nodes: %d nodes: at least one makes a network", count)
	}
	if cfg.stagger < 0 {
		tb.Fatalf("p2ptest: Stagger: %v: nodes cannot start before one another", cfg.stagger)
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
