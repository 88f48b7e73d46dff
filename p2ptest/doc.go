// Package p2ptest runs whole nodes on a simulated network, in virtual time. It
// tests an application built on p2pnode as it will run, with ten nodes or a
// thousand, slow links, packet loss, crashes, partitions and NATs: in one
// process, in milliseconds.
//
//	func TestGreeting(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			sim := p2ptest.NewNetwork(t)
//			a := sim.Node(t)
//			b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
//			sim.Ready()
//			app := greeter.New(b.Current())
//			// …
//		})
//	}
//
// The nodes are real, with all their parts: host, QUIC, DHT, gossipsub,
// bootstrap. The IP network below them is simulated, and so is time, by
// testing/synctest: the clock jumps as soon as every goroutine waits, so an hour
// costs only what happens in it. Without synctest.Test the same code runs in
// real time.
//
// The application must follow the rules of testing/synctest: it takes the time
// from package time, waits on channels, timers and contexts instead of real
// sockets, and its goroutines end with t.Context() or with their node.
//
// # Nodes
//
// A [Node] has every method of [p2pnode.Node], and stays valid when the node
// crashes and restarts: the methods then act on the new run. [Node.Current]
// returns the *p2pnode.Node of the current run, to build an application on.
//
//	nodes := sim.Nodes(t, 100, p2ptest.Random(3), p2ptest.Use(p2pnode.WithConnLimits(16, 24)))
//
// A [Shape] ([Star], [Ring], [Random], [Clusters]) decides which nodes know each
// other at the start. [WithMemoryTransport] makes large networks feasible: it
// leaves out packets and cryptography. [Stagger] starts the nodes one after
// another. The race detector ends a process at 8,128 goroutines: about 25 nodes
// that are all connected to each other.
//
// [Network.Raw] adds a peer assembled by hand from go-libp2p, and
// [Network.Hostile] one that attacks: with floods, malformed messages, forged
// signatures and records, and half-open streams.
//
// # Selecting peers
//
// The methods for links, faults and waits take a [Selector]: a node, a slice of
// nodes, a raw or hostile peer, [Peers] for several of these, [IDs], or [All].
//
// # Waiting
//
// Connections, routing tables and meshes take time to form. The methods of
// [Waiter], which [Network] embeds, wait for them without sleeping:
//
//	sim.Connected(a, nodes[1:])  // each pair has a connection
//	sim.RoutingTable(nodes, 20)  // each has 20 peers in its routing table
//	sim.Subscribed("news")       // each is subscribed and its neighbors know
//	sim.Meshed("news")           // a message reaches all
//	sim.Delivered(sub, 3)        // three messages, returned
//	sim.Provided(c)              // a peer holds a provider record
//	sim.Found(a, c, b)           // a search by a finds b as a provider
//	sim.Until("…", func() error) // anything else
//
// A wait that fails reports what is missing, with a line about each peer
// concerned, and names a file with the Status of all peers. The limit is 2
// minutes of virtual time unless [WithWaitLimit] or [Waiter.Within] changes it.
// [Take] returns the messages that a subscription has already received, without
// waiting.
//
// # Links and faults
//
// Packets take 25 ms between any two nodes, unless [WithLatency] sets
// [Uniform], [Normal], [Regions], a [Matrix] or a [LatencyFunc]. A test can
// change everything at any time:
//
//	sim.SetLink(phone, p2ptest.Link{Up: 1 * p2ptest.Mbit, Down: 8 * p2ptest.Mbit, Loss: 0.02})
//	sim.SetPath(a, b, p2ptest.Path{Latency: 200 * time.Millisecond})
//	sim.SetOneWay(a, b, p2ptest.Path{Loss: 0.5})      // only from a to b
//	sim.Partition(nodes[:5], nodes[5:])               // into two groups, silently
//	sim.Isolate(a)                                    // from all others
//	sim.Heal()                                        // ends both
//	sim.Crash(a)                                      // without closing connections
//	sim.Restart(a)                                    // with the same identity, address and data
//	sim.Restart(a, p2ptest.LoseData(), p2ptest.NewAddress())
//	sim.Suspend(a, time.Hour)                         // a closed laptop
//	stop := sim.Churn(nodes, 5*time.Second, time.Minute, nil)
//
// # Shared addresses
//
//	home := sim.NAT(p2ptest.PortRestricted) // many nodes behind one address
//	laptop := home.Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()), p2pnode.WithHolePunching())
//	server := sim.Machine()                 // many nodes at one address, each on its own port
//	first, second := server.Node(t), server.Node(t)
//
// Hole punching succeeds and fails as on real NATs: it works between two
// port-restricted ones, and fails between two symmetric ones. The tests of this
// module compare the kinds with NATs of the Linux kernel.
//
// # Repeating a run
//
// Identities, addresses, paths and losses derive from a seed, which a failed
// test logs:
//
//	go test -run TestGreeting ./greeter -p2ptest.seed=3074447362188968969
//
// [Network.Rand] returns randomness from the same seed for the test itself. The
// seed does not fix the order in which goroutines run at one moment, nor the
// randomness that the DHT and gossipsub take from the Go runtime; see
// [WithSeed].
//
// # The end of a test
//
// Nodes close in the reverse order of their creation, the nodes of a group at
// once, and the network closes last. An error of Close fails the test, and so
// does a goroutine that a node leaves running. A leak check of your own must
// ignore one goroutine per process, of github.com/libp2p/go-flow-metrics.
package p2ptest
