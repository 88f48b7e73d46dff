package p2pnode

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dsquery "github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// star returns a bootstrap node and n others that know only it, all ready.
func star(tb testing.TB, n int, opts ...Option) (boot *Node, others []*Node) {
	tb.Helper()
	boot = newNode(tb, opts...)
	for range n {
		others = append(others, newNode(tb, append([]Option{via(boot)}, opts...)...))
	}
	ready(tb, others...)
	return boot, others
}

// ended is a context that is over.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// With nothing configured, the DHT works on loopback (pitfalls 1, 2 and 7).
func TestPitfall01DHTWorksOnLoopback(t *testing.T) {
	_, others := star(t, 2)
	c := mustCID(t, "content")
	mustNot(t, others[0].Provide(testContext(t), c))
	if got := providers(t, others[1], c); len(got) != 1 || got[0].ID != others[0].ID() {
		t.Errorf("providers %v", got)
	}
	if s := others[0].Status(); !s.DHT.Server || s.DHT.Peers == 0 || s.DHT.Mode != DHTModeAutoServer {
		t.Errorf("Status has %+v", s.DHT)
	}
}

func providers(tb testing.TB, n *Node, c cid.Cid, opts ...FindOption) []peer.AddrInfo {
	tb.Helper()
	var list []peer.AddrInfo
	for p, err := range n.FindProviders(testContext(tb), c, opts...) {
		mustNot(tb, err)
		list = append(list, p)
	}
	return list
}

// Networks do not mix, even if their peers are connected (pitfall 8), and the
// error names the protocols.
func TestPitfall08NetworksDoNotMix(t *testing.T) {
	a, b := newNode(t, WithNetwork("one"), WithMinPeers(1)), newNode(t, WithNetwork("two"))
	mustNot(t, a.Connect(testContext(t), b.AddrInfo()))
	_, err := a.FindPeer(testContext(t), mustKeyID(t))
	if !errors.Is(err, ErrNoPeers) || !strings.Contains(err.Error(), "/one/kad/1.0.0") || !strings.Contains(err.Error(), "WithNetwork") {
		t.Errorf("FindPeer among strangers = %v", err)
	}
	if a.Status().DHT.Peers != 0 || b.Status().DHT.Peers != 0 {
		t.Error("they are in each other's routing table")
	}
}

func TestDHTModes(t *testing.T) {
	for mode, server := range map[DHTMode]bool{DHTModeServer: true, DHTModeAutoServer: true, DHTModeAuto: false, DHTModeClient: false} {
		n := newNode(t, WithDHTMode(mode))
		if s := n.Status().DHT; s.Server != server || s.Mode != mode {
			t.Errorf("%s: %+v", mode, s)
		}
	}
}

func TestFindPeer(t *testing.T) {
	boot, others := star(t, 2)
	a, b := others[0], others[1]
	client := newNode(t, via(boot), WithDHTMode(DHTModeClient))
	ready(t, client)
	// A peer can be found when somebody has identified it.
	mustNot(t, waitFor(t, func() bool { return len(boot.base.Peerstore().Addrs(client.ID())) > 0 }))
	for name, n := range map[string]*Node{"a server": b, "a client": client, "a connected peer": boot, "itself": a} {
		got, err := a.FindPeer(testContext(t), n.ID())
		if err != nil || got.ID != n.ID() || len(got.Addrs) == 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := a.FindPeer(testContext(t), mustKeyID(t)); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown peer: %v", err)
	}
	if _, err := a.FindPeer(testContext(t), ""); err == nil {
		t.Error("an empty ID is accepted")
	}
	lone := newNode(t)
	if _, err := lone.FindPeer(testContext(t), a.ID()); !errors.Is(err, ErrNoPeers) || !strings.Contains(err.Error(), "WithBootstrapPeers") {
		t.Errorf("a lone node: %v", err)
	}
}

// A peer that has just connected is never found without addresses (pitfall 5).
func TestPitfall05FindPeerHasAddresses(t *testing.T) {
	needs.Time(t)
	a := newNode(t)
	for range 20 {
		b, err := New(testContext(t), loopback())
		mustNot(t, err)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_ = b.Connect(testContext(t), a.AddrInfo())
		}()
		mustNot(t, waitFor(t, func() bool { return a.base.Connected(b.ID()) }))
		ai, err := a.FindPeer(testContext(t), b.ID())
		if err == nil && len(ai.Addrs) == 0 {
			t.Error("found without an address")
		}
		<-gone
		mustNot(t, b.Close())
	}
}

