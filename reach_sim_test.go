package p2pnode_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/p2ptest"
)

// verdicts records what a node finds out about itself, and when.
type verdicts struct {
	begun time.Time
	mu    sync.Mutex
	list  []string      // guarded by mu
	last  time.Duration // guarded by mu; when the latest came
}

func watchVerdicts(t *testing.T, n *p2ptest.Node) *verdicts {
	v := &verdicts{begun: time.Now()}
	events := n.Events(t.Context(), p2pnode.EventsWithState())
	go func() {
		for ev := range events {
			var text string
			switch ev := ev.(type) {
			case p2pnode.EventReachabilityChanged:
				text = string(ev.Reachability)
			case p2pnode.EventDHTModeChanged:
				text = fmt.Sprintf("serving %t", ev.Server)
			default:
				continue
			}
			v.mu.Lock()
			v.list = append(v.list, text)
			v.last = time.Since(v.begun)
			v.mu.Unlock()
		}
	}()
	return v
}

func (v *verdicts) String() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprintf("%s after %v", v.list, v.last)
}

// are reports whether the verdicts were these, in this order, the last of them within
// a time. When exactly differs by a round trip from run to run: packets that arrive at
// the same instant are read in any order.
func (v *verdicts) are(within time.Duration, want ...string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Equal(v.list, want) && v.last <= within
}

// reachOf returns the verdict about a node and, when there is only one, about its address.
func reachOf(n *p2ptest.Node) string {
	s := n.Status()
	text := string(s.Reachability)
	for _, a := range s.AddrReachability {
		text += fmt.Sprintf(" %s", a.Reachability)
	}
	return text
}

// With three peers that can tell, a node knows within seconds whether others can dial
// it, whatever stands in front of it, and stops serving the DHT if they cannot. The
// round trip is 50 ms, and QUIC gives up after 5 seconds.
func TestReachabilityIsKnownWithinSeconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	public, private := []string{"public"}, []string{"private", "serving false"}
	for _, row := range []struct {
		kind   p2ptest.NATKind // -1: none
		within time.Duration
		want   []string
		then   string
	}{
		{-1, 500 * time.Millisecond, public, "public public"},
		{p2ptest.Firewall, 5500 * time.Millisecond, private, "private private"},
		{p2ptest.FullCone, 500 * time.Millisecond, public, "public public"},
		{p2ptest.PortRestricted, 5500 * time.Millisecond, private, "private private"},
		// Each peer sees it at another port: two are tried after the other.
		{p2ptest.Symmetric, 11 * time.Second, private, "private private private private"},
	} {
		t.Run(row.kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithAutoNAT()))
				servers := sim.Nodes(t, 3)
				known := p2pnode.WithBootstrapPeers(servers[0].AddrInfo(), servers[1].AddrInfo(), servers[2].AddrInfo())
				place := sim.Node
				if row.kind >= 0 {
					place = sim.NAT(row.kind).Node
				}
				n := place(t, known)
				v := watchVerdicts(t, n)
				time.Sleep(30 * time.Second)
				if !v.are(row.within, row.want...) || reachOf(n) != row.then {
					t.Errorf("%s, and then %q; want %s within %v and %q", v, reachOf(n), row.want, row.within, row.then)
				}
				for _, s := range servers {
					if reachOf(s) != "public public" || !s.Status().DHT.Server {
						t.Errorf("%s of a server", reachOf(s))
					}
				}
				if row.kind == p2ptest.FullCone { // what peers see is announced
					if err := servers[0].Disconnect(t.Context(), n.ID()); err != nil {
						t.Fatal(err)
					}
					stranger := sim.Node(t)
					if err := stranger.Connect(t.Context(), n.AddrInfo()); err != nil {
						t.Errorf("%v: %v", n.Addrs(), err)
					}
				}
			})
		})
	}
}

