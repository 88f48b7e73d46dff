package kad

import (
	"fmt"
	"testing"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	dhtrecords "github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// flood adds provider records of a peer.
func flood(tb testing.TB, m *dhtrecords.ProviderManager, from peer.ID, n int) {
	tb.Helper()
	for i := range n {
		must(tb, m.AddProvider(tb.Context(), fmt.Appendf(nil, "%x %d", string(from), i), peer.AddrInfo{ID: from}))
	}
}

// Provider records are bounded in bytes. When strangers have filled the room, their
// records go, not those of peers with few, nor the node's own.
func TestAttackC5ProviderRecordsAreBounded(t *testing.T) {
	const limit = 256 << 10
	self, peers := newID(t), newHost(t).Peerstore()
	told := uint64(0)
	r := newRecords(nil, self, limit, func(n uint64) { told = n })
	m, err := dhtrecords.NewProviderManager(self, peers, r)
	must(t, err)
	flush := func() { // a batch of the node's own, which are always taken
		flood(t, m, self, 400)
		r.prune(t.Context())
	}
	honest := newID(t)
	flood(t, m, honest, 1)
	stranger := newID(t)
	flood(t, m, stranger, 3000)
	if flush(); r.all > limit || r.all < limit/2 || told == 0 {
		t.Errorf("with one stranger, the records take %d bytes; %d were told to be refused", r.all, told)
	}
	for range 30 {
		flood(t, m, newID(t), 300)
		if flush(); r.all > limit {
			t.Errorf("with many strangers, the records take %d bytes", r.all)
		}
	}
	late := newID(t)
	flood(t, m, late, 1)
	flush()
	must(t, m.Close())
	m, err = dhtrecords.NewProviderManager(self, peers, r)
	must(t, err)
	for _, id := range []peer.ID{honest, late, self} {
		list, err := m.GetProviders(t.Context(), fmt.Appendf(nil, "%x 0", string(id)))
		must(t, err)
		if len(list) != 1 {
			t.Errorf("the record of %s is lost", id)
		}
	}
	must(t, m.Close())
	// Counting anew, as after a restart, finds the same.
	again := newRecords(r.Batching, self, limit, nil)
	again.count(t.Context())
	if again.all != r.all || len(again.by) != len(r.by) {
		t.Errorf("counted anew: %d bytes of %d peers, not %d of %d", again.all, len(again.by), r.all, len(r.by))
	}
}

// A record that is renewed counts once, and one that has expired no longer.
func TestProviderRecordsAreCountedOnce(t *testing.T) {
	r := newRecords(nil, newID(t), 1<<20, nil)
	ctx, key := t.Context(), datastore.NewKey(dhtrecords.ProvidersKeyPrefix+"key/peer")
	for range 3 {
		b, err := r.Batch(ctx)
		must(t, err)
		must(t, b.Put(ctx, key, []byte("time")))
		must(t, b.Commit(ctx))
	}
	if _, size := sentBy(key); r.all != size {
		t.Errorf("%d bytes are counted, not %d", r.all, size)
	}
	b, err := r.Batch(ctx)
	must(t, err)
	must(t, b.Delete(ctx, key))
	must(t, b.Commit(ctx))
	if r.all != 0 || len(r.by) != 0 {
		t.Errorf("%d bytes of %v are left", r.all, r.by)
	}
}

// The addresses that come with provider records are bounded, and what is learned
// of others is not.
func TestAttackC5AddressesOfProvidersAreBounded(t *testing.T) {
	d := newDHT(t, func(c *Config) { c.RecordBytes = 1 << 20 })
	stranger := hosttest.New(t, ma.StringCast("/ip4/127.0.0.1/tcp/0"))
	must(t, stranger.Connect(testContext(t), hosttest.Info(d.cfg.Host.(*nethost.Host))))
	sender := newSender(stranger, d.protocols)
	for i := range 20 {
		hash, err := multihash.Sum(fmt.Append(nil, i), multihash.SHA2_256, -1)
		must(t, err)
		p := &pb.Message_Peer{Id: []byte(stranger.ID())}
		for j := range 200 {
			p.Addrs = append(p.Addrs, ma.StringCast(fmt.Sprintf("/ip4/8.8.%d.%d/tcp/%d", i, j, j+1)).Bytes())
		}
		add := pb.NewMessage(pb.Message_ADD_PROVIDER, hash, 0)
		add.ProviderPeers = []*pb.Message_Peer{p}
		must(t, sender.SendMessage(testContext(t), d.self, add))
		get := pb.NewMessage(pb.Message_GET_PROVIDERS, hash, 0) // answered after it
		reply, err := sender.SendRequest(testContext(t), d.self, get)
		must(t, err)
		if len(reply.ProviderPeers) != 1 {
			t.Fatalf("%d providers", len(reply.ProviderPeers))
		}
	}
	if n := len(d.cfg.Host.Peerstore().Addrs(stranger.ID())); n > maxBookAddrs+len(stranger.Addrs()) {
		t.Errorf("%d addresses are kept", n)
	}
	b := book{d.cfg.Host.Peerstore(), nil}
	b.AddAddrs(stranger.ID(), []ma.Multiaddr{ma.StringCast("/ip4/9.9.9.9/tcp/1")}, peerstore.TempAddrTTL)
	if list := b.Addrs(stranger.ID()); !ma.Contains(list, ma.StringCast("/ip4/9.9.9.9/tcp/1")) {
		t.Errorf("nothing is learned any more: %s", list)
	}
}

// A datastore of the application's takes the place of the bounded one.
func TestBringsStore(t *testing.T) {
	store := dssync.MutexWrap(datastore.NewMapDatastore())
	for want, opts := range map[bool][]dht.Option{
		false: {dht.BucketSize(10), dht.Mode(dht.ModeServer)},
		true:  {dht.BucketSize(10), dht.Datastore(store)},
	} {
		if bringsStore(opts, "ProviderDatastore") != want || !bringsStore(append(opts, dht.ProviderDatastore(store)), "ProviderDatastore") ||
			bringsStore(append(opts, dht.ProviderDatastore(store)), "ValueDatastore") != want {
			t.Errorf("%d options", len(opts))
		}
	}
}
