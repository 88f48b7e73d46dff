package streams

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// After Close, a stream waits up to lingerFor for the other side to close, too,
// and drops up to lingerMost bytes of what it still sends: yamux's window.
const (
	lingerFor  = 10 * time.Second
	lingerMost = 256 << 10
)

// past is an expired deadline.
var past = time.Unix(1, 0)

// live is a stream of the application, whichever side opened it. It behaves the
// same over every transport, like a net.Conn over TCP:
//
//   - after an expired deadline every call returns os.ErrDeadlineExceeded, until
//     another deadline is set;
//   - after its own end, and when the node closes, calls return errs.ErrClosed,
//     including blocked ones;
//   - one Read and one Write are in the muxer at a time: concurrent Writes overrun
//     yamux's window, for which the other side closes the connection, and of
//     concurrent Reads yamux wakes only one;
//   - if the other side or the loss of the connection ended it, calls return an
//     endError, except that Close and CloseWrite return nil.
//
// While it is open, its peer is protected from trimming.
type live struct {
	network.Stream
	server *Server

	mu    sync.Mutex
	held  *hold // nil once released; guarded by mu
	read  half  // guarded by mu
	write half  // guarded by mu
	reset bool  // by this side; guarded by mu
	heard bool  // the other side has closed its writing side; guarded by mu
	left  bool  // Close has been called; guarded by mu
}

// newLive wraps a stream that has just been accepted, on either side.
func (s *Server) newLive(raw network.Stream) *live {
	return &live{Stream: raw, server: s, held: s.holds.take(raw.Conn())}
}

// half is one direction of a stream.
type half struct {
	busy     bool          // a call is in the muxer
	turn     chan struct{} // closed when that call returns, nil if no call waits
	closed   bool          // by this side
	ended    bool          // by any side
	deadline time.Time     // zero for none
}

// returns returns a channel that is closed when the call returns that is in the muxer,
// nil if there is none. It is called with the lock held.
func (h *half) returns() <-chan struct{} {
	if h.busy && h.turn == nil {
		h.turn = make(chan struct{})
	}
	return h.turn
}

// enter begins a call.
func (s *live) enter(h *half) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case h.closed:
			return s.closedLocked()
		case !h.deadline.IsZero() && !time.Now().Before(h.deadline):
			return os.ErrDeadlineExceeded
		case !h.busy:
			h.busy = true
			return nil
		}
		// A deadline or an end by this side that ends that call also ends this one.
		turn := h.returns()
		s.mu.Unlock()
		<-turn
		s.mu.Lock()
	}
}

// closedLocked returns the error after this side's end.
func (s *live) closedLocked() error {
	if s.reset {
		return errOwnReset
	}
	return errs.ErrClosed
}

// leave ends a call, and returns its error in the form that is the same over every
// transport.
func (s *live) leave(h *half, n int, err error) error {
	s.mu.Lock()
	h.busy = false
	if h.turn != nil {
		close(h.turn)
		h.turn = nil
	}
	if err == nil {
		s.mu.Unlock()
		return nil
	}
	var held *hold
	switch {
	case h.closed:
		err = s.closedLocked()
	case timedOut(err):
		err = os.ErrDeadlineExceeded
		if n > 0 && h == &s.read {
			err = nil
		}
	default:
		h.ended = true
		s.heard = s.heard || h == &s.read
		if err != io.EOF {
			err = s.server.ended(err)
			s.write.ended = s.write.ended || h == &s.read // a reset ends both
		}
		held = s.releaseLocked()
	}
	s.mu.Unlock()
	s.server.holds.release(held)
	return err
}

// ended returns the error of a stream that this side did not end.
func (s *Server) ended(err error) error {
	if s.group.Context().Err() != nil {
		return errs.ErrClosed
	}
	return ended(err)
}

// releaseLocked returns the hold to release after a direction has ended.
func (s *live) releaseLocked() (held *hold) {
	if s.read.ended && s.write.ended {
		held, s.held = s.held, nil
	}
	return held
}

func (s *live) Read(p []byte) (int, error) {
	if err := s.enter(&s.read); err != nil {
		return 0, err
	}
	n, err := s.Stream.Read(p)
	return n, s.leave(&s.read, n, err)
}

