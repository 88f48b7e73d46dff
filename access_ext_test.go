package p2pnode_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// banner is a node, simulated or not.
type banner interface {
	BanPeer(id peer.ID, until time.Time, reason string) error
	BanSubnet(subnet netip.Prefix, until time.Time, reason string) error
	UnbanPeer(id peer.ID) error
	UnbanSubnet(subnet netip.Prefix) error
}

// ban bans the peer or subnet of a Ban, and unban removes the ban.
func ban(n banner, b p2pnode.Ban) error {
	if b.Peer != "" {
		return n.BanPeer(b.Peer, b.Until, b.Reason)
	}
	return n.BanSubnet(b.Subnet, b.Until, b.Reason)
}

func unban(n banner, b p2pnode.Ban) error {
	if b.Peer != "" {
		return n.UnbanPeer(b.Peer)
	}
	return n.UnbanSubnet(b.Subnet)
}

func mustBan(t *testing.T, n banner, b p2pnode.Ban) {
	t.Helper()
	if err := ban(n, b); err != nil {
		t.Fatal(err)
	}
}

// cannotMeet checks that neither of two nodes gets a connection to the other.
func cannotMeet(t *testing.T, sim *p2ptest.Network, a, b *p2ptest.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_ = a.Connect(ctx, sim.AddrInfo(b)) // whoever refuses, and however
	_ = b.Connect(ctx, sim.AddrInfo(a))
	time.Sleep(2 * time.Second)
	sim.Disconnected(a, b)
}

func TestPitfall33BannedPeerIsCutOffUntilTheBanEnds(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 3, p2ptest.Ring())
		sim.Ready()
		a, bad, third := nodes[0], nodes[1], nodes[2]
		sim.Connected(a, bad)
		sim.RoutingTable(a, 2)
		sub, err := a.Subscribe(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := third.Subscribe(t.Context(), "news"); err != nil {
			t.Fatal(err)
		}
		sim.Meshed("news")

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := a.Events(ctx)
		mustBan(t, a, p2pnode.Ban{Peer: bad.ID(), Until: time.Now().Add(time.Hour), Reason: "spam"})
		for ev := range events {
			if b, ok := ev.(p2pnode.EventBanned); ok {
				if b.Ban.Peer != bad.ID() || b.Ban.Reason != "spam" {
					t.Errorf("the event has %+v", b)
				}
				break
			}
		}
		sim.Within(5*time.Second).Disconnected(a, bad)
		cannotMeet(t, sim, a, bad)
		if got := a.Status(); got.DHT.Peers != 1 || len(got.Bans) != 1 {
			t.Errorf("%d peers are in the table, %v are banned", got.DHT.Peers, got.Bans)
		}
		// What it publishes arrives by way of the third node, and is dropped.
		sim.Connected(bad, third)
		if err := bad.Publish(t.Context(), "news", []byte("from the blocked")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if err := third.Publish(t.Context(), "news", []byte("from the third")); err != nil {
			t.Fatal(err)
		}
		if m := sim.Delivered(sub, 1)[0]; m.Author != third.ID() {
			t.Errorf("%q of the blocked peer arrives", m.Data)
		}

		time.Sleep(time.Hour)
		if list := a.Bans(); len(list) != 0 {
			t.Errorf("%v are blocked after the end", list)
		}
		if err := a.Connect(t.Context(), sim.AddrInfo(bad)); err != nil {
			t.Error(err)
		}

		mustBan(t, a, p2pnode.Ban{Peer: bad.ID()})
		sim.Within(5*time.Second).Disconnected(a, bad)
		if err := a.UnbanPeer(bad.ID()); err != nil {
			t.Error(err)
		}
		if err := a.Connect(t.Context(), sim.AddrInfo(bad)); err != nil {
			t.Error(err)
		}
	})
}

