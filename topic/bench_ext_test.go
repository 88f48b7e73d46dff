package topic_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/topic"
)

// post is about 1 KiB of JSON.
type post struct {
	Number int       `json:"number"`
	At     time.Time `json:"at"`
	Author string    `json:"author"`
	Tags   []string  `json:"tags"`
	Text   string    `json:"text"`
}

var aPost = post{7, time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC), "ada", []string{"one", "two", "three"}, strings.Repeat("lorem ipsum ", 77)}

const benchAddr = "/ip4/127.0.0.1/tcp/0"

// BenchmarkTyped publishes a value on one node and reads it on another, over
// loopback: with this package, with encoding/json over the bytes of a node's topic,
// and over those of a router assembled by hand.
func BenchmarkTyped(b *testing.B) {
	ctx := context.Background()
	data, err := json.Marshal(aPost)
	must(b, err)
	run := func(b *testing.B, send func() error, receive func() (post, error)) {
		b.Helper()
		both := func() {
			must(b, send())
			got, err := receive()
			must(b, err)
			if got.Number != aPost.Number {
				b.Fatalf("got %+v", got)
			}
		}
		both()
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			both()
		}
	}
	encoded := func(send func([]byte) error) func() error {
		return func() error {
			data, err := json.Marshal(aPost)
			if err != nil {
				return err
			}
			return send(data)
		}
	}
	decoded := func(data []byte, err error) (p post, _ error) {
		if err != nil {
			return p, err
		}
		return p, json.Unmarshal(data, &p)
	}
	b.Run("impl=topic", func(b *testing.B) {
		from, to := nodePair(b)
		out, err := topic.Join(from, "t", topic.JSON[post]())
		must(b, err)
		in, err := topic.Join(to, "t", topic.JSON[post]())
		must(b, err)
		sub, err := in.Subscribe(ctx)
		must(b, err)
		run(b, func() error { return out.Publish(ctx, aPost) }, func() (post, error) {
			m, err := sub.Next(ctx)
			return m.Value, err
		})
	})
	b.Run("impl=node+json", func(b *testing.B) {
		from, to := nodePair(b)
		out, err := from.Topic("t")
		must(b, err)
		sub, err := to.Subscribe(ctx, "t")
		must(b, err)
		run(b, encoded(func(data []byte) error { return out.Publish(ctx, data) }), func() (post, error) {
			m, err := sub.Next(ctx)
			if err != nil {
				return post{}, err
			}
			return decoded(m.Data, nil)
		})
	})
	b.Run("impl=raw+json", func(b *testing.B) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		from, to := rawHost(b), rawHost(b)
		out, in := rawTopic(ctx, b, from), rawTopic(ctx, b, to)
		sub, err := in.Subscribe()
		must(b, err)
		must(b, from.Connect(ctx, peer.AddrInfo{ID: to.ID(), Addrs: to.Addrs()}))
		for { // until the routers have streams to each other
			must(b, out.Publish(ctx, data))
			wait, done := context.WithTimeout(ctx, 100*time.Millisecond)
			_, err := sub.Next(wait)
			done()
			if err == nil {
				break
			}
		}
		run(b, encoded(func(data []byte) error { return out.Publish(ctx, data) }), func() (post, error) {
			m, err := sub.Next(ctx)
			if err != nil {
				return post{}, err
			}
			return decoded(m.Data, nil)
		})
	})
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// nodePair are two connected nodes.
func nodePair(b *testing.B) (from, to *p2pnode.Node) {
	b.Helper()
	start := func(opts ...p2pnode.Option) *p2pnode.Node {
		n, err := p2pnode.New(context.Background(), append(opts, p2pnode.WithListenAddrs(benchAddr))...)
		must(b, err)
		b.Cleanup(func() { must(b, n.Close()) })
		return n
	}
	from = start()
	to = start(p2pnode.WithBootstrapPeers(from.AddrInfo()))
	must(b, to.WaitReady(context.Background()))
	return from, to
}

// rawHost is a host with what a node's has.
func rawHost(b *testing.B) host.Host {
	b.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(b, err)
	h, err := libp2p.New(
		libp2p.Identity(key),
		libp2p.NoTransports,
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.ListenAddrStrings(benchAddr),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
	)
	must(b, err)
	b.Cleanup(func() { must(b, h.Close()) })
	return h
}

func rawTopic(ctx context.Context, b *testing.B, h host.Host) *pubsub.Topic {
	b.Helper()
	ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithFloodPublish(true))
	must(b, err)
	t, err := ps.Join("t")
	must(b, err)
	return t
}
