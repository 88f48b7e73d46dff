package p2pnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// heapInUse returns how much of the heap is in use.
func heapInUse() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkKeys keeps many CIDs with a node that has nobody to announce them to, in
// a data directory and in memory. It reports by how much the heap grows, how large
// it is at most meanwhile, and how long it takes until the node that starts again
// has them.
func BenchmarkKeys(b *testing.B) {
	n := 20_000
	if *long {
		n = 1_000_000
	}
	for _, where := range []string{"datadir", "memory"} {
		b.Run(fmt.Sprintf("keys=%d/%s", n, where), func(b *testing.B) {
			for b.Loop() {
				opts := []Option{loopback(), WithoutPubSub()}
				if where == "datadir" {
					opts = append(opts, WithDataDir(b.TempDir()))
				}
				node, err := New(b.Context(), opts...)
				mustNot(b, err)
				before, most := heapInUse(), 0.0
				ctx, cancel := context.WithCancel(b.Context())
				begun := time.Now()
				err = node.ProvideMany(ctx, someCIDs(b, n, func(i int) {
					if i%(n/8) == 0 {
						most = max(most, heapInUse()-before)
					}
					if i == n-1 {
						time.AfterFunc(time.Second, cancel) // it would wait for a peer
					}
				}))
				if !errors.Is(err, context.Canceled) {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(begun).Microseconds())/float64(n), "us/cid")
				grown := heapInUse() - before
				b.ReportMetric(grown/(1<<20), "heap-MB")
				b.ReportMetric(max(most, grown)/(1<<20), "most-MB")
				mustNot(b, waitFor(b, func() bool { return node.Status().DHT.Provides == n }))
				mustNot(b, node.Close())
				if where == "memory" {
					continue
				}
				begun = time.Now()
				node, err = New(b.Context(), opts...)
				mustNot(b, err)
				b.ReportMetric(time.Since(begun).Seconds(), "s-New")
				mustNot(b, waitFor(b, func() bool { return node.Status().DHT.Provides == n }))
				b.ReportMetric(time.Since(begun).Seconds(), "s-restart")
				mustNot(b, node.Close())
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// someCIDs yields n CIDs, after calling each with the number of the next.
func someCIDs(tb testing.TB, n int, each func(i int)) iter.Seq[cid.Cid] {
	return func(yield func(cid.Cid) bool) {
		for i := range n {
			if each(i); !yield(hashed(tb, i)) {
				return
			}
		}
	}
}

// hashed returns another CID for each i.
func hashed(tb testing.TB, i int) cid.Cid {
	tb.Helper()
	hash, err := multihash.Sum(binary.BigEndian.AppendUint64(nil, uint64(i)), multihash.SHA2_256, -1)
	mustNot(tb, err)
	return cid.NewCidV1(cid.Raw, hash)
}
