package p2pnode_test

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/raced"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// contents returns the CIDs of n contents.
func contents(tb testing.TB, n int) []cid.Cid {
	tb.Helper()
	list := make([]cid.Cid, n)
	for i := range list {
		list[i] = cidOf(tb, fmt.Sprint("content ", i))
	}
	return list
}

// findsProvider reports whether a search finds a provider.
func findsProvider(tb testing.TB, n, provider *p2ptest.Node, c cid.Cid) bool {
	tb.Helper()
	for ai, err := range n.FindProviders(tb.Context(), c, p2pnode.FindLimit(1)) {
		return err == nil && ai.ID == provider.ID()
	}
	return false
}

// longRun reports whether tests run at their full size, see main_test.go.
func longRun() bool { return flag.Lookup("long").Value.String() == "true" }

// What is provided is announced again before the records expire, until it is
// stopped.
func TestProvideLastsUntilItIsStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	interval, lifetime, rounds := time.Hour, 2*time.Hour, 3
	if longRun() {
		interval, lifetime, rounds = 22*time.Hour, 48*time.Hour, 7 // the defaults
	}
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t, p2pnode.WithReprovideInterval(interval), p2pnode.WithRecordLifetime(lifetime))
		nodes := sim.Nodes(t, 4)
		sim.Ready()
		provider, c := nodes[1], cidOf(t, "x")
		if err := provider.Provide(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		for i := range rounds {
			time.Sleep(interval + interval/8)
			if !findsProvider(t, nodes[3], provider, c) {
				t.Fatalf("after %d cycles it is no longer found", i)
			}
		}
		if st := provider.Status().DHT; st.Provides != 1 || st.Pending != 0 || time.Until(st.NextReprovide) <= 0 {
			t.Errorf("Status: %+v", st)
		}
		if err := provider.StopProviding(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		for c, err := range provider.Providing(t.Context()) {
			t.Errorf("it still provides %v, %v", c, err)
		}
		time.Sleep(lifetime + time.Hour) // expired records are removed once an hour
		if findsProvider(t, nodes[3], provider, c) {
			t.Error("it is found after its end")
		}
	})
}

// quiet is a network in which little happens besides the DHT, for tests over hours.
func quiet(t *testing.T, opts ...p2pnode.Option) *p2ptest.Network {
	t.Helper()
	return p2ptest.NewNetwork(t, p2ptest.WithMemoryTransport(), p2ptest.WithNodeOptions(append(opts, p2pnode.WithoutPubSub())...))
}

// Upstream drops keys in small networks (kad-dht#1263), and all of them while it
// is offline.
func TestProvideManyReachesEveryNetworkSize(t *testing.T) {
	t.Parallel()
	sizes := []int{2, 3, 5, 19, 21}
	switch {
	case testing.Short():
		sizes = sizes[:2]
	case raced.Detector:
		sizes = sizes[:3]
	}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := quiet(t)
				nodes := sim.Nodes(t, size)
				sim.Ready()
				list := contents(t, 100)
				provider := nodes[size-1]
				if err := provider.ProvideMany(t.Context(), slices.Values(list)); err != nil {
					t.Fatal(err)
				}
				for _, c := range list {
					if !findsProvider(t, nodes[0], provider, c) {
						t.Errorf("%s is not found", c)
					}
				}
				got := make(map[cid.Cid]bool)
				for c, err := range provider.Providing(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					got[c] = true
				}
				if len(got) != len(list) || !got[list[0]] {
					t.Errorf("it provides %d", len(got))
				}
			})
		})
	}
}

// What is provided by a node without peers is kept, and announced when there are
// some.
func TestProvideManyWithNobodyThere(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		lone := sim.Node(t)
		list := contents(t, 100)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := lone.ProvideMany(ctx, slices.Values(list)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ProvideMany = %v", err)
		}
		if st := lone.Status().DHT; st.Provides != 100 || st.Pending != 100 {
			t.Errorf("Status: %+v", st)
		}
		time.Sleep(time.Hour)
		events := lone.Events(t.Context())
		var nodes p2ptest.Nodes
		for range 4 {
			nodes = append(nodes, sim.Node(t, p2pnode.WithBootstrapPeers(lone.AddrInfo())))
		}
		sim.Ready()
		var last p2pnode.EventProvideProgress
		for ev := range events {
			if p, ok := ev.(p2pnode.EventProvideProgress); ok {
				if last = p; p.Pending == 0 {
					break
				}
			}
		}
		if last.Keys != 100 {
			t.Errorf("progress: %+v", last)
		}
		for _, c := range list {
			if !findsProvider(t, nodes[3], lone, c) {
				t.Errorf("%s is not found", c)
			}
		}
	})
}

// An invalid CID ends ProvideMany; those before it are kept.
func TestProvideManyRefusesWhatNobodyCanLookUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		n := sim.Nodes(t, 2)[1]
		sim.Ready()
		list := append(contents(t, 2), cid.Undef, cidOf(t, "after"))
		err := n.ProvideMany(t.Context(), slices.Values(list))
		if err == nil || errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("ProvideMany = %v", err)
		}
		time.Sleep(time.Minute)
		if st := n.Status().DHT; st.Provides != 2 || st.Pending != 0 {
			t.Errorf("Status: %+v", st)
		}
	})
}

