// Package p2ptest runs whole nodes on a simulated network, in virtual time, so
// that an application built on p2pnode is tested as it will run: ten nodes or
// a thousand, slow links, lost packets, crashes, partitions and NATs, in one
// process, in milliseconds.
//
// # From an ordinary test
//
// Here is a test with two nodes on the loopback interface. It takes the time
// that real sockets and timers take, and what happens when the network is cut
// it cannot show:
//
//	func TestGreeting(t *testing.T) {
//		a, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/udp/0/quic-v1"))
//		// … and b, with a as its bootstrap peer, and Close for both
//		app := greeter.New(b)
//		// …
//	}
//
// The same on a simulated network:
//
//	func TestGreeting(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			sim := p2ptest.NewNetwork(t)
//			a := sim.Node(t)
//			b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
//			sim.Ready()
//			app := greeter.New(b)
//			// …
//		})
//	}
//
// The nodes are the real ones, with every part: host, QUIC, DHT, gossipsub,
// bootstrap. What is simulated lies below them, the IP network and, by
// testing/synctest, time: the clock jumps as soon as everybody waits, so an
// hour costs what happens in it and nothing more. Without synctest.Test the
// same code runs in real time.
//
// The application itself has to play along: it must get its time from package
// time and wait on channels, timers and contexts, not on real sockets or on
// goroutines outside the bubble, and its own goroutines must end with
// t.Context() or when its node is closed. See the documentation of
// testing/synctest.
//
// # Waiting, never sleeping
//
// Nothing is so at once: connections, routing tables and meshes grow. The
// methods of [Waiter], which [Network] has too, wait for them, and fail the
// test with the Status of every node when they do not come:
//
//	sim.Connected(a, b)          // both know of a connection
//	sim.RoutingTable(a, 20)      // a has 20 peers in its DHT table
//	sim.Subscribed("news")       // everybody has heard who is subscribed
//	sim.Meshed("news")           // the meshes hang together: messages reach all
//	sim.Delivered(sub, 3)        // three messages, returned
//	sim.Provided(c)              // somebody holds a provider record
//	sim.Until("…", func() error) // whatever else
//
// The limit is 2 minutes, in virtual time, unless [WithWaitLimit] or
// [Waiter.Within] says otherwise.
//
// # Many nodes
//
//	nodes := sim.Nodes(t, 100, p2ptest.Random(3), p2ptest.Use(p2pnode.WithConnLimits(16, 24)))
//
// A [Shape] ([Star], [Ring], [Random], [Clusters]) says who knows whom at the
// start. From about 200 nodes on [WithMemoryTransport] is advisable: it leaves
// out packets and cryptography, which is where the time goes, and its
// documentation says what that gives up. [Stagger] lets the nodes come one
// after another, as they do in life; a thousand at one moment is a different
// experiment. The race detector ends a process at 8,128 goroutines, which is
// what some 25 nodes have that are all connected to each other: run larger
// networks without it. With it, [NewNetwork] sets GOMAXPROCS to 1.
//
// # Links
//
// By default packets take 25 ms from anywhere to anywhere. [WithLatency]
// changes that for all: [Fixed], [Uniform], [Normal], a [Matrix] between
// regions, or [Regions], which has typical figures between continents.
// [Network.SetPath] does it for a pair, and [Network.SetLink] for one node,
// with bandwidth each way, jitter, loss and MTU, at any moment:
//
//	sim.SetLink(phone, p2ptest.Link{Up: 1 * p2ptest.Mbit, Down: 8 * p2ptest.Mbit, Loss: 0.02, Latency: 40 * time.Millisecond})
//
// # Faults
//
//	sim.Partition(left, right)     // two halves, silently
//	sim.Isolate(node)              // one, from everybody
//	sim.Heal()                     // both end
//	sim.Crash(node)                // gone without a goodbye
//	node = sim.Restart(node)       // the same identity, address and data
//	sim.Suspend(node, time.Hour)   // a closed laptop
//	stop := sim.Churn(nodes, …)    // coming and going
//
// # NATs
//
//	home := sim.NAT(p2ptest.PortRestricted)
//	laptop := home.Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching())
//
// Hole punching succeeds and fails as it would: between two port-restricted
// NATs a direct connection comes about, between two symmetric ones it does
// not and the relay goes on carrying.
//
// # Others on the network
//
// [Network.Raw] adds a peer assembled by hand from go-libp2p, with nothing of
// this library. [Network.Hostile] adds one that attacks: floods, malformed
// messages, forged signatures and records, streams left half open.
//
// # Repeating a run
//
// Identities, addresses, paths and losses come from a seed, which a failed
// test logs:
//
//	go test -run TestGreeting ./greeter -args -p2ptest.seed=3074447362188968969
//
// [Network.Rand] gives a test its own chance from the same seed. What a seed
// does not fix is the order in which goroutines run at one moment, and the
// choices that the DHT and gossipsub make by chance; see [WithSeed].
//
// # When the test ends
//
// Nodes are closed in the reverse order of their creation, groups at once,
// before the network. An error of Close fails the test, and so does a
// goroutine that a node leaves behind. One goroutine is none of theirs: a
// metrics library's, started with the process
// (github.com/libp2p/go-flow-metrics); a leak check of your own has to know
// it.
package p2ptest
