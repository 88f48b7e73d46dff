package streams

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// yamuxConn is a connection with yamux.
type yamuxConn struct{ network.Conn }

func (yamuxConn) ConnState() network.ConnectionState {
	return network.ConnectionState{StreamMultiplexer: yamux.ID}
}

// slowStream is a stream whose first Read takes its time to notice its deadline.
type slowStream struct {
	network.Stream
	notices  chan struct{}
	reads    atomic.Int32
	reading  atomic.Int32
	together atomic.Bool
}

func (*slowStream) Conn() network.Conn              { return yamuxConn{} }
func (*slowStream) CloseWrite() error               { return nil }
func (*slowStream) Close() error                    { return nil }
func (*slowStream) SetReadDeadline(time.Time) error { return nil }
func (s *slowStream) Read([]byte) (int, error) {
	defer s.reading.Add(-1)
	if s.reading.Add(1) > 1 {
		s.together.Store(true)
	}
	if s.reads.Add(1) == 1 {
		<-s.notices
	}
	return 0, os.ErrDeadlineExceeded
}

// Yamux does not expect two Reads at a time: what Close reads to answer the other side
// waits until a Read of the caller has returned.
func TestCloseReadsAfterTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw := &slowStream{notices: make(chan struct{})}
		group := lifecycle.NewGroup(context.Background())
		s := &live{Stream: raw, server: &Server{group: group}}
		go func() { _, _ = s.Read(make([]byte, 1)) }()
		synctest.Wait()
		must(t, s.Close())
		synctest.Wait()
		close(raw.notices)
		synctest.Wait()
		if raw.together.Load() || raw.reads.Load() != 2 {
			t.Errorf("%d reads, at the same time: %v", raw.reads.Load(), raw.together.Load())
		}
		must(t, group.Close())
	})
}
