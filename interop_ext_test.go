package p2pnode_test

import (
	"bufio"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

const (
	// jsPatience ends a test that waits in vain. It does not assert speed.
	jsPatience = time.Minute
	// jsAgain is how long a message may take before the next one is published.
	jsAgain = 200 * time.Millisecond
)

// jsPeer is a running peer.js.
type jsPeer struct {
	peer.AddrInfo
	stdin io.Writer
	said  chan string // its lines; closed when it ends
}

// startJS runs peer.js until the test ends, with variables for Node.
func startJS(t *testing.T, env ...string) *jsPeer {
	t.Helper()
	needs.NodeModules(t, "interop")
	cmd := exec.CommandContext(t.Context(), "node", "--experimental-websocket", "peer.js") // which Node 22 has by itself
	cmd.Dir, cmd.Stderr, cmd.Env = "interop", os.Stderr, append(os.Environ(), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	js := &jsPeer{stdin: stdin, said: make(chan string, 100)}
	go func() {
		defer close(js.said)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			js.said <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		for range js.said { // until it is killed
		}
		_ = cmd.Wait() // returns that it was killed
	})
	info, err := peer.AddrInfoFromString(strings.TrimPrefix(js.wait(t, "listens ", jsPatience), "listens "))
	if err != nil {
		t.Fatal(err)
	}
	js.AddrInfo = *info
	return js
}

// onNews starts a node that is subscribed to the topic of peer.js.
func onNews(t *testing.T, opts ...p2pnode.Option) (*p2pnode.Node, *p2pnode.Subscription) {
	t.Helper()
	n, err := p2pnode.New(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	sub, err := n.Subscribe(t.Context(), "news")
	if err != nil {
		t.Fatal(err)
	}
	return n, sub
}

// tell sends peer.js a command.
func (js *jsPeer) tell(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(js.stdin, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

// wait returns the next line with a prefix, or "" after some time.
func (js *jsPeer) wait(t *testing.T, prefix string, atMost time.Duration) string {
	t.Helper()
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for {
		select {
		case line, ok := <-js.said:
			if !ok {
				t.Fatal("peer.js has ended")
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-timer.C:
			return ""
		}
	}
}

// reset makes js-libp2p reset its pubsub streams of a direction.
func (js *jsPeer) reset(t *testing.T, direction string) {
	t.Helper()
	js.tell(t, "reset %s", direction)
	if said := js.wait(t, "reset ", jsPatience); said != "reset 1" {
		t.Fatalf("%s streams: peer.js says %q, want one reset", direction, said)
	}
}

// resetPubSub resets a node's pubsub streams of a direction.
func resetPubSub(t *testing.T, c network.Conn, direction network.Direction) {
	t.Helper()
	n := 0
	for _, s := range c.GetStreams() {
		if strings.HasPrefix(string(s.Protocol()), "/meshsub/") && s.Stat().Direction == direction {
			n++
			_ = s.Reset()
		}
	}
	if n == 0 {
		t.Fatalf("no pubsub stream to reset, %s", direction)
	}
}

// flowsWithJS fails the test unless messages arrive in both directions.
func flowsWithJS(t *testing.T, what string, n *p2pnode.Node, sub *p2pnode.Subscription, js *jsPeer) {
	t.Helper()
	arrives := func(who string, try func(text string) bool) {
		t.Helper()
		for begun := time.Now(); time.Since(begun) < jsPatience; {
			if try(fmt.Sprintf("%s/%d", strings.ReplaceAll(what, " ", "-"), time.Now().UnixNano())) {
				return
			}
		}
		t.Fatalf("%s: nothing arrives from %s", what, who)
	}
	arrives("the node", func(text string) bool {
		if err := n.Publish(t.Context(), "news", []byte(text), p2pnode.PublishNow()); err != nil {
			t.Fatal(err)
		}
		return js.wait(t, "heard "+text, jsAgain) != ""
	})
	arrives("js-libp2p", func(text string) bool {
		js.tell(t, "publish %s", text)
		ctx, cancel := context.WithTimeout(t.Context(), jsAgain)
		defer cancel()
		for {
			m, err := sub.Next(ctx)
			if err != nil {
				return false
			}
			if m.Author == js.ID && string(m.Data) == text {
				return true
			}
		}
	})
}

// A js-libp2p peer and a node hear each other again after a pubsub stream between
// them was reset, over the same connection, whichever side resets which stream,
// and more often than gossipsub tolerates by itself.
func TestTopicsOutliveTheirStreamsWithJS(t *testing.T) {
	for what, cut := range map[string]func(t *testing.T, c network.Conn, js *jsPeer){
		"the node's, by the node":   func(t *testing.T, c network.Conn, _ *jsPeer) { resetPubSub(t, c, network.DirOutbound) },
		"the node's, by js-libp2p":  func(t *testing.T, _ network.Conn, js *jsPeer) { js.reset(t, "inbound") },
		"js-libp2p's, by the node":  func(t *testing.T, c network.Conn, _ *jsPeer) { resetPubSub(t, c, network.DirInbound) },
		"js-libp2p's, by js-libp2p": func(t *testing.T, _ network.Conn, js *jsPeer) { js.reset(t, "outbound") },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			js := startJS(t)
			n, sub := onNews(t, p2pnode.WithListenAddrs("/ip4/127.0.0.1/tcp/0"))
			if err := n.Connect(t.Context(), js.AddrInfo); err != nil {
				t.Fatal(err)
			}
			flowsWithJS(t, "at first", n, sub, js)
			conn := n.Host().Network().ConnsToPeer(js.ID)[0]
			for i := range 7 {
				cut(t, conn, js)
				flowsWithJS(t, fmt.Sprintf("after %d times", i+1), n, sub, js)
			}
			if conn.IsClosed() {
				t.Error("the connection was closed")
			}
		})
	}
}

// js-libp2p dials a node over WebSocket, as browsers do, also with TLS, where it checks
// the node's certificate. Both hear each other.
func TestWebSocketWithJS(t *testing.T) {
	secure := selfSigned(t)
	trusted := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificates[0].Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		listen string
		env    []string
		fails  bool
	}{
		{"/ip4/127.0.0.1/tcp/0/ws", nil, false},
		{"/ip4/127.0.0.1/tcp/0/tls/ws", []string{"NODE_EXTRA_CA_CERTS=" + trusted}, false},
		{"/ip4/127.0.0.1/tcp/0/tls/ws", nil, true},
	} {
		t.Run(fmt.Sprintf("%s, fails %v", c.listen, c.fails), func(t *testing.T) {
			t.Parallel()
			js := startJS(t, c.env...)
			opts := []p2pnode.Option{p2pnode.WithListenAddrs(c.listen)}
			if strings.Contains(c.listen, "/tls/") {
				opts = append(opts, p2pnode.WithTLSConfig(secure))
			}
			n, sub := onNews(t, opts...)
			js.tell(t, "dial %s", n.Addrs()[0])
			said := js.wait(t, "dialed ", jsPatience)
			if connected := strings.HasPrefix(said, "dialed /"); connected == c.fails || said == "" {
				t.Fatalf("js-libp2p says %q", said)
			}
			if !c.fails {
				flowsWithJS(t, c.listen, n, sub, js)
			}
		})
	}
}
