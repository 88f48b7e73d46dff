package simhost

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
)

// memPair is a connection: both its ends, under one lock.
type memPair struct {
	net  *Network
	ends [2]*memConn

	mu    sync.Mutex
	cut   bool        // guarded by mu
	timer *time.Timer // ends a connection that is cut for idleTimeout; guarded by mu
}

// memConn is one end of a connection.
type memConn struct {
	t             *memTransport
	remoteT       *memTransport
	local, remote ma.Multiaddr
	scope         network.ConnManagementScope

	*memPair            // set before the connection is used
	other      *memConn // likewise
	done       chan struct{}
	acceptWake chan struct{}

	err      error                   // the reason for closing; guarded by mu
	streams  map[*memStream]struct{} // guarded by mu
	accepted []*memStream            // streams of the other end that wait for AcceptStream; guarded by mu
}

var _ transport.CapableConn = (*memConn)(nil)

func newMemConn(t *memTransport, local, remote ma.Multiaddr, remoteT *memTransport) *memConn {
	return &memConn{
		t: t, remoteT: remoteT, local: local, remote: remote,
		done: make(chan struct{}), acceptWake: make(chan struct{}, 1), streams: make(map[*memStream]struct{}),
	}
}

// reject undoes an admission, if any.
func (c *memConn) reject() {
	if c != nil {
		c.scope.Done()
	}
}

// pair connects two ends.
func (c *memConn) pair(d *memConn) {
	p := &memPair{net: c.t.m.net, ends: [2]*memConn{c, d}}
	c.memPair, d.memPair, c.other, d.other = p, p, d, c
	p.net.mu.Lock()
	p.net.pairs[p] = struct{}{}
	p.net.mu.Unlock()
	p.recheck() // the path may have been cut before the network knew of the pair
}

func (c *memConn) LocalPeer() peer.ID             { return c.t.id }
func (c *memConn) RemotePeer() peer.ID            { return c.remoteT.id }
func (c *memConn) RemotePublicKey() crypto.PubKey { return c.remoteT.key }
func (c *memConn) LocalMultiaddr() ma.Multiaddr   { return c.local }
func (c *memConn) RemoteMultiaddr() ma.Multiaddr  { return c.remote }
func (c *memConn) Transport() transport.Transport { return c.t }
func (c *memConn) Scope() network.ConnScope       { return c.scope }
func (c *memConn) As(any) bool                    { return false }
func (c *memConn) ConnState() network.ConnectionState {
	return network.ConnectionState{Transport: "memory"}
}

func (c *memConn) IsClosed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *memConn) Close() error { return c.CloseWithError(0) }

// CloseWithError closes this end immediately, and the other end after the latency
// of the path. Over a cut path the other end times out or, once the path is
// healed, gets a reset.
func (c *memConn) CloseWithError(code network.ConnErrorCode) error {
	closed := errors.New("connection closed")
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.endLocked(&network.ConnError{ErrorCode: code, TransportError: closed}) {
		return nil
	}
	other := c.other
	if c.cut {
		other.forgetHeldLocked()
		return nil
	}
	time.AfterFunc(c.net.transit(c.t.m.site, other.t.m.site, memPacket), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cut {
			return // cut meanwhile: the packet is lost
		}
		other.endLocked(&network.ConnError{Remote: true, ErrorCode: code, TransportError: closed})
	})
	return nil
}

// endLocked closes this end. It reports whether it was open.
func (c *memConn) endLocked(why error) bool {
	if c.err != nil {
		return false
	}
	c.err = why
	close(c.done)
	for s := range c.streams {
		s.failLocked(why)
	}
	c.streams = nil
	c.scope.Done()
	if c.other.err != nil {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.net.forget(c.memPair)
	}
	return true
}

// forgetHeldLocked drops what the other end would have sent after the path is
// healed: that end has closed.
func (c *memConn) forgetHeldLocked() {
	for s := range c.streams {
		s.in = slices.DeleteFunc(s.in, func(k chunk) bool {
			if k.held {
				s.inBytes -= len(k.data)
			}
			return k.held
		})
	}
}

func (n *Network) forget(p *memPair) {
	n.mu.Lock()
	delete(n.pairs, p)
	n.mu.Unlock()
}

// recheck checks whether the path was cut or healed.
func (p *memPair) recheck() {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, b := p.ends[0], p.ends[1]
	cut := p.net.dead(a.t.m, b.t.m)
	switch {
	case cut == p.cut:
	case cut:
		p.cut = true
		for _, c := range p.ends {
			for s := range c.streams {
				s.holdLocked()
			}
			if c.other.err != nil {
				c.forgetHeldLocked()
			}
		}
		p.timer = time.AfterFunc(idleTimeout, p.timeout)
	default:
		p.cut = false
		p.timer.Stop()
		for _, c := range p.ends {
			if c.err == nil && c.other.err != nil {
				// The other end closed or restarted during the cut; the next packet
				// gets a stateless reset.
				time.AfterFunc(2*p.net.transit(c.t.m.site, c.other.t.m.site, memPacket), func() {
					p.mu.Lock()
					defer p.mu.Unlock()
					c.endLocked(&network.ConnError{Remote: true, TransportError: errors.New("received a stateless reset")})
				})
			}
			for s := range c.streams {
				s.releaseLocked()
			}
		}
	}
}

