package reach

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
)

// Two servers more on one side decide; a single one does if nobody can contradict it.
func TestVerdictNeedsAMargin(t *testing.T) {
	const unknown, public, private = network.ReachabilityUnknown, network.ReachabilityPublic, network.ReachabilityPrivate
	for _, row := range []struct {
		dialed, failed int
		alone          bool
		want           network.Reachability
	}{
		{0, 0, false, unknown},
		{1, 0, false, unknown},
		{1, 0, true, public},
		{0, 1, true, private},
		{2, 0, false, public},
		{0, 2, false, private},
		{2, 1, false, unknown},
		{3, 1, false, public}, // one of four lies
		{1, 3, false, private},
		{2, 2, false, unknown},
	} {
		c := newCandidate(ma.StringCast("/ip4/5.1.0.2/tcp/4001"))
		for i := range row.dialed {
			c.record(fmt.Sprint("yes", i), true, time.Now())
		}
		for i := range row.failed {
			c.record(fmt.Sprint("no", i), false, time.Now())
		}
		if changed := c.decide(row.alone); c.verdict != row.want || changed != (row.want != unknown) {
			t.Errorf("%+v: %v, changed %v", row, c.verdict, changed)
		}
	}
}

// An answer against the verdict makes old ones stale, so that one liar cannot turn it,
// and a true change can.
func TestVerdictChangesWithFreshVotesOnly(t *testing.T) {
	c, now := newCandidate(ma.StringCast("/ip4/5.1.0.2/tcp/4001")), time.Now()
	for _, s := range []string{"a", "b", "c"} {
		c.record(s, true, now)
	}
	c.decide(false)
	later := now.Add(checkReachable)
	c.record("d", false, later)
	if c.decide(false); c.verdict != network.ReachabilityPublic {
		t.Errorf("one answer turned the verdict to %v", c.verdict)
	}
	c.record("a", false, later)
	if c.decide(false); c.verdict != network.ReachabilityPrivate {
		t.Errorf("two fresh answers left the verdict at %v", c.verdict)
	}
}
