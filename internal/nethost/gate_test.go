package nethost

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// gateAt is the gate of a node that listens on an address and is connected to
// peers at others.
func gateAt(public bool, listens string, peers ...string) *gate {
	g := newGate(public, nil)
	g.listens = func() []ma.Multiaddr { return []ma.Multiaddr{ma.StringCast(listens)} }
	g.reaches = func() (list []addrs.Reach) {
		for _, p := range peers {
			list = append(list, addrs.ReachOf(ma.StringCast(p)))
		}
		return list
	}
	return g
}

const (
	global   = "/ip4/8.8.8.8/tcp/80/ws"
	private  = "/ip4/10.0.0.1/tcp/80/ws"
	metadata = "/ip4/169.254.169.254/tcp/80/ws"
	loopback = "/ip4/127.0.0.1/tcp/80/ws"
)

// A stranger's word leads to no service of this machine, its links, or, on the
// public network, its LAN; that of a peer that is there does.
func TestAttackC3WhatIsLearnedLeadsNowhereNear(t *testing.T) {
	for _, c := range []struct {
		public         bool
		teller, listen string
		want           []string
	}{
		{false, global, global, []string{global, private}},
		{true, global, global, []string{global}},
		{true, private, global, []string{global, private}},
		{false, private, global, []string{global, private}},
		{false, metadata, global, []string{global, private, metadata}},
		{false, loopback, global, []string{global, private, loopback}},
		{true, loopback, global, []string{global, private, loopback}},
		{false, global, loopback, []string{global, private, loopback}}, // a network on one machine
	} {
		g := gateAt(c.public, c.listen)
		near := gateAt(c.public, c.listen, c.teller)
		for _, a := range []string{global, private, metadata, loopback} {
			want := false
			for _, w := range c.want {
				want = want || w == a
			}
			if got := g.believes(reachOfTeller(ma.StringCast(c.teller)), addrs.ReachOf(ma.StringCast(a))); got != want {
				t.Errorf("public %v, from %s: %s is believed: %v", c.public, c.teller, a, got)
			}
			// What does not say who told it, as a name that leads there.
			if got := near.mayDial("somebody", ma.StringCast(a)); got && !want {
				t.Errorf("public %v, with a peer at %s: %s is dialed", c.public, c.teller, a)
			}
			g.near["neighbor"] = true
			if reach := addrs.ReachOf(ma.StringCast(a)); g.mayDial("neighbor", ma.StringCast(a)) != (want || reach == addrs.Private) && c.teller == global {
				t.Errorf("public %v: %s of a peer found on the LAN", c.public, a)
			}
			if g.given["friend"] = true; !g.mayDial("friend", ma.StringCast(a)) {
				t.Errorf("%s is not dialed for the application", a)
			}
		}
	}
	relayed := ma.StringCast(loopback + "/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit")
	if gateAt(false, global).believes(reachOfTeller(relayed), addrs.ReachOf(ma.StringCast(loopback))) {
		t.Error("a stranger behind a relay on this machine is believed")
	}
}

// Who has time waits while many dials on one peer's word are in vain, and then loses
// none; those on the words of others, and of who was right, do not wait.
func TestWaitingForBeliefLosesNoDial(t *testing.T) {
	g := gateAt(false, global)
	now := time.Now()
	g.now = func() time.Time { return now }
	addr := ma.StringCast(global)
	waits, most := 0, time.Duration(0)
	for i := range 3 * maxDebt {
		id := peer.ID(fmt.Sprint("learned ", i))
		g.learned("teller", id)
		if wait := g.wait(id); wait > 0 {
			waits++
			most = max(most, wait)
			now = now.Add(wait)
			if again := g.wait(id); again > time.Millisecond {
				t.Fatalf("after the wait, %v more", again)
			}
		}
		if !g.mayDial(id, addr) {
			t.Fatalf("dial %d is refused", i)
		}
	}
	if waits < 2*maxDebt || most > time.Second {
		t.Errorf("%d of the dials waited, %v at most", waits, most)
	}
	g.learned("teller", "next")
	if g.wait("next") == 0 {
		t.Error("the next one need not wait")
	}
	g.learned("other", "its")
	if wait := g.wait("its"); wait != 0 {
		t.Errorf("on another's word: %v", wait)
	}
	if wait := g.wait("never learned"); wait != 0 {
		t.Errorf("on nobody's word: %v", wait)
	}
	for i := range maxDebt {
		g.reached(peer.ID(fmt.Sprint("learned ", i+2*maxDebt)))
	}
	if wait := g.wait("next"); wait != 0 {
		t.Errorf("after the teller was right: %v", wait)
	}
}

// What one peer says leads only to so many dials in vain; dials that lead to a
// connection cost nothing.
func TestAttackC3DialsOnOnePeersWordAreBounded(t *testing.T) {
	g := gateAt(false, global)
	now := time.Now()
	g.now = func() time.Time { return now }
	addr := ma.StringCast(global)
	dials := func(teller string, peers int, found bool) (n int) {
		for i := range peers {
			id := peer.ID(fmt.Sprint(teller, i, found))
			g.learned(teller, id)
			for range 3 {
				if g.mayDial(id, addr) {
					n++
				}
			}
			if found {
				g.reached(id)
			}
		}
		return n
	}
	if n := dials("stranger", 1000, false); n != maxDebt {
		t.Errorf("%d dials, not %d", n, maxDebt)
	}
	if n := dials("friend", 1000, true); n != 3000 {
		t.Errorf("%d dials on the word of a peer that is right", n)
	}
	if now = now.Add(10 * time.Second); dials("stranger", 1000, false) != 10*debtEase {
		t.Error("the account is not eased by time")
	}
	for i := range 3 * maxTellers {
		dials(fmt.Sprint("teller", i), 5, false)
	}
	if len(g.tellers) > maxTellers || len(g.words) > maxWords {
		t.Errorf("%d tellers and %d words are remembered", len(g.tellers), len(g.words))
	}
}
