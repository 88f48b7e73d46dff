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

// mdnsName is what WithMDNSService accepts.
var mdnsName = regexp.MustCompile(`^_[A-Za-z0-9_-]{1,62}\._(udp|tcp)$`)

// checkNoneNil checks options of an underlying library, which would panic on a
// nil one when half of the node is up.
func checkNoneNil[F ~func(A) error, A any](opts []F) error {
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("option %d of %d is nil; leave it out", i+1, len(opts))
		}
	}
	return nil
}

// Relations between options, each of which has checked its own value: first the
// options that exclude each other (conflicts.go), then those whose values do not fit together.
// The findings come in the order of the tables. A text names the options
// involved, except the one that the finding is filed under, which precedes it.

// relation is a condition on the values of several options.
type relation struct {
	with []string // the options involved; the finding is filed under the first, and the text names the others
	text string   // what is wrong, and the way out: a format for what find reports
	find func(c *config, found func(args ...any))
}

// relations are the conditions that New insists on.
var relations = slices.Concat(
	[]relation{
		{
			with: []string{"WithAcceleratedDHT", "WithIPFS"},
			text: "it crawls the public network only, which WithIPFS joins; add WithIPFS, or drop WithAcceleratedDHT",
			find: func(c *config, found func(...any)) {
				if c.accelerated && !c.ipfs && !c.noDHT {
					found()
				}
			},
		},
		{
			with: []string{"WithTicket"},
			text: "one ticket is for %s, another for %s; a node joins one network: drop one of the two",
			find: func(c *config, found func(...any)) {
				if t := stranger(c.tickets); t != nil {
					found(c.tickets[0].of(), t.of())
				}
			},
		},
		{
			with: []string{"WithTicket", "WithNetwork"},
			text: "the ticket is for %s, and WithNetwork names %q; drop one of the two",
			find: func(c *config, found func(...any)) {
				for _, t := range c.tickets {
					if !t.public && c.has("WithNetwork") && !c.ipfs && t.network != c.network {
						found(t.of(), c.network)
					}
				}
			},
		},
		{
			with: []string{"WithTicket", "WithIPFS"},
			text: "the ticket is for %s, and WithIPFS joins the public network; drop one of the two",
			find: func(c *config, found func(...any)) {
				for _, t := range c.tickets {
					if !t.public && c.ipfs {
						found(t.of())
					}
				}
			},
		},
		{
			with: []string{"WithTicket", "WithIPFS"},
			text: "the ticket is for the public network, which a node joins only if it is told to; add WithIPFS, or drop the ticket",
			find: func(c *config, found func(...any)) {
				if !c.ipfs && stranger(c.tickets) == nil && slices.ContainsFunc(c.tickets, func(t *ticketContent) bool { return t.public }) {
					found()
				}
			},
		},
		{
			with: []string{"WithTicket", "WithPrivateNetwork"},
			text: "the ticket is for %s and does not have the key; add WithPrivateNetwork, or ask for a ticket with the key",
			find: func(c *config, found func(...any)) {
				for _, t := range c.tickets {
					if c.psk == nil && t.mark != "" && !c.has("WithPrivateNetwork") {
						found(t.of())
						return
					}
				}
			},
		},
		{
			with: []string{"WithTicket", "WithPrivateNetwork"},
			text: "the ticket is for %s, and the key of WithPrivateNetwork is another, %s; drop one of the two",
			find: func(c *config, found func(...any)) {
				for _, t := range c.tickets {
					if c.psk != nil && c.has("WithPrivateNetwork") && t.mark != fingerprint(c.psk) && !t.public {
						found(t.of(), fingerprint(c.psk))
					}
				}
			},
		},
		{
			with: []string{"WithValidator", "WithNetwork", "WithIPFS"},
			text: "a DHT with the protocol prefix /ipfs, like that of WithIPFS, accepts only /pk and /ipns records; drop WithValidator, or name a network of your own with WithNetwork",
			find: func(c *config, found func(...any)) {
				if c.usesAminoDHT() && len(c.validators) > 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithSignedRecords", "WithNetwork", "WithIPFS"},
			text: "a DHT with the protocol prefix /ipfs, like that of WithIPFS, accepts only /pk and /ipns records; drop WithSignedRecords, or name a network of your own with WithNetwork",
			find: func(c *config, found func(...any)) {
				if c.usesAminoDHT() && len(c.signed) > 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithReprovideInterval", "WithRecordLifetime"},
			text: "%v between announcements, and up to an eighth more, is longer than the %v of WithRecordLifetime; lower the one or raise the other",
			find: func(c *config, found func(...any)) {
				if c.reprovideInterval+c.reprovideInterval/8 > c.recordLifetime {
					found(c.reprovideInterval, c.recordLifetime)
				}
			},
		},
		{
			with: []string{"WithRendezvous", "WithConnLimits"},
			text: "%d peers are to be kept connected by rendezvous, and connections are trimmed to %d; lower the one, or raise the other with WithConnLimits",
			find: func(c *config, found func(...any)) {
				sum := 0
				for _, r := range c.rendezvous {
					sum += r.Peers
				}
				if sum > c.connLow {
					found(sum, c.connLow)
				}
			},
		},
		{
			with: []string{"WithLimits", "WithMaxMessageSize"},
			text: "PubSubQueue is %d bytes, and one message may take %d; raise the one with WithLimits or lower the other with WithMaxMessageSize",
			find: func(c *config, found func(...any)) {
				if q := c.limits.PubSubQueue; q > 0 && q < int64(c.maxMessageSize) {
					found(q, c.maxMessageSize)
				}
			},
		},
		{
			with: []string{"WithLimits"},
			text: "PubSub is %d bytes in all, and PubSubQueue is %d for one queue; raise the former or lower the latter",
			find: func(c *config, found func(...any)) {
				if queue, total := c.pubsubBytes(); total < queue {
					found(total, queue)
				}
			},
		},
		{
			with: []string{"WithPrivateNetwork", "WithTransports"},
			text: "%s cannot carry a pre-shared key; leave it out of WithTransports: only TCP and WebSocket can",
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
			text: "%s cannot carry a pre-shared key; replace %s in WithListenAddrs with /ip4/0.0.0.0/tcp/<port>, followed by /ws for WebSocket",
			find: func(c *config, found func(...any)) {
				for _, a := range c.listen {
					if t := Transport(addrs.KindOf(a)); c.psk != nil && !t.canPrivate() {
						found(t, a)
					}
				}
			},
		},
		{
			with: []string{"WithPrivateNetwork", "WithListenAddrs"},
			text: "%s and %s of WithListenAddrs have one port, which TCP and WebSocket cannot share with a pre-shared key; give them two",
			find: func(c *config, found func(...any)) {
				if one, other := nethost.SharedTCP(c.listen); c.psk != nil && one != nil {
					found(one, other)
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
					if !slices.Contains(c.enabledTransports(), t) && !c.bringsTransports() {
						found(a, t, t.constant())
					}
				}
			},
		},
		{
			with: []string{"WithSecurity", "WithTransports"},
			text: "it applies to TCP and WebSocket only, and the transports %v of WithTransports bring their own security; add one of the two, or drop WithSecurity",
			find: func(c *config, found func(...any)) {
				if c.has("WithSecurity") && !slices.ContainsFunc(c.enabledTransports(), Transport.canPrivate) {
					found(c.enabledTransports())
				}
			},
		},
		{
			with: []string{"WithListenAddrs", "WithTLSFiles", "WithTLSConfig"},
			text: "%s needs a certificate; name one with WithTLSFiles or WithTLSConfig, or listen without /tls behind a proxy that has one",
			find: func(c *config, found func(...any)) {
				for _, a := range c.listen {
					if addrs.IsWSS(a) && !c.hasCertificate() && !c.bringsTransports() {
						found(a)
					}
				}
			},
		},
		{
			with: []string{"WithBrowserTransports", "WithListenAddrs"},
			text: "WithListenAddrs has no address for QUIC, whose port WebTransport and WebRTC would share; add one, such as /ip4/0.0.0.0/udp/4001/quic-v1",
			find: func(c *config, found func(...any)) {
				list, _ := c.listenAddrs()
				if c.browsers && c.psk == nil && c.listen != nil && !slices.ContainsFunc(list, func(a ma.Multiaddr) bool {
					return slices.Contains(browserTransports, Transport(addrs.KindOf(a)))
				}) {
					found()
				}
			},
		},
		{
			with: []string{"WithExtraAnnounceAddrs", "WithoutListening", "WithLibp2pOptions"},
			text: "with WithoutListening nobody can dial the announced addresses; drop one of the two (a transport of WithLibp2pOptions that listens by itself is fine)",
			find: func(c *config, found func(...any)) {
				if c.announceExtra != nil && c.noListen && len(c.libp2pOptions) == 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithTLSFiles", "WithTLSConfig"},
			text: "WithTLSConfig has a certificate too; drop it from one of the two",
			find: func(c *config, found func(...any)) {
				if c.tlsCert != "" && givesCertificate(c.tls) {
					found()
				}
			},
		},
		{
			with: []string{"WithTLSFiles", "WithListenAddrs"},
			text: "no address of WithListenAddrs is for WebSocket with TLS; add one, such as /ip4/0.0.0.0/tcp/443/tls/ws",
			find: func(c *config, found func(...any)) {
				if c.tlsCert != "" && c.listen != nil && !slices.ContainsFunc(c.listen, addrs.IsWSS) {
					found()
				}
			},
		},
		{
			with: []string{"WithTLSFiles", "WithTransports"},
			text: webSocketOff,
			find: func(c *config, found func(...any)) {
				if c.tlsCert != "" && !slices.Contains(c.enabledTransports(), TransportWebSocket) {
					found()
				}
			},
		},
		{
			with: []string{"WithTLSConfig", "WithTransports"},
			text: webSocketOff,
			find: func(c *config, found func(...any)) {
				if c.tls != nil && !slices.Contains(c.enabledTransports(), TransportWebSocket) {
					found()
				}
			},
		},
		{
			with: []string{"WithPartialListen", "WithListenAddrs"},
			text: "it applies to the addresses of WithListenAddrs, which is not given; add it, or drop WithPartialListen",
			find: func(c *config, found func(...any)) {
				if c.partialListen && !c.has("WithListenAddrs") && !c.noListen {
					found()
				}
			},
		},
		{
			with: []string{"WithAnnounceAddrs", "WithoutListening", "WithLibp2pOptions"},
			text: "with WithoutListening nobody can dial the announced addresses; drop one of the two (a transport of WithLibp2pOptions that listens by itself is fine)",
			find: func(c *config, found func(...any)) {
				if c.announce != nil && c.noListen && len(c.libp2pOptions) == 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithReachability", "WithoutListening", "WithLibp2pOptions"},
			text: "with WithoutListening the node is not public; set network.ReachabilityPrivate, or drop one of the two (a transport of WithLibp2pOptions that listens by itself is fine)",
			find: func(c *config, found func(...any)) {
				if c.reachability == network.ReachabilityPublic && c.noListen && len(c.libp2pOptions) == 0 {
					found()
				}
			},
		},
		{
			with: []string{"WithMDNS", "WithListenAddrs", "WithTransports"},
			text: "mDNS announces TCP and QUIC addresses only, and the node listens on none; add one to WithListenAddrs, such as /ip4/0.0.0.0/tcp/0, or the transport to WithTransports",
			find: func(c *config, found func(...any)) {
				list, _ := c.listenAddrs()
				if c.mdns && !c.noListen && !slices.ContainsFunc(list, announcedByMDNS) {
					found()
				}
			},
		},
		{
			with: []string{"WithRelayPeers", "WithBannedPeers"},
			text: "%s is banned by WithBannedPeers; drop it from one of the two",
			find: func(c *config, found func(...any)) {
				for _, id := range c.relayPeers {
					if slices.Contains(c.banned, id) {
						found(id)
					}
				}
			},
		},
		{
			with: []string{"WithRelayPeers", "WithAllowedPeers"},
			text: "%s is not among the peers of WithAllowedPeers; add it there",
			find: func(c *config, found func(...any)) {
				for _, id := range c.relayPeers {
					if len(c.allowed) > 0 && !slices.Contains(c.allowed, id) && !slices.Contains(c.banned, id) {
						found(id)
					}
				}
			},
		},
		{
			with: []string{"WithAutoRelay", "WithReachability"},
			text: "a node with WithReachability(network.ReachabilityPublic) makes no reservations; drop one of the two",
			find: func(c *config, found func(...any)) {
				if len(c.autoRelays) > 0 && c.reachability == network.ReachabilityPublic {
					found()
				}
			},
		},
		{
			with: []string{"WithLimits", "WithConnLimits"},
			text: "Conns of %d is less than twice the %d connections at which WithConnLimits starts trimming, so new ones would be refused instead of old ones trimmed; raise Conns or lower WithConnLimits",
			find: func(c *config, found func(...any)) {
				if c.limits.Conns > 0 && c.limits.Conns < 2*c.connHigh {
					found(c.limits.Conns, c.connHigh)
				}
			},
		},
		{
			with: []string{"WithMinPeers", "WithConnLimits"},
			text: "%d exceeds the %d connections at which WithConnLimits starts trimming; raise the limit or lower the minimum",
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
	peersToMeet("WithTicket", func(c *config) []peer.AddrInfo { return c.ticketPeers }),
	peersToMeet("WithIPFS", func(c *config) []peer.AddrInfo {
		if len(c.bootstrap)+len(c.ticketPeers) > 0 {
			return nil
		}
		return c.bootstrapPeers()
	}),
	peersToMeet("WithPersistentPeers", func(c *config) []peer.AddrInfo { return c.persistent }),
	peersToMeet("WithAutoRelay", func(c *config) []peer.AddrInfo { return c.autoRelays }),
	[]relation{
		{
			with: []string{"WithBootstrapDNS", "WithPrivateNetwork"},
			text: "%s needs the transport %s, which cannot carry the key of WithPrivateNetwork; name a TCP or WebSocket port",
			find: func(c *config, found func(...any)) {
				for _, a := range c.bootstrapDNS {
					if t := Transport(addrs.KindOf(a)); c.psk != nil && !t.canPrivate() {
						found(a, t)
					}
				}
			},
		},
		{
			with: []string{"WithBootstrapDNS", "WithTransports"},
			text: "%s needs the transport %s, which is not enabled; add it with WithTransports(%s)",
			find: func(c *config, found func(...any)) {
				for _, a := range c.bootstrapDNS {
					if t := Transport(addrs.KindOf(a)); !c.dials(a) && (c.psk == nil || t.canPrivate()) {
						found(a, t, t.constant())
					}
				}
			},
		},
	},
	replaced("WithLimits", "resource manager", func(l *libp2p.Config) bool { return l.ResourceManager != nil }),
	replaced("WithConnLimits", "connection manager", func(l *libp2p.Config) bool { return l.ConnManager != nil }),
	replaced("WithSecurity", "security protocols", func(l *libp2p.Config) bool { return len(l.SecurityTransports) > 0 || l.Insecure }),
	replaced("WithUserAgent", "user agent", func(l *libp2p.Config) bool { return l.UserAgent != "" }),
	replaced("WithReachability", "reachability", func(l *libp2p.Config) bool { return l.ForceReachability != nil }),
	replaced("WithPortMapping", "NAT manager", func(l *libp2p.Config) bool { return l.NATManager != nil }),
	replaced("WithMetrics", "bandwidth reporter", func(l *libp2p.Config) bool { return l.Reporter != nil }),
)

// replaced returns the relation of an option that configures a part which a
// libp2p option may replace.
func replaced(option, part string, is func(*libp2p.Config) bool) []relation {
	return []relation{{
		with: []string{option, "WithLibp2pOptions"},
		text: "WithLibp2pOptions replaces the " + part + ", which this option configures; drop one of the two",
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

// webSocketOff is what is wrong with a certificate for nothing.
const webSocketOff = "it is for WebSocket, which WithTransports leaves out; add TransportWebSocket, or drop one of the two"

// peersToMeet returns the relations of an option that names peers to dial: each
// must be allowed, and needs an address that the node can dial.
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
			text: noneCarriesKey,
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
			text: noneDials,
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
			text: onlyByRelay,
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
	var row *relation
	report := func(args ...any) {
		errs = append(errs, optionErrorf(c.keyOption(row.with[0]), c.keyOption(row.text), args...))
	}
	for i := range relations {
		row = &relations[i]
		row.find(c, report)
	}
	return errs
}

// announcedByMDNS reports whether mDNS announces an address: it leaves out those
// for browsers.
func announcedByMDNS(a ma.Multiaddr) bool {
	k := addrs.KindOf(a)
	return k == addrs.TCP || k == addrs.QUIC
}
