package diag

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

var (
	now     = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	silent  = Failure{"P", errors.New("connect to P: /ip4/192.0.2.1/tcp/4001: timeout")}
	hungUp  = Failure{"P", fmt.Errorf("connect to P: %w", io.EOF)}
	garbled = Failure{"P", errors.New("connect to P: failed to negotiate security protocol: message did not have trailing newline")}
	future  = Failure{"P", errors.New("x509: certificate has expired or is not yet valid: current time 2026-01-02T03:04:05Z is before 2026-01-04T00:00:00Z: bad")}
	expired = Failure{"P", errors.New("x509: certificate has expired or is not yet valid: current time 2026-01-02T03:04:05Z is after 2026-01-01T00:00:00Z")}
)

// healthy is a situation in which nothing is wrong; change makes another one.
func healthy(change ...func(*Situation)) Situation {
	s := Situation{
		Now: now,
		Company: Company{
			Peers: 3, Want: 1, Told: true, Bootstrap: 2, Looking: true,
			DHT: &DHT{Table: 2, Serves: true, Mode: "auto-server", Network: "acme", Protocols: []string{"/acme/kad/1.0.0"}},
		},
		Reach: Reach{
			Reachability: "Unknown", Listening: true,
			Announced:      []Addr{{"/ip4/127.0.0.1/tcp/1", true}, {"/ip4/192.0.2.2/tcp/1", false}},
			BootstrapAddrs: []Addr{{"/ip4/192.0.2.1/tcp/1", false}},
		},
		Machine: Machine{Signed: []Signed{{"P", now.Add(-time.Hour)}}, OpenFiles: 1024, MaxConns: 100},
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

var cases = []struct {
	name   string
	change func(*Situation)
	want   []Kind
}{
	{"healthy", func(*Situation) {}, nil},
	{"the zero value of everything but a peer", func(s *Situation) { *s = Situation{Now: now, Company: Company{Peers: 1}} }, nil},
	{"told nothing", func(s *Situation) {
		s.Company = Company{}
	}, []Kind{NobodyToFind}},
	{"a server waits for others", func(s *Situation) { s.Company = Company{Server: true} }, nil},
	{"alone, and told where to look", func(s *Situation) { s.Company = Company{Told: true} }, nil},
	{"no bootstrap peer", func(s *Situation) {
		s.Company.Peers, s.Company.BootstrapFailed = 0, []Failure{silent, silent}
	}, []Kind{NoBootstrapPeer}},
	{"one bootstrap peer of two", func(s *Situation) { s.Company.BootstrapFailed = []Failure{silent} }, nil},
	{"bootstrap peers hang up", func(s *Situation) {
		s.Company.BootstrapFailed = []Failure{hungUp, hungUp}
	}, []Kind{NoBootstrapPeer}},
	{"saved peers are gone", func(s *Situation) {
		s.Company.Bootstrap, s.Company.Peers, s.Company.Last = 0, 0, &Round{Failed: []Failure{silent}}
	}, []Kind{NoBootstrapPeer}},
	{"some saved peers are gone", func(s *Situation) {
		s.Company.Bootstrap, s.Company.Last = 0, &Round{Connected: 1, Failed: []Failure{silent}}
	}, nil},
	{"persistent peer", func(s *Situation) { s.Company.PersistentFailed = []Failure{silent} }, []Kind{PersistentMissing}},
	{"few peers", func(s *Situation) { s.Company.Want = 4 }, []Kind{FewPeers}},
	{"few peers, for no bootstrap peer", func(s *Situation) {
		s.Company.Want, s.Company.BootstrapFailed = 4, []Failure{silent, silent}
	}, []Kind{NoBootstrapPeer}},
	{"another key", func(s *Situation) {
		s.Company.Private, s.Company.BootstrapFailed = true, []Failure{garbled}
	}, []Kind{NetworkKey}},
	{"another key, cut", func(s *Situation) {
		s.Company.Private, s.Company.PersistentFailed = true, []Failure{hungUp}
	}, []Kind{PersistentMissing, NetworkKey}},
	{"no key", func(s *Situation) { s.Company.BootstrapFailed = []Failure{garbled} }, []Kind{NetworkKey}},
	{"strangers with another key", func(s *Situation) {
		s.Company = Company{Told: true, Private: true, Handshakes: 7, LastHandshake: now.Add(-time.Minute)}
	}, []Kind{NetworkKey}},
	{"strangers with another key, long ago", func(s *Situation) {
		s.Company = Company{Told: true, Private: true, Handshakes: 7, LastHandshake: now.Add(-lately)}
	}, nil},
	{"loopback", func(s *Situation) { s.Reach.Announced = s.Reach.Announced[:1] }, []Kind{LoopbackOnly}},
	{"loopback, and so are the others", func(s *Situation) {
		s.Reach.Announced = s.Reach.Announced[:1]
		s.Reach.BootstrapAddrs = s.Reach.Announced
	}, nil},
	{"client by option", func(s *Situation) { s.Company.DHT.Serves, s.Company.DHT.Client = false, true }, []Kind{DHTClient}},
	{"client by reachability", func(s *Situation) {
		s.Company.DHT.Serves, s.Reach.Reachability = false, "Private"
		s.Reach.Relays = []Relay{{Peer: "R", Reserved: true}}
	}, []Kind{DHTClient}},
	{"no DHT peer", func(s *Situation) {
		s.Company.DHT.Table, s.Company.DHT.Spoken = 0, [][]string{{"/acmee/kad/1.0.0"}, {"/ipfs/ping/1.0.0"}}
	}, []Kind{NoDHTPeer}},
	{"a DHT peer that is not in the table yet", func(s *Situation) {
		s.Company.DHT.Table, s.Company.DHT.Spoken = 0, [][]string{{"/x"}, {"/acme/kad/1.0.0"}}
	}, nil},
	{"nobody has told what it speaks", func(s *Situation) { s.Company.DHT.Table = 0 }, nil},
	{"UDP", func(s *Situation) { s.Reach.UDPBlocked = true }, []Kind{UDPBlocked}},
	{"nobody answers AutoNAT's questions", func(s *Situation) { s.Reach.Asks, s.Reach.Unasked = true, 3 }, []Kind{NoAutoNATPeer}},
	{"nobody is there to answer", func(s *Situation) { s.Reach.Asks = true }, nil},
	{"one peer answers AutoNAT's questions", func(s *Situation) { s.Reach.Asks, s.Reach.Unasked, s.Reach.Asked = true, 2, 1 }, nil},
	{"NAT", func(s *Situation) { s.Reach.Reachability = "Private" }, []Kind{NATWithoutRelay}},
	{"NAT, and relays are looked for", func(s *Situation) { s.Reach.Reachability, s.Reach.Looks = "Private", true }, []Kind{NATWithoutRelay}},
	{"NAT, and no relay was found", func(s *Situation) {
		s.Reach.Reachability, s.Reach.Looks, s.Reach.Sought = "Private", true, "the DHT has no relay"
	}, []Kind{NATWithoutRelay}},
	{"no reservation", func(s *Situation) {
		s.Reach.Relays = []Relay{{Peer: "R", Missing: "it is not connected"}, {Peer: "S", Missing: "it is not a relay"}}
	}, []Kind{NoReservation}},
	{"a port mapping that fails", func(s *Situation) {
		s.Reach.Ports = []Port{{Text: "udp 192.0.2.9:5001", Refuted: true}, {Text: "tcp 192.0.2.9:5001"}}
	}, []Kind{PortMappingFails}},
	{"a port mapping behind another NAT", func(s *Situation) {
		s.Reach.Ports = []Port{{Text: "udp 100.64.0.2:5001", Refuted: true, Inside: true}}
	}, []Kind{PortMappingFails}},
	{"a port mapping that works", func(s *Situation) {
		s.Reach.Ports = []Port{{Text: "udp 192.0.2.9:5001"}}
	}, nil},
	{"no port mapping", func(s *Situation) {
		s.Reach.Reachability, s.Reach.Unmapped = "Private", "no router on the LAN answers to PCP, NAT-PMP or UPnP"
	}, []Kind{NATWithoutRelay, NoPortMapping}},
	{"no port mapping, and none needed", func(s *Situation) {
		s.Reach.Reachability, s.Reach.Unmapped = "Private", "no router on the LAN answers to PCP, NAT-PMP or UPnP"
		s.Reach.Relays = []Relay{{Peer: "R", Reserved: true}}
	}, nil},
	{"a reservation of two", func(s *Situation) {
		s.Reach.Relays = []Relay{{Peer: "R", Missing: "it is not connected"}, {Peer: "S", Reserved: true}}
	}, nil},
	{"the clock, by a certificate", func(s *Situation) { s.Company.BootstrapFailed = []Failure{expired, future} },
		[]Kind{NoBootstrapPeer, ClockBehind}},
	{"an expired certificate", func(s *Situation) { s.Company.BootstrapFailed = []Failure{expired} }, nil},
	{"the clock, by an address", func(s *Situation) { s.Machine.Signed[0].At = now.Add(2 * time.Hour) }, []Kind{ClockBehind}},
	{"one of two is ahead", func(s *Situation) {
		s.Machine.Signed = []Signed{{"P", now.Add(2 * time.Hour)}, {"Q", now}}
	}, nil},
	{"two of three are ahead", func(s *Situation) {
		s.Machine.Signed = []Signed{{"P", now}, {"Q", now.Add(2 * time.Hour)}, {"R", now.Add(time.Hour)}}
	}, []Kind{ClockBehind}},
	{"no clock at all", func(s *Situation) { s.Machine.Signed[0].At = now.Add(2 * clockNonsense) }, nil},
	{"a peer that is deaf", func(s *Situation) { s.Messaging.Deaf = []string{"QmDeaf"} }, []Kind{DeafPeer}},
	{"messages signed otherwise", func(s *Situation) { s.Messaging.Unsuited = []string{"QmOther"} }, []Kind{Signatures}},
	{"messages that are rejected", func(s *Situation) { s.Messaging.Rejected = []string{"QmOther"} }, []Kind{Rejected}},
	{"peers that are graylisted", func(s *Situation) { s.Messaging.Graylisted = []string{"QmEvil"} }, []Kind{Graylisted}},
	{"a validator that panics", func(s *Situation) { s.Messaging.Panicked = []string{"news"} }, []Kind{ValidatorPanics}},
	{"too many messages", func(s *Situation) { s.Messaging.Overrun = []Flood{{"news", now.Add(-time.Minute)}} }, []Kind{Overrun}},
	{"too many messages, long ago", func(s *Situation) { s.Messaging.Overrun = []Flood{{"news", now.Add(-lately)}} }, nil},
	{"peers behind relays with limits", func(s *Situation) { s.Messaging.Limited = []string{"QmHidden"} }, []Kind{NotOverRelays}},
	{"files", func(s *Situation) { s.Machine.OpenFiles = 199 }, []Kind{FewFiles}},
	{"files, not known", func(s *Situation) { s.Machine.OpenFiles = 0 }, nil},
	{"refused", func(s *Situation) {
		s.Machine.Refused, s.Machine.LastRefusal = `{"connsPerIP":1}`, now.Add(-time.Minute)
	}, []Kind{LimitsRefuse}},
	{"refused long ago", func(s *Situation) {
		s.Machine.Refused, s.Machine.LastRefusal = `{"connsPerIP":1}`, now.Add(-lately)
	}, nil},
	{"files that were damaged", func(s *Situation) { s.Machine.Warnings = []string{"bans was damaged"} }, []Kind{DamagedFiles}},
}

func TestJudge(t *testing.T) {
	seen := make(map[Kind]bool)
	for _, c := range cases {
		var got []Kind
		for _, f := range Judge(healthy(c.change)) {
			got = append(got, f.Kind)
			seen[f.Kind] = true
			if f.What == "" || f.Do == "" {
				t.Errorf("%s: half a finding: %+v", c.name, f)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: found %q, want %q", c.name, got, c.want)
		}
	}
	for _, k := range kinds(t) {
		if !seen[k] {
			t.Errorf("%s is found in no case", k)
		}
	}
}

// kinds are the constants of the type.
func kinds(t *testing.T) (list []Kind) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "diag.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := range ast.Preorder(file) {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			continue
		}
		if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Kind" {
			text, _ := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value) // it was parsed
			list = append(list, Kind(text))
		}
	}
	if len(list) < 15 {
		t.Fatalf("only %q are in diag.go", list)
	}
	return list
}

