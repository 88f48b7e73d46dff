// Package p2ptest runs whole nodes on a simulated network, in virtual time. An
// application built on p2pnode is tested as it will run, with ten nodes or a
// thousand, slow links, lost packets, crashes, partitions and NATs: in one
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
// The nodes are real, with every part: host, QUIC, DHT, gossipsub, bootstrap.
// Simulated are the IP network below them and, by testing/synctest, time: the
// clock jumps as soon as every goroutine waits, so an hour costs only what
// happens in it. Without synctest.Test the same code runs in real time.
//
// The application has to play along: it takes the time from package time, waits
// on channels, timers and contexts instead of real sockets, and its goroutines
// end with t.Context() or with their node.
//
// # Nodes
//
// A [Node] has every method of [p2pnode.Node], and stays valid when the node
// crashes and restarts: the methods then act on the new run. [Node.Current]
// returns the *p2pnode.Node of this run, to build an application on.
//
//	nodes := sim.Nodes(t, 100, p2ptest.Random(3), p2ptest.Use(p2pnode.WithConnLimits(16, 24)))
//
// A [Shape] ([Star], [Ring], [Random], [Clusters]) decides who knows whom at the
// start. [WithMemoryTransport] makes large networks feasible: it leaves out
// packets and cryptography. [Stagger] starts the nodes one after another. The
// race detector ends a process at 8,128 goroutines, which is about 25 nodes that
// are all connected to each other.
//
// [Network.Raw] adds a peer assembled by hand from go-libp2p, and
// [Network.Hostile] one that attacks: floods, malformed messages, forged
// signatures and records, streams left half open.
//
// # Selecting peers
//
// Links, faults and waits all take a [Selector]: a node, a slice of nodes, a raw
// or hostile peer, [Peers] for several of these, [IDs], or [All].
//
// # Waiting
//
// Connections, routing tables and meshes take time to form. The methods of
// [Waiter], which [Network] has too, wait for them without sleeping:
//
//	sim.Connected(a, nodes[1:])  // each pair has a connection
//	sim.RoutingTable(nodes, 20)  // each has 20 peers in its DHT table
//	sim.Subscribed("news")       // everybody knows who is subscribed
//	sim.Meshed("news")           // a message reaches all
//	sim.Delivered(sub, 3)        // three messages, returned
//	sim.Provided(c)              // somebody holds a provider record
//	sim.Found(a, c, b)           // a search by a finds b as a provider
//	sim.Until("…", func() error) // anything else
//
// A wait that fails says what was missing, with a line about each peer
// concerned, and names a file with the Status of all. The limit is 2 minutes of
// virtual time unless [WithWaitLimit] or [Waiter.Within] changes it. [Take]
// returns the messages that a subscription has already, without waiting.
//
// # Links and faults
//
// Packets take 25 ms between any two nodes, unless [WithLatency] is given
// [Uniform], [Normal], [Regions], a [Matrix] or a [LatencyFunc]. Everything can
// be changed at any moment:
//
//	sim.SetLink(phone, p2ptest.Link{Up: 1 * p2ptest.Mbit, Down: 8 * p2ptest.Mbit, Loss: 0.02})
//	sim.SetPath(a, b, p2ptest.Path{Latency: 200 * time.Millisecond})
//	sim.SetOneWay(a, b, p2ptest.Path{Loss: 0.5})      // from a to b alone
//	sim.Partition(nodes[:5], nodes[5:])               // in two, silently
//	sim.Isolate(a)                                    // one, from everybody
//	sim.Heal()                                        // both end
//	sim.Crash(a)                                      // gone without a goodbye
//	sim.Restart(a)                                    // the same identity, address and data
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
// Hole punching succeeds and fails as it would: it works between two
// port-restricted NATs, and fails between two symmetric ones.
//
// # Repeating a run
//
// Identities, addresses, paths and losses come from a seed, which a failed test
// logs:
//
//	go test -run TestGreeting ./greeter -p2ptest.seed=3074447362188968969
//
// [Network.Rand] gives a test randomness from the same seed. The seed does not
// fix the order in which goroutines run at one moment, nor what the DHT and
// gossipsub draw from the Go runtime; see [WithSeed].
//
// # The end of a test
//
// Nodes close in the reverse order of their creation, groups at once, before the
// network. An error of Close fails the test, and so does a goroutine that a node
// leaves behind. A leak check of your own has to ignore one goroutine per
// process, of github.com/libp2p/go-flow-metrics.
package p2ptest
