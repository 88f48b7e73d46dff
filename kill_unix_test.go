//go:build unix

package p2pnode

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/peerfile"
)

const (
	killDirEnv = "P2PNODE_TEST_KILL_NODE"
	killRounds = 200
)

// killOptions are those of a node that starts fast and meets nobody.
func killOptions(dir string) []Option {
	return []Option{WithDataDir(dir), WithoutListening(), WithoutDHT(), WithoutPubSub(), WithTransports(TransportTCP)}
}

// killContent is what the i-th save writes: a block, and a saved peer whose
// time says which save it was.
func killContent(id peer.ID, i int) (Block, peerfile.Peer) {
	at := time.Now().UTC().Truncate(time.Hour).Add(-time.Duration(i%100) * time.Minute)
	return Block{Peer: id, Reason: fmt.Sprint("save ", i)}, peerfile.Peer{ID: id, Seen: at, Addrs: somePeer("1").Addrs}
}

// TestKilledNode is the process that TestNodeStartsAgainAfterKills kills.
func TestKilledNode(t *testing.T) {
	dir := os.Getenv(killDirEnv)
	if dir == "" {
		t.Skip("it is for TestNodeStartsAgainAfterKills")
	}
	n, err := New(context.Background(), killOptions(dir)...)
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	fmt.Println("ready", n.ID())
	other, err := PeerID(someKey(t))
	mustNot(t, err)
	for i := 0; ; i++ {
		block, saved := killContent(other, i)
		mustNot(t, n.Block(block))
		text, err := peerfile.Encode([]peerfile.Peer{saved})
		mustNot(t, err)
		mustNot(t, n.data.dir.Write(peersName, text))
	}
}

// A node that is killed while it saves its key, peers and blocks starts again,
// with the identity that it had and nothing damaged.
func TestNodeStartsAgainAfterKills(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	identity, told := "", 0
	for round := range killRounds {
		if round%20 == 0 { // so that some are killed at making the key
			mustNot(t, os.RemoveAll(dir))
			identity = ""
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledNode$", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), killDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		mustNot(t, err)
		mustNot(t, cmd.Start())
		// In every fourth round before it may be ready.
		after := rand.N(10 * time.Millisecond)
		var kill *time.Timer
		if round%4 == 3 {
			kill = time.AfterFunc(rand.N(60*time.Millisecond), func() { cmd.Process.Kill() })
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "failed":
				t.Fatalf("round %d: it does not start again: %s", round, rest)
			case "ready":
				if told++; identity != "" && rest != identity {
					t.Fatalf("round %d: %s became %s", round, identity, rest)
				}
				identity = rest
				if kill == nil {
					kill = time.AfterFunc(after, func() { cmd.Process.Kill() })
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if kill != nil {
			kill.Stop()
		}

		n, err := New(testContext(t), killOptions(dir)...)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if identity != "" && n.ID().String() != identity {
			t.Fatalf("round %d: %s became %s", round, identity, n.ID())
		}
		identity = n.ID().String()
		if w := n.Status().Warnings; len(w) > 0 {
			t.Fatalf("round %d: %q", round, w)
		}
		for _, b := range n.Blocks() {
			if !strings.HasPrefix(b.Reason, "save ") {
				t.Fatalf("round %d: a block %+v", round, b)
			}
		}
		mustNot(t, n.Close())
	}
	if told < killRounds/2 {
		t.Errorf("%d of %d processes were ready before the kill", told, killRounds)
	}
}
