package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode"
	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// busy is how much longer than promised things may take on a machine that does much
// else at the same time.
const busy = 3

// attempt is how long an application tries before it tries again.
const attempt Milliseconds = 3000

// promise is something that happens within a time.
type promise struct {
	what   string
	within time.Duration
	try    func() error
}

// keep tries all promises at the same time, again and again until they succeed, and
// fails the test for those that take longer since a moment than promised.
func keep(t testing.TB, since time.Time, all ...promise) {
	t.Helper()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() {
			for {
				err := p.try()
				took := time.Since(since)
				switch {
				case err == nil && took <= busy*p.within:
					t.Logf("%s after %.1fs", p.what, took.Seconds())
					return
				case err == nil:
					t.Errorf("%s after %v, promised within %v", p.what, took, p.within)
					return
				case took > patience:
					t.Errorf("%s: not after %v: %v", p.what, took, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// talk dials b by its ID, and uses a stream.
func talk(a, b *driven) error {
	if _, err := a.call(Command{Do: "connect", Peer: b.id, Timeout: attempt}); err != nil {
		return err
	}
	s, err := a.call(Command{Do: "open", Peer: b.id, Timeout: attempt})
	if err == nil {
		_, err = a.call(Command{Do: "say", Stream: s.Stream, Text: "hello", Timeout: attempt})
	}
	return err
}

// homed fits the event after which a node is reachable: it has a relay, or needs none.
func homed(r Reply) bool {
	return reserved(r) || verdict(p2pnode.ReachabilityPublic)(r)
}

// idsOf returns the peers of addresses.
func idsOf(t testing.TB, list []string) (ids []peer.ID) {
	t.Helper()
	infos, err := p2pnode.ParsePeers(list...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range infos {
		ids = append(ids, p.ID)
	}
	return ids
}

// A node whose machine moves from one LAN to another does not notice: it announces no
// address of the old one, is connected to its bootstrap peers, and peers elsewhere
// reach it by its ID, within 15 seconds.
func TestRoaming(t *testing.T) {
	waits(t)
	lab := natlab.New(t)
	servers := startPublic(t, lab, 4, Options{})
	for _, tt := range []struct {
		name     string
		from, to natlab.Network
	}{
		{"to another subnet", natlab.Network{Kind: natlab.PortRestricted}, natlab.Network{Kind: natlab.PortRestricted, Private: netip.MustParsePrefix("10.20.30.0/24")}},
		{"to the same address", natlab.Network{Kind: natlab.PortRestricted}, natlab.Network{Kind: natlab.PortRestricted}},
		{"from where it needed no relay", natlab.Network{Kind: natlab.FullCone}, natlab.Network{Kind: natlab.Symmetric, Private: netip.MustParsePrefix("10.20.30.0/24")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			from, err := lab.Site(tt.name, tt.from)
			if err != nil {
				t.Fatal(err)
			}
			to, err := lab.Site(tt.name, tt.to)
			if err != nil {
				t.Fatal(err)
			}
			h, err := from.Host("roamer")
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Bootstrap: servers, Traversal: true}
			roamer := start(t, h, o)
			known := startBehind(t, lab, tt.name+" known", natlab.Network{Kind: natlab.PortRestricted}, o)
			stranger := startBehind(t, lab, tt.name+" stranger", natlab.Network{Kind: natlab.PortRestricted}, o)
			for _, p := range []*driven{roamer, known, stranger} {
				p.mustAwait("relay", homed)
			}
			keep(t, time.Now(), promise{"connected before", 15 * time.Second, func() error { return talk(known, roamer) }})
			known.mustAwait("direct connection", opened(roamer.id, false))

			old := []string{"/" + from.Outer4.String() + "/", "/" + h.Addr4.String() + "/"}
			if err := errors.Join(h.Unplug(), to.Plug(h)); err != nil {
				t.Fatal(err)
			}
			moved := time.Now()
			if strings.Contains(old[1], h.Addr4.String()) {
				old = old[:1]
			}
			promises := []promise{
				{"no old address", 15 * time.Second, func() error {
					for _, a := range roamer.addrs("") {
						if slices.ContainsFunc(old, func(o string) bool { return strings.Contains(a, o) }) {
							return fmt.Errorf("it announces %s", a)
						}
					}
					return nil
				}},
				{"reached by a stranger", 15 * time.Second, func() error { return talk(stranger, roamer) }},
				{"reached by a peer that was connected", 15 * time.Second, func() error { return talk(known, roamer) }},
				{"reservation", 15 * time.Second, func() error { return hasReservation(roamer) }},
			}
			for _, id := range idsOf(t, servers) {
				promises = append(promises, promise{"bootstrap peer", 15 * time.Second, func() error {
					_, err := roamer.call(Command{Do: "ping", Peer: id, Timeout: attempt})
					return err
				}})
			}
			keep(t, moved, promises...)
		})
	}
}

// hasReservation fails for a node without a reservation at a relay that it is
// connected to.
func hasReservation(p *driven) error {
	r, err := p.call(Command{Do: "status"})
	if err != nil {
		return err
	}
	var status p2pnode.Status
	if err := json.Unmarshal(r.Status, &status); err != nil {
		return err
	}
	for _, relay := range status.Relays {
		if !relay.Reserved {
			continue
		}
		if _, err = p.call(Command{Do: "ping", Peer: relay.ID, Timeout: attempt}); err == nil {
			return nil
		}
	}
	return errors.Join(errors.New("it has none"), err)
}
