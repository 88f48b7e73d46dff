package kad

import (
	"context"
	"fmt"
	"testing"

	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/memstore"
)

// fixedRouter always finds the same peers.
type fixedRouter []peer.ID

func (r fixedRouter) GetClosestPeers(context.Context, string) ([]peer.ID, error) { return r, nil }

// With two DHTs a server has a region as large as those of the DHT that it serves, and
// in one with few servers everything.
func TestRegionsAreThoseOfTheirDHT(t *testing.T) {
	t.Parallel()
	d := newDHT(t, func(cfg *Config) { cfg.Layout = Two })
	k, ctx := d.keep, testContext(t)
	var alike, any []peer.ID // in the key space, the first 4 bits of the former are 0
	for i := 0; len(alike) < closest || len(any) < closest; i++ {
		id := peer.ID(fmt.Sprint("peer ", i))
		if any = append(any, id); kb.ConvertPeerID(id)[0] < 16 {
			alike = append(alike, id)
		}
	}
	known := func() bool {
		for _, s := range k.running() {
			if _, ok := prefixBits(ctx, s); !ok {
				return false
			}
		}
		return true
	}
	for _, found := range []fixedRouter{alike[:closest], any[:closest]} {
		s, err := sweep.New(
			sweep.WithPeerID(d.self), sweep.WithRouter(found), sweep.WithMessageSender(d.tables[0].MessageSender()),
			sweep.WithSelfAddrs(d.tables[0].FilteredAddrs), sweep.WithKeystore(cycleKeys{newMemory(), k}), sweep.WithDatastore(enduring{memstore.New()}),
		)
		must(t, err)
		k.sweeps = append(k.sweeps, s)
	}
	for changed := k.online.Wait(); !known(); changed = k.online.Wait() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the lengths are not known")
		}
	}
	wan, lan := k.spreadOf(d.tables[0]), k.spreadOf(d.tables[1])
	for _, step := range []struct {
		wan, lan []peer.ID // found by the last lookup
		bits     []int
	}{
		{alike[:closest], any[:closest], []int{4, 0}},
		{alike[:closest-1], any[:closest], []int{0, 0}},
	} {
		wan.found("key", step.wan)
		lan.found("key", step.lan)
		for i, want := range step.bits {
			region, ok := k.regionOf(ctx, d.tables[i], alike[0])
			if !ok || len(region) < want || want == 0 && region != "" {
				t.Errorf("table %d: region %q, known %v, not %d bits", i, region, ok, want)
			}
		}
	}
}
