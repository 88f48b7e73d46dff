package p2pnode_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// speaker is a peer on the topic "news", of this library or of other make.
type speaker struct {
	p2ptest.Selector
	host    func() host.Host
	publish func(ctx context.Context, text string) error

	mu    sync.Mutex
	heard map[string]bool
}

func (s *speaker) hear(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard == nil {
		s.heard = map[string]bool{}
	}
	s.heard[text] = true
}

func (s *speaker) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard[text]
}

func (s *speaker) id() peer.ID { return s.host().ID() }

// ours is a node that is subscribed; listen is to be called again after a
// restart.
func ours(t *testing.T, n *p2ptest.Node) (s *speaker, listen func()) {
	s = &speaker{Selector: n, host: n.Host, publish: func(ctx context.Context, text string) error {
		return n.Publish(ctx, "news", []byte(text))
	}}
	listen = func() {
		sub, err := n.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for m, err := range sub.Messages(t.Context()) {
				if err != nil {
					return
				}
				s.hear(string(m.Data))
			}
		}()
	}
	listen()
	return s, listen
}

// theirs is a peer of other make that is subscribed.
func theirs(t *testing.T, raw *p2ptest.RawNode) *speaker {
	topic, err := raw.PubSub.Join("news")
	if err != nil {
		t.Fatal(err)
	}
	sub, err := topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	s := &speaker{Selector: raw, host: func() host.Host { return raw.Host }, publish: func(ctx context.Context, text string) error {
		return topic.Publish(ctx, []byte(text))
	}}
	go func() {
		for {
			m, err := sub.Next(t.Context())
			if err != nil {
				return
			}
			s.hear(string(m.Data))
		}
	}()
	return s
}

// flows fails the test unless messages go both ways within 5 seconds.
func flows(t *testing.T, what string, a, b *speaker) {
	t.Helper()
	begun := time.Now()
	arrives := func(from, to *speaker) bool {
		for time.Since(begun) < 5*time.Second {
			text := fmt.Sprintf("%s %v", from.id(), time.Now())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := from.publish(ctx, text)
			cancel()
			time.Sleep(100 * time.Millisecond)
			if err == nil && to.has(text) {
				return true
			}
		}
		return false
	}
	if !arrives(a, b) {
		t.Errorf("%s: nothing arrives from the node for 5 seconds", what)
	}
	begun = time.Now()
	if !arrives(b, a) {
		t.Errorf("%s: nothing arrives from the other for 5 seconds", what)
	}
}

// meshStreams are the pubsub streams that a host has with a peer, those that it
// opened or those that the peer did.
func meshStreams(h host.Host, id peer.ID, dir network.Direction) (list []network.Stream) {
	for _, c := range h.Network().ConnsToPeer(id) {
		for _, s := range c.GetStreams() {
			if strings.HasPrefix(string(s.Protocol()), "/meshsub") && s.Stat().Direction == dir {
				list = append(list, s)
			}
		}
	}
	return list
}

func reset(list []network.Stream) {
	for _, s := range list {
		_ = s.Reset()
	}
}

// Streams that end while the peers stay connected leave no peer deaf (pubsub#128
// and similar issues), whichever side ends them, however often, and with any other
// implementation. Gossipsub by itself announces topics once, and gives up on a
// peer after five times.
func TestTopicsOutliveTheirStreams(t *testing.T) {
	t.Parallel()
	cuts := map[string]func(a, b *speaker){
		"outgoing, by the node":  func(a, b *speaker) { reset(meshStreams(a.host(), b.id(), network.DirOutbound)) },
		"outgoing, by the other": func(a, b *speaker) { reset(meshStreams(b.host(), a.id(), network.DirInbound)) },
		"incoming, by the node":  func(a, b *speaker) { reset(meshStreams(a.host(), b.id(), network.DirInbound)) },
		"incoming, by the other": func(a, b *speaker) { reset(meshStreams(b.host(), a.id(), network.DirOutbound)) },
		"both, each by the opener": func(a, b *speaker) {
			reset(meshStreams(a.host(), b.id(), network.DirOutbound))
			reset(meshStreams(b.host(), a.id(), network.DirOutbound))
		},
		"both, by the node": func(a, b *speaker) {
			reset(meshStreams(a.host(), b.id(), network.DirOutbound))
			reset(meshStreams(a.host(), b.id(), network.DirInbound))
		},
	}
	for what, cut := range cuts {
		for _, make := range []string{"p2pnode", "go-libp2p"} {
			if testing.Short() && !strings.HasPrefix(what, "both") {
				continue
			}
			t.Run(what+", "+make, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t)
					n := sim.Node(t)
					a, _ := ours(t, n)
					var b *speaker
					if make == "p2pnode" {
						b, _ = ours(t, sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo())))
					} else {
						b = theirs(t, sim.Raw(t, p2ptest.RawConnect(n.AddrInfo())))
					}
					sim.Connected(n, b)
					flows(t, "at first", a, b)
					conn := n.Host().Network().ConnsToPeer(b.id())[0]
					times := 3 // the other's own gossipsub gives up after five
					if make == "p2pnode" {
						times = 20
					}
					for i := range times {
						cut(a, b)
						flows(t, fmt.Sprintf("after %d times", i+1), a, b)
						if t.Failed() {
							return
						}
						time.Sleep(rand.N(3 * time.Second))
					}
					if conn.IsClosed() {
						t.Error("a connection that works was closed")
					}
				})
			})
		}
	}
}

