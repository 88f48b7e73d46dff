package streams

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// fakeConn is a connection as far as holds looks at one.
type fakeConn struct {
	network.Conn
	id     string
	closed bool
}

func (c *fakeConn) ID() string          { return c.id }
func (c *fakeConn) RemotePeer() peer.ID { return "peer" }
func (c *fakeConn) IsClosed() bool      { return c.closed }

// protection counts the tags in force, and calls.
type protection struct {
	mu    sync.Mutex
	tags  map[string]bool
	calls int
}

func (p *protection) protect(_ peer.ID, tag string, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if on {
		p.tags[tag] = true
	} else {
		delete(p.tags, tag)
	}
}

func (p *protection) state() (tags, calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.tags), p.calls
}

func newHolds(t *testing.T) (*holds, *protection) {
	p := &protection{tags: make(map[string]bool)}
	group := lifecycle.NewGroup(context.Background())
	t.Cleanup(func() { must(t, group.Close()) })
	return &holds{protect: p.protect, group: group, conns: make(map[network.Conn]*hold), queues: make(map[peer.ID]*queue)}, p
}

func TestHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newHolds(t)
		check := func(when string, tags, calls int) {
			t.Helper()
			synctest.Wait()
			if gotTags, gotCalls := p.state(); gotTags != tags || gotCalls != calls {
				t.Errorf("%s: %d tags after %d calls, want %d after %d", when, gotTags, gotCalls, tags, calls)
			}
		}
		one, two := &fakeConn{id: "one"}, &fakeConn{id: "two"}
		for range 100 { // one after another
			s.release(s.take(one))
		}
		check("requests in a row", 1, 1)
		time.Sleep(linger)
		check("a while later", 0, 2)
		a, b := s.take(one), s.take(two)
		check("over two connections", 2, 4)
		s.release(a)
		time.Sleep(linger / 2)
		s.release(s.take(one)) // it is in use again
		time.Sleep(linger / 2)
		check("in use lately", 2, 4)
		time.Sleep(linger)
		check("one over", 1, 5)
		s.lose(two)
		check("the other lost", 0, 6)
		s.release(b)
		time.Sleep(2 * linger)
		check("and its stream released late", 0, 6)
		two.closed = true
		c := s.take(two)
		check("a stream of a lost connection", 0, 6)
		s.release(c)
		s.take(one)
		check("once more", 1, 7)
		s.close()
		check("closed", 0, 8)
		s.release(s.take(&fakeConn{id: "late"}))
		check("after the close", 0, 8)
		time.Sleep(time.Hour)
		if len(s.queues) != 0 || len(s.conns) > 1 { // the stream of one is open
			t.Errorf("%d connections and %d queues are remembered", len(s.conns), len(s.queues))
		}
	})
}

// Whatever the order in which streams begin and end, the last one to end leaves
// no protection, and no memory.
func TestHoldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newHolds(t)
		var conns []*fakeConn
		for i := range 4 {
			conns = append(conns, &fakeConn{id: fmt.Sprint(i)})
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for k := range 50 {
					h := s.take(conns[(i+k)%len(conns)])
					if k%7 == i%7 {
						time.Sleep(linger)
					}
					if tags, _ := p.state(); tags == 0 {
						t.Error("an open stream protects nobody")
					}
					s.release(h)
				}
			})
		}
		wg.Wait()
		time.Sleep(2 * linger)
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if tags, _ := p.state(); tags != 0 || left != 0 {
			t.Errorf("%d tags and %d connections are left", tags, left)
		}
		s.close()
	})
}
