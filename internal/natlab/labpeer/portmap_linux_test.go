package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// mapper adds a home whose router maps ports, with a host in it.
func mapper(t *testing.T, lab *natlab.Lab, kind natlab.Kind, cfg natlab.PortMapping) (*natlab.Site, *natlab.PortMapper, *natlab.Host) {
	t.Helper()
	natlab.NeedMiniupnpd(t)
	site, err := lab.Site("home", natlab.Network{Kind: kind})
	if err != nil {
		t.Fatal(err)
	}
	m, err := site.MapPorts(t.TempDir(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(m.Log())
			text = text[max(0, len(text)-8000):]
			t.Logf("miniupnpd: %s", text)
		}
	})
	h, err := site.Host("inside")
	if err != nil {
		t.Fatal(err)
	}
	return site, m, h
}

// mapped fits the event of a port that is mapped.
func mapped(protocol string) func(Reply) bool {
	return func(r Reply) bool {
		var ev p2pnode.EventPortMapped
		return r.Type == "EventPortMapped" && json.Unmarshal(r.Event, &ev) == nil && ev.Protocol == protocol
	}
}

// external returns the router's address and port of an event.
func external(t *testing.T, r Reply) netip.AddrPort {
	t.Helper()
	var ev p2pnode.EventPortMapped
	if err := json.Unmarshal(r.Event, &ev); err != nil {
		t.Fatal(err)
	}
	return ev.External
}

// judged fits the event of an address that begins with an IP.
func judged(ip netip.Addr, want p2pnode.Reachability) func(Reply) bool {
	return func(r Reply) bool {
		var ev p2pnode.EventAddrReachabilityChanged
		return r.Type == "EventAddrReachabilityChanged" && json.Unmarshal(r.Event, &ev) == nil &&
			ev.Reachability == want && strings.Contains(ev.Addr.String(), "/"+ip.String()+"/")
	}
}