// TestGoldenFindings keeps the texts of findings.
func TestGoldenFindings(t *testing.T) {
	var texts []golden.Text
	for _, c := range cases {
		for _, f := range Judge(healthy(c.change)) {
			texts = append(texts, golden.Text{Name: string(f.Kind) + ", " + c.name, Text: f.What + "\n" + f.Do})
		}
	}
	golden.Check(t, "findings", texts)
}

func TestGoldenWhy(t *testing.T) {
	alone := func(change func(*Company)) Company {
		c := Company{Told: true, Looking: true, DHT: &DHT{Protocols: []string{"/acme/kad/1.0.0"}}}
		change(&c)
		return c
	}
	var list []golden.Text
	for _, c := range []struct {
		name string
		Company
	}{
		{"told nothing", alone(func(c *Company) { c.Told, c.Looking = false, false })},
		{"first round", alone(func(*Company) {})},
		{"failed round", alone(func(c *Company) { c.Last = &Round{Connected: 1, Failed: []Failure{silent}} })},
		{"persistent peers", alone(func(c *Company) { c.Looking, c.PersistentErrs = false, []string{"connect to P: timeout"} })},
		{"nobody serves", alone(func(c *Company) { c.Peers = 1 })},
	} {
		list = append(list, golden.Text{Name: c.name, Text: c.Few(2) + "\n" + c.NoRoutes()})
		enough := c.Company
		enough.Peers, enough.DHT = 2, &DHT{Table: 1}
		if why := enough.Few(2) + enough.NoRoutes(); why != "" {
			t.Errorf("%s: enough, and yet: %s", c.name, why)
		}
	}
	for _, r := range []Reach{
		{Reachability: "Unknown"},
		{Reachability: "Private", Relays: []Relay{{Peer: "R", Missing: "it is not a relay"}}},
	} {
		list = append(list, golden.Text{Name: "unreachable", Text: r.Unreachable()})
	}
	for _, r := range []Reach{
		{Reachability: "Public"},
		{Reachability: "Private", Relays: []Relay{{Peer: "R", Missing: "it is not a relay"}, {Peer: "S", Reserved: true}}},
	} {
		if why := r.Unreachable(); why != "" {
			t.Errorf("reachable, and yet: %s", why)
		}
	}
	if why := (Company{}).NoRoutes(); why != "" {
		t.Errorf("without a DHT: %s", why)
	}
	golden.Check(t, "what is waited for", list)
}

// answer is a connection on which everything is said already.
type answer struct{ io.Reader }

func (answer) Write(p []byte) (int, error) { return len(p), nil }
func (answer) Close() error                { return nil }

// Whatever bytes another key makes of a handshake, they are taken for it.
func TestEveryGarbledHandshakeIsKnown(t *testing.T) {
	source := rand.NewChaCha8([32]byte{1})
	seen := make(map[string]int)
	replies := 100_000
	if testing.Short() {
		replies = 10_000
	}
	for range replies {
		reply := make([]byte, 2048)
		_, _ = source.Read(reply)
		if source.Uint64()%4 == 0 { // a small length is rare, and so is a newline at the end
			length := 1 + source.Uint64()%100
			reply[0], reply[length] = byte(length), '\n'
		}
		_, err := multistream.SelectOneOf([]string{"/noise", "/tls/1.0.0"}, answer{bytes.NewReader(reply)})
		if garbled, _ := broken([]Failure{{"P", fmt.Errorf("failed to negotiate security protocol: %w", err)}}); !garbled {
			t.Fatalf("not known: %v", err)
		}
		seen[err.Error()]++
	}
	if len(seen) < 5 {
		t.Errorf("only these came up: %v", seen)
	}
}
