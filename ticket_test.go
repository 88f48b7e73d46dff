package p2pnode

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
	"github.com/go-p2pnode/p2pnode/internal/ticket"
)

// tcpOnly starts a node that can be in a private network.
func tcpOnly(t *testing.T, opts ...Option) *Node {
	t.Helper()
	n, err := New(testContext(t), append([]Option{WithListenAddrs("/ip4/127.0.0.1/tcp/0")}, opts...)...)
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, n) })
	return n
}

func TestTicketHoldsTheNetworkAndTheAddresses(t *testing.T) {
	n := newNode(t, WithNetwork("acme/chat"), WithAnnounceAddrs("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.7/tcp/1", "/dns4/acme.test/tcp/4001"))
	made, err := n.Ticket()
	mustNot(t, err)
	got, err := ParseTicket(" " + strings.ToLower(made.Text()) + "\n")
	mustNot(t, err)
	want := []peer.AddrInfo{{ID: n.ID(), Addrs: []ma.Multiaddr{ma.StringCast("/dns4/acme.test/tcp/4001"), ma.StringCast("/ip4/192.168.1.7/tcp/1")}}}
	if got.Network() != "acme/chat" || got.Public() || got.HasKey() || got.PrivateNetwork() != "" || fmt.Sprint(got.Peers()) != fmt.Sprint(want) {
		t.Errorf("%s %t %t %q %v, want the peers %v", got.Network(), got.Public(), got.HasKey(), got.PrivateNetwork(), got.Peers(), want)
	}
	if got.Text() != made.Text() || got.String() != made.Text() || !strings.HasPrefix(got.Text(), "P2PTICKET1") || len(got.Text()) > 300 {
		t.Errorf("the text is %q, then %q", made.Text(), got.Text())
	}
	// What a caller does with the peers changes no ticket.
	got.Peers()[0].Addrs[0] = nil
	if got.Peers()[0].Addrs[0] == nil {
		t.Error("Peers shares memory with the ticket")
	}
	var none Ticket
	if none.Text()+none.Network()+none.PrivateNetwork()+none.String() != "" || none.HasKey() || none.Public() || none.Peers() != nil {
		t.Errorf("the zero ticket: %v", none)
	}
}

// Tickets of the public network say so, and name no network.
func TestTicketOfThePublicNetwork(t *testing.T) {
	n := newNode(t, WithIPFS(), WithBootstrapPeers(somePeer("1")))
	made, err := n.Ticket()
	mustNot(t, err)
	if !made.Public() || made.Network() != "ipfs" {
		t.Errorf("public %t, network %q", made.Public(), made.Network())
	}
	s, err := Describe(WithIPFS(), WithTicket(made.Text()))
	mustNot(t, err)
	if len(s.Bootstrap) != 1 || s.Bootstrap[0].ID != n.ID() || !s.Public {
		t.Errorf("it leads to %+v", s.Bootstrap)
	}
}

