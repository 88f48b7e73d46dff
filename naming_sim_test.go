package p2pnode_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

const (
	onePath   = "/ipfs/bafkqac3imvwgy3zao5xxe3de"
	otherPath = "/ipfs/bafkqaaa/docs"
)

// naming is a network whose nodes know signed records of "app".
func naming(t *testing.T) *p2ptest.Network {
	t.Helper()
	return quiet(t, p2pnode.WithSignedRecords("app"))
}

// client joins a network as a DHT client: nobody asks it for records.
func client(t *testing.T, sim *p2ptest.Network, via *p2ptest.Node, opts ...p2pnode.Option) *p2ptest.Node {
	t.Helper()
	return sim.Node(t, append(opts, p2pnode.WithBootstrapPeers(via.AddrInfo()), p2pnode.WithDHTMode(p2pnode.DHTModeClient))...)
}

// lasting returns how long signatures are valid in tests of how they are renewed: 2
// hours, or with -long the default of two days, and the options for that.
func lasting() (time.Duration, []p2pnode.SignOption) {
	if longRun() {
		return 48 * time.Hour, nil
	}
	return 2 * time.Hour, []p2pnode.SignOption{p2pnode.SignValidity(2 * time.Hour)}
}

// appKey is the key of a node's signed record.
func appKey(id peer.ID) string { return "/app/" + id.String() }

// resolves checks at which path a name points; "" is none.
func resolves(t *testing.T, n *p2ptest.Node, name, want string) {
	t.Helper()
	got, err := n.ResolveName(t.Context(), name)
	switch {
	case want == "" && !errors.Is(err, p2pnode.ErrNotFound):
		t.Errorf("%s points at %q, %v, want nothing", name, got, err)
	case want != "" && (err != nil || got != want):
		t.Errorf("%s points at %q, %v, want %q", name, got, err, want)
	}
}

// says checks the payload of a node's signed record and its number; 0 is none.
func says(t *testing.T, n *p2ptest.Node, owner peer.ID, seq uint64, want string) {
	t.Helper()
	r, err := n.GetSigned(t.Context(), appKey(owner))
	switch {
	case seq == 0 && !errors.Is(err, p2pnode.ErrNotFound):
		t.Errorf("the record is %+v, %v, want none", r, err)
	case seq > 0 && (err != nil || r.Seq != seq || string(r.Payload) != want || r.Owner != owner || !time.Now().Before(r.Expires)):
		t.Errorf("the record is %+v, %v, want %q with number %d", r, err, want, seq)
	}
}

// A name and a signed record are renewed as long as the node runs: after half as
// long again as they are valid they are found, with -long after three days. They are gone soon after it has stopped, also if the node has
// ended them itself.
func TestNamesLastAsLongAsTheNode(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	validity, opts := lasting()
	synctest.Test(t, func(t *testing.T) {
		sim := naming(t)
		nodes := sim.Nodes(t, 3)
		a, b := client(t, sim, nodes[0]), client(t, sim, nodes[0])
		sim.Ready()
		for _, n := range []*p2ptest.Node{a, b} {
			if err := n.PublishName(t.Context(), onePath, opts...); err != nil {
				t.Fatal(err)
			}
			if err := n.PutSigned(t.Context(), appKey(n.ID()), []byte("x"), opts...); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(validity + validity/2 + time.Hour)
		for _, n := range []*p2ptest.Node{a, b} {
			resolves(t, nodes[2], p2pnode.NameOf(n.ID()), onePath)
			says(t, nodes[2], n.ID(), 1, "x")
		}
		if err := a.UnpublishName(t.Context(), a.ID().String()); err != nil {
			t.Error(err)
		}
		if err := a.StopPutting(t.Context(), appKey(a.ID())); err != nil || a.Status().DHT.Values != 0 {
			t.Errorf("StopPutting = %v, %+v", err, a.Status().DHT)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(validity + time.Hour)
		for _, n := range []*p2ptest.Node{a, b} {
			resolves(t, nodes[2], n.ID().String(), "")
			says(t, nodes[2], n.ID(), 0, "")
		}
	})
}

// Short validities are renewed in time, with the sequence number unchanged; a new
// path or payload replaces the old one everywhere.
func TestNamesAreRenewedAndReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := naming(t)
		nodes := sim.Nodes(t, 3)
		n := client(t, sim, nodes[0])
		sim.Ready()
		short := p2pnode.SignValidity(time.Minute)
		for i, to := range []string{onePath, otherPath} {
			if err := n.PublishName(t.Context(), to, short, p2pnode.SignTTL(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if err := n.PutSigned(t.Context(), appKey(n.ID()), []byte(to), short); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				for _, other := range nodes {
					resolves(t, other, p2pnode.NameOf(n.ID()), to)
					says(t, other, n.ID(), uint64(i+1), to)
				}
				time.Sleep(55 * time.Second)
			}
		}
		sim.Crash(n)
		time.Sleep(time.Minute)
		resolves(t, nodes[1], p2pnode.NameOf(n.ID()), "")
		says(t, nodes[1], n.ID(), 0, "")
	})
}

