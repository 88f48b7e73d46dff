package p2pnode_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// isFound reports whether a search finds a peer.
func isFound(tb testing.TB, n, peer *p2ptest.Node, namespace string) bool {
	tb.Helper()
	for ai, err := range n.FindPeers(tb.Context(), namespace) {
		if err == nil && ai.ID == peer.ID() {
			return true
		}
	}
	return false
}

// The announcement outlives the records, until it is stopped.
func TestAdvertiseLastsUntilItIsStopped(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t, p2pnode.WithReprovideInterval(time.Hour), p2pnode.WithRecordLifetime(2*time.Hour))
		nodes := sim.Nodes(t, 4)
		sim.Ready()
		n := nodes[1]
		for _, name := range []string{"room", "room", "another"} {
			if err := n.Advertise(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			time.Sleep(time.Hour + 30*time.Minute)
			if !isFound(t, nodes[3], n, "room") {
				t.Fatal("it is no longer found")
			}
		}
		if st := n.Status().DHT; st.Advertises != 2 || st.Unadvertised != 0 || !slices.Equal(n.Advertising(), []string{"another", "room"}) {
			t.Errorf("Status: %+v; it advertises %q", st, n.Advertising())
		}
		if err := n.StopAdvertising(t.Context(), "room", "never advertised"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Hour + time.Minute) // expired records are removed once an hour
		if isFound(t, nodes[3], n, "room") || !isFound(t, nodes[3], n, "another") {
			t.Errorf("after the end of one, it advertises %q", n.Advertising())
		}
	})
}

// The announcement goes on after a restart with a data directory, and does not if
// it was stopped before.
func TestAdvertiseGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		nodes := sim.Nodes(t, 3)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDataDir(t.TempDir()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		sim.Ready()
		for _, name := range []string{"room", "stopped", strings.Repeat("x", 1024), "\x00\xff/ "} {
			if err := n.Advertise(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.StopAdvertising(t.Context(), "stopped"); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for _, other := range nodes { // nobody remembers anything
			sim.Restart(other, p2ptest.LoseData())
		}
		sim.Restart(n)
		sim.Ready()
		time.Sleep(time.Minute)
		if want := []string{"\x00\xff/ ", "room", strings.Repeat("x", 1024)}; !slices.Equal(n.Advertising(), want) {
			t.Errorf("it advertises %q, want %q", n.Advertising(), want)
		}
		for _, name := range n.Advertising() {
			if !isFound(t, nodes[2], n, name) {
				t.Errorf("%q is not found", name)
			}
		}
		if isFound(t, nodes[2], n, "stopped") {
			t.Error("what was stopped is announced again")
		}
	})
}

// Holders that lose the announcement are sent it again: one that comes back while
// the node has other peers, and all of them.
func TestAdvertiseReachesHoldersThatRestart(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		nodes := sim.Nodes(t, 3)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo(), nodes[1].AddrInfo(), nodes[2].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		sim.Ready()
		for _, name := range []string{"one", "two"} {
			if err := n.Advertise(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		for _, other := range nodes { // one after the other, so that the node always has peers
			sim.Restart(other, p2ptest.LoseData())
			sim.Connected(n, other)
			time.Sleep(10 * time.Second)
		}
		for _, name := range []string{"one", "two"} {
			if !isFound(t, nodes[0], n, name) {
				t.Errorf("%q is lost with its holders", name)
			}
		}

		for _, other := range nodes {
			sim.Crash(other)
		}
		time.Sleep(10 * time.Minute)
		for _, other := range nodes {
			sim.Restart(other, p2ptest.LoseData())
		}
		sim.Ready()
		time.Sleep(time.Minute)
		for _, name := range []string{"one", "two"} {
			if !isFound(t, nodes[0], n, name) {
				t.Errorf("%q is lost after an outage", name)
			}
		}
	})
}

// What a node without peers advertises is announced when there is one, also after
// a restart, and the error says so.
func TestAdvertiseWithNobodyThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t, p2pnode.WithReprovideInterval(time.Hour), p2pnode.WithRecordLifetime(2*time.Hour))
		lone := sim.Node(t, p2pnode.WithDatastore(dssync.MutexWrap(datastore.NewMapDatastore())))
		if err := lone.Advertise(t.Context(), "room"); !errors.Is(err, p2pnode.ErrNoPeers) || !strings.Contains(err.Error(), "it is kept") {
			t.Errorf("Advertise = %v", err)
		}
		for range 2 {
			time.Sleep(3 * time.Hour) // longer than records last
			if st := lone.Status().DHT; st.Advertises != 1 || st.Unadvertised != 1 {
				t.Errorf("Status: %+v", st)
			}
			other := sim.Node(t, p2pnode.WithBootstrapPeers(lone.AddrInfo()))
			sim.Ready(other, lone)
			time.Sleep(10 * time.Second)
			if st := lone.Status().DHT; st.Unadvertised != 0 || !isFound(t, other, lone, "room") {
				t.Errorf("it is not found: %+v", st)
			}
			if err := other.Close(); err != nil {
				t.Error(err)
			}
			sim.Restart(lone)
		}
	})
}

