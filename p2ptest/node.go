package p2ptest

import (
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/go-p2pnode/p2pnode"
)

//go:generate go run forward.go

// Node is a node of the library on a simulated network. It stands for the same
// node as long as the network exists, also after Crash and Restart: it has
// every method of [p2pnode.Node], for the one that runs now. Of a crashed node
// they return ErrClosed, as of any that is closed.
//
// What belongs to one run of a node, such as its subscriptions and handlers,
// ends with that run. Node is safe for concurrent use, also while it restarts.
type Node struct {
	net *Network
	m   *member
}

// Current returns the p2pnode.Node that runs now, or the last that did: what
// an application is built on. Restart and Churn replace it.
func (node *Node) Current() *p2pnode.Node { return node.m.node.Load() }

// String returns the name that failed tests and Report use, such as "node 3".
func (node *Node) String() string { return node.m.name }

// RestartOption changes with what Restart starts nodes again.
type RestartOption interface{ applyRestart(*restartConfig) }

type restartConfig struct{ loseData, move bool }

type restartOption func(*restartConfig)

func (o restartOption) applyRestart(c *restartConfig) { o(c) }

// LoseData makes Restart begin with an empty datastore and, for a node with
// WithDataDir, with an empty data directory. The identity stays.
func LoseData() RestartOption { return restartOption(func(c *restartConfig) { c.loseData = true }) }

// NewAddress makes Restart move the node to an address that nobody had before,
// with the link and the region of the old one; behind a NAT it stays behind
// it. A partition or Isolate from before the move does not go along.
func NewAddress() RestartOption { return restartOption(func(c *restartConfig) { c.move = true }) }

// Restart starts nodes again, each with the identity, the address, the data and
// the options that it had, as far as the options do not say otherwise. A node
// that still runs is closed first.
func (n *Network) Restart(who Selector, opts ...RestartOption) {
	n.tb.Helper()
	var cfg restartConfig
	for _, o := range opts {
		if o != nil {
			o.applyRestart(&cfg)
		}
	}
	list := n.pick("Restart", libraryNodes, who)
	n.closeAll(n.tb, list)
	for _, m := range list {
		n.mu.Lock()
		gone := m.gone
		n.mu.Unlock()
		if gone {
			m.at().Up()
		}
		if cfg.loseData {
			m.loseData()
		}
		if cfg.move {
			n.move(m)
		}
		n.start(m.tb, m)
	}
}

// loseData gives a node that does not run empty storage.
func (m *member) loseData() {
	m.data, m.lost = newDatastore(), true
	m.dataDir = ""
	if m.settings.DataDir != "" {
		m.dataDir = m.tb.TempDir()
	}
}

func newDatastore() datastore.Batching { return dssync.MutexWrap(datastore.NewMapDatastore()) }

// move takes a node that does not run to another address.
func (n *Network) move(m *member) {
	old := m.at()
	machine := m.elsewhere()
	machine.SetLink(old.Link())
	machine.SetRegion(old.Site().Region)
	n.mu.Lock()
	delete(n.isolated, m)
	n.mu.Unlock()
	m.machine.Store(machine)
}
