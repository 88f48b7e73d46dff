package p2pnode_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/bootstrap"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// member is a peer of a simulated network.
type member interface {
	p2ptest.Selector
	ID() peer.ID
	Host() host.Host
}

// foreign is a member of other make.
type foreign struct{ *p2ptest.RawNode }

func (f foreign) Host() host.Host { return f.RawNode.Host }

// recoverers are nodes that know one bootstrap peer, and how each comes back to
// it: by this library, by boxo's bootstrap, by the DHT's own option.
var recoverers = []struct {
	name  string
	start func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo) member
}{
	{"p2pnode", func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo) member {
		return sim.Node(t, p2pnode.WithBootstrapPeers(boot))
	}},
	{"boxo", func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo) member {
		return foreign{withBoxo(t, sim, boot, new(backups))}
	}},
	{"DHT", func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo) member {
		raw := sim.Raw(t, p2ptest.RawDHT(dht.BootstrapPeers(boot)), p2ptest.RawConnect(boot))
		if err := raw.DHT.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		return foreign{raw}
	}},
}

// backups are the backup peers of boxo's bootstrap, which it leaves to others
// to keep.
type backups struct {
	mu   sync.Mutex
	list []peer.AddrInfo
}

func (s *backups) load(context.Context) []peer.AddrInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

func (s *backups) save(_ context.Context, list []peer.AddrInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = list
}

// withBoxo is a node of other make that boxo's bootstrap keeps connected, at
// its defaults. Without functions for backup peers it would run a single round,
// and leave a goroutine behind.
func withBoxo(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo, saved *backups) *p2ptest.RawNode {
	raw := sim.Raw(t)
	b, err := bootstrap.Bootstrap(raw.ID(), raw, raw.DHT, bootstrap.BootstrapConfigWithPeers([]peer.AddrInfo{boot}, bootstrap.WithBackupPeers(saved.load, saved.save)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return raw
}

// outages cut a node off from its bootstrap peer, and return when that is over.
// The node has no other peer, or others of its kind.
var outages = []struct {
	name   string
	others int
	cut    func(t *testing.T, sim *p2ptest.Network, boot *p2ptest.Node, n member)
}{
	{"bootstrap peer down for 5s", 0, down(5 * time.Second)},
	{"bootstrap peer down for 1m", 0, down(time.Minute)},
	{"bootstrap peer down for 10m", 0, down(10 * time.Minute)},
	{"bootstrap peer down for 1m and others there", 2, down(time.Minute)},
	{"bootstrap peer down for 10m and others there", 2, down(10 * time.Minute)},
	{"partition of 30m", 0, func(_ *testing.T, sim *p2ptest.Network, boot *p2ptest.Node, n member) {
		sim.Partition(n, boot)
		time.Sleep(30 * time.Minute)
		sim.Heal()
	}},
	{"suspended for 1h", 0, func(_ *testing.T, sim *p2ptest.Network, boot *p2ptest.Node, n member) {
		sim.Suspend(n, time.Hour)
		time.Sleep(time.Hour)
	}},
}

func down(d time.Duration) func(*testing.T, *p2ptest.Network, *p2ptest.Node, member) {
	return func(t *testing.T, sim *p2ptest.Network, boot *p2ptest.Node, _ member) {
		if err := boot.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(d)
		sim.Restart(boot)
	}
}

// giveUp is how long the benchmark waits for a node to come back.
const giveUp = 3 * time.Hour

// BenchmarkRecovery measures, in virtual time, how long a node needs to be
// connected again once it could be. 10800 seconds mean not within 3 hours.
func BenchmarkRecovery(b *testing.B) {
	for _, o := range outages {
		for _, r := range recoverers {
			b.Run(fmt.Sprintf("%s/%s", o.name, r.name), func(b *testing.B) {
				var total time.Duration
				for b.Loop() {
					p2ptest.Run(b.Name(), func(t *testing.T) {
						sim := p2ptest.NewNetwork(t)
						boot := sim.Node(t)
						n := r.start(t, sim, boot.AddrInfo())
						sim.Within(giveUp).Connected(n, boot)
						for range o.others {
							other := r.start(t, sim, boot.AddrInfo())
							if err := other.Host().Connect(t.Context(), sim.AddrInfo(n)); err != nil {
								t.Fatal(err)
							}
						}
						// At any point of whatever period it has.
						time.Sleep(time.Minute + time.Duration(sim.Rand("phase").Int64N(int64(2*time.Minute))))
						o.cut(t, sim, boot, n)
						synctest.Wait()
						begun := time.Now()
						connected := func() bool {
							return boot.Host().Network().Connectedness(n.ID()) == network.Connected
						}
						for !connected() && time.Since(begun) < giveUp {
							time.Sleep(50 * time.Millisecond)
						}
						total += time.Since(begun)
					})
				}
				b.ReportMetric(total.Seconds()/float64(b.N), "virtual-s/op")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkRestart measures, in virtual time, how long a node that is started
// again needs to be connected to anybody, when its one bootstrap peer is dead
// and four others that it knew are not. Boxo's backup peers are kept here, as
// kubo does; the DHT has none.
func BenchmarkRestart(b *testing.B) {
	for name, prepare := range map[string]func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo, dir string) (again func() host.Host){
		"p2pnode": func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo, dir string) func() host.Host {
			n := sim.Node(t, p2pnode.WithBootstrapPeers(boot), p2pnode.WithDataDir(dir))
			return func() host.Host {
				sim.Restart(n)
				return n.Host()
			}
		},
		"boxo": func(t *testing.T, sim *p2ptest.Network, boot peer.AddrInfo, _ string) func() host.Host {
			saved := new(backups)
			withBoxo(t, sim, boot, saved)
			return func() host.Host { return withBoxo(t, sim, boot, saved) }
		},
	} {
		b.Run("bootstrap peer dead/"+name, func(b *testing.B) {
			var total time.Duration
			for b.Loop() {
				dir := b.TempDir()
				p2ptest.Run(b.Name(), func(t *testing.T) {
					sim := p2ptest.NewNetwork(t)
					nodes := sim.Nodes(t, 5)
					again := prepare(t, sim, nodes[0].AddrInfo(), dir)
					sim.Ready()
					time.Sleep(70 * time.Minute) // boxo saves backup peers every hour
					sim.Crash(nodes[0])
					begun := time.Now()
					n := again()
					for len(n.Network().Peers()) == 0 && time.Since(begun) < giveUp {
						time.Sleep(10 * time.Millisecond)
					}
					total += time.Since(begun)
				})
			}
			b.ReportMetric(total.Seconds()/float64(b.N), "virtual-s/op")
			b.ReportMetric(0, "ns/op")
		})
	}
}
