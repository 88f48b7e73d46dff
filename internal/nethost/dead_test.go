package nethost

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
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

// openConn is a connection that was opened some time ago.
type openConn struct {
	network.Conn
	quic bool
	from network.Direction
	at   string
	age  time.Duration
}

func (c openConn) As(any) bool                   { return c.quic }
func (c openConn) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(c.at) }
func (c openConn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: c.from, Opened: time.Now().Add(-c.age)}}
}

// Another connection makes a young one doubtful only if the peer has dialed it over
// QUIC, as it may have canceled that dial; it makes all doubtful if one is older.
func TestAYoungQUICConnectionIsDoubtful(t *testing.T) {
	const in, out, direct, relayed = network.DirInbound, network.DirOutbound, "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/1/p2p-circuit"
	for name, c := range map[string]struct {
		list []network.Conn
		want []int
	}{
		"alone":             {[]network.Conn{openConn{quic: true, from: in, at: direct}}, nil},
		"young QUIC":        {[]network.Conn{openConn{quic: true, from: in, at: direct}, openConn{from: in, at: direct}}, []int{0}},
		"young TCP":         {[]network.Conn{openConn{from: in, at: direct}, openConn{from: in, at: direct}}, nil},
		"QUIC from here":    {[]network.Conn{openConn{quic: true, from: out, at: direct}, openConn{from: in, at: direct}}, nil},
		"old TCP":           {[]network.Conn{openConn{from: out, at: direct, age: settled}, openConn{from: in, at: direct}}, []int{0, 1}},
		"old, but relayed":  {[]network.Conn{openConn{from: in, at: relayed, age: settled}, openConn{from: in, at: direct}}, nil},
		"relayed and young": {[]network.Conn{openConn{from: in, at: relayed, age: settled}, openConn{quic: true, from: in, at: direct}}, []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var want []network.Conn
				for _, i := range c.want {
					want = append(want, c.list[i])
				}
				if got := doubtful(c.list); !slices.Equal(got, want) {
					t.Errorf("doubtful: %v", got)
				}
			})
		})
	}
}
