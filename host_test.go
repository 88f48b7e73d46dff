package p2pnode

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

func TestEveryTransportConnects(t *testing.T) {
	for _, row := range []struct {
		transport Transport
		addr      string
	}{
		{TransportTCP, "/ip4/127.0.0.1/tcp/0"},
		{TransportQUIC, "/ip4/127.0.0.1/udp/0/quic-v1"},
		{TransportWebSocket, "/ip4/127.0.0.1/tcp/0/ws"},
		{TransportWebTransport, "/ip4/127.0.0.1/udp/0/quic-v1/webtransport"},
		{TransportWebRTCDirect, "/ip4/127.0.0.1/udp/0/webrtc-direct"},
	} {
		t.Run(string(row.transport), func(t *testing.T) {
			a, b := pair(t, WithTransports(row.transport), WithListenAddrs(row.addr))
			serveEcho(b)
			mustNot(t, echo(t, a, b.ID(), bytes.Repeat([]byte("x"), 100<<10)))
		})
	}
}

func TestSecurityProtocols(t *testing.T) {
	tcp := WithListenAddrs("/ip4/127.0.0.1/tcp/0")
	for _, s := range []Security{SecurityNoise, SecurityTLS} {
		a, _ := pair(t, tcp, WithSecurity(s))
		if got := swarmOf(a).Conns()[0].ConnState().Security; !strings.Contains(string(got), string(s)) {
			t.Errorf("secured by %s, want %s", got, s)
		}
	}
	a, b := newNode(t, tcp, WithSecurity(SecurityNoise)), newNode(t, tcp, WithSecurity(SecurityTLS))
	if err := a.Connect(testContext(t), b.AddrInfo()); err == nil {
		t.Error("Noise and TLS understand each other")
	}
}

func TestPrivateNetworkKeepsOthersOut(t *testing.T) {
	t.Parallel()
	one, two := WithPrivateNetwork(bytes.Repeat([]byte{1}, 32)), WithPrivateNetwork(bytes.Repeat([]byte{2}, 32))
	tcp := WithListenAddrs("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
	a, b := newNode(t, tcp, one), newNode(t, tcp, one)
	strangers := []*Node{newNode(t, tcp, two, shortDials), newNode(t, tcp, shortDials)}
	if testing.Short() {
		strangers = strangers[:1] // each takes a second
	}
	for _, stranger := range strangers {
		if err := stranger.Connect(testContext(t), a.AddrInfo()); err == nil {
			t.Error("a stranger got in")
		}
		member := newNode(t, tcp, one, shortDials)
		if err := member.Connect(testContext(t), stranger.AddrInfo()); err == nil {
			t.Error("a member got out")
		}
	}
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
}

func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 on this machine: %v", err)
	}
	l.Close()
	pair(t, WithListenAddrs("/ip6/::1/tcp/0", "/ip6/::1/udp/0/quic-v1"))
}

// A busy port is named, also when the other program is a libp2p node whose
// SO_REUSEPORT would let two nodes share it (pitfall 34).
func TestPitfall34BusyPortIsAnError(t *testing.T) {
	plain, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	defer mustClose(t, plain)
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	mustNot(t, err)
	defer mustClose(t, udp)
	node := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	nodePort, err := node.base.ListenAddrs()[0].ValueForProtocol(ma.P_TCP)
	mustNot(t, err)
	for name, addr := range map[string]string{
		"TCP port of a program":       fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", plain.Addr().(*net.TCPAddr).Port),
		"WebSocket port of a program": fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/ws", plain.Addr().(*net.TCPAddr).Port),
		"UDP port of a program":       fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", udp.LocalAddr().(*net.UDPAddr).Port),
		"TCP port of a node":          "/ip4/127.0.0.1/tcp/" + nodePort,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(testContext(t), WithListenAddrs("/ip4/127.0.0.1/tcp/0", addr))
			var le *ListenError
			if !errors.As(err, &le) || le.Addr.String() != addr || !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("New = %v; want %s named as in use", err, addr)
			}
			var l log
			n, err := New(testContext(t), WithListenAddrs("/ip4/127.0.0.1/tcp/0", addr), WithPartialListen(), l.option())
			mustNot(t, err)
			if s := n.Status(); len(s.ListenErrors) != 1 || s.ListenErrors[0].Addr.String() != addr || len(s.ListenAddrs) != 1 || !strings.Contains(l.String(), addr) {
				t.Errorf("WithPartialListen: Status has %v and %v", s.ListenErrors, s.ListenAddrs)
			}
			mustNot(t, n.Close())
			if _, err := New(testContext(t), WithListenAddrs(addr), WithPartialListen()); err == nil {
				t.Error("a node that listens nowhere was started")
			}
		})
	}
}