// Several tickets of a network add up, in any order with the options that agree
// with them.
func TestTicketsAddUp(t *testing.T) {
	key := bytes.Repeat([]byte{3}, 32)
	other := peer.AddrInfo{ID: otherID(t), Addrs: somePeer("9").Addrs}
	marked := WithTicket(aTicket(t, "acme", key, somePeer("1")))
	secret := WithTicket(aTicket(t, "acme", key, somePeer("2"), TicketWithKey()))
	third := WithTicket(aTicket(t, "acme", key, other))
	for name, opts := range map[string][]Option{
		"tickets alone":      {marked, secret, third},
		"what agrees, first": {WithNetwork("acme"), WithPrivateNetwork(key), marked, third, secret},
		"what agrees, last":  {third, secret, marked, WithPrivateNetwork(key), WithNetwork("acme")},
		"the key by option":  {third, marked, WithTicket(aTicket(t, "acme", key, somePeer("2"))), WithPrivateNetwork(key), WithNetwork("acme")},
	} {
		s, err := Describe(opts...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		i := slices.IndexFunc(s.Bootstrap, func(p peer.AddrInfo) bool { return p.ID == somePeer("1").ID })
		if s.Network != "acme" || s.PrivateNetwork != fingerprint(key) || len(s.Bootstrap) != 2 || i < 0 || len(s.Bootstrap[i].Addrs) != 2 || s.MinPeers != 1 {
			t.Errorf("%s: %s %s %v", name, s.Network, s.PrivateNetwork, s.Bootstrap)
		}
	}
}

// The texts of Ticket and ParseTicket. Those of damaged tickets are in
// internal/ticket.
func TestGoldenTicket(t *testing.T) {
	hidden := newNodeWithout(t)
	encode := func(change func(*ticket.Ticket)) string {
		raw := ticket.Ticket{Network: "acme", Peers: []ticket.Peer{{ID: []byte(somePeer("1").ID), Addrs: [][]byte{somePeer("1").Addrs[0].Bytes()}}}}
		change(&raw)
		text, err := ticket.Encode(raw)
		mustNot(t, err)
		return text
	}
	parse := func(change func(*ticket.Ticket)) error { return result(ParseTicket(encode(change))) }
	golden.Check(t, "tickets of nodes", []golden.Text{
		golden.Of("no address", result(hidden.Ticket())),
		golden.Of("a key that there is not", result(bare(t).Ticket(TicketWithKey()))),
		golden.Of("an address", result(ParseTicket(someAddr))),
		golden.Of("no network", parse(func(r *ticket.Ticket) { r.Network = "a b" })),
		golden.Of("no peer ID", parse(func(r *ticket.Ticket) { r.Peers[0].ID = []byte("nonsense") })),
		golden.Of("addresses of other versions", parse(func(r *ticket.Ticket) { r.Peers[0].Addrs[0] = []byte{0xff, 0xff, 0x7f} })),
		golden.Of("addresses for listening", parse(func(r *ticket.Ticket) { r.Peers[0].Addrs[0] = ma.StringCast("/ip4/0.0.0.0/tcp/1").Bytes() })),
		golden.Of("no key", parse(func(r *ticket.Ticket) { r.Key = make([]byte, 32) })),
	})
	// Next to an address that is known, one of a later version is left out.
	got, err := ParseTicket(encode(func(r *ticket.Ticket) { r.Peers[0].Addrs = append(r.Peers[0].Addrs, []byte{0xff, 0xff, 0x7f}) }))
	if err != nil || len(got.Peers()) != 1 || len(got.Peers()[0].Addrs) != 1 {
		t.Errorf("%v, %v", got.Peers(), err)
	}
}

// newNodeWithout starts a node that has no address.
func newNodeWithout(t *testing.T) *Node {
	t.Helper()
	n, err := New(testContext(t), WithoutListening(), WithoutDHT(), WithoutPubSub())
	mustNot(t, err)
	t.Cleanup(func() { mustClose(t, n) })
	return n
}

// A ticket with the key is all it takes to join a private network; one without it
// takes the key too.
func TestTicketOfAPrivateNetwork(t *testing.T) {
	key := bytes.Repeat([]byte{0xc7}, 32)
	n := tcpOnly(t, WithNetwork("acme"), WithPrivateNetwork(key))
	without, err := n.Ticket()
	mustNot(t, err)
	with, err := n.Ticket(TicketWithKey(), nil)
	mustNot(t, err)
	if with.HasKey() == without.HasKey() || with.PrivateNetwork() != n.Status().PrivateNetwork || without.PrivateNetwork() != with.PrivateNetwork() ||
		!strings.HasPrefix(with.Text(), "P2PSECRET1") || !strings.HasPrefix(without.Text(), "P2PTICKET1") {
		t.Errorf("with the key %v, without %v", with, without)
	}
	for _, opts := range [][]Option{{WithTicket(with.Text())}, {WithPrivateNetwork(key), WithTicket(without.Text())}} {
		other := tcpOnly(t, opts...)
		mustNot(t, other.WaitReady(testContext(t)))
		if s := other.Status(); s.Network != "/acme" || s.PrivateNetwork != with.PrivateNetwork() || len(s.Peers) == 0 || s.Peers[0].ID != n.ID() {
			t.Errorf("joined %q, %s, %v", s.Network, s.PrivateNetwork, s.Peers)
		}
		// It invites others in turn.
		again, err := other.Ticket(TicketWithKey())
		if err != nil || again.PrivateNetwork() != with.PrivateNetwork() || again.Network() != "acme" {
			t.Errorf("its own ticket: %v, %v", again, err)
		}
	}
	// One ticket serves all nodes, also the one that made it.
	if self, err := New(testContext(t), WithIdentity(n.key), WithTicket(with.Text()), WithListenAddrs("/ip4/127.0.0.1/tcp/0")); err != nil {
		t.Error(err)
	} else {
		if s := self.Status(); len(self.cfg.bootstrapPeers()) != 0 || s.PrivateNetwork != with.PrivateNetwork() {
			t.Errorf("it looks for itself: %v", self.cfg.bootstrapPeers())
		}
		mustClose(t, self)
	}
}

// The key of a ticket is in its text, and nowhere else: not in logs at level Debug,
// Status, settings, events, findings, errors, or what package fmt, log/slog and
// encoding/json make of a ticket.
func TestTicketKeysDoNotShow(t *testing.T) {
	key := []byte("0123456789:;<=>?@ABCDEFGHIJKLMNO")
	var l log
	n := tcpOnly(t, l.option(), WithNetwork("acme"), WithPrivateNetwork(key))
	made, err := n.Ticket(TicketWithKey())
	mustNot(t, err)
	opts := []Option{WithTicket(made.Text()), l.option()}
	other := tcpOnly(t, opts...)
	events := other.Events(testContext(t), EventsWithState())
	mustNot(t, other.WaitReady(testContext(t)))

	var said bytes.Buffer
	type outer struct {
		Shown  Ticket
		hidden Ticket
		list   []Ticket
	}
	nested := outer{made, made, []Ticket{made}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%t", "%10.3v"} {
		fmt.Fprintf(&said, verb+"\n", made)
		fmt.Fprintf(&said, verb+"\n", &made)
		fmt.Fprintf(&said, verb+"\n", nested)
		fmt.Fprintf(&said, verb+"\n", WithTicket(made.Text()))
	}
	encode := func(v any) {
		b, err := json.Marshal(v)
		mustNot(t, err)
		said.Write(b)
		fmt.Fprintf(&said, "%+v %#v\n", v, v)
	}
	settings, err := Describe(opts...)
	mustNot(t, err)
	findings, err := other.Diagnose(testContext(t))
	mustNot(t, err)
	fmt.Fprintf(&said, "%v %+v %s %q %x\n", n, n, n, n, n)
	for _, v := range []any{made, nested, settings, n.Status(), other.Status(), findings} {
		encode(v)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&said, nil), slog.NewJSONHandler(&said, nil)} {
		slog.New(h).Info("ticket", "ticket", made, "pointer", &made, "nested", nested)
	}
	for ev := range events {
		encode(ev)
		if _, ok := ev.(EventPeerConnected); ok {
			break
		}
	}
	for _, err := range []error{
		ValidateOptions(append(opts, WithNetwork("other"), WithPrivateNetwork(bytes.Repeat([]byte{1}, 32)))...),
		ValidateOptions(append(opts, WithIPFS(), WithBannedPeers(n.ID()), WithTicket(aTicket(t, "other", nil, somePeer("1"))))...),
		ValidateOptions(append(opts, WithTransports(TransportQUIC), WithBootstrapPeers(peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/1/quic-v1")}}))...),
		ValidateOptions(WithTicket(made.Text() + "A")), ValidateOptions(WithTicket(made.Text()[:len(made.Text())-3])),
		ValidateOptions(WithTicket(strings.Replace(made.Text(), "P2PSECRET1", "P2PSECRET2", 1))), ValidateOptions(WithTicket(made.Text()[3:])),
		result(ParseTicket(made.Text()[:50] + "." + made.Text()[50:])),
		result(New(testContext(t), WithTicket(made.Text()), WithListenAddrs("/ip4/127.0.0.1/tcp/0"), WithIdentityFile("missing/directory/key"))),
		other.AddBootstrapPeers(peer.AddrInfo{ID: somePeer("1").ID, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/udp/1/quic-v1")}}),
	} {
		if err == nil {
			t.Fatal("accepted")
		}
		fmt.Fprintf(&said, "%v %+v %#v\n", err, err, err)
	}
	mustNot(t, other.Close())
	said.WriteString(l.String())
	if !strings.Contains(said.String(), "P2PSECRET1…") || !strings.Contains(said.String(), made.PrivateNetwork()) || !strings.Contains(l.String(), "connected") {
		t.Fatalf("what should be there is not:\n%s", &said)
	}
	digits := strings.Trim(fmt.Sprint(key), "[]")
	var listed []string
	for _, b := range key {
		listed = append(listed, fmt.Sprintf("0x%x", b))
	}
	base64, err := json.Marshal(key)
	mustNot(t, err)
	for what, secret := range map[string]string{
		"the text": made.Text()[10:], "the key": string(key), "its hexadecimal form": hex.EncodeToString(key), "its decimal form": digits,
		"its form in Go": strings.Join(listed, ", "), "its base64": strings.Trim(string(base64), `"`),
	} {
		for i := 0; i+12 <= len(secret); i++ {
			for _, part := range []string{secret[i : i+12], strings.ToUpper(secret[i : i+12])} {
				if at := strings.Index(said.String(), part); at >= 0 {
					t.Fatalf("%s shows: %q", what, said.String()[max(0, at-200):min(said.Len(), at+50)])
				}
			}
		}
	}
}

// A ticket comes from anywhere: whatever it is, reading it ends in a ticket that
// can be used, or in an error.
func FuzzParseTicket(f *testing.F) {
	key := bytes.Repeat([]byte{3}, 32)
	id, addr := []byte(somePeer("1").ID), somePeer("1").Addrs[0].Bytes()
	circuit := ma.StringCast(somePeer("2").Addrs[0].String() + "/p2p/" + somePeer("2").ID.String() + "/p2p-circuit")
	for _, whole := range []struct {
		key    []byte
		name   string
		addr   []byte
		secret bool
	}{
		{nil, "acme", addr, false},
		{key, "acme", addr, true},
		{key[:8], "acme", addr, false}, // a fingerprint
		{nil, "", addr, false},         // the public network
		{nil, "acme/dev_1.0-b", circuit.Bytes(), false},
		{nil, "acme", ma.StringCast("/dns4/boot.example.com/tcp/443/tls/ws").Bytes(), false},
		{nil, "acme", ma.StringCast("/ip6/2001:db8::1/udp/4001/quic-v1/webtransport").Bytes(), false},
		{nil, "acme", []byte{0xff, 0xff, 0x7f, 1, 2}, false}, // of a later version
	} {
		f.Add(whole.key, whole.name, id, whole.addr, whole.secret)
		raw := ticket.Ticket{Network: whole.name, Public: whole.name == "", Peers: []ticket.Peer{{ID: id, Addrs: [][]byte{whole.addr, addr}}}}
		if whole.secret {
			raw.Key = whole.key
		} else if len(whole.key) > 0 {
			raw.Mark = whole.key
		}
		text, err := ticket.Encode(raw)
		if err == nil {
			_, err = ParseTicket(text)
		}
		if err != nil {
			f.Errorf("the seed %+v is no ticket: %v", whole, err)
		}
	}
	f.Add(key, "a b", id, addr, true)                                  // not a name
	f.Add([]byte{}, "acme", []byte("id"), addr, false)                 // not an ID
	f.Add([]byte{}, "acme", id, []byte{4, 0, 0, 0, 0, 6, 0, 0}, false) // cannot be dialed
	f.Add([]byte{}, "acme", id, ma.StringCast("/p2p-circuit").Bytes(), false)
	f.Add([]byte{}, "acme", id, ma.StringCast("/ip4/192.0.2.1/tcp/4001/p2p/"+somePeer("2").ID.String()).Bytes(), false) // somebody else
	f.Fuzz(func(t *testing.T, key []byte, name string, id, addr []byte, secret bool) {
		raw := ticket.Ticket{Network: name, Public: name == "", Peers: []ticket.Peer{{ID: id, Addrs: [][]byte{addr, somePeer("1").Addrs[0].Bytes()}}, {ID: id, Addrs: [][]byte{addr}}}}
		switch {
		case secret:
			raw.Key = key
		case len(key) > 0:
			raw.Mark = key
		}
		text, err := ticket.Encode(raw)
		if err != nil {
			return
		}
		got, err := ParseTicket(text)
		if err != nil {
			if errors.Is(err, ticket.ErrCut) || errors.Is(err, ticket.ErrAltered) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if got.Text() != text || got.HasKey() != secret || got.HasKey() && strings.Contains(fmt.Sprint(got), text) {
			t.Errorf("%q became %q", text, got.Text())
		}
		for _, p := range got.Peers() {
			if err := checkPeer(p); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
		opts := []Option{WithTicket(text)}
		if got.PrivateNetwork() != "" && !got.HasKey() {
			return // the key is unknown
		}
		if got.Public() {
			opts = append(opts, WithIPFS())
		}
		for _, e := range OptionErrors(ValidateOptions(opts...)) {
			if e.Option != "WithTicket" {
				t.Errorf("%q: %v", text, e)
			}
		}
	})
}
