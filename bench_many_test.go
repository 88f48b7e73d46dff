package p2pnode

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// BenchmarkProvideMany announces 10,000 CIDs on a network of 60 nodes, and 50 before
// and 50 after that in a loop over the Provide of a hand-assembled DHT, on a network
// of 60 of its own. It reports the time per CID of both, and how many times faster
// ProvideMany is. 200 CIDs are looked up from elsewhere.
func BenchmarkProvideMany(b *testing.B) {
	const nodes, keys, looped = 60, 10_000, 50
	ctx := context.Background()
	list := func(n, from int) []cid.Cid {
		out := make([]cid.Cid, n)
		for i := range out {
			out[i] = numbered(b, from+i)
		}
		return out
	}
	raw := rawNetwork(b, nodes)
	loop := func(from int) time.Duration {
		begun := time.Now()
		for _, c := range list(looped, from) {
			mustNot(b, raw[0].dht.Provide(ctx, c, true))
		}
		return time.Since(begun) / looped
	}
	network := ourNetwork(b, nodes)
	for round := 0; b.Loop(); round++ {
		cids := list(keys, round*keys)
		each := loop(2 * round * looped)
		begun := time.Now()
		mustNot(b, network[0].ProvideMany(ctx, slices.Values(cids)))
		ours := time.Since(begun) / keys
		each = (each + loop((2*round+1)*looped)) / 2
		b.ReportMetric(float64(ours.Microseconds()), "us/cid")
		b.ReportMetric(float64(each.Microseconds()), "us/cid-raw")
		b.ReportMetric(float64(each)/float64(ours), "times")
		for i := 0; i < keys; i += keys / 200 {
			found := false
			for ai, err := range network[nodes/2].FindProviders(ctx, cids[i], FindLimit(1)) {
				mustNot(b, err)
				found = ai.ID == network[0].ID()
			}
			if !found {
				b.Fatalf("%s is not found", cids[i])
			}
		}
	}
}
