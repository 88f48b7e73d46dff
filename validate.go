package p2pnode

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Checks of single values that options have in common.

var (
	networkName = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
	mdnsName    = regexp.MustCompile(`^_[A-Za-z0-9_-]{1,62}\._(udp|tcp)$`)
)

// checkListenAddr checks an address of WithListenAddrs.
func checkListenAddr(a ma.Multiaddr) error {
	switch kind := addrs.KindOf(a); {
	case kind == addrs.Circuit:
		return fmt.Errorf("%s goes through a relay; WithAutoRelay makes reservations", a)
	case addrs.HasPeerID(a):
		return fmt.Errorf("%s names a peer; leave out the /p2p part, or use WithBootstrapAddrs if this is a peer to connect to", a)
	case kind == addrs.Unknown:
		return fmt.Errorf("%s has no transport that this library knows; examples are /ip4/0.0.0.0/tcp/4001 and /ip4/0.0.0.0/udp/4001/quic-v1", a)
	}
	return nil
}

// checkAnnounceAddr checks an address of WithAnnounceAddrs.
func checkAnnounceAddr(a ma.Multiaddr) error {
	if addrs.HasPeerID(a) {
		return fmt.Errorf("%s names a peer; leave out the /p2p part, it is added", a)
	}
	return nil
}

// checkNoneNil checks options of a library underneath: a nil one would panic
// there, when half of the node is up.
func checkNoneNil[F ~func(A) error, A any](opts []F) error {
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("option %d of %d is nil; leave it out", i+1, len(opts))
		}
	}
	return nil
}

// What follows is between options, each of which has checked its own value:
// first the options that exclude each other by being given at all, then those
// whose values do not fit together. The findings come in the order of the
// tables. A text names the options involved, but for the one that the finding
// is filed under, which stands in front of it.

// conflict is a pair of options of which one makes the other pointless or
// impossible, whatever their values.
type conflict struct {
	option, with string // the finding is filed under option
	text         string // what is wrong, and the way out
}

// conflicts are the pairs that New refuses.
var conflicts = slices.Concat(
	[]conflict{
		{"WithIPFS", "WithNetwork", `the public network has its own protocol names; drop WithIPFS or WithNetwork (WithNetwork("ipfs") meets kubo and js-libp2p peers on a network of your own)`},
		{"WithIPFS", "WithPrivateNetwork", "no peer of the public network has your key of WithPrivateNetwork; drop one of the two"},
		{"WithoutDHT", "WithIPFS", "the public network is its DHT; drop WithIPFS or WithoutDHT"},
		{"WithoutListening", "WithListenAddrs", "WithListenAddrs names addresses to listen on; drop one of the two"},
	},
	pointless("WithoutListening", "the node listens on no address", "WithPartialListen"),
	pointless("WithoutListening", "there is no address to announce", "WithMDNS", "WithMDNSService"),
	pointless("WithoutListening", "there is no port to map", "WithPortMapping"),
	pointless("WithoutRelay", "hole punching is arranged over a relayed connection", "WithHolePunching"),
	pointless("WithoutRelay", "a reservation needs the relay client", "WithAutoRelay"),
	pointless("WithoutRelay", "relaying is off altogether", "WithRelayService", "WithRelayLimits"),
	pointless("WithoutDHT", "it configures the DHT, which is off", "WithDHTMode", "WithValidator", "WithDatastore", "WithDHTOptions"),
	pointless("WithoutPubSub", "it configures pubsub, which is off", "WithMaxMessageSize", "WithPubSubOptions"),
)

// pointless are the conflicts of an option that switches a part off with those
// that need the part.
func pointless(off, why string, options ...string) []conflict {
	var list []conflict
	for _, o := range options {
		list = append(list, conflict{o, off, why + " with " + off + "; drop one of the two"})
	}
	return list
}

// relation is a condition on the values of several options.
type relation struct {
	with []string // the options involved; the text names all but the first, under which it is filed
	text string   // what is wrong, and the way out: a format for what find reports
	find func(c *config, found func(args ...any))
}