// A node with a data directory renews its own name after a restart, also if
// everybody has forgotten it; that of another key it puts until it expires.
func TestNamesSurviveARestart(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	dir := t.TempDir()
	validity, opts := lasting()
	synctest.Test(t, func(t *testing.T) {
		sim := naming(t)
		nodes := sim.Nodes(t, 3)
		n := client(t, sim, nodes[0], p2pnode.WithDataDir(dir))
		sim.Ready()
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := p2pnode.PeerID(key)
		if err != nil {
			t.Fatal(err)
		}
		for _, signer := range []p2pnode.SignOption{nil, p2pnode.SignKey(key)} {
			if err := n.PublishName(t.Context(), onePath, append(opts, signer)...); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.PutSigned(t.Context(), appKey(n.ID()), []byte("x"), opts...); err != nil {
			t.Fatal(err)
		}
		sim.Restart(n)
		for _, other := range nodes {
			sim.Restart(other, p2ptest.LoseData())
		}
		sim.Ready()
		time.Sleep(5 * time.Minute)
		resolves(t, nodes[1], n.ID().String(), onePath)
		resolves(t, nodes[1], foreign.String(), onePath)
		says(t, nodes[1], n.ID(), 1, "x")
		if st := n.Status().DHT; st.Values != 3 {
			t.Errorf("Status: %+v", st)
		}
		time.Sleep(validity + validity/2)
		resolves(t, nodes[1], n.ID().String(), onePath)
		resolves(t, nodes[1], foreign.String(), "")
		says(t, nodes[1], n.ID(), 1, "x")
		if st := n.Status().DHT; st.Values != 2 {
			t.Errorf("the expired record is kept: %+v", st)
		}
		// What is ended stays so.
		if err := n.UnpublishName(t.Context(), p2pnode.NameOf(n.ID())); err != nil {
			t.Error(err)
		}
		sim.Restart(n)
		sim.Ready()
		if st := n.Status().DHT; st.Values != 1 {
			t.Errorf("Status: %+v", st)
		}
		time.Sleep(validity + time.Hour)
		resolves(t, nodes[1], n.ID().String(), "")
	})
}

// What is published without peers gets its number when there are some: above that
// of the DHT, which the node had no way to know.
func TestNamesWithNobodyThere(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	for name, restarted := range map[string]bool{"at once": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				sim := naming(t)
				nodes := sim.Nodes(t, 3)
				key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
				if err != nil {
					t.Fatal(err)
				}
				id, err := p2pnode.PeerID(key)
				if err != nil {
					t.Fatal(err)
				}
				sim.Ready()
				for _, to := range []string{onePath, otherPath, onePath} { // numbers 1 to 3
					if err := nodes[0].PublishName(t.Context(), to, p2pnode.SignKey(key)); err != nil {
						t.Fatal(err)
					}
					if err := nodes[0].PutSigned(t.Context(), appKey(id), []byte(to), p2pnode.SignKey(key)); err != nil {
						t.Fatal(err)
					}
				}
				if err := nodes[0].Close(); err != nil {
					t.Error(err)
				}
				lone := sim.Node(t, p2pnode.WithIdentity(key), p2pnode.WithDataDir(dir))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := lone.PublishName(ctx, otherPath); !errors.Is(err, p2pnode.ErrNoPeers) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("PublishName = %v", err)
				}
				if err := lone.PutSigned(t.Context(), appKey(id), []byte("new")); !errors.Is(err, p2pnode.ErrNoPeers) {
					t.Errorf("PutSigned = %v", err)
				}
				if restarted {
					sim.Restart(lone)
				}
				if err := lone.Connect(t.Context(), nodes[1].AddrInfo()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				resolves(t, nodes[2], id.String(), otherPath)
				says(t, nodes[2], id, 4, "new")
			})
		})
	}
}

