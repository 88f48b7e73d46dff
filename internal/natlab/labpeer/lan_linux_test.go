package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// found fits the discovery of a peer by mDNS.
func found(id peer.ID) func(Reply) bool {
	return func(r Reply) bool {
		var ev struct {
			ID     string `json:"id"`
			Source string `json:"source"`
		}
		return r.Type == "EventPeerFound" && json.Unmarshal(r.Event, &ev) == nil && ev.Source == "mdns" && ev.ID == id.String()
	}
}

// finds is that a finds b on the LAN, and is connected to it.
func finds(a, b *driven) promise {
	return promise{a.name + " finds " + b.name, 5 * time.Second, func() error {
		if _, err := a.await(found(b.id)); err != nil {
			return err
		}
		_, err := a.await(opened(b.id, false))
		return err
	}}
}

// Nodes of one LAN find each other by multicast DNS, those of two LANs do not, nor do
// those with another service name or of another network. A machine that gets its
// network later, or another one, takes part at once.
func TestMDNSOnLANs(t *testing.T) {
	if testing.Short() {
		t.Skip("it has 10 processes: run without -short")
	}
	lab := natlab.New(t)
	private := natlab.Network{Kind: natlab.PortRestricted}
	one, two := must(lab.Site("one", private))(t), must(lab.Site("two", private))(t)
	host := func(site *natlab.Site, name string) *natlab.Host { return must(site.Host(name))(t) }

	// Two of each sort, so that each has somebody to find.
	sorts := []struct {
		name string
		site *natlab.Site
		o    Options
	}{
		{"one", one, Options{MDNS: true}},
		{"two", two, Options{MDNS: true}},
		{"service", one, Options{Service: "_lab-other._udp"}},
		{"network", one, Options{MDNS: true, Network: "other"}},
	}
	peers := map[string][]*driven{}
	var all []promise
	began := time.Now()
	for _, s := range sorts {
		for i := range 2 {
			peers[s.name] = append(peers[s.name], start(t, host(s.site, fmt.Sprint(s.name, " ", i)), s.o))
		}
		a, b := peers[s.name][0], peers[s.name][1]
		all = append(all, finds(a, b), finds(b, a))
		began = b.started
	}
	keep(t, began, all...)

	late := host(one, "late")
	if err := late.Unplug(); err != nil {
		t.Fatal(err)
	}
	latecomer := start(t, late, Options{MDNS: true})
	if err := one.Plug(late); err != nil {
		t.Fatal(err)
	}
	keep(t, time.Now(), finds(latecomer, peers["one"][0]), finds(peers["one"][1], latecomer))

	if err := late.Unplug(); err != nil {
		t.Fatal(err)
	}
	if err := two.Plug(late); err != nil {
		t.Fatal(err)
	}
	keep(t, time.Now(), finds(latecomer, peers["two"][0]), finds(peers["two"][1], latecomer))

	for a, list := range peers {
		for b, others := range peers {
			for _, p := range list {
				for _, q := range others {
					if a != b && len(p.find(found(q.id))) > 0 {
						t.Errorf("%s found %s", p.name, q.name)
					}
				}
			}
		}
	}
}
