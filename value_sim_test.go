package p2pnode_test

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// highest prefers the record that is highest in the order of bytes.
type highest struct{}

func (highest) Validate(string, []byte) error { return nil }

func (highest) Select(_ string, values [][]byte) (best int, err error) {
	for i, v := range values {
		if bytes.Compare(v, values[best]) > 0 {
			best = i
		}
	}
	return best, nil
}

// valued is a network whose nodes keep records of "app", and put them every hour.
func valued(t *testing.T) *p2ptest.Network {
	t.Helper()
	return quiet(t, p2pnode.WithValidator("app", highest{}), p2pnode.WithReprovideInterval(time.Hour))
}

// What is put is put again when all who held it have forgotten it, until it is
// stopped.
func TestPutValueLastsUntilItIsStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second: run without -short")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := valued(t)
		nodes := sim.Nodes(t, 4)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(nodes[0].AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))
		sim.Ready()
		if err := n.PutValue(t.Context(), "/app/x", []byte("1")); err != nil {
			t.Fatal(err)
		}
		// The holders forget their records one after the other.
		forget := func() {
			for _, other := range nodes {
				sim.Restart(other, p2ptest.LoseData())
				sim.Ready()
			}
		}
		forget()
		if _, err := nodes[3].GetValue(t.Context(), "/app/x"); !errors.Is(err, p2pnode.ErrNotFound) {
			t.Fatalf("the holders have not forgotten it: %v", err)
		}
		time.Sleep(time.Hour)
		if got, err := nodes[3].GetValue(t.Context(), "/app/x"); err != nil || string(got) != "1" {
			t.Errorf("after an hour: %q, %v", got, err)
		}
		if st := n.Status().DHT; st.Values != 1 {
			t.Errorf("Status: %+v", st)
		}
		if err := n.StopPutting(t.Context(), "/app/x", "/app/other"); err != nil || n.Status().DHT.Values != 0 {
			t.Errorf("StopPutting: %v, %+v", err, n.Status().DHT)
		}
		forget()
		time.Sleep(2 * time.Hour)
		if got, err := nodes[3].GetValue(t.Context(), "/app/x"); !errors.Is(err, p2pnode.ErrNotFound) {
			t.Errorf("after its end: %q, %v", got, err)
		}
	})
}

// The better record of somebody else is left alone.
func TestPutValueLeavesBetterRecordsAlone(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := valued(t)
		nodes := sim.Nodes(t, 4)
		sim.Ready()
		for i, value := range []string{"1", "2"} {
			if err := nodes[i+1].PutValue(t.Context(), "/app/x", []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Hour)
		for _, n := range nodes {
			if got, err := n.GetValue(t.Context(), "/app/x"); err != nil || string(got) != "2" {
				t.Errorf("got %q, %v", got, err)
			}
		}
	})
}

// What is put by a node without peers is put when there are some, also after a
// restart with a datastore.
func TestPutValueWithNobodyThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := valued(t)
		lone := sim.Node(t, p2pnode.WithDatastore(dssync.MutexWrap(datastore.NewMapDatastore())))
		if err := lone.PutValue(t.Context(), "/app/x", []byte("1")); !errors.Is(err, p2pnode.ErrNoPeers) {
			t.Errorf("PutValue = %v", err)
		}
		for range 2 {
			time.Sleep(time.Hour)
			if st := lone.Status().DHT; st.Values != 1 {
				t.Errorf("Status: %+v", st)
			}
			other := sim.Node(t, p2pnode.WithBootstrapPeers(lone.AddrInfo()))
			sim.Ready(other, lone)
			time.Sleep(5 * time.Minute)
			if got, err := other.GetValue(t.Context(), "/app/x"); err != nil || string(got) != "1" {
				t.Errorf("got %q, %v", got, err)
			}
			if err := other.Close(); err != nil {
				t.Error(err)
			}
			sim.Restart(lone)
		}
	})
}

// A search yields better records as it finds them, and ends with an error if there
// is none; the closest peers are those that hold the records.
func TestSearchValueAndClosestPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := valued(t)
		nodes := sim.Nodes(t, 4)
		sim.Ready()
		if err := nodes[1].PutValue(t.Context(), "/app/x", []byte("1")); err != nil {
			t.Fatal(err)
		}
		var got []string
		for value, err := range nodes[3].SearchValue(t.Context(), "/app/x") {
			if err != nil {
				t.Error(err)
			}
			got = append(got, string(value))
		}
		if len(got) != 1 || got[0] != "1" {
			t.Errorf("found %q", got)
		}
		var last error
		for _, err := range nodes[3].SearchValue(t.Context(), "/app/nothing") {
			last = err
		}
		if !errors.Is(last, p2pnode.ErrNotFound) {
			t.Errorf("ended with %v", last)
		}

		c := cidOf(t, "x")
		found, err := nodes[3].ClosestPeers(t.Context(), c)
		if err != nil || len(found) != 3 {
			t.Fatalf("found %v, %v", found, err)
		}
		for i, n := range byDistance(nodes[:3], c) {
			if found[i].ID != n.ID() || len(found[i].Addrs) == 0 {
				t.Errorf("number %d is %v, want %s", i, found[i], n.ID())
			}
		}
	})
}
