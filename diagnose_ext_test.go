package p2pnode_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/record"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// finds checks that Diagnose has exactly the findings of the kinds given, and
// returns them in one text.
func finds(t *testing.T, n interface {
	Diagnose(ctx context.Context) ([]p2pnode.Finding, error)
}, kinds ...p2pnode.FindingKind) string {
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

// names checks that a text names peers, addresses, options and the like. Its
// sentences are those of internal/diag, in the golden file.
func names(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

// constants are those of a type in a file, in their order.
func constants(t *testing.T, file, typ string) (values []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if name, ok := v.Type.(*ast.Ident); !ok || name.Name != typ {
				continue
			}
			for _, value := range v.Values {
				values = append(values, must(strconv.Unquote(value.(*ast.BasicLit).Value)))
			}
		}
	}
	return values
}

// The kinds of findings are those that internal/diag makes, in the same order.
func TestFindingKindsAreThoseOfDiag(t *testing.T) {
	face, room := constants(t, "diagnose.go", "FindingKind"), constants(t, "internal/diag/diag.go", "Kind")
	if len(face) == 0 || !slices.Equal(face, room) {
		t.Errorf("the root has the kinds %q, internal/diag %q", face, room)
	}
	if made := slices.Compact(slices.Sorted(slices.Values(face))); len(made) != len(face) {
		t.Errorf("two kinds are one: %q", face)
	}
}

func TestDiagnoseFindsNothingWrongWithAHealthyNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		nodes := sim.Nodes(t, 3)
		sim.Ready()
		for _, n := range nodes {
			sim.RoutingTable(n, 2)
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
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t)
		names(t, finds(t, n, p2pnode.FindingNobodyToFind), "WithBootstrapPeers", "WithMDNS")
	})
}

func TestDiagnoseNoBootstrapPeerReached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		a, b := sim.Node(t), sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(sim.AddrInfo(a), sim.AddrInfo(b)))
		sim.Crash(a, b)
		sim.Disconnected(n, a)
		sim.Disconnected(n, b)
		begun := time.Now()
		text := finds(t, n, p2pnode.FindingNoBootstrap)
		names(t, text, a.ID().String(), b.ID().String(), "16.1.0.1", "16.2.0.1")
		if took := time.Since(begun); took > 7*time.Second {
			t.Errorf("it took %v", took)
		}
		// In a time that is short they count as silent.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		list, err := n.Diagnose(ctx)
		cancel()
		if err != nil || len(list) != 1 || list[0].Kind != p2pnode.FindingNoBootstrap {
			t.Errorf("with a second: %v, %v", list, err)
		}
		// It has no time to find that out.
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if list, err := n.Diagnose(ctx); !errors.Is(err, context.Canceled) || len(list) != 0 {
			t.Errorf("with a context that has ended: %v, %v", list, err)
		}
		// With one of them connected again there is no finding.
		sim.Restart(b)
		sim.Ready(n)
		finds(t, n)
	})
}

// TestDiagnoseBootstrapPeerThatHangsUp: it has blocked this node.
func TestDiagnoseBootstrapPeerThatHangsUp(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, opts := range [][]p2ptest.Option{nil, {p2ptest.WithMemoryTransport()}} {
			sim := p2ptest.NewNetwork(t, opts...)
			boot := sim.Node(t)
			n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
			sim.Ready(n)
			mustBan(t, boot, p2pnode.Ban{Peer: n.ID()})
			time.Sleep(2 * time.Second)
			// Also during one of the connections that the keeper keeps opening.
			for i := range 40 {
				time.Sleep(time.Duration(i) * 17 * time.Millisecond)
				finds(t, n, p2pnode.FindingNoBootstrap)
			}
		}
	})
}

// TestDiagnoseSavedPeersAreGone: they are all that the node knows.
func TestDiagnoseSavedPeersAreGone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		other := sim.Node(t)
		n := sim.Node(t, p2pnode.WithDataDir(dir))
		if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		sim.Crash(other)
		sim.Restart(n)
		time.Sleep(10 * time.Second)
		names(t, finds(t, n, p2pnode.FindingNoBootstrap), other.ID().String(), "WithBootstrapPeers")
	})
}

func TestDiagnosePersistentPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		friend := sim.Node(t)
		n := sim.Node(t, p2pnode.WithPersistentPeers(friend.AddrInfo()))
		sim.Connected(n, friend)
		sim.Crash(friend)
		sim.Disconnected(n, friend)
		time.Sleep(30 * time.Second)
		names(t, finds(t, n, p2pnode.FindingPersistent), friend.ID().String())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := n.WaitReady(ctx); err == nil {
			t.Error("ready without its peer")
		} else {
			names(t, err.Error(), friend.ID().String())
		}
	})
}

func TestDiagnoseFewerPeersThanWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()), p2pnode.WithMinPeers(3))
		sim.Connected(n, boot)
		sim.RoutingTable(n, 1)
		names(t, finds(t, n, p2pnode.FindingFewPeers), "WithMinPeers")
	})
}

func TestDiagnoseNoReservation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		plain := sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(plain.AddrInfo()), p2pnode.WithAutoRelay(plain.AddrInfo()))
		sim.Ready(n)
		time.Sleep(10 * time.Second)
		names(t, finds(t, n, p2pnode.FindingDHTClient, p2pnode.FindingNoReservation), plain.ID().String(), "WithRelayService")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		missing := missingStages(n.WaitReady(ctx, p2pnode.StageReachable))
		if len(missing) != 1 || missing[0].Stage != p2pnode.StageReachable {
			t.Errorf("missing: %+v", missing)
		} else {
			names(t, missing[0].Why, plain.ID().String())
		}
		if r := n.Status().Relays; len(r) != 1 || r[0].Reserved || r[0].Missing == "" {
			t.Errorf("%+v", r)
		}
		sim.Crash(plain)
		time.Sleep(time.Minute)
		finds(t, n, p2pnode.FindingNoBootstrap, p2pnode.FindingDHTClient, p2pnode.FindingNoReservation)
	})
}

// TestRelayThatIsFullSaysSo.
func TestRelayThatIsFullSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		relay := sim.Node(t, p2pnode.WithRelayLimits(p2pnode.RelayLimits{Reservations: 1}))
		opts := []p2pnode.Option{p2pnode.WithAutoRelay(relay.AddrInfo())}
		first := sim.NAT(p2ptest.Symmetric).Node(t, opts...)
		if err := first.WaitReady(t.Context(), p2pnode.StageReachable); err != nil {
			t.Fatal(err)
		}
		second := sim.NAT(p2ptest.Symmetric).Node(t, opts...)
		time.Sleep(time.Minute)
		if r := second.Status().Relays[0]; r.Reserved || r.Missing == "" {
			t.Errorf("%+v", r)
		}
	})
}

func TestDiagnoseLimitsRefuse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithoutDHT()))
		n := sim.Node(t, p2pnode.WithLimits(p2pnode.Limits{ConnsPerIP: 1}))
		nat := sim.NAT(p2ptest.FullCone)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_ = nat.Node(t).Connect(ctx, n.AddrInfo()) // the second is refused
			cancel()
		}
		names(t, finds(t, n, p2pnode.FindingRefused), "connsPerIP", "WithLimits")
		time.Sleep(11 * time.Minute)
		finds(t, n) // it is long ago
	})
}

func TestDiagnoseDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "blocks"), []byte("damage"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t, p2pnode.WithDataDir(dir))
		names(t, finds(t, n, p2pnode.FindingNobodyToFind, p2pnode.FindingDamaged), "blocks.damaged-1", "BanPeer")
	})
}

// TestDiagnoseServerThatWaitsForOthers: nothing is wrong with it.
func TestDiagnoseServerThatWaitsForOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		finds(t, p2ptest.NewNetwork(t).Node(t, p2pnode.WithDHTMode(p2pnode.DHTModeServer)))
	})
}

func TestDiagnoseLoopbackOnly(t *testing.T) {
	n, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	names(t, finds(t, n, p2pnode.FindingNobodyToFind, p2pnode.FindingLoopback), "127.0.0.1", "/ip4/0.0.0.0/tcp/4001", "WithListenAddrs")
}

func TestDiagnoseDHTClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		told := sim.Node(t, p2pnode.WithDHTMode(p2pnode.DHTModeClient), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		private := sim.Node(t, p2pnode.WithReachability(network.ReachabilityPrivate), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		sim.Ready(told, private)
		time.Sleep(time.Second)
		names(t, finds(t, told, p2pnode.FindingDHTClient), "WithDHTMode")
		names(t, finds(t, private, p2pnode.FindingDHTClient, p2pnode.FindingNATNoRelay), "WithAutoRelay", "WithHolePunching")
	})
}

