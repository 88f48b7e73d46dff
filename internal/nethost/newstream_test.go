package nethost

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// identifiedConn is a connection that was opened some seconds after the first, on which identify
// is answered, asks or has failed.
type identifiedConn struct {
	network.Conn
	at       time.Duration
	identify string
}

func (c identifiedConn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Opened: time.Unix(0, 0).Add(c.at)}}
}

// A stream is opened where identify is answered. If it asks on a connection that is much
// newer, the others may be dead: the swarm chooses.
func TestStreamsAreOpenedWhereIdentifyIsAnswered(t *testing.T) {
	const answered, asks, failed = "is answered", "asks", "has failed"
	at := func(at time.Duration, identify string) network.Conn {
		return identifiedConn{at: at, identify: identify}
	}
	const soon, later = settled / 2, settled
	for name, c := range map[string]struct {
		list []network.Conn
		want int // which; -1 for none
		wait bool
	}{
		"none":                        {nil, -1, false},
		"a single one":                {[]network.Conn{at(0, asks)}, -1, false},
		"all answered":                {[]network.Conn{at(0, answered), at(later, answered)}, -1, false},
		"the newer asks":              {[]network.Conn{at(0, answered), at(soon, asks)}, 0, false},
		"the older asks":              {[]network.Conn{at(0, asks), at(later, answered)}, 1, false},
		"the newest that answers":     {[]network.Conn{at(0, answered), at(soon, answered), at(soon, asks)}, 1, false},
		"all ask":                     {[]network.Conn{at(0, asks), at(soon, asks)}, -1, true},
		"one asks, one has failed":    {[]network.Conn{at(0, failed), at(later, asks)}, -1, true},
		"a much newer one asks":       {[]network.Conn{at(0, answered), at(later, asks)}, -1, false},
		"a much newer one has failed": {[]network.Conn{at(0, answered), at(later, failed)}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			is := func(state string) func(network.Conn) bool {
				return func(c network.Conn) bool { return c.(identifiedConn).identify == state }
			}
			got, wait := choose(c.list, is(answered), is(asks))
			var want network.Conn
			if c.want >= 0 {
				want = c.list[c.want]
			}
			if got != want || wait != c.wait {
				t.Errorf("%v, wait: %v; want %v, %v", got, wait, want, c.wait)
			}
		})
	}
}
