package p2pnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

type libp2pHost = host.Host

func addrInfoOf(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// A peer is announced once, after its identification (pitfall 72), and so is
// its end, however many connections it has.
func TestPitfall72PeerEvents(t *testing.T) {
	a := newNode(t)
	events := a.Events(testContext(t))
	b, err := New(testContext(t), loopback(), WithUserAgent("b"))
	mustNot(t, err)
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
	// A second connection.
	_, err = swarmOf(b).DialPeer(network.WithForceDirectDial(testContext(t), "test"), a.ID())
	mustNot(t, err)
	mustNot(t, b.Close())
	here, gone := 0, 0
	for ev := range events {
		switch ev := ev.(type) {
		case EventPeerConnected:
			here++
			if ev.Peer.ID != b.ID() || ev.Peer.Agent != "b" {
				t.Errorf("connected: %+v", ev.Peer)
			}
		case EventPeerDisconnected:
			gone++
		}
		if gone == 1 {
			break
		}
	}
	if here != 1 {
		t.Errorf("%d connected events", here)
	}
}

// A consumer that does not read loses events, gets their number, and delays no
// other (pitfall 59).
func TestPitfall59SlowConsumer(t *testing.T) {
	n := newNode(t)
	unread := n.Events(testContext(t))
	for range eventBuffer + 10 {
		n.watch.emit(EventPeerDisconnected{})
	}
	count := 0
	for ev := range unread {
		if lost, ok := ev.(EventsLost); ok {
			if count != 0 || lost.Count < 10 || lost.Count > 20 { // the node's own events count too
				t.Errorf("lost %d after %d", lost.Count, count)
			}
		}
		if count++; count == eventBuffer+1 {
			break
		}
	}
	n.Events(testContext(t)) // never read: Close must not mind
	ctx, cancel := context.WithCancel(testContext(t))
	stream := n.Events(ctx)
	cancel()
	for range stream {
		t.Error("an event after the end of the context")
	}
	mustNot(t, waitFor(t, func() bool { return n.watch.hub.Subscribers() == 1 }))
}

// Multicast DNS finds peers while New still runs, too: EventsWithState tells of those that
// the node remembers, and of no more, however many somebody makes up.
func TestPeersOfTheLANAreState(t *testing.T) {
	n, marker := newNode(t), mustKeyID(t)
	last := peer.AddrInfo{ID: mustKeyID(t), Addrs: []ma.Multiaddr{ma4("/ip4/127.0.0.1/tcp/1")}}
	for i := range 599 {
		n.keeper.Found(peer.AddrInfo{ID: peer.ID(fmt.Sprint("made up ", i)), Addrs: last.Addrs}, "mdns")
	}
	mustNot(t, waitFor(t, func() bool { // one of them makes room as soon as it has failed
		n.keeper.Found(last, "mdns")
		found := map[peer.ID]bool{}
		events := n.Events(testContext(t), EventsWithState())
		mustNot(t, n.BanPeer(marker, time.Time{}, "")) // the first event after the state
		mustNot(t, n.UnbanPeer(marker))
		for ev := range events {
			switch ev := ev.(type) {
			case EventPeerFound:
				if found[ev.ID] || ev.Source != "mdns" || ev.At.IsZero() {
					t.Errorf("%+v", ev)
				}
				found[ev.ID] = true
				continue
			case EventBanned:
			default:
				continue
			}
			break
		}
		if len(found) > 512 {
			t.Errorf("%d peers are told of", len(found))
		}
		return found[last.ID] && len(found) == 512
	}))
}

func TestWaitReady(t *testing.T) {
	mustNot(t, newNode(t).WaitReady(testContext(t))) // nothing to wait for
	n := newNode(t, WithMinPeers(2))
	waiting := make(chan error, 1)
	go func() { waiting <- n.WaitReady(testContext(t)) }()
	other := newNode(t)
	mustNot(t, other.Connect(testContext(t), n.AddrInfo()))
	if got := missingAtOnce(n); !slices.Equal(got, []Stage{StageConnected}) {
		t.Errorf("with one of two peers %q are missing", got)
	}
	mustNot(t, newNode(t).Connect(testContext(t), n.AddrInfo()))
	mustNot(t, <-waiting)

	// Connected, but no peer serves the DHT.
	client := newNode(t, WithDHTMode(DHTModeClient))
	m := newNode(t, via(client))
	for ev := range m.Events(testContext(t), EventsWithState()) {
		if _, ok := ev.(EventPeerConnected); ok {
			break
		}
	}
	if got := missingAtOnce(m); !slices.Equal(got, []Stage{StageRouting}) {
		t.Errorf("without a DHT server %q are missing", got)
	}
}

// missingAtOnce are the stages that a node is not ready for.
func missingAtOnce(n *Node) (list []Stage) {
	err := n.WaitReady(ended())
	if e, ok := errors.AsType[*NotReadyError](err); ok && errors.Is(err, ErrNotReady) && errors.Is(err, context.Canceled) {
		for _, m := range e.Missing {
			list = append(list, m.Stage)
		}
	}
	return list
}

func TestStatusIsASnapshotThatMarshals(t *testing.T) {
	boot := newNode(t)
	n := newNode(t, via(boot), WithAutoRelay(newNode(t).AddrInfo())) // a relay that is no bootstrap peer: nobody but the round dials that
	ready(t, n)
	mustNot(t, waitFor(t, func() bool { return n.Status().Bootstrap != nil }))
	subscribe(t, n, "t")
	s := n.Status()
	text, err := json.Marshal(s)
	mustNot(t, err)
	var fields map[string]any
	mustNot(t, json.Unmarshal(text, &fields))
	var keys []string
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if got, want := strings.Join(keys, " "), "addrs bootstrap closed dht id listenAddrs network peers reachability relays topics"; got != want {
		t.Errorf("the fields are %s, want %s", got, want)
	}
	var back Status
	if err := json.Unmarshal(text, &back); err == nil && back.ID != n.ID() {
		t.Errorf("read back as %s", back.ID)
	}
	s.Peers[0], s.Addrs[0], s.Bootstrap.Connected[0] = Peer{}, nil, ""
	if again := n.Status(); again.Peers[0].ID == "" || again.Addrs[0] == nil || again.Bootstrap.Connected[0] == "" {
		t.Error("a change of a snapshot changed the node")
	}
	round, err := json.Marshal(BootstrapRound{Failed: []DialFailure{{ID: boot.ID(), Err: errors.New("refused")}}})
	if err != nil || !strings.Contains(string(round), `"err":"refused"`) {
		t.Errorf("a failed round marshals to %s, %v", round, err)
	}
}

func gather(tb testing.TB, reg *prometheus.Registry, name string) map[string]float64 {
	tb.Helper()
	families, err := reg.Gather()
	mustNot(tb, err)
	values := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			id := m.GetLabel()[0].GetValue()
			if f.GetType() == dto.MetricType_GAUGE {
				values[id] = m.GetGauge().GetValue()
			} else {
				values[id] = m.GetCounter().GetValue()
			}
		}
	}
	return values
}

