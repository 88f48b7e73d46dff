// Package p2pnode runs a libp2p node behind one handle: a host with its identity
// and transports, a Kademlia DHT, bootstrap peers, LAN discovery, circuit relays
// and gossipsub, wired together so that they work.
//
// A node joins the application's own network, finds out which peers have what,
// opens streams to them and publishes to topics:
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
// [New] builds the node and returns once its local parts are up. Its context
// bounds construction only: the node runs until [Node.Close]. New never waits for
// the network; [Node.WaitReady] does, and reports what is missing if its context
// ends first. If New fails, it leaves nothing running.
//
// [Node.Close] stops every part and waits for it, at most 5 seconds each. Blocked
// calls return [ErrClosed], which also matches [net.ErrClosed], and so does every
// later call. A process can run any number of nodes: there are no globals, no
// environment variables and no shared registries.
//
// # Options
//
// [New] checks all options before it starts anything, and reports every invalid
// value and every conflict at once. Each finding is an [OptionError] that names
// the option and the way out. [ValidateOptions] only checks; [Describe] also
// returns the resulting [Settings]. The defaults, and the reasons for them:
//
//   - profile: none; what a node is for is a decision ([WithProfile])
//   - identity: fresh Ed25519 key; nothing is written to disk unasked
//     ([WithIdentityFile])
//   - data directory: none; nothing is written to disk unasked
//     ([WithDataDir])
//   - network: p2pnode; a new node joins no public network ([WithNetwork])
//   - transports: tcp, quic, websocket; the three that every implementation
//     speaks ([WithTransports])
//   - security: tls, noise; TLS first, as in libp2p: with AES in hardware it
//     costs half the CPU ([WithSecurity])
//   - listen addresses: all interfaces, any free port; IPv4 and IPv6, one
//     per transport: reachable without configuration ([WithListenAddrs])
//   - transports for browsers: off; WebRTC costs memory, and other nodes have
//     no use for it ([WithBrowserTransports])
//   - announced besides: none; a node announces what it finds out
//     ([WithExtraAnnounceAddrs])
//   - not announced: none; a prefix does not tell a bridge of containers from
//     a LAN; IPv6 link-local addresses never are ([WithNoAnnounce])
//   - dial timeout: 15s, or 5s for private addresses; as in libp2p: enough
//     where a round trip takes less than a second ([WithDialTimeout])
//   - certificate for WebSocket: none; it belongs to a name that somebody owns,
//     and browsers ask for one ([WithTLSFiles])
//   - connection limits: 160, 192; above the second, trimmed to the first,
//     as in libp2p ([WithConnLimits])
//   - streams per peer: 2048; carries 1,000 requests at once each way; with
//     WithIPFS libp2p's own, some hundreds ([WithLimits])
//   - pubsub messages that wait: 8 MiB in one queue, a 32nd of the memory in all; a
//     peer or a subscriber that does not read costs no more ([WithLimits])
//   - provider records of others: 64 MiB, or a 32nd of the memory; strangers fill
//     no more; those who send most make room ([WithLimits])
//   - value records of others: 64 MiB, or a 32nd of the memory; strangers fill no
//     more; those farthest from the node's ID make room ([WithLimits])
//   - DHT mode: auto-server; serves even where reachability is never
//     determined, as on a LAN ([WithDHTMode])
//   - accelerated DHT client: off; it crawls the public network each hour, which
//     pays only with thousands of calls of Provide in one ([WithAcceleratedDHT])
//   - minimum of peers: 1; one peer makes a connected node; 0 without
//     bootstrap peers, persistent peers or mDNS ([WithMinPeers])
//   - bootstrap retry: 800ms for 1m, then 1s to 30s; a peer that comes back
//     is found soon, one that does not costs little ([WithBootstrapPeers])
//   - longest bootstrap pause: 30s; a peer that was away for long is found soon
//     ([WithBootstrapPause])
//   - keep-alive: off; costs traffic; crashes show by themselves within 45
//     seconds ([WithKeepAlive])
//   - bootstrap by name: none; whoever answers at a name is trusted: a decision
//     ([WithBootstrapDNS])
//   - ticket: none; whoever made it chooses the network and whom the node dials
//     ([WithTicket])
//   - reprovide interval: 22h0m0s; half of what records last, with room for a
//     day offline ([WithReprovideInterval])
//   - record lifetime: 48h0m0s; what every network of libp2p keeps
//     ([WithRecordLifetime])
//   - LAN discovery: off; announcing a node to the LAN is a decision
//     ([WithMDNS])
//   - rendezvous: none; whom to meet is the application's business
//     ([WithRendezvous])
//   - relay client: on; peers behind relays can be dialed ([WithoutRelay])
//   - relay reservations: none; a relay sees who talks to whom: choose it
//     ([WithAutoRelay])
//   - relay discovery: off; a stranger's relay sees who talks to the node, and when
//     ([WithRelayDiscovery])
//   - relay service: off; it spends bandwidth on others ([WithRelayService])
//   - AutoNAT: off; it dials addresses that strangers name, and tells peers all of
//     its own ([WithAutoNAT])
//   - NAT traversal: off; AutoNAT, relays of strangers, hole punching and port
//     mapping at once: a decision ([WithNATTraversal])
//   - hole punching: off; it dials addresses that strangers name
//     ([WithHolePunching])
//   - port mapping: off; it changes the router's settings
//     ([WithPortMapping])
//   - pubsub messages: signed, flood-published; other peers drop unsigned
//     messages; without flooding, early ones get lost ([WithPubSubOptions])
//   - message size: 1048576; other implementations' initial limit, in bytes
//     ([WithMaxMessageSize])
//   - topics over relays with limits: off; a relay ends such connections after
//     128 KiB or 2 minutes ([WithRelayedPubSub])
//   - peer scores: off; a score that errs silences an honest peer; bounds on what a
//     peer may send hold without ([WithPeerScoring])
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
// [Node.Provide] announces that the node has the content of a CID, which [CIDOf]
// computes, and returns once another peer holds the provider record. It goes on
// doing so until [Node.StopProviding], with [WithDataDir] also after a restart;
// [Node.ProvideMany] does it for any number. [Node.FindProviders] yields the peers that have it. The DHT also stores small
// records ([Node.PutValue], [Node.GetValue], [Node.SearchValue]) and finds the addresses of a peer by
// its ID ([Node.FindPeer]).
//
// With [Node.Advertise] and [Node.FindPeers], peers find
// each other under a name. An announcement lasts until [Node.StopAdvertising], as
// Provide's does; a search with [FindFollow] goes on, and [WithRendezvous] also
// keeps some of the peers connected.
//
// # Names and signed records
//
// [Node.PublishName] points an IPNS name at content that changes, and
// [Node.ResolveName] follows it. [Node.PutSigned] and [Node.GetSigned] do the same
// for anything an application has to say, in a namespace of [WithSignedRecords]:
// only the owner of a key can write under it, and newer records replace older ones.
// Both are signed again before they expire, as long as the node runs.
//
// # Streams
//
// [Node.Handle] serves a protocol and [Node.OpenStream] speaks it. Code written
// for net.Listener and net.Conn uses [Node.Listen] and [Node.Dial]. Streams also
// work over relayed connections, within the relay's limits.
//
// # PubSub
//
// [Node.Subscribe] and [Node.Publish] join topics as needed, and [Node.Topic]
// returns a handle that keeps a topic joined, says who is on it and how well the
// node is connected ([Topic.Health]), looks for other members ([TopicDiscovery]),
// and takes validators ([TopicValidator]). A
// publish that reaches no peer is an error, and messages that a slow reader loses
// are counted: see [Subscription.Dropped]. [WithPeerScoring] graylists peers
// that flood or break the rules. Package topic gives a topic a Go type: it decodes
// messages once, as JSON, protobuf or CBOR, and rejects what does not decode.
//
// # Staying connected
//
// While a node has fewer peers than [WithMinPeers] asks for, or an empty routing
// table, it dials its bootstrap peers: at once, then several times a second for a
// minute, then with delays that grow to 30 seconds, forever. A change of the
// machine's addresses or a wake from sleep starts over. With [WithDataDir] it also
// dials the peers it knew before a restart. Peers of [WithPersistentPeers] are
// kept connected for their own sake.
//
// [Node.WaitReady] waits for stages, such as [StageRouting], and reports what each
// of them lacks. [Node.Status] is a snapshot, [Node.Events] streams the changes,
// and [Node.Diagnose] reports what is wrong and what to do about it.
//
// # Tickets
//
// [Node.Ticket] makes one word of what it takes to join: the name of the network, and
// the node's ID and addresses, also those at relays. [WithTicket] joins by it. It fits
// into a message or a QR code. [TicketWithKey] adds the key of a private network.
//
// # Access
//
// [WithPrivateNetwork] keeps out everybody without its key, which
// [LoadOrCreateSwarmKey] keeps in a file. [WithAllowedPeers] restricts the node to
// the peers it names; [Node.BanPeer] and [Node.BanSubnet] shut out a peer or a
// subnet at run time, for a while or for good. [WithLimits] bounds what others
// may use of the machine.
//
// # Other implementations
//
// [WithIPFS] joins the public IPFS network. On a network of your own,
// WithNetwork("ipfs") speaks the DHT protocol that kubo and js-libp2p peers
// expect, and WithMDNSService("_p2p._udp") finds them on the LAN.
//
// # Escape hatches
//
// [Node.Host], [Node.DHT] and [Node.PubSub] return the underlying parts;
// [WithLibp2pOptions], [WithDHTOptions] and [WithPubSubOptions] configure what
// has no option here.
package p2pnode
