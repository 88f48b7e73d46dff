package p2pnode

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
)

// Finding peers and staying connected.

// WithBootstrapPeers adds peers through which the node enters its network and
// returns to it. While fewer peers are connected than [WithMinPeers] asks for,
// or the DHT's routing table is empty, the node dials all that are missing in
// rounds: at once, then every 400 to 800 milliseconds for the first minute,
// then after delays that grow from 1 to 30 seconds, forever. A change of the
// machine's addresses or a wake from sleep starts over.
//
// With enough peers, it dials a missing bootstrap peer every 1 to 10 minutes,
// or every 30 seconds with fewer than 4 peers and no bootstrap peer among them,
// and one that it has just lost as quickly as above for a minute, unless the
// peer keeps hanging up. With [WithMinPeers] of 0 it does neither. The node's
// own ID is left out, so that one list serves all nodes. [ParsePeers] reads the
// text form; [Node.AddBootstrapPeers] and [Node.RemoveBootstrapPeers] change
// the list at run time.
func WithBootstrapPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithBootstrapPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.bootstrap })
}

// WithBootstrapAddrs is [WithBootstrapPeers] for multiaddrs, each ending in the
// peer's ID: /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…
func WithBootstrapAddrs(addresses ...string) Option {
	addresses = slices.Clone(addresses)
	return option{"WithBootstrapAddrs", func(c *config) error {
		if len(addresses) == 0 {
			return errors.New("no address given")
		}
		peers, err := parsePeers("%w", addresses)
		if err != nil {
			return err
		}
		if err := checkPeers(peers); err != nil {
			return err
		}
		c.bootstrap = addrs.Merge(slices.Concat(c.bootstrap, peers)...)
		return nil
	}}
}

// WithBootstrapDNS adds DNS names of bootstrap peers, without their IDs:
// /dns4/<name>/tcp/4001, with dns, dns4 or dns6, for TCP, QUIC (quic-v1) or
// WebSocket. Use it for a cluster's name with many, changing hosts, such as a
// headless service of Kubernetes. In each round of dialing, the node resolves
// the names, dials up to 32 addresses of each, and adds the peers that answer as
// bootstrap peers, as [Node.AddBootstrapPeers] does; [EventPeerFound] reports
// them with the source "dns". The node knows up to 64 at a time, and removes
// those that are neither found again nor connected.
//
// Nothing checks the IDs, so whoever controls the name, or the network path to
// its addresses, chooses the peers. Use it with [WithPrivateNetwork], so that
// only holders of the key can answer, or with [WithAllowedPeers], which leaves
// out all other peers. If you know the IDs, use [WithBootstrapAddrs], which also
// takes names.
func WithBootstrapDNS(names ...string) Option {
	names = slices.Clone(names)
	return option{"WithBootstrapDNS", func(c *config) error {
		list, err := parseAddrs(names, "name one like /dns4/<name>/tcp/4001", checkNameAddr)
		if err != nil {
			return err
		}
		for _, a := range list {
			c.bootstrapDNS = addrs.Add(c.bootstrapDNS, a)
		}
		return nil
	}}
}

// WithPersistentPeers adds peers that the node keeps connected for their own
// sake, however many others it has. It dials each at start and whenever it is
// lost: for a minute every 400 to 800 milliseconds, then with jittered delays
// that grow from 5 seconds to 10 minutes, forever. It never trims their
// connections. A connection that closes within a minute counts as a failed
// dial, except for the first three in a row. A change of the machine's
// addresses, a wake from sleep and the end of a ban start over.
//
// [Node.AddPersistentPeers] and [Node.RemovePersistentPeers] change the list at
// run time, and [Status] reports on it. The node's own ID is left out.
func WithPersistentPeers(peers ...peer.AddrInfo) Option {
	return addPeers("WithPersistentPeers", peers, func(c *config) *[]peer.AddrInfo { return &c.persistent })
}

// addPeers returns an option that adds peers to a list of the config.
func addPeers(name string, peers []peer.AddrInfo, list func(*config) *[]peer.AddrInfo) Option {
	peers = addrs.Merge(peers...)
	return option{name, func(c *config) error {
		if err := checkPeers(peers); err != nil {
			return err
		}
		*list(c) = addrs.Merge(slices.Concat(*list(c), peers)...)
		return nil
	}}
}

