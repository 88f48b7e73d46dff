package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/go-p2pnode/p2pnode"
)

// faulty is a datastore whose calls about what is provided fail or hang.
type faulty struct {
	datastore.Batching
	fault atomic.Pointer[func() error]
}

func newFaulty() *faulty {
	return &faulty{Batching: dssync.MutexWrap(datastore.NewMapDatastore())}
}

func (f *faulty) check(key string) error {
	if fault := f.fault.Load(); fault != nil && strings.HasPrefix(key, "/provide/") {
		return (*fault)()
	}
	return nil
}

func (f *faulty) Put(ctx context.Context, key datastore.Key, value []byte) error {
	if err := f.check(key.String()); err != nil {
		return err
	}
	return f.Batching.Put(ctx, key, value)
}

func (f *faulty) Has(ctx context.Context, key datastore.Key) (bool, error) {
	if err := f.check(key.String()); err != nil {
		return false, err
	}
	return f.Batching.Has(ctx, key)
}

func (f *faulty) Query(ctx context.Context, q query.Query) (query.Results, error) {
	if err := f.check(q.Prefix + "/"); err != nil {
		return nil, err
	}
	return f.Batching.Query(ctx, q)
}

// A full disk is reported, by the calls and by Status, and the node goes on.
func TestProvideWithAFailingDatastore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty()
		sim := quiet(t)
		nodes := sim.Nodes(t, 3)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDatastore(store))
		sim.Ready()
		full := errors.New("no space left on device")
		fail := func() error { return full }
		store.fault.Store(&fail)
		list := contents(t, 40)
		if err := n.Provide(t.Context(), list[0]); !errors.Is(err, full) {
			t.Errorf("Provide = %v", err)
		}
		if err := n.ProvideMany(t.Context(), slices.Values(list)); !errors.Is(err, full) {
			t.Errorf("ProvideMany = %v", err)
		}
		if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], full.Error()) {
			t.Errorf("Warnings: %q", w)
		}
		store.fault.Store(nil)
		if err := n.ProvideMany(t.Context(), slices.Values(list)); err != nil {
			t.Errorf("ProvideMany with space again = %v", err)
		}
		if st := n.Status(); len(st.Warnings) != 0 || st.DHT.Provides != len(list) {
			t.Errorf("Warnings: %q, %+v", st.Warnings, st.DHT)
		}
	})
}

// No call hangs with the datastore.
func TestAttackProvideWithAHangingDatastore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty()
		sim := quiet(t)
		nodes := sim.Nodes(t, 3)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDatastore(store))
		sim.Ready()
		list := contents(t, 3)
		if err := n.Provide(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
		before := n.Status().DHT
		release := make(chan struct{})
		hang := func() error {
			<-release
			return nil
		}
		store.fault.Store(&hang)
		within := func(what string, limit time.Duration, call func() error) {
			t.Helper()
			begun := time.Now()
			err := call()
			if took := time.Since(begun); err == nil || took > limit {
				t.Errorf("%s took %v: %v", what, took, err)
			}
		}
		short := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			t.Cleanup(cancel)
			return ctx
		}
		within("Provide", 12*time.Second, func() error { return n.Provide(short(), list[1]) })
		within("ProvideMany", 12*time.Second, func() error { return n.ProvideMany(short(), slices.Values(list)) })
		within("StopProviding", 12*time.Second, func() error { return n.StopProviding(short(), list[0]) })
		within("Providing", 12*time.Second, func() error {
			for _, err := range n.Providing(short()) {
				if err != nil {
					return err
				}
			}
			return nil
		})
		begun := time.Now()
		st := n.Status()
		if took := time.Since(begun); took > time.Second {
			t.Errorf("Status took %v", took)
		}
		if len(st.Warnings) != 1 || st.DHT.Provides != before.Provides {
			t.Errorf("Warnings: %q, %+v", st.Warnings, st.DHT)
		}
		close(release)
	})
}

