package p2pnode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// silent is a port that accepts connections and sends nothing, closed one that
// refuses them.
func silentAndClosed(t *testing.T) (silent, closed int) {
	t.Helper()
	hole, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, hole) })
	dead, err := net.Listen("tcp4", "127.0.0.1:0")
	mustNot(t, err)
	mustNot(t, dead.Close())
	return hole.Addr().(*net.TCPAddr).Port, dead.Addr().(*net.TCPAddr).Port
}

// hollow returns a peer ID without a peer, at the addresses.
func hollow(t *testing.T, addresses ...string) peer.AddrInfo {
	t.Helper()
	p := peer.AddrInfo{ID: mustKeyID(t)}
	for _, s := range addresses {
		p.Addrs = append(p.Addrs, ma.StringCast(s))
	}
	return p
}

// noNames resolves nothing.
type noNames struct{}

func (noNames) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (noNames) LookupTXT(_ context.Context, name string) ([]string, error) {
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// names makes a node ask a resolver of the test's.
func names(t *testing.T, r madns.BasicResolver) Option {
	t.Helper()
	resolver, err := madns.NewResolver(madns.WithDefaultResolver(r))
	mustNot(t, err)
	return WithLibp2pOptions(libp2p.MultiaddrResolver(swarm.ResolverFromMaDNS{Resolver: resolver}))
}

// says fails the test unless a text has all parts and is one line.
func says(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	if strings.Contains(text, "\n") {
		t.Errorf("%s: more than a line: %s", what, text)
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: %q is not in: %s", what, p, text)
		}
	}
}

// A deadline does not hide known causes: every method that dials names the
// address that refused, and the reason.
func TestDeadlineKeepsTheReasons(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	silent, closed := silentAndClosed(t)
	p := hollow(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", silent), fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", closed), "/dns4/nobody.test/tcp/1")
	parts := []string{p.Addrs[0].String() + ": ", p.Addrs[1].String() + ": connection refused", "the name nobody.test does not resolve"}
	n := newNode(t, names(t, noNames{}))
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	err := n.Connect(short(), p)
	says(t, "Connect", fmt.Sprint(err), parts...)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Connect: it matches neither the deadline nor the refusal: %v", err)
	}
	_, err = n.Ping(short(), p.ID)
	says(t, "Ping", fmt.Sprint(err), parts...)
	_, err = n.OpenStream(short(), p.ID, "/x")
	says(t, "OpenStream", fmt.Sprint(err), parts...)
	_, err = n.Dial(short(), p.ID, "/x")
	says(t, "Dial", fmt.Sprint(err), parts...)

	boot := newNode(t, names(t, noNames{}), WithBootstrapPeers(p))
	mustNot(t, waitFor(t, func() bool {
		r := boot.Status().Bootstrap
		return r != nil && len(r.Failed) == 1 && strings.Contains(r.Failed[0].Err.Error(), "refused")
	}))
	says(t, "Status", boot.Status().Bootstrap.Failed[0].Err.Error(), parts...)
	says(t, "WaitReady", fmt.Sprint(boot.WaitReady(short())), parts...)
	found, err := boot.Diagnose(short())
	mustNot(t, err)
	says(t, "Diagnose", fmt.Sprint(found), parts...)
}

// What is wrong with an address is said of it, in words and with the option.
func TestCausesOfFailedDials(t *testing.T) {
	n := newNode(t, names(t, noNames{}))
	other := newNode(t, WithoutDHT())
	at := func(a string) peer.AddrInfo { return hollow(t, a) }
	for what, row := range map[string]struct {
		to    peer.AddrInfo
		parts []string
	}{
		"a name":           {at("/dns4/nobody.test/tcp/1"), []string{"/dns4/nobody.test/tcp/1: the name nobody.test does not resolve"}},
		"a name with wss":  {at("/dns/nobody.test/tcp/1/wss"), []string{"the name nobody.test does not resolve"}},
		"a dnsaddr":        {at("/dnsaddr/nobody.test"), []string{"nobody.test does not resolve"}},
		"draft 29":         {at("/ip4/127.0.0.1/udp/1/quic"), []string{"/quic-v1"}},
		"a transport off":  {at("/ip4/127.0.0.1/udp/1/quic-v1/webtransport"), []string{"webtransport", "WithTransports"}},
		"every interface":  {at("/ip4/0.0.0.0/tcp/4001"), []string{"listening alone"}},
		"no port":          {at("/ip4/127.0.0.1"), []string{"no port"}},
		"link-local":       {at("/ip6/fe80::1/tcp/4001"), []string{"link-local"}},
		"no relay":         {at("/p2p-circuit"), []string{"names no relay"}},
		"itself":           {peer.AddrInfo{ID: mustKeyID(t), Addrs: n.AddrInfo().Addrs[:1]}, []string{"this node itself"}},
		"somebody else":    {peer.AddrInfo{ID: mustKeyID(t), Addrs: other.AddrInfo().Addrs}, []string{"another peer answers there, " + other.ID().String()}},
		"no relay service": {at(other.Addrs()[0].String() + "/p2p-circuit"), []string{"WithRelayService"}},
		"nobody to ask":    {peer.AddrInfo{ID: mustKeyID(t)}, []string{"no address of it is known", "routing table is empty"}},
	} {
		err := n.Connect(testContext(t), row.to)
		says(t, what, fmt.Sprint(err), row.parts...)
		if strings.Contains(err.Error(), "no good addresses") || strings.Contains(err.Error(), "failed to") {
			t.Errorf("%s: %v", what, err)
		}
	}
	says(t, "without a DHT", fmt.Sprint(other.Connect(testContext(t), peer.AddrInfo{ID: mustKeyID(t)})), "no address of it is known", "WithoutDHT")
}