func TestBannedSubnet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 3, p2ptest.Use(p2pnode.WithoutDHT()))
		sim.Ready()
		a, inside, outside := nodes[0], nodes[1], nodes[2]
		prefix := netip.PrefixFrom(sim.Addr(inside), 24)
		mustBan(t, a, p2pnode.Ban{Subnet: prefix, Reason: "abuse"})
		sim.Within(5*time.Second).Disconnected(a, inside)
		cannotMeet(t, sim, a, inside)
		sim.Connected(a, outside)
		if list := a.Bans(); len(list) != 1 || list[0].Subnet != prefix.Masked() {
			t.Errorf("%v are banned", list)
		}
		if err := a.UnbanSubnet(prefix); err != nil {
			t.Error(err)
		}
		sim.Within(time.Minute).Connected(a, inside) // by its bootstrap loop
	})
}

func TestAllowedPeersAlone(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		friend, stranger := sim.Node(t), sim.Node(t)
		n := sim.Node(t, p2pnode.WithAllowedPeers(friend.ID()), p2pnode.WithBootstrapPeers(friend.AddrInfo()))
		sim.Ready(n)
		cannotMeet(t, sim, n, stranger)
		if err := n.Allow(stranger.ID()); err != nil {
			t.Fatal(err)
		}
		if err := n.Connect(t.Context(), stranger.AddrInfo()); err != nil {
			t.Error(err)
		}
		if got := n.Status().Allowed; len(got) != 2 || !slices.IsSorted(got) || !slices.Contains(got, stranger.ID()) {
			t.Errorf("%v are allowed", got)
		}
		for _, bad := range []error{n.Disallow(stranger.ID(), n.ID()), friend.Disallow(n.ID()), n.Disallow()} {
			if bad == nil {
				t.Error("no error of a Disallow that cannot be")
			}
		}
		sim.Connected(n, stranger)
		if err := n.Disallow(stranger.ID()); err != nil {
			t.Fatal(err)
		}
		sim.Within(5*time.Second).Disconnected(n, stranger)
		cannotMeet(t, sim, n, stranger)

		// Who could not be dialed is dialed once it is allowed.
		if err := n.Allow(stranger.ID()); err != nil {
			t.Fatal(err)
		}
		if err := n.AddPersistentPeers(sim.AddrInfo(stranger)); err != nil {
			t.Fatal(err)
		}
		sim.Connected(n, stranger)
		if err := n.Disallow(stranger.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := n.Allow(stranger.ID()); err != nil {
			t.Fatal(err)
		}
		sim.Within(2*time.Second).Connected(n, stranger)
		if got := friend.Status().Allowed; got != nil {
			t.Errorf("%v are allowed without a list", got)
		}
		if err := friend.Allow(n.ID()); err == nil || !strings.Contains(err.Error(), "WithAllowedPeers") {
			t.Errorf("without a list: %v", err)
		}
	})
}

func TestRelayServiceKeepsToTheList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayService())
		hidden := sim.NAT(p2ptest.Symmetric).Node(t, p2pnode.WithAutoRelay(relay.AddrInfo()))
		if err := hidden.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		where := hidden.AddrInfo()
		caller := sim.NAT(p2ptest.Symmetric).Node(t)
		if err := caller.Connect(t.Context(), where); err != nil {
			t.Fatal(err)
		}
		mustBan(t, relay, p2pnode.Ban{Peer: hidden.ID()})
		sim.Within(time.Minute).Disconnected(relay, hidden)
		other := sim.NAT(p2ptest.Symmetric).Node(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := other.Connect(ctx, where); err == nil {
			t.Error("the relay still carries for a blocked peer")
		}
		time.Sleep(time.Minute)
		if hidden.Status().Relays[0].Reserved {
			t.Error("a blocked peer has a reservation")
		}
	})
}

func TestBansSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		bad, worse := sim.Node(t), sim.Node(t)
		n := sim.Node(t, p2pnode.WithDataDir(dir), p2pnode.WithBannedPeers(worse.ID()))
		odd := time.FixedZone("odd", 30*3600) // which JSON cannot tell
		mustBan(t, n, p2pnode.Ban{Peer: bad.ID(), Until: time.Now().Add(time.Hour).In(odd), Reason: "spam"})
		mustBan(t, n, p2pnode.Ban{Subnet: netip.MustParsePrefix("192.0.2.0/24")})
		before := n.Bans()
		sim.Crash(n)
		sim.Restart(n)
		after := n.Bans()
		if len(before) != 3 || len(after) != 3 {
			t.Fatalf("%v before, %v after the restart", before, after)
		}
		for i := range after {
			if after[i].Peer != before[i].Peer || after[i].Subnet != before[i].Subnet || !after[i].Until.Equal(before[i].Until) || after[i].Reason != before[i].Reason {
				t.Errorf("%+v before, %+v after the restart", before[i], after[i])
			}
		}
		cannotMeet(t, sim, n, bad)
		time.Sleep(time.Hour)
		sim.Restart(n)
		if list := n.Bans(); len(list) != 2 {
			t.Errorf("%v are blocked after the end of one", list)
		}

		// One that an option repeats stays when the option goes.
		mustBan(t, n, p2pnode.Ban{Peer: worse.ID(), Reason: "again"})
		mustBan(t, n, p2pnode.Ban{Subnet: netip.MustParsePrefix("198.51.100.0/24")})
		sim.Restart(n)
		if list := n.Bans(); len(list) != 3 || list[0].Reason+list[1].Reason+list[2].Reason != "again" {
			t.Errorf("%v are banned", list)
		}
		for _, b := range n.Bans() {
			if b.Peer == worse.ID() {
				if err := n.UnbanPeer(worse.ID()); err != nil {
					t.Error(err)
				}
			}
		}
		if err := n.UnbanPeer(worse.ID()); err == nil {
			t.Error("a block is ended twice")
		}

		// A damaged file is reported and set aside, and the node starts.
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "bans")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)-3] ^= 1
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		sim.Restart(n)
		if w := n.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], file+".damaged-1") {
			t.Errorf("warnings: %q", w)
		}
		if b, err := os.ReadFile(file + ".damaged-1"); err != nil || !slices.Equal(b, text) {
			t.Errorf("kept: %q, %v", b, err)
		}
		if list := n.Bans(); len(list) != 1 || list[0].Peer != worse.ID() {
			t.Errorf("%v are banned", list)
		}
	})
}

func TestAccessListsThatContradict(t *testing.T) {
	some := func(addr string) peer.AddrInfo { return must(p2pnode.ParsePeers(addr))[0] }
	a := some("/ip4/192.0.2.1/tcp/1/p2p/12D3KooWSRYRmzof8CB97fDdse451jbDNSaCVjP6iwofhxexoAtV")
	b := some("/ip4/192.0.2.2/tcp/1/p2p/12D3KooWAz5qrTkBW4cBLTwKozb52m9j3SRdcciBUW1pm3wDWbGA")
	for _, c := range []struct {
		option, with string
		opts         []p2pnode.Option
	}{
		{"WithBannedPeers", "WithAllowedPeers", []p2pnode.Option{p2pnode.WithAllowedPeers(a.ID), p2pnode.WithBannedPeers(a.ID)}},
		{"WithBootstrapPeers", "WithBannedPeers", []p2pnode.Option{p2pnode.WithBootstrapPeers(a), p2pnode.WithBannedPeers(a.ID)}},
		{"WithBootstrapPeers", "WithAllowedPeers", []p2pnode.Option{p2pnode.WithBootstrapPeers(a), p2pnode.WithAllowedPeers(b.ID)}},
		{"WithPersistentPeers", "WithAllowedPeers", []p2pnode.Option{p2pnode.WithPersistentPeers(a), p2pnode.WithAllowedPeers(b.ID)}},
		{"WithAutoRelay", "WithBannedPeers", []p2pnode.Option{p2pnode.WithAutoRelay(a), p2pnode.WithBannedPeers(a.ID)}},
		{"WithIPFS", "WithAllowedPeers", []p2pnode.Option{p2pnode.WithIPFS(), p2pnode.WithAllowedPeers(a.ID)}},
		{"WithIPFS", "WithBannedPeers", []p2pnode.Option{p2pnode.WithIPFS(), p2pnode.WithBannedPeers(dht.GetDefaultBootstrapPeerAddrInfos()[0].ID)}},
	} {
		err := p2pnode.ValidateOptions(c.opts...)
		var option *p2pnode.OptionError
		if !errors.As(err, &option) || option.Option != c.option || !strings.Contains(err.Error(), c.with) {
			t.Errorf("%v, want an error of %s that names %s", err, c.option, c.with)
		}
	}
}