func (s *live) Write(p []byte) (int, error) {
	if err := s.enter(&s.write); err != nil {
		return 0, err
	}
	n, err := s.Stream.Write(p)
	return n, s.leave(&s.write, n, err)
}

// shut records that this side ends directions, and wakes the calls in them, which
// QUIC's Close would not do for a Write. It returns a channel to wait for before
// calling the muxer, nil for none.
func (s *live) shut(read, write bool) (writing <-chan struct{}) {
	s.mu.Lock()
	if read {
		s.read.closed, s.read.ended = true, true
		if s.read.busy {
			_ = s.Stream.SetReadDeadline(past)
		}
	}
	if write {
		s.write.closed, s.write.ended = true, true
		if s.write.busy {
			_ = s.Stream.SetWriteDeadline(past)
			writing = s.write.returns()
		}
	}
	held := s.releaseLocked()
	s.mu.Unlock()
	s.server.holds.release(held)
	return writing
}

func wait(call <-chan struct{}) {
	if call != nil {
		<-call
	}
}

func (s *live) Close() error {
	wait(s.shut(true, true))
	s.mu.Lock()
	leaving := s.left
	s.left = true
	linger := !s.heard && !s.reset
	s.mu.Unlock()
	if leaving {
		return nil
	}
	// QUIC tells the other side that nobody reads any more.
	if linger && s.Conn().ConnState().StreamMultiplexer == yamux.ID && s.server.group.Go(s.linger) {
		return nil
	}
	_ = s.Stream.Close()
	return nil
}

// linger closes a yamux stream on which the other side may still write. Yamux
// does not tell it that nobody reads any more: it would write until the window
// is full, and then wait forever. So what it writes is dropped for a while, in
// which it can read what this side wrote, and then answered with a reset.
func (s *live) linger(ctx context.Context) {
	_ = s.Stream.CloseWrite()
	s.mu.Lock()
	reading := s.read.returns() // Close has ended it; yamux (5.1) does not expect two at a time
	s.mu.Unlock()
	wait(reading)
	_ = s.Stream.SetReadDeadline(time.Now().Add(lingerFor))
	stop := context.AfterFunc(ctx, func() { _ = s.Stream.SetReadDeadline(past) })
	defer stop()
	buf := make([]byte, 1) // most often nothing comes
	for dropped := 0; ; {
		n, err := s.Stream.Read(buf)
		dropped += n
		if len(buf) == 1 && n == 1 {
			buf = make([]byte, 4<<10)
		}
		switch {
		case dropped > lingerMost, dropped > 0 && err != nil && timedOut(err):
			_ = s.Stream.Reset()
			return
		case err != nil:
			_ = s.Stream.Close()
			return
		}
	}
}

func (s *live) CloseWrite() error {
	wait(s.shut(false, true))
	_ = s.Stream.CloseWrite()
	return nil
}

func (s *live) CloseRead() error {
	s.shut(true, false)
	_ = s.Stream.CloseRead()
	return nil
}

func (s *live) Reset() error { return s.ResetWithError(network.StreamNoError) }

func (s *live) ResetWithError(code network.StreamErrorCode) error {
	s.mu.Lock()
	s.reset = true
	s.mu.Unlock()
	s.shut(true, true)
	return s.Stream.ResetWithError(code)
}

func (s *live) SetDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.closed && s.write.closed {
		return s.closedLocked()
	}
	if err := s.setLocked(&s.read, t, s.Stream.SetReadDeadline); err != nil {
		return err
	}
	return s.setLocked(&s.write, t, s.Stream.SetWriteDeadline)
}

func (s *live) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.closed {
		return s.closedLocked()
	}
	return s.setLocked(&s.read, t, s.Stream.SetReadDeadline)
}

func (s *live) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.write.closed {
		return s.closedLocked()
	}
	return s.setLocked(&s.write, t, s.Stream.SetWriteDeadline)
}

// setLocked sets the deadline of a direction. It runs under mu, so that deadlines,
// including the one with which shut wakes, reach the muxer in order.
func (s *live) setLocked(h *half, t time.Time, set func(time.Time) error) error {
	if h.closed {
		return nil
	}
	h.deadline = t
	return set(t)
}
