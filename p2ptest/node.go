package p2ptest

import (
	"github.com/ipfs/go-datastore"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/memstore"
)

//go:generate go run forward.go

// Node is a node of the library on a simulated network. It has every method of
// [p2pnode.Node], and remains valid after [Network.Crash] and [Network.Restart]:
// the methods act on the current run. While the node is crashed they return
// [p2pnode.ErrClosed].
//
// Subscriptions, handlers and all else that belongs to a run end with it. Node
// is safe for concurrent use, even while it restarts.
type Node struct {
	net *Network
	m   *member
}

// Current returns the [p2pnode.Node] of the current run, or of the last one, to
// build an application on. [Network.Restart] and [Network.Churn] replace it.
func (node *Node) Current() *p2pnode.Node { return node.m.node.Load() }

// String returns the name used by failed tests and [Network.Report], such as
// "node 3".
func (node *Node) String() string { return node.m.name }

// RestartOption configures [Network.Restart].
type RestartOption interface{ applyRestart(*restartConfig) }

type restartConfig struct{ loseData, move bool }

type restartOption func(*restartConfig)

func (o restartOption) applyRestart(c *restartConfig) { o(c) }

// LoseData restarts nodes with an empty datastore and, with
// [p2pnode.WithDataDir], an empty data directory. They keep their identities.
func LoseData() RestartOption { return restartOption(func(c *restartConfig) { c.loseData = true }) }

// NewAddress restarts nodes at new addresses, which no peer has had before. They
// keep their links and regions, and stay behind their NATs. An earlier
// [Network.Partition] or [Network.Isolate] does not apply to the new address.
func NewAddress() RestartOption { return restartOption(func(c *restartConfig) { c.move = true }) }

// Restart starts nodes again, each with its identity, address, data and options,
// unless opts change these. It closes nodes that are running first.
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

// loseData empties the storage of a node that is not running.
func (m *member) loseData() {
	m.data, m.lost = newDatastore(), true
	m.dataDir = ""
	if m.settings.DataDir != "" {
		m.dataDir = m.tb.TempDir()
	}
}

func newDatastore() datastore.Batching { return memstore.New() }

// move moves a node that is not running to another address.
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