func TestBadBans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n, other := sim.Node(t), sim.Node(t)
		for what, b := range map[string]p2pnode.Ban{
			"nothing":       {},
			"the past":      {Peer: other.ID(), Until: time.Now()},
			"itself":        {Peer: n.ID()},
			"half a subnet": {Subnet: netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 99)},
			"IPv4 in IPv6":  {Subnet: netip.MustParsePrefix("::ffff:192.0.2.0/120")},
			"no peer ID":    {Peer: "nonsense"},
			"a long reason": {Peer: other.ID(), Reason: strings.Repeat("x", 501)},
			"no text":       {Peer: other.ID(), Reason: strings.Repeat("\xff", 400)},
			"two lines":     {Peer: other.ID(), Reason: "a\nb"},
			"a far year":    {Peer: other.ID(), Until: time.Unix(1<<50, 0)},
		} {
			if err := ban(n, b); err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		if err := n.UnbanPeer(other.ID()); err == nil {
			t.Error("a ban that does not exist is ended")
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"BanPeer": n.BanPeer(other.ID(), time.Time{}, ""), "UnbanPeer": n.UnbanPeer(""), "Allow": n.Allow(other.ID()), "Disallow": n.Disallow(other.ID()),
		} {
			if !errors.Is(err, p2pnode.ErrClosed) {
				t.Errorf("%s after Close: %v", what, err)
			}
		}
		if list := n.Bans(); list != nil {
			t.Errorf("%v are banned after Close", list)
		}
	})
}

// TestShutOutPeersAreSaidToBe checks that the error of a dial names the ban.
func TestShutOutPeersAreSaidToBe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		n, bad := sim.Node(t), sim.Node(t)
		strict := sim.Node(t, p2pnode.WithAllowedPeers(n.ID()))
		refused := func(err error, what ...string) {
			t.Helper()
			if err == nil {
				t.Error("no error")
				return
			}
			names(t, err.Error(), what...)
		}
		mustBan(t, n, p2pnode.Ban{Peer: bad.ID(), Until: time.Now().Add(time.Hour), Reason: "spam"})
		err := n.Connect(t.Context(), bad.AddrInfo())
		refused(err, bad.ID().String(), time.Now().Add(time.Hour).Format(time.RFC3339), "spam", "UnbanPeer")
		if !errors.Is(err, swarm.ErrGaterDisallowedConnection) || !errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("%v is no error of the gater, or not ErrBanned", err)
		}
		_, err = n.OpenStream(t.Context(), bad.ID(), "/x")
		refused(err, bad.ID().String(), "spam")
		if !errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("%v is not ErrBanned", err)
		}
		refused(n.AddPersistentPeers(bad.AddrInfo()), bad.ID().String(), "spam")
		if list := n.Status().Persistent; len(list) != 0 {
			t.Errorf("%v are kept", list)
		}
		refused(strict.Connect(t.Context(), bad.AddrInfo()), bad.ID().String(), "WithAllowedPeers")
		refused(strict.AddPersistentPeers(bad.AddrInfo()), bad.ID().String(), "WithAllowedPeers")
		mustBan(t, strict, p2pnode.Ban{Peer: bad.ID()})
		refused(strict.Allow(bad.ID()), bad.ID().String(), "UnbanPeer")

		mustBan(t, n, p2pnode.Ban{Subnet: netip.PrefixFrom(sim.Addr(strict), 24)})
		err = n.Connect(t.Context(), strict.AddrInfo())
		refused(err, strict.ID().String(), sim.Addr(strict).String())
		if !errors.Is(err, swarm.ErrGaterDisallowedConnection) || !errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("%v is no error of the gater, or not ErrBanned", err)
		}
		// Banning one of several addresses does not ban the peer.
		both := strict.AddrInfo()
		both.Addrs = append(slices.Clone(both.Addrs), must(p2pnode.ParsePeers("/ip4/16.200.0.1/udp/1/quic-v1/p2p/" + both.ID.String()))[0].Addrs...)
		if err := n.Connect(t.Context(), both); err == nil || errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("with an address outside the subnet: %v", err)
		}
		if err := n.AddPersistentPeers(bad.AddrInfo()); !errors.Is(err, p2pnode.ErrBanned) {
			t.Errorf("%v is not ErrBanned", err)
		}
		// The other side learns why it is not let in.
		err = bad.Connect(t.Context(), n.AddrInfo())
		gated, ok := errors.AsType[*network.ConnError](err) // while it dials, or right after that
		if !errors.Is(err, nethost.ErrLostAtOnce) && !(ok && gated.Remote && gated.ErrorCode == network.ConnGated) {
			t.Errorf("the blocked peer is told %v", err)
		}
	})
}

