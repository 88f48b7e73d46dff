package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// TestPublishRightAfterConnectingReachesEverybody checks messages right after
// connecting: gossipsub by itself loses those of the first 50 ms, and over slow
// links later ones.
func TestPublishRightAfterConnectingReachesEverybody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithLatency(p2ptest.Fixed(300*time.Millisecond)))
		a := sim.Node(t)
		sub, err := a.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		if err := b.Publish(t.Context(), "news", []byte("first")); err != nil {
			t.Fatal(err)
		}
		if m := sim.Within(10*time.Second).Delivered(sub, 1)[0]; string(m.Data) != "first" {
			t.Errorf("got %q", m.Data)
		}
	})
}

// TestPitfall18BurstsArriveAtOnce: gossipsub's own queue for checking
// signatures has 32 places too.
func TestPitfall18BurstsArriveAtOnce(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		nodes := sim.Nodes(t, 5)
		sim.Ready()
		sub, err := nodes[0].Subscribe(t.Context(), "news", p2pnode.SubscribeBuffer(2000))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, n := range nodes[1:] {
			wg.Go(func() {
				for range 200 {
					if err := n.Publish(t.Context(), "news", []byte("x")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		sim.Delivered(sub, 800)
	})
}

// TestPitfall18BurstsArriveOverASlowLink checks bursts: gossipsub's own queue for
// a peer holds 32 messages and drops the others.
func TestPitfall18BurstsArriveOverASlowLink(t *testing.T) {
	raced.Skip(t)
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		reg := prometheus.NewRegistry()
		a := sim.Node(t, p2pnode.WithMetrics(reg))
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		sim.SetLink(a, p2ptest.Link{Up: 2 * p2ptest.Mbit})
		sub, err := b.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		unsent := func() float64 { return counter(t, reg, "p2pnode_pubsub_unsent_total") }
		publish := func(n int, opts ...p2pnode.PublishOption) {
			for range n {
				if err := a.Publish(t.Context(), "news", make([]byte, 2000), opts...); err != nil {
					t.Fatal(err)
				}
			}
		}
		publish(400)
		sim.Delivered(sub, 400)
		if n := unsent(); n != 0 {
			t.Errorf("%v messages are counted as unsent", n)
		}

		// Beyond all measure Publish waits for room, and PublishNow does not: they are
		// dropped, and counted.
		var wg sync.WaitGroup
		wg.Go(func() { publish(5000) })
		sim.Within(time.Minute).Delivered(sub, 5000)
		wg.Wait()
		if n := unsent(); n != 0 {
			t.Errorf("%v messages are counted as unsent", n)
		}
		publish(5000, p2pnode.PublishNow())
		time.Sleep(time.Minute)
		got := 0
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_, err := sub.Next(ctx)
			cancel()
			if err != nil {
				break
			}
			got++
		}
		if n := unsent(); n == 0 || got+int(n)+int(sub.Dropped()) != 5000 {
			t.Errorf("of 5000 messages %d arrive, %v are counted as unsent, %d as dropped", got, n, sub.Dropped())
		}
	})
}

// TestATopicIsLeftAfterTheLastMessage: a node that publishes without a
// subscription keeps the topic for half a minute, and its peers see it go.
func TestATopicIsLeftAfterTheLastMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport())
		n := sim.Node(t)
		for range 3 {
			if err := n.Publish(t.Context(), "news", nil, p2pnode.PublishNow()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		if len(n.Status().Topics) != 1 {
			t.Error("the topic is left between messages 20 s apart")
		}
		time.Sleep(11 * time.Second)
		if list := n.Status().Topics; len(list) != 0 {
			t.Errorf("31 s after the last message the node has the topics %v", list)
		}
	})
}

// TestPublishGivesUpByItself: a context without an end does not make it wait for
// good.
func TestPublishGivesUpByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t)
		begun := time.Now()
		err := n.Publish(context.Background(), "t", nil)
		if took := time.Since(begun); !errors.Is(err, p2pnode.ErrNoPeers) || took != 5*time.Second {
			t.Errorf("Publish = %v after %v", err, took)
		}
	})
}

