package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

const (
	// aheadSize is how many bytes a watch reads ahead of the handler.
	aheadSize = 1 << 10
	// aheadDelay is how long after a handler's Read the watch resumes, so that it
	// does not slow down a handler that reads all the time.
	aheadDelay = 50 * time.Millisecond
)

var (
	errConnClosed   = errors.New("connection closed")
	errHandlerReset = fmt.Errorf("by the handler: %w", network.ErrReset)
)

// streamContext is the ctx of a handler. Only the stream of a handler that asks
// for the end of its ctx is watched; most never do, so the cancelable context
// is made on first use.
type streamContext struct {
	context.Context // of the server
	st              *stream
}

func (c *streamContext) Done() <-chan struct{} {
	c.st.watch()
	return c.st.context().Done()
}

func (c *streamContext) Err() error {
	c.st.watch()
	return c.st.context().Err()
}

// Value is also called by package context itself, to find what to cancel and
// the cause.
func (c *streamContext) Value(key any) any { return c.st.context().Value(key) }

// stream is a stream with a handler. It ends the handler's ctx when a Read or
// Write shows that the stream was reset, or the handler resets it.
//
// Only reading reveals a reset: no muxer reports it otherwise. So while the
// handler of a watched stream does not read, a goroutine does, up to aheadSize
// bytes ahead, without the handler's deadline. Nothing that blocks is called
// under mu.
type stream struct {
	*live
	group   *lifecycle.Group
	handler streamContext

	mu          sync.Mutex
	ended       error                   // why the ctx has ended, nil while it has not; guarded by mu
	ctx         context.Context         // nil until somebody asks for it; guarded by mu
	cancel      context.CancelCauseFunc // of ctx; guarded by mu
	watched     bool                    // the handler asked for the end of its ctx; guarded by mu
	finished    bool                    // the handler has returned; guarded by mu
	readers     int                     // calls of Read; guarded by mu
	ahead       chan struct{}           // closed when readAhead ends, nil while it does not run; guarded by mu
	buf         []byte                  // read ahead; guarded by mu
	err         error                   // what ended reading ahead: io.EOF or a reset; guarded by mu
	readClosed  bool                    // by the handler, or by the peer's EOF; guarded by mu
	writeClosed bool                    // by the handler; guarded by mu
	deadline    time.Time               // for reading, the handler's; guarded by mu
	applied     time.Time               // the muxer's; guarded by mu
	idle        *time.Timer             // begins to read ahead; guarded by mu
}

func newStream(ctx context.Context, l *live, group *lifecycle.Group) *stream {
	s := &stream{live: l, group: group}
	s.handler = streamContext{ctx, s}
	return s
}

// context returns the handler's ctx.
func (s *stream) context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancelCause(s.handler.Context)
		if s.ended != nil {
			s.cancel(s.ended)
		}
	}
	return s.ctx
}

// end ends the handler's ctx, with the first of the causes.
func (s *stream) end(cause error) {
	s.mu.Lock()
	var cancel context.CancelCauseFunc
	if s.ended == nil {
		s.ended, cancel = cause, s.cancel
	}
	s.mu.Unlock()
	if cancel != nil {
		cancel(cause) // may run the application's functions
	}
}

// gone reports whether the ctx has ended, except by the handler's own doing.
func (s *stream) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		return s.handler.Context.Err() != nil
	}
	return s.ended != errHandlerReset
}

func (s *stream) watch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.watched {
		s.watched = true
		s.startAheadLocked()
	}
}

// startAheadLocked starts reading ahead, if it may.
func (s *stream) startAheadLocked() {
	if !s.watched || s.finished || s.readers > 0 || s.ahead != nil || s.readClosed || s.err != nil || len(s.buf) >= aheadSize {
		return
	}
	ahead := make(chan struct{})
	if s.group.Go(func(context.Context) { s.readAhead(ahead) }) {
		s.ahead = ahead
		_ = s.applyLocked() // it fails only if the stream is over
	}
}

// applyLocked sets the muxer's deadline to the one in force.
func (s *stream) applyLocked() error {
	want := s.deadline
	if s.ahead != nil && s.readers == 0 {
		want = time.Time{}
	}
	if s.finished || want.Equal(s.applied) {
		return nil
	}
	s.applied = want
	return s.live.SetReadDeadline(want)
}

