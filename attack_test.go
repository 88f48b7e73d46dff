package p2pnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// overTCP is a node's address over TCP.
func overTCP(t *testing.T, n *Node) (peer.AddrInfo, string) {
	t.Helper()
	for _, a := range n.base.Addrs() {
		if netw, hostport, err := manet.DialArgs(a); err == nil && netw == "tcp4" {
			return peer.AddrInfo{ID: n.ID(), Addrs: []ma.Multiaddr{a}}, hostport
		}
	}
	t.Fatal("the node does not listen on TCP")
	return peer.AddrInfo{}, ""
}

// Connections on which nobody speaks, as many as a node takes and more, do not
// keep others out, although they come from the same address.
func TestAttackC4SilentConnectionsLockNobodyOut(t *testing.T) {
	needs.Time(t)
	n := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	at, hostport := overTCP(t, n)
	silence := func() {
		c, err := net.Dial("tcp4", hostport)
		mustNot(t, err)
		t.Cleanup(func() { _ = c.Close() }) // the node may have closed it
	}
	for opened := 0; n.Status().Refused.Total() == 0; opened++ {
		if opened == 5000 {
			t.Fatal("no limit was reached")
		}
		silence()
	}
	for range 20 {
		silence()
		honest, err := New(testContext(t), WithoutListening(), WithoutDHT(), WithoutPubSub())
		mustNot(t, err)
		mustNot(t, honest.Connect(testContext(t), at))
		mustClose(t, honest)
	}
}

// What a peer says of itself, and the names in addresses, cannot steer a terminal.
func TestAttackEscapeSequencesReachNobody(t *testing.T) {
	n := newNode(t)
	events := n.Events(testContext(t))
	evil, err := New(testContext(t), loopback(), WithLibp2pOptions(libp2p.UserAgent("evil\x1b[2J\u202e")))
	mustNot(t, err)
	defer mustClose(t, evil)
	evil.Host().SetStreamHandler("/evil\x1b]0;x\a", func(s network.Stream) { _ = s.Reset() })
	mustNot(t, evil.Connect(testContext(t), n.AddrInfo()))
	for ev := range events {
		c, ok := ev.(EventPeerConnected)
		if !ok {
			continue
		}
		if c.Peer.Agent != "evil�[2J�" {
			t.Errorf("%q", c.Peer.Agent)
		}
		break
	}
	mustNot(t, waitFor(t, func() bool { // identify may have begun before the handler was set
		p, _ := n.Peer(evil.ID())
		return slices.Contains(p.Protocols, "/evil�]0;x�")
	}))
	name, err := ma.NewComponent("dns4", "\x1b[31m.invalid")
	mustNot(t, err)
	id, err := test.RandPeerID()
	mustNot(t, err)
	err = n.Connect(testContext(t), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{name.Encapsulate(ma.StringCast("/tcp/1"))}})
	if err == nil || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("got %q", err)
	}
}

// A peer that is connected but never identified is not a success.
func TestAttackAPeerThatIsNeverIdentifiedIsAnError(t *testing.T) {
	n, mute := newNode(t), newNode(t)
	mute.Host().SetStreamHandler(identify.ID, func(s network.Stream) { _ = s.Reset() })
	for range 2 { // the second time it is connected already
		if err := n.Connect(testContext(t), mute.AddrInfo()); err == nil || !strings.Contains(err.Error(), "identify") {
			t.Errorf("got %v", err)
		}
	}
}

// Two nodes that connect to each other at the same moment over TCP, each from the
// port on which it listens, break each other's handshakes (a simultaneous open).
// Both calls succeed nevertheless.
func TestAttackMutualConnectOverTCP(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	only := []Option{WithListenAddrs("/ip4/127.0.0.1/tcp/0"), WithTransports(TransportTCP), WithoutDHT(), WithoutPubSub()}
	failed := 0
	for range rounds {
		a, err := New(testContext(t), only...)
		mustNot(t, err)
		b, err := New(testContext(t), only...)
		mustNot(t, err)
		start := make(chan struct{})
		results := make(chan error, 2)
		for _, pair := range [][2]*Node{{a, b}, {b, a}} {
			go func() {
				ctx, info := testContext(t), pair[1].AddrInfo()
				<-start
				results <- pair[0].Connect(ctx, info)
			}()
		}
		close(start)
		for range 2 {
			if err := <-results; err != nil {
				failed++
				if failed < 4 {
					t.Log(err)
				}
			}
		}
		mustClose(t, a)
		mustClose(t, b)
	}
	if failed > 0 {
		t.Errorf("%d of %d calls failed", failed, 2*rounds)
	}
}

