package p2pnode_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// What an application passes through WithLibp2pOptions takes the place of the
// node's own part, or is an error that names the option to use instead.
func TestEscapeHatchesYield(t *testing.T) {
	conns := must(connmgr.NewConnManager(10, 20))
	peers := must(pstoremem.NewPeerstore())
	key := must(p2pnode.GenerateKey(p2pnode.KeyEd25519))
	announced := ma.StringCast("/ip4/192.0.2.9/tcp/9")
	for _, c := range []struct {
		what  string
		opt   libp2p.Option
		check func(n *p2pnode.Node) bool // nil: an OptionError
	}{
		{"a connection manager", libp2p.ConnectionManager(conns), func(n *p2pnode.Node) bool { return n.Host().ConnManager() == conns }},
		{"a peerstore", libp2p.Peerstore(peers), func(n *p2pnode.Node) bool { return n.Host().Peerstore() == peers }},
		{"a resource manager", libp2p.ResourceManager(&network.NullResourceManager{}), func(n *p2pnode.Node) bool {
			_, ok := n.Host().Network().ResourceManager().(*network.NullResourceManager)
			return ok && n.Status().Refused == p2pnode.Refused{}
		}},
		{"an address factory", libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return []ma.Multiaddr{announced} }), func(n *p2pnode.Node) bool {
			return slices.EqualFunc(n.AddrInfo().Addrs, []ma.Multiaddr{announced}, ma.Multiaddr.Equal)
		}},
		{"a transport", libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), func(n *p2pnode.Node) bool { return len(n.Addrs()) == 1 }},
		{"a user agent", libp2p.UserAgent("theirs"), func(*p2pnode.Node) bool { return true }},
		{"an identity", libp2p.Identity(key), nil},
		{"an address to listen on", libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), nil},
		{"a private network", libp2p.PrivateNetwork(make([]byte, 32)), nil},
		{"relays", libp2p.EnableAutoRelayWithStaticRelays([]peer.AddrInfo{{ID: "x"}}), nil},
		{"an option that fails", func(*libp2p.Config) error { return errors.New("no") }, nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			n, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithLibp2pOptions(c.opt))
			if c.check == nil {
				if list := p2pnode.OptionErrors(err); len(list) != 1 || list[0].Option != "WithLibp2pOptions" {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(n) {
				t.Error("it is not used")
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// selfSigned is a certificate for this machine.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"node.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der := must(x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// WebSocket with TLS: a node listens with a certificate, and another, whose
// client trusts it, starts from there.
func TestWebSocketWithTLS(t *testing.T) {
	server := must(p2pnode.New(t.Context(),
		p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"),
		p2pnode.WithLibp2pOptions(libp2p.Transport(websocket.New, websocket.WithTLSConfig(selfSigned(t))))))
	defer server.Close()
	client := must(p2pnode.New(t.Context(),
		p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithBootstrapPeers(server.AddrInfo()),
		p2pnode.WithLibp2pOptions(libp2p.Transport(websocket.New, websocket.WithTLSClientConfig(&tls.Config{InsecureSkipVerify: true})))))
	defer client.Close()
	if err := client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, ok := client.Peer(server.ID())
	if !ok || p.Transport != "websocket" || p.ID != server.ID() {
		t.Errorf("%+v", p)
	}
	if _, ok := client.Peer(client.ID()); ok {
		t.Error("a node is its own peer")
	}
}

// Relays come and go at run time.
func TestRelaysAddedAndRemoved(t *testing.T) {
	if raced.Detector {
		t.Skip("AutoRelay (v0.51) reads the length of a map without its lock while a relay goes: run it without -race")
	}
	start := func(opts ...p2pnode.Option) *p2pnode.Node {
		n := must(p2pnode.New(t.Context(), append(opts, p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"))...))
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		return n
	}
	first, second := start(p2pnode.WithRelayService()), start(p2pnode.WithRelayService())
	n := start(p2pnode.WithAutoRelay(first.AddrInfo()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events := n.Events(ctx, p2pnode.EventsWithState()) // the first reservation may be made already
	if err := n.AddRelays(second.AddrInfo()); err != nil {
		t.Fatal(err)
	}
	held := make(map[peer.ID]bool)
	for ev := range events {
		switch ev := ev.(type) {
		case p2pnode.EventRelayReserved:
			held[ev.ID] = true
		case p2pnode.EventRelayLost:
			delete(held, ev.ID)
		}
		if held[first.ID()] && held[second.ID()] {
			break
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("there are reservations at %v only", held)
	}
	events = n.Events(ctx)
	if err := n.RemoveRelays(first.ID()); err != nil {
		t.Fatal(err)
	}
	for ev := range events {
		if lost, ok := ev.(p2pnode.EventRelayLost); ok && lost.ID == first.ID() {
			break
		}
	}
	if ctx.Err() != nil {
		t.Fatal("the reservation at the removed relay stays")
	}
	if list := n.Status().Relays; len(list) != 1 || list[0].ID != second.ID() || !list[0].Reserved {
		t.Errorf("%+v", list)
	}
	if err := n.RemoveRelays(first.ID()); err == nil {
		t.Error("a relay is removed twice")
	}
	if err := n.AddRelays(n.AddrInfo()); err == nil {
		t.Error("a node is its own relay")
	}
	if err := start().AddRelays(first.AddrInfo()); !errors.Is(err, p2pnode.ErrDisabled) {
		t.Errorf("a node without WithAutoRelay: %v", err)
	}
}
