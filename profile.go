package p2pnode

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// WithProfile sets what the node is for, and with it the defaults of several options:
// those that the profile lists. Every option that is given wins over the profile,
// before it or after it, and leaves out what it conflicts with: ProfileDesktop with
// [WithoutRelay] finds no relays, but maps a port. There is none by default, because
// what a node is for is a decision. [Describe] tells the outcome.
func WithProfile(p Profile) Option {
	return option{"WithProfile", func(c *config) error {
		if p.options() == nil {
			return fmt.Errorf("unknown profile %q; known are %q", string(p), allProfiles)
		}
		c.profile = p
		return nil
	}}
}

// options returns what the profile stands for; nil if it is unknown.
func (p Profile) options() []Option {
	switch p {
	case ProfileServer:
		return []Option{
			WithReachability(network.ReachabilityPublic), WithDHTMode(DHTModeServer), WithRelayService(), WithAutoNAT(), WithConnLimits(768, 1024),
		}
	case ProfileDesktop:
		return []Option{WithAutoNAT(), WithRelayDiscovery(), WithHolePunching(), WithPortMapping()}
	case ProfilePhone:
		return []Option{
			WithDHTMode(DHTModeClient), WithConnLimits(12, 24), WithBootstrapPause(5 * time.Minute), WithRelayDiscovery(), WithHolePunching(),
		}
	case ProfileLAN:
		return []Option{WithMDNS(), WithDHTMode(DHTModeServer), WithoutRelay()}
	default:
		return nil
	}
}

// applyProfile applies those options of the profile that neither were given with
// another value nor conflict with one that was.
func (c *config) applyProfile() error {
	for _, o := range c.profile.options() {
		o := o.(option) // as all in these lists
		if c.has(o.name) || c.ruledOut(o.name) {
			continue
		}
		if err := o.set(c); err != nil {
			return &OptionError{Option: o.name, Err: err}
		}
	}
	return nil
}
