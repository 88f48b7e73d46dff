// Package ticket has the text form of what it takes to join a network: one word
// that survives being copied, typed, wrapped over lines and scanned. docs/tickets.md
// describes it.
//
// Errors hold no part of a text, which may contain a key.
package ticket

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// The heads of a ticket's text: what it is, and the version of the form. A ticket
// with a key has one of its own, so that everybody sees it. None of the characters
// is outside the alphanumeric mode of QR codes.
const (
	plainHead  = "P2PTICKET"
	secretHead = "P2PSECRET"
	version    = "1"
)

// The limits of a ticket.
const (
	// MaxBytes bounds a ticket without its head, in bytes.
	MaxBytes = 2 << 10
	// MaxText bounds the text that Decode looks at, with white space.
	MaxText = 16 << 10
	// MaxNetwork bounds the name of the network.
	MaxNetwork = 128
	// MaxPeers bounds the number of peers.
	MaxPeers = 8
	// MaxID bounds a peer ID.
	MaxID = 128
	// MaxAddrs bounds the number of one peer's addresses.
	MaxAddrs = 16
	// MaxAddr bounds an address.
	MaxAddr = 512
	// KeySize is the size of the key of a private network.
	KeySize = 32
	// MarkSize is the size of the fingerprint of such a key.
	MarkSize = 8

	sumSize = 4
)

// What is wrong with a text.
var (
	// ErrNot is a text that is not a ticket.
	ErrNot = errors.New("this is not a ticket")
	// ErrCut is the beginning of a ticket.
	ErrCut = errors.New("the ticket is cut short")
	// ErrAltered is a ticket that has changed on its way.
	ErrAltered = errors.New("the ticket was altered")
	// ErrNewer is a ticket of a later version.
	ErrNewer = errors.New("the ticket is of a newer version")
)

// Ticket is the content of a ticket. Nothing is known here of what the network, the
// IDs and the addresses mean.
type Ticket struct {
	Network string // empty for the public network
	Public  bool   // the public network
	Key     []byte // of a private network; nil without
	Mark    []byte // the fingerprint of a key that is left out; nil without
	Peers   []Peer
}

// Peer is a peer to dial.
type Peer struct {
	ID    []byte
	Addrs [][]byte // binary multiaddrs, the best first
}

// The bits of the byte that says what follows. Others are of later versions.
const (
	isPublic  = 1 << 0
	isPrivate = 1 << 1
)

// ed25519 is what the ID of an Ed25519 key begins with: an identity multihash of a
// public key's message. In a ticket it is left out. No multihash that is the ID of
// a peer has the 32 bytes that remain.
var ed25519 = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

const ed25519Size = 32

// alphabet is the standard one of base 32, in upper case: a QR code takes 5.5 bits
// for each of its characters.
var alphabet = base32.StdEncoding.WithPadding(base32.NoPadding)

// Encode returns the text of a ticket.
func Encode(t Ticket) (string, error) {
	b, err := t.body()
	if err != nil {
		return "", err
	}
	head := t.head()
	// The length is in front of what it counts, and counts itself.
	total := len(b) + sumSize + 1
	if total > 0x7f {
		total++
	}
	if total > MaxBytes {
		return "", fmt.Errorf("%d bytes: at most %d fit", total, MaxBytes)
	}
	b = append(binary.AppendUvarint(nil, uint64(total)), b...)
	return head + alphabet.EncodeToString(append(b, sum(head, b)...)), nil
}

func (t Ticket) head() string {
	if t.Key != nil {
		return secretHead + version
	}
	return plainHead + version
}