// A node with a datastore, or a data directory, goes on providing after a restart,
// by itself.
func TestProvideSurvivesARestart(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	for name, where := range map[string]func(t *testing.T) p2pnode.Option{
		"datastore": func(*testing.T) p2pnode.Option {
			return p2pnode.WithDatastore(dssync.MutexWrap(datastore.NewMapDatastore()))
		},
		"data directory": func(t *testing.T) p2pnode.Option { return p2pnode.WithDataDir(t.TempDir()) },
	} {
		t.Run(name, func(t *testing.T) {
			kept := where(t)
			synctest.Test(t, func(t *testing.T) {
				sim := quiet(t, p2pnode.WithReprovideInterval(time.Hour), p2pnode.WithRecordLifetime(2*time.Hour))
				nodes := sim.Nodes(t, 4)
				provider := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), kept)
				sim.Ready()
				list := contents(t, 50)
				if err := provider.ProvideMany(t.Context(), slices.Values(list)); err != nil {
					t.Fatal(err)
				}
				if err := provider.Close(); err != nil {
					t.Errorf("Close = %v", err)
				}
				sim.Restart(provider)
				sim.Ready()
				if st := provider.Status().DHT; st.Provides != len(list) || st.Pending != 0 {
					t.Errorf("after the restart: %+v", st)
				}
				time.Sleep(3 * time.Hour) // the records of before are gone
				for _, c := range list {
					if !findsProvider(t, nodes[3], provider, c) {
						t.Errorf("%s is not found", c)
					}
				}
			})
		})
	}
}

// A process that is killed before it has announced what it keeps does so when it
// starts again.
func TestProvideSurvivesACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		lone := sim.Node(t, p2pnode.WithDataDir(dir))
		list := contents(t, 50)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := lone.ProvideMany(ctx, slices.Values(list)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ProvideMany = %v", err)
		}
		sim.Crash(lone)
		sim.Restart(lone)
		var nodes p2ptest.Nodes
		for range 3 {
			nodes = append(nodes, sim.Node(t, p2pnode.WithBootstrapPeers(lone.AddrInfo())))
		}
		sim.Ready()
		time.Sleep(2 * time.Minute)
		if st := lone.Status().DHT; st.Provides != len(list) || st.Pending != 0 {
			t.Errorf("after the crash: %+v", st)
		}
		for _, c := range list {
			if !findsProvider(t, nodes[2], lone, c) {
				t.Errorf("%s is not found", c)
			}
		}
	})
}

// What was announced when there was one other server reaches those that come right
// after, though what is announced next reaches all of them at once.
func TestProvideReachesServersThatComeLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		first := sim.Node(t)
		boot := p2pnode.WithBootstrapPeers(first.AddrInfo())
		provider := sim.Node(t, boot, p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		sim.Ready()
		list := contents(t, 25)
		if err := provider.Provide(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
		later := p2ptest.Nodes{sim.Node(t, boot), sim.Node(t, boot)}
		sim.Ready()
		for _, n := range later {
			if err := provider.Connect(t.Context(), n.AddrInfo()); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range list[1:] {
			if err := provider.Provide(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Minute)
		sim.Crash(first)
		for _, c := range list {
			if !findsProvider(t, later[0], provider, c) {
				t.Errorf("%s is not found", c)
			}
		}
	})
}

// Every node restarts within an hour, and forgets the records that it held: what
// is provided is found nevertheless, all the time.
func TestProvideOutlivesTheRestartOfEveryHolder(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	size, keys := 8, 10
	if longRun() {
		size, keys = 60, 200
	}
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		restartsOfEveryHolder(t, sim, sim.Nodes(t, size), keys)
	})
}

// In a small network the IDs of all servers may begin with the same bit. That is no
// region of its own: they hold the keys that begin with the other bit too.
func TestProvideOutlivesRestartsWhereIDsBeginAlike(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		var order p2ptest.Nodes
		for range 3 {
			opts := []p2pnode.Option{p2pnode.WithIdentity(keyThatBegins(t, 0))}
			if len(order) > 0 {
				opts = append(opts, p2pnode.WithBootstrapPeers(order[0].AddrInfo()))
			}
			order = append(order, sim.Node(t, opts...))
		}
		restartsOfEveryHolder(t, sim, order, 5)
	})
}

// keyThatBegins returns the key of an ID that begins with a bit where the DHT keeps it.
func keyThatBegins(t *testing.T, bit byte) crypto.PrivKey {
	t.Helper()
	for {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if kb.ConvertPeerID(id)[0]>>7 == bit {
			return key
		}
	}
}

// restartsOfEveryHolder provides keys, and restarts the servers one by one.
func restartsOfEveryHolder(t *testing.T, sim *p2ptest.Network, order p2ptest.Nodes, keys int) {
	t.Helper()
	// A DHT client: nobody asks the provider itself.
	provider := sim.Node(t, p2pnode.WithBootstrapPeers(order[0].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
	sim.Ready()
	list := contents(t, keys)
	if err := provider.ProvideMany(t.Context(), slices.Values(list)); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for i, n := range append(order, order[0]) {
		sim.Restart(n, p2ptest.LoseData())
		time.Sleep(time.Hour / time.Duration(len(order)))
		searcher := order[(i+len(order)/2)%len(order)]
		for _, c := range list {
			if !findsProvider(t, searcher, provider, c) {
				lost++
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d searches found nobody", lost, (len(order)+1)*keys)
	}
}
