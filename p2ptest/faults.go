package p2ptest

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// Partition divides the network: nodes of different groups cannot reach one
// another, and nobody is told. Peers in no group form one more. It replaces an
// earlier partition; Heal ends it. A node in two groups fails the test.
//
// A cut is silent, as in reality: connections across it stand until they time
// out, which QUIC's do after 30 seconds.
func (n *Network) Partition(groups ...[]*p2pnode.Node) {
	n.tb.Helper()
	lists := make([][]peer.ID, len(groups))
	for i, g := range groups {
		for _, node := range g {
			lists[i] = append(lists[i], node.ID())
		}
	}
	n.PartitionPeers(lists...)
}

// PartitionPeers is Partition for peers of any kind.
func (n *Network) PartitionPeers(groups ...[]peer.ID) {
	n.tb.Helper()
	if len(groups) == 0 {
		n.tb.Fatalf("p2ptest: Partition: no groups given; use Heal to end a partition")
	}
	lists := make([][]*simhost.Machine, len(groups))
	seen := make(map[peer.ID]int)
	for i, g := range groups {
		for _, id := range g {
			if first, ok := seen[id]; ok {
				n.tb.Fatalf("p2ptest: Partition: %s is in group %d and in group %d; a node is on one side only", id, first, i)
			}
			seen[id] = i
			lists[i] = append(lists[i], n.member(byID(id)).machine)
		}
	}
	n.sim.Partition(lists...)
}

type byID peer.ID

func (id byID) ID() peer.ID { return peer.ID(id) }

// Heal ends the partition and every Isolate. What crashed or is suspended
// stays so.
func (n *Network) Heal() {
	n.mu.Lock()
	list := n.isolated
	n.isolated = make(map[*member]bool)
	n.mu.Unlock()
	for m := range list {
		m.machine.Up()
	}
	n.sim.Heal()
}

// Isolate cuts peers off from everybody, silently, until Heal.
func (n *Network) Isolate(peers ...Peer) {
	n.tb.Helper()
	for _, p := range peers {
		m := n.member(p)
		n.mu.Lock()
		again := n.isolated[m]
		n.isolated[m] = true
		n.mu.Unlock()
		if !again {
			m.machine.Down()
		}
	}
}

// Suspend cuts a peer off for a time, as closing a laptop does: nothing gets
// in or out. It returns at once. What it does not do is stop the node's clock:
// its timers go on, so unlike after a real suspension the node has noticed the
// silence when it ends.
func (n *Network) Suspend(p Peer, d time.Duration) {
	n.tb.Helper()
	if d <= 0 {
		n.tb.Fatalf("p2ptest: Suspend: %v is no time", d)
	}
	m := n.member(p)
	m.machine.Down()
	time.AfterFunc(d, m.machine.Up)
}

// Crash ends nodes at once, all at the same moment, without a goodbye on the
// wire: to the others they fall silent. The nodes' methods return ErrClosed
// from then on. Restart brings one back.
func (n *Network) Crash(nodes ...*p2pnode.Node) {
	n.tb.Helper()
	var list []*member
	for _, node := range nodes {
		m := n.member(node)
		n.mu.Lock()
		if m.node != node || m.gone {
			n.mu.Unlock()
			n.tb.Fatalf("p2ptest: Crash: %s does not run any more", m.name)
		}
		m.gone = true
		n.mu.Unlock()
		m.machine.Down()
		list = append(list, m)
	}
	n.closeAll(n.tb, list)
	n.notify()
}

// Restart starts a node again, with the identity, the address, the datastore
// and the options that it had, and returns its new handle. One that still
// runs is closed first.
func (n *Network) Restart(node *p2pnode.Node) *p2pnode.Node {
	n.tb.Helper()
	m := n.member(node)
	n.mu.Lock()
	gone := m.gone
	n.mu.Unlock()
	n.closeAll(n.tb, []*member{m})
	if gone {
		m.machine.Up()
	}
	n.start(m.tb, m)
	return m.node
}

// Churn makes nodes come and go until stop is called, or the test ends: every interval one that
// runs crashes, drawn by chance, and comes back after the downtime. Nodes of
// the list that the test itself crashed are left alone. The function, unless
// nil, is called with each new handle, to subscribe it again for instance, in a
// goroutine of its own.
func (n *Network) Churn(nodes []*p2pnode.Node, interval, downtime time.Duration, restarted func(*p2pnode.Node)) (stop func()) {
	n.tb.Helper()
	if len(nodes) == 0 || interval <= 0 || downtime < 0 {
		n.tb.Fatalf("p2ptest: Churn: %d nodes every %v for %v: there must be nodes, an interval, and no negative downtime", len(nodes), interval, downtime)
	}
	chance := n.Rand("churn")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-time.After(interval):
			case <-done:
				return
			}
			m := n.member(nodes[chance.IntN(len(nodes))])
			n.mu.Lock()
			node, gone := m.node, m.gone
			n.mu.Unlock()
			if gone {
				continue
			}
			n.Crash(node)
			wg.Go(func() {
				select {
				case <-time.After(downtime):
				case <-done:
				}
				again := n.Restart(node)
				if restarted != nil {
					restarted(again)
				}
			})
		}
	})
	stop = sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	n.tb.Cleanup(stop) // before the nodes are closed
	return stop
}

// Current returns the handle of a node that runs now, after restarts: Churn
// and Restart replace it.
func (n *Network) Current(node *p2pnode.Node) *p2pnode.Node {
	n.tb.Helper()
	m := n.member(node)
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.node
}