// WithKeepAlive pings each connected peer at an interval of at least a second,
// and closes the connections of peers that do not answer within 5 seconds and
// some round trips, or within up to three times that while this machine is busy
// or, over QUIC, the peer's is. [Peer].LastSeen includes the last answer. By
// default the node pings peers only after it has woken from sleep or its
// addresses have changed.
//
// Use it to notice dead peers sooner. Without it, TCP notices a crashed process
// immediately, because the peer's system closes the connection, but QUIC only
// after 15 to 45 seconds. Neither notices a machine that loses power or its
// network any sooner.
func WithKeepAlive(interval time.Duration) Option {
	return option{"WithKeepAlive", func(c *config) error {
		if interval < time.Second {
			return fmt.Errorf("%v: the interval must be at least a second", interval)
		}
		c.keepAlive = interval
		return nil
	}}
}

// WithBootstrapPause sets the longest pause between rounds in which a node that lacks
// peers dials its bootstrap and saved peers, overriding the default of 30 seconds: from
// 1 second to a day. The pauses grow to it from a second, once the node has been without
// them for a minute. A change of the network, or of the clock, starts a round at once.
// A long one saves a battery; what it costs is time until a peer that was away for
// long is found again.
func WithBootstrapPause(longest time.Duration) Option {
	return option{"WithBootstrapPause", func(c *config) error {
		if longest < keeper.RoundMin || longest > 24*time.Hour {
			return fmt.Errorf("%v: the longest pause must be 1 second to 24 hours", longest)
		}
		c.bootstrapPause = longest
		return nil
	}}
}

// WithMinPeers sets the minimum number of connected peers, overriding the default
// of 1 with bootstrap peers, persistent peers or mDNS, and 0 without. The default
// follows changes at run time: it becomes 1 with the first peer of
// [Node.AddBootstrapPeers] or [Node.AddPersistentPeers].
//
// While fewer peers are connected, the node dials its bootstrap and saved peers,
// and [Node.WaitReady] waits. A node with saved peers ([WithDataDir]) looks for
// one peer even with the default of 0. With an explicit 0, it dials bootstrap and
// saved peers only while the DHT's routing table is empty, and without a DHT
// never.
func WithMinPeers(n int) Option {
	return option{"WithMinPeers", func(c *config) error {
		if n < 0 {
			return fmt.Errorf("%d is negative", n)
		}
		c.minPeers = n
		return nil
	}}
}

// WithMDNS announces the node on the LAN by multicast DNS, and dials the peers
// of its network that it discovers there. Off by default, because it reveals the
// node to everybody on the LAN. Of two peers that discover each other, the one
// with the lower ID dials immediately, the other after 1 to 2 seconds; delays
// then grow from 1 to 30 seconds, until the peer has not announced itself for 10
// minutes. The node remembers up to 512 discovered peers and dials 16 at a time.
//
// The service name derives from [WithNetwork]; [WithMDNSService] sets another.
// mDNS announces TCP and QUIC addresses only, so the node must listen on one.
// If mDNS cannot start, [New] fails. Specification:
// github.com/libp2p/specs/blob/master/discovery/mdns.md.
func WithMDNS() Option { return toggle("WithMDNS", func(c *config) { c.mdns = true }) }

// WithMDNSService is [WithMDNS] with the given service name, such as
// "_myapp._udp", overriding the one that derives from [WithNetwork].
// "_p2p._udp" is what other implementations use.
func WithMDNSService(name string) Option {
	return option{"WithMDNSService", func(c *config) error {
		if !mdnsName.MatchString(name) {
			return fmt.Errorf("%q is not a service name: use a form like \"_myapp._udp\", with at most 63 characters before the dot", name)
		}
		c.mdns, c.mdnsService = true, name
		return nil
	}}
}

// Relays and NATs.

// WithoutRelay switches the relay client off: the node neither dials through
// relays nor is reached through them. It conflicts with [WithAutoRelay],
// [WithRelayService], [WithRelayLimits], [WithRelayPeers], [WithRelayAccess],
// [WithHolePunching] and [WithNATTraversal].
func WithoutRelay() Option { return toggle("WithoutRelay", func(c *config) { c.noRelay = true }) }

// WithAutoRelay adds relays at which the node keeps reservations, so that
// others reach it through them, and announces its circuit addresses there. It
// implies that the node cannot be reached otherwise: unless [WithReachability]
// or [WithAutoNAT] is given, its reachability is private, and in
// [DHTModeAutoServer] it is a DHT client. [Node.AddRelays] and [Node.RemoveRelays] change the list at run time.
// The node's own ID is left out. Specification:
// github.com/libp2p/specs/tree/master/relay.
func WithAutoRelay(relays ...peer.AddrInfo) Option {
	return addPeers("WithAutoRelay", relays, func(c *config) *[]peer.AddrInfo { return &c.autoRelays })
}

