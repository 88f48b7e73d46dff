package p2pnode_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/record"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// finds checks that Diagnose has exactly the findings of the kinds given, and
// returns them in one text.
func finds(t *testing.T, n *p2pnode.Node, kinds ...p2pnode.FindingKind) string {
	t.Helper()
	list, err := n.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text, got, want []string
	for _, f := range list {
		got, text = append(got, string(f.Kind)), append(text, f.String())
		if f.What == "" || f.Do == "" || !strings.Contains(f.String(), f.Do) {
			t.Errorf("half a finding: %+v", f)
		}
	}
	for _, k := range kinds {
		want = append(want, string(k))
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("found %q, want %q:\n%s", got, want, strings.Join(text, "\n"))
	}
	return strings.Join(text, "\n")
}

func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

func TestDiagnoseFindsNothingWrongWithAHealthyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		nodes := net.Nodes(t, 3)
		net.Ready()
		for _, n := range nodes {
			net.RoutingTable(n, 2)
			finds(t, n)
		}
		if err := nodes[0].Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := nodes[0].Diagnose(t.Context()); !errors.Is(err, p2pnode.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestDiagnoseNothingSaysWhereToFindPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t)
		says(t, finds(t, n, p2pnode.FindingNobodyToFind), "WithBootstrapPeers", "WithMDNS")
	})
}

func TestDiagnoseNoBootstrapPeerReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		a, b := net.Node(t), net.Node(t)
		n := net.Node(t, p2pnode.WithBootstrapPeers(net.AddrInfo(a), net.AddrInfo(b)))
		net.Crash(a, b)
		net.Disconnected(n, a)
		net.Disconnected(n, b)
		begun := time.Now()
		text := finds(t, n, p2pnode.FindingNoBootstrap)
		says(t, text, "none of 2 answers", a.ID().String(), b.ID().String(), "16.1.0.1", "16.2.0.1", "timeout")
		if took := time.Since(begun); took > 7*time.Second {
			t.Errorf("it took %v", took)
		}
		// With one of them back it is no finding.
		net.Restart(b)
		net.Ready(n)
		finds(t, n)
	})
}

func TestDiagnoseLoopbackOnly(t *testing.T) {
	n, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	says(t, finds(t, n, p2pnode.FindingNobodyToFind, p2pnode.FindingLoopback), "127.0.0.1", "/ip4/0.0.0.0/tcp/4001", "WithListenAddrs")
}

func TestDiagnoseDHTClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		boot := net.Node(t)
		told := net.Node(t, p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		private := net.Node(t, p2pnode.WithReachability(network.ReachabilityPrivate), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		net.Ready(told, private)
		time.Sleep(time.Second)
		says(t, finds(t, told, p2pnode.FindingDHTClient), "WithDHTMode says so")
		says(t, finds(t, private, p2pnode.FindingDHTClient, p2pnode.FindingNATNoRelay), "reachability is Private", "WithAutoRelay", "WithHolePunching")
	})
}

func TestDiagnoseWrongNetworkName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		boot := net.Node(t, p2pnode.WithNetwork("acme"))
		n := net.Node(t, p2pnode.WithNetwork("acmee"), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		net.Connected(n, boot)
		time.Sleep(time.Second)
		says(t, finds(t, n, p2pnode.FindingNoDHTPeer), `"acmee"`, "/acmee/kad/1.0.0", "WithNetwork")
	})
}

func TestDiagnoseClockBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		if err != nil {
			t.Fatal(err)
		}
		boot := net.Node(t, p2pnode.WithIdentity(key))
		n := net.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		net.Ready(n)
		time.Sleep(time.Second)
		finds(t, n)
		// As the peer's own clock, two hours ahead, would have signed it.
		rec := peer.PeerRecordFromAddrInfo(boot.AddrInfo())
		rec.Seq = uint64(time.Now().Add(2 * time.Hour).UnixNano())
		envelope, err := record.Seal(rec, key)
		if err != nil {
			t.Fatal(err)
		}
		book, _ := peerstore.GetCertifiedAddrBook(n.Host().Peerstore())
		if _, err := book.ConsumePeerRecord(envelope, time.Hour); err != nil {
			t.Fatal(err)
		}
		says(t, finds(t, n, p2pnode.FindingClock), boot.ID().String(), "2h0m0s in the future", "2000-01-01")
	})
}

func TestDiagnoseUDPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := p2ptest.NewNetwork(t)
		boot, dead := net.Node(t), net.Node(t)
		n := net.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		net.Ready(n)
		net.RoutingTable(n, 1)
		net.Crash(dead)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := n.Connect(ctx, net.AddrInfo(dead)); err == nil {
				t.Fatal("connected to a dead peer")
			}
			cancel()
		}
		says(t, finds(t, n, p2pnode.FindingUDPBlocked), "firewall", "WithTransports")
	})
}

func TestDiagnoseAnotherNetworkKey(t *testing.T) {
	key := func(b byte) pnet.PSK {
		psk := make(pnet.PSK, 32)
		psk[0] = b
		return psk
	}
	listen := p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0")
	boot, err := p2pnode.New(t.Context(), listen, p2pnode.WithPrivateNetwork(key(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer boot.Close()
	n, err := p2pnode.New(t.Context(), listen, p2pnode.WithPrivateNetwork(key(2)), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	says(t, finds(t, n, p2pnode.FindingNetworkKey), boot.ID().String(), "PrivateNetwork", "WithPrivateNetwork")
}

func TestDiagnoseTooFewFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t, p2pnode.WithConnLimits(10, 1<<30))
		says(t, finds(t, n, p2pnode.FindingNobodyToFind, p2pnode.FindingFewFiles), "ulimit -n", "WithConnLimits")
	})
}
