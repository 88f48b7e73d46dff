//go:build unix

package dstore

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
)

const (
	killEnv   = "P2PNODE_TEST_KILL_STORE"
	killSlots = 20
	killSize  = 64 // entries of a batch
)

// killKey is the j-th key of the batches of a slot. Batch i replaces the entries
// of slot i%killSlots, and removes those of another.
func killKey(slot, j int) datastore.Key {
	return datastore.NewKey(fmt.Sprintf("/%d/%d", (j*7919)%killSize, slot))
}

// TestKilledProcess is the process that TestKill kills.
func TestKilledProcess(t *testing.T) {
	path := os.Getenv(killEnv)
	if path == "" {
		t.Skip("it is for TestKill")
	}
	s, err := Open(path, quiet)
	mustNot(t, err)
	if d := s.Damage(); d != nil {
		t.Fatal(d)
	}
	fmt.Println("ready")
	first := 0
	for slot := range killSlots {
		if v, err := s.Get(t.Context(), killKey(slot, 0)); err == nil {
			i, err := strconv.Atoi(string(v))
			mustNot(t, err)
			first = max(first, i+1)
		}
	}
	for i := first; ; i++ {
		b, err := s.Batch(t.Context())
		mustNot(t, err)
		for j := range killSize {
			mustNot(t, b.Put(t.Context(), killKey(i%killSlots, j), []byte(strconv.Itoa(i))))
			mustNot(t, b.Delete(t.Context(), killKey((i+killSlots/2)%killSlots, j)))
		}
		mustNot(t, b.Commit(t.Context()))
		fmt.Println(i)
	}
}

// A process that is killed while it writes batches leaves a file in which nothing
// is wrong, every batch that was acknowledged is there, and none by half.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store")
	rounds, last := 50, -1
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), killEnv+"="+path)
		out, err := cmd.StdoutPipe()
		mustNot(t, err)
		mustNot(t, cmd.Start())
		lines := bufio.NewScanner(out)
		var kill *time.Timer
		told := ""
		for lines.Scan() {
			told = lines.Text()
			i, err := strconv.Atoi(told)
			if err == nil {
				last = i
			}
			// In half of the rounds it dies a moment after it is ready, in the others
			// after it has acknowledged a batch, however slow it is.
			if kill == nil && (err == nil || round%2 == 0) {
				kill = time.AfterFunc(rand.N(40*time.Millisecond), func() { cmd.Process.Kill() })
			}
		}
		cmd.Wait() // it was killed
		if kill == nil || kill.Stop() {
			t.Fatalf("round %d: the process ended by itself: %s", round, told)
		}

		s, err := Open(path, quiet)
		mustNot(t, err)
		if d := s.Damage(); d != nil {
			t.Fatalf("round %d: %v", round, d)
		}
		have := content(t, s)
		newest := last
		if have[killKey((last+1)%killSlots, 0).String()] == strconv.Itoa(last+1) {
			newest++ // it was killed before it said so
		}
		count := 0
		for i := max(0, newest-killSlots/2+1); i <= newest; i++ { // older ones were removed
			for j := range killSize {
				if v := have[killKey(i%killSlots, j).String()]; v != strconv.Itoa(i) {
					t.Fatalf("round %d: entry %d of batch %d is of batch %q; batch %d was acknowledged", round, j, i, v, last)
				}
				count++
			}
		}
		if len(have) != count {
			t.Fatalf("round %d: %d entries, of which %d should be there; batch %d was acknowledged", round, len(have), count, last)
		}
		last = newest
		mustNot(t, s.Close())
	}
	if last < rounds/2-1 {
		t.Errorf("only %d batches in %d rounds", last, rounds)
	}
}
