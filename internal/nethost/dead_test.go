package nethost

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// askedConn is a connection on which nobody answers, or which is broken.
type askedConn struct {
	network.Conn
	broken error
	times  int
}

func (c *askedConn) NewStream(ctx context.Context) (network.Stream, error) {
	c.times++
	if c.broken != nil {
		return nil, c.broken
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A peer that does not answer has another chance while this process gets too little of
// the machine to see answers, or while packets come from the peer, whose process gets too
// little of its own: on one that ran twenty times as many processes as it has cores,
// connections of peers that were well were closed.
func TestABusyMachineDoesNotTakePeersForDead(t *testing.T) {
	for name, c := range map[string]struct {
		busy   int // how often
		heard  int // how often packets come
		broken error
		times  int
		silent bool
	}{
		"idle":                {0, 0, nil, 1, true},
		"busy at first":       {1, 0, nil, 2, true},
		"busy all along":      {100, 0, nil, chances, true},
		"heard at first":      {0, 1, nil, 2, true},
		"heard all along":     {0, 100, nil, chances, true},
		"broken":              {0, 0, errors.New("broken"), 1, false},
		"broken, while busy":  {100, 100, errors.New("broken"), 1, false},
		"gave up, while busy": {100, 100, nil, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.times == 0 {
					cancel()
					c.times = 1
				}
				conn := &askedConn{broken: c.broken}
				begun, busy := time.Now(), c.busy
				answers, silent := asked(ctx, conn, 5*time.Second, func(ctx context.Context) func() bool {
					kept := keepsUp(ctx) // in virtual time it always does
					return func() bool { busy--; return kept() && busy < 0 }
				}, func(network.Conn) uint64 { return uint64(min(conn.times, c.heard)) })
				if answers || silent != c.silent || conn.times != c.times {
					t.Errorf("answers %v, silent %v, asked %d times", answers, silent, conn.times)
				}
				if took := time.Since(begun); c.silent && took != time.Duration(c.times)*5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