// Two nodes share a registerer, with distinct metrics (pitfall 36).
func TestPitfall36TwoNodesOnOneRegisterer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	reg := prometheus.NewRegistry()
	a, b := pair(t, WithMetrics(reg))
	c := newNode(t, WithMetrics(reg))
	subscribe(t, a, "t")
	mustNot(t, b.Publish(testContext(t), "t", []byte("x")))
	mustNot(t, waitFor(t, func() bool { return gather(t, reg, "p2pnode_pubsub_delivered_total")[a.ID().String()] == 1 }))
	if v := gather(t, reg, "p2pnode_peers"); v[a.ID().String()] != 1 || v[b.ID().String()] != 1 || v[c.ID().String()] != 0 || len(v) != 3 {
		t.Errorf("peers: %v", v)
	}
	if v := gather(t, reg, "p2pnode_pubsub_published_total"); v[a.ID().String()] != 0 || v[b.ID().String()] != 1 {
		t.Errorf("published: %v", v)
	}
	// These are counted up once a second.
	mustNot(t, waitFor(t, func() bool { return gather(t, reg, "p2pnode_sent_bytes_total")[a.ID().String()] > 0 }))
	if v := gather(t, reg, "p2pnode_sent_bytes_total"); v[c.ID().String()] != 0 {
		t.Errorf("sent: %v", v)
	}
	_, err := New(testContext(t), WithMetrics(reg), WithIdentity(a.key), loopback())
	var oe *OptionError
	if !errors.As(err, &oe) || oe.Option != "WithMetrics" {
		t.Errorf("a second node with the same identity on the registerer: %v", err)
	}
	scraped := make(chan struct{})
	go func() { // a scrape may come at any time
		defer close(scraped)
		for range 20 {
			if _, err := reg.Gather(); err != nil {
				t.Error(err)
			}
		}
	}()
	mustNot(t, c.Close())
	<-scraped
	if v := gather(t, reg, "p2pnode_peers"); len(v) != 2 {
		t.Errorf("a closed node still reports: %v", v)
	}
}
