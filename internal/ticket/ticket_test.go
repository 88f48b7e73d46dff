package ticket

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// some returns a ticket with three addresses, one of them through a relay.
func some() Ticket {
	id := append(bytes.Clone(ed25519), bytes.Repeat([]byte{7}, 32)...)
	return Ticket{
		Network: "acme-chat",
		Peers: []Peer{{ID: id, Addrs: [][]byte{
			ma.StringCast("/ip4/192.0.2.1/udp/4001/quic-v1").Bytes(),
			ma.StringCast("/ip4/192.0.2.1/tcp/4001").Bytes(),
			ma.StringCast("/ip4/198.51.100.7/udp/4001/quic-v1/p2p/12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE/p2p-circuit").Bytes(),
		}}},
	}
}

// all are tickets of every kind.
func all() map[string]Ticket {
	public, secret, marked, many := some(), some(), some(), some()
	public.Public, public.Network = true, ""
	secret.Key = bytes.Repeat([]byte{0xa5}, KeySize)
	marked.Mark = []byte("12345678")
	many.Peers = append(many.Peers, Peer{ID: []byte("\x12\x20" + strings.Repeat("x", 32)), Addrs: many.Peers[0].Addrs[:1]})
	return map[string]Ticket{"plain": some(), "public": public, "with a key": secret, "without its key": marked, "two peers": many}
}