// timeout ends a connection whose path was cut for idleTimeout.
func (p *memPair) timeout() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cut {
		return
	}
	for _, c := range p.ends {
		c.endLocked(&network.ConnError{TransportError: errNoAnswer})
	}
}

// OpenStream opens a stream. The other end learns of it from the first write.
func (c *memConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	s, r := newMemStream(c), newMemStream(c.other)
	s.other, r.other = r, s
	r.announced = true
	c.streams[s] = struct{}{}
	return s, nil
}

// AcceptStream waits for a stream of the other end.
func (c *memConn) AcceptStream() (network.MuxedStream, error) {
	for {
		c.mu.Lock()
		if c.err != nil {
			defer c.mu.Unlock()
			return nil, c.err
		}
		now := time.Now()
		var next time.Time
		for i, s := range c.accepted {
			at, ok := s.nextLocked()
			if ok && !at.After(now) {
				if i == 0 { // the usual case: nothing to move
					c.accepted[0] = nil
					c.accepted = c.accepted[1:]
				} else {
					c.accepted = slices.Delete(c.accepted, i, i+1)
				}
				c.mu.Unlock()
				return s, nil
			}
			if ok && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		c.mu.Unlock()
		_ = await(c.acceptWake, next, time.Time{}, c.done) // check again for any reason
	}
}

// await waits for a wake-up, a time or a deadline, which is an error.
func await(wake <-chan struct{}, at, deadline time.Time, done <-chan struct{}) error {
	var timeC <-chan time.Time
	late := !deadline.IsZero() && (at.IsZero() || deadline.Before(at))
	if late {
		at = deadline
	}
	if !at.IsZero() {
		d := time.Until(at)
		if d <= 0 && late {
			return os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeC = timer.C
	}
	select {
	case <-wake:
	case <-done:
	case <-timeC:
		if late {
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

// memStream is one end of a stream.
type memStream struct {
	c     *memConn
	other *memStream

	announced bool // the other end of the connection knows the stream; guarded by c.mu
	ended     int  // how many of the two directions have ended; guarded by c.mu

	in       []chunk   // in flight to this end, or waiting for Read; guarded by c.mu
	inBytes  int       // guarded by c.mu
	last     time.Time // the arrival of the last chunk of in; guarded by c.mu
	readErr  error     // guarded by c.mu
	writeErr error     // guarded by c.mu
	readBy   time.Time // deadline; guarded by c.mu
	writeBy  time.Time // deadline; guarded by c.mu

	readWake, writeWake chan struct{}
}

// chunk is a write in flight.
type chunk struct {
	data []byte
	at   time.Time // of arrival
	held bool      // the path is cut: the chunk arrives after it is healed
	end  error     // instead of data: io.EOF, or a reset for the reader
	stop bool      // instead of data: the other end has stopped reading
}

func newMemStream(c *memConn) *memStream {
	return &memStream{c: c, readWake: make(chan struct{}, 1), writeWake: make(chan struct{}, 1)}
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// nextLocked returns when the next chunk arrives, if any.
func (s *memStream) nextLocked() (time.Time, bool) {
	if len(s.in) == 0 || s.in[0].held {
		return time.Time{}, false
	}
	return s.in[0].at, true
}

// pushLocked sends a chunk to the other end.
func (s *memStream) pushLocked(k chunk, size int) {
	o := s.other
	if s.c.other.err != nil {
		return // the other end has closed
	}
	if !s.announced {
		s.announced = true
		s.c.other.streams[o] = struct{}{}
		s.c.other.accepted = append(s.c.other.accepted, o)
	}
	k.held = s.c.cut
	if !k.held {
		k.at = time.Now().Add(s.c.net.transit(s.c.t.m.site, s.c.other.t.m.site, size))
		if k.at.Before(o.last) {
			k.at = o.last
		}
		o.last = k.at
	}
	o.in = append(o.in, k)
	o.inBytes += len(k.data)
	wake(o.readWake)
	wake(s.c.other.acceptWake)
	if k.stop || k.end != nil && k.end != io.EOF {
		wake(o.writeWake)
	}
}

// holdLocked holds the chunks in flight: their packets are lost, and sent again
// after the path is healed.
func (s *memStream) holdLocked() {
	now := time.Now()
	for i := range s.in {
		if s.in[i].at.After(now) {
			s.in[i].held = true
		}
	}
	s.last = time.Time{}
}

// releaseLocked lets held chunks arrive.
func (s *memStream) releaseLocked() {
	for i := range s.in {
		if s.in[i].held {
			at := time.Now().Add(s.c.net.transit(s.c.other.t.m.site, s.c.t.m.site, len(s.in[i].data)))
			if at.Before(s.last) {
				at = s.last
			}
			s.in[i].at, s.in[i].held, s.last = at, false, at
		}
	}
	wake(s.readWake)
	wake(s.writeWake)
	wake(s.c.acceptWake)
}

// failLocked ends both directions of this end.
func (s *memStream) failLocked(why error) {
	if s.readErr == nil {
		s.readErr = why
	}
	if s.writeErr == nil {
		s.writeErr = why
	}
	s.in, s.inBytes = nil, 0
	wake(s.readWake)
	wake(s.writeWake)
}

// controlLocked removes arrived chunks without data from the queue. Resets apply
// immediately, even behind data, because the other end has dropped that.
func (s *memStream) controlLocked(now time.Time) {
	for i := 0; i < len(s.in); i++ {
		k := s.in[i]
		if k.held || k.at.After(now) {
			return
		}
		switch {
		case k.stop:
			if s.writeErr == nil {
				s.writeErr = &network.StreamError{Remote: true}
				wake(s.writeWake)
				s.doneLocked()
			}
			s.in = append(s.in[:i:i], s.in[i+1:]...)
			i--
		case k.end != nil && k.end != io.EOF:
			if s.readErr == nil {
				s.doneLocked()
			}
			if s.writeErr == nil {
				s.doneLocked()
			}
			s.failLocked(k.end)
			return
		}
	}
}

// doneLocked counts a direction that has ended, and removes the stream after
// both.
func (s *memStream) doneLocked() {
	if s.ended++; s.ended >= 2 {
		delete(s.c.streams, s)
	}
}

func (s *memStream) Read(b []byte) (int, error) {
	for {
		s.c.mu.Lock()
		s.controlLocked(time.Now())
		if s.readErr != nil {
			defer s.c.mu.Unlock()
			return 0, s.readErr
		}
		at, ok := s.nextLocked()
		if ok && !at.After(time.Now()) {
			defer s.c.mu.Unlock()
			return s.takeLocked(b)
		}
		deadline := s.readBy
		s.c.mu.Unlock()
		if err := await(s.readWake, at, deadline, s.c.done); err != nil {
			return 0, err
		}
	}
}

// takeLocked reads from the arrived chunks.
func (s *memStream) takeLocked(b []byte) (int, error) {
	if s.in[0].end == io.EOF {
		s.readErr = io.EOF
		s.doneLocked()
		return 0, io.EOF
	}
	n := copy(b, s.in[0].data)
	if s.in[0].data = s.in[0].data[n:]; len(s.in[0].data) == 0 {
		s.in[0] = chunk{}
		s.in = s.in[1:]
	}
	s.inBytes -= n
	wake(s.other.writeWake)
	return n, nil
}

func (s *memStream) Write(b []byte) (int, error) {
	written := 0
	for {
		s.c.mu.Lock()
		s.controlLocked(time.Now())
		if s.writeErr != nil {
			defer s.c.mu.Unlock()
			return written, s.writeErr
		}
		deadline := s.writeBy
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			s.c.mu.Unlock()
			return written, os.ErrDeadlineExceeded
		}
		if k := min(memWindow-s.other.inBytes, len(b)); k > 0 || len(b) == 0 {
			if k > 0 {
				s.pushLocked(chunk{data: append([]byte(nil), b[:k]...)}, k)
				written, b = written+k, b[k:]
			}
			if len(b) == 0 {
				s.c.mu.Unlock()
				return written, nil
			}
		}
		// The reader is too far behind, or a reset is in flight to this end.
		at, _ := s.nextLocked()
		s.c.mu.Unlock()
		if err := await(s.writeWake, at, deadline, s.c.done); err != nil {
			return written, err
		}
	}
}

// Close closes both directions. Written data still arrives.
func (s *memStream) Close() error {
	return errors.Join(s.CloseRead(), s.CloseWrite())
}

func (s *memStream) CloseWrite() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.writeErr == nil {
		s.writeErr = errors.New("write on a closed stream")
		s.pushLocked(chunk{end: io.EOF}, 1)
		s.doneLocked()
	}
	return nil
}

func (s *memStream) CloseRead() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.readErr == nil {
		s.readErr = errors.New("read on a closed stream")
		s.in, s.inBytes = nil, 0
		if s.announced {
			s.pushLocked(chunk{stop: true}, 1)
		}
		wake(s.readWake)
		s.doneLocked()
	}
	return nil
}

func (s *memStream) Reset() error { return s.ResetWithError(0) }

func (s *memStream) ResetWithError(code network.StreamErrorCode) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	open := s.readErr == nil || s.writeErr == nil
	s.failLocked(&network.StreamError{ErrorCode: code})
	delete(s.c.streams, s)
	if open && s.announced {
		s.pushLocked(chunk{end: &network.StreamError{ErrorCode: code, Remote: true}}, 1)
	}
	return nil
}

func (s *memStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *memStream) SetReadDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readBy = t
	wake(s.readWake)
	return nil
}

func (s *memStream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeBy = t
	wake(s.writeWake)
	return nil
}