// The default addresses work on a machine without IPv6.
func TestDefaultAddressesNeedNoIPv6(t *testing.T) {
	defaults, err := newConfig(nil)
	mustNot(t, err)
	list, _ := defaults.listenAddrs()
	var six, all []*ListenError
	for _, a := range list {
		e := &ListenError{Addr: a, Err: syscall.EAFNOSUPPORT}
		if strings.HasPrefix(a.String(), "/ip6") {
			six = append(six, e)
		}
		all = append(all, e)
	}
	if err := checkListening(defaults, six); err != nil {
		t.Errorf("without IPv6: %v", err)
	}
	if err := checkListening(defaults, all); err == nil {
		t.Error("without any address: no error")
	}
	asked, err := newConfig([]Option{WithListenAddrs("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")})
	mustNot(t, err)
	if err := checkListening(asked, six[:1]); err == nil {
		t.Error("an IPv6 address that was asked for may fail")
	}
}

// On an application's network many peers may share a private address; public
// addresses keep libp2p's limit (pitfalls 29 and 57).
func TestPitfall57ManyPeersBehindOnePrivateAddress(t *testing.T) {
	cfg, err := newConfig(nil)
	mustNot(t, err)
	for addr, want := range map[string]bool{"10.1.2.3": true, "192.168.1.1": true, "172.20.0.1": true, "100.64.1.1": true, "8.8.8.8": false} {
		m, err := limits.New(limits.Config{Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: cfg.logger})
		mustNot(t, err)
		from := ma.StringCast("/ip4/" + addr + "/tcp/1")
		opened := 0
		for range 40 {
			if s, err := m.OpenConnection(network.DirInbound, true, from); err == nil {
				opened++
				defer s.Done()
			}
		}
		if (opened == 40) != want || opened < 8 {
			t.Errorf("%s: %d of 40 connections", addr, opened)
		}
		mustNot(t, m.Close())
	}
}

// The connection manager trims before the resource manager refuses (pitfall 71).
func TestPitfall71TrimmingComesBeforeRefusing(t *testing.T) {
	cfg, err := newConfig([]Option{WithConnLimits(5000, 6000)})
	mustNot(t, err)
	m, err := limits.New(limits.Config{Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: cfg.logger})
	mustNot(t, err)
	defer m.Close()
	mustNot(t, m.ViewSystem(func(s network.ResourceScope) error {
		limiter, ok := s.(rcmgr.ResourceScopeLimiter)
		if !ok {
			t.Fatalf("a %T has no limit", s)
		}
		l := limiter.Limit()
		for name, n := range map[string]int{
			"in all": l.GetConnTotalLimit(), "inbound": l.GetConnLimit(network.DirInbound), "outbound": l.GetConnLimit(network.DirOutbound),
		} {
			if n < 2*6000 {
				t.Errorf("%d connections %s with trimming above 6000", n, name)
			}
		}
		return nil
	}))
}

