package p2ptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/simhost"
)

// Option configures [NewNetwork].
type Option interface{ apply(*config) error }

type option func(*config) error

func (o option) apply(c *config) error { return o(c) }

type config struct {
	seed    uint64
	seeded  bool
	latency Latency
	link    Link
	memory  bool
	limit   time.Duration
	node    []p2pnode.Option
}

// defaultConfig is the only place with default values.
func defaultConfig() *config {
	return &config{latency: Fixed(25 * time.Millisecond), limit: 2 * time.Minute}
}

// WithSeed sets the seed of all randomness on the network: the identities of
// nodes, latencies, jitter and loss, overriding the default of a random seed for
// each network. A test that fails logs the seed; the flag -p2ptest.seed replays
// it and overrides this option.
//
// The seed fixes neither the order in which goroutines run, nor the randomness
// that libp2p, the DHT and gossipsub take from the Go runtime. So one seed gives
// the same network and a similar run, not one that is identical to the packet.
func WithSeed(seed uint64) Option {
	return option(func(c *config) error {
		c.seed, c.seeded = seed, true
		return nil
	})
}

// WithLatency sets how long packets take from one node to another, overriding
// the default of Fixed(25 * time.Millisecond): a round trip of 50 ms between
// any two. [Network.SetPath] overrides it for a pair of nodes.
func WithLatency(l Latency) Option {
	return option(func(c *config) error {
		if l.err != nil {
			return fmt.Errorf("WithLatency: %w", l.err)
		}
		if l.between == nil {
			return errors.New("WithLatency: the zero Latency is invalid; use Fixed, Uniform, Normal, Regions, Matrix or LatencyFunc")
		}
		c.latency = l
		return nil
	})
}

// WithLink sets the link of each node, overriding the default of a link without
// limits or faults. [Network.SetLink] overrides it for single nodes.
func WithLink(l Link) Option {
	return option(func(c *config) error {
		if err := l.check(); err != nil {
			return fmt.Errorf("WithLink: %w", err)
		}
		c.link = l
		return nil
	})
}

// WithMemoryTransport carries connections without packets and cryptography,
// overriding the default of real QUIC. A network of 100 nodes then takes half
// the time and half the memory (the package's README has the measurements), and
// 1,000 nodes become feasible.
//
// It keeps QUIC's addresses, the round trip of a handshake, the timeouts of
// handshakes (5 s) and connections (30 s), latency, jitter, bandwidth,
// partitions, crashes, and the order and flow control of streams. It gives up
// encryption (peers are trusted to have the ID that they claim), congestion
// control, packets (lost data arrives late, as if sent again; the MTU has no
// effect) and NATs: [Network.NAT] fails the test.
func WithMemoryTransport() Option {
	return option(func(c *config) error {
		c.memory = true
		return nil
	})
}

// WithWaitLimit sets how long the waiting methods of [Network] wait before they
// fail the test, overriding the default of 2 minutes. In a synctest bubble the
// minutes are virtual and cost almost nothing. [Waiter.Within] overrides the
// limit for single calls.
func WithWaitLimit(d time.Duration) Option {
	return option(func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("WithWaitLimit: %v is not positive", d)
		}
		c.limit = d
		return nil
	})
}

// WithNodeOptions adds options for every node of the network, before those of
// the node itself.
func WithNodeOptions(opts ...p2pnode.Option) Option {
	opts = append([]p2pnode.Option(nil), opts...)
	return option(func(c *config) error {
		c.node = append(c.node, opts...)
		return nil
	})
}

// Bits per second, for [Link].
const (
	Kbit = 1_000
	Mbit = 1_000_000
	Gbit = 1_000_000_000
)

