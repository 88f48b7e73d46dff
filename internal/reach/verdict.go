package reach

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// margin is by how many servers the one side must outnumber the other: one that lies
	// changes nothing where there are three others.
	margin = 2
	// patience is how long a single server is not believed: others may come.
	patience = 10 * time.Second
	// keep is how long an address counts that can be reached, but that no peer sees the
	// node at any more.
	keep = 5 * time.Minute
	// rest is how long a server is left alone that contradicts the others, does not
	// answer, or cannot dial an address.
	rest = 10 * time.Minute
	// Verdicts are checked, by one server each time, after these times.
	checkReachable, checkUnreachable, checkUnknown = 10 * time.Minute, 5 * time.Minute, time.Minute
)

// vote is what a server last said about an address.
type vote struct {
	dialed bool
	at     time.Time
}

// candidate is an address at which others may reach the node.
type candidate struct {
	addr    ma.Multiaddr
	foreign bool // a NAT stands in between, and nobody has configured it
	seen    time.Time
	votes   map[string]vote      // by server
	unfit   map[string]time.Time // servers that cannot tell, until when
	verdict network.Reachability
	next    time.Time // when it is to be asked about again
	asking  int
}

func newCandidate(a ma.Multiaddr) *candidate {
	return &candidate{addr: a, votes: make(map[string]vote), unfit: make(map[string]time.Time)}
}

// count returns how many servers have dialed the address, and how many in vain.
func (c *candidate) count() (dialed, failed int) {
	for _, v := range c.votes {
		if v.dialed {
			dialed++
		} else {
			failed++
		}
	}
	return dialed, failed
}

// record takes a server's answer. One that contradicts the verdict makes the others'
// stale: they are asked again before the verdict changes.
func (c *candidate) record(server string, ok bool, now time.Time) {
	if c.verdict != network.ReachabilityUnknown && ok != (c.verdict == network.ReachabilityPublic) {
		for other, v := range c.votes {
			if now.Sub(v.at) > checkUnknown {
				delete(c.votes, other)
			}
		}
	}
	c.votes[server] = vote{ok, now}
}

// decide sets the verdict. Alone is true if there is one server only, which nobody
// can contradict. It reports a change.
func (c *candidate) decide(alone bool) bool {
	need, old := margin, c.verdict
	if alone {
		need = 1
	}
	dialed, failed := c.count()
	switch {
	case dialed-failed >= need:
		c.verdict = network.ReachabilityPublic
	case failed-dialed >= need:
		c.verdict = network.ReachabilityPrivate
	}
	return c.verdict != old
}

// fit returns how many of the servers can judge the address, those at one IP counted
// once.
func (c *candidate) fit(servers []server, now time.Time) int {
	keys := make(map[string]bool)
	for _, s := range servers {
		if !now.Before(c.unfit[s.key]) && (s.six || !addrs.IsIP6(c.addr)) {
			keys[s.key] = true
		}
	}
	return len(keys)
}

func (c *candidate) pause() time.Duration {
	switch c.verdict {
	case network.ReachabilityPublic:
		return checkReachable
	case network.ReachabilityPrivate:
		return checkUnreachable
	default:
		return checkUnknown
	}
}

// open reports whether another answer is needed for a verdict, or to decide between
// the verdict and an answer that contradicts it.
func (c *candidate) open() bool {
	dialed, failed := c.count()
	switch c.verdict {
	case network.ReachabilityPublic:
		return failed >= dialed
	case network.ReachabilityPrivate:
		return dialed >= failed
	default:
		return true
	}
}

// liars returns the servers that contradict the verdict.
func (c *candidate) liars() (list []string) {
	for server, v := range c.votes {
		if c.verdict != network.ReachabilityUnknown && v.dialed != (c.verdict == network.ReachabilityPublic) {
			list = append(list, server)
		}
	}
	return list
}

// overall is the verdict about the node, from the addresses that somebody can judge:
// public if one can be reached, private if none can. Nothing is the verdict if there
// is none such.
func overall(list []*candidate, nothing network.Reachability) network.Reachability {
	if len(list) == 0 {
		return nothing
	}
	all, open, refuters := true, false, make(map[string]bool)
	for _, c := range list {
		if c.verdict == network.ReachabilityPublic {
			return network.ReachabilityPublic
		}
		dialed, failed := c.count()
		refuted := c.verdict == network.ReachabilityPrivate
		all = all && refuted
		open = open || !refuted && (dialed > 0 || failed == 0)
		for server, v := range c.votes {
			if !v.dialed {
				refuters[server] = true
			}
		}
	}
	// Of many addresses, each costs a server 10 seconds to refute: it is enough that
	// several servers agree about the node, and one about each address.
	if all || !open && len(refuters) >= margin {
		return network.ReachabilityPrivate
	}
	return network.ReachabilityUnknown
}
