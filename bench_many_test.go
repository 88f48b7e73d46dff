package p2pnode

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// BenchmarkProvideMany announces 10,000 CIDs on a network of 60 nodes, next to a
// loop over the Provide of a hand-assembled DHT, for 100 of them. Both report the
// time per CID.
func BenchmarkProvideMany(b *testing.B) {
	const nodes, keys, looped = 60, 10_000, 100
	list := func(n, round int) []cid.Cid {
		out := make([]cid.Cid, n)
		for i := range out {
			out[i] = numbered(b, round*n+i)
		}
		return out
	}
	b.Run("impl=p2pnode", func(b *testing.B) {
		network := ourNetwork(b, nodes)
		round := 0
		for b.Loop() {
			cids := list(keys, round)
			begun := time.Now()
			mustNot(b, network[0].ProvideMany(context.Background(), slices.Values(cids)))
			b.ReportMetric(float64(time.Since(begun).Microseconds())/keys, "us/cid")
			round++
			for i := 0; i < keys; i += keys / 200 {
				c, found := cids[i], false
				for ai, err := range network[nodes/2].FindProviders(context.Background(), c, FindLimit(1)) {
					mustNot(b, err)
					found = ai.ID == network[0].ID()
				}
				if !found {
					b.Fatalf("%s is not found", c)
				}
			}
		}
	})
	b.Run("impl=raw", func(b *testing.B) {
		network := rawNetwork(b, nodes)
		round := 0
		for b.Loop() {
			cids := list(looped, round)
			begun := time.Now()
			for _, c := range cids {
				mustNot(b, network[0].dht.Provide(context.Background(), c, true))
			}
			b.ReportMetric(float64(time.Since(begun).Microseconds())/looped, "us/cid")
			round++
		}
	})
}
