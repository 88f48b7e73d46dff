package p2pnode_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode"
)

// here sets where the nodes of the examples listen: only on this machine.
var here = p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0")

// two starts two nodes, the second of which knows the first, and waits until
// they are ready.
func two(ctx context.Context, opts ...p2pnode.Option) (a, b *p2pnode.Node) {
	a, err := p2pnode.New(ctx, append(opts, here)...)
	if err != nil {
		panic(err)
	}
	b, err = p2pnode.New(ctx, append(opts, here, p2pnode.WithBootstrapPeers(a.AddrInfo()))...)
	if err != nil {
		panic(err)
	}
	if err := b.WaitReady(ctx); err != nil {
		panic(err)
	}
	return a, b
}

// tempDir makes a directory, and remove removes it.
func tempDir() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "p2pnode")
	if err != nil {
		panic(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}

func ExampleNew() {
	ctx := context.Background()
	node, err := p2pnode.New(ctx, p2pnode.WithNetwork("acme"), here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	fmt.Println(node.Status().Network, len(node.Addrs()))
	// Output: /acme 1
}

func ExampleValidateOptions() {
	err := p2pnode.ValidateOptions(p2pnode.WithoutRelay(), p2pnode.WithHolePunching())
	fmt.Println(err)
	// Output: WithHolePunching: WithoutRelay rules out the relayed connections that hole punching starts from; drop one of the two
}

func ExampleParsePeers() {
	peers, err := p2pnode.ParsePeers(
		"/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE",
		"/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE")
	fmt.Println(len(peers), len(peers[0].Addrs), err)
	// Output: 1 2 <nil>
}

func ExampleWithTicket() {
	ctx := context.Background()
	alice, err := p2pnode.New(ctx, p2pnode.WithNetwork("acme"), here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer alice.Close()
	ticket, err := alice.Ticket()
	if err != nil {
		fmt.Println(err)
		return
	}
	word := ticket.Text() // for a message, or a QR code

	bob, err := p2pnode.New(ctx, p2pnode.WithTicket(word), here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bob.Close()
	if err := bob.WaitReady(ctx); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(word[:10], bob.Status().Network, bob.Peers()[0].ID == alice.ID())
	// Output: P2PTICKET1 /acme true
}

func ExampleNode_WaitReady() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	node, err := p2pnode.New(ctx, here, p2pnode.WithMinPeers(1))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	cancel() // nobody comes
	fmt.Println(node.WaitReady(ctx))
	// Output: p2pnode: not ready (context canceled): connected: 0 of at least 1 peers connected; nothing says where to find peers; give WithBootstrapPeers or WithMDNS, or call Connect
}

func ExampleCIDOf() {
	c, err := p2pnode.CIDOf(strings.NewReader("hello world"))
	fmt.Println(c, err)
	// Output: bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e <nil>
}

func ExampleNode_Provide() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	c, err := p2pnode.CIDOf(strings.NewReader("hello world"))
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := a.Provide(ctx, c); err != nil {
		fmt.Println(err)
		return
	}
	for p, err := range b.FindProviders(ctx, c) {
		fmt.Println(p.ID == a.ID(), len(p.Addrs), err)
	}
	// Output: true 1 <nil>
}

func ExampleNode_PublishName() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	if err := a.PublishName(ctx, "/ipfs/bafkqac3imvwgy3zao5xxe3de"); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(b.ResolveName(ctx, p2pnode.NameOf(a.ID())))
	// Output: /ipfs/bafkqac3imvwgy3zao5xxe3de <nil>
}

func ExampleNode_PutSigned() {
	ctx := context.Background()
	profiles := p2pnode.WithSignedRecords("profile") // on every node
	a, b := two(ctx, profiles)
	defer a.Close()
	defer b.Close()
	key := "/profile/" + a.ID().String()
	for _, name := range []string{"Alice", "Alice B."} {
		if err := a.PutSigned(ctx, key, []byte(name)); err != nil {
			fmt.Println(err)
			return
		}
	}
	r, err := b.GetSigned(ctx, key)
	fmt.Println(string(r.Payload), r.Seq, err)
	// Output: Alice B. 2 <nil>
}

func ExampleNode_Handle() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	err := a.Handle("/greet/1.0.0", func(_ context.Context, s network.Stream) error {
		_, err := io.WriteString(s, "hello")
		return err // nil closes the stream
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := b.OpenStream(ctx, a.ID(), "/greet/1.0.0")
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := io.ReadAll(s)
	fmt.Printf("%s %v\n", text, err)
	// Output: hello <nil>
}

func ExampleNode_Listen() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	listener, err := a.Listen("/greet/1.0.0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // errors.Is(err, net.ErrClosed)
			}
			fmt.Fprint(conn, "hello")
			conn.Close()
		}
	}()
	conn, err := b.Dial(ctx, a.ID(), "/greet/1.0.0")
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := io.ReadAll(conn)
	fmt.Printf("%s %v\n", text, err)
	// Output: hello <nil>
}

