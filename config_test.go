package p2pnode

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// One error has all problems, with values and with relations.
func TestAllProblemsAtOnce(t *testing.T) {
	err := ValidateOptions(WithNetwork(""), WithMinPeers(-1), WithHolePunching(), WithoutRelay(), WithRelayService())
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		t.Fatalf("not joined: %v", err)
	}
	var names []string
	for _, e := range joined.Unwrap() {
		var oe *OptionError
		if errors.As(e, &oe) {
			names = append(names, oe.Option)
		}
	}
	if got := strings.Join(names, " "); got != "WithNetwork WithMinPeers WithHolePunching WithRelayService" {
		t.Errorf("reported: %s", got)
	}
}

func TestDerivedSettings(t *testing.T) {
	build := func(opts ...Option) *config {
		c, err := newConfig(opts)
		mustNot(t, err)
		return c
	}
	boot := WithBootstrapPeers(somePeer("1"))
	for _, row := range []struct {
		opts []Option
		want int
	}{{nil, 0}, {[]Option{boot}, 1}, {[]Option{WithMDNS()}, 1}, {[]Option{boot, WithMinPeers(0)}, 0}, {[]Option{WithMinPeers(4)}, 4}} {
		if got := build(row.opts...).effectiveMinPeers(); got != row.want {
			t.Errorf("minimum of peers %d, want %d", got, row.want)
		}
	}
	private := build(WithPrivateNetwork(bytes.Repeat([]byte{7}, 32)))
	list, defaults := private.listenAddrs()
	if !defaults || len(list) != 4 {
		t.Errorf("a private network listens on %v", list)
	}
	if list, _ := build(WithoutListening()).listenAddrs(); list != nil {
		t.Errorf("WithoutListening listens on %v", list)
	}
	if c := build(WithIPFS()); c.effectiveDHTMode() != DHTModeAuto || c.protocolPrefix() != "/ipfs" || c.mdnsServiceName() != "_p2p._udp" || len(c.bootstrapPeers()) < 4 {
		t.Errorf("the public network: %s %s %s and %d bootstrap peers", c.effectiveDHTMode(), c.protocolPrefix(), c.mdnsServiceName(), len(c.bootstrapPeers()))
	}
	if c := build(WithIPFS(), boot, WithDHTMode(DHTModeServer)); len(c.bootstrapPeers()) != 1 || c.effectiveDHTMode() != DHTModeServer {
		t.Error("the public network's defaults override what was given")
	}
}

// Networks never share an mDNS service name, and each name is a DNS label.
func TestMDNSServiceNamesDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, network := range []string{"p2pnode", "a", "A", "a.b", "a-b", "a/b", "a_b", strings.Repeat("x", 41), strings.Repeat("x", 42), strings.Repeat("y", 128)} {
		c, err := newConfig([]Option{WithNetwork(network)})
		mustNot(t, err)
		name := c.mdnsServiceName()
		if other, ok := seen[strings.ToLower(name)]; ok {
			t.Errorf("%q and %q share the service name %s", network, other, name)
		}
		seen[strings.ToLower(name)] = network
		if !mdnsName.MatchString(name) {
			t.Errorf("%q gives the service name %q", network, name)
		}
	}
}