// Nodes that have nothing but a LAN are reachable there, and go on serving the DHT.
// One that finds a single peer believes it after ten seconds, as others may come.
func TestReachabilityOnANetworkOfPrivateAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithAutoNAT()))
		home := sim.NAT(p2ptest.PortRestricted)
		first := home.Node(t)
		second := home.Node(t, p2pnode.WithBootstrapPeers(first.AddrInfo()))
		time.Sleep(9 * time.Second)
		if reachOf(second) != "unknown unknown" {
			t.Errorf("after 9 seconds with one peer: %s", reachOf(second))
		}
		time.Sleep(time.Second + 10*time.Millisecond)
		if reachOf(second) != "public public" || reachOf(first) != "public public" {
			t.Errorf("after 10 seconds with one peer: %s, and %s", reachOf(second), reachOf(first))
		}
		third := home.Node(t, p2pnode.WithBootstrapPeers(first.AddrInfo(), second.AddrInfo()))
		three := watchVerdicts(t, third)
		time.Sleep(time.Second)
		for _, n := range []*p2ptest.Node{first, second, third} {
			if !n.Status().DHT.Server || reachOf(n) != "public public" {
				t.Errorf("%v: %s, serving %t", n, reachOf(n), n.Status().DHT.Server)
			}
		}
		if !three.are(10*time.Millisecond, "public") {
			t.Errorf("with two peers: %s, want public within 10ms", three)
		}
	})
}

// liar makes a node answer questions of AutoNAT with what say returns; nil for no
// answer. For OK, it opens the dial-back stream on the connection that there is.
func liar(n *p2ptest.Node, asked *atomic.Int32, say func(ctx context.Context, id peer.ID, addr ma.Multiaddr, nonce uint64) pb.DialStatus) {
	n.Host().SetStreamHandler(autonatv2.DialProtocol, func(s network.Stream) {
		defer s.Close()
		var msg pb.Message
		if err := protodelim.UnmarshalFrom(bufio.NewReader(s), &msg); err != nil {
			return
		}
		asked.Add(1)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		q := msg.GetDialRequest()
		addr, err := ma.NewMultiaddrBytes(q.GetAddrs()[0])
		if err != nil {
			return
		}
		_, _ = protodelim.MarshalTo(s, &pb.Message{Msg: &pb.Message_DialResponse{DialResponse: &pb.DialResponse{
			Status: pb.DialResponse_OK, DialStatus: say(ctx, s.Conn().RemotePeer(), addr, q.GetNonce()),
		}}})
	})
}

// dialBack sends a nonce from a host.
func dialBack(ctx context.Context, from host.Host, id peer.ID, nonce uint64) error {
	s, err := from.NewStream(ctx, id, autonatv2.DialBackProtocol)
	if err != nil {
		return err
	}
	_, err = protodelim.MarshalTo(s, &pb.DialBack{Nonce: nonce})
	return errors.Join(err, s.CloseWrite())
}

// One server that lies among four changes no verdict, in neither direction, and is
// asked no more once the others have contradicted it.
func TestALiarAmongFourServersChangesNoVerdict(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	for name, row := range map[string]struct {
		behind bool // a NAT
		want   string
		lie    func(n *p2ptest.Node) func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus
	}{
		"it cannot dial": {false, "public public", func(*p2ptest.Node) func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus {
			return func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus { return pb.DialStatus_E_DIAL_ERROR }
		}},
		"it has dialed, and has not": {true, "private private", func(*p2ptest.Node) func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus {
			return func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus { return pb.DialStatus_OK }
		}},
		"it has dialed, and used the old connection": {true, "private private", func(n *p2ptest.Node) func(context.Context, peer.ID, ma.Multiaddr, uint64) pb.DialStatus {
			return func(ctx context.Context, id peer.ID, _ ma.Multiaddr, nonce uint64) pb.DialStatus {
				if err := dialBack(ctx, n.Host(), id, nonce); err != nil {
					return pb.DialStatus_E_DIAL_BACK_ERROR
				}
				return pb.DialStatus_OK
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithAutoNAT(), seldomRefreshed))
				servers := sim.Nodes(t, 4)
				time.Sleep(time.Second)
				var asked atomic.Int32
				liar(servers[0], &asked, row.lie(servers[0]))
				place := sim.Node
				if row.behind {
					place = sim.NAT(p2ptest.PortRestricted).Node
				}
				// The liar is there first.
				n := place(t, p2pnode.WithBootstrapPeers(servers[0].AddrInfo()))
				time.Sleep(time.Second)
				for _, s := range servers[1:] {
					if err := n.Connect(t.Context(), s.AddrInfo()); err != nil {
						t.Fatal(err)
					}
				}
				v := watchVerdicts(t, n)
				time.Sleep(30 * time.Second)
				if got := reachOf(n); got != row.want {
					t.Errorf("after 30 seconds %q, want %q: %s", got, row.want, v)
				}
				early := v.String()
				if asked.Load() == 0 {
					t.Error("the liar was never asked")
				}
				time.Sleep(time.Hour)
				if got := reachOf(n); got != row.want || v.String() != early {
					t.Errorf("after an hour %q, want %q: %s", got, row.want, v)
				}
				if got := asked.Load(); got > 30 {
					t.Errorf("the liar was asked %d times", got)
				}
			})
		})
	}
}