func TestDiagnoseWrongNetworkName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t, p2pnode.WithNetwork("acme"))
		n := sim.Node(t, p2pnode.WithNetwork("acmee"), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		sim.Connected(n, boot)
		time.Sleep(time.Second)
		names(t, finds(t, n, p2pnode.FindingNoDHTPeer), `"acmee"`, "/acmee/kad/1.0.0", "WithNetwork")
	})
}

func TestDiagnoseClockBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		key, err := p2pnode.GenerateKey(p2pnode.KeyEd25519)
		if err != nil {
			t.Fatal(err)
		}
		boot := sim.Node(t, p2pnode.WithIdentity(key))
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		sim.Ready(n)
		time.Sleep(time.Second)
		finds(t, n)
		// As the peer's own clock would have signed it.
		signed := func(p *p2ptest.Node, key crypto.PrivKey, ahead time.Duration) {
			t.Helper()
			rec := peer.PeerRecordFromAddrInfo(p.AddrInfo())
			rec.Seq = uint64(time.Now().Add(ahead).UnixNano())
			book, _ := peerstore.GetCertifiedAddrBook(n.Host().Peerstore())
			if _, err := book.ConsumePeerRecord(must(record.Seal(rec, key)), time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		signed(boot, key, 2*time.Hour)
		names(t, finds(t, n, p2pnode.FindingClock), boot.ID().String(), "2h0m0s", "2000-01-01")
		// Another peer contradicts it: it may be lying.
		otherKey := must(p2pnode.GenerateKey(p2pnode.KeyEd25519))
		other := sim.Node(t, p2pnode.WithIdentity(otherKey))
		if err := n.Connect(t.Context(), other.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		signed(other, otherKey, 0)
		finds(t, n)
		signed(other, otherKey, time.Hour)
		names(t, finds(t, n, p2pnode.FindingClock), other.ID().String(), "1h0m0s")
	})
}

// TestDiagnoseClockFarBehind: by more than an hour, which is how far back
// libp2p dates its certificates, there are no connections over QUIC and TLS.
func TestDiagnoseClockFarBehind(t *testing.T) {
	key := must(p2pnode.GenerateKey(p2pnode.KeyEd25519))
	later := time.Now().Add(48 * time.Hour).Truncate(time.Second)
	identity := must(libp2ptls.NewIdentity(key, libp2ptls.WithCertTemplate(&x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: later, NotAfter: later.Add(time.Hour),
	})))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	var group sync.WaitGroup
	defer group.Wait()
	defer l.Close()
	group.Go(func() { // a peer whose clock is two days ahead
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer conn.Close()
				mux := multistream.NewMultistreamMuxer[string]()
				mux.AddHandler(libp2ptls.ID, nil)
				if _, _, err := mux.Negotiate(conn); err != nil {
					return
				}
				config, _ := identity.ConfigForPeer("")
				_ = tls.Server(conn, config).HandshakeContext(t.Context()) // the other side ends it
			})
		}
	})
	boot := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", l.Addr().(*net.TCPAddr).Port, must(p2pnode.PeerID(key)))
	n, err := p2pnode.New(t.Context(), p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"), p2pnode.WithSecurity(p2pnode.SecurityTLS), p2pnode.WithBootstrapAddrs(boot))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	names(t, finds(t, n, p2pnode.FindingNoBootstrap, p2pnode.FindingClock), later.UTC().Format(time.RFC3339))
}

// Failed dials do not blame a firewall while a connection over UDP is open.
func TestDiagnoseDeadPeersAreNoFirewall(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot, dead := sim.Node(t), sim.Node(t)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
		sim.Ready(n)
		sim.RoutingTable(n, 1)
		sim.Crash(dead)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := n.Connect(ctx, sim.AddrInfo(dead)); err == nil {
				t.Fatal("connected to a dead peer")
			}
			cancel()
		}
		finds(t, n) // a connection over UDP is open, so no firewall blocks it
	})
}

// TestDiagnoseUDPBlockedWithNobodyConnected checks that the node resets the
// swarm's judgment of UDP, so that it does not stay isolated.
func TestDiagnoseUDPBlockedWithNobodyConnected(t *testing.T) {
	needs.Time(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		boot := sim.Node(t)
		where := sim.AddrInfo(boot)
		sim.Crash(boot)
		n := sim.Node(t, p2pnode.WithBootstrapPeers(where))
		time.Sleep(time.Hour)
		for range 20 {
			names(t, finds(t, n, p2pnode.FindingNoBootstrap, p2pnode.FindingUDPBlocked), "WithTransports")
			time.Sleep(7 * time.Second)
		}
		sim.Restart(boot)
		sim.Within(time.Minute).Connected(n, boot)
		sim.RoutingTable(n, 1)
		finds(t, n)
	})
}