// Gossipsub gives up a peer when its stream to it has ended five times. Somebody
// else's node that has done so cannot be made to try again but by a new
// connection; that is an event and a finding.
func TestPeerThatStopsSendingIsConnectedAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t)
		a, _ := ours(t, n)
		b := theirs(t, sim.Raw(t, p2ptest.RawConnect(n.AddrInfo())))
		sim.Connected(n, b)
		flows(t, "at first", a, b)
		events := n.Events(t.Context())
		for range 5 {
			reset(meshStreams(n.Host(), b.id(), network.DirInbound))
			time.Sleep(time.Second)
		}
		for ev := range events {
			if deaf, ok := ev.(p2pnode.EventPeerDeaf); ok {
				if deaf.ID != b.id() {
					t.Errorf("%s is deaf", deaf.ID)
				}
				break
			}
		}
		sim.Connected(n, b)
		flows(t, "connected anew", a, b)

		// Not again within 10 minutes: Diagnose reports the peer.
		for range 5 {
			reset(meshStreams(n.Host(), b.id(), network.DirInbound))
			time.Sleep(time.Second)
		}
		time.Sleep(20 * time.Second)
		names(t, finds(t, n, p2pnode.FindingDeafPeer), b.id().String())
	})
}

// js-libp2p does not reopen its stream, but opens one when it gets one: the node
// hears of its topics again over the same connection. interop_ext_test.go tests the
// original.
func TestTopicsOutliveStreamsThatOpenOnlyInAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const proto = "/meshsub/1.1.0"
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t)
		ours(t, n)
		other := sim.Hostile(t)
		var mu sync.Mutex
		var opened network.Stream // guarded by mu
		other.SetStreamHandler(proto, func(in network.Stream) {
			mu.Lock()
			if opened == nil {
				s, err := other.NewStream(t.Context(), n.ID(), proto)
				if err == nil {
					topic, yes := "news", true
					_, err = protodelim.MarshalTo(s, &pubsub_pb.RPC{Subscriptions: []*pubsub_pb.RPC_SubOpts{{Topicid: &topic, Subscribe: &yes}}})
				}
				if err != nil {
					t.Error(err)
				}
				opened = s
			}
			mu.Unlock()
			_, _ = io.Copy(io.Discard, in)
			_ = in.Reset()
		})
		if err := other.Connect(t.Context(), n.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		conn := n.Host().Network().ConnsToPeer(other.ID())[0]
		for i := range 8 {
			if err := n.Publish(t.Context(), "news", nil); err != nil { // waits for 5 seconds
				t.Fatalf("after %d times: %v", i, err)
			}
			mu.Lock()
			_ = opened.Reset()
			opened = nil
			mu.Unlock()
			time.Sleep(100 * time.Millisecond) // for the node to notice
		}
		if conn.IsClosed() {
			t.Error("a connection that works was closed")
		}
	})
}