// WithRelayDiscovery makes the node use relays that nobody has named, while others
// cannot dial it: connected peers that offer to relay, and relays that advertise
// themselves in the DHT, as nodes with [WithRelayService] do. With those of
// [WithAutoRelay], which come first, it keeps reservations at two. It uses none once
// it is known to be public, and when its reachability stays unknown, it takes that
// for private after 3 seconds with peers. Off by default, because strangers then see
// who talks to the node, and when.
//
// Before a relay that was found is announced, and every 10 minutes, the node dials
// itself through it: one that takes reservations and does not relay is replaced.
// Relays are pinged every 4 seconds, so that one that crashes is replaced within 15.
// It conflicts with [WithoutRelay].
func WithRelayDiscovery() Option {
	return toggle("WithRelayDiscovery", func(c *config) { c.findRelays = true })
}

// WithRelayService lets others make reservations at this node and be reached
// through it, immediately and whatever its own reachability. Off by default,
// because it spends the node's bandwidth on others; [WithRelayLimits] bounds
// that, and [WithRelayPeers] and [WithRelayAccess] choose who may. Status has what
// it gives away and refuses.
func WithRelayService() Option {
	return toggle("WithRelayService", func(c *config) { c.relayService = true })
}

// WithRelayLimits is [WithRelayService] with the given limits, overriding
// libp2p's defaults, which [RelayLimits] lists. It sets them.
func WithRelayLimits(l RelayLimits) Option {
	return option{"WithRelayLimits", func(c *config) error {
		if err := l.check(); err != nil {
			return err
		}
		c.relayService, c.relayLimits = true, l
		return nil
	}}
}

// WithRelayPeers is [WithRelayService] for the given peers, overriding the
// default of all: only they may make reservations. It adds peers. Anybody may be
// relayed to them, unless banned or not allowed. With [WithRelayAccess] in
// addition, a peer needs one of the two.
func WithRelayPeers(ids ...peer.ID) Option {
	ids = slices.Clone(ids)
	return option{"WithRelayPeers", func(c *config) error {
		if err := checkIDs(ids); err != nil {
			return err
		}
		c.relayService, c.relayPeers = true, slices.Concat(c.relayPeers, ids)
		return nil
	}}
}

// WithRelayAccess is [WithRelayService] for the peers that may returns true for,
// overriding the default of all. It gets the peer and its address, with each
// request for a reservation and each renewal, about once an hour. It must be safe
// for concurrent use and return soon; if it panics, the request is refused. The
// lists of [WithAllowedPeers], [WithBannedPeers] and [Node.BanPeer] come first.
func WithRelayAccess(may func(id peer.ID, addr ma.Multiaddr) bool) Option {
	return option{"WithRelayAccess", func(c *config) error {
		if may == nil {
			return errors.New("the function is nil; leave the option out to let everybody make reservations")
		}
		c.relayService, c.relayAccess = true, may
		return nil
	}}
}

// WithAutoNAT makes the node ask its peers whether they can dial its addresses, and
// dial theirs when they ask (AutoNAT version 2). Off by default, because it makes the
// node dial addresses that strangers name, and tells its peers all of its own.
//
// An address is taken for reachable, or not, once two more peers say the one than the
// other; a single peer is believed after 10 seconds. That takes seconds for a
// reachable address and up to 20 seconds for others, and is checked every 5 to 10
// minutes. Only peers of the widest reach count: those on the LAN do not while there are
// others. See AddrReachability of [Status], [EventAddrReachabilityChanged] and
// [EventReachabilityChanged]. A node that cannot be reached stops serving the DHT until
// it can ([EventDHTModeChanged]), except in [DHTModeServer]. With [WithReachability] the
// node believes that instead. Specification:
// github.com/libp2p/specs/blob/master/autonat/autonat-v2.md.
func WithAutoNAT() Option { return toggle("WithAutoNAT", func(c *config) { c.autoNAT = true }) }

// WithNATTraversal is what a node behind a NAT needs to be reached, in one word:
// [WithAutoNAT], relays that the node finds by itself next to those of
// [WithAutoRelay], [WithHolePunching] and [WithPortMapping]. Off by default, for the
// reasons of each. It conflicts with [WithoutRelay] and [WithoutListening].
func WithNATTraversal() Option {
	return toggle("WithNATTraversal", func(c *config) {
		c.autoNAT, c.findRelays, c.holePunching, c.portMapping = true, true, true, true
	})
}

// WithHolePunching lets two nodes behind NATs that are connected through a
// relay try to connect directly (DCUtR): three times at once, and again after
// pauses of 15 seconds, which grow to 10 minutes, while they remain relayed. Off by
// default, because it makes the node dial addresses that strangers name. Of several peers it dials one over TCP
// instead of QUIC, to learn its address there. Specification:
// github.com/libp2p/specs/blob/master/relay/DCUtR.md.
func WithHolePunching() Option {
	return toggle("WithHolePunching", func(c *config) { c.holePunching = true })
}