// logged is notified of each new line of a log.
type logged chan struct{}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }
func (l logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logged) WithGroup(string) slog.Handler            { return l }
func (l logged) Handle(context.Context, slog.Record) error {
	select {
	case l <- struct{}{}:
	default: // the receiver reads all lines
	}
	return nil
}

func TestPitfall60DiagnoseAnotherNetworkKey(t *testing.T) {
	t.Parallel()
	key := func(b byte) p2pnode.Option {
		psk := make(pnet.PSK, 32)
		psk[0] = b
		return p2pnode.WithPrivateNetwork(psk)
	}
	tcp := p2pnode.WithTransports(p2pnode.TransportTCP)
	start := func(opts ...p2pnode.Option) *p2pnode.Node { return overTCP(t, opts...) }
	lines := make(logged, 1)
	boot := start(key(1), p2pnode.WithLogger(slog.New(lines)))
	other := start(key(2), p2pnode.WithBootstrapPeers(boot.AddrInfo()))
	names(t, finds(t, other, p2pnode.FindingNoBootstrap, p2pnode.FindingNetworkKey), boot.ID().String(), "PrivateNetwork", "WithPrivateNetwork")
	// The side that is dialed notices too, and logs it.
	for late := time.After(time.Minute); boot.Status().HandshakesFailed == 0; {
		select {
		case <-lines:
		case <-late:
			t.Fatal("no failed handshake is counted")
		}
	}
	names(t, finds(t, boot, p2pnode.FindingNobodyToFind, p2pnode.FindingNetworkKey, p2pnode.FindingLoopback), "PrivateNetwork")
	friend := start(key(2), p2pnode.WithPersistentPeers(boot.AddrInfo()))
	names(t, finds(t, friend, p2pnode.FindingPersistent, p2pnode.FindingNetworkKey, p2pnode.FindingLoopback), boot.ID().String())
	public := start(tcp)
	with := start(key(1), p2pnode.WithBootstrapPeers(public.AddrInfo()))
	finds(t, with, p2pnode.FindingNoBootstrap, p2pnode.FindingNetworkKey)

	// Without a key it shows now and then as no more than a hang-up.
	without := start(tcp, p2pnode.WithBootstrapPeers(boot.AddrInfo()))
	list, err := without.Diagnose(t.Context())
	if err != nil || len(list) == 0 || list[0].Kind != p2pnode.FindingNoBootstrap {
		t.Fatalf("%v, %v", list, err)
	}
	text := ""
	for _, f := range list {
		text += f.String() + "\n"
	}
	names(t, text, "WithPrivateNetwork")
}

// TestPeersThatAreShutOutHaveTheRightKey checks that refused peers do not count as
// failed handshakes, and that no finding blames the key.
func TestPeersThatAreShutOutHaveTheRightKey(t *testing.T) {
	psk := make(pnet.PSK, 32)
	psk[0] = 1
	key := p2pnode.WithPrivateNetwork(psk)
	boot := patient(t, key)
	n := patient(t, key)
	mustBan(t, boot, p2pnode.Ban{Peer: n.ID()})
	for range 3 {
		if err := n.Connect(t.Context(), boot.AddrInfo()); err == nil {
			t.Fatal("connected to who has blocked it")
		}
	}
	friend := patient(t, key)
	if err := friend.Connect(t.Context(), boot.AddrInfo()); err != nil {
		t.Fatal(err)
	}
	if err := friend.Close(); err != nil {
		t.Fatal(err)
	}
	if n := boot.Status().HandshakesFailed; n != 0 {
		t.Errorf("%d failed handshakes are counted", n)
	}
	list, err := boot.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Kind == p2pnode.FindingNetworkKey {
			t.Error(f)
		}
	}
}

func TestDiagnoseTooFewFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := p2ptest.NewNetwork(t).Node(t, p2pnode.WithConnLimits(10, 100_000_000))
		names(t, finds(t, n, p2pnode.FindingNobodyToFind, p2pnode.FindingFewFiles), "WithConnLimits")
	})
}