// Only a message above the other side's limit gets lost, as during a rollout of a
// higher limit.
func TestTopicsOutliveAMessageAboveTheOthersLimit(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t, p2pnode.WithMaxMessageSize(8<<20))
		a, _ := ours(t, n)
		other := sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo()))
		b, _ := ours(t, other)
		sim.Connected(n, other)
		flows(t, "at first", a, b)
		for i := range 7 {
			if err := n.Publish(t.Context(), "news", make([]byte, 2<<20)); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
			flows(t, fmt.Sprintf("after %d large messages", i+1), a, b)
		}
	})
}

// A subscriber that crashes and restarts before its old connection has timed out
// gets the topics again, even the twentieth time.
func TestTopicsOutliveCrashes(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t)
		a, _ := ours(t, n)
		other := sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo()))
		b, listen := ours(t, other)
		for i := range 21 {
			sim.Connected(other, n)
			flows(t, fmt.Sprintf("after %d crashes", i), a, b)
			if t.Failed() {
				return
			}
			sim.Crash(other)
			time.Sleep(rand.N(10 * time.Second))
			sim.Restart(other)
			listen()
		}
	})
}

// When two peers dial each other at the same moment there can be two
// connections, and either can go.
func TestTopicsOutliveOneOfTwoConnections(t *testing.T) {
	t.Parallel()
	for _, make := range []string{"p2pnode", "go-libp2p"} {
		for first := range 2 {
			t.Run(fmt.Sprint(make, first), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					sim := p2ptest.NewNetwork(t)
					n := sim.Node(t)
					a, _ := ours(t, n)
					var b *speaker
					if make == "p2pnode" {
						b, _ = ours(t, sim.Node(t))
					} else {
						b = theirs(t, sim.Raw(t))
					}
					dials := atOnce(t, func() error { return n.Host().Connect(t.Context(), sim.AddrInfo(b)) },
						func() error { return b.host().Connect(t.Context(), n.AddrInfo()) })
					dials()
					conns := n.Host().Network().ConnsToPeer(b.id())
					if len(conns) != 2 {
						t.Fatalf("%d connections", len(conns))
					}
					flows(t, "over two connections", a, b)
					if err := conns[first].Close(); err != nil {
						t.Error(err)
					}
					flows(t, "over the other", a, b)
					if conns[1-first].IsClosed() {
						t.Error("the other connection was closed")
					}
				})
			})
		}
	}
}

