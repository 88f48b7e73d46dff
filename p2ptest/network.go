package p2ptest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// seedFlag replays a network. The flag is the package's only variable: flags are
// the only way of package testing to pass a value to a test.
var seedFlag = flag.String("p2ptest.seed", "", "the `seed` of every simulated network, as logged by a failed test")

// startTimeout bounds New of one node, which does not wait for the network.
const startTimeout = time.Minute

// Network is a simulated network with nodes on it. Its methods are safe for
// concurrent use. Those that can fail end the test passed to [NewNetwork].
type Network struct {
	// Waiter has the methods that wait for a condition, with the limit of
	// [WithWaitLimit].
	Waiter

	tb    testing.TB
	cfg   *config
	seed  uint64
	sim   *simhost.Network
	names *names
	label string // of the goroutines that the nodes start

	watchers sync.WaitGroup // of the nodes' events

	mu       sync.Mutex
	members  map[peer.ID]*member          // guarded by mu
	order    []*member                    // guarded by mu
	pairs    map[[2]int]time.Duration     // latencies, by the indexes of sites; guarded by mu
	isolated map[*member]*simhost.Machine // where each was cut off; guarded by mu
	changed  chan struct{}                // closed when something happened on a node; guarded by mu
}

// member is one peer on the network.
type member struct {
	id      peer.ID // guarded by Network.mu until the node has started
	name    string
	key     crypto.PrivKey
	machine atomic.Pointer[simhost.Machine] // where it is attached
	mesh    *meshTracer
	tb      testing.TB

	// The rest is for nodes of the library.
	node      atomic.Pointer[p2pnode.Node] // the running one, or the last
	elsewhere func() *simhost.Machine      // makes another machine for it
	opts      []p2pnode.Option             // the user's
	knows     []peer.AddrInfo              // by the shape of its group
	settings  p2pnode.Settings             // the result of opts
	data      datastore.Batching
	lost      bool   // a restart dropped its data: data then replaces any other datastore
	dataDir   string // replaces that of settings once its data was lost; empty otherwise
	gone      bool   // crashed; guarded by Network.mu
	stop      context.CancelFunc

	// raw is somebody else's host, nil for a node of the library.
	raw *RawNode
}

// at returns the machine on which the member runs.
func (m *member) at() *simhost.Machine { return m.machine.Load() }

// NewNetwork makes an empty network, which closes when the test ends. In a
// testing/synctest bubble its time is virtual, otherwise real. Invalid options
// fail the test.
//
// Under the race detector it sets GOMAXPROCS to 1 for the process: in Go 1.26 the
// detector crashes if two threads fire timers of one bubble.
func NewNetwork(tb testing.TB, opts ...Option) *Network {
	tb.Helper()
	raced.OneThread()
	cfg := defaultConfig()
	var errs []error
	for _, o := range opts {
		if o != nil {
			errs = append(errs, o.apply(cfg))
		}
	}
	if *seedFlag != "" {
		var err error
		if cfg.seed, err = strconv.ParseUint(*seedFlag, 10, 64); err != nil {
			errs = append(errs, fmt.Errorf("-p2ptest.seed: %w", err))
		}
	} else if !cfg.seeded {
		cfg.seed = rand.Uint64()
	}
	names, err := newNames()
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		tb.Fatalf("p2ptest: %v", err)
	}
	n := &Network{
		tb: tb, cfg: cfg, seed: cfg.seed,
		names:    names,
		members:  make(map[peer.ID]*member),
		pairs:    make(map[[2]int]time.Duration),
		isolated: make(map[*member]*simhost.Machine),
		changed:  make(chan struct{}),
	}
	n.label = fmt.Sprintf("%p", n)
	n.Waiter = Waiter{net: n, limit: cfg.limit}
	n.sim = simhost.New(cfg.seed, n.latency)
	tb.Cleanup(func() {
		n.watchers.Wait()
		n.sim.Close()
		if left := n.leaked(); left != "" {
			tb.Errorf("p2ptest: goroutines of closed nodes are still running:\n%s", left)
		}
		if tb.Failed() {
			tb.Logf("p2ptest: the seed was %d; run the test with -p2ptest.seed=%[1]d to get the same network", n.seed)
		}
	})
	return n
}

// Seed returns the network's seed.
func (n *Network) Seed() uint64 { return n.seed }

// Rand returns a source of randomness for the test itself, which depends only on
// the seed and the name.
func (n *Network) Rand(name string) *rand.Rand {
	return rand.New(rand.NewChaCha8(n.derive("chance " + name)))
}

