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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/keeper/peerfile"
	"github.com/go-p2pnode/p2pnode/internal/needs"
)

const killDirEnv = "P2PNODE_TEST_KILL_NODE"

// killRounds is how many processes TestNodeStartsAgainAfterKills kills.
func killRounds() int {
	switch {
	case *long:
		return 200
	case testing.Short():
		return 8
	default:
		return 20
	}
}

// killOptions are the options of a node that starts fast and connects to no peer.
func killOptions(dir string) []Option {
	return []Option{WithDataDir(dir), WithoutListening(), WithoutDHT(), WithoutPubSub(), WithTransports(TransportTCP)}
}

// killContent returns the content of the i-th save: a block and a saved peer, both
// with the number i.
func killContent(id peer.ID, i int) (Ban, peerfile.Peer) {
	addr := ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", i+1))
	return Ban{Peer: id, Reason: fmt.Sprint("save ", i)}, peerfile.Peer{ID: id, Seen: time.Now().UTC(), Addrs: []ma.Multiaddr{addr}}
}

// checkKilled checks that the last save of a killed process is there, or the one
// during which it was killed.
func checkKilled(t *testing.T, n *Node, id peer.ID, last int) {
	t.Helper()
	var blocked, saved bool
	for _, i := range []int{last, last + 1} {
		block, p := killContent(id, i)
		for _, b := range n.Bans() {
			blocked = blocked || b.Peer == id && b.Reason == block.Reason
		}
		for _, s := range n.keeper.Infos(keeper.Saved) {
			saved = saved || s.ID == id && len(s.Addrs) == 1 && s.Addrs[0].Equal(p.Addrs[0])
		}
	}
	if !blocked || !saved {
		t.Fatalf("save %d was the last; its block is there: %v, its peer: %v; there are %v and %v", last, blocked, saved, n.Bans(), n.keeper.Infos(keeper.Saved))
	}
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
	other, err := PeerID(someKey(t))
	mustNot(t, err)
	fmt.Println("ready", n.ID(), other)
	for i := range 60_000 {
		block, saved := killContent(other, i)
		mustNot(t, n.BanPeer(block.Peer, block.Until, block.Reason))
		text, err := peerfile.Encode([]peerfile.Peer{saved})
		mustNot(t, err)
		mustNot(t, n.data.dir.Write(peersName, text))
		fmt.Println("saved", i)
	}
}

// A node that is killed while it saves its key, peers and blocks starts again with
// the same identity, the last save, and no damaged file.
func TestNodeStartsAgainAfterKills(t *testing.T) {
	needs.Time(t)
	dir := filepath.Join(t.TempDir(), "data")
	identity := ""
	for round := range killRounds() {
		if round%20 == 0 { // so that some are killed while they make the key
			mustNot(t, os.RemoveAll(dir))
			identity = ""
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledNode$", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), killDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		mustNot(t, err)
		mustNot(t, cmd.Start())
		// Three rounds of four die after a given number of saves, most likely
		// in the middle of the next one. The fourth dies at a random moment,
		// which may come before the node has a key.
		saves, early := rand.N(8), round%4 == 3
		kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		if early {
			kill.Reset(rand.N(60 * time.Millisecond))
		}
		var other peer.ID
		last := -1
		for lines := bufio.NewScanner(out); lines.Scan(); {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "failed":
				t.Fatalf("round %d: it does not start again: %s", round, rest)
			case "ready":
				id, text, _ := strings.Cut(rest, " ")
				if identity != "" && id != identity {
					t.Fatalf("round %d: %s became %s", round, identity, id)
				}
				identity = id
				other, err = peer.Decode(text)
				mustNot(t, err)
			case "saved":
				last, err = strconv.Atoi(rest)
				mustNot(t, err)
				if !early && last == saves {
					_ = cmd.Process.Kill() // it may save once or twice more before it dies
				}
			}
		}
		_ = cmd.Wait() // it was killed
		kill.Stop()
		if !early && last < saves {
			t.Fatalf("round %d: the process ended after save %d of %d", round, last, saves)
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
		if last >= 0 {
			checkKilled(t, n, other, last)
		}
		mustNot(t, n.Close())
	}
}
