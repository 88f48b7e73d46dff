package p2pnode

import (
	"context"
	"flag"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

// TestMain fails the suite when a goroutine outlives it.
func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// long runs the tests that take minutes at their full size, as .ci/run does.
var long = flag.Bool("long", false, "run tests at their full size, which takes minutes")

// testTimeout ends a test that waits in vain. It does not assert speed.
const testTimeout = time.Minute

// loopback returns the options of a node that listens only on 127.0.0.1, with all
// default transports.
func loopback() Option {
	return WithListenAddrs("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws")
}

// shortDials makes a node give up after half a second on a peer that falls
// silent in the handshake, as one does that has another private key. Its own
// limit is 5 seconds.
var shortDials = WithLibp2pOptions(libp2p.SwarmOpts(swarm.WithDialTimeoutLocal(500 * time.Millisecond)))

// newNode starts a node on loopback with the options after the defaults of
// the tests, and closes it with the test.
func newNode(tb testing.TB, opts ...Option) *Node {
	tb.Helper()
	n, err := New(testContext(tb), append([]Option{loopback()}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { mustClose(tb, n) })
	return n
}

// swarmOf is the swarm of a node, for tests that reach below the library.
func swarmOf(n *Node) *swarm.Swarm { return n.base.Network().(*swarm.Swarm) }

func mustClose(tb testing.TB, c io.Closer) {
	tb.Helper()
	if err := c.Close(); err != nil {
		tb.Error(err)
	}
}

func testContext(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	tb.Cleanup(cancel)
	return ctx
}

// join makes a node enter a network through another.
func via(n *Node) Option { return WithBootstrapPeers(n.AddrInfo()) }

// ready waits until the nodes are ready.
func ready(tb testing.TB, nodes ...*Node) {
	tb.Helper()
	for _, n := range nodes {
		if err := n.WaitReady(testContext(tb)); err != nil {
			tb.Fatal(err)
		}
	}
}

func mustNot(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// needMulticast skips a test on a machine where a multicast packet does not
// come back to its sender, as in some containers. In CI that is a failure: the
// check script provides for it.
func needMulticast(tb testing.TB) {
	tb.Helper()
	err := multicastWorks()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		tb.Fatalf("multicast does not work here: %v", err)
	default:
		tb.Skipf("multicast does not work here: %v", err)
	}
}

var multicastWorks = sync.OnceValue(func() error {
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 45353}
	in, err := net.ListenMulticastUDP("udp4", nil, group)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := net.DialUDP("udp4", nil, group)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write([]byte("heard?")); err != nil {
		return err
	}
	if err := in.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	_, _, err = in.ReadFromUDP(make([]byte, 16))
	return err
})
