package p2pnode

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/limits"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Each benchmark runs as impl=p2pnode and as impl=raw: the same assembled by hand
// from go-libp2p, kad-dht and pubsub, with the same settings. The difference is
// the library's cost.

// rawNode is a node put together by hand.
type rawNode struct {
	host libp2pHost
	dht  *dht.IpfsDHT // nil without
	ps   *pubsub.PubSub
	end  context.CancelFunc
}

func newRaw() (*rawNode, error) {
	n, err := newRawRouter("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws")
	if err != nil {
		return nil, err
	}
	cfg := defaultConfig()
	n.dht, err = dht.New(n.host, dht.Mode(dht.ModeAutoServer), dht.ProtocolPrefix("/p2pnode"), dht.Validator(kad.Validators(n.host, nil, cfg.logger)))
	return n, err
}

// newRawRouter returns a node without a DHT.
func newRawRouter(addrs ...string) (_ *rawNode, err error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	cfg := defaultConfig()
	manager, err := limits.New(limits.Config{Limits: limits.Limits(cfg.limits), ConnHigh: cfg.connHigh, Public: cfg.ipfs, Log: cfg.logger}) // the same limits
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(cfg.connLow, cfg.connHigh, connmgr.WithGracePeriod(20*time.Second))
	if err != nil {
		return nil, err
	}
	h, err := libp2p.New(
		libp2p.Identity(key),
		libp2p.UserAgent("raw"),
		libp2p.ResourceManager(manager),
		libp2p.ConnectionManager(conns),
		libp2p.NoTransports,
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Transport(quic.NewTransport),
		libp2p.Transport(websocket.New),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.EnableRelay(),
		libp2p.ListenAddrStrings(addrs...),
		nethost.NoMetrics,
	)
	if err != nil {
		return nil, err
	}
	n := &rawNode{host: h}
	ctx, cancel := context.WithCancel(context.Background())
	n.end = cancel
	n.ps, err = pubsub.NewGossipSub(ctx, h,
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMaxMessageSize(defaultMaxMessageSize),
		pubsub.WithFloodPublish(true))
	return n, err
}

func (n *rawNode) close() error {
	n.end()
	if n.dht == nil {
		return n.host.Close()
	}
	return errors.Join(n.dht.Close(), n.host.Close())
}

func rawNodes(b *testing.B, count int) []*rawNode {
	b.Helper()
	var list []*rawNode
	for range count {
		n, err := newRaw()
		mustNot(b, err)
		b.Cleanup(func() { mustNot(b, n.close()) })
		list = append(list, n)
	}
	return list
}

// filled waits until the routing tables of all nodes have who they can have, or as
// many as a region.
func filled(b *testing.B, sizes ...func() int) {
	b.Helper()
	for _, size := range sizes {
		mustNot(b, waitFor(b, func() bool { return size() >= min(len(sizes)-1, contentNodes) }))
	}
}

func BenchmarkNewClose(b *testing.B) {
	b.Run("impl=p2pnode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n, err := New(context.Background(), loopback())
			mustNot(b, err)
			mustNot(b, n.Close())
		}
	})
	b.Run("impl=raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n, err := newRaw()
			mustNot(b, err)
			mustNot(b, n.close())
		}
	})
}

// BenchmarkPublishNext publishes a message and reads it on all other nodes, each
// connected with each.
func BenchmarkPublishNext(b *testing.B) {
	data := bytes.Repeat([]byte("x"), 1<<10)
	ctx := context.Background()
	run := func(b *testing.B, publish func() error, next []func() error) {
		b.Helper()
		both := func() {
			mustNot(b, publish())
			for _, next := range next {
				mustNot(b, next())
			}
		}
		both()
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		cpu := cpuTime()
		for b.Loop() {
			both()
		}
		b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
	}
	for _, count := range []int{2, 20} {
		b.Run(fmt.Sprintf("nodes=%d/impl=p2pnode", count), func(b *testing.B) {
			nodes := ourNetwork(b, count)
			from := nodes[0]
			var next []func() error
			for _, n := range nodes[1:] {
				sub, err := n.Subscribe(ctx, "t")
				mustNot(b, err)
				next = append(next, func() error { _, err := sub.Next(ctx); return err })
			}
			out, err := from.Topic("t")
			mustNot(b, err)
			mustNot(b, waitFor(b, func() bool { return len(out.Peers()) == count-1 }))
			run(b, func() error { return from.Publish(ctx, "t", data) }, next)
		})
		b.Run(fmt.Sprintf("nodes=%d/impl=raw", count), func(b *testing.B) {
			nodes := rawNetwork(b, count)
			from, err := nodes[0].ps.Join("t")
			mustNot(b, err)
			var next []func() error
			for _, n := range nodes[1:] {
				to, err := n.ps.Join("t")
				mustNot(b, err)
				sub, err := to.Subscribe()
				mustNot(b, err)
				next = append(next, func() error { _, err := sub.Next(ctx); return err })
			}
			mustNot(b, waitFor(b, func() bool { return len(from.ListPeers()) == count-1 }))
			run(b, func() error { return from.Publish(ctx, data) }, next)
		})
	}
}

