package keeper

import (
	"time"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
)

// Source is a reason to connect to a peer. A peer can have several.
type Source int

// The sources, in the order in which their addresses are dialed.
const (
	Bootstrap  Source = iota // the way into the network
	Persistent               // always to be connected
	Discovered               // found at run time, as by mDNS
	Saved                    // connected in an earlier run
	numSources
)

// policy is how a source's peers are dialed. A peer that cannot be reached is
// redialed after delays that double from min to max, forever.
type policy struct {
	min, max time.Duration
	quick    bool // a lost peer is dialed quickly for QuickFor
	// stable is how long a connection must have been open for its peer to be
	// redialed at once. Otherwise a peer that hangs up on everybody, or keeps
	// trimming this node, would be dialed all the time. If the policy is quick,
	// some losses of younger connections are forgiven; see freeLosses.
	stable time.Duration
	yield  bool          // of two peers that find each other, the one with the lower ID dials first
	atOnce int           // how many are dialed at a time; 0 means any number
	forget time.Duration // how long a peer that is not heard of again is dialed; 0 means forever
}

var policies = [numSources]policy{
	// These are the delays while there are enough other peers: a network that was
	// partitioned, or whose bootstrap peer restarted, has no other way to merge.
	// They are long because the peer may have trimmed this node. With too few
	// peers, rounds replace them; see round.go.
	Bootstrap:  {min: time.Minute, max: 10 * time.Minute, quick: true, stable: 10 * time.Minute},
	Persistent: {min: 5 * time.Second, max: 10 * time.Minute, quick: true, stable: time.Minute},
	Discovered: {min: time.Second, max: 30 * time.Second, yield: true, stable: time.Minute, atOnce: 16, forget: 10 * time.Minute},
	Saved:      {min: time.Minute, max: 10 * time.Minute, stable: time.Minute, atOnce: savedAtOnce},
}

const (
	// dialLimit bounds a dial. While an outage or a loss is fresh the bound is
	// shorter, because a peer that is silent now may be back in a second, and a
	// dial that began before may not notice: it is quickDial, or slack times the
	// duration of the last successful dial. Every third dial of a peer never
	// reached gets firstDial, because it may be far away, and of a lost peer
	// lostDial.
	dialLimit = 15 * time.Second
	quickDial = time.Second
	firstDial = 5 * time.Second
	lostDial  = 2 * time.Second
	slack     = 3

	// QuickFor is how long an outage or a loss is fresh: a minute, and some more
	// for a peer that comes back at its end.
	QuickFor = time.Minute + 5*time.Second
	// QuickMax is the longest pause between two dials during that time, quickMin
	// the shortest.
	QuickMax = 800 * time.Millisecond
	quickMin = 400 * time.Millisecond

	// freeLosses is how many times in a row a young connection may be lost and the
	// peer still be redialed at once: it may restart more than once, or crash at
	// its start.
	freeLosses = 3

	// RoundMin is the first of the growing delays between rounds once an outage is
	// not fresh. Rounds begin at least roundGap apart, and wait at most roundLimit
	// for their dials.
	RoundMin = time.Second
	// RoundMax is the last of those delays.
	RoundMax   = 30 * time.Second
	roundGap   = 400 * time.Millisecond
	roundLimit = quickDial

	// With fewer peers than fewPeers, none of which is a bootstrap peer, missing ones
	// are dialed every RoundMax, even if the others are enough: a stranger that connects
	// must not keep the node from its network. Peers that hang up are spared.
	fewPeers = 4

	// savedAtOnce is how many saved peers are dialed at a time, and in a round.
	savedAtOnce = 8
	// With fewer peers than smallNetwork, missing saved peers are dialed again: in
	// a small network nothing else merges its parts.
	smallNetwork = 20

	// afterBan is how long after the end of a ban a persistent peer is dialed.
	afterBan = 10 * time.Millisecond

	// maxDiscovered bounds how many discovered peers are remembered, because
	// strangers can announce any number, and maxAddrs bounds the addresses of each,
	// keeping the newest.
	maxDiscovered = 512
	maxAddrs      = 32

	// maxReleased bounds for how many peers Release holds.
	maxReleased = 1024
)

func (p policy) backoff(rand func() float64) backoff.Backoff {
	return backoff.Backoff{Min: p.min, Max: p.max, Rand: rand}
}
