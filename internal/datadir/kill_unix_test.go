//go:build unix

package datadir

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/keyfile"
)

const killDirEnv = "P2PNODE_TEST_KILL_DIR"

// numbered returns content that shows whether it is complete: the same number on
// every line.
func numbered(i int) []byte {
	return bytes.Repeat([]byte(strconv.Itoa(i)+"\n"), 1000)
}

func parseNumbered(b []byte) (int, error) {
	line, _, _ := strings.Cut(string(b), "\n")
	i, err := strconv.Atoi(line)
	if err == nil && !bytes.Equal(b, numbered(i)) {
		err = fmt.Errorf("a mixture of contents, of them %d", i)
	}
	return i, err
}

func acceptKey(b []byte) error {
	if len(b) != 8 {
		return fmt.Errorf("half a key: %d bytes", len(b))
	}
	return nil
}

func makeKey() ([]byte, error) { return fmt.Appendf(nil, "%08x", rand.Uint32()), nil }

// TestKilledProcess is the process that TestKill kills.
func TestKilledProcess(t *testing.T) {
	path := os.Getenv(killDirEnv)
	if path == "" {
		t.Skip("it is for TestKill")
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	if err := d.Read("f", func(b []byte) (err error) {
		last, err = parseNumbered(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	if _, _, err := keyfile.LoadOrCreate(d.Path("key"), makeKey, acceptKey); err != nil {
		t.Fatal(err)
	}
	for i := last + 1; ; i++ {
		if err := d.Write("f", numbered(i)); err != nil {
			t.Fatal(err)
		}
		fmt.Println(i)
	}
}

// A process that is killed at a random moment while it writes leaves a
// directory that opens, with the old or the new content, and a whole key.
func TestKill(t *testing.T) {
	path := t.TempDir()
	rounds, writes := 100, 0
	if testing.Short() {
		rounds = 40
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), killDirEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			cmd.Process.Kill() // the test has failed already
			t.Fatalf("round %d: the process does not start again: %s", round, lines.Text())
		}
		kill := time.AfterFunc(rand.N(5*time.Millisecond), func() { cmd.Process.Kill() })
		told := 0 // the last write that the process knew to be done
		for lines.Scan() {
			if i, err := strconv.Atoi(lines.Text()); err == nil {
				told = i
				writes++
			}
		}
		cmd.Wait() // it was killed
		kill.Stop()

		d, err := Open(path)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		found := 0
		err = d.Read("f", func(b []byte) (err error) {
			found, err = parseNumbered(b)
			return err
		})
		if err != nil || told > 0 && found != told && found != told+1 {
			t.Fatalf("round %d: found %d after %d was written: %v", round, found, told, err)
		}
		if b, err := os.ReadFile(d.Path("key")); err == nil && acceptKey(b) != nil {
			t.Fatalf("round %d: half a key: %q", round, b)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		// Each round makes a key anew, so that some are killed at it.
		os.Remove(d.Path("key")) // it may not have come so far
	}
	t.Logf("%d writes in %d rounds", writes, rounds)
}
