package p2pnode

import (
	"reflect"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// described returns the settings of options, without what tells how they were given.
func described(t *testing.T, opts ...Option) Settings {
	t.Helper()
	s, err := Describe(opts...)
	mustNot(t, err)
	s.Given, s.Profile = nil, ""
	return s
}

// A profile is the list of options that its comment and docs/defaults.md have.
func TestProfilesAreTheirLists(t *testing.T) {
	for p, list := range map[Profile][]Option{
		ProfileServer: {
			WithReachability(network.ReachabilityPublic), WithDHTMode(DHTModeServer), WithRelayService(), WithAutoNAT(), WithConnLimits(768, 1024),
		},
		ProfileDesktop: {WithNATTraversal()},
		ProfilePhone: {
			WithDHTMode(DHTModeClient), WithConnLimits(12, 24), WithBootstrapPause(5 * time.Minute), WithRelayDiscovery(), WithHolePunching(),
		},
		ProfileLAN: {WithMDNS(), WithDHTMode(DHTModeServer), WithoutRelay()},
	} {
		if got, want := described(t, WithProfile(p)), described(t, list...); !reflect.DeepEqual(got, want) {
			t.Errorf("%s is\n%+v, its list\n%+v", p, got, want)
		}
		if s, err := Describe(WithProfile(p)); err != nil || s.Profile != p {
			t.Errorf("Describe has profile %q, %v; want %q", s.Profile, err, p)
		}
	}
}

// What is given wins over the profile, whichever comes first.
func TestOptionsWinOverTheProfile(t *testing.T) {
	for name, row := range map[string]struct {
		profile Profile
		opts    []Option
		check   func(s Settings) bool
	}{
		"another value":           {ProfilePhone, []Option{WithConnLimits(50, 60)}, func(s Settings) bool { return s.ConnsLow == 50 && s.DHTMode == DHTModeClient }},
		"a default":               {ProfilePhone, []Option{WithDHTMode(DHTModeAutoServer)}, func(s Settings) bool { return s.DHTMode == DHTModeAutoServer }},
		"no relays":               {ProfileDesktop, []Option{WithoutRelay()}, func(s Settings) bool { return !s.RelayDiscovery && !s.HolePunching && s.PortMapping && s.AutoNAT }},
		"no ports":                {ProfileDesktop, []Option{WithoutListening()}, func(s Settings) bool { return !s.PortMapping && s.RelayDiscovery }},
		"a relay on the LAN":      {ProfileLAN, []Option{WithAutoRelay(somePeer("1"))}, func(s Settings) bool { return len(s.AutoRelays) == 1 && s.MDNS }},
		"a DHT that is left out":  {ProfileServer, []Option{WithoutDHT()}, func(s Settings) bool { return !s.DHT && s.RelayService }},
		"a reachability":          {ProfileServer, []Option{WithReachability(network.ReachabilityPrivate)}, func(s Settings) bool { return s.Reachability == network.ReachabilityPrivate }},
		"a profile after another": {ProfileServer, []Option{WithProfile(ProfileLAN), WithProfile(ProfileServer)}, func(s Settings) bool { return s.RelayService && !s.MDNS }},
	} {
		t.Run(name, func(t *testing.T) {
			first := described(t, append([]Option{WithProfile(row.profile)}, row.opts...)...)
			last := described(t, append(row.opts, WithProfile(row.profile))...)
			if !row.check(first) || !reflect.DeepEqual(first, last) {
				t.Errorf("with the profile first: %+v\nand last: %+v", first, last)
			}
		})
	}
}

// Each profile makes a node that runs.
func TestProfilesRun(t *testing.T) {
	for _, p := range []Profile{ProfileServer, ProfileDesktop, ProfilePhone} {
		n := newNode(t, WithProfile(p))
		if err := n.Close(); err != nil {
			t.Errorf("%s: Close = %v", p, err)
		}
	}
}
