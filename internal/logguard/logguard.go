// Package logguard keeps a log handler that hangs from holding up those who log.
package logguard

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

const (
	// patience is how long a line waits for the handler to return. Ordinary handlers
	// return at once, so that a line is written when the call that logs it returns.
	patience = 100 * time.Millisecond
	// backlog is how many lines wait for a handler that hangs.
	backlog = 1024
)

// Guard is a handler in front of another one. While that hangs, lines wait for it
// without holding up the caller; when too many do, they are dropped, and a line says
// how many.
type Guard struct {
	to slog.Handler
	*state
}

// state is what the handlers that come from one by WithAttrs and WithGroup share.
type state struct {
	lines   chan line
	hangs   atomic.Bool
	dropped atomic.Uint64
	over    chan struct{} // closed by Close
	ended   chan struct{} // closed when the goroutine has ended
	once    sync.Once     // closes over
	group   *lifecycle.Group
}

type line struct {
	to   slog.Handler
	ctx  context.Context
	r    slog.Record
	done chan struct{} // closed when the handler has returned
}

// New returns a guard, whose goroutine ends with Close.
func New(to slog.Handler) *Guard {
	g := &Guard{to, &state{
		lines: make(chan line, backlog), over: make(chan struct{}), ended: make(chan struct{}),
		group: lifecycle.NewGroup(context.Background()),
	}}
	g.group.Go(g.run)
	return g
}

// Enabled reports whether the handler takes lines of a level.
func (g *Guard) Enabled(ctx context.Context, level slog.Level) bool { return g.to.Enabled(ctx, level) }

// WithAttrs returns a guard of the handler with attributes.
func (g *Guard) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Guard{g.to.WithAttrs(attrs), g.state}
}

// WithGroup returns a guard of the handler with a group.
func (g *Guard) WithGroup(name string) slog.Handler { return &Guard{g.to.WithGroup(name), g.state} }

// Handle hands a line to the handler. It returns when that has, or is known to
// hang. After Close it does nothing.
func (g *Guard) Handle(ctx context.Context, r slog.Record) error {
	l := line{g.to, context.WithoutCancel(ctx), r.Clone(), make(chan struct{})}
	select {
	case <-g.over:
		return nil
	case g.lines <- l:
	default:
		g.dropped.Add(1)
		return nil
	}
	if g.hangs.Load() {
		return nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-g.ended:
	case <-timer.C:
		g.hangs.Store(true)
	}
	return nil
}

// run hands lines on until Close, and then those that wait.
func (g *Guard) run(context.Context) {
	defer close(g.ended)
	for {
		select {
		case l := <-g.lines:
			g.write(l)
			continue
		case <-g.over:
		}
		for {
			select {
			case l := <-g.lines:
				g.write(l)
			default:
				return
			}
		}
	}
}

func (g *Guard) write(l line) {
	defer close(l.done)
	returned := call(l)
	g.hangs.Store(false)
	if !returned {
		g.dropped.Add(1)
		return
	}
	if n := g.dropped.Swap(0); n > 0 {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines dropped: the handler of WithLogger did not return, or has panicked", 0)
		r.AddAttrs(slog.Uint64("lines", n))
		if !call(line{to: l.to, ctx: l.ctx, r: r}) {
			g.dropped.Add(n)
		}
	}
}

// call calls the handler, and reports whether it has returned: a panic of a
// handler does not end the process. An error has nobody to be told to.
func call(l line) (returned bool) {
	defer func() { returned = recover() == nil }()
	_ = l.to.Handle(l.ctx, l.r)
	return true
}

// Close waits until the lines that wait are handled.
func (g *Guard) Close() error {
	g.once.Do(func() { close(g.over) })
	return g.group.Close()
}
