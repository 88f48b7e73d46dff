package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

var raw = flag.Bool("raw", false, "fill the table with hosts of libp2p assembled by hand, and print it without judging")

// publicPort is where public nodes listen.
var publicListen = []string{"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"}

// startPublic starts public nodes that bootstrap each other, and returns their
// addresses.
func startPublic(t testing.TB, lab *natlab.Lab, n int, o Options) (addrs []string) {
	t.Helper()
	o.Server, o.Listen = true, publicListen
	for i := range n {
		h, err := lab.Host(fmt.Sprint("public ", i))
		if err != nil {
			t.Fatal(err)
		}
		o.Bootstrap = addrs
		p := start(t, h, o)
		addrs = append(slices.Clip(addrs),
			fmt.Sprintf("/ip4/%s/udp/4001/quic-v1/p2p/%s", h.Addr4, p.id),
			fmt.Sprintf("/ip4/%s/tcp/4001/p2p/%s", h.Addr4, p.id))
	}
	return addrs
}

// startBehind starts a peer on a host behind a router of its own.
func startBehind(t testing.TB, lab *natlab.Lab, name string, network natlab.Network, o Options) *driven {
	t.Helper()
	site, err := lab.Site(name, network)
	if err != nil {
		t.Fatal(err)
	}
	h, err := site.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, h, o)
}

// direct reports whether hole punching can connect peers behind two routers:
// unless one side sends from a port that the other does not know and would have
// to.
func direct(a, b natlab.Kind) bool {
	byPort := func(k natlab.Kind) bool {
		return k != natlab.Public && k != natlab.FullCone && k != natlab.AddressRestricted
	}
	return !(a == natlab.Symmetric && byPort(b) || b == natlab.Symmetric && byPort(a))
}

// meeting is what became of two peers.
type meeting struct {
	first string        // the path that Connect found
	then  string        // the path after that; "" if it remained the only one
	took  time.Duration // from the first to the second
	// kept is true if a stream that was opened on the relayed connection was used
	// after the direct one was open.
	kept bool
}

func (m meeting) String() string {
	switch {
	case m.then != "":
		return fmt.Sprintf("%s %.2fs", m.then, m.took.Seconds())
	case m.first == "relayed":
		return "relayed"
	default:
		return m.first + " 0s"
	}
}

// meet connects a to b, and uses streams before and after hole punching.
func meet(a, b *driven, possible bool) (m meeting, err error) {
	addrs := b.addrs("p2p-circuit")
	if len(addrs) == 0 {
		addrs = b.addrs("")
	}
	if _, err := a.call(Command{Do: "connect", Peer: b.id, Addrs: addrs}); err != nil {
		return m, err
	}
	// speak uses a stream in both directions.
	speak := func(stream int, text string) error {
		r, err := a.call(Command{Do: "say", Stream: stream, Text: text})
		if err == nil && r.Text != text {
			err = fmt.Errorf("the echo of %q is %q", text, r.Text)
		}
		return err
	}
	stream, err := a.call(Command{Do: "open", Peer: b.id})
	if err != nil {
		return m, err
	}
	if err := speak(stream.Stream, "before"); err != nil {
		return m, err
	}
	isDirect, isRelayed := opened(b.id, false), opened(b.id, true)
	ofBoth := func(r Reply) bool { return isDirect(r) || isRelayed(r) }
	conn, err := a.await(ofBoth)
	if err != nil {
		return m, err
	}
	m.first = conn.Path
	if m.first != "relayed" {
		return m, nil
	}
	if possible {
		then, err := a.await(isDirect)
		if err != nil {
			return m, fmt.Errorf("no direct connection: %w", err)
		}
		m.then, m.took = then.Path, then.At.Sub(conn.At)
	} else if err := givenUp(b, a); err != nil {
		return m, err
	}
	if len(a.find(isDirect)) > 0 != possible {
		return m, fmt.Errorf("a direct connection: %v, expected %v", !possible, possible)
	}
	// The stream goes on, and another one takes the best path.
	if err := speak(stream.Stream, "after"); err != nil {
		return m, fmt.Errorf("the first stream, %s: %w", stream.Path, err)
	}
	m.kept = possible && stream.Path == "relayed"
	second, err := a.call(Command{Do: "open", Peer: b.id})
	if err != nil {
		return m, err
	}
	if (second.Path != "relayed") != possible {
		return m, fmt.Errorf("the second stream is %s", second.Path)
	}
	return m, speak(second.Stream, "second")
}

