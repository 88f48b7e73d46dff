package keeper

import (
	"time"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

// Source says why a peer is to be connected. A peer can have several.
type Source int

// The sources, in the order in which their addresses are dialed.
const (
	Bootstrap  Source = iota // the way into the network
	Persistent               // always to be connected
	Discovered               // found on the way, as by mDNS
	Saved                    // connected at an earlier start
	numSources
)

// policy is how a source's peers are dialed. A peer that cannot be reached is
// dialed again after delays that double from min to max, forever.
type policy struct {
	min, max time.Duration
	quick    bool // a lost peer is dialed quickly for QuickFor
	// stable is how long a connection must have stood for its loss to be answered
	// at once. A peer that hangs up on everybody, or trims this node again and
	// again, would otherwise be dialed without end. Where the policy is quick,
	// some losses of younger connections are forgiven; see freeLosses.
	stable time.Duration
	yield  bool          // of two peers that find each other, the one with the lower ID dials first
	atOnce int           // how many are dialed at a time; 0 means any number
	forget time.Duration // how long a peer that nobody mentions again is dialed; 0 means forever
}

var policies = [numSources]policy{
	// These are the delays while there are enough other peers: a network that
	// was cut in two, or whose bootstrap peer started afresh, has no other way
	// to find together. The peer may also have trimmed this node, so it is not
	// often. With too few peers, rounds take their place; see round.go.
	Bootstrap:  {min: time.Minute, max: 10 * time.Minute, quick: true, stable: 10 * time.Minute},
	Persistent: {min: 5 * time.Second, max: 10 * time.Minute, quick: true, stable: time.Minute},
	Discovered: {min: time.Second, max: 30 * time.Second, yield: true, stable: time.Minute, atOnce: 16, forget: 10 * time.Minute},
	Saved:      {min: time.Minute, max: 10 * time.Minute, stable: time.Minute, atOnce: savedAtOnce},
}

const (
	// dialLimit bounds a dial. While an outage or a loss is fresh the bound is
	// shorter, because a peer that is silent now may be back in a second, and a
	// dial that began before may not notice: it is quickDial, or slack times what
	// it took to reach the peer before. A peer never reached gets firstDial every
	// third time, for it may be far away; one that was lost gets lostDial then.
	dialLimit = 15 * time.Second
	quickDial = time.Second
	firstDial = 5 * time.Second
	lostDial  = 2 * time.Second
	slack     = 3

	// QuickFor is how long an outage or a loss is fresh: a minute, and enough
	// more for a return at the end of it.
	QuickFor = time.Minute + 5*time.Second
	// QuickMax is the longest pause between two dials meanwhile, quickMin the
	// shortest.
	QuickMax = 800 * time.Millisecond
	quickMin = 400 * time.Millisecond

	// freeLosses is how many losses in a row of young connections are answered
	// at once: a peer may restart more than once, or crash as it starts.
	freeLosses = 3

	// RoundMin is the first of the growing distances between rounds once an
	// outage is not fresh. Rounds never begin closer than roundGap, and wait no
	// longer than roundLimit for their dials.
	RoundMin = time.Second
	// RoundMax is the last of those distances.
	RoundMax   = 30 * time.Second
	roundGap   = 400 * time.Millisecond
	roundLimit = quickDial

	// savedAtOnce is how many saved peers are dialed at a time, and in a round.
	savedAtOnce = 8
	// With fewer peers than smallNetwork, saved peers that are missing are looked
	// for again: in a small network nobody else brings its parts together.
	smallNetwork = 20

	// afterBan is how long after the end of a ban a persistent peer is dialed.
	afterBan = 10 * time.Millisecond

	// maxDiscovered bounds how many discovered peers are remembered, for
	// discovery brings bytes from strangers, and maxAddrs the addresses of each,
	// the newest ones.
	maxDiscovered = 512
	maxAddrs      = 32
	// hopeless is after how many failed dials a discovered peer that was never
	// connected makes room for another.
	hopeless = 3

	// maxReleased bounds for how many peers Release holds.
	maxReleased = 1024
)

func (p policy) backoff(rand func() float64) backoff.Backoff {
	return backoff.Backoff{Min: p.min, Max: p.max, Rand: rand}
}