func TestOwnIDAmongTheBannedPeersIsAnError(t *testing.T) {
	key := must(p2pnode.GenerateKey(p2pnode.KeyEd25519))
	_, err := p2pnode.New(t.Context(), p2pnode.WithIdentity(key), p2pnode.WithBannedPeers(must(p2pnode.PeerID(key))), p2pnode.WithoutListening())
	var option *p2pnode.OptionError
	if !errors.As(err, &option) || option.Option != "WithBannedPeers" {
		t.Errorf("%v", err)
	}
}

// TestSavedPeersThatAreShutOutAreNotDialed.
func TestSavedPeersThatAreShutOutAreNotDialed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot, friend, bad := sim.Node(t), sim.Node(t), sim.Node(t)
		opts := []p2pnode.Option{p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithDataDir(dir), p2pnode.WithMinPeers(3), p2pnode.WithoutDHT()}
		n := sim.Node(t, opts...)
		for _, p := range []*p2ptest.Node{friend, bad} {
			if err := n.Connect(t.Context(), p.AddrInfo()); err != nil {
				t.Fatal(err)
			}
		}
		sim.Connected(n, boot)
		mustBan(t, n, p2pnode.Ban{Peer: friend.ID()})
		if err := n.UnbanPeer(friend.ID()); err != nil {
			t.Fatal(err)
		}
		if err := n.Connect(t.Context(), friend.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		again := sim.Node(t, append(opts, p2pnode.WithBannedPeers(bad.ID()))...)
		sim.Within(time.Minute).Connected(again, friend)
		time.Sleep(time.Minute)
		for _, f := range again.Status().Bootstrap.Failed {
			t.Errorf("%s is dialed: %v", f.ID, f.Err)
		}
	})
}

// TestGaterOfTheApplicationIsAskedToo checks that the list of bans wraps it.
func TestGaterOfTheApplicationIsAskedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		own, err := conngater.NewBasicConnectionGater(nil)
		if err != nil {
			t.Fatal(err)
		}
		first, second, third := sim.Node(t), sim.Node(t), sim.Node(t)
		if err := own.BlockPeer(first.ID()); err != nil {
			t.Fatal(err)
		}
		n := sim.Node(t, p2pnode.WithLibp2pOptions(libp2p.ConnectionGater(own)), p2pnode.WithBannedPeers(second.ID()))
		cannotMeet(t, sim, n, first)
		cannotMeet(t, sim, n, second)
		if err := n.Connect(t.Context(), third.AddrInfo()); err != nil || n.Host().Network().Connectedness(third.ID()) != network.Connected {
			t.Errorf("%v", err)
		}
	})
}