// derive returns 32 bytes that depend on the seed and a purpose.
func (n *Network) derive(purpose string) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "p2ptest %d %s", n.seed, purpose))
}

// latency returns the latency of a pair, drawn once.
func (n *Network) latency(from, to simhost.Site) time.Duration {
	if from.Index > to.Index {
		from, to = to, from
	}
	// If there are regions they decide; SetRegion may change them.
	if n.cfg.latency.regions != nil {
		return n.cfg.latency.between(Site(from), Site(to), nil)
	}
	key := [2]int{from.Index, to.Index}
	n.mu.Lock()
	defer n.mu.Unlock()
	d, ok := n.pairs[key]
	if !ok {
		r := rand.New(rand.NewPCG(n.seed, uint64(key[0]+1)<<32|uint64(key[1])))
		d = max(n.cfg.latency.between(Site(from), Site(to), r), 0)
		n.pairs[key] = d
	}
	return d
}

// public adds a machine with its own public address.
func (n *Network) public() *simhost.Machine { return n.place(n.sim.NewMachine()) }

// place sets the link and, in turn, the region of a machine at its own site.
func (n *Network) place(m *simhost.Machine) *simhost.Machine {
	m.SetLink(n.cfg.link.simLink())
	if r := n.cfg.latency.regions; r != nil {
		m.SetRegion(r[m.Site().Index%len(r)])
	}
	return m
}

// identity returns the key of the i-th peer of the network.
func (n *Network) identity(i int) crypto.PrivKey {
	seed := n.derive(fmt.Sprint("identity ", i))
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		n.tb.Fatalf("p2ptest: making an identity: %v", err) // cannot happen: the length is right
	}
	return key
}

// join registers a new peer, with its machine and identity.
func (n *Network) join(tb testing.TB, what string, machine *simhost.Machine) *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := len(n.order)
	key := n.identity(i)
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		tb.Fatalf("p2ptest: making an identity: %v", err) // cannot happen either
	}
	m := &member{id: id, name: fmt.Sprintf("%s %d", what, i), key: key, tb: tb}
	m.machine.Store(machine)
	m.mesh = &meshTracer{changed: n.notify}
	n.order = append(n.order, m)
	n.members[id] = m
	return m
}

// Node adds a node to the network. It has an identity from the network's seed,
// its own address, QUIC, and a datastore that survives [Network.Restart]; opts
// are applied after these. The node does not know any peers: pass
// p2pnode.WithBootstrapPeers(other.AddrInfo()), or call Connect.
//
// The node closes when tb ends, before the network, and an error of its Close
// fails the test. Options that need real sockets or the Internet fail the test
// immediately: WithMDNS, WithPortMapping, WithListenAddrs, WithTransports
// without QUIC, WithPrivateNetwork, WithIPFS without bootstrap peers. With
// WithNATTraversal no router forwards ports.
func (n *Network) Node(tb testing.TB, opts ...p2pnode.Option) *Node {
	tb.Helper()
	return n.node(tb, n.public, opts)
}

func (n *Network) node(tb testing.TB, machine func() *simhost.Machine, opts []p2pnode.Option) *Node {
	tb.Helper()
	m := n.prepare(tb, machine, opts)
	n.start(tb, m)
	tb.Cleanup(func() { n.closeAll(tb, []*member{m}) })
	return &Node{net: n, m: m}
}

// prepare checks the options and registers a node that is not started yet.
func (n *Network) prepare(tb testing.TB, machine func() *simhost.Machine, opts []p2pnode.Option) *member {
	tb.Helper()
	opts = append(slices.Clone(n.cfg.node), opts...)
	settings, err := p2pnode.Describe(opts...)
	if err == nil {
		err = possible(settings)
	}
	if err != nil {
		tb.Fatalf("p2ptest: %v", err)
	}
	m := n.join(tb, "node", machine())
	m.elsewhere, m.opts, m.settings, m.data = machine, opts, settings, newDatastore()
	return m
}