// relations are the conditions that New insists on.
var relations = slices.Concat(
	[]relation{
		{
			with: []string{"WithValidator", "WithNetwork", "WithIPFS"},
			text: "a DHT with the protocol prefix /ipfs, as WithIPFS has it, accepts /pk and /ipns records only; drop WithValidator, or name a network of your own with WithNetwork",
			find: func(c *config, found func(...any)) {
				if c.usesAminoDHT() && len(c.validators) > 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithPrivateNetwork", "WithTransports"},
			text: "%s cannot carry a pre-shared key; leave it out of WithTransports, TCP and WebSocket can",
			find: func(c *config, found func(...any)) {
				for _, t := range c.transports {
					if c.psk != nil && !t.canPrivate() {
						found(t)
					}
				}
			},
		},
		{
			with: []string{"WithPrivateNetwork", "WithListenAddrs"},
			text: "%s cannot carry a pre-shared key; replace %s in WithListenAddrs by /ip4/0.0.0.0/tcp/<port>, with /ws behind it for WebSocket",
			find: func(c *config, found func(...any)) {
				for _, a := range c.listen {
					if t := Transport(addrs.KindOf(a)); c.psk != nil && !t.canPrivate() {
						found(t, a)
					}
				}
			},
		},
		{
			with: []string{"WithListenAddrs", "WithTransports"},
			text: "%s needs the transport %s, which is not enabled; add it with WithTransports(%s)",
			find: func(c *config, found func(...any)) {
				for _, a := range c.listen {
					t := Transport(addrs.KindOf(a))
					if c.psk != nil && !t.canPrivate() {
						continue // reported by the row above
					}
					if !slices.Contains(c.enabledTransports(), t) {
						found(a, t, t.constant())
					}
				}
			},
		},
		{
			with: []string{"WithSecurity", "WithTransports"},
			text: "it is for TCP and WebSocket, and of %v of WithTransports each brings its own security; add one of the two transports, or drop WithSecurity",
			find: func(c *config, found func(...any)) {
				if c.has("WithSecurity") && !slices.ContainsFunc(c.enabledTransports(), Transport.canPrivate) {
					found(c.enabledTransports())
				}
			},
		},
		{
			with: []string{"WithPartialListen", "WithListenAddrs"},
			text: "it is about the addresses of WithListenAddrs, and without that option there are none; name some, or drop WithPartialListen",
			find: func(c *config, found func(...any)) {
				if c.partialListen && !c.has("WithListenAddrs") && !c.noListen {
					found()
				}
			},
		},
		{
			with: []string{"WithAnnounceAddrs", "WithoutListening", "WithLibp2pOptions"},
			text: "with WithoutListening nobody could dial what is announced; drop one of the two (a transport of WithLibp2pOptions that listens by itself is fine)",
			find: func(c *config, found func(...any)) {
				if c.announce != nil && c.noListen && len(c.libp2pOptions) == 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithReachability", "WithoutListening", "WithLibp2pOptions"},
			text: "a node that WithoutListening keeps from listening is not public; say network.ReachabilityPrivate, or drop one of the two (a transport of WithLibp2pOptions that listens by itself is fine)",
			find: func(c *config, found func(...any)) {
				if c.reachability == network.ReachabilityPublic && c.noListen && len(c.libp2pOptions) == 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithMDNS", "WithListenAddrs", "WithTransports"},
			text: "it announces TCP and QUIC addresses only, and the node listens on none; add one to WithListenAddrs, such as /ip4/0.0.0.0/tcp/0, or the transport to WithTransports",
			find: func(c *config, found func(...any)) {
				list, _ := c.listenAddrs()
				if c.mdns && !c.noListen && !slices.ContainsFunc(list, announcedByMDNS) {
					found()
				}
			},
		},
		{
			with: []string{"WithAutoRelay", "WithReachability"},
			text: "a node that says it is reachable, with WithReachability(network.ReachabilityPublic), makes no reservations; drop one of the two",
			find: func(c *config, found func(...any)) {
				if len(c.autoRelays) > 0 && c.reachability == network.ReachabilityPublic {
					found()
				}
			},
		},
		{
			with: []string{"WithLimits", "WithConnLimits"},
			text: "%d connections in all are less than twice the %d at which WithConnLimits starts to trim, so new ones would be refused instead of old ones trimmed; raise the limit, or lower the other one",
			find: func(c *config, found func(...any)) {
				if c.limits.Conns > 0 && c.limits.Conns < 2*c.connHigh {
					found(c.limits.Conns, c.connHigh)
				}
			},
		},
		{
			with: []string{"WithMinPeers", "WithConnLimits"},
			text: "%d peers are more than the %d connections at which WithConnLimits starts to trim; raise the limit or lower the minimum",
			find: func(c *config, found func(...any)) {
				if c.minPeers > c.connHigh {
					found(c.minPeers, c.connHigh)
				}
			},
		},
		{
			with: []string{"WithBannedPeers", "WithAllowedPeers"},
			text: "%s is among the peers of WithAllowedPeers; drop it from one of the two",
			find: func(c *config, found func(...any)) {
				for _, id := range c.allowed {
					if slices.Contains(c.banned, id) {
						found(id)
					}
				}
			},
		},
	},
	peersToMeet("WithBootstrapPeers", func(c *config) []peer.AddrInfo {
		if !c.has("WithBootstrapPeers") {
			return nil
		}
		return c.bootstrap
	}),
	peersToMeet("WithBootstrapAddrs", func(c *config) []peer.AddrInfo {
		if c.has("WithBootstrapPeers") {
			return nil // reported under that one
		}
		return c.bootstrap
	}),
	peersToMeet("WithIPFS", func(c *config) []peer.AddrInfo {
		if len(c.bootstrap) > 0 {
			return nil
		}
		return c.bootstrapPeers()
	}),
	peersToMeet("WithPersistentPeers", func(c *config) []peer.AddrInfo { return c.persistent }),
	peersToMeet("WithAutoRelay", func(c *config) []peer.AddrInfo { return c.autoRelays }),
	replaced("WithLimits", "resource manager", func(l *libp2p.Config) bool { return l.ResourceManager != nil }),
	replaced("WithConnLimits", "connection manager", func(l *libp2p.Config) bool { return l.ConnManager != nil }),
	replaced("WithSecurity", "security protocols", func(l *libp2p.Config) bool { return len(l.SecurityTransports) > 0 || l.Insecure }),
	replaced("WithUserAgent", "user agent", func(l *libp2p.Config) bool { return l.UserAgent != "" }),
	replaced("WithReachability", "reachability", func(l *libp2p.Config) bool { return l.ForceReachability != nil }),
	replaced("WithPortMapping", "NAT manager", func(l *libp2p.Config) bool { return l.NATManager != nil }),
	replaced("WithMetrics", "bandwidth reporter", func(l *libp2p.Config) bool { return l.Reporter != nil }),
)

// replaced is the relation of an option that configures a part which an option
// of libp2p's takes the place of.
func replaced(option, part string, is func(*libp2p.Config) bool) []relation {
	return []relation{{
		with: []string{option, "WithLibp2pOptions"},
		text: "WithLibp2pOptions brings a " + part + " of its own, which this option does not reach; drop one of the two",
		find: func(c *config, found func(...any)) {
			if !c.has(option) || len(c.libp2pOptions) == 0 {
				return
			}
			if theirs, err := nethost.Probe(c.libp2pOptions); err == nil && is(theirs) {
				found()
			}
		},
	}}
}

// peersToMeet are the relations of an option that names peers to dial: each has
// to be let in, and needs an address that the node can dial.
func peersToMeet(option string, peers func(*config) []peer.AddrInfo) []relation {
	return []relation{
		{
			with: []string{option, "WithBannedPeers"},
			text: "%s is banned by WithBannedPeers; drop it from one of the two",
			find: func(c *config, found func(...any)) {
				for _, p := range peers(c) {
					if slices.Contains(c.banned, p.ID) {
						found(p.ID)
					}
				}
			},
		},
		{
			with: []string{option, "WithAllowedPeers"},
			text: "%s is not among the peers of WithAllowedPeers; add it there",
			find: func(c *config, found func(...any)) {
				for _, p := range peers(c) {
					if len(c.allowed) > 0 && !slices.Contains(c.allowed, p.ID) && !slices.Contains(c.banned, p.ID) {
						found(p.ID)
					}
				}
			},
		},
		{
			with: []string{option, "WithPrivateNetwork"},
			text: "%s has no address that the transports %v can dial, only %v; name a TCP or WebSocket address, the others cannot carry the key of WithPrivateNetwork",
			find: func(c *config, found func(...any)) {
				for _, p := range peers(c) {
					if c.psk != nil && !c.canDial(p) && !c.needsRelay(p) {
						found(p.ID, c.enabledTransports(), p.Addrs)
					}
				}
			},
		},
		{
			with: []string{option, "WithTransports"},
			text: "%s has no address that the transports %v can dial, only %v; name another address, or its transport in WithTransports",
			find: func(c *config, found func(...any)) {
				for _, p := range peers(c) {
					if c.psk == nil && !c.canDial(p) && !c.needsRelay(p) {
						found(p.ID, c.enabledTransports(), p.Addrs)
					}
				}
			},
		},
		{
			with: []string{option, "WithoutRelay"},
			text: "%s can be dialed only through a relay, at %v, which WithoutRelay rules out; name another address, or drop WithoutRelay",
			find: func(c *config, found func(...any)) {
				for _, p := range peers(c) {
					if c.needsRelay(p) {
						found(p.ID, p.Addrs)
					}
				}
			},
		},
	}
}

// validate checks the relations between options.
func (c *config) validate() []error {
	var errs []error
	for _, row := range conflicts {
		if c.has(row.option) && c.has(row.with) {
			errs = append(errs, &OptionError{Option: row.option, Err: fmt.Errorf("%s", row.text)})
		}
	}
	for _, row := range relations {
		row.find(c, func(args ...any) {
			errs = append(errs, optionErrorf(row.with[0], row.text, args...))
		})
	}
	return errs
}

// canDial reports whether one of a peer's addresses is for a transport that is
// enabled.
func (c *config) canDial(p peer.AddrInfo) bool {
	return slices.ContainsFunc(p.Addrs, func(a ma.Multiaddr) bool {
		switch kind := addrs.KindOf(a); kind {
		case addrs.Unknown: // a name that stands for addresses, or somebody's own transport
			return true
		case addrs.Circuit:
			return !c.noRelay
		default:
			return slices.Contains(c.enabledTransports(), Transport(kind))
		}
	})
}

// needsRelay reports whether a peer cannot be dialed for want of the relay
// client.
func (c *config) needsRelay(p peer.AddrInfo) bool {
	return !c.canDial(p) && slices.ContainsFunc(p.Addrs, addrs.IsCircuit)
}

// announcedByMDNS reports whether mDNS tells others of an address: it leaves
// out those that are for browsers.
func announcedByMDNS(a ma.Multiaddr) bool {
	k := addrs.KindOf(a)
	return k == addrs.TCP || k == addrs.QUIC
}
