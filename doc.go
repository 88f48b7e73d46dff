// Package p2pnode is a libp2p node in one handle: a host with its identity and
// transports, a Kademlia DHT, bootstrap peers, discovery on the LAN, circuit
// relays and gossipsub, put together so that they work.
//
// A node joins a network of the application's own, finds out who has what,
// opens streams to peers and publishes to topics:
//
//	node, err := p2pnode.New(ctx,
//		p2pnode.WithNetwork("acme-chat"),
//		p2pnode.WithBootstrapAddrs("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"))
//	if err != nil {
//		return err
//	}
//	defer node.Close()
//	if err := node.WaitReady(ctx); err != nil {
//		return err // says what is still missing
//	}
//	return node.Publish(ctx, "news", []byte("hello"))
//
// # Lifecycle
//
// [New] builds the node and returns when its local parts are up. Its context
// bounds that alone: the node runs until [Node.Close]. New never waits for the
// network; [Node.WaitReady] does, and says what is missing when its context
// ends first. When New fails, nothing that it started is left running.
//
// Close ends everything and waits for it, within 5 seconds for each part.
// Calls that are blocked return [ErrClosed], which is also [net.ErrClosed], and
// so does every call after it. Any number of nodes can live in one process:
// there are no globals, no environment variables, and no shared registries.
//
// # Options
//
// What the options say is checked before anything starts, all of it at once:
// values that cannot be, and options that contradict each other. Each finding
// is an [OptionError] that names the option and the way out. [ValidateOptions]
// does the checking alone, and [Describe] tells what the options come to. What is
// not given is this, for these reasons:
//
//   - identity: fresh Ed25519 key; nothing is written to disk unasked
//     ([WithIdentityFile])
//   - data directory: none; nothing is written to disk unasked
//     ([WithDataDir])
//   - network: p2pnode; a new node joins no public network ([WithNetwork])
//   - transports: tcp, quic, websocket; the three that every implementation
//     speaks ([WithTransports])
//   - security: tls, noise; TLS first, as in libp2p: with AES in hardware
//     it costs half the CPU ([WithSecurity])
//   - listen addresses: all interfaces, any free port; IPv4 and IPv6, one
//     per transport: reachable without configuration ([WithListenAddrs])
//   - connection limits: 160, 192; trimmed to the first above the second,
//     as in libp2p ([WithConnLimits])
//   - DHT mode: auto-server; serves also where reachability is never found
//     out, as on a LAN ([WithDHTMode])
//   - minimum of peers: 1; one peer is a connection; 0 when nothing says
//     where to find any ([WithMinPeers])
//   - bootstrap retry: 800ms for 1m, then 1s to 30s; a peer that comes back
//     is found soon, one that does not costs little ([WithBootstrapPeers])
//   - LAN discovery: off; announcing oneself on the LAN is a decision
//     ([WithMDNS])
//   - relay client: on; peers behind relays can be dialed ([WithoutRelay])
//   - relay reservations: none; a relay sees who talks to whom: it should
//     be a chosen one ([WithAutoRelay])
//   - relay service: off; it spends bandwidth on others
//     ([WithRelayService])
//   - hole punching: off; it dials addresses that strangers name
//     ([WithHolePunching])
//   - port mapping: off; it changes the router's settings
//     ([WithPortMapping])
//   - pubsub messages: signed, flood-published; unsigned ones are dropped
//     by others, unflooded ones get lost early on ([WithPubSubOptions])
//   - message size: 1048576; the limit that other implementations start
//     with ([WithMaxMessageSize])
//   - wait for topic peers: 5s; the first message is not lost, and a silent
//     topic is an error ([PublishNow])
//   - wait for DHT peers: 10s; Provide can follow New at once
//   - unread messages: 1024; a burst fits; beyond it the oldest are dropped
//     and counted ([SubscribeBuffer])
//   - logging: none; a library is silent unless asked ([WithLogger])
//   - metrics: none; a registry belongs to the application ([WithMetrics])
//
// # Content
//
// [Node.Provide] announces that the node has the content of a CID, which
// [CIDOf] makes, and returns when another peer holds the announcement.
// [Node.FindProviders] yields who has it. The DHT also stores small records,
// with [Node.PutValue] and [Node.GetValue], and finds the addresses of a peer
// by its ID: [Node.FindPeer]. [Node.Advertise] and [Node.FindPeers] are for
// peers that look for each other under a name.
//
// # Streams
//
// [Node.Handle] serves a protocol and [Node.OpenStream] speaks it. Code that
// knows net.Listener and net.Conn uses [Node.Listen] and [Node.Dial]. Streams
// also work over relayed connections, within the relay's limits.
//
// # PubSub
//
// [Node.Subscribe] and [Node.Publish] join topics as needed. A publish that
// reaches nobody is an error, and a message that a slow reader loses is
// counted: [Subscription.Dropped].
//
// # Staying connected
//
// A node below its minimum of peers dials its bootstrap peers, at once and
// then with delays that grow to 30 seconds, forever; a change of its
// addresses or a wake from sleep starts again at once. With [WithDataDir] it
// also dials the peers that it knew before a restart. Peers that are wanted for
// themselves are those of [WithPersistentPeers].
//
// WaitReady waits for stages, such as [StageRouting], and says what each of them
// lacks. [Node.Status] is a snapshot of where things stand, [Node.Events]
// streams what changes, and [Node.Diagnose] says what is in the way and what to
// do about it.
//
// # Who is let in
//
// [WithPrivateNetwork] keeps out everybody without its key, which
// [LoadOrCreateSwarmKey] keeps in a file. [WithAllowedPeers] names those that
// the node has to do with; [Node.BanPeer] and [Node.BanSubnet] shut out a peer or
// a subnet while it runs, for a time or for good. What others may use of the
// machine is [WithLimits].
//
// # Other implementations
//
// The public IPFS network is [WithIPFS]. On a network of one's own,
// WithNetwork("ipfs") speaks the DHT protocol that kubo and js-libp2p peers
// expect, and WithMDNSService("_p2p._udp") meets them on the LAN.
//
// # Escape hatches
//
// [Node.Host], [Node.DHT] and [Node.PubSub] are the parts themselves;
// [WithLibp2pOptions], [WithDHTOptions] and [WithPubSubOptions] configure what
// has no option here.
package p2pnode