// possible reports which of a node's options cannot work on a simulated network.
func possible(s p2pnode.Settings) error {
	var refused []string
	refuse := func(is bool, why string) {
		if is {
			refused = append(refused, why)
		}
	}
	refuse(s.MDNS, "WithMDNS needs real sockets: a simulated network has no multicast; use WithBootstrapPeers")
	// Of WithNATTraversal and WithProfile the rest works: their routers have no UPnP.
	refuse(slices.Contains(s.Given, "WithPortMapping"), "WithPortMapping needs a real router; use NAT(FullCone)")
	refuse(slices.Contains(s.Given, "WithListenAddrs"), "WithListenAddrs needs real sockets: the network assigns each node its address; leave it out")
	refuse(s.PrivateNetwork != "", "WithPrivateNetwork needs TCP, but a simulated network carries only QUIC; use WithNetwork to separate networks")
	refuse(!slices.Contains(s.Transports, p2pnode.TransportQUIC) && s.PrivateNetwork == "", "WithTransports leaves out QUIC, the only transport on a simulated network; add TransportQUIC or leave the option out")
	own := slices.ContainsFunc([]string{"WithBootstrapPeers", "WithBootstrapAddrs", "WithTicket"}, func(o string) bool { return slices.Contains(s.Given, o) })
	refuse(s.Public && !own, `WithIPFS joins the public network; add WithBootstrapPeers with a peer of the simulated one, or use WithNetwork("ipfs") for its protocols`)
	if refused == nil {
		return nil
	}
	return errors.New(strings.Join(refused, "\n"))
}

// options returns the options with which a node starts: those of the network, of
// the shape of its group, and of the user.
func (n *Network) options(m *member) []p2pnode.Option {
	opts := []p2pnode.Option{
		p2pnode.WithIdentity(m.key),
		p2pnode.WithTransports(p2pnode.TransportQUIC),
		p2pnode.WithLibp2pOptions(n.hostOptions(m)...),
	}
	if len(m.settings.ListenAddrs) > 0 {
		opts = append(opts, p2pnode.WithListenAddrs(m.at().ListenAddr()))
	}
	if m.settings.DHT && m.settings.DataDir == "" { // which holds the datastore
		opts = append(opts, p2pnode.WithDatastore(m.data))
	}
	if m.settings.PubSub {
		opts = append(opts, p2pnode.WithPubSubOptions(pubsub.WithRawTracer(m.mesh)))
	}
	if len(m.knows) > 0 {
		opts = append(opts, p2pnode.WithBootstrapPeers(m.knows...))
	}
	opts = append(opts, m.opts...)
	if m.settings.Datastore && m.lost {
		opts = append(opts, p2pnode.WithDatastore(m.data))
	}
	if m.dataDir != "" {
		opts = append(opts, p2pnode.WithDataDir(m.dataDir))
	}
	return opts
}

// hostOptions returns the options that attach a libp2p host to a member's
// machine.
func (n *Network) hostOptions(m *member) []libp2p.Option {
	opts := []libp2p.Option{libp2p.MultiaddrResolver(n.names), noPortMapping}
	if n.cfg.memory {
		return append(opts, m.at().Memory()...)
	}
	return append(opts, m.at().QUIC()...)
}

// noPortMapping switches off the search for a router that forwards ports, which
// would be one of the real network.
func noPortMapping(cfg *libp2p.Config) error {
	cfg.NATManager = nil
	return nil
}

