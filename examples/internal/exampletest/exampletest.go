// Package exampletest runs example programs in tests, several at once, and
// waits for what they print.
package exampletest

import (
	"context"
	"errors"
	"flag"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/go-p2pnode/p2pnode/examples/internal/cli"
)

// timeout ends a test that waits for something that never comes.
const timeout = time.Minute

// Run is what an example's run function looks like.
type Run func(ctx context.Context, args []string, out io.Writer) error

// Main is a TestMain that fails when goroutines outlive the tests.
func Main(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Started once a process, on import.
		goleak.IgnoreTopFunction("github.com/ipfs/go-log/v2/writer.(*MirrorWriter).logRoutine"))
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

// Write takes what the program prints.
func (p *Program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text += string(b)
	close(p.grown)
	p.grown = make(chan struct{})
	return len(b), nil
}

// Text is what was printed so far.
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

// Wait waits for the program to end by itself.
func (p *Program) Wait() error {
	<-p.done
	return p.err
}

// Stop interrupts the program and waits for its end.
func (p *Program) Stop() error {
	p.cancel()
	return p.Wait()
}

func containsAll(s string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return false
		}
	}
	return true
}

// Usage checks that each list of arguments is refused as a mistake, in one
// line that contains the first element of the list, and that -h explains.
func Usage(t *testing.T, run Run, rows ...[]string) {
	t.Helper()
	for _, row := range append(rows, []string{"nonsense", "-nonsense"}) {
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
}