func ExampleNode_Subscribe() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	sub, err := a.Subscribe(ctx, "news")
	if err != nil {
		fmt.Println(err)
		return
	}
	// Publish waits until a peer is on the topic.
	if err := b.Publish(ctx, "news", []byte("it rains")); err != nil {
		fmt.Println(err)
		return
	}
	m, err := sub.Next(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s %v\n", m.Data, m.Author == b.ID())
	// Output: it rains true
}

func ExampleNode_Publish() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	node, err := p2pnode.New(ctx, here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	cancel() // do not wait for anybody
	err = node.Publish(ctx, "news", []byte("it rains"))
	fmt.Println(errors.Is(err, p2pnode.ErrNoPeers))
	// Output: true
}

func ExampleNode_Advertise() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	if err := a.Advertise(ctx, "chess players"); err != nil {
		fmt.Println(err)
		return
	}
	for p, err := range b.FindPeers(ctx, "chess players") {
		fmt.Println(p.ID == a.ID(), err)
	}
	// Output: true <nil>
}

func ExampleNode_Events() {
	ctx := context.Background()
	a, err := p2pnode.New(ctx, here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	events := a.Events(ctx) // from now on
	b, err := p2pnode.New(ctx, here, p2pnode.WithUserAgent("visitor"), p2pnode.WithBootstrapPeers(a.AddrInfo()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	for ev := range events {
		if ev, ok := ev.(p2pnode.EventPeerConnected); ok {
			fmt.Println(ev.Peer.Agent, "is here")
			break
		}
	}
	// Output: visitor is here
}

func ExampleWithDataDir() {
	ctx := context.Background()
	dir, remove := tempDir()
	defer remove()
	first, err := p2pnode.New(ctx, here, p2pnode.WithDataDir(dir))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = p2pnode.New(ctx, here, p2pnode.WithDataDir(dir))
	for _, e := range p2pnode.OptionErrors(err) {
		fmt.Println("a second node in it: a problem of", e.Option)
	}
	if err := first.Close(); err != nil {
		fmt.Println(err)
	}
	again, err := p2pnode.New(ctx, here, p2pnode.WithDataDir(dir))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer again.Close()
	fmt.Println("after a restart, the same identity:", again.ID() == first.ID())
	// Output:
	// a second node in it: a problem of WithDataDir
	// after a restart, the same identity: true
}

// A network that only peers with its key can join.
func ExampleLoadOrCreateSwarmKey() {
	ctx := context.Background()
	dir, remove := tempDir()
	defer remove()
	psk, err := p2pnode.LoadOrCreateSwarmKey(filepath.Join(dir, "swarm.key"))
	if err != nil {
		fmt.Println(err) // a broken file: never a node without a key
		return
	}
	inside, err := p2pnode.New(ctx, here, p2pnode.WithPrivateNetwork(psk))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer inside.Close()
	outside, err := p2pnode.New(ctx, here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer outside.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second) // inside waits for the rest of a handshake
	defer cancel()
	fmt.Println("without the key:", outside.Connect(ctx, inside.AddrInfo()) == nil)
	fmt.Println("with a fingerprint:", len(inside.Status().PrivateNetwork) > 0)
	// Output:
	// without the key: false
	// with a fingerprint: true
}

func ExampleNode_BanPeer() {
	ctx := context.Background()
	a, b := two(ctx)
	defer a.Close()
	defer b.Close()
	if err := a.BanPeer(b.ID(), time.Now().Add(time.Hour), "sends garbage"); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("banned:", len(a.Bans()), a.Bans()[0].Reason)
	err := a.Connect(ctx, b.AddrInfo())
	fmt.Println("it cannot be dialed:", errors.Is(err, p2pnode.ErrBanned))
	// Output:
	// banned: 1 sends garbage
	// it cannot be dialed: true
}

func ExampleNode_Diagnose() {
	ctx := context.Background()
	node, err := p2pnode.New(ctx, here)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	findings, err := node.Diagnose(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range findings {
		if f.Kind == p2pnode.FindingNobodyToFind { // there may be others, such as too few open files
			fmt.Println(f.What)
			fmt.Println("=>", f.Do)
		}
	}
	// Output:
	// no peer is connected, and nothing says where to find peers
	// => give WithBootstrapPeers or WithMDNS, or call Connect
}