func pkRecord(tb testing.TB) (key string, value []byte) {
	tb.Helper()
	k := someKey(tb)
	id, err := PeerID(k)
	mustNot(tb, err)
	value, err = crypto.MarshalPublicKey(k.GetPublic())
	mustNot(tb, err)
	return routing.KeyForPublicKey(id), value
}

func ipnsRecord(tb testing.TB) (key string, value []byte) {
	tb.Helper()
	k := someKey(tb)
	id, err := PeerID(k)
	mustNot(tb, err)
	p, err := path.NewPath("/ipfs/bafkqac3imvwgy3zao5xxe3de")
	mustNot(tb, err)
	r, err := ipns.NewRecord(k, p, 1, time.Now().Add(time.Hour), time.Minute)
	mustNot(tb, err)
	value, err = ipns.MarshalRecord(r)
	mustNot(tb, err)
	return string(ipns.NameFromPeer(id).RoutingKey()), value
}

// longest is a validator for records where the longest is the best.
type longest struct{}

var errBadRecord = errors.New("bad record")

func (longest) Validate(_ string, v []byte) error {
	if string(v) == "bad" {
		return errBadRecord
	}
	return nil
}

func (longest) Select(_ string, vs [][]byte) (int, error) {
	best := 0
	for i := range vs {
		if len(vs[i]) > len(vs[best]) {
			best = i
		}
	}
	return best, nil
}

func TestPutAndGetValue(t *testing.T) {
	_, others := star(t, 2, WithValidator("app", longest{}))
	a, b := others[0], others[1]
	for name, record := range map[string]func(testing.TB) (string, []byte){
		"pk": pkRecord, "ipns": ipnsRecord, "app": func(testing.TB) (string, []byte) { return "/app/x", []byte("value") },
	} {
		key, value := record(t)
		mustNot(t, a.PutValue(testContext(t), key, value))
		got, err := b.GetValue(testContext(t), key)
		if err != nil || string(got) != string(value) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if _, err := a.GetValue(testContext(t), "/app/nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown key: %v", err)
	}
	if err := a.PutValue(testContext(t), "/app/y", []byte("bad")); !errors.Is(err, errBadRecord) {
		t.Errorf("an invalid record: %v", err)
	}
	// Without a validator the error names the option (pitfall 10).
	for _, err := range []error{
		a.PutValue(testContext(t), "/other/x", []byte("v")),
		func() error { _, err := a.GetValue(testContext(t), "/other/x"); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "WithValidator") {
			t.Errorf("pitfall 10: a namespace without validator: %v", err)
		}
	}
}

// PutValue fails if no peer stores the record (contract: nothing is lost in
// silence): the other peer does not know the namespace.
func TestPutValueThatNobodyKeeps(t *testing.T) {
	other := newNode(t)
	n := newNode(t, via(other), WithValidator("app", longest{}))
	ready(t, n)
	if err := n.PutValue(testContext(t), "/app/x", []byte("v")); !errors.Is(err, ErrNoPeers) {
		t.Errorf("PutValue = %v", err)
	}
	key, value := pkRecord(t)
	if err := newNode(t).PutValue(ended(), key, value); err == nil {
		t.Error("a lone node stored a record elsewhere")
	}
}

func TestDatastoreIsUsedAndNotClosed(t *testing.T) {
	store := dssync.MutexWrap(datastore.NewMapDatastore())
	holder := newNode(t, WithDatastore(store))
	n := newNode(t, via(holder))
	ready(t, n)
	key, value := pkRecord(t)
	mustNot(t, n.PutValue(testContext(t), key, value))
	mustNot(t, holder.Close())
	r, err := store.Query(t.Context(), dsquery.Query{KeysOnly: true})
	mustNot(t, err)
	entries, err := r.Rest()
	if err != nil || len(entries) == 0 {
		t.Errorf("the store has %d entries, %v", len(entries), err)
	}
}

