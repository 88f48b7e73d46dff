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
// time per CID, and the CPU time of all nodes.
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
			report := perCID(b, keys)
			mustNot(b, network[0].ProvideMany(context.Background(), slices.Values(cids)))
			report()
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
			report := perCID(b, looped)
			for _, c := range cids {
				mustNot(b, network[0].dht.Provide(context.Background(), c, true))
			}
			report()
			round++
		}
	})
}

// perCID returns a function that reports the time until it is called, for each of n CIDs.
func perCID(b *testing.B, n int) (report func()) {
	begun, cpu := time.Now(), cpuTime()
	return func() {
		b.ReportMetric(float64(time.Since(begun).Microseconds())/float64(n), "us/cid")
		b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(n), "cpu-us/cid")
	}
}