// body returns the bytes between the length and the checksum.
func (t Ticket) body() ([]byte, error) {
	var flags byte
	secret := t.Mark
	if t.Key != nil {
		secret = t.Key
	}
	switch {
	case t.Public && (t.Network != "" || secret != nil):
		return nil, errors.New("the public network has neither a name nor a key")
	case !t.Public && (t.Network == "" || len(t.Network) > MaxNetwork):
		return nil, fmt.Errorf("a network name of %d bytes: it must have 1 to %d", len(t.Network), MaxNetwork)
	case t.Key != nil && (t.Mark != nil || len(t.Key) != KeySize):
		return nil, errors.New("a key that is not one, or a fingerprint next to it")
	case t.Mark != nil && len(t.Mark) != MarkSize:
		return nil, fmt.Errorf("a fingerprint of %d bytes, not %d", len(t.Mark), MarkSize)
	case len(t.Peers) == 0 || len(t.Peers) > MaxPeers:
		return nil, fmt.Errorf("%d peers: it must be 1 to %d", len(t.Peers), MaxPeers)
	}
	if t.Public {
		flags |= isPublic
	}
	if secret != nil {
		flags |= isPrivate
	}
	b := []byte{flags}
	if !t.Public {
		b = appendBytes(b, []byte(t.Network))
	}
	b = append(b, secret...)
	b = append(b, byte(len(t.Peers)))
	for _, p := range t.Peers {
		short, is := bytes.CutPrefix(p.ID, ed25519)
		switch {
		case is && len(short) == ed25519Size:
			b = appendBytes(b, short)
		case len(p.ID) == 0 || len(p.ID) > MaxID || len(p.ID) == ed25519Size:
			return nil, fmt.Errorf("a peer ID of %d bytes", len(p.ID))
		default:
			b = appendBytes(b, p.ID)
		}
		if len(p.Addrs) == 0 || len(p.Addrs) > MaxAddrs {
			return nil, fmt.Errorf("%d addresses of a peer: it must be 1 to %d", len(p.Addrs), MaxAddrs)
		}
		b = append(b, byte(len(p.Addrs)))
		for _, a := range p.Addrs {
			if len(a) == 0 || len(a) > MaxAddr {
				return nil, fmt.Errorf("an address of %d bytes: it must have 1 to %d", len(a), MaxAddr)
			}
			b = appendBytes(b, a)
		}
	}
	return b, nil
}

func appendBytes(b, field []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(field))), field...)
}

// sum returns the checksum of a ticket, which covers its head.
func sum(head string, b []byte) []byte {
	s := sha256.Sum256(append([]byte(head), b...))
	return s[:sumSize]
}

// Clean returns a text without white space, line breaks and invisible characters,
// in upper case: the one form of a ticket.
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), unicode.Is(unicode.Cf, r): // also a zero-width space, a soft hyphen, a byte order mark
			return -1
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		default:
			return r
		}
	}, text)
}

// Decode reads the text of a ticket. An error wraps ErrNot, ErrCut, ErrAltered or
// ErrNewer. Each ticket has one text: of what Decode accepts, Encode returns the
// Clean form.
func Decode(text string) (Ticket, error) {
	if len(text) > MaxText {
		return Ticket{}, fmt.Errorf("%w: %d characters are too many for one", ErrNot, len(text))
	}
	text = Clean(text)
	head, rest, err := cutHead(text)
	if err != nil {
		return Ticket{}, err
	}
	b, err := unpack(head, rest)
	if err != nil {
		return Ticket{}, err
	}
	t, err := parse(b, strings.HasPrefix(head, secretHead))
	if err != nil {
		return Ticket{}, err
	}
	if again, err := Encode(t); err != nil || again != text {
		return Ticket{}, fmt.Errorf("%w: its encoding is not the shortest one", ErrAltered)
	}
	return t, nil
}

// cutHead returns the head of a text, with the version, and what follows.
func cutHead(text string) (head, rest string, err error) {
	for _, h := range []string{plainHead, secretHead} {
		switch {
		case text != "" && len(text) <= len(h) && strings.HasPrefix(h, text):
			return "", "", fmt.Errorf("%w: copy the whole ticket", ErrCut)
		case !strings.HasPrefix(text, h):
			continue
		}
		n := len(h) + len(version)
		switch v := text[len(h):n]; {
		case v == version:
			return text[:n], text[n:], nil
		case "0" <= v && v <= "9":
			return "", "", fmt.Errorf("%w: its form is number %s, and this program reads only number %s; update it", ErrNewer, v, version)
		default:
			return "", "", fmt.Errorf("%w: no version follows %s", ErrAltered, h)
		}
	}
	return "", "", fmt.Errorf("%w: a ticket begins with %s or %s", ErrNot, plainHead+version, secretHead+version)
}

