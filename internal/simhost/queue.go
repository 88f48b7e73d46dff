package simhost

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// queueLen is how many packets wait for the reader of a socket. Further ones are
// lost, as in the buffer of a UDP socket.
const queueLen = 1024

// queue is the receiving side of a socket.
type queue struct {
	packets chan packet
	done    chan struct{}
	once    sync.Once

	mu       sync.Mutex
	deadline time.Time     // guarded by mu
	changed  chan struct{} // closed when deadline changes; guarded by mu
}

type packet struct {
	data *[]byte
	from netip.AddrPort
}

func newQueue() *queue {
	return &queue{packets: make(chan packet, queueLen), done: make(chan struct{}), changed: make(chan struct{})}
}

// buffers holds the buffers of packets in queues.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1500); return &b }}

func (q *queue) push(data []byte, from netip.AddrPort) {
	b := buffers.Get().(*[]byte)
	*b = append((*b)[:0], data...)
	select {
	case q.packets <- packet{b, from}:
	default:
		buffers.Put(b)
	}
}

// ReadFrom returns the next packet.
func (q *queue) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		q.mu.Lock()
		deadline, changed := q.deadline, q.changed
		q.mu.Unlock()
		var expired <-chan time.Time
		if !deadline.IsZero() {
			d := time.Until(deadline)
			if d <= 0 {
				return 0, nil, os.ErrDeadlineExceeded
			}
			timer := time.NewTimer(d)
			defer timer.Stop()
			expired = timer.C
		}
		select {
		case <-q.done: // first: a closed socket has nothing to read
			return 0, nil, net.ErrClosed
		default:
		}
		select {
		case p := <-q.packets:
			n := copy(b, *p.data)
			buffers.Put(p.data)
			return n, net.UDPAddrFromAddrPort(p.from), nil
		case <-q.done:
			return 0, nil, net.ErrClosed
		case <-expired:
			return 0, nil, os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}

func (q *queue) close() { q.once.Do(func() { close(q.done) }) }

func (q *queue) isClosed() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}

// SetReadDeadline bounds ReadFrom, including a blocked one.
func (q *queue) SetReadDeadline(t time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deadline = t
	close(q.changed)
	q.changed = make(chan struct{})
	return nil
}

// SetDeadline bounds ReadFrom: WriteTo never blocks.
func (q *queue) SetDeadline(t time.Time) error { return q.SetReadDeadline(t) }

// SetWriteDeadline does nothing: WriteTo never blocks.
func (q *queue) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer and SetWriteBuffer do nothing; without them quic-go warns.
func (q *queue) SetReadBuffer(int) error  { return nil }
func (q *queue) SetWriteBuffer(int) error { return nil }