// StopAdvertising ends a call that waits.
func TestStopAdvertisingEndsAWaitingCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lone := quiet(t).Node(t)
		result := make(chan error, 1)
		begun := time.Now()
		go func() { result <- lone.Advertise(t.Context(), "room") }()
		synctest.Wait()
		if err := lone.StopAdvertising(t.Context(), "room"); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err == nil || !strings.Contains(err.Error(), "ended by StopAdvertising") || time.Since(begun) > 0 {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if got := lone.Advertising(); len(got) > 0 {
			t.Errorf("it advertises %q", got)
		}
	})
}

// following collects what a search that follows yields, as it does. The channel is
// closed at its end.
func following(t *testing.T, n *p2ptest.Node, opts ...p2pnode.FindOption) <-chan error {
	t.Helper()
	ends := make(chan error, 1000)
	go func() {
		defer close(ends)
		for ai, err := range n.FindPeers(t.Context(), "room", append(opts, p2pnode.FindFollow())...) {
			if err == nil {
				err = foundError(ai.ID.String())
			}
			ends <- err
		}
	}()
	return ends
}

// foundError is a peer that was found.
type foundError string

func (e foundError) Error() string { return "found " + string(e) }

// expectFound expects one pair of a search within a time, and no other.
func expectFound(t *testing.T, ends <-chan error, want error, within time.Duration) {
	t.Helper()
	select {
	case got := <-ends:
		if !errors.Is(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	case <-time.After(within):
		t.Errorf("after %v there is nothing, want %v", within, want)
	}
	synctest.Wait()
	if len(ends) > 0 {
		t.Errorf("and then %v", <-ends)
	}
}

// A search that follows yields a peer that comes later within two minutes, or
// within five seconds of another, and each once. It waits for peers to ask, and
// ends with a limit.
func TestFindFollowYieldsThoseWhoComeLater(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		lone := sim.Node(t)
		ends, two := following(t, lone), following(t, lone, p2pnode.FindLimit(2), p2pnode.FindSelf())
		time.Sleep(10 * time.Minute)
		nodes := p2ptest.Nodes{}
		for range 3 {
			nodes = append(nodes, sim.Node(t, p2pnode.WithBootstrapPeers(lone.AddrInfo())))
		}
		sim.Ready()
		if len(ends) > 0 {
			t.Fatalf("with nobody there it yields %v", <-ends)
		}
		time.Sleep(30 * time.Minute)
		for i, within := range []time.Duration{2*time.Minute + 5*time.Second, 2*time.Minute + 5*time.Second, 10 * time.Second} {
			if i == 1 {
				time.Sleep(5 * time.Minute)
			}
			if err := nodes[i].Advertise(t.Context(), "room"); err != nil {
				t.Fatal(err)
			}
			expectFound(t, ends, foundError(nodes[i].ID().String()), within)
		}
		if got := <-two; !errors.Is(got, foundError(nodes[0].ID().String())) {
			t.Errorf("with a limit: %v", got)
		}
		// It may find the other two in one search, in any order.
		if got := <-two; !errors.Is(got, foundError(nodes[1].ID().String())) && !errors.Is(got, foundError(nodes[2].ID().String())) {
			t.Errorf("with a limit: %v", got)
		}
		if got, more := <-two; more {
			t.Errorf("above the limit: %v", got)
		}
		time.Sleep(time.Hour)
		if len(ends) > 0 {
			t.Errorf("again: %v", <-ends)
		}
		if err := lone.Close(); err != nil {
			t.Error(err)
		}
		expectFound(t, ends, p2pnode.ErrClosed, time.Second)
	})
}

// It searches again when the node has peers again, and ends with its context,
// without an error.
func TestFindFollowAfterAnOutage(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := quiet(t)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		ends := following(t, nodes[2])
		time.Sleep(time.Hour)
		sim.Isolate(nodes[2])
		if err := nodes[1].Advertise(t.Context(), "room"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		sim.Heal()
		sim.Ready()
		expectFound(t, ends, foundError(nodes[1].ID().String()), 15*time.Second)

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		for ai, err := range nodes[0].FindPeers(ctx, "room", p2pnode.FindFollow()) {
			if err != nil || ai.ID != nodes[1].ID() {
				t.Errorf("%v, %v", ai, err)
			}
		}
		if ctx.Err() == nil {
			t.Error("it ends before its context")
		}
	})
}
