package p2pnode

import "slices"

// conflict is a pair of options that cannot be combined, whatever their values.
type conflict struct {
	option, with string // the finding is filed under option
	text         string // what is wrong, and the way out
}

// conflicts are the pairs that New refuses.
var conflicts = slices.Concat(
	[]conflict{
		{"WithIPFS", "WithNetwork", `the public network has its own protocol names; drop WithIPFS or WithNetwork (WithNetwork("ipfs") lets kubo and js-libp2p peers join a network of your own)`},
		{"WithIPFS", "WithPrivateNetwork", "no peer of the public network has your key of WithPrivateNetwork; drop one of the two"},
		{"WithIPFS", "WithRecordLifetime", "all nodes of the public network keep records for 48 hours; drop WithIPFS or WithRecordLifetime"},
		{"WithBrowserTransports", "WithPrivateNetwork", "WebTransport and WebRTC cannot carry the key of WithPrivateNetwork; drop one of the two, and use WebSocket for browsers"},
		{"WithNoAnnounce", "WithAnnounceAddrs", "WithAnnounceAddrs replaces the addresses that this option leaves out; drop one of the two"},
		{"WithExtraAnnounceAddrs", "WithAnnounceAddrs", "WithAnnounceAddrs replaces all addresses; name these there too, and drop WithExtraAnnounceAddrs"},
		{"WithoutDHT", "WithIPFS", "the public network is its DHT; drop WithIPFS or WithoutDHT"},
		{"WithoutListening", "WithListenAddrs", "WithListenAddrs names addresses to listen on; drop one of the two"},
	},
	pointless("WithoutListening", "leaves no address to listen on", "WithPartialListen"),
	pointless("WithoutListening", "leaves no address to announce", "WithMDNS", "WithMDNSService"),
	pointless("WithoutListening", "leaves no port to map", "WithPortMapping"),
	pointless("WithoutListening", "leaves no address that others could dial; name relays with WithAutoRelay instead", "WithNATTraversal"),
	pointless("WithoutRelay", "rules out the relayed connections that hole punching starts from", "WithHolePunching", "WithNATTraversal"),
	pointless("WithoutListening", "leaves nothing that a certificate is for", "WithTLSFiles"),
	pointless("WithoutRelay", "switches off the relay client, which a reservation needs", "WithAutoRelay", "WithRelayDiscovery"),
	pointless("WithoutRelay", "switches relaying off altogether", "WithRelayService", "WithRelayLimits", "WithRelayPeers", "WithRelayAccess"),
	pointless("WithoutDHT", "switches off the DHT, which this option configures", "WithDHTMode", "WithAcceleratedDHT", "WithRendezvous", "WithValidator", "WithSignedRecords", "WithDatastore", "WithReprovideInterval", "WithRecordLifetime", "WithDHTOptions"),
	pointless("WithoutPubSub", "switches off pubsub, which this option configures", "WithMaxMessageSize", "WithRelayedPubSub", "WithPubSubTrace", "WithPubSubOptions", "WithPeerScoring"),
	pointless("WithoutRelay", "rules out relayed connections", "WithRelayedPubSub"),
)

// pointless returns the conflicts of an option that switches a part off with
// those that need the part.
func pointless(off, why string, options ...string) []conflict {
	var list []conflict
	for _, o := range options {
		list = append(list, conflict{o, off, off + " " + why + "; drop one of the two"})
	}
	return list
}

// ruledOut reports whether an option conflicts with one that was given.
func (c *config) ruledOut(option string) bool {
	return slices.ContainsFunc(conflicts, func(pair conflict) bool {
		return pair.option == option && c.has(pair.with) || pair.with == option && c.has(pair.option)
	})
}
