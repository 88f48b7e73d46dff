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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	killProvideDirEnv  = "P2PNODE_TEST_KILL_PROVIDER"
	killProvidePeerEnv = "P2PNODE_TEST_KILL_PROVIDER_PEER"
	killProvideNextEnv = "P2PNODE_TEST_KILL_PROVIDER_NEXT"
)

// killKeys is how many keys a process provides until it is killed.
const killKeys = 10_000

// TestKilledProvider is the process that TestProvidedKeysSurviveKills kills.
func TestKilledProvider(t *testing.T) {
	dir := os.Getenv(killProvideDirEnv)
	if dir == "" {
		t.Skip("it is for TestProvidedKeysSurviveKills")
	}
	ctx := t.Context()
	other, err := peer.AddrInfoFromString(os.Getenv(killProvidePeerEnv))
	mustNot(t, err)
	n, err := New(ctx, loopback(), WithDataDir(dir), WithoutPubSub(), WithBootstrapPeers(*other))
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	next, err := strconv.Atoi(os.Getenv(killProvideNextEnv))
	mustNot(t, err)
	kept := make(map[cid.Cid]bool)
	for c, err := range n.Providing(ctx) {
		mustNot(t, err)
		kept[c] = true
	}
	for i := range next {
		if !kept[hashed(t, i)] {
			fmt.Println("missing", i)
			return
		}
	}
	if w := n.Status().Warnings; len(w) > 0 {
		fmt.Println("failed", w)
		return
	}
	fmt.Println("ready", len(kept))
	if next < killKeys {
		mustNot(t, n.Provide(ctx, hashed(t, next)))
		fmt.Println("acknowledged", next+1)
	}
	for i := next + 1; i < killKeys; {
		end := min(i+1+rand.N(1000), killKeys)
		var list []cid.Cid
		for ; i < end; i++ {
			list = append(list, hashed(t, i))
		}
		mustNot(t, n.ProvideMany(ctx, slices.Values(list)))
		fmt.Println("acknowledged", end)
	}
	<-time.After(time.Minute) // until it is killed
}

// What a process has acknowledged that is killed while it provides 10,000 keys, the
// next one provides, and announces if no peer has taken it yet.
func TestProvidedKeysSurviveKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds: run without -short")
	}
	t.Parallel()
	rounds := 2
	if *long {
		rounds = 20
	}
	other := newNode(t, WithoutPubSub())
	dir := filepath.Join(t.TempDir(), "data")
	next, kills, times := 0, 0, 0
	for round := range rounds {
		if next == killKeys { // all are provided: again from the beginning
			mustNot(t, os.RemoveAll(dir))
			next, times = 0, times+1
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProvider$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), killProvideDirEnv+"="+dir, killProvideNextEnv+"="+strconv.Itoa(next),
			killProvidePeerEnv+"="+fmt.Sprintf("%s/p2p/%s", other.AddrInfo().Addrs[0], other.ID()))
		out, err := cmd.StdoutPipe()
		mustNot(t, err)
		mustNot(t, cmd.Start())
		// Half of the processes die a moment after they have acknowledged some,
		// most likely while they provide more, the others at any moment.
		kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		acks := 1 + rand.N(8)
		if round%2 == 1 {
			kill.Reset(rand.N(3 * time.Second))
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "failed", "missing":
				t.Errorf("round %d, with %d keys acknowledged: %s", round, next, lines.Text())
			case "acknowledged":
				next, err = strconv.Atoi(rest)
				mustNot(t, err)
				if acks--; round%2 == 0 && acks == 0 || next == killKeys {
					kill.Reset(rand.N(50 * time.Millisecond))
				}
			}
		}
		if err := cmd.Wait(); err != nil && strings.Contains(err.Error(), "killed") {
			kills++
		}
		kill.Stop()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills; 10,000 keys were provided %d times, and %d more", kills, times, next)
	if kills != rounds || times == 0 && next == 0 {
		t.Errorf("%d of %d processes were killed, and acknowledged %d keys", kills, rounds, next)
	}
	n, err := New(testContext(t), loopback(), WithDataDir(dir), WithoutPubSub(), WithBootstrapPeers(other.AddrInfo()))
	mustNot(t, err)
	mustNot(t, waitFor(t, func() bool { st := n.Status().DHT; return st.Provides >= next && st.Pending == 0 }))
	for i := 0; i < next; i += 1 + next/50 {
		found := false
		for ai, err := range other.FindProviders(context.Background(), hashed(t, i)) {
			mustNot(t, err)
			found = found || ai.ID == n.ID()
		}
		if !found {
			t.Errorf("key %d is not found", i)
		}
	}
	mustNot(t, n.Close())
}
