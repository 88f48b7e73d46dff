package natlab

import (
	"fmt"
	"strings"
)

// Kind is what a router does.
type Kind string

// The kinds. The cones and the symmetric NAT are those of RFC 3489, with
// mappings that have another port than inside. Unless a kind says otherwise,
// it treats UDP and TCP alike, and drops what it does not let through.
const (
	// Public ("public") routes only: hosts have public addresses, and everybody
	// reaches them.
	Public Kind = "public"
	// FullCone ("full cone") maps an inner address and port to one outer port,
	// through which everybody reaches it.
	FullCone Kind = "full cone"
	// AddressRestricted ("address-restricted") is a full cone which lets through
	// packets only from addresses to which the inner port has sent.
	AddressRestricted Kind = "address-restricted"
	// PortRestricted ("port-restricted") is a full cone which lets through packets
	// only from addresses and ports to which the inner port has sent.
	PortRestricted Kind = "port-restricted"
	// Symmetric ("symmetric") maps to another outer port for each destination, and
	// filters as PortRestricted does.
	Symmetric Kind = "symmetric"
	// DoubleNAT ("double NAT") is PortRestricted twice: a home router whose outer
	// address is of a carrier's network, 100.64.0.0/10, behind the NAT of the
	// carrier.
	DoubleNAT Kind = "double NAT"
	// NoUDP ("no UDP") is PortRestricted for TCP and drops all UDP.
	NoUDP Kind = "no UDP"
	// NoIncoming ("no incoming") is a firewall without NAT: hosts have public
	// addresses, and packets come in only as answers.
	NoIncoming Kind = "no incoming"
)

// Kinds are all kinds.
func Kinds() []Kind {
	return []Kind{Public, FullCone, AddressRestricted, PortRestricted, Symmetric, DoubleNAT, NoUDP, NoIncoming}
}

// Transport is a protocol with ports.
type Transport string

// The transports.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
)

// Rule is on what a mapping or a filter depends.
type Rule string

// The rules, in the terms of RFC 4787.
const (
	// None ("none"): ports and addresses are not translated.
	None Rule = "none"
	// EndpointIndependent ("endpoint-independent"): one mapping for all destinations,
	// or packets from everybody.
	EndpointIndependent Rule = "endpoint-independent"
	// AddressDependent ("address-dependent"): packets from addresses that were sent to.
	AddressDependent Rule = "address-dependent"
	// AddressAndPortDependent ("address and port-dependent"): a mapping for each
	// destination, or packets from addresses and ports that were sent to.
	AddressAndPortDependent Rule = "address and port-dependent"
	// Blocked ("blocked"): no packets, not even answers.
	Blocked Rule = "blocked"
)

// Behavior is what a router does to the packets of one transport, in the terms of
// RFC 4787 and, for TCP, RFC 5382.
type Behavior struct {
	Mapping   Rule
	Filtering Rule
	// KeepsPort is true if it translates addresses, but not ports.
	KeepsPort bool
	// Hairpin is true if hosts behind the router reach each other by the addresses
	// that others see.
	Hairpin bool
}

// Behavior is what the routers of a kind do, in the laboratory and, if they have
// the kind, in the simulated networks of p2ptest. Those of the laboratory that
// translate also hairpin where [Network] asks for it.
func (k Kind) Behavior(t Transport) Behavior {
	switch {
	case k == NoUDP && t == UDP:
		return Behavior{Filtering: Blocked}
	case k == Public:
		return Behavior{Mapping: None, Filtering: EndpointIndependent, Hairpin: true}
	case k == NoIncoming:
		return Behavior{Mapping: None, Filtering: AddressAndPortDependent, Hairpin: true}
	case k == FullCone:
		return Behavior{Mapping: EndpointIndependent, Filtering: EndpointIndependent}
	case k == AddressRestricted:
		return Behavior{Mapping: EndpointIndependent, Filtering: AddressDependent}
	case k == Symmetric:
		return Behavior{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}
	default: // PortRestricted, DoubleNAT, and NoUDP for TCP
		return Behavior{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent}
	}
}