// forwards returns what the router forwards.
func forwards(t *testing.T, m *natlab.PortMapper) []natlab.Mapping {
	t.Helper()
	list, err := m.Mappings()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// status returns the node's Status.
func (p *driven) status() (s p2pnode.Status) {
	p.t.Helper()
	if err := json.Unmarshal(p.must(Command{Do: "status"}).Status, &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// findings returns those of Diagnose of a kind.
func (p *driven) findings(kind p2pnode.FindingKind) (list []p2pnode.Finding) {
	p.t.Helper()
	if err := json.Unmarshal(p.must(Command{Do: "diagnose"}).Status, &list); err != nil {
		p.t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(f p2pnode.Finding) bool { return f.Kind != kind })
}

// A port that the router maps is announced and found to be reachable, so that no relay
// is needed; strangers connect there. Close removes it, TCP's and UDP's, though both
// are for the same port.
func TestAPortIsMappedAndRemoved(t *testing.T) {
	waits(t)
	t.Parallel()
	for _, tt := range []struct {
		name string
		natlab.PortMapping
		o Options
	}{
		{"UPnP", natlab.PortMapping{UPnP: true}, Options{Traversal: true}},
		{"both", natlab.PortMapping{UPnP: true, PMP: true}, Options{Traversal: true}},
		{"PCP", natlab.PortMapping{PMP: true}, Options{PortMapping: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			lab := natlab.New(t)
			site, m, h := mapper(t, lab, natlab.PortRestricted, tt.PortMapping)
			servers := startPublic(t, lab, 3, Options{})
			o := tt.o
			o.Bootstrap, o.Listen = servers, publicListen
			p := start(t, h, o)
			began := p.started
			for _, protocol := range []string{"tcp", "udp"} {
				ev := p.mustAwait("a port of "+protocol, mapped(protocol))
				t.Logf("%s mapped after %.1fs", protocol, ev.At.Sub(began).Seconds())
				to := external(t, ev)
				if to.Addr() != site.Outer4 {
					t.Errorf("%s is mapped to %s", protocol, to)
				}
				want := natlab.Mapping{Protocol: protocol, Outer: to.Port(), Inner: netip.AddrPortFrom(h.Addr4, 4001)}
				if list := forwards(t, m); !slices.Contains(list, want) {
					t.Errorf("the router forwards %v, and not %v", list, want)
				}
				part := fmt.Sprintf("/ip4/%s/%s/%d", to.Addr(), protocol, to.Port())
				p.mustAwait("announcing "+part, func(r Reply) bool {
					return r.Type == "EventAddrsChanged" && strings.Contains(string(r.Event), part)
				})
				stranger, err := lab.Host("stranger")
				if err != nil {
					t.Fatal(err)
				}
				s := start(t, stranger, Options{})
				s.must(Command{Do: "connect", Peer: p.id, Addrs: p.addrs(part)})
			}
			if tt.o.Traversal {
				ev := p.mustAwait("its verdict", judged(site.Outer4, p2pnode.ReachabilityPublic))
				t.Logf("confirmed after %.1fs", ev.At.Sub(began).Seconds())
				p.mustAwait("the node's verdict", verdict(p2pnode.ReachabilityPublic))
			}
			s := p.status().PortMapping
			if s == nil || !s.Router || len(s.Mappings) != 2 || s.Missing != "" {
				t.Errorf("Status: %+v", s)
			}
			p.must(Command{Do: "close"})
			if list := forwards(t, m); len(list) > 0 {
				t.Errorf("after Close the router forwards %v", list)
			}
		})
	}
}

// A router that maps a port and does not forward it, or tells an address that is not
// its own, is found out: peers refute the address, the node no longer announces it,
// and Diagnose names it.
func TestAPortMappingThatLiesIsNoticed(t *testing.T) {
	waits(t)
	t.Parallel()
	elsewhere := netip.MustParseAddr("5.250.0.9")
	for _, tt := range []struct {
		name   string
		claims netip.Addr
	}{{"forwards nothing", netip.Addr{}}, {"another's address", elsewhere}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			lab := natlab.New(t)
			site, m, h := mapper(t, lab, natlab.PortRestricted, natlab.PortMapping{UPnP: true, PMP: true, Claims: tt.claims})
			said := tt.claims
			if !said.IsValid() {
				said = site.Outer4
				if err := m.Deceive(); err != nil {
					t.Fatal(err)
				}
			}
			servers := startPublic(t, lab, 3, Options{})
			p := start(t, h, Options{Bootstrap: servers, Listen: publicListen, Traversal: true})
			ports := map[string]netip.AddrPort{}
			for _, protocol := range []string{"tcp", "udp"} {
				ports[protocol] = external(t, p.mustAwait("a port of "+protocol, mapped(protocol)))
				if ports[protocol].Addr() != said {
					t.Errorf("%s is mapped to %s", protocol, ports[protocol])
				}
			}
			for protocol, at := range ports {
				part := fmt.Sprintf("/ip4/%s/%s/%d", at.Addr(), protocol, at.Port())
				ev := p.mustAwait("the verdict on "+part, func(r Reply) bool {
					return judged(said, p2pnode.ReachabilityPrivate)(r) && strings.Contains(string(r.Event), part)
				})
				t.Logf("%s refuted after %.1fs", part, ev.At.Sub(p.started).Seconds())
				if list := p.addrs(part); len(list) > 0 {
					t.Errorf("it announces %q", list)
				}
			}
			for _, one := range p.status().PortMapping.Mappings {
				if one.Reachability != p2pnode.ReachabilityPrivate {
					t.Errorf("Status: %+v", one)
				}
			}
			found := p.findings(p2pnode.FindingPortMappingFails)
			if len(found) != 1 || !strings.Contains(found[0].What, ports["udp"].String()) || !strings.Contains(found[0].What, ports["tcp"].String()) {
				t.Errorf("Diagnose: %v", found)
			}
		})
	}
}

// A router that has forgotten the mappings, or was restarted, gets them again.
func TestAForgottenPortMappingComesBack(t *testing.T) {
	waits(t)
	for _, cfg := range []natlab.PortMapping{{UPnP: true}, {PMP: true}} {
		for name, forget := range map[string]func(m *natlab.PortMapper) error{
			"forgets": (*natlab.PortMapper).Forget,
			"restarts": func(m *natlab.PortMapper) error {
				if err := m.Stop(); err != nil {
					return err
				}
				return m.Start()
			},
		} {
			t.Run(fmt.Sprintf("%+v %s", cfg, name), func(t *testing.T) {
				t.Parallel()
				lab := natlab.New(t)
				_, m, h := mapper(t, lab, natlab.PortRestricted, cfg)
				p := start(t, h, Options{Listen: publicListen, PortMapping: true})
				p.mustAwait("a port of tcp", mapped("tcp"))
				p.mustAwait("a port of udp", mapped("udp"))
				if err := forget(m); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				for len(forwards(t, m)) < 2 {
					if time.Since(began) > 4*time.Minute {
						t.Fatalf("after 4 minutes the router forwards %v", forwards(t, m))
					}
					time.Sleep(time.Second) // nobody tells
				}
				t.Logf("mapped again after %v", time.Since(began).Round(time.Second))
			})
		}
	}
}
