package logguard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/leaktest"
	"github.com/go-p2pnode/p2pnode/internal/raced"
)

func TestMain(m *testing.M) {
	raced.OneThread()
	leaktest.Main(m)
}

// stuck is a handler that returns when it is let.
type stuck struct {
	slog.Handler
	let <-chan struct{}
}

func (s stuck) Handle(ctx context.Context, r slog.Record) error {
	<-s.let
	return s.Handler.Handle(ctx, r)
}

func TestGuardIsAHandler(t *testing.T) {
	var buf bytes.Buffer
	g := New(slog.NewJSONHandler(&buf, nil))
	defer g.Close()
	results := func() (list []map[string]any) {
		for _, l := range strings.Split(strings.TrimSpace(buf.String()), "\n") {
			var m map[string]any
			if err := json.Unmarshal([]byte(l), &m); err != nil {
				t.Fatal(err)
			}
			list = append(list, m)
		}
		return list
	}
	if err := slogtest.TestHandler(g, results); err != nil {
		t.Error(err)
	}
}

func TestAHandlerThatHangsHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		let := make(chan struct{})
		g := New(stuck{slog.NewTextHandler(&buf, nil), let})
		log := slog.New(g)
		begun := time.Now()
		for i := range backlog + 10 {
			log.Info(fmt.Sprint("line ", i))
		}
		if took := time.Since(begun); took != patience {
			t.Errorf("the lines took %v", took)
		}
		close(let)
		synctest.Wait()
		log.Info("back")
		text := buf.String()
		if !strings.Contains(text, "lines=9") || !strings.Contains(text, "line 1023") || strings.Contains(text, "line 1033") || !strings.Contains(text, "msg=back") {
			t.Errorf("%d bytes of log, ending in %q", len(text), text[max(0, len(text)-300):])
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		log.Info("late")
		if strings.Contains(buf.String(), "late") {
			t.Error("a line after Close")
		}
	})
}

func TestCloseWritesTheLinesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		let := make(chan struct{})
		g := New(stuck{slog.NewTextHandler(&buf, nil), let})
		for i := range 5 {
			slog.New(g).Info(fmt.Sprint("line ", i))
		}
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = g.Close()
		}()
		synctest.Wait()
		close(let)
		<-closed
		if n := strings.Count(buf.String(), "\n"); n != 5 {
			t.Errorf("%d lines", n)
		}
	})
}

// moody is a handler that takes every line and panics over some.
type moody struct{ slog.Handler }

func (moody) Enabled(context.Context, slog.Level) bool { return true }

func (m moody) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "bad" {
		panic("no")
	}
	return m.Handler.Handle(ctx, r)
}

func TestAHandlerThatPanicsLosesTheLineAndIsTold(t *testing.T) {
	var buf bytes.Buffer
	g := New(moody{slog.NewTextHandler(&buf, nil)})
	log := slog.New(g)
	for _, text := range []string{"bad", "bad", "good"} {
		log.Info(text)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if text := buf.String(); !strings.Contains(text, "msg=good") || !strings.Contains(text, "lines=2") {
		t.Errorf("the log is %q", text)
	}
}