// readAhead reads until the buffer is full, reading ends, or a Read of the
// handler takes over.
func (s *stream) readAhead(ahead chan struct{}) {
	defer close(ahead)
	buf := make([]byte, aheadSize)
	for {
		s.mu.Lock()
		room := buf[:max(aheadSize-len(s.buf), 0)]
		if len(room) == 0 || s.readers > 0 || s.finished || s.readClosed {
			s.ahead = nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		n, err := s.live.Read(room)
		s.mu.Lock()
		s.buf = append(s.buf, room[:n]...)
		if err == nil {
			s.mu.Unlock()
			continue
		}
		s.ahead = nil
		// After a timeout, a Read of the handler is waiting whose deadline it was:
		// it will notice.
		reset := false
		if !timedOut(err) {
			reset = err != io.EOF && !s.readClosed && !s.finished
			s.err = err
		}
		s.mu.Unlock()
		if reset {
			s.end(err)
		}
		return
	}
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	s.readers++
	if s.idle != nil {
		s.idle.Stop()
	}
	for s.ahead != nil && len(s.buf) == 0 {
		_ = s.applyLocked()
		ahead := s.ahead
		s.mu.Unlock()
		<-ahead
		s.mu.Lock()
	}
	if !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
		s.readDoneLocked(os.ErrDeadlineExceeded)
		s.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	if len(s.buf) > 0 {
		n := copy(p, s.buf)
		s.buf = s.buf[n:]
		s.readDoneLocked(nil)
		s.mu.Unlock()
		return n, nil
	}
	if err := s.err; err != nil {
		s.readDoneLocked(err)
		s.mu.Unlock()
		return 0, err
	}
	_ = s.applyLocked()
	s.mu.Unlock()

	n, err := s.live.Read(p)

	s.mu.Lock()
	reset := err != nil && err != io.EOF && !timedOut(err) && !s.readClosed
	s.readDoneLocked(err)
	s.mu.Unlock()
	if reset {
		s.end(err)
	}
	return n, err
}

// readDoneLocked ends a Read of the handler.
func (s *stream) readDoneLocked(err error) {
	s.readers--
	if err != nil && !timedOut(err) {
		s.readClosed = true
	}
	if !s.watched || s.readers > 0 || s.readClosed {
		return
	}
	if s.idle == nil {
		s.idle = time.AfterFunc(aheadDelay, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.startAheadLocked()
		})
	} else {
		s.idle.Reset(aheadDelay)
	}
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.live.Write(p)
	if err != nil && !timedOut(err) {
		s.mu.Lock()
		reset := !s.writeClosed
		s.mu.Unlock()
		if reset {
			s.end(err)
		}
	}
	return n, err
}

func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.live.SetWriteDeadline(t))
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return s.applyLocked()
}

func (s *stream) CloseRead() error {
	s.closing(true, false)
	return s.live.CloseRead()
}

func (s *stream) CloseWrite() error {
	s.closing(false, true)
	return s.live.CloseWrite()
}

func (s *stream) Close() error {
	s.closing(true, true)
	return s.live.Close()
}

func (s *stream) Reset() error {
	s.closing(true, true)
	s.end(errHandlerReset)
	return s.live.Reset()
}

func (s *stream) ResetWithError(code network.StreamErrorCode) error {
	s.closing(true, true)
	s.end(errHandlerReset)
	return s.live.ResetWithError(code)
}

// closing records that errors from now on are the handler's own doing.
func (s *stream) closing(read, write bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readClosed = s.readClosed || read
	s.writeClosed = s.writeClosed || write
	if read {
		s.buf = nil
	}
}

// finish ends the ctx and the watch once the handler has returned.
func (s *stream) finish() {
	s.mu.Lock()
	s.finished = true
	if s.idle != nil {
		s.idle.Stop()
	}
	ahead := s.ahead
	s.mu.Unlock()
	s.end(context.Canceled)
	if ahead != nil {
		_ = s.live.SetReadDeadline(past) // wakes it
		<-ahead
	}
}