// contentNodes is how many nodes the benchmarks of content run on.
const contentNodes = 20

func ourNetwork(b *testing.B, count int) []*Node {
	b.Helper()
	var nodes []*Node
	var sizes []func() int
	for range count {
		n := newNode(b)
		nodes = append(nodes, n)
		sizes = append(sizes, n.dht.Size)
	}
	mesh(b, len(nodes), func(i, j int) error { return nodes[i].Connect(context.Background(), nodes[j].AddrInfo()) })
	filled(b, sizes...)
	return nodes
}

// mesh connects everybody with everybody, so that both variants of a benchmark
// run on the same network.
func mesh(b *testing.B, n int, connect func(i, j int) error) {
	b.Helper()
	for i := range n {
		for j := range i {
			mustNot(b, connect(i, j))
		}
	}
}

func rawNetwork(b *testing.B, count int) []*rawNode {
	b.Helper()
	nodes := rawNodes(b, count)
	var sizes []func() int
	for _, n := range nodes {
		sizes = append(sizes, n.dht.RoutingTable().Size)
	}
	mesh(b, len(nodes), func(i, j int) error {
		return nodes[i].host.Connect(context.Background(), addrInfoOf(nodes[j].host))
	})
	filled(b, sizes...)
	return nodes
}

// numbered returns another CID for each i.
func numbered(b *testing.B, i int) cid.Cid {
	b.Helper()
	c, err := CIDOf(bytes.NewReader(binary.BigEndian.AppendUint64(nil, uint64(i))))
	mustNot(b, err)
	return c
}

func BenchmarkProvide(b *testing.B) {
	b.Run("impl=p2pnode", func(b *testing.B) {
		nodes := ourNetwork(b, contentNodes)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			mustNot(b, nodes[0].Provide(context.Background(), numbered(b, i)))
		}
	})
	b.Run("impl=raw", func(b *testing.B) {
		nodes := rawNetwork(b, contentNodes)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			mustNot(b, nodes[0].dht.Provide(context.Background(), numbered(b, i), true))
		}
	})
}

func BenchmarkFindProviders(b *testing.B) {
	c := cid.NewCidV1(cid.Raw, numbered(b, 1).Hash())
	b.Run("impl=p2pnode", func(b *testing.B) {
		nodes := ourNetwork(b, contentNodes)
		mustNot(b, nodes[0].Provide(context.Background(), c))
		b.ReportAllocs()
		for b.Loop() {
			found := 0
			for _, err := range nodes[1].FindProviders(context.Background(), c) {
				mustNot(b, err)
				found++
			}
			if found != 1 {
				b.Fatalf("found %d", found)
			}
		}
	})
	b.Run("impl=raw", func(b *testing.B) {
		nodes := rawNetwork(b, contentNodes)
		mustNot(b, nodes[0].dht.Provide(context.Background(), c, true))
		b.ReportAllocs()
		for b.Loop() {
			found := 0
			for range nodes[1].dht.FindProvidersAsync(context.Background(), c, 0) {
				found++
			}
			if found != 1 {
				b.Fatalf("found %d", found)
			}
		}
	})
}

func BenchmarkOpenStreamEcho(b *testing.B) {
	data := bytes.Repeat([]byte("x"), 1<<10)
	roundTrip := func(b *testing.B, s network.Stream, err error) {
		mustNot(b, err)
		_, err = s.Write(data)
		mustNot(b, err)
		mustNot(b, s.CloseWrite())
		got, err := io.ReadAll(s)
		mustNot(b, err)
		if !bytes.Equal(got, data) {
			b.Fatalf("%d bytes came back", len(got))
		}
		mustNot(b, s.Close())
	}
	b.Run("impl=p2pnode", func(b *testing.B) {
		from, to := pair(b)
		serveEcho(to)
		ctx := context.Background()
		b.ReportAllocs()
		for b.Loop() {
			s, err := from.OpenStream(ctx, to.ID(), echoID)
			roundTrip(b, s, err)
		}
	})
	b.Run("impl=raw", func(b *testing.B) {
		nodes := rawNodes(b, 2)
		nodes[1].host.SetStreamHandler(echoID, func(s network.Stream) {
			if _, err := io.Copy(s, s); err != nil {
				_ = s.Reset()
				return
			}
			_ = s.Close()
		})
		ctx := context.Background()
		mustNot(b, nodes[0].host.Connect(ctx, addrInfoOf(nodes[1].host)))
		b.ReportAllocs()
		for b.Loop() {
			s, err := nodes[0].host.NewStream(ctx, nodes[1].host.ID(), echoID)
			roundTrip(b, s, err)
		}
	})
}