// The public network's two DHTs, among nodes of our own: no public peer is
// dialed because bootstrap peers are given.
func TestIPFSRunsBothDHTs(t *testing.T) {
	other := newNode(t, WithNetwork("ipfs"))
	n := newNode(t, WithIPFS(), via(other), WithMinPeers(1))
	for ev := range n.Events(testContext(t), EventsWithState()) {
		if _, ok := ev.(EventPeerConnected); ok {
			break
		}
	}
	if len(other.dht.Tables()) != 2 || len(other.dht.Protocols()) != 2 {
		t.Errorf("on the private network there are %v", other.dht.Protocols())
	}
	if s := n.Status(); s.Network != "/ipfs" || s.DHT.Mode != DHTModeAuto || !s.DHT.Server {
		t.Errorf("Status has %s and %+v; the LAN's DHT should serve", s.Network, s.DHT)
	}
	if len(n.dht.Tables()) != 2 {
		t.Errorf("%d DHTs", len(n.dht.Tables()))
	}
}

// rawPeer is a peer put together by hand, with the DHT protocol of
// WithNetwork("ipfs").
func rawPeer(tb testing.TB) (*dht.IpfsDHT, peer.AddrInfo) {
	tb.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), nethost.NoMetrics)
	mustNot(tb, err)
	d, err := dht.New(h, dht.Mode(dht.ModeServer), dht.ProtocolPrefix("/ipfs"))
	mustNot(tb, err)
	tb.Cleanup(func() { mustNot(tb, errors.Join(d.Close(), h.Close())) })
	return d, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}
}

func TestMeetsAHandAssembledDHT(t *testing.T) {
	raw, info := rawPeer(t)
	n := newNode(t, WithNetwork("ipfs"), WithBootstrapPeers(info))
	ready(t, n)
	ctx := testContext(t)
	mustNot(t, waitFor(t, func() bool { return raw.RoutingTable().Size() > 0 }))

	mine, theirs := mustCID(t, "mine"), mustCID(t, "theirs")
	mustNot(t, n.Provide(ctx, mine))
	found, err := raw.FindProviders(ctx, mine)
	if err != nil || len(found) != 1 || found[0].ID != n.ID() {
		t.Errorf("the raw peer found %v, %v", found, err)
	}
	mustNot(t, raw.Provide(ctx, theirs, true))
	if got := providers(t, n, theirs); len(got) != 1 || got[0].ID != info.ID {
		t.Errorf("found %v", got)
	}
	for _, record := range []func(testing.TB) (string, []byte){pkRecord, ipnsRecord} {
		key, value := record(t)
		mustNot(t, n.PutValue(ctx, key, value))
		if got, err := raw.GetValue(ctx, key); err != nil || string(got) != string(value) {
			t.Errorf("the raw peer got %q, %v", got, err)
		}
		key, value = record(t)
		mustNot(t, raw.PutValue(ctx, key, value))
		if got, err := n.GetValue(ctx, key); err != nil || string(got) != string(value) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	// IPNS, with records that boxo makes and reads.
	mustNot(t, n.PublishName(ctx, "/ipfs/bafkqaaa"))
	value, err := raw.GetValue(ctx, string(ipns.NameFromPeer(n.ID()).RoutingKey()))
	mustNot(t, err)
	rec, err := ipns.UnmarshalRecord(value)
	mustNot(t, err)
	if p, err := rec.Value(); err != nil || p.String() != "/ipfs/bafkqaaa" || ipns.ValidateWithName(rec, ipns.NameFromPeer(n.ID())) != nil {
		t.Errorf("the raw peer resolves our name to %v, %v", p, err)
	}
	key, value := ipnsRecord(t)
	mustNot(t, raw.PutValue(ctx, key, value))
	if to, err := n.ResolveName(ctx, NameOf(peer.ID(key[len("/ipns/"):]))); err != nil || to != "/ipfs/bafkqac3imvwgy3zao5xxe3de" {
		t.Errorf("its name resolves to %q, %v", to, err)
	}
	ai, err := n.FindPeer(ctx, info.ID)
	if err != nil || len(ai.Addrs) == 0 {
		t.Errorf("FindPeer = %v, %v", ai, err)
	}
	raw.Host().SetStreamHandler(echoID, func(s network.Stream) { _ = s.Close() })
	s, err := n.OpenStream(ctx, info.ID, echoID)
	mustNot(t, err)
	mustNot(t, s.Close())
}