// atOnce returns a function that runs both concurrently.
func atOnce(t *testing.T, f, g func() error) func() {
	return func() {
		var wg sync.WaitGroup
		for _, f := range []func() error{f, g} {
			wg.Go(func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// A stranger that prunes the node from a topic cannot make it dial the peers
// that it names: not one of them, wherever they are.
func TestPrunedNodesDialNobodyOnAStrangersWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n := sim.Node(t, p2pnode.WithoutDHT())
		a, _ := ours(t, n)
		victim := sim.Raw(t)
		b := theirs(t, sim.Raw(t, p2ptest.RawConnect(n.AddrInfo())))
		sim.Connected(n, b)
		flows(t, "at first", a, b)
		book, _ := peerstore.GetCertifiedAddrBook(victim.Peerstore())
		signed, err := book.GetPeerRecord(victim.ID()).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		topic, backoff := "news", uint64(60)
		s := meshStreams(b.host(), n.ID(), network.DirOutbound)[0]
		_, err = protodelim.MarshalTo(s, &pubsub_pb.RPC{Control: &pubsub_pb.ControlMessage{Prune: []*pubsub_pb.ControlPrune{{
			TopicID: &topic, Backoff: &backoff, Peers: []*pubsub_pb.PeerInfo{
				{PeerID: []byte(victim.ID()), SignedPeerRecord: signed},
				{PeerID: bytes.Repeat([]byte("x"), 60_000)},
			},
		}}}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, ok := n.Peer(victim.ID()); ok {
			t.Error("the node has dialed a peer that a stranger named")
		}
	})
}

// relayed returns whether a peer's pubsub streams are on a relayed connection.
func relayed(h host.Host, id peer.ID) bool {
	for _, s := range append(meshStreams(h, id, network.DirOutbound), meshStreams(h, id, network.DirInbound)...) {
		if _, err := s.Conn().RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err == nil {
			return true
		}
	}
	return false
}

// metThroughRelay returns two nodes that are connected through a relay alone, or
// that are about to punch a hole.
func metThroughRelay(t *testing.T, sim *p2ptest.Network, relay *p2ptest.Node, punch bool) (n, other *p2ptest.Node) {
	opts := []p2pnode.Option{p2pnode.WithoutDHT(), p2pnode.WithAutoRelay(relay.AddrInfo())}
	if punch {
		opts = append(opts, p2pnode.WithHolePunching())
		n, other = sim.NAT(p2ptest.PortRestricted).Node(t, opts...), sim.NAT(p2ptest.PortRestricted).Node(t, opts...)
	} else {
		n, other = sim.Node(t, opts...), sim.Node(t, opts...)
	}
	for _, x := range []*p2ptest.Node{n, other} {
		if err := x.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)                                          // hole punching waits for an observed address
	if err := n.Connect(t.Context(), other.AddrInfo()); err != nil { // only relayed addresses
		t.Fatal(err)
	}
	if p, _ := n.Peer(other.ID()); !p.Relayed {
		t.Fatal("the connection is not relayed")
	}
	return n, other
}

// dialDirectly connects two nodes a second time.
func dialDirectly(t *testing.T, n, other *p2ptest.Node) {
	n.Host().Peerstore().AddAddrs(other.ID(), other.Host().Network().ListenAddresses(), time.Hour)
	if _, err := n.Host().Network().DialPeer(network.WithForceDirectDial(t.Context(), "test"), other.ID()); err != nil {
		t.Fatal(err)
	}
}

// Two nodes that met through a relay, and are connected directly since, do not
// need the relay any more. Gossipsub's streams stay on a relayed connection
// without limits, which looks alive for half a minute after a crash.
func TestTopicsOutliveTheRelayAfterADirectConnection(t *testing.T) {
	t.Parallel()
	for _, unlimited := range []bool{true, false} {
		for _, crash := range []bool{true, false} {
			for _, punch := range []bool{true, false} {
				if testing.Short() && !crash {
					continue
				}
				t.Run(fmt.Sprintf("unlimited %t, crash %t, punched %t", unlimited, crash, punch), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						sim := p2ptest.NewNetwork(t)
						relay := sim.Node(t, p2pnode.WithoutPubSub(), p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: unlimited}))
						n, other := metThroughRelay(t, sim, relay, punch)
						a, _ := ours(t, n)
						b, _ := ours(t, other)
						if !punch {
							if unlimited {
								flows(t, "relayed", a, b)
								if !relayed(n.Host(), other.ID()) {
									t.Fatal("the pubsub streams are not relayed")
								}
							}
							dialDirectly(t, n, other)
						}
						sim.Until("a direct connection", func() error {
							if p, _ := n.Peer(other.ID()); p.Relayed {
								return errors.New("there is none")
							}
							return nil
						})
						flows(t, "connected directly", a, b)
						if crash {
							sim.Crash(relay)
						} else if err := relay.Close(); err != nil {
							t.Error(err)
						}
						flows(t, "without the relay", a, b)
					})
				})
			}
		}
	}
}

// The streams move from a relayed connection to a direct one without losing what is
// on its way.
func TestMessagesOnTheirWayOutliveTheMoveToADirectConnection(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithLatency(p2ptest.Fixed(30*time.Millisecond))) // less than flows waits for a message
		n, other := metThroughRelay(t, sim, sim.Node(t, p2pnode.WithoutPubSub(), p2pnode.WithRelayLimits(p2pnode.RelayLimits{Unlimited: true})), false)
		a, _ := ours(t, n)
		b, _ := ours(t, other)
		flows(t, "relayed", a, b)
		var wg sync.WaitGroup
		for _, s := range []*speaker{a, b} {
			wg.Go(func() {
				// Between the moments when packets arrive: what is published at the very one
				// at which gossipsub forgets the other's topics reaches nobody.
				time.Sleep(5 * time.Millisecond)
				for i := range 300 {
					if err := s.publish(t.Context(), fmt.Sprint(s.id(), i)); err != nil { // waits for a peer on the topic
						t.Error(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		time.Sleep(time.Second)
		dialDirectly(t, n, other)
		wg.Wait()
		time.Sleep(5 * time.Second)
		if relayed(n.Host(), other.ID()) {
			t.Error("a pubsub stream is relayed still")
		}
		for from, to := range map[*speaker]*speaker{a: b, b: a} {
			for i := range 300 {
				if !to.has(fmt.Sprint(from.id(), i)) {
					t.Errorf("message %d from %s is lost", i, from.id())
				}
			}
		}
	})
}
