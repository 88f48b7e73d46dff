package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// everywhere is where nodes of both versions of IP listen.
var everywhere = []string{
	"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1",
	"/ip6/::/tcp/4001", "/ip6/::/udp/4001/quic-v1",
}

// startBoth starts public nodes with IPv4 and IPv6 that bootstrap each other, and
// returns them with their addresses of both.
func startBoth(t *testing.T, lab *natlab.Lab, n int) (nodes []*driven, addrs []string) {
	t.Helper()
	for i := range n {
		h := must(lab.Host(fmt.Sprint("public ", i)))(t)
		p := start(t, h, Options{Server: true, Listen: everywhere, Bootstrap: addrs})
		nodes = append(nodes, p)
		addrs = append(slices.Clip(addrs),
			fmt.Sprintf("/ip4/%s/udp/4001/quic-v1/p2p/%s", h.Addr4, p.id), fmt.Sprintf("/ip4/%s/tcp/4001/p2p/%s", h.Addr4, p.id),
			fmt.Sprintf("/ip6/%s/udp/4001/quic-v1/p2p/%s", h.Addr6, p.id), fmt.Sprintf("/ip6/%s/tcp/4001/p2p/%s", h.Addr6, p.id))
	}
	return nodes, addrs
}

// speak connects a to b by ID, and returns the path of a stream that works.
func speak(t *testing.T, a, b *driven) string {
	t.Helper()
	a.must(Command{Do: "connect", Peer: b.id})
	stream := a.must(Command{Do: "open", Peer: b.id})
	if r := a.must(Command{Do: "say", Stream: stream.Stream, Text: "hello"}); r.Text != "hello" {
		t.Errorf("the echo is %q", r.Text)
	}
	return stream.Path
}

// reserved is the event of a reservation at a relay.
func reserved(r Reply) bool { return r.Type == "EventRelayReserved" }

// Hosts that have IPv6 alone find out that they can be dialed, or that a firewall keeps
// others out, and connect by ID: directly, or with a hole punched through the firewall.
func TestIPv6Only(t *testing.T) {
	waits(t)
	t.Parallel()
	lab := natlab.New(t)
	_, servers := startBoth(t, lab, 3)
	peers := map[natlab.Kind][2]*driven{}
	for _, k := range []natlab.Kind{natlab.Public, natlab.NoIncoming} {
		var pair [2]*driven
		for i := range pair {
			pair[i] = startBehind(t, lab, fmt.Sprint(k, " ", i), natlab.Network{Kind: k, Stack: natlab.IPv6}, Options{Bootstrap: servers, Traversal: true})
		}
		peers[k] = pair
	}
	for k, pair := range peers {
		for _, p := range pair {
			said := p.mustAwait("its verdict", verdict(reachable(k)))
			t.Logf("%s: %s after %.1fs", p.name, reachable(k), said.At.Sub(p.started).Seconds())
			if k == natlab.NoIncoming {
				p.mustAwait("a reservation", reserved)
			}
			for _, a := range p.addrs("/ip4/") {
				if !strings.Contains(a, "/127.0.0.1/") && !strings.Contains(a, "p2p-circuit") {
					t.Errorf("%s announces %s", p.name, a)
				}
			}
		}
	}
	for _, pair := range [][2]*driven{
		{peers[natlab.Public][0], peers[natlab.Public][1]},
		{peers[natlab.NoIncoming][0], peers[natlab.Public][1]},
		{peers[natlab.Public][0], peers[natlab.NoIncoming][0]},
		{peers[natlab.NoIncoming][0], peers[natlab.NoIncoming][1]},
	} {
		t.Logf("%s × %s: %s", pair[0].name, pair[1].name, speak(t, pair[0], pair[1]))
		pair[0].mustAwait("a direct connection to "+pair[1].name, opened(pair[1].id, false))
	}
}

// A host with both versions of IP, one of which leads nowhere, connects by the other.
func TestDualStackWithOneFamilyBroken(t *testing.T) {
	waits(t)
	t.Parallel()
	for name, broken := range map[string]natlab.Stack{"IPv4": natlab.IPv4, "IPv6": natlab.IPv6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := natlab.New(t)
			_, servers := startBoth(t, lab, 3)
			site := must(lab.Site("home", natlab.Network{Kind: natlab.Public, Stack: natlab.Dual}))(t)
			if err := site.Break(broken); err != nil {
				t.Fatal(err)
			}
			a := start(t, must(site.Host("broken"))(t), Options{Bootstrap: servers, Traversal: true})
			b := startBehind(t, lab, "whole", natlab.Network{Kind: natlab.Public, Stack: natlab.Dual}, Options{Bootstrap: servers, Traversal: true})
			for _, p := range []*driven{a, b} {
				said := p.mustAwait("its verdict", verdict(p2pnode.ReachabilityPublic))
				t.Logf("%s: %s after %.1fs", p.name, p2pnode.ReachabilityPublic, said.At.Sub(p.started).Seconds())
			}
			begun := a.must(Command{Do: "status"}).At
			path := speak(t, a, b)
			t.Logf("connected over %s after %.2fs", path, a.must(Command{Do: "status"}).At.Sub(begun).Seconds())
			if path == "relayed" {
				t.Error("it is relayed")
			}
		})
	}
}

