package p2pnode

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/ticket"
)

// ticketAddrs is how many addresses a ticket has at most: it has to fit into a QR
// code that phones read.
const ticketAddrs = 6

// Ticket holds what it takes to join a network: its name, one or more peers with
// their addresses, and, if whoever made it wanted that, the key of a private
// network. [Node.Ticket] makes one, and [ParseTicket] reads its text, which is one
// word of letters and digits; [WithTicket] joins by it.
//
// Text returns the word. Everything else that prints a ticket (String, package fmt,
// log/slog, encoding/json) leaves out the key: a ticket with one is as secret as the
// key. The zero Ticket is empty. A Ticket does not change, and is safe for concurrent
// use.
type Ticket struct {
	content *ticketContent
}

// ticketContent is what a ticket holds. It is read-only.
type ticketContent struct {
	network string // empty for the public network
	public  bool
	mark    string // fingerprint of the key of a private network
	secret  bool   // whether the ticket has the key
	peers   []peer.AddrInfo
	// Functions, because package fmt prints whatever else it finds in a struct.
	key  func() []byte
	text func() string
}

// TicketOption configures a call of [Node.Ticket]: [TicketWithKey].
type TicketOption interface{ applyTicket(*ticketConfig) error }

type ticketConfig struct{ key bool }

type ticketOption func(*ticketConfig) error

func (o ticketOption) applyTicket(c *ticketConfig) error { return o(c) }

// TicketWithKey adds the key of [WithPrivateNetwork] to the ticket, overriding the
// default of leaving it out: whoever has the ticket can then join without being
// given the key in another way, and read what others who have it can read. The text
// of such a ticket begins with P2PSECRET instead of P2PTICKET. Without a private
// network, it is an error.
func TicketWithKey() TicketOption {
	return ticketOption(func(c *ticketConfig) error {
		c.key = true
		return nil
	})
}

// ParseTicket reads the text of a ticket, for instance to show what it holds before
// [WithTicket] uses it. Upper and lower case are the same, and white space and line
// breaks are ignored, wherever they are. Its error says whether the text is not a
// ticket, is cut short, was altered, or is a ticket of a newer version, and holds no
// part of it. Addresses that this version does not know are left out; if there are no
// others, that is an error.
func ParseTicket(s string) (Ticket, error) {
	t, err := parseTicket(s)
	if err != nil {
		return Ticket{}, fmt.Errorf("p2pnode: parse ticket: %w", err)
	}
	return Ticket{t}, nil
}

// parseTicket is ParseTicket without the prefix of its errors.
func parseTicket(s string) (*ticketContent, error) {
	raw, err := ticket.Decode(s)
	if err != nil {
		if strings.HasPrefix(strings.TrimSpace(s), "/") {
			err = fmt.Errorf("%w; WithBootstrapAddrs takes multiaddrs", err)
		}
		return nil, err
	}
	key, text := raw.Key, ticket.Clean(s)
	t := &ticketContent{
		network: raw.Network, public: raw.Public, mark: hex.EncodeToString(raw.Mark), secret: key != nil,
		key: func() []byte { return slices.Clone(key) }, text: func() string { return text },
	}
	if t.secret {
		t.mark = fingerprint(key)
	}
	if !raw.Public {
		if err := checkNetwork(raw.Network); err != nil {
			return nil, err
		}
	}
	if raw.Key != nil {
		if err := checkKey(raw.Key); err != nil {
			return nil, err
		}
	}
	for _, p := range raw.Peers {
		ai := peer.AddrInfo{ID: peer.ID(p.ID)}
		if !addrs.IsPeerID(ai.ID) {
			return nil, errors.New("the ticket names a peer by something that is not a peer ID")
		}
		for _, b := range p.Addrs {
			if a, err := ma.NewMultiaddrBytes(b); err == nil && addrs.Undialable(a) == nil {
				ai.Addrs = append(ai.Addrs, a)
			}
		}
		if len(ai.Addrs) > 0 {
			t.peers = append(t.peers, ai)
		}
	}
	if t.peers = addrs.Merge(t.peers...); len(t.peers) == 0 {
		return nil, errors.New("the ticket has no address that this version can dial; ask for another, or update this program")
	}
	return t, nil
}

