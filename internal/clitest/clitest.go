// Package clitest runs the programs of examples and cmd in tests, several at
// once, and waits for what they print. It does not import the library, so that a
// test of processes is linked without it.
package clitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
)

// timeout ends a test that waits for something that never comes.
const timeout = time.Minute

// Run is the type of an example's run function.
type Run func(ctx context.Context, args []string, out io.Writer) error

// runMain in the environment makes a test binary run as the program itself.
const runMain = "P2PNODE_EXAMPLE_MAIN"

// Main is a TestMain that fails if goroutines outlive the tests. It also lets
// the test binary run as the program, see [Self].
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

// Exit is the error of a process that ended with another exit code than 0.
type Exit struct {
	Code   int
	Stderr string
}

func (e *Exit) Error() string { return fmt.Sprintf("exit code %d: %s", e.Code, e.Stderr) }

// Process is a program file, run as a user runs it. The end of its context is an
// interrupt (Ctrl-C), after which it has to end by itself; Windows has no
// interrupts for other processes, so there it is killed.
type Process struct {
	File  string
	Env   []string // in addition to that of the test
	Dir   string   // where it runs; by default where the test does
	Stdin *os.File // by default empty

	Stderr io.Writer // gets a copy of standard error, if not nil
}

// Run runs the process until it ends.
func (p Process) Run(ctx context.Context, args []string, out io.Writer) error {
	cmd := exec.Command(p.File, args...)
	var stderr bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = append(os.Environ(), p.Env...), p.Dir, out, &stderr
	if p.Stderr != nil {
		cmd.Stderr = io.MultiWriter(&stderr, p.Stderr)
	}
	if p.Stdin != nil { // otherwise the interface would not be nil
		cmd.Stdin = p.Stdin
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	killed := make(chan struct{})
	kill := func() {
		close(killed)
		_ = cmd.Process.Kill() // it has ended if that fails
	}
	stop := context.AfterFunc(ctx, func() {
		if runtime.GOOS == "windows" {
			kill()
			return
		}
		_ = cmd.Process.Signal(os.Interrupt) // it has ended if that fails
	})
	defer stop()
	hung := time.AfterFunc(2*timeout, kill) // ctx ended long before
	err := cmd.Wait()
	inTime := hung.Stop()
	select {
	case <-killed:
		if inTime {
			return nil // on Windows
		}
		return fmt.Errorf("killed, because an interrupt did not end it: %s", stderr.String())
	default:
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Exit{exit.ExitCode(), stderr.String()}
	}
	return err
}

// Self returns the program of a test binary with [Main] as a process.
func Self(t testing.TB) Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Process{File: self, Env: []string{runMain + "=1"}}
}

func containsAll(s string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return false
		}
	}
	return true
}

// Usage checks that each list of arguments is refused with exit code 2 and one
// line on standard error that contains the first element of the list, and that -h
// prints help.
func Usage(t *testing.T, p Process, rows ...[]string) {
	t.Helper()
	for _, row := range append(rows, []string{"-nonsense", "-nonsense"}) {
		program := Start(t, p.Run, row[1:]...)
		err := program.Wait()
		var exit *Exit
		if !errors.As(err, &exit) || exit.Code != 2 || strings.Count(exit.Stderr, "\n") != 1 ||
			!strings.Contains(exit.Stderr, row[0]) || program.Text() != "" {
			t.Errorf("%q: %v and %q, want exit code 2 and one line with %q on standard error", row[1:], err, program.Text(), row[0])
		}
	}
	var stderr strings.Builder
	p.Stderr = &stderr
	program := Start(t, p.Run, "-h")
	if err := program.Wait(); err != nil || !strings.Contains(program.Text(), "Flags of") || stderr.String() != "" {
		t.Errorf("-h: %v, %q on standard error, and\n%s", err, stderr.String(), program.Text())
	}
}