func TestConnectErrors(t *testing.T) {
	a, b := newNode(t), newNode(t)
	dead, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	port := dead.Addr().(*net.TCPAddr).Port
	dead.Close()
	nobody := peer.AddrInfo{ID: mustKeyID(t), Addrs: []ma.Multiaddr{
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)), ma.StringCast(fmt.Sprintf("/ip4/127.0.0.2/tcp/%d", port)),
	}}
	// Every attempt has the reason, not only the first (pitfall 66).
	for range 2 {
		err := a.Connect(testContext(t), nobody)
		var dial *swarm.DialError
		if !errors.As(err, &dial) || len(dial.DialErrors) != 2 || strings.Contains(err.Error(), "\n") {
			t.Fatalf("nobody there: %v", err)
		}
		for _, e := range dial.DialErrors {
			if !errors.Is(e.Cause, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), e.Address.String()) || !slices.ContainsFunc(nobody.Addrs, e.Address.Equal) {
				t.Errorf("nobody there: %v of %s", e.Cause, e.Address)
			}
		}
	}
	// The first cause is shown each time, not "dial backoff".
	wrong := peer.AddrInfo{ID: mustKeyID(t), Addrs: b.AddrInfo().Addrs}
	for range 2 {
		err := a.Connect(testContext(t), wrong)
		if other, ok := errors.AsType[sec.ErrPeerIDMismatch](err); !ok || other.Expected != wrong.ID || other.Actual != b.ID() {
			t.Errorf("pitfall 66: somebody else there: %v", err)
		}
	}
	// What cannot be dialed at all is not.
	var tried *nethost.ConnectError
	if err := a.Connect(testContext(t), a.AddrInfo()); err == nil || errors.As(err, &tried) || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("self: %v", err)
	}
	if err := a.Connect(testContext(t), peer.AddrInfo{}); !errors.Is(err, peer.ErrEmptyPeerID) || errors.As(err, &tried) {
		t.Errorf("no ID: %v", err)
	}
}

func TestPeersAndPing(t *testing.T) {
	a, b := pair(t, WithUserAgent("tester/1"))
	mustNot(t, waitFor(t, func() bool { return len(b.Peers()) == 1 && b.Peers()[0].Agent != "" }))
	pa, pb := a.Peers()[0], b.Peers()[0]
	if pa.ID != b.ID() || pa.Direction != "outbound" || pb.Direction != "inbound" || pa.Relayed || pa.Agent != "tester/1" || pa.Addr == nil {
		t.Errorf("a sees %+v, b sees %+v", pa, pb)
	}
	rtt, err := a.Ping(testContext(t), b.ID())
	mustNot(t, err)
	if rtt <= 0 {
		t.Errorf("round trip %v", rtt)
	}
	if _, err := a.Ping(testContext(t), a.ID()); err == nil {
		t.Error("pinged itself")
	}
	if _, err := a.Ping(testContext(t), mustKeyID(t)); err == nil {
		t.Error("pinged nobody")
	}
}

func TestAnnouncedAddresses(t *testing.T) {
	n := newNode(t, WithAnnounceAddrs("/dns4/example.com/tcp/4001"))
	want := "/dns4/example.com/tcp/4001/p2p/" + n.ID().String()
	if got := n.Addrs(); len(got) != 1 || got[0].String() != want {
		t.Errorf("Addrs = %v, want %s", got, want)
	}
}

func TestWithoutListening(t *testing.T) {
	n, err := New(testContext(t), WithoutListening())
	mustNot(t, err)
	defer mustClose(t, n)
	if s := n.Status(); len(s.ListenAddrs) != 0 || len(s.Addrs) != 0 {
		t.Errorf("it listens on %v and announces %v", s.ListenAddrs, s.Addrs)
	}
	mustNot(t, n.WaitReady(testContext(t)))
	mustNot(t, n.Connect(testContext(t), newNode(t).AddrInfo()))
}

// Nothing of a node shows in the process-wide registry (pitfall 58).
func TestPitfall58DefaultRegistryStaysEmpty(t *testing.T) {
	count := func() int {
		families, err := prometheus.DefaultGatherer.Gather()
		mustNot(t, err)
		n := 0
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), "libp2p") || strings.HasPrefix(f.GetName(), "p2pnode") || strings.HasPrefix(f.GetName(), "rcmgr") {
				n++
			}
		}
		return n
	}
	a, _ := pair(t, WithMetrics(prometheus.NewRegistry()))
	defer mustClose(t, a)
	if n := count(); n != 0 {
		t.Errorf("%d families in the default registry", n)
	}
}

func TestConnectByIDThroughTheDHT(t *testing.T) {
	boot := newNode(t)
	a, b := newNode(t, via(boot)), newNode(t, via(boot), WithDHTMode(DHTModeClient))
	ready(t, a, b)
	serveEcho(b)
	// A peer can be found when somebody has identified it.
	mustNot(t, waitFor(t, func() bool { return len(boot.base.Peerstore().Addrs(b.ID())) > 0 }))
	mustNot(t, a.Connect(testContext(t), peer.AddrInfo{ID: b.ID()}))
	c := newNode(t, via(boot))
	ready(t, c)
	mustNot(t, echo(t, c, b.ID(), []byte("x")))
}