// newTicket makes the ticket of a node for its network, the public one if the name
// is empty: with the addresses of use, and the key of a private network if it is
// wanted.
func newTicket(network string, psk []byte, self peer.AddrInfo, opts []TicketOption) (Ticket, error) {
	var want ticketConfig
	if err := inTurn(opts, func(o TicketOption) error { return o.applyTicket(&want) }); err != nil {
		return Ticket{}, err
	}
	if want.key && psk == nil {
		return Ticket{}, errors.New("TicketWithKey: the node's network has no key; leave TicketWithKey out")
	}
	raw := ticket.Ticket{Network: network, Public: network == ""}
	switch mark, err := hex.DecodeString(fingerprint(psk)); {
	case err != nil:
		return Ticket{}, err
	case want.key:
		raw.Key = psk
	case psk != nil:
		raw.Mark = mark
	}
	chosen := ticket.Choose(self.Addrs, ticketAddrs)
	if len(chosen) == 0 {
		return Ticket{}, errors.New("the node has no address that others could dial; listen on one, name one with WithAnnounceAddrs, or name a relay with WithAutoRelay and wait for StageReachable")
	}
	p := ticket.Peer{ID: []byte(self.ID)}
	for _, a := range chosen {
		p.Addrs = append(p.Addrs, a.Bytes())
	}
	raw.Peers = []ticket.Peer{p}
	text, err := ticket.Encode(raw)
	if err != nil {
		return Ticket{}, err
	}
	t, err := parseTicket(text)
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{t}, nil
}

var networkName = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)

// checkNetwork checks the name of a network.
func checkNetwork(name string) error {
	switch {
	case !networkName.MatchString(name) || len(name) > ticket.MaxNetwork:
		return fmt.Errorf("%q is not a network name: use letters, digits and -_./, neither starting nor ending with a slash, at most %d characters", name, ticket.MaxNetwork)
	case strings.HasPrefix(name, "ipfs/"):
		return fmt.Errorf("%q would mix with the network \"ipfs\": its LAN DHT is /ipfs/lan; choose a name that does not begin with \"ipfs/\"", name)
	}
	return nil
}

// get returns the content, an empty one of the zero Ticket.
func (t Ticket) get() *ticketContent {
	if t.content == nil {
		return &ticketContent{text: func() string { return "" }}
	}
	return t.content
}

// Text returns the ticket for others, as [WithTicket] and [ParseTicket] take it: one
// word of upper-case letters and digits, about 200 characters long, which also fits
// into a QR code in its alphanumeric mode. If HasKey reports true, it contains the
// key. It is "" for the zero Ticket.
func (t Ticket) Text() string { return t.get().text() }

// Network returns the name of the network, as [WithNetwork] takes it; "ipfs" for the
// public network, see Public.
func (t Ticket) Network() string {
	if t.Public() {
		return "ipfs"
	}
	return t.get().network
}

// Public reports whether the ticket is for the public network, which [WithIPFS]
// joins.
func (t Ticket) Public() bool { return t.get().public }

// PrivateNetwork returns the fingerprint of the key of a private network, the same
// as PrivateNetwork in [Status]; "" if the network has none.
func (t Ticket) PrivateNetwork() string { return t.get().mark }

// HasKey reports whether the ticket contains the key of a private network. If it
// does not, and PrivateNetwork is not empty, joining takes [WithPrivateNetwork] too.
func (t Ticket) HasKey() bool { return t.get().secret }

// Peers returns the peers of the ticket, with their addresses, the best first.
func (t Ticket) Peers() []peer.AddrInfo { return addrs.Merge(t.get().peers...) }

// String returns the text of a ticket without a key. For one with a key it returns
// the beginning of the text, and who and what the ticket is for.
func (t Ticket) String() string {
	if !t.HasKey() {
		return t.Text()
	}
	var ids []string
	for _, p := range t.get().peers {
		ids = append(ids, p.ID.String())
	}
	return fmt.Sprintf("P2PSECRET1… (network %s, key %s, peers %s; Text returns all of it)", t.Network(), t.PrivateNetwork(), strings.Join(ids, ", "))
}

// GoString is String in quotes, for %#v of package fmt.
func (t Ticket) GoString() string { return fmt.Sprintf("p2pnode.Ticket(%q)", t.String()) }

// Format prints String, or GoString for %#v, so that no verb of package fmt shows a
// key.
func (t Ticket) Format(f fmt.State, verb rune) {
	text := t.String()
	if verb == 'v' && f.Flag('#') {
		text, verb = t.GoString(), 's'
	}
	if !strings.ContainsRune("svq", verb) {
		verb = 's'
	}
	_, _ = fmt.Fprintf(f, "%"+string(verb), text) // as fmt.State has no error to return
}

// LogValue returns String, for log/slog.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }

// same reports whether two tickets are for one network.
func (t *ticketContent) same(other *ticketContent) bool {
	return t.public == other.public && t.network == other.network && t.mark == other.mark
}

// of says what network a ticket is for.
func (t *ticketContent) of() string {
	switch {
	case t.public:
		return "the public network"
	case t.mark != "":
		return fmt.Sprintf("the private network %q with the key %s", t.network, t.mark)
	default:
		return fmt.Sprintf("the network %q", t.network)
	}
}

// stranger returns a ticket that is for another network than the first, nil if
// there is none.
func stranger(list []*ticketContent) *ticketContent {
	i := slices.IndexFunc(list, func(t *ticketContent) bool { return !t.same(list[0]) })
	if i < 0 {
		return nil
	}
	return list[i]
}
