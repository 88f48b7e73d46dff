package p2pnode_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// asks sends a DHT message to a node, and returns the reply, nil when the node
// resets the stream.
func asks(t *testing.T, h *p2ptest.Hostile, n *p2ptest.Node, m *dhtpb.Message) *dhtpb.Message {
	t.Helper()
	s, err := h.NewStream(network.WithNoDial(t.Context(), "connected"), n.ID(), "/p2pnode/kad/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := protodelim.MarshalTo(s, m); err != nil {
		t.Fatal(err)
	}
	reply := new(dhtpb.Message)
	if protodelim.UnmarshalFrom(bufio.NewReader(s), reply) != nil {
		return nil
	}
	return reply
}

// serves reports whether a node has a record under a key for whoever asks.
func serves(t *testing.T, h *p2ptest.Hostile, n *p2ptest.Node, key string) bool {
	t.Helper()
	return asks(t, h, n, dhtpb.NewMessage(dhtpb.Message_GET_VALUE, []byte(key), 0)).GetRecord() != nil
}

// identity returns the same private key for the same number, and its peer ID.
func identity(t *testing.T, number int) (crypto.PrivKey, peer.ID) {
	t.Helper()
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%32d", number)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

// publicKeys puts the public keys of identities, and returns the keys of the
// records, those closest to the node first.
func publicKeys(t *testing.T, h *p2ptest.Hostile, n *p2ptest.Node, count int) (keys []string, refused int) {
	t.Helper()
	for i := range count {
		key, id := identity(t, i)
		value, err := crypto.MarshalPublicKey(key.GetPublic())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, "/pk/"+string(id))
		m := dhtpb.NewMessage(dhtpb.Message_PUT_VALUE, []byte(keys[i]), 0)
		m.Record = record.MakePutRecord(keys[i], value)
		if asks(t, h, n, m) == nil {
			refused++
		}
	}
	distance := func(key string) string {
		d := make([]byte, 32)
		subtle.XORBytes(d, kb.ConvertKey(key), kb.ConvertPeerID(n.ID()))
		return string(d)
	}
	slices.SortFunc(keys, func(a, b string) int { return strings.Compare(distance(a), distance(b)) })
	return keys, refused
}

// A peer that puts more records than a node keeps gets those farthest away refused
// or dropped. The node still has the close ones and its own, also after a restart.
func TestAttackC6ValuesOfStrangersAreBounded(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, size = 64 << 10, 256 // bytes in all, and at least of one
		sim := quiet(t)
		store := dssync.MutexWrap(datastore.NewMapDatastore())
		n := sim.Node(t, p2pnode.WithDatastore(store), p2pnode.WithLimits(p2pnode.Limits{ValueRecords: limit}))
		sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo()))
		sim.Ready()
		names := []string{"/ipns/" + string(n.ID())}
		if err := n.PublishName(t.Context(), onePath); err != nil {
			t.Fatal(err)
		}
		for i := range 8 { // some are farther away than what is dropped
			key, id := identity(t, 1000+i)
			if err := n.PublishName(t.Context(), onePath, p2pnode.SignKey(key)); err != nil {
				t.Fatal(err)
			}
			names = append(names, "/ipns/"+string(id))
		}
		var reached atomic.Uint64
		go func(events func(func(p2pnode.Event) bool)) {
			for e := range events {
				if l, ok := e.(p2pnode.EventLimitReached); ok && l.Limit == "ValueRecords" {
					reached.Store(l.Refused)
				}
			}
		}(n.Events(t.Context()))
		h := sim.Hostile(t, p2ptest.RawConnect(n.AddrInfo()))
		check := func(keys []string, refused int) {
			t.Helper()
			results, err := store.Query(t.Context(), query.Query{Prefix: "/pk"})
			if err != nil {
				t.Fatal(err)
			}
			entries, err := results.Rest()
			if err != nil {
				t.Fatal(err)
			}
			all := 0
			for _, e := range entries {
				all += size + len(e.Key) + len(e.Value)
			}
			if all > limit || all < limit*9/10 || refused == 0 || len(keys) < 2*len(entries) {
				t.Errorf("%d records were put and %d of them refused; the node has %d, which take %d bytes", len(keys), refused, len(entries), all)
			}
			var served []int
			for i, key := range keys {
				if serves(t, h, n, key) {
					served = append(served, i)
				}
			}
			// The farthest may be shorter than others, and have fitted in.
			if last := len(entries) - 2; len(served) != len(entries) || served[last] != last {
				t.Errorf("of the records by distance, the node serves %d", served)
			}
			for i, name := range names {
				if !serves(t, h, n, name) {
					t.Errorf("the node does not serve its name %d anymore", i)
				}
			}
		}
		keys, refused := publicKeys(t, h, n, 500)
		time.Sleep(2 * time.Minute) // refusals are told once a minute
		check(keys, refused)
		if _, again := publicKeys(t, h, n, 500); again < refused || reached.Load() <= uint64(refused)/2 {
			t.Errorf("%d records are refused and then %d; the last event says %d", refused, again, reached.Load())
		}
		sim.Restart(n)
		sim.Ready()
		h = sim.Hostile(t, p2ptest.RawConnect(n.AddrInfo()))
		if _, refused := publicKeys(t, h, n, 500); refused == 0 {
			t.Error("after a restart nothing is refused")
		}
		check(keys, refused)
	})
}
