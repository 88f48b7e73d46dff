package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-p2pnode/p2pnode"
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

// verdict returns a test for an event by which a node says what it has found out
// about itself.
func verdict(want p2pnode.Reachability) func(Reply) bool {
	return func(r Reply) bool {
		var ev struct {
			Reachability p2pnode.Reachability `json:"reachability"`
		}
		return r.Type == "EventReachabilityChanged" && json.Unmarshal(r.Event, &ev) == nil && ev.Reachability == want
	}
}

// reachable is what a node behind a router finds out about itself. One behind an
// address-restricted NAT is public to those that it asks, and keeps its relays.
func reachable(k natlab.Kind) p2pnode.Reachability {
	if k.DialedBack() {
		return p2pnode.ReachabilityPublic
	}
	return p2pnode.ReachabilityPrivate
}

// sure reports whether hole punching, where it is possible, connects two peers every
// time. Over TCP alone it does not: the three attempts of upstream fail together now
// and then.
func sure(a, b natlab.Kind) bool {
	return a == natlab.Public || b == natlab.Public || a != natlab.NoUDP && b != natlab.NoUDP
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
func meet(a, b *driven, possible, sure bool) (m meeting, err error) {
	var addrs []string // the library finds them
	if *raw {
		addrs = b.addrs("p2p-circuit")
		if len(addrs) == 0 {
			addrs = b.addrs("")
		}
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
	if !possible || !sure {
		punched, err := givenUp(b, a)
		if err != nil {
			return m, err
		}
		possible = possible && punched
	}
	var second Reply
	for times := 1; ; times++ {
		if possible {
			then, err := a.await(nth(times, isDirect))
			if err != nil {
				return m, fmt.Errorf("no direct connection: %w", err)
			}
			m.then, m.took = then.Path, then.At.Sub(conn.At)
		}
		if len(a.find(isDirect)) > 0 != possible {
			return m, fmt.Errorf("a direct connection: %v, expected %v", !possible, possible)
		}
		// The stream goes on, and another one takes the best path.
		if err := speak(stream.Stream, "after"); err != nil {
			return m, fmt.Errorf("the first stream, %s: %w", stream.Path, err)
		}
		if second, err = a.call(Command{Do: "open", Peer: b.id}); err != nil {
			return m, err
		}
		if (second.Path != "relayed") == possible {
			break
		}
		// What only one side takes for a connection ends, and the hole is punched again.
		if !possible {
			return m, fmt.Errorf("the second stream is %s", second.Path)
		}
		if _, err := a.await(nth(times, closedDirect(b.id))); err != nil {
			return m, errors.New("the second stream is relayed, beside a direct connection")
		}
	}
	m.kept = possible && stream.Path == "relayed"
	return m, speak(second.Stream, "second")
}

// nth fits the nth event that another predicate fits.
func nth(n int, fits func(Reply) bool) func(Reply) bool {
	return func(r Reply) bool {
		if fits(r) {
			n--
		}
		return n == 0
	}
}

// givenUp waits until the peer that was dialed through a relay has punched a hole, or
// has tried three times to.
func givenUp(b, a *driven) (punched bool, err error) {
	if *raw {
		time.Sleep(45 * time.Second) // upstream has no event
		return len(a.find(opened(b.id, false))) > 0, nil
	}
	tries, isDirect := 0, opened(a.id, false)
	_, err = b.await(func(r Reply) bool {
		var ev struct {
			ID  string `json:"id"`
			Err string `json:"err"`
		}
		if r.Type == "EventHolePunched" && json.Unmarshal(r.Event, &ev) == nil && ev.ID == a.id.String() && ev.Err != "" {
			tries++
		}
		punched = isDirect(r)
		return tries == 3 || punched
	})
	if err != nil {
		err = fmt.Errorf("three attempts to punch a hole: %w", err)
	}
	return punched, err
}

// Every NAT against every NAT, with WithNATTraversal and bootstrap peers alone: nodes
// find out what they are behind and get relays, Connect by ID connects them at once,
// and soon directly wherever that is possible. Streams go on meanwhile.
func TestNATByNAT(t *testing.T) {
	waits(t)
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
				if *raw {
					o.Relays = servers[:4]
				} else {
					o.Traversal = true
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
				default:
					said := p.mustAwait("verdict", verdict(reachable(k)))
					t.Logf("%s: %s after %.1fs", name, reachable(k), said.At.Sub(p.started).Seconds())
					if k == natlab.Public {
						return
					}
					relay := p.mustAwait("reservation", func(r Reply) bool {
						// Whom a full cone lets in tells the node that it needs no relay.
						return reserved(r) || k == natlab.FullCone && verdict(p2pnode.ReachabilityPublic)(r)
					})
					t.Logf("%s: reachable after %.1fs", name, relay.At.Sub(p.started).Seconds())
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
				if natlab.Direct(k, l) != possible {
					continue
				}
				wg.Go(func() {
					if possible {
						room <- struct{}{}
						defer func() { <-room }()
					}
					m, err := meet(peers[fmt.Sprint(k, " A")], peers[fmt.Sprint(l, " B")], possible, sure(k, l))
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