// givenUp waits until the peer that was dialed through a relay has tried three times
// to punch a hole.
func givenUp(b, a *driven) error {
	if *raw {
		time.Sleep(45 * time.Second) // upstream has no event
		return nil
	}
	tries := 0
	_, err := b.await(func(r Reply) bool {
		var ev struct {
			ID  string `json:"id"`
			Err string `json:"err"`
		}
		if r.Type == "EventHolePunched" && json.Unmarshal(r.Event, &ev) == nil && ev.ID == a.id.String() && ev.Err != "" {
			tries++
		}
		return tries == 3
	})
	if err != nil {
		err = fmt.Errorf("three attempts to punch a hole: %w", err)
	}
	return err
}

// Every NAT against every NAT: peers that know public nodes are connected at once,
// and soon directly wherever that is possible. Streams go on meanwhile.
func TestNATByNAT(t *testing.T) {
	if testing.Short() {
		t.Skip("it has 20 processes: run without -short")
	}
	lab := natlab.New(t)
	servers := startPublic(t, lab, 4, Options{Raw: *raw})
	kinds := natlab.Kinds()
	var mu sync.Mutex
	peers := map[string]*driven{}
	var wg sync.WaitGroup
	for _, k := range kinds {
		for _, side := range []string{"A", "B"} {
			wg.Go(func() {
				name := fmt.Sprint(k, " ", side)
				o := Options{Raw: *raw, Bootstrap: servers}
				if *raw || k != natlab.Public {
					o.Relays = servers[:4]
				}
				p := startBehind(t, lab, name, natlab.Network{Kind: k}, o)
				mu.Lock()
				peers[name] = p
				mu.Unlock()
				switch {
				case *raw:
					// It says nothing, so that it is asked. Some never get an address.
					began := time.Now()
					for k != natlab.Public && len(p.addrs("p2p-circuit")) == 0 && time.Since(began) < 2*time.Minute {
						time.Sleep(100 * time.Millisecond)
					}
					t.Logf("%s has %d circuit addresses after %v", name, len(p.addrs("p2p-circuit")), time.Since(began).Round(time.Second))
				case k != natlab.Public:
					p.mustAwait("reservation", func(r Reply) bool { return r.Type == "EventRelayReserved" })
				}
			})
		}
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// Those that remain relayed take longest: they begin. A few of the others at a
	// time, so that they do not wait for each other.
	room := make(chan struct{}, 4)
	table := map[[2]natlab.Kind]string{}
	kept := 0
	meetings := func(possible bool) {
		for _, k := range kinds {
			for _, l := range kinds {
				if direct(k, l) != possible {
					continue
				}
				wg.Go(func() {
					if possible {
						room <- struct{}{}
						defer func() { <-room }()
					}
					m, err := meet(peers[fmt.Sprint(k, " A")], peers[fmt.Sprint(l, " B")], possible)
					mu.Lock()
					defer mu.Unlock()
					table[[2]natlab.Kind{k, l}] = m.String()
					if m.kept {
						kept++
					}
					switch {
					case err == nil:
					case *raw:
						table[[2]natlab.Kind{k, l}] = "none"
						if m.first != "" {
							table[[2]natlab.Kind{k, l}] = m.first
						}
						t.Logf("%s × %s: %v", k, l, err)
					default:
						t.Errorf("%s × %s: %v", k, l, err)
					}
				})
			}
		}
	}
	meetings(false)
	meetings(true)
	wg.Wait()
	if kept == 0 && !t.Failed() && !*raw {
		t.Error("no stream was opened on a relayed connection and used after it was replaced")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n| A dials, B |")
	for _, k := range kinds {
		fmt.Fprintf(&b, " %s |", k)
	}
	fmt.Fprintf(&b, "\n|%s\n", strings.Repeat("---|", len(kinds)+1))
	for _, k := range kinds {
		fmt.Fprintf(&b, "| %s |", k)
		for _, l := range kinds {
			fmt.Fprintf(&b, " %s |", table[[2]natlab.Kind{k, l}])
		}
		b.WriteByte('\n')
	}
	t.Log(b.String(), "\nstreams kept: ", kept)
}