// TestPublishedMessagesFitWhateverTheIdentity checks that all messages that
// Publish accepts arrive, even with the signature and the key of a large RSA
// identity (go-libp2p#954), and with the longest topic name.
func TestPublishedMessagesFitWhateverTheIdentity(t *testing.T) {
	t.Parallel()
	rsa := func(bits int) func() (crypto.PrivKey, error) {
		return func() (crypto.PrivKey, error) { return p2pnode.GenerateRSAKey(bits) }
	}
	of := func(kind p2pnode.KeyType) func() (crypto.PrivKey, error) {
		return func() (crypto.PrivKey, error) { return p2pnode.GenerateKey(kind) }
	}
	for name, generate := range map[string]func() (crypto.PrivKey, error){
		"Ed25519": of(p2pnode.KeyEd25519), "Secp256k1": of(p2pnode.KeySecp256k1), "ECDSA": of(p2pnode.KeyECDSA),
		"RSA 2048": rsa(2048), "RSA 4096": rsa(4096),
	} {
		if (testing.Short() || raced.Detector) && name != "Ed25519" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			key, err := generate()
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t)
				size := p2pnode.WithMaxMessageSize(16 << 10)
				a := sim.Node(t, size, p2pnode.WithIdentity(key))
				b := sim.Node(t, size, p2pnode.WithBootstrapPeers(a.AddrInfo()))
				sim.Connected(a, b)
				for _, topic := range []string{"t", strings.Repeat("t", 1<<10)} {
					sub, err := b.Subscribe(t.Context(), topic)
					if err != nil {
						t.Fatal(err)
					}
					refused := sort.Search(16<<10, func(n int) bool {
						err := a.Publish(t.Context(), topic, make([]byte, n))
						if err != nil && !errors.Is(err, p2pnode.ErrTooLarge) {
							t.Fatal(err)
						}
						return err != nil
					})
					if refused < 13<<10 {
						t.Errorf("%d bytes are refused already", refused)
					}
					time.Sleep(time.Second)
					largest := 0
					for _, m := range p2ptest.Take(sub) {
						largest = max(largest, len(m.Data))
					}
					if largest != refused-1 {
						t.Errorf("%d bytes are refused, and the largest message that arrived has %d", refused, largest)
					}
				}
				if err := a.Publish(t.Context(), strings.Repeat("t", 1<<10+1), nil); !errors.Is(err, p2pnode.ErrTooLarge) {
					t.Errorf("a topic with a longer name: %v", err)
				}
				if _, err := a.Subscribe(t.Context(), "\xff"); err == nil {
					t.Error("a topic whose name is no text is taken")
				}
			})
		})
	}
}

// A message that cannot be sent in time over a slow link is lost and counted;
// those after it arrive. With gossipsub alone, the subscriber would lose all
// topics.
func TestMessageTooLargeForTheLinkIsLostAlone(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		reg := prometheus.NewRegistry()
		a := sim.Node(t, p2pnode.WithMetrics(reg))
		b := sim.Node(t, p2pnode.WithBootstrapPeers(a.AddrInfo()))
		sub, err := b.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Publish(t.Context(), "news", []byte("first")); err != nil {
			t.Fatal(err)
		}
		sim.Delivered(sub, 1)
		sim.SetLink(a, p2ptest.Link{Up: p2ptest.Mbit / 8}) // 1 MB takes more than a minute
		for i := range 3 {
			if err := a.Publish(t.Context(), "news", make([]byte, 1_000_000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(40 * time.Second)
			begun := time.Now()
			if err := a.Publish(t.Context(), "news", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
			if m := sim.Within(time.Minute).Delivered(sub, 1)[0]; string(m.Data) != fmt.Sprint(i) {
				t.Errorf("got %d bytes", len(m.Data))
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("a small message takes %v after a large one", took)
			}
			if n := counter(t, reg, "p2pnode_pubsub_unsent_total"); n != float64(i+1) {
				t.Errorf("%v messages count as unsent after %d", n, i+1)
			}
		}
	})
}

// counter is the value of a counter of the only node on a registry.
func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// A message that somebody repeats is delivered once, also after gossipsub has
// forgotten it.
func TestAttackAReplayIsNotDeliveredAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		reader, author := sim.Node(t), sim.Node(t)
		stranger := sim.Node(t, p2pnode.WithoutPubSub())
		sub, err := reader.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(author.Connect(t.Context(), reader.AddrInfo()), stranger.Connect(t.Context(), reader.AddrInfo())); err != nil {
			t.Fatal(err)
		}
		topic, err := author.PubSub().Join("news")
		if err != nil {
			t.Fatal(err)
		}
		own, err := topic.Subscribe()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := topic.Publish(t.Context(), []byte("once")); err != nil {
			t.Fatal(err)
		}
		recorded, err := own.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sim.Within(10*time.Second).Delivered(sub, 1)
		time.Sleep(5 * time.Minute)
		s, err := stranger.Host().NewStream(t.Context(), reader.ID(), "/meshsub/1.1.0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := protodelim.MarshalTo(s, &pubsub_pb.RPC{Publish: []*pubsub_pb.Message{recorded.Message}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if m, err := sub.Next(ctx); err == nil {
			t.Errorf("%q is delivered again", m.Data)
		}
		own.Cancel()
		if err := topic.Close(); err != nil {
			t.Error(err)
		}
	})
}