// unpack returns the bytes of a ticket between its length and its checksum.
func unpack(head, rest string) ([]byte, error) {
	for i, r := range rest {
		if ('A' > r || r > 'Z') && ('2' > r || r > '7') {
			return nil, fmt.Errorf("%w: character %d cannot be part of a ticket; copy the ticket only", ErrAltered, len(head)+i+1)
		}
	}
	const start = 4 // characters that hold the two bytes of a length
	if len(rest) < start {
		return nil, fmt.Errorf("%w: copy the whole ticket", ErrCut)
	}
	first, err := alphabet.DecodeString(rest[:start])
	if err != nil {
		return nil, fmt.Errorf("%w: it has no length", ErrAltered)
	}
	total, n := binary.Uvarint(first)
	if n <= 0 || total > MaxBytes || int(total) <= n+sumSize {
		return nil, fmt.Errorf("%w: its length is impossible", ErrAltered)
	}
	switch want := alphabet.EncodedLen(int(total)); {
	case len(rest) < want:
		return nil, fmt.Errorf("%w: %d of its %d characters are there; copy the whole ticket", ErrCut, len(head)+len(rest), len(head)+want)
	case len(rest) > want:
		return nil, fmt.Errorf("%w: it goes on after its end, at character %d; copy the ticket only", ErrAltered, len(head)+want+1)
	}
	b, err := alphabet.DecodeString(rest)
	if err != nil || len(b) != int(total) {
		return nil, fmt.Errorf("%w: its length is wrong", ErrAltered)
	}
	b, check := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if !bytes.Equal(sum(head, b), check) {
		return nil, fmt.Errorf("%w: its checksum does not match; copy it again", ErrAltered)
	}
	return b[n:], nil
}

// parse reads the bytes of a ticket whose checksum is right.
func parse(b []byte, secret bool) (t Ticket, err error) {
	r := reader{b}
	flags := r.take(1)
	if r.failed() {
		return Ticket{}, errMalformed
	}
	if flags[0]&^(isPublic|isPrivate) != 0 {
		return Ticket{}, fmt.Errorf("%w: it has parts that this program does not know; update it", ErrNewer)
	}
	t.Public = flags[0]&isPublic != 0
	if !t.Public {
		t.Network = string(r.field(MaxNetwork))
	}
	switch private := flags[0]&isPrivate != 0; {
	case secret != private && secret:
		return Ticket{}, errMalformed
	case secret:
		t.Key = r.take(KeySize)
	case private:
		t.Mark = r.take(MarkSize)
	}
	for range r.count(MaxPeers) {
		p := Peer{ID: r.field(MaxID)}
		if len(p.ID) == ed25519Size {
			p.ID = append(bytes.Clone(ed25519), p.ID...)
		}
		for range r.count(MaxAddrs) {
			p.Addrs = append(p.Addrs, r.field(MaxAddr))
		}
		t.Peers = append(t.Peers, p)
	}
	if r.failed() || len(r.b) > 0 {
		return Ticket{}, errMalformed
	}
	return t, nil
}

// errMalformed is a ticket whose checksum is right and whose content is not.
var errMalformed = fmt.Errorf("%w: its content is damaged, although its checksum matches", ErrAltered)

// reader reads fields, of which none is longer than what is there. After a field
// that is impossible, it returns nothing.
type reader struct{ b []byte }

// failed reports whether a field was impossible.
func (r *reader) failed() bool { return r.b == nil }

func (r *reader) take(n int) []byte {
	if r.failed() || n > len(r.b) {
		r.b = nil
		return nil
	}
	field := bytes.Clone(r.b[:n])
	r.b = r.b[n:]
	return field
}

func (r *reader) field(most int) []byte {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n == 0 || n > uint64(most) {
		r.b = nil
		return nil
	}
	r.b = r.b[size:]
	return r.take(int(n))
}

// count returns how many elements follow, at least one.
func (r *reader) count(most int) int {
	b := r.take(1)
	if r.failed() || b[0] == 0 || int(b[0]) > most {
		r.b = nil
		return 0
	}
	return int(b[0])
}