// Close ends while the datastore hangs, and so does a call that waits for it.
func TestAttackCloseWithAHangingDatastore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty()
		n, err := p2pnode.New(t.Context(), p2pnode.WithoutListening(), p2pnode.WithDatastore(store))
		if err != nil {
			t.Fatal(err)
		}
		hung, release := make(chan struct{}, 100), make(chan struct{})
		hang := func() error {
			hung <- struct{}{}
			<-release
			return nil
		}
		store.fault.Store(&hang)
		waiting := make(chan error, 1)
		go func() { waiting <- n.Provide(t.Context(), cidOf(t, "x")) }()
		<-hung
		if err := n.Close(); err == nil || !strings.Contains(err.Error(), "still closing") {
			t.Errorf("Close = %v", err)
		}
		if err := <-waiting; !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("Provide = %v", err)
		}
		close(release)
	})
}

// StopProviding ends calls that wait for peers.
func TestStopProvidingEndsWhatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := quiet(t).Node(t)
		list := contents(t, 50)
		provide, many := make(chan error, 1), make(chan error, 1)
		go func() { provide <- n.Provide(t.Context(), list[0]) }()
		go func() { many <- n.ProvideMany(t.Context(), slices.Values(list[1:])) }()
		time.Sleep(time.Minute)
		if err := n.StopProviding(t.Context(), list...); err != nil {
			t.Fatal(err)
		}
		if err := <-provide; err == nil || !strings.Contains(err.Error(), "StopProviding") {
			t.Errorf("Provide = %v", err)
		}
		if err := <-many; err != nil {
			t.Errorf("ProvideMany = %v", err)
		}
		if st := n.Status().DHT; st.Provides != 0 || st.Pending != 0 || !st.NextReprovide.IsZero() {
			t.Errorf("Status: %+v", st)
		}
	})
}

// ProvideMany also waits for what a call of Provide is announcing.
func TestProvideManyWaitsForProvide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := quiet(t).Node(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		c := cidOf(t, "x")
		provide := make(chan error, 1)
		go func() { provide <- n.Provide(ctx, c) }()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := n.ProvideMany(short, slices.Values([]cid.Cid{c})); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ProvideMany = %v", err)
		}
		if err := <-provide; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Provide = %v", err)
		}
	})
}

// What ProvideMany has read before it fails is announced, also by a node that has
// been idle for long. Few CIDs are reported as progress too.
func TestProvideManyAnnouncesWhatItHasRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		n := sim.Nodes(t, 3)[2]
		sim.Ready()
		list := contents(t, 3)
		if err := n.Provide(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		events := n.Events(t.Context())
		if err := n.ProvideMany(t.Context(), slices.Values([]cid.Cid{list[1], cid.Undef, list[2]})); err == nil {
			t.Error("an undefined CID is accepted")
		}
		for ev := range events {
			if p, ok := ev.(p2pnode.EventProvideProgress); ok && p.Pending == 0 {
				if p.Keys != 2 {
					t.Errorf("progress: %+v", p)
				}
				break
			}
		}
	})
}

// The Provide of what is provided already is announced and verified again, and the
// end of one of two calls does not end the other.
func TestProvideTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		n := sim.Node(t)
		v1 := cidOf(t, "x")
		v0 := cid.NewCidV0(v1.Hash())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ended, lasting := make(chan error, 1), make(chan error, 1)
		go func() { ended <- n.Provide(ctx, v0) }()
		go func() { lasting <- n.Provide(t.Context(), v1) }()
		if err := <-ended; !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("the Provide that ends = %v", err)
		}
		other := sim.Node(t, p2pnode.WithBootstrapPeers(n.AddrInfo()))
		if err := <-lasting; err != nil {
			t.Errorf("the other Provide = %v", err)
		}
		begun := time.Now()
		if err := n.Provide(t.Context(), v0); err != nil || time.Since(begun) > 10*time.Second {
			t.Errorf("Provide again = %v, after %v", err, time.Since(begun))
		}
		if st := n.Status().DHT; st.Provides != 1 || st.Pending != 0 {
			t.Errorf("Status: %+v", st)
		}
		if !findsProvider(t, other, n, v0) {
			t.Error("it is not found")
		}
	})
}