// Of two nodes that start at the same moment with one TCP port, one gets it.
func TestAttackTwoNodesDoNotShareAPort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has locks without files")
	}
	rounds := 150
	if testing.Short() {
		rounds = 15
	}
	both := 0
	for range rounds {
		free, err := net.Listen("tcp4", "127.0.0.1:0")
		mustNot(t, err)
		addr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", free.Addr().(*net.TCPAddr).Port)
		mustNot(t, free.Close())
		start := make(chan struct{})
		nodes := make(chan *Node, 2)
		for range 2 {
			go func() {
				<-start
				n, err := New(testContext(t), WithListenAddrs(addr), WithTransports(TransportTCP), WithoutDHT(), WithoutPubSub())
				if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
					t.Error(err)
				}
				nodes <- n
			}()
		}
		close(start)
		up := 0
		for range 2 {
			if n := <-nodes; n != nil {
				up++
				defer mustClose(t, n)
			}
		}
		switch up {
		case 0:
			t.Error("neither of the two nodes is up")
		case 2:
			both++
		}
	}
	if both > 0 {
		t.Errorf("in %d of %d starts both nodes have one port", both, rounds)
	}
}

// panics is a registerer that panics, and a gater.
type panics struct {
	prometheus.Registerer
	connmgr.ConnectionGater
}

func (panics) Register(prometheus.Collector) error { panic("boom") }

// A callback of the application that panics while New runs, or something nil inside
// of an option, leaves nothing running.
func TestAttackAPanicInNewLeavesNothing(t *testing.T) {
	for name, opt := range map[string]Option{
		"metrics":        WithMetrics(panics{}),
		"libp2p option":  WithLibp2pOptions(func(*libp2p.Config) error { panic("boom") }),
		"transport":      WithLibp2pOptions(libp2p.Transport(func() transport.Transport { panic("boom") })),
		"pubsub option":  WithPubSubOptions(func(*pubsub.PubSub) error { panic("boom") }),
		"nil gater":      WithLibp2pOptions(libp2p.ConnectionGater((*panics)(nil))),
		"nil address":    WithBootstrapPeers(peer.AddrInfo{ID: mustKeyID(t), Addrs: []ma.Multiaddr{nil}}),
		"nil validators": WithPubSubOptions(pubsub.WithDefaultValidator(nil)),
	} {
		t.Run(name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			opts, other := everything(t)
			func() {
				defer func() { _ = recover() }()
				if n, err := New(testContext(t), append(opts, opt)...); err == nil {
					t.Error("New returned nil")
					mustClose(t, n)
				}
			}()
			mustClose(t, other)
			goleak.VerifyNone(t, leaktest.Ignored(leaks)...)
		})
	}
}

// Everybody in a banned subnet leaves the routing table.
func TestAttackABannedSubnetLeavesTheRoutingTable(t *testing.T) {
	other := newNode(t)
	n := newNode(t, via(other))
	mustNot(t, n.WaitReady(testContext(t)))
	mustNot(t, n.BanSubnet(netip.MustParsePrefix("127.0.0.0/8"), time.Time{}, ""))
	if peers := n.Status().DHT.Peers; peers != 0 {
		t.Errorf("%d peers are in the routing table", peers)
	}
}

// The names of networks, and the protocols that they share with others.
func TestAttackNetworksShareNoProtocol(t *testing.T) {
	for _, name := range []string{"ipfs/lan", "ipfs/x"} {
		if err := ValidateOptions(WithNetwork(name)); err == nil {
			t.Errorf("%q is accepted, which mixes with \"ipfs\"", name)
		}
	}
	owner := make(map[protocol.ID]string)
	for _, name := range []string{"ipfs", "lan", "a", "a/lan", "a/kad", "kad", "p2pnode"} {
		c, err := newConfig([]Option{WithNetwork(name)})
		mustNot(t, err)
		for _, p := range append(c.dhtProtocols(), protocol.ID(c.mdnsServiceName())) {
			if other, taken := owner[p]; taken {
				t.Errorf("%q and %q share %s", other, name, p)
			}
			owner[p] = name
		}
	}
}

// hungHandler is a log handler that returns when it is let.
type hungHandler struct {
	slog.Handler
	let <-chan struct{}
}

func (h hungHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h hungHandler) Handle(context.Context, slog.Record) error {
	<-h.let
	return nil
}

func (h hungHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// A log handler that hangs stops nothing, and is named by Close.
func TestAttackALoggerThatHangsStopsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := simNet(t)
		other, _ := simNode(t, sim)
		m, let := sim.NewMachine(), make(chan struct{})
		n, err := New(t.Context(), WithTransports(TransportQUIC), WithListenAddrs(m.ListenAddr()), WithLibp2pOptions(m.QUIC()...),
			WithLogger(slog.New(hungHandler{slog.DiscardHandler, let})))
		mustNot(t, err)
		sub := subscribe(t, other, "news")
		mustNot(t, n.Connect(t.Context(), other.AddrInfo()))
		mustNot(t, n.Publish(t.Context(), "news", []byte("x")))
		if _, err := sub.Next(t.Context()); err != nil {
			t.Error(err)
		}
		for range 2000 {
			n.log.Warn("a line")
		}
		begun := time.Now()
		if err := n.Close(); err == nil || !strings.Contains(err.Error(), "logger") {
			t.Errorf("Close = %v", err)
		}
		if took := time.Since(begun); took > 2*closeBudget {
			t.Errorf("Close took %v", took)
		}
		close(let)
	})
}
