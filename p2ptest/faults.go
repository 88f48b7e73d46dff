package p2ptest

import (
	"sync"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// Partition divides the network: peers of different groups cannot reach one
// another, and nobody is told. Peers in no group form one more. It replaces an
// earlier partition; Heal ends it. A peer in two groups fails the test.
//
// A cut is silent, as in reality: connections across it stand until they time
// out, which QUIC's do after 30 to 45 seconds. SetOneWay cuts one direction.
func (n *Network) Partition(groups ...Selector) {
	n.tb.Helper()
	if len(groups) == 0 {
		n.tb.Fatalf("p2ptest: Partition: no groups given; use Heal to end a partition")
	}
	lists := make([][]*simhost.Machine, len(groups))
	seen := make(map[*member]int)
	for i, g := range groups {
		for _, m := range n.pick("Partition", everybody, g) {
			if first, ok := seen[m]; ok {
				n.tb.Fatalf("p2ptest: Partition: %s is in group %d and in group %d; a peer is on one side only", m.name, first, i)
			}
			seen[m] = i
			lists[i] = append(lists[i], m.at())
		}
	}
	n.sim.Partition(lists...)
}

// Heal ends the partition and every Isolate. What crashed or is suspended
// stays so, and so do paths and links.
func (n *Network) Heal() {
	n.mu.Lock()
	list := n.isolated
	n.isolated = make(map[*member]*simhost.Machine)
	n.mu.Unlock()
	for _, machine := range list {
		machine.Up()
	}
	n.sim.Heal()
}

// Isolate cuts peers off from everybody, silently, until Heal.
func (n *Network) Isolate(who ...Selector) {
	n.tb.Helper()
	for _, m := range n.pick("Isolate", everybody, who...) {
		n.mu.Lock()
		again := n.isolated[m] != nil
		n.isolated[m] = m.at()
		n.mu.Unlock()
		if !again {
			m.at().Down()
		}
	}
}

// Suspend cuts peers off for some time, as closing a laptop does: nothing gets
// in or out. It returns at once. What it does not do is stop a node's clock:
// its timers go on, so unlike after a real suspension the node has noticed the
// silence when it ends.
func (n *Network) Suspend(who Selector, d time.Duration) {
	n.tb.Helper()
	if d <= 0 {
		n.tb.Fatalf("p2ptest: Suspend: %v is no time", d)
	}
	for _, m := range n.pick("Suspend", everybody, who) {
		machine := m.at()
		machine.Down()
		time.AfterFunc(d, machine.Up)
	}
}

// Crash ends nodes at once, all at the same moment, without a goodbye on the
// wire: to the others they fall silent, and connections to them time out after
// 30 to 45 seconds. The nodes' methods return ErrClosed until Restart brings them
// back.
func (n *Network) Crash(who ...Selector) {
	n.tb.Helper()
	list := n.pick("Crash", runningNodes, who...)
	for _, m := range list {
		n.mu.Lock()
		gone := m.gone
		m.gone = true
		n.mu.Unlock()
		if gone {
			n.tb.Fatalf("p2ptest: Crash: %s does not run any more", m.name)
		}
		m.at().Down()
	}
	n.closeAll(n.tb, list)
	n.notify()
}

// Churn makes nodes come and go until stop is called, or the test ends: every
// interval one that runs crashes, drawn by chance, and comes back after the
// downtime. Nodes that the test itself crashed are left alone. The function,
// unless nil, is called with each node that is back, to subscribe it again for
// instance, in a goroutine of its own.
func (n *Network) Churn(who Selector, interval, downtime time.Duration, restarted func(*Node)) (stop func()) {
	n.tb.Helper()
	if interval <= 0 || downtime < 0 {
		n.tb.Fatalf("p2ptest: Churn: a crash every %v for %v: there must be an interval, and no negative downtime", interval, downtime)
	}
	list := n.pick("Churn", libraryNodes, who)
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
			m := list[chance.IntN(len(list))]
			n.mu.Lock()
			gone := m.gone
			n.mu.Unlock()
			if gone {
				continue
			}
			node := &Node{net: n, m: m}
			n.Crash(node)
			wg.Go(func() {
				select {
				case <-time.After(downtime):
				case <-done:
				}
				n.Restart(node)
				if restarted != nil {
					restarted(node)
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