// What a public peer learns of a host with a tunnel, a bridge of containers and an
// address that looks public and is not, are the addresses that it can dial; a peer on
// the LAN learns also those of the LAN, and none in the prefixes of WithNoAnnounce.
func TestAHostWithManyInterfaces(t *testing.T) {
	waits(t)
	t.Parallel()
	lab := natlab.New(t)
	publics, servers := startBoth(t, lab, 3)
	site := must(lab.Site("home", natlab.Network{Kind: natlab.PortRestricted}))(t)
	h := must(site.Host("many"))(t)
	if err := h.IP(`link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
link add tun0 type veth peer name tun0far
addr add 10.8.0.2/24 dev tun0
addr add 5.240.0.1/24 dev tun0
addr add fd00:8::2/64 dev tun0 nodad
link set tun0 up
link set tun0far up
`); err != nil {
		t.Fatal(err)
	}
	p := start(t, h, Options{
		Bootstrap: servers, Traversal: true, MDNS: true, Listen: everywhere,
		NoAnnounce: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("10.8.0.0/24")},
	})
	neighbor := start(t, must(site.Host("neighbor"))(t), Options{MDNS: true, Listen: everywhere})
	p.mustAwait("its verdict", verdict(p2pnode.ReachabilityPrivate))
	p.mustAwait("a reservation", reserved)
	neighbor.mustAwait("the neighbor", opened(p.id, false))
	p.mustAwait("the verdict on the false address", judged(netip.MustParseAddr("5.240.0.1"), p2pnode.ReachabilityPrivate))

	for _, a := range p.addrs("") {
		if strings.Contains(a, "p2p-circuit") && !strings.HasPrefix(a, "/ip4/5.") && !strings.HasPrefix(a, "/ip6/2a05:") {
			t.Errorf("it announces %s", a)
		}
		for _, hidden := range []string{"172.17.0.1", "10.8.0.2", "5.240.0.1"} {
			if strings.Contains(a, hidden) {
				t.Errorf("it announces %s", a)
			}
		}
	}
	for _, public := range publics { // it is announced until it is judged
		public.must(Command{Do: "forgets", Peer: p.id, Text: "5.240.0.1"})
	}
	for _, public := range publics {
		learned := public.must(Command{Do: "known", Peer: p.id}).Addrs
		learned = append(learned, public.must(Command{Do: "findpeer", Peer: p.id}).Addrs...)
		if len(learned) == 0 {
			t.Errorf("%s has learned nothing", public.name)
		}
		for _, text := range learned {
			a := must(ma.NewMultiaddr(text))(t)
			ip, err := manet.ToIP(a)
			if err != nil || !slices.ContainsFunc([]string{"5.1.", "5.2.", "5.3.", "5.4.", "2a05:"}, func(s string) bool { return strings.HasPrefix(ip.String(), s) }) {
				t.Errorf("%s has learned %s", public.name, a)
			}
		}
	}
	learned := neighbor.must(Command{Do: "known", Peer: p.id}).Addrs
	if !slices.ContainsFunc(learned, func(a string) bool { return strings.Contains(a, h.Addr4.String()) }) {
		t.Error("the neighbor does not know the address on the LAN")
	}
}

// Two hosts that have nothing but link-local addresses find each other by mDNS, and
// connect; given an address with its zone, Connect does too.
func TestLinkLocalAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for peers: run without -short")
	}
	t.Parallel()
	lab := natlab.New(t)
	site := must(lab.Site("link", natlab.Network{Kind: natlab.Public, Stack: natlab.IPv6}))(t)
	var peers [3]*driven
	var hosts [3]*natlab.Host
	for i := range peers {
		hosts[i] = must(site.Host(fmt.Sprint("link ", i)))(t)
		if err := hosts[i].IP("addr flush dev eth0 scope global\n"); err != nil {
			t.Fatal(err)
		}
		// The last one takes no part in mDNS.
		peers[i] = start(t, hosts[i], Options{MDNS: i < 2, Listen: everywhere})
	}
	ev := peers[1].mustAwait("the other one", opened(peers[0].id, false))
	t.Logf("connected over %s after %.1fs", ev.Addrs, ev.At.Sub(peers[1].started).Seconds())
	if !strings.HasPrefix(ev.Addrs[0], "/ip6zone/eth0/ip6/fe80::") {
		t.Errorf("the address is %s", ev.Addrs)
	}
	speak(t, peers[1], peers[0])

	var at netip.Addr
	if err := hosts[0].Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok && ip.IsLinkLocalUnicast() {
				at = ip
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	zoned := fmt.Sprintf("/ip6zone/eth0/ip6/%s/tcp/4001/p2p/%s", at, peers[0].id)
	last := must(site.Host("last"))(t)
	if err := last.IP("addr flush dev eth0 scope global\n"); err != nil {
		t.Fatal(err)
	}
	start(t, last, Options{Bootstrap: []string{zoned}, Listen: everywhere}).mustAwait("its bootstrap peer", opened(peers[0].id, false))
	peers[2].must(Command{Do: "connect", Peer: peers[0].id, Addrs: []string{zoned}})
	_, err := peers[2].call(Command{Do: "connect", Peer: peers[1].id, Addrs: []string{fmt.Sprintf("/ip6zone/eth0/ip6/%s/tcp/4999/p2p/%s", at, peers[1].id)}})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(": /ip6zone/eth0/ip6/%s/tcp/4999: connection refused", at)) {
		t.Errorf("a port where nobody listens: %v", err)
	}
	_, err = peers[2].call(Command{Do: "connect", Peer: peers[1].id, Addrs: []string{fmt.Sprintf("/ip6/%s/tcp/4001/p2p/%s", at, peers[1].id)}})
	if err == nil || !strings.Contains(err.Error(), "ip6zone") {
		t.Errorf("without a zone: %v", err)
	}
	_, err = peers[2].call(Command{Do: "connect", Peer: peers[1].id, Addrs: []string{fmt.Sprintf("/ip6zone/eth0/ip6/%s/udp/4001/quic-v1/p2p/%s", at, peers[1].id)}})
	if err == nil || !strings.Contains(err.Error(), "over TCP") {
		t.Errorf("over QUIC: %v", err)
	}
}