// A node that others can no longer dial stops serving the DHT, and serves again when
// they can.
func TestUnreachableNodeServesTheDHTAgainOnceItIsReachable(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t, p2ptest.WithNodeOptions(p2pnode.WithAutoNAT()))
		servers := sim.Nodes(t, 3)
		var shut atomic.Bool // what stands in front of the node lets nobody in
		var asked atomic.Int32
		var infos []peer.AddrInfo
		for _, s := range servers {
			dialer := sim.Raw(t, p2ptest.RawNetwork("dials only")).Host
			liar(s, &asked, func(ctx context.Context, id peer.ID, addr ma.Multiaddr, nonce uint64) pb.DialStatus {
				defer dialer.Network().ClosePeer(id)
				if shut.Load() || dialer.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{addr}}) != nil {
					return pb.DialStatus_E_DIAL_ERROR
				}
				if dialBack(ctx, dialer, id, nonce) != nil {
					return pb.DialStatus_E_DIAL_BACK_ERROR
				}
				time.Sleep(time.Second)
				return pb.DialStatus_OK
			})
			infos = append(infos, s.AddrInfo())
		}
		n := sim.Node(t, p2pnode.WithBootstrapPeers(infos...))
		v := watchVerdicts(t, n)
		at := func(want string, serves bool) {
			t.Helper()
			if s := n.Status(); string(s.Reachability) != want || s.DHT.Server != serves {
				t.Errorf("%s, serving %t; want %s, %t: %s", s.Reachability, s.DHT.Server, want, serves, v)
			}
		}
		time.Sleep(10 * time.Second)
		at("public", true)
		shut.Store(true)
		time.Sleep(15 * time.Minute) // checked every 10
		at("private", false)
		findings, err := n.Diagnose(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kinds := make(map[p2pnode.FindingKind]bool)
		for _, f := range findings {
			kinds[f.Kind] = true
		}
		if !kinds[p2pnode.FindingDHTClient] || !kinds[p2pnode.FindingNATNoRelay] {
			t.Errorf("Diagnose finds %v", findings)
		}
		shut.Store(false)
		time.Sleep(10 * time.Minute) // checked every 5
		at("public", true)
	})
}

// Diagnose says when nobody can tell the node whether others can dial it.
func TestDiagnoseNobodyAnswersAutoNAT(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim := p2ptest.NewNetwork(t)
		deaf, able := sim.Node(t), sim.Node(t, p2pnode.WithAutoNAT())
		n := sim.Node(t, p2pnode.WithAutoNAT(), p2pnode.WithBootstrapPeers(deaf.AddrInfo()))
		sim.Ready(n)
		time.Sleep(time.Minute)
		names(t, finds(t, n, p2pnode.FindingNoAutoNATPeer), "WithAutoNAT", "WithReachability")
		if err := n.Connect(t.Context(), able.AddrInfo()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		finds(t, n)
	})
}
