package keyfile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The two tests below start this test binary as another process, which runs only
// TestHelperProcess.
const (
	helperMode = "KEYFILE_TEST_HELPER"
	helperPath = "KEYFILE_TEST_PATH"
)

func helper(t *testing.T, mode, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("cannot start processes here: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestHelperProcess$", "-test.count=1")
	cmd.Env = append(os.Environ(), helperMode+"="+mode, helperPath+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestHelperProcess(t *testing.T) {
	path := os.Getenv(helperPath)
	switch os.Getenv(helperMode) {
	case "":
		t.Skip("only for the processes that other tests start")
	case "race":
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin) // until the parent closes it
		data, created, err := LoadOrCreate(path, generate, check)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Printf("%v %x\n", created, sha256.Sum256(data))
	case "crash":
		for i := 0; ; i++ {
			if _, _, err := LoadOrCreate(fmt.Sprint(path, i), generate, check); err != nil {
				fmt.Println("error:", err)
				os.Exit(1)
			}
			fmt.Println("created")
		}
	}
	os.Exit(0)
}

func TestProcessRace(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts processes")
	}
	path := filepath.Join(t.TempDir(), "key")
	const n = 10
	var (
		cmds [n]*exec.Cmd
		outs [n]*bufio.Reader
		ins  [n]io.Closer
	)
	for i := range n {
		cmds[i] = helper(t, "race", path)
		out, err := cmds[i].StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		in, err := cmds[i].StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
		outs[i], ins[i] = bufio.NewReader(out), in
	}
	for i := range n {
		if line, err := outs[i].ReadString('\n'); line != "ready\n" {
			t.Fatalf("process %d says %q, %v", i, line, err)
		}
	}
	for i := range n {
		ins[i].Close()
	}
	winners, sum := 0, ""
	for i := range n {
		line, err := outs[i].ReadString('\n')
		if err != nil {
			t.Fatalf("process %d: %q, %v", i, line, err)
		}
		created, s, _ := strings.Cut(line, " ")
		if created == "true" {
			winners++
		}
		if sum == "" {
			sum = s
		}
		if s != sum || len(s) != 65 {
			t.Errorf("process %d says %q, want the key %q", i, line, sum)
		}
		if err := cmds[i].Wait(); err != nil {
			t.Error(err)
		}
	}
	if winners != 1 {
		t.Errorf("%d processes created the file, want 1", winners)
	}
}

// TestCrash kills processes that create one key after the other, at any
// moment, and expects every file to be absent or complete.
func TestCrash(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts processes")
	}
	leftovers := 0
	for range 50 {
		dir := t.TempDir()
		base := filepath.Join(dir, "key")
		cmd := helper(t, "crash", base)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 1 + rand.IntN(5) {
			if !lines.Scan() || lines.Text() != "created" {
				t.Fatalf("the process says %q, %v", lines.Text(), lines.Err())
			}
		}
		// It does not wait for us: this hits it anywhere in the creation
		// of a later file.
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
		}
		cmd.Wait() // it was killed

		// The last file that exists may be the one in the making. One
		// more is made to see that nothing blocks that.
		existing := 0
		for i := 0; ; i++ {
			data, created, err := LoadOrCreate(fmt.Sprint(base, i), generate, check)
			if err != nil {
				t.Fatalf("file %d: %v", i, err)
			}
			if again, _, err := LoadOrCreate(fmt.Sprint(base, i), noGenerate(t), check); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("file %d, second time: %v", i, err)
			}
			if created {
				existing = i
				break
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		leftovers += len(entries) - existing - 1
	}
	t.Logf("%d of 50 processes were killed with a temporary file in place", leftovers)
}
