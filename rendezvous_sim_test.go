package p2pnode_test

import (
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// apart returns nodes that have nothing in common but DHT servers, which are on no
// topic: clients of the DHT are not connected to each other by it.
func apart(t *testing.T, sim *p2ptest.Network, servers, count int, opts ...p2pnode.Option) p2ptest.Nodes {
	t.Helper()
	infra := sim.Nodes(t, servers, p2ptest.Use(p2pnode.WithoutPubSub()))
	sim.Ready()
	list := slices.Concat(opts, []p2pnode.Option{p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(infra[0].AddrInfo(), infra[1].AddrInfo())})
	var nodes p2ptest.Nodes
	for range count {
		nodes = append(nodes, sim.Node(t, list...))
	}
	return nodes
}

// among returns how many of the nodes a node is connected to.
func among(nodes p2ptest.Nodes, n *p2ptest.Node) (count int) {
	for _, p := range n.Peers() {
		if slices.ContainsFunc(nodes, func(o *p2ptest.Node) bool { return o.ID() == p.ID }) {
			count++
		}
	}
	return count
}

func TestRendezvousKeepsPeersConnected(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := apart(t, sim, 5, 8, p2pnode.WithRendezvous("room", 3))
		found := nodes[0].Events(t.Context())
		time.Sleep(5 * time.Minute)
		for i, n := range nodes {
			if among(nodes, n) < 3 || !slices.Equal(n.Advertising(), []string{"room"}) {
				t.Errorf("node %d is connected to %d others, and advertises %q", i, among(nodes, n), n.Advertising())
			}
		}
		for ev := range found {
			if f, ok := ev.(p2pnode.EventPeerFound); ok && f.Source == "rendezvous" {
				break
			}
		}
		// Those that crash are replaced.
		sim.Crash(nodes[1])
		sim.Crash(nodes[2])
		time.Sleep(5 * time.Minute)
		left := append(slices.Clone(nodes[:1]), nodes[3:]...)
		for i, n := range left {
			if among(left, n) < 3 {
				t.Errorf("after two crashes node %d is connected to %d others", i, among(left, n))
			}
		}
		// Whom the application has hung up on is left alone.
		other := left[0].Peers()
		i := slices.IndexFunc(other, func(p p2pnode.Peer) bool {
			return slices.ContainsFunc(left, func(o *p2ptest.Node) bool { return o.ID() == p.ID })
		})
		id := other[i].ID
		for _, n := range left {
			if n.ID() == id {
				if err := n.BanPeer(left[0].ID(), time.Time{}, "a test"); err != nil { // else it would come back
					t.Fatal(err)
				}
			}
		}
		if err := left[0].Disconnect(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Minute)
		if _, up := left[0].Peer(id); up {
			t.Error("a peer is connected again after Disconnect")
		}
	})
}

// The option's namespace is not one of Advertise: it does not outlast the option.
func TestRendezvousDoesNotOutlastTheOption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		server := sim.Node(t)
		dir := p2pnode.WithDataDir(filepath.Join(t.TempDir(), "data"))
		boot := p2pnode.WithBootstrapPeers(server.AddrInfo())
		n := sim.Node(t, dir, boot, p2pnode.WithRendezvous("room", 1))
		time.Sleep(time.Minute)
		if err := n.StopAdvertising(t.Context(), "room"); err != nil {
			t.Fatal(err)
		}
		if got := n.Advertising(); !slices.Equal(got, []string{"room"}) {
			t.Errorf("it advertises %q", got)
		}
		if err := n.Advertise(t.Context(), "hall"); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		again := sim.Node(t, dir, boot)
		if got := again.Advertising(); !slices.Equal(got, []string{"hall"}) {
			t.Errorf("without the option it advertises %q", got)
		}
	})
}

// TestMembersOfATopicFindEachOther: a hundred nodes that share nothing but a DHT and
// a topic hear one message.
func TestMembersOfATopicFindEachOther(t *testing.T) {
	count := 30
	if longRun() {
		count = 100
	}
	if testing.Short() || raced.Detector {
		count = 10
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := apart(t, sim, 6, count)
		var topics []*p2pnode.Topic
		var subs []*p2pnode.Subscription
		for i, n := range nodes {
			// The first half come in groups of five that know nobody else.
			if i < count/2 && i%5 > 0 {
				if err := n.Connect(t.Context(), nodes[i-i%5].AddrInfo()); err != nil {
					t.Fatal(err)
				}
			}
			topic, sub := topicOf(t, n, p2pnode.TopicDiscovery(3))
			topics, subs = append(topics, topic), append(subs, sub)
		}
		time.Sleep(5 * time.Minute)
		for i, topic := range topics {
			if n := len(topic.Peers()); n < 3 {
				t.Errorf("node %d has %d peers on the topic", i, n)
			}
			if len(nodes[i].Advertising()) != 0 {
				t.Errorf("the application's list of namespaces has %q", nodes[i].Advertising())
			}
		}
		publishTo(t, topics[count-1], "all")
		for _, sub := range subs {
			if m := sim.Within(time.Minute).Delivered(sub, 1)[0]; string(m.Data) != "all" {
				t.Errorf("got %q", m.Data)
			}
		}
		// Without handles nothing is kept.
		for _, topic := range topics {
			if err := topic.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTopicDiscoveryNeedsADHT(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		n := sim.Node(t, p2pnode.WithoutDHT())
		if _, err := n.Topic("news", p2pnode.TopicDiscovery(3)); err == nil {
			t.Error("no error")
		}
		if len(n.Status().Topics) != 0 {
			t.Error("the topic is joined")
		}
	})
}