func text(t testing.TB, ticket Ticket) string {
	t.Helper()
	s, err := Encode(ticket)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The form of version 1 stays what it is: these texts were given to others.
func TestFormStays(t *testing.T) {
	for name, want := range map[string]string{
		"plain":           "P2PTICKET1P4AASYLDNVSS2Y3IMF2ACIAHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4BQWBGAAABADEICB6Q42AYIATAAAAQBAYH2CNQEYYZWIB4RAIH2DTIDUUBSMABEBAAREIHEK3OCUCSMMU5DUAVVQHSWZIIXVHORMZYWPXBRI2BRJ73KR37XFGRAELNYLNMQ",
		"public":          "P2PTICKET1OUAQCIAHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4BQWBGAAABADEICB6Q42AYIATAAAAQBAYH2CNQEYYZWIB4RAIH2DTIDUUBSMABEBAAREIHEK3OCUCSMMU5DUAVVQHSWZIIXVHORMZYWPXBRI2BRJ73KR37XFGRAFZ55OJMQ",
		"with a key":      "P2PSECRET1UAAQECLBMNWWKLLDNBQXJJNFUWS2LJNFUWS2LJNFUWS2LJNFUWS2LJNFUWS2LJNFUWS2LJNFAEQAOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYDBMCMAAACAGIQED5BZUBQQBGAAABACBQPUE3AJRRTMQDZCAQPUHGQHJIDEYACICABCIQOIVW4FIFEYZJ2HIBLLAPFNSQRPKO5CZTRM7ODCRUDCT7WVDX7OKNCAKL7SP4O",
		"without its key": "P2PTICKET1RAAQECLBMNWWKLLDNBQXIMJSGM2DKNRXHAASABYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHAMFQJQAAAIAZCAQPUHGQGCAEYAAAEAIGB6QTMBGGGNSAPEICB6Q42A5FAMTAAJAIAEJCBZCW3QVAUTDFHI5AFNMB4VWKCF5J3ULGOFT5YMKGQMKP62UO75ZJUIBPHYIIC4",
		"two peers":       "P2PTICKET1WAAQACLBMNWWKLLDNBQXIARAA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQOBYHA4DQGCYEYAAAEAMRAIH2DTIDBACMAAACAEDA7IJWATDDGZAHSEBA7IONAOSQGJQAEQEACERA4RLNYKQKJRSTUOQCWWA6K3FBC6U52FTHCZ64GFDIGFH7NKHP64U2EARCCIQHQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6DYPB4HQ6ABBMCMAAACAGIQED5BZUB7VLN5PY",
	} {
		if got := text(t, all()[name]); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for name, want := range all() {
		s := text(t, want)
		got, err := Decode(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			t.Errorf("%s: %q has characters that need more than 5.5 bits in a QR code", name, s)
		}
		if secret := strings.HasPrefix(s, "P2PSECRET1"); secret != (want.Key != nil) {
			t.Errorf("%s: begins with %.10s", name, s)
		}
		if len(s) > 300 {
			t.Errorf("%s: %d characters for three addresses", name, len(s))
		}
		// As copied out of a mail, or typed.
		var lines strings.Builder
		for line := range slices.Chunk([]byte(strings.ToLower(s)), 40) {
			fmt.Fprintf(&lines, "\ufeff  %s\u00a0\r\n\t", line)
		}
		if got, err := Decode(lines.String()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, over several lines: %+v, %v", name, got, err)
		}
	}
}

// Every beginning of a ticket is cut short, and every other change of a character
// is noticed.
func TestDamage(t *testing.T) {
	for name, ticket := range all() {
		s := text(t, ticket)
		for n := 1; n < len(s); n++ {
			if _, err := Decode(s[:n]); !errors.Is(err, ErrCut) {
				t.Errorf("%s: the first %d of %d characters: %v", name, n, len(s), err)
			}
			if _, err := Decode(s[n:]); !errors.Is(err, ErrNot) && !errors.Is(err, ErrCut) {
				t.Errorf("%s: without the first %d characters: %v", name, n, err)
			}
		}
		for i := range s {
			for _, c := range "AQZ27190.-" {
				if s[i] == byte(c) {
					continue
				}
				_, err := Decode(s[:i] + string(c) + s[i+1:])
				want := []error{ErrAltered}
				switch {
				case i < len(plainHead):
					want = []error{ErrNot}
				case i == len(plainHead) && c >= '0' && c <= '9':
					want = []error{ErrNewer}
				case i == len(plainHead)+1 || i == len(plainHead)+2 || i == len(plainHead)+3 || i == len(plainHead)+4: // the length
					want = append(want, ErrCut)
				}
				if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
					t.Errorf("%s: %q at %d: %v", name, c, i, err)
				}
			}
		}
		for _, more := range []string{"A", "=", ".", s} {
			if _, err := Decode(s + more); !errors.Is(err, ErrAltered) {
				t.Errorf("%s, with %q behind it: %v", name, more, err)
			}
		}
	}
	// A ticket with a key does not become one without by its head.
	s := text(t, all()["with a key"])
	if _, err := Decode("P2PTICKET" + strings.TrimPrefix(s, "P2PSECRET")); !errors.Is(err, ErrAltered) {
		t.Errorf("another head: %v", err)
	}
}

// forged returns a text whose length and checksum are right, whatever the rest is.
func forged(head string, body []byte) string {
	total := len(body) + sumSize + 1
	if total > 0x7f {
		total++
	}
	b := append(binary.AppendUvarint(nil, uint64(total)), body...)
	return head + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(append(b, sum(head, b)...))
}

// What no program writes is refused, although its checksum is right.
func TestForged(t *testing.T) {
	peers := []byte{1, 2, 'i', 'd', 1, 1, 'a'}
	with := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	name := []byte{0, 1, 'n'}
	long := with([]byte{38}, ed25519, bytes.Repeat([]byte{7}, 32))
	if _, err := Decode(forged("P2PTICKET1", with(name, peers))); err != nil {
		t.Fatal(err) // the rows below break one thing each
	}
	for what, row := range map[string]struct {
		head string
		body []byte
		want error
	}{
		"a flag of later versions":       {"P2PTICKET1", with([]byte{4, 1, 'n'}, peers), ErrNewer},
		"another version":                {"P2PTICKET2", with(name, peers), ErrNewer},
		"nothing":                        {"P2PTICKET1", nil, ErrAltered},
		"no network":                     {"P2PTICKET1", with([]byte{0, 0}, peers), ErrAltered},
		"a network too long":             {"P2PTICKET1", with([]byte{0, 129, 1}, bytes.Repeat([]byte("n"), 129), peers), ErrAltered},
		"a network of which half is not": {"P2PTICKET1", []byte{0, 9, 'n'}, ErrAltered},
		"a secret without a key":         {"P2PSECRET1", with(name, peers), ErrAltered},
		"a secret public network":        {"P2PSECRET1", with([]byte{3}, bytes.Repeat([]byte{1}, 32), peers), ErrAltered},
		"half a key":                     {"P2PSECRET1", []byte{2, 1, 'n', 1, 2, 3}, ErrAltered},
		"no peers":                       {"P2PTICKET1", with(name, []byte{0}), ErrAltered},
		"too many peers":                 {"P2PTICKET1", with(name, []byte{9}, bytes.Repeat(peers[1:], 9)), ErrAltered},
		"fewer peers than it says":       {"P2PTICKET1", with(name, []byte{2}, peers[1:]), ErrAltered},
		"a peer without an ID":           {"P2PTICKET1", with(name, []byte{1, 0, 1, 1, 'a'}), ErrAltered},
		"an ID too long":                 {"P2PTICKET1", with(name, []byte{1, 129, 1}, bytes.Repeat([]byte("i"), 129), []byte{1, 1, 'a'}), ErrAltered},
		"an ID in its long form":         {"P2PTICKET1", with(name, []byte{1}, long, []byte{1, 1, 'a'}), ErrAltered},
		"a peer without addresses":       {"P2PTICKET1", with(name, []byte{1, 2, 'i', 'd', 0}), ErrAltered},
		"too many addresses":             {"P2PTICKET1", with(name, []byte{1, 2, 'i', 'd', 17}, bytes.Repeat([]byte{1, 'a'}, 17)), ErrAltered},
		"an empty address":               {"P2PTICKET1", with(name, []byte{1, 2, 'i', 'd', 1, 0}), ErrAltered},
		"an address too long":            {"P2PTICKET1", with(name, []byte{1, 2, 'i', 'd', 1, 129, 4}, bytes.Repeat([]byte("a"), 513)), ErrAltered},
		"a length in too many bytes":     {"P2PTICKET1", with([]byte{0, 0x81, 0, 'n'}, peers), ErrAltered},
		"something behind it":            {"P2PTICKET1", with(name, peers, []byte{1}), ErrAltered},
		"too long":                       {"P2PTICKET1", with(name, peers, make([]byte, MaxBytes)), ErrAltered},
	} {
		if got, err := Decode(forged(row.head, row.body)); !errors.Is(err, row.want) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	if _, err := Decode(strings.Repeat("x", MaxText+1)); !errors.Is(err, ErrNot) {
		t.Errorf("a long text: %v", err)
	}
}

// What does not fit is refused when it is written, not when it is read.
func TestEncodeRefuses(t *testing.T) {
	for what, change := range map[string]func(*Ticket){
		"a network without a name":   func(t *Ticket) { t.Network = "" },
		"a name too long":            func(t *Ticket) { t.Network = strings.Repeat("n", MaxNetwork+1) },
		"a public network of a name": func(t *Ticket) { t.Public = true },
		"a public network of a key":  func(t *Ticket) { t.Public, t.Network, t.Key = true, "", make([]byte, KeySize) },
		"half a key":                 func(t *Ticket) { t.Key = make([]byte, KeySize-1) },
		"a key and its fingerprint":  func(t *Ticket) { t.Key, t.Mark = make([]byte, KeySize), make([]byte, MarkSize) },
		"half a fingerprint":         func(t *Ticket) { t.Mark = make([]byte, 4) },
		"no peers":                   func(t *Ticket) { t.Peers = nil },
		"too many peers":             func(t *Ticket) { t.Peers = slices.Repeat(t.Peers, MaxPeers+1) },
		"no ID":                      func(t *Ticket) { t.Peers[0].ID = nil },
		"an ID of 32 bytes":          func(t *Ticket) { t.Peers[0].ID = make([]byte, 32) },
		"a long ID":                  func(t *Ticket) { t.Peers[0].ID = make([]byte, MaxID+1) },
		"no address":                 func(t *Ticket) { t.Peers[0].Addrs = nil },
		"too many addresses":         func(t *Ticket) { t.Peers[0].Addrs = slices.Repeat(t.Peers[0].Addrs, MaxAddrs) },
		"an empty address":           func(t *Ticket) { t.Peers[0].Addrs[0] = nil },
		"a long address":             func(t *Ticket) { t.Peers[0].Addrs[0] = make([]byte, MaxAddr+1) },
		"too much in all":            func(t *Ticket) { t.Peers[0].Addrs = slices.Repeat([][]byte{make([]byte, MaxAddr)}, 4) },
	} {
		ticket := some()
		change(&ticket)
		if s, err := Encode(ticket); err == nil {
			t.Errorf("%s: %s", what, s)
		}
	}
}

// Errors say what to do, and hold no part of the text.
func TestGoldenTickets(t *testing.T) {
	s := text(t, all()["with a key"])
	var texts []golden.Text
	for _, row := range []struct{ name, text string }{
		{"empty", ""},
		{"another text", "hello world, good morning"},
		{"long", strings.Repeat("x", MaxText+1)},
		{"cut in its head", s[:6]},
		{"cut after its head", s[:12]},
		{"cut", s[:60]},
		{"a letter changed", s[:30] + "QQ" + s[32:]},
		{"a full stop behind it", s + "."},
		{"twice", s + s},
		{"a later version", "P2PSECRET2" + s[10:]},
		{"no version", "P2PSECRETX" + s[10:]},
		{"a flag of later versions", forged("P2PTICKET1", []byte{4, 1, 'n'})},
		{"malformed", forged("P2PTICKET1", []byte{0, 1, 'n'})},
	} {
		_, err := Decode(row.text)
		texts = append(texts, golden.Of(row.name, err))
		for i := 10; i+6 <= len(row.text); i++ {
			if strings.Contains(err.Error(), row.text[i:i+6]) {
				t.Errorf("%s: a part of the ticket stands in %q", row.name, err)
				break
			}
		}
	}
	golden.Check(t, "tickets", texts)
}

func FuzzDecode(f *testing.F) {
	for _, ticket := range all() {
		s := text(f, ticket)
		f.Add(s)
		f.Add(strings.ToLower(s[:40]) + "\n" + s[40:])
		f.Add(s[:len(s)-1])
	}
	f.Add("P2PTICKET1" + strings.Repeat("7", 40))
	f.Fuzz(func(t *testing.T, s string) {
		ticket, err := Decode(s)
		if err != nil {
			for _, known := range []error{ErrNot, ErrCut, ErrAltered, ErrNewer} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("%v is of no kind", err)
		}
		if again := text(t, ticket); again != Clean(s) {
			t.Errorf("%q became %q", s, again)
		}
	})
}

// The checksum keeps what is fuzzed away from the parser: here it is always right.
func FuzzBody(f *testing.F) {
	for _, ticket := range all() {
		b, err := ticket.body()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, ticket.Key != nil)
	}
	f.Fuzz(func(t *testing.T, body []byte, secret bool) {
		head := "P2PTICKET1"
		if secret {
			head = "P2PSECRET1"
		}
		s := forged(head, body)
		ticket, err := Decode(s)
		if err != nil {
			return
		}
		if again := text(t, ticket); again != s {
			t.Errorf("%x became %q", body, again)
		}
		if (ticket.Key != nil) != secret || len(ticket.Peers) == 0 || len(ticket.Peers) > MaxPeers || len(ticket.Network) > MaxNetwork {
			t.Errorf("%x: %+v", body, ticket)
		}
	})
}

func TestChoose(t *testing.T) {
	const (
		relay = "/p2p/12D3KooWRBhwfeP2Y4TCx1SM6s9rUoHhR5STiGwxBhgFRcw3UERE/p2p-circuit"
		other = "/p2p/12D3KooWGzBkhXwoG7MkWkEJm3xZx3DwC3gZkqXQWbPjTgYnqyxQ/p2p-circuit"
		hash  = "/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g"
	)
	for what, row := range map[string]struct{ list, want []string }{
		"nothing":                   {nil, nil},
		"what nobody can dial":      {[]string{"/ip4/0.0.0.0/tcp/1", "/ip6/fe80::1/tcp/1", "/ip6zone/eth0/ip6/fd00::1/tcp/1", relay}, nil},
		"loopback and others":       {[]string{"/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1"}, []string{"/ip4/192.168.1.2/tcp/1"}},
		"loopback alone":            {[]string{"/ip4/127.0.0.1/tcp/1"}, []string{"/ip4/127.0.0.1/tcp/1"}},
		"its link, and itself":      {[]string{"/ip6/::1/tcp/1", "/ip4/169.254.1.1/tcp/1"}, []string{"/ip4/169.254.1.1/tcp/1"}},
		"for browsers, and others":  {[]string{"/ip4/8.8.8.8/udp/1/quic-v1/webtransport" + hash, "/ip4/8.8.8.8/tcp/1"}, []string{"/ip4/8.8.8.8/tcp/1"}},
		"for browsers alone":        {[]string{"/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1/webtransport" + hash}, []string{"/ip4/8.8.8.8/udp/1/quic-v1/webtransport" + hash}},
		"twice":                     {[]string{"/ip4/8.8.8.8/tcp/1", "/ip4/8.8.8.8/tcp/1"}, []string{"/ip4/8.8.8.8/tcp/1"}},
		"names, QUIC, TCP, and IPs": {[]string{"/ip6/2001:db8::1/tcp/1", "/ip4/8.8.8.8/tcp/1/ws", "/ip4/8.8.8.8/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1", "/dns/a.test/tcp/1"}, []string{"/dns/a.test/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/1", "/ip6/2001:db8::1/tcp/1"}},
		"everything takes turns": {
			[]string{
				"/ip4/192.168.1.2/tcp/1", "/ip4/192.168.1.2/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/1" + relay, "/ip4/8.8.8.8/tcp/1" + relay, "/ip4/8.8.8.8/udp/1/quic-v1" + relay,
				"/ip4/9.9.9.9/tcp/1" + other, "/ip4/8.8.4.4/tcp/1",
			},
			[]string{"/ip4/8.8.4.4/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1" + relay, "/ip4/192.168.1.2/udp/1/quic-v1", "/ip4/9.9.9.9/tcp/1" + other},
		},
	} {
		var list []ma.Multiaddr
		for _, s := range row.list {
			list = append(list, ma.StringCast(s))
		}
		var got []string
		for _, a := range Choose(list, 4) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", what, got, row.want)
		}
	}
}
