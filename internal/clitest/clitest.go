// Package clitest runs the programs of examples and cmd in tests, several at
// once, and waits for what they print.
package clitest

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/cli"
	"github.com/go-p2pnode/p2pnode/internal/leaktest"
)

// timeout ends a test that waits for something that never comes.
const timeout = time.Minute

// Run is the type of an example's run function.
type Run func(ctx context.Context, args []string, out io.Writer) error

// runMain in the environment makes a test binary run as the program itself.
const runMain = "P2PNODE_EXAMPLE_MAIN"

// Main is a TestMain that fails if goroutines outlive the tests. It also lets
// the test binary run as the program, see [Command].
func Main(m *testing.M, main func()) {
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	leaktest.Main(m)
}

// Program is a running example.
type Program struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed

	mu    sync.Mutex
	text  string        // guarded by mu
	grown chan struct{} // closed at the next write; guarded by mu
}

// Start runs an example with arguments until the test ends.
func Start(t testing.TB, run Run, args ...string) *Program {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	p := &Program{t: t, cancel: cancel, done: make(chan struct{}), grown: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = run(ctx, args, p)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
	})
	return p
}

// Write receives what the program prints.
func (p *Program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text += string(b)
	close(p.grown)
	p.grown = make(chan struct{})
	return len(b), nil
}

// Text returns what the program has printed so far.
func (p *Program) Text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text
}

// Line waits for a line that contains all the parts, and returns it.
func (p *Program) Line(parts ...string) string {
	p.t.Helper()
	for {
		p.mu.Lock()
		text, grown := p.text, p.grown
		p.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.HasSuffix(line, "\n") && containsAll(line, parts) {
				return strings.TrimSuffix(line, "\n")
			}
		}
		select {
		case <-grown:
		case <-p.done:
			if p.Text() != text {
				continue
			}
			p.t.Fatalf("the program ended (%v) without printing a line with %q; it printed:\n%s", p.err, parts, text)
		}
	}
}

// Lines waits until n whole lines contain the text.
func (p *Program) Lines(n int, text string) {
	p.t.Helper()
	for {
		p.mu.Lock()
		printed, grown := p.text, p.grown
		p.mu.Unlock()
		found := 0
		for line := range strings.Lines(printed) {
			if strings.HasSuffix(line, "\n") && strings.Contains(line, text) {
				found++
			}
		}
		if found >= n {
			return
		}
		select {
		case <-grown:
		case <-p.done:
			p.t.Fatalf("the program ended (%v) with %d of %d lines with %q; it printed:\n%s", p.err, found, n, text, printed)
		}
	}
}

// Wait waits for the program to end by itself.
func (p *Program) Wait() error {
	<-p.done
	return p.err
}

// Stop interrupts the program and waits for it to end.
func (p *Program) Stop() error {
	p.cancel()
	return p.Wait()
}

// Command returns the program as a separate process, for what only a process
// shows: exit code, standard error and signals.
func Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), runMain+"=1")
	return cmd
}

// output runs a process until it ends.
func output(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := Command(t, args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func containsAll(s string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return false
		}
	}
	return true
}

// Usage checks that each list of arguments is refused as a usage error, in one
// line that contains the first element of the list, and that -h prints help. It
// also runs the last list and -h in a process.
func Usage(t *testing.T, run Run, rows ...[]string) {
	t.Helper()
	rows = append(rows, []string{"-nonsense", "-nonsense"})
	for _, row := range rows {
		p := Start(t, run, row[1:]...)
		err := p.Wait()
		if !errors.Is(err, cli.ErrUsage) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), row[0]) {
			t.Errorf("%q: error %v, want one line of usage with %q", row[1:], err, row[0])
		}
	}
	p := Start(t, run, "-h")
	if err := p.Wait(); !errors.Is(err, flag.ErrHelp) || !strings.Contains(p.Text(), "Flags of") {
		t.Errorf("-h: %v and\n%s", err, p.Text())
	}

	last := rows[len(rows)-2]
	stdout, stderr, code := output(t, last[1:]...)
	if code != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, last[0]) || stdout != "" {
		t.Errorf("%q: exit code %d, want 2 and one line with %q on standard error: %q, %q", last[1:], code, last[0], stdout, stderr)
	}
	stdout, stderr, code = output(t, "-h")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "Flags of") {
		t.Errorf("-h: exit code %d, want 0 and help on standard output: %q, %q", code, stdout, stderr)
	}
}