// start starts a node on its machine.
func (n *Network) start(tb testing.TB, m *member) {
	tb.Helper()
	var node *p2pnode.Node
	var err error
	// The goroutines of the node inherit the label, which identifies leaks.
	m.mesh.reset()
	pprof.Do(context.Background(), pprof.Labels(leakLabel, n.label), func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		node, err = p2pnode.New(ctx, n.options(m)...)
	})
	if err != nil {
		tb.Fatalf("p2ptest: %s: %v", m.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	if node.ID() != m.id { // WithIdentity among the options
		if n.members[node.ID()] != nil {
			twin := n.members[node.ID()].name
			n.mu.Unlock()
			cancel()
			err := node.Close()
			tb.Fatalf("p2ptest: WithIdentity: %s and %s are both %s; give each node its own key (closing the second: %v)", twin, m.name, node.ID(), err)
		}
		delete(n.members, m.id)
		m.id = node.ID()
		n.members[m.id] = m
	}
	m.gone, m.stop = false, cancel
	m.node.Store(node)
	n.mu.Unlock()
	events := node.Events(ctx)
	n.watchers.Go(func() { // ends with the node, or in closeAll
		for range events {
			n.notify()
		}
	})
	n.notify()
}

// closeAll closes nodes concurrently.
func (n *Network) closeAll(tb testing.TB, list []*member) {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, m := range list {
		n.mu.Lock()
		node, gone, stop := m.node.Load(), m.gone, m.stop
		n.mu.Unlock()
		if node == nil {
			continue
		}
		stop()
		wg.Go(func() {
			if err := node.Close(); err != nil && !gone {
				errs[i] = fmt.Errorf("%s: %w", m.name, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		tb.Errorf("p2ptest: %v", err)
	}
}

// notify makes the waiting methods check again.
func (n *Network) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.changed)
	n.changed = make(chan struct{})
}

// name returns the name of a peer in the messages of failed tests.
func (n *Network) name(id peer.ID) string {
	if m := n.known(id); m != nil {
		return m.name
	}
	return id.String()
}

// Addr returns the IP address of a peer; behind a NAT, the private one.
func (n *Network) Addr(who Selector) netip.Addr {
	n.tb.Helper()
	return n.one("Addr", who).at().IP()
}

// Site returns the site at which a peer is attached.
func (n *Network) Site(who Selector) Site {
	n.tb.Helper()
	return Site(n.one("Site", who).at().Site())
}

// SetRegion moves peers to a region of [Regions] or [Matrix]. Another name fails
// the test. Peers at one address share their region.
func (n *Network) SetRegion(who Selector, region string) {
	n.tb.Helper()
	if !slices.Contains(n.cfg.latency.regions, region) {
		n.tb.Fatalf("p2ptest: SetRegion: %q is not one of the regions of WithLatency: %q", region, n.cfg.latency.regions)
	}
	for _, m := range n.pick("SetRegion", everybody, who) {
		m.at().SetRegion(region)
	}
}

// SetLink replaces the links of peers. Peers behind one NAT, or at one address,
// share a link.
func (n *Network) SetLink(who Selector, l Link) {
	n.tb.Helper()
	if err := l.check(); err != nil {
		n.tb.Fatalf("p2ptest: SetLink: %v", err)
	}
	for _, m := range n.pick("SetLink", everybody, who) {
		m.at().SetLink(l.simLink())
	}
}

// SetPath overrides [WithLatency] for each pair of a peer of a and one of b, in
// both directions. Their links still apply.
func (n *Network) SetPath(a, b Selector, p Path) {
	n.tb.Helper()
	n.setPaths("SetPath", a, b, p, true)
}

// SetOneWay is [Network.SetPath] for only one direction. With a Loss of 1
// no packets arrive in that direction, and connections time out; with
// [WithMemoryTransport] they do so as if both directions were cut.
func (n *Network) SetOneWay(from, to Selector, p Path) {
	n.tb.Helper()
	n.setPaths("SetOneWay", from, to, p, false)
}

func (n *Network) setPaths(call string, from, to Selector, p Path, both bool) {
	n.tb.Helper()
	if err := checkPath(p.Latency, p.Jitter, p.Loss); err != nil {
		n.tb.Fatalf("p2ptest: %s: %v", call, err)
	}
	for _, pair := range n.couples(call, from, to) {
		n.sim.SetPath(pair[0].at(), pair[1].at(), simhost.Path(p))
		if both {
			n.sim.SetPath(pair[1].at(), pair[0].at(), simhost.Path(p))
		}
	}
}

// Path returns the current path between two peers, in one direction and without
// their links. Use it to change a part of the path, as in
//
//	p := sim.Path(a, b)
//	p.Loss = 0.3
//	sim.SetOneWay(a, b, p)
func (n *Network) Path(from, to Selector) Path {
	n.tb.Helper()
	return Path(n.sim.Path(n.one("Path", from).at(), n.one("Path", to).at()))
}

// SetDNS sets the DNS records of a name, replacing earlier ones: IP addresses, or
// multiaddrs for /dnsaddr. Nodes resolve only names that SetDNS has set, and
// never ask the real DNS.
func (n *Network) SetDNS(name string, values ...string) {
	n.tb.Helper()
	if err := n.names.set(name, values); err != nil {
		n.tb.Fatalf("p2ptest: SetDNS: %v", err)
	}
}

// AddrInfo returns the ID and the listen address of a peer, even if it has
// crashed.
func (n *Network) AddrInfo(who Selector) peer.AddrInfo {
	n.tb.Helper()
	return n.one("AddrInfo", who).addrInfo()
}

func (m *member) addrInfo() peer.AddrInfo {
	return peer.AddrInfo{ID: m.id, Addrs: []ma.Multiaddr{ma.StringCast(m.at().ListenAddr())}}
}

// Traffic counts the packets on a network.
type Traffic struct {
	Packets uint64 // packets that arrived; 0 with WithMemoryTransport
	Lost    uint64 // packets lost to Loss, cuts and NATs
}

// Traffic returns the packets that the network has carried so far.
func (n *Network) Traffic() Traffic {
	carried, lost := n.sim.Stats()
	return Traffic{carried, lost}
}