// Punchable reports whether hosts behind two routers reach each other when both
// send to where a third one sees their packets come from. They do not if one
// router maps to a port that nobody knows yet, and the other lets in only packets
// from ports that were sent to.
func Punchable(a, b Kind, t Transport) bool {
	x, y := a.Behavior(t), b.Behavior(t)
	meets := func(x, y Behavior) bool {
		return x.Filtering != Blocked && (x.Mapping != AddressAndPortDependent || y.Filtering != AddressAndPortDependent)
	}
	return meets(x, y) && meets(y, x)
}

// Direct reports whether hole punching can connect hosts behind two routers over
// UDP or TCP.
func Direct(a, b Kind) bool { return Punchable(a, b, UDP) || Punchable(a, b, TCP) }

// DialedBack reports whether a host to which a machine behind the router has
// connected can dial it from another port. If so, such hosts say that the machine
// is public, though an address-restricted NAT keeps strangers out.
func (k Kind) DialedBack() bool {
	f := k.Behavior(TCP).Filtering
	return f == EndpointIndependent || f == AddressDependent
}

// translates reports whether the hosts behind a router have private addresses
// of IPv4.
func (k Kind) translates() bool { return k != Public && k != NoIncoming }

// rules returns the nftables of a router whose outer interface is wan, with the
// address outer, and whose inner interface is lan. IPv6 is never translated; it
// is filtered as IPv4.
func (k Kind) rules(outer string, hairpin bool) string {
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if k.translates() {
		add("table ip nat {")
		for _, l4 := range []string{"udp", "tcp"} {
			// What is behind an outer port, and who may send to it.
			add("map %s_inside { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; size 65535; }", l4)
			add("set %s_sent { type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; size 65535; }", l4)
		}
		add("chain prerouting { type nat hook prerouting priority dstnat;")
		for _, l4 := range []string{"udp", "tcp"} {
			inside := fmt.Sprintf("dnat ip to %[1]s dport map @%[1]s_inside", l4)
			switch k {
			case FullCone:
				add("iifname wan %s", inside)
			case AddressRestricted:
				add("iifname wan %[1]s dport . ip saddr @%[1]s_sent %[2]s", l4, inside)
			}
			if hairpin {
				add("iifname lan ip daddr %s %s", outer, inside)
			}
		}
		add("}")
		add("chain postrouting { type nat hook postrouting priority srcnat;")
		out := "oifname wan"
		if hairpin {
			out = "oifname { wan, lan } ct direction original iifname lan"
		}
		if k == Symmetric {
			add("%s masquerade fully-random", out)
		} else {
			// The port is a function of the inner address and port (a hash, whose bytes the
			// kernel takes in the order of the network), so that the mapping
			// does not depend on the destination.
			for i, l4 := range []string{"udp", "tcp"} {
				add("%[1]s meta l4proto %[2]s snat ip to %[3]s : jhash ip saddr . %[2]s sport mod 40000 seed 0x%[4]d offset 20000", out, l4, outer, i+1)
			}
			add("oifname wan masquerade")
		}
		add("}")
		add("chain learn { type filter hook postrouting priority srcnat + 10;")
		for _, l4 := range []string{"udp", "tcp"} {
			add("%s meta l4proto %s ct direction original update @%[2]s_inside { %[2]s sport : ct original ip saddr . ct original proto-src }", out, l4)
			add("%s meta l4proto %s ct direction original update @%[2]s_sent { %[2]s sport . ip daddr }", out, l4)
		}
		add("}")
		add("}")
	}
	add("table inet filter {")
	// The router itself takes nothing from outside. Dropped packets leave no trace in
	// the connection tracking, where they could be in the way of what comes from
	// inside.
	add("chain input { type filter hook input priority filter; iifname wan meta l4proto { udp, tcp } ct state new drop; }")
	add("chain forward { type filter hook forward priority filter;")
	if k == NoUDP {
		add("meta l4proto udp drop")
	}
	if k != Public {
		add("ct status dnat accept")
		add("iifname wan ct state new drop")
		add("ct state invalid drop")
	}
	add("}")
	add("}")
	return b.String()
}
