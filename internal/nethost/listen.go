package nethost

import (
	"net"
	"slices"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
)

// ListenFailure is an address that did not bind, and why.
type ListenFailure struct {
	Addr ma.Multiaddr
	Err  error
}

// Listen binds each address separately, and returns those that failed. The host
// announces nothing before the last one: the DHT, the peers and whoever else
// follows the addresses learn of them at once.
func (h *Host) Listen(list []ma.Multiaddr) []ListenFailure {
	// WebTransport and WebRTC share the UDP port of a QUIC listener if that comes
	// first.
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b ma.Multiaddr) int {
		return listenOrder[addrs.KindOf(a)] - listenOrder[addrs.KindOf(b)]
	})
	var failed []ListenFailure
	computed := h.announces.Load()
	for i, a := range list {
		if i == len(list)-1 {
			h.announces.Store(true)
		}
		if err := h.listen(a); err != nil {
			failed = append(failed, ListenFailure{Addr: a, Err: err})
		} else if i == len(list)-1 {
			computed = true
		}
	}
	if !computed {
		h.announces.Store(true)
		h.updateAddrs()
	}
	return failed
}

// updateAddrs makes libp2p compute the host's addresses, which otherwise happens
// with each listener and every five seconds. Its trigger is a change of the
// relayed addresses: there are none yet.
func (h *Host) updateAddrs() {
	emitter, err := h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated), eventbus.Stateful)
	if err != nil {
		return // the five seconds remain
	}
	_ = emitter.Emit(event.EvtAutoRelayAddrsUpdated{})
	_ = emitter.Close()
}

func (h *Host) listen(a ma.Multiaddr) error {
	p, fixed := portOf(a)
	if !fixed {
		return h.swarm.AddListenAddr(a)
	}
	var own ma.Multiaddr // a listener of ours on that port
	for _, b := range h.ListenAddrs() {
		if q, _ := portOf(b); own == nil && p.overlaps(q) {
			own = b
			if !p.udp && !(h.sharesTCP && p == q && speaks(a) != speaks(b)) {
				return &causes.OwnListener{By: own}
			}
		}
	}
	if !p.udp && own == nil {
		defer lockPort(p.number)() // another node could bind it in between
		if err := portFree(a); err != nil {
			return err
		}
	}
	err := h.swarm.AddListenAddr(a)
	if own != nil && causes.InUse(err) {
		return &causes.OwnListener{By: own, Err: err}
	}
	return err
}

// port is a port of an IP address.
type port struct {
	ip     string // or a name; "" for all
	six    bool
	udp    bool
	number string
}

// portOf is the port that an address is bound to, and whether it is a certain
// one.
func portOf(a ma.Multiaddr) (p port, fixed bool) {
	for _, c := range a {
		switch c.Protocol().Code {
		case ma.P_IP4, ma.P_IP6, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
			p.ip, p.six = c.Value(), c.Protocol().Code == ma.P_IP6
		case ma.P_TCP, ma.P_UDP:
			p.number, p.udp = c.Value(), c.Protocol().Code == ma.P_UDP
			if manet.IsIPUnspecified(a) {
				p.ip = ""
			}
			return p, p.number != "0"
		}
	}
	return p, false
}

// overlaps reports whether two ports cannot both be bound.
func (p port) overlaps(q port) bool {
	return p.number == q.number && p.udp == q.udp && p.six == q.six && (p.ip == q.ip || p.ip == "" || q.ip == "")
}

// speaks returns the protocol that comes first on a TCP connection, by which a
// shared port distinguishes connections.
func speaks(a ma.Multiaddr) string {
	for _, c := range a {
		if code := c.Protocol().Code; code == ma.P_TLS || code == ma.P_WSS {
			return "tls"
		}
	}
	return string(addrs.KindOf(a))
}

// SharedTCP returns two of the addresses that are of different kinds and have
// one TCP port; nil when there are none.
func SharedTCP(list []ma.Multiaddr) (one, other ma.Multiaddr) {
	for i, a := range list {
		p, fixed := portOf(a)
		if !fixed || p.udp {
			continue
		}
		for _, b := range list[:i] {
			if q, _ := portOf(b); p == q && speaks(a) != speaks(b) {
				return b, a
			}
		}
	}
	return nil, nil
}

// ListenAddrs returns the bound addresses. It leaves out the relay client,
// which the swarm counts as a listener.
func (h *Host) ListenAddrs() []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(h.swarm.ListenAddresses()), addrs.IsCircuit)
}

// InterfaceAddrs returns the bound addresses, with the interfaces' addresses
// replacing unspecified ones.
func (h *Host) InterfaceAddrs() ([]ma.Multiaddr, error) { return h.swarm.InterfaceListenAddresses() }

var listenOrder = map[addrs.Kind]int{addrs.QUIC: 0, addrs.WebTransport: 1, addrs.WebRTCDirect: 2}

// portFree reports whether nobody listens on a TCP address yet. Libp2p binds
// TCP ports with SO_REUSEPORT, with which two nodes on one port both succeed
// and each gets a random half of the other's connections.
func portFree(a ma.Multiaddr) error {
	tcp, _ := ma.SplitFunc(a, func(c ma.Component) bool {
		return c.Protocol().Code == ma.P_WS || c.Protocol().Code == ma.P_WSS || c.Protocol().Code == ma.P_TLS
	})
	netw, hostport, err := manet.DialArgs(tcp)
	if err != nil {
		return nil //nolint:nilerr // the transport itself says what is wrong with it
	}
	l, err := net.Listen(netw, hostport) //nolint:noctx // it returns at once
	if err != nil {
		return err
	}
	return l.Close()
}
