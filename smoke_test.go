package p2pnode

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
)

func TestSmoke(t *testing.T) {
	ctx := testContext(t)
	boot := newNode(t)
	a := newNode(t, via(boot))
	b := newNode(t, via(boot))
	ready(t, a, b)
	c, err := CIDOf(strings.NewReader("hello"))
	mustNot(t, err)
	mustNot(t, a.Provide(ctx, c))
	found := 0
	for ai, err := range b.FindProviders(ctx, c) {
		mustNot(t, err)
		if ai.ID == a.ID() {
			found++
		}
	}
	if found != 1 {
		t.Fatalf("found %d", found)
	}
	a.Handle("/echo", func(ctx context.Context, s network.Stream) error {
		_, err := io.Copy(s, s)
		return err
	})
	s, err := b.OpenStream(ctx, a.ID(), "/echo")
	mustNot(t, err)
	_, err = s.Write([]byte("hi"))
	mustNot(t, err)
	mustNot(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	mustNot(t, err)
	if string(got) != "hi" {
		t.Fatal(string(got))
	}
	sub, err := a.Subscribe(ctx, "news")
	mustNot(t, err)
	mustNot(t, b.Publish(ctx, "news", []byte("x")))
	m, err := sub.Next(ctx)
	mustNot(t, err)
	if string(m.Data) != "x" || m.Author != b.ID() {
		t.Fatal(m)
	}
	mustNot(t, a.Advertise(ctx, "room"))
	for ai, err := range b.FindPeers(ctx, "room") {
		mustNot(t, err)
		if ai.ID != a.ID() {
			t.Fatal(ai)
		}
	}
	j, err := json.MarshalIndent(b.Status(), "", " ")
	mustNot(t, err)
	t.Log(string(j))
	_, err = b.Ping(ctx, a.ID())
	mustNot(t, err)
}

func TestSmokeRelay(t *testing.T) {
	ctx := testContext(t)
	relay := newNode(t, WithRelayService())
	hidden, err := New(ctx, WithoutListening(), WithAutoRelay(relay.AddrInfo()))
	mustNot(t, err)
	defer hidden.Close()
	hidden.Handle("/echo", func(ctx context.Context, s network.Stream) error {
		_, err := io.Copy(s, s)
		return err
	})
	for ev := range hidden.Events(ctx) {
		if ev, ok := ev.(AddrsChanged); ok {
			t.Log(ev.Addrs)
			if len(ev.Addrs) > 0 {
				break
			}
		}
	}
	x := newNode(t)
	ai := hidden.AddrInfo()
	t.Log(ai)
	mustNot(t, x.Connect(ctx, ai))
	s, err := x.OpenStream(ctx, hidden.ID(), "/echo")
	mustNot(t, err)
	_, err = s.Write([]byte("hi"))
	mustNot(t, err)
	mustNot(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	mustNot(t, err)
	if string(got) != "hi" {
		t.Fatal(string(got))
	}
	t.Log(x.Peers())
}

func TestSmokeMDNS(t *testing.T) {
	a := newNode(t, WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/0"))
	b := newNode(t, WithMDNS(), WithListenAddrs("/ip4/0.0.0.0/tcp/0"))
	ready(t, a, b)
}