// With an empty table there is nobody to ask; with peers in it the DHT was
// asked. Neither is "routing: not found".
func TestUnknownPeerIsSaidInWords(t *testing.T) {
	a, b := pair(t)
	ready(t, a, b)
	mustNot(t, a.WaitReady(testContext(t), StageRouting))
	id := mustKeyID(t)
	_, pinged := a.Ping(testContext(t), id)
	_, found := a.FindPeer(testContext(t), id)
	_, opened := a.OpenStream(testContext(t), id, "/x")
	for what, err := range map[string]error{"Connect": a.Connect(testContext(t), peer.AddrInfo{ID: id}), "Ping": pinged, "FindPeer": found, "OpenStream": opened} {
		says(t, what, fmt.Sprint(err), "the DHT knows no")
		if strings.Contains(fmt.Sprint(err), "routing: not found") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An empty ID is said to be none by every method, and nonsense to be nonsense.
func TestEmptyPeerID(t *testing.T) {
	n := newNode(t)
	for id, want := range map[peer.ID]string{"": "no peer ID given", "abc": "is not a peer ID"} {
		_, pinged := n.Ping(t.Context(), id)
		_, found := n.FindPeer(t.Context(), id)
		_, opened := n.OpenStream(t.Context(), id, "/x")
		_, dialed := n.Dial(t.Context(), id, "/x")
		for what, err := range map[string]error{
			"Connect": n.Connect(t.Context(), peer.AddrInfo{ID: id}), "Ping": pinged, "FindPeer": found, "OpenStream": opened, "Dial": dialed, "Disconnect": n.Disconnect(t.Context(), id),
		} {
			says(t, what, fmt.Sprint(err), want)
		}
	}
}

// A wrong key of a private network is named by Connect, on all three sides.
func TestWrongNetworkKeyIsNamed(t *testing.T) {
	t.Parallel()
	key := func(b byte) Option { return WithPrivateNetwork(bytes.Repeat([]byte{b}, 32)) }
	tcp := WithListenAddrs("/ip4/127.0.0.1/tcp/0")
	one, two, none := newNode(t, tcp, shortDials, key(1)), newNode(t, tcp, shortDials, key(2)), newNode(t, tcp, shortDials)
	for what, dial := range map[string][2]*Node{"another key": {one, two}, "no key there": {one, none}, "no key here": {none, two}} {
		if testing.Short() && what != "another key" {
			continue // each takes a second
		}
		says(t, what, fmt.Sprint(dial[0].Connect(testContext(t), dial[1].AddrInfo())), "WithPrivateNetwork")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	hole, _ := silentAndClosed(t)
	says(t, "silence", fmt.Sprint(one.Connect(ctx, hollow(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", hole)))), "WithPrivateNetwork")
}

// The errors for an unreachable relay have the reason, also those of waiting
// calls.
func TestUnreachableRelayIsToldWhy(t *testing.T) {
	_, closed := silentAndClosed(t)
	n := newNode(t, WithAutoRelay(hollow(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", closed))))
	mustNot(t, waitFor(t, func() bool { return strings.Contains(n.Status().Relays[0].Missing, "connection refused") }))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	says(t, "WaitReady", fmt.Sprint(n.WaitReady(ctx, StageReachable)), "connection refused")
}

// Why an address did not bind survives JSON in the same words.
func TestListenErrorKeepsItsWordsInJSON(t *testing.T) {
	e := &ListenError{Addr: ma.StringCast("/ip4/192.0.2.1/tcp/1"), Err: syscall.EADDRNOTAVAIL}
	b, err := json.Marshal(e)
	mustNot(t, err)
	back := new(ListenError)
	mustNot(t, json.Unmarshal(b, back))
	if back.Error() != e.Error() {
		t.Errorf("%q became %q", e, back)
	}
}

// Ping reports why it cannot reach the peer, however often it is called.
func TestPingTellsTheCauseEachTime(t *testing.T) {
	n := newNode(t)
	_, closed := silentAndClosed(t)
	p := hollow(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", closed))
	if err := n.Connect(testContext(t), p); err == nil {
		t.Fatal("connected to nobody")
	}
	for range 3 {
		_, err := n.Ping(testContext(t), p.ID)
		says(t, "Ping", fmt.Sprint(err), "connection refused")
		if strings.Contains(err.Error(), "backoff") || strings.Contains(err.Error(), "back-off") {
			t.Error(err)
		}
	}
}

// An address that is not this machine's is to be announced instead, and a
// link-local one lacks its zone.
func TestListenErrorsSayTheWayOut(t *testing.T) {
	for addr, want := range map[string]string{
		"/ip4/192.0.2.1/tcp/4001":         "WithAnnounceAddrs",
		"/ip4/192.0.2.1/tcp/4001/ws":      "WithAnnounceAddrs",
		"/ip4/192.0.2.1/udp/4001/quic-v1": "WithAnnounceAddrs",
		"/ip6/fe80::1/tcp/0":              "/ip6zone/<interface>/ip6/fe80::1",
	} {
		_, err := New(testContext(t), WithListenAddrs(addr))
		var le *ListenError
		if !errors.As(err, &le) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q is not in: %v", addr, want, err)
		}
	}
}

// A listener of the node itself is not called another program.
func TestOwnListenerIsNamed(t *testing.T) {
	_, port := silentAndClosed(t)
	tcp, all := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port), fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", port)
	quic, allQUIC := fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port), fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1", port)
	for _, list := range [][]string{{tcp, all}, {all, tcp}, {all, tcp + "/ws"}, {quic, allQUIC}, {allQUIC, quic}} {
		_, err := New(testContext(t), WithListenAddrs(list...))
		says(t, fmt.Sprint(list), fmt.Sprint(err), "cannot listen on "+list[1], "the node itself uses the port, for "+list[0])
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%v does not match EADDRINUSE", err)
		}
	}
}

// TCP and WebSocket share a port if the options say so, in either order, and both
// work; another node cannot bind it.
func TestTCPAndWebSocketShareAPort(t *testing.T) {
	needs.Time(t)
	_, port := silentAndClosed(t)
	tcp, ws := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port), fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/ws", port)
	for _, list := range [][]string{{tcp, ws}, {ws, tcp}} {
		n, err := New(testContext(t), WithListenAddrs(list...))
		mustNot(t, err)
		for _, a := range list {
			c := newNode(t)
			mustNot(t, c.Connect(testContext(t), peer.AddrInfo{ID: n.ID(), Addrs: []ma.Multiaddr{ma.StringCast(a)}}))
			if p, ok := c.Peer(n.ID()); !ok || p.Addr.String() != a {
				t.Errorf("connected at %v, not %s", p.Addr, a)
			}
		}
		for _, a := range []string{tcp, ws} {
			_, err := New(testContext(t), WithListenAddrs(a))
			if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "another program or node") {
				t.Errorf("a second node on %s: %v", a, err)
			}
			_, err = New(testContext(t), WithListenAddrs(a), WithLibp2pOptions(libp2p.ShareTCPListener()))
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("a second node that shares, on %s: %v", a, err)
			}
		}
		mustNot(t, n.Close())
	}
}

// The address that a peer is added with at run time is held against the node's
// transports, as it is in the options.
func TestPeersAddedAtRunTimeCanBeDialed(t *testing.T) {
	n := newNode(t, WithAutoRelay(somePeer("1")), WithTransports(TransportTCP, TransportWebSocket), WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	for addr, want := range map[string]string{
		"/ip4/192.0.2.7/udp/4001/quic-v1": "WithTransports", "/ip4/192.0.2.7/udp/4001/quic": "/quic-v1", "/ip4/192.0.2.7": "no port", "/p2p-circuit": "names no relay",
	} {
		p := hollow(t, addr)
		for what, err := range map[string]error{"AddBootstrapPeers": n.AddBootstrapPeers(p), "AddPersistentPeers": n.AddPersistentPeers(p), "AddRelays": n.AddRelays(p)} {
			says(t, what+" "+addr, fmt.Sprint(err), want)
		}
	}
	mustNot(t, n.AddBootstrapPeers(hollow(t, "/ip4/192.0.2.7/tcp/4001", "/ip4/192.0.2.7/udp/4001/quic-v1")))
}