// Link connects a node to the network. The zero value is a link without limits
// or faults.
type Link struct {
	// Up and Down are the bandwidths in bits per second; 0 means unlimited.
	Up, Down int
	// Latency is one way, and added to that of the path.
	Latency time.Duration
	// Jitter is the largest additional delay of a packet, drawn uniformly. Packets
	// can overtake each other.
	Jitter time.Duration
	// Loss is the fraction of packets lost in each direction, from 0 to 1.
	Loss float64
	// MTU is the size in bytes of the largest IP packet that passes; 0 means
	// 1500. QUIC's first packets have 1308 bytes: with a smaller MTU no connection
	// opens.
	MTU int
}

func (l Link) check() error {
	switch {
	case l.Up < 0 || l.Down < 0:
		return fmt.Errorf("bandwidth of %d up, %d down: it cannot be negative; 0 means unlimited", l.Up, l.Down)
	case l.Up > 0 && l.Up < 8*Kbit || l.Down > 0 && l.Down < 8*Kbit:
		return fmt.Errorf("bandwidth of %d up, %d down: the unit is bits per second, and below 8 Kbit a single packet takes seconds; use Isolate to cut a node off", l.Up, l.Down)
	case int64(l.Up) > 100*Gbit || int64(l.Down) > 100*Gbit: // an int may have 32 bits
		return fmt.Errorf("bandwidth of %d up, %d down: the unit is bits per second, with at most 100 Gbit; 0 means unlimited", l.Up, l.Down)
	case l.MTU != 0 && (l.MTU < 576 || l.MTU > 65535):
		return fmt.Errorf("MTU of %d bytes: IPv4 has 576 to 65535; 0 means 1500", l.MTU)
	}
	return checkPath(l.Latency, l.Jitter, l.Loss)
}

func checkPath(latency, jitter time.Duration, loss float64) error {
	switch {
	case latency < 0:
		return fmt.Errorf("latency of %v: packets cannot arrive before they are sent", latency)
	case latency > time.Minute:
		return fmt.Errorf("latency of %v: it exceeds a minute; use Partition or Isolate to cut a path", latency)
	case jitter < 0 || jitter > time.Minute:
		return fmt.Errorf("jitter of %v: it must be between 0 and a minute", jitter)
	case !(loss >= 0 && loss <= 1):
		return fmt.Errorf("loss of %v: it is a fraction, between 0 and 1", loss)
	}
	return nil
}

// Path is the network between two nodes, in one direction or, with
// [Network.SetPath], in both.
type Path struct {
	Latency time.Duration // one way
	Jitter  time.Duration // the largest additional delay of a packet
	Loss    float64       // the fraction of packets lost, from 0 to 1
}

// Site is the point at which a node, or the NAT in front of it, is attached to
// the network.
type Site struct {
	Index  int    // in the order of creation, from 0
	Region string // set by Regions, Matrix or SetRegion
}

// Latency is how long packets take between two sites. Make one with [Fixed],
// [Uniform], [Normal], [Regions], [Matrix] or [LatencyFunc].
type Latency struct {
	between func(from, to Site, r *rand.Rand) time.Duration // once for each pair
	regions []string                                        // where nodes are placed, in turn
	err     error
}

// Fixed returns the same latency, one way, for all pairs of sites.
func Fixed(oneWay time.Duration) Latency {
	return Latency{
		between: func(Site, Site, *rand.Rand) time.Duration { return oneWay },
		err:     checkPath(oneWay, 0, 0),
	}
}

// Uniform draws the latency, one way, of each pair of sites once, from a uniform
// distribution between two bounds.
func Uniform(least, most time.Duration) Latency {
	l := Latency{err: errors.Join(checkPath(least, 0, 0), checkPath(most, 0, 0))}
	if l.err == nil && most < least {
		l.err = fmt.Errorf("Uniform: from %v to %v: the bounds are reversed", least, most)
	}
	l.between = func(_, _ Site, r *rand.Rand) time.Duration {
		return least + time.Duration(r.Float64()*float64(most-least))
	}
	return l
}

