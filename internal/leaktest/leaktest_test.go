package leaktest

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// waiter is where the goroutines of these tests are.
func waiter(end chan struct{}) { <-end }

func TestGoroutinesThatStayAreNamed(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	for range 3 {
		go waiter(end)
	}
	var out strings.Builder
	if ended(&out, 0) {
		t.Fatal("three goroutines were not seen")
	}
	want := "    3 in github.com/go-p2pnode/p2pnode/internal/leaktest.waiter, started by github.com/go-p2pnode/p2pnode/internal/leaktest.TestGoroutinesThatStayAreNamed\n"
	if _, short, _ := strings.Cut(out.String(), "in short:\n"); short != want {
		t.Errorf("said %q, not %q, of\n%s", short, want, out.String())
	}
}

func TestGoroutinesThatEndLateAreNamedAndForgiven(t *testing.T) {
	end := make(chan struct{})
	go waiter(end)
	out := &firstWrite{end: end}
	if !ended(out, time.Minute) || !strings.Contains(out.String(), "late:\n    1 in ") || strings.Contains(out.String(), "outlive") {
		t.Errorf("said %q", out.String())
	}
}

// firstWrite closes a channel when something is written.
type firstWrite struct {
	strings.Builder
	end chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		close(w.end)
	}
	return w.Builder.Write(p)
}
