package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

const (
	// MaxBans bounds the list, which applications may extend automatically.
	MaxBans = 10_000
	// maxReason bounds a ban's reason, in bytes, so that the whole list fits into
	// a data file.
	maxReason = 500
)

// Ban is a ban of a peer or a subnet: one of the two is set.
type Ban struct {
	Peer   peer.ID      `json:"peer,omitempty"`
	Subnet netip.Prefix `json:"subnet,omitzero"`
	Until  time.Time    `json:"until,omitzero"` // zero: for good
	Reason string       `json:"reason,omitempty"`
}

// Normal returns the ban in the form in which it is stored: with UTC wall-clock
// times, because that clock keeps running while a machine sleeps, and without
// subnet bits beyond the prefix length.
func (b Ban) Normal() Ban {
	if !b.Until.IsZero() {
		b.Until = b.Until.UTC().Round(0)
	}
	if b.Subnet.IsValid() {
		b.Subnet = b.Subnet.Masked()
	}
	return b
}

// check reports what is wrong with a normal ban.
func (b Ban) check(now time.Time) error {
	switch {
	case b.Peer != "" && b.Subnet != netip.Prefix{}, b.Peer == "" && !b.Subnet.IsValid():
		return errors.New("a ban needs either a peer or a valid subnet")
	case b.Peer != "" && !addrs.IsPeerID(b.Peer):
		return fmt.Errorf("%q is not a peer ID; peer.Decode parses its text form", string(b.Peer))
	case b.Subnet.Addr().Is4In6():
		return fmt.Errorf("subnet %s is an IPv4-mapped IPv6 subnet; give it as IPv4", b.Subnet)
	case !b.Until.IsZero() && !b.Until.After(now):
		return fmt.Errorf("the ban ends at %v, which has passed", b.Until)
	case b.Until.Year() > 9999:
		return fmt.Errorf("the ban ends in the year %d; the zero time bans for good", b.Until.Year())
	case len(b.Reason) > maxReason:
		return fmt.Errorf("the reason has %d bytes, more than %d", len(b.Reason), maxReason)
	case strings.ContainsFunc(b.Reason, unicode.IsControl) || !utf8.ValidString(b.Reason):
		return errors.New("the reason is not printable text")
	}
	return nil
}

func (b Ban) holds(now time.Time) bool { return b.Until.IsZero() || b.Until.After(now) }

// parseBans reads what encodeBans wrote, leaving out bans that have ended. It
// returns what it can read along with an error about the rest.
func parseBans(b []byte, now time.Time) ([]Ban, error) {
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, err
	}
	var good []Ban
	var errs []error
	for i, text := range raw {
		var ban Ban
		if err := json.Unmarshal(text, &ban); err != nil {
			errs = append(errs, fmt.Errorf("ban %d of %d: %w", i+1, len(raw), err))
			continue
		}
		if !ban.Until.IsZero() && !ban.holds(now) {
			continue
		}
		if err := ban.check(now); err != nil {
			errs = append(errs, fmt.Errorf("ban %d of %d: %w", i+1, len(raw), err))
			continue
		}
		if len(good) == MaxBans {
			errs = append(errs, fmt.Errorf("there are more than %d bans", MaxBans))
			break
		}
		good = append(good, ban)
	}
	const told = 3 // of possibly thousands
	if len(errs) > told {
		errs = append(errs[:told], fmt.Errorf("and %d more", len(errs)-told))
	}
	return good, errors.Join(errs...)
}

// encodeBans encodes bans for parseBans.
func encodeBans(list []Ban) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // which would make it grow
	err := enc.Encode(list)
	return text.Bytes(), err
}
