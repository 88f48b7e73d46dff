package p2ptest

import (
	"sync"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// Partition divides the network: peers of different groups cannot reach each
// other. Peers in none of the groups form another one. It replaces an earlier
// partition; [Network.Heal] ends it. A peer in two groups fails the test.
//
// A cut is silent, as in reality: connections across it stay open until they
// time out, which takes QUIC 30 to 45 seconds. [Network.SetOneWay] cuts one
// direction.
func (n *Network) Partition(groups ...Selector) {
	n.tb.Helper()
	if len(groups) == 0 {
		n.tb.Fatalf("p2ptest: Partition: no groups; use Heal to end a partition")
	}
	lists := make([][]*simhost.Machine, len(groups))
	seen := make(map[*member]int)
	for i, g := range groups {
		for _, m := range n.pick("Partition", everybody, g) {
			if first, ok := seen[m]; ok {
				n.tb.Fatalf("p2ptest: Partition: %s is in group %d and in group %d; put each peer into one group", m.name, first, i)
			}
			seen[m] = i
			lists[i] = append(lists[i], m.at())
		}
	}
	n.sim.Partition(lists...)
}

// Heal ends the partition and every [Network.Isolate]. It does not change
// crashed and suspended nodes, paths and links.
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

// Isolate cuts peers off from all others, silently, until [Network.Heal].
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

// Suspend cuts peers off for d, like a closed laptop: no packets get in or out.
// It returns immediately. Unlike a real suspension it does not stop a node's
// timers, so the node notices the silence while it lasts.
func (n *Network) Suspend(who Selector, d time.Duration) {
	n.tb.Helper()
	if d <= 0 {
		n.tb.Fatalf("p2ptest: Suspend: %v is not positive", d)
	}
	for _, m := range n.pick("Suspend", everybody, who) {
		machine := m.at()
		machine.Down()
		time.AfterFunc(d, machine.Up)
	}
}

// Crash ends nodes, all at the same moment, without closing their connections:
// for other peers they fall silent, and connections to them time out after 30 to
// 45 seconds. The nodes' methods return [p2pnode.ErrClosed] until
// [Network.Restart].
func (n *Network) Crash(who ...Selector) {
	n.tb.Helper()
	list := n.pick("Crash", runningNodes, who...)
	for _, m := range list {
		n.mu.Lock()
		gone := m.gone
		m.gone = true
		n.mu.Unlock()
		if gone {
			n.tb.Fatalf("p2ptest: Crash: %s has already crashed", m.name)
		}
		m.at().Down()
	}
	n.closeAll(n.tb, list)
	n.notify()
}

// Churn crashes a random node every interval and restarts it after the downtime,
// until stop is called or the test ends. It skips nodes that are crashed
// already, including by the test. It calls restarted, unless nil, with each node
// that runs again, for instance to subscribe; calls may run concurrently.
func (n *Network) Churn(who Selector, interval, downtime time.Duration, restarted func(*Node)) (stop func()) {
	n.tb.Helper()
	if interval <= 0 || downtime < 0 {
		n.tb.Fatalf("p2ptest: Churn: a crash every %v for %v: the interval must be positive, and the downtime not negative", interval, downtime)
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