// Normal draws the latency, one way, of each pair of sites once, from a normal
// distribution that is cut off at a tenth of the mean and at twice the mean.
func Normal(mean, deviation time.Duration) Latency {
	l := Latency{err: errors.Join(checkPath(mean, 0, 0), checkPath(deviation, 0, 0))}
	l.between = func(_, _ Site, r *rand.Rand) time.Duration {
		d := float64(mean) + r.NormFloat64()*float64(deviation)
		return time.Duration(min(max(d, float64(mean)/10), 2*float64(mean)))
	}
	return l
}

// LatencyFunc calls f once for the latency, one way, of each pair of sites.
// Each pair has its own source of randomness, so results do not depend on the
// order of the calls. f must be safe for concurrent use.
func LatencyFunc(f func(from, to Site, r *rand.Rand) time.Duration) Latency {
	if f == nil {
		return Latency{err: errors.New("LatencyFunc: the function is nil")}
	}
	return Latency{between: f}
}

// Matrix assigns nodes to regions in turn ([Network.SetRegion] moves them), and
// takes the round trips from a table: roundTrips[i][j] is the round trip between
// regions[i] and regions[j], and roundTrips[i][i] the one within regions[i].
func Matrix(regions []string, roundTrips [][]time.Duration) Latency {
	bad := func(format string, args ...any) Latency {
		return Latency{err: fmt.Errorf("Matrix: "+format, args...)}
	}
	if len(regions) == 0 {
		return bad("no regions given")
	}
	if len(roundTrips) != len(regions) {
		return bad("%d regions, but %d rows of round trips", len(regions), len(roundTrips))
	}
	oneWay := make(map[[2]string]time.Duration)
	for i, row := range roundTrips {
		if len(row) != len(regions) {
			return bad("%d regions, but %d round trips in the row of %q", len(regions), len(row), regions[i])
		}
		for j, d := range row {
			if err := checkPath(d/2, 0, 0); err != nil {
				return bad("%s to %s: %w", regions[i], regions[j], err)
			}
			oneWay[[2]string{regions[i], regions[j]}] = d / 2
		}
	}
	if len(oneWay) != len(regions)*len(regions) {
		return bad("a region is named twice in %q", regions)
	}
	return Latency{
		regions: append([]string(nil), regions...),
		between: func(from, to Site, _ *rand.Rand) time.Duration { return oneWay[[2]string{from.Region, to.Region}] },
	}
}

// The regions of [Regions].
const (
	NorthAmerica = "North America"
	Europe       = "Europe"
	SouthAmerica = "South America"
	AsiaPacific  = "Asia-Pacific"
	Japan        = "Japan"
	Australia    = "Australia"
)

// Regions assigns nodes to continents in turn, with typical round trips between
// them: those of 2019 that the network simulator SimBlock uses
// (github.com/dsg-titech/simblock, NetworkConfiguration.java; described in
// Aoki et al., "SimBlock: A Blockchain Network Simulator", INFOCOM Workshops
// 2019).
func Regions() Latency {
	ms := [][]int{
		{32, 124, 184, 198, 151, 189},
		{124, 11, 227, 237, 252, 294},
		{184, 227, 88, 325, 301, 322},
		{198, 237, 325, 85, 58, 198},
		{151, 252, 301, 58, 12, 126},
		{189, 294, 322, 198, 126, 16},
	}
	table := make([][]time.Duration, len(ms))
	for i, row := range ms {
		for _, v := range row {
			table[i] = append(table[i], time.Duration(v)*time.Millisecond)
		}
	}
	return Matrix([]string{NorthAmerica, Europe, SouthAmerica, AsiaPacific, Japan, Australia}, table)
}

// simLink converts the link for the simulated network.
func (l Link) simLink() simhost.Link {
	return simhost.Link{Up: l.Up, Down: l.Down, Latency: l.Latency, Jitter: l.Jitter, Loss: l.Loss, MTU: l.MTU}
}
