package p2pnode

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/internal/kad"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

func TestCIDOf(t *testing.T) {
	c, err := CIDOf(strings.NewReader("hello world"))
	mustNot(t, err)
	// The well-known CID of these eleven bytes.
	if c.String() != "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e" {
		t.Errorf("CIDOf = %s", c)
	}
	for _, row := range []struct {
		prefix cid.Prefix
		opts   []CIDOption
	}{
		{cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_256, MhLength: -1}, nil},
		{cid.Prefix{Version: 1, Codec: cid.DagProtobuf, MhType: multihash.SHA2_512, MhLength: -1}, []CIDOption{CIDCodec(cid.DagProtobuf), CIDHash(multihash.SHA2_512), nil}},
		{cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.BLAKE3, MhLength: -1}, []CIDOption{CIDHash(multihash.BLAKE3)}},
	} {
		data := bytes.Repeat([]byte("x"), 100_000)
		want, err := row.prefix.Sum(data)
		mustNot(t, err)
		got, err := CIDOf(bytes.NewReader(data), row.opts...)
		if err != nil || !got.Equals(want) {
			t.Errorf("CIDOf = %s, %v; want %s", got, err, want)
		}
	}
	if _, err := CIDOf(strings.NewReader(""), CIDHash(0x7777777)); err == nil || !strings.Contains(err.Error(), "0x7777777") {
		t.Errorf("an unknown hash function: %v", err)
	}
	broken := errors.New("broken")
	if _, err := CIDOf(io.MultiReader(strings.NewReader("x"), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("a failing reader: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// Provide right after New waits for the routing table. Without peers its error
// reports that the table is empty, and why (pitfall 2).
func TestPitfall02ProvideRightAfterNew(t *testing.T) {
	boot := newNode(t)
	mustNot(t, newNode(t, via(boot)).Provide(testContext(t), mustCID(t, "x")))

	lone := newNode(t)
	err := lone.Provide(ended(), mustCID(t, "x"))
	if !errors.Is(err, ErrNoPeers) || !errors.Is(err, kad.ErrEmptyTable) || !strings.Contains(err.Error(), "WithBootstrapPeers") {
		t.Errorf("a lone node: %v", err)
	}
	dead := peer.AddrInfo{ID: mustKeyID(t), Addrs: somePeer("1").Addrs}
	dead.Addrs[0] = ma4("/ip4/127.0.0.1/tcp/1")
	n := newNode(t, WithBootstrapPeers(dead))
	mustNot(t, waitFor(t, func() bool { return n.Status().Bootstrap != nil }))
	if err := n.Provide(ended(), mustCID(t, "x")); !errors.Is(err, ErrNoPeers) || !strings.Contains(err.Error(), dead.ID.String()) {
		t.Errorf("with a dead bootstrap peer: %v; want it named", err)
	}
}

// Peers that take the record and do not keep it are found out (pitfalls 3, 45
// and 46): the DHT's own Provide returns nil then.
func TestPitfall45ProvideThatNobodyHolds(t *testing.T) {
	raw, info := rawPeer(t)
	n := newNode(t, WithNetwork("ipfs"), WithBootstrapPeers(info))
	ready(t, n)
	// From now on the other peer resets every DHT stream.
	raw.Host().SetStreamHandler("/ipfs/kad/1.0.0", func(s network.Stream) { _ = s.Reset() })
	for _, c := range swarmOf(n).ConnsToPeer(info.ID) {
		for _, s := range c.GetStreams() {
			_ = s.Reset()
		}
	}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	events := n.Events(ctx)
	go func() {
		for ev := range events {
			if _, ok := ev.(EventProvided); ok {
				cancel() // after the first attempt
			}
		}
	}()
	err := n.Provide(ctx, mustCID(t, "x"))
	if !errors.Is(err, ErrNoPeers) || !errors.Is(err, context.Canceled) {
		t.Errorf("Provide = %v; want ErrNoPeers", err)
	}
	// The node does not find itself after that.
	for p, err := range n.FindProviders(ended(), mustCID(t, "x")) {
		if err == nil {
			t.Errorf("found %v", p)
		}
	}
}

// What a node without peers provides is found by the first one that joins it.
func TestLoneProviderIsFoundByTheFirstPeer(t *testing.T) {
	lone := newNode(t)
	if err := lone.Provide(ended(), mustCID(t, "x")); !errors.Is(err, ErrNoPeers) {
		t.Errorf("Provide = %v", err)
	}
	first := newNode(t, via(lone))
	ready(t, first)
	if got := providers(t, first, mustCID(t, "x")); len(got) != 1 || got[0].ID != lone.ID() {
		t.Errorf("found %v", got)
	}
}

func TestProvideNeedsAnAddress(t *testing.T) {
	other := newNode(t)
	n, err := New(testContext(t), WithoutListening(), via(other))
	mustNot(t, err)
	defer mustClose(t, n)
	ready(t, n)
	if err := n.Provide(testContext(t), mustCID(t, "x")); !errors.Is(err, ErrNoPeers) || !strings.Contains(err.Error(), "WithAutoRelay") {
		t.Errorf("Provide without an address = %v", err)
	}
	if err := n.Provide(testContext(t), cid.Undef); err == nil || errors.Is(err, ErrNoPeers) {
		t.Errorf("Provide of nothing = %v", err)
	}
}

func TestFindProviders(t *testing.T) {
	_, others := star(t, 4)
	c := mustCID(t, "shared")
	for _, n := range others {
		mustNot(t, n.Provide(testContext(t), c))
	}
	seeker := others[0]
	found := providers(t, seeker, c)
	seen := map[peer.ID]bool{}
	for _, p := range found {
		if seen[p.ID] || p.ID == seeker.ID() || len(p.Addrs) == 0 {
			t.Errorf("yielded %v (again: %v)", p, seen[p.ID])
		}
		seen[p.ID] = true
	}
	if len(found) != 3 {
		t.Errorf("%d providers, want the other 3", len(found))
	}
	if got := providers(t, seeker, c, FindSelf()); len(got) != 4 {
		t.Errorf("%d providers with itself, want 4", len(got))
	}
	if got := providers(t, seeker, c, FindLimit(2), nil); len(got) != 2 {
		t.Errorf("%d providers with a limit of 2", len(got))
	}
	if got := providers(t, seeker, mustCID(t, "nobody has this")); len(got) != 0 {
		t.Errorf("found %v", got)
	}
	for _, err := range seeker.FindProviders(testContext(t), c, FindLimit(0)) {
		if err == nil || !strings.Contains(err.Error(), "FindLimit") {
			t.Errorf("a limit of 0 yields the error %v", err)
		}
	}
	errs := 0
	for _, err := range seeker.FindProviders(testContext(t), cid.Undef) {
		if err != nil {
			errs++
		}
	}
	for _, err := range newNode(t).FindProviders(ended(), c) {
		if errors.Is(err, ErrNoPeers) {
			errs++
		}
	}
	if errs != 2 {
		t.Errorf("%d of 2 errors came", errs)
	}
}

// Breaking out of the loop ends the search and leaves nothing (pitfall 42).
func TestPitfall42BreakLeavesNothing(t *testing.T) {
	needs.Time(t)
	_, others := star(t, 3)
	c := mustCID(t, "x")
	mustNot(t, others[0].Provide(testContext(t), c))
	mustNot(t, others[1].Provide(testContext(t), c))
	for range others[2].FindProviders(testContext(t), c) { // whatever connections it needs stand now
	}
	leaks := goleak.IgnoreCurrent()
	for range 20 {
		for _, err := range others[2].FindProviders(testContext(t), c) {
			mustNot(t, err)
			break
		}
	}
	goleak.VerifyNone(t, leaktest.Ignored(leaks,
		// The far ends of streams that the DHT keeps open to whom it asked; a
		// search that goes another way opens more.
		goleak.IgnoreAnyFunction("github.com/libp2p/go-libp2p-kad-dht.(*IpfsDHT).handleNewMessage"))...)
}

func TestFindProvidersEndsWithItsContext(t *testing.T) {
	_, others := star(t, 1)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	last := error(nil)
	for _, err := range others[0].FindProviders(ctx, mustCID(t, "x")) {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("ended with %v", last)
	}
}