// A node that has the key of another one's name ends the renewals of that with a
// newer record, and nothing older comes back after it.
func TestANewerRecordEndsTheRenewals(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := naming(t)
		nodes := sim.Nodes(t, 3)
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		if err != nil {
			t.Fatal(err)
		}
		first, second := client(t, sim, nodes[0], p2pnode.WithIdentity(key)), client(t, sim, nodes[0])
		sim.Ready()
		if err := first.PublishName(t.Context(), onePath, p2pnode.SignValidity(10*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := second.PublishName(t.Context(), otherPath, p2pnode.SignKey(key), p2pnode.SignValidity(20*time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Minute)
		resolves(t, nodes[1], first.ID().String(), otherPath)
		if st := first.Status().DHT; st.Values != 0 {
			t.Errorf("the first node goes on: %+v", st)
		}
		if err := second.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(30 * time.Minute)
		resolves(t, nodes[1], first.ID().String(), "")
	})
}

// Names have many forms; what is not one is refused with words that say what to
// write.
func TestFormsOfNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := naming(t)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		n := nodes[1]
		if err := n.PublishName(t.Context(), onePath); err != nil {
			t.Fatal(err)
		}
		id := n.ID()
		name := p2pnode.NameOf(id)
		if !strings.HasPrefix(name, "/ipns/k51") || p2pnode.NameOf("") != "" {
			t.Errorf("NameOf = %q, %q", name, p2pnode.NameOf(""))
		}
		for _, form := range []string{name, strings.TrimPrefix(name, "/ipns/"), id.String(), "/ipns/" + id.String(), peer.ToCid(id).String()} {
			resolves(t, nodes[2], form, onePath)
		}
		for text, want := range map[string]string{"": "not an IPNS name", "docs.example": "DNS", name + "/a": "append /a", "/ipfs/bafkqaaa": "not an IPNS name"} {
			if _, err := n.ResolveName(t.Context(), text); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("ResolveName of %q: %v", text, err)
			}
			if err := n.UnpublishName(t.Context(), text); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("UnpublishName of %q: %v", text, err)
			}
		}
		for text, want := range map[string]string{"": "not a path", "bafkqaaa": "write /ipfs/bafkqaaa", "/app/x": "not a path", "/ipfs/x": "not a path"} {
			if err := n.PublishName(t.Context(), text); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("PublishName of %q: %v", text, err)
			}
		}
		for key, want := range map[string]string{
			"app": "must look like", "/other/" + id.String(): "WithSignedRecords", "/pk/" + string(id): "WithSignedRecords", "/app/x": "not a peer ID",
			appKey(nodes[2].ID()): "signed by " + id.String(),
		} {
			if err := n.PutSigned(t.Context(), key, []byte("x")); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("PutSigned under %q: %v", key, err)
			}
			if _, err := n.GetSigned(t.Context(), key); err == nil || key != appKey(nodes[2].ID()) && !strings.Contains(err.Error(), want) {
				t.Errorf("GetSigned under %q: %v", key, err)
			}
		}
		for want, opt := range map[string]p2pnode.SignOption{
			"the key is nil": p2pnode.SignKey(nil), "at least a minute": p2pnode.SignValidity(time.Second), "negative": p2pnode.SignTTL(-1), "only names": p2pnode.SignTTL(0),
		} {
			if err := n.PutSigned(t.Context(), appKey(id), []byte("x"), opt); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("PutSigned = %v, want %q", err, want)
			}
			if err := n.PublishName(t.Context(), onePath, opt); want != "only names" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("PublishName = %v, want %q", err, want)
			}
		}
		if err := n.PutSigned(t.Context(), name, nil); err == nil || !strings.Contains(err.Error(), "PublishName") {
			t.Errorf("PutSigned of a name: %v", err)
		}
	})
}
