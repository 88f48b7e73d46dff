package p2pnode

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/relays"
)

// RelayLimits bounds what a relay gives away; see [WithRelayLimits]. A zero
// field keeps its default.
type RelayLimits struct {
	// Reservations is how many peers may hold one; default 128.
	Reservations int `json:"reservations,omitempty"`
	// ReservationsPerIP is how many of them may come from one IP address;
	// default 8. A peer has at most one.
	ReservationsPerIP int `json:"reservationsPerIP,omitempty"`
	// ReservationsPerASN is how many of them may come from the IPv6 addresses of
	// one provider, that is, of one autonomous system, because there one customer
	// has many addresses; default 32, or ReservationsPerIP if that is larger.
	ReservationsPerASN int `json:"reservationsPerASN,omitempty"`
	// ReservationTTL is how long a reservation lasts unless the peer renews it, at
	// least 2 minutes; default 1 hour. It also ends with the connection.
	ReservationTTL time.Duration `json:"reservationTTL,omitempty"`
	// Circuits is how many relayed connections each peer may have open; default
	// 16.
	Circuits int `json:"circuits,omitempty"`
	// Duration is how long a relayed connection may last; default 2 minutes.
	Duration time.Duration `json:"duration,omitempty"`
	// Data is how many bytes a relayed connection may carry each way; default
	// 131072.
	Data int64 `json:"data,omitempty"`
	// Unlimited lifts Duration and Data, which must then be zero.
	Unlimited bool `json:"unlimited,omitempty"`
}

func (l RelayLimits) check() error {
	switch {
	case l.Reservations < 0, l.ReservationsPerIP < 0, l.ReservationsPerASN < 0, l.ReservationTTL < 0, l.Circuits < 0, l.Duration < 0, l.Data < 0:
		return fmt.Errorf("%+v: a limit is negative; zero means its default", l)
	case l.ReservationTTL > 0 && l.ReservationTTL < relays.MinTTL:
		return fmt.Errorf("a ReservationTTL of %v is too short: peers renew a reservation within its last %v", l.ReservationTTL, relays.MinTTL)
	case l.ReservationsPerASN > 0 && l.ReservationsPerASN < l.ReservationsPerIP:
		return fmt.Errorf("ReservationsPerASN, %d, is below ReservationsPerIP, %d; raise it or leave it out", l.ReservationsPerASN, l.ReservationsPerIP)
	case l.Unlimited && (l.Duration != 0 || l.Data != 0):
		return errors.New("with Unlimited, which lifts Duration and Data, neither can be set")
	}
	return nil
}

// RelayServiceStatus describes the relay service of [WithRelayService].
type RelayServiceStatus struct {
	// Reservations is how many peers hold one.
	Reservations int `json:"reservations"`
	// Circuits is how many relayed connections are open.
	Circuits int `json:"circuits"`
	// Bytes is how many bytes the service has relayed since the start, both ways.
	Bytes uint64 `json:"bytes"`
	// Refused is how often the service has refused something since the start, by
	// reason; nil if it has not.
	Refused map[RelayRefusal]uint64 `json:"refused,omitempty"`
}

// RelayRefusal is a reason for which a relay service refuses a reservation or a
// relayed connection.
type RelayRefusal string

// The reasons.
const (
	// RelayRefusedAccess ("access"): the peer is banned, not allowed, or not one of
	// [WithRelayPeers] or [WithRelayAccess]; or it asked through another relay.
	RelayRefusedAccess RelayRefusal = "access"
	// RelayRefusedReservations ("reservations"): Reservations, ReservationsPerIP or
	// ReservationsPerASN of [RelayLimits] is reached.
	RelayRefusedReservations RelayRefusal = "reservations"
	// RelayRefusedNoReservation ("no-reservation"): the peer to be reached has no
	// reservation.
	RelayRefusedNoReservation RelayRefusal = "no-reservation"
	// RelayRefusedCircuits ("circuits"): Circuits of [RelayLimits] is reached, or
	// what [Limits] leave the service.
	RelayRefusedCircuits RelayRefusal = "circuits"
	// RelayRefusedUnreachable ("unreachable"): the peer to be reached did not answer.
	RelayRefusedUnreachable RelayRefusal = "unreachable"
	// RelayRefusedMalformed ("malformed"): the request was malformed.
	RelayRefusedMalformed RelayRefusal = "malformed"
)

func relayServiceStatus(s *relays.Service) *RelayServiceStatus {
	if s == nil {
		return nil
	}
	c := s.Counts()
	out := &RelayServiceStatus{Reservations: c.Reservations, Circuits: c.Circuits, Bytes: c.Bytes}
	for why, count := range c.Refused {
		if out.Refused == nil {
			out.Refused = make(map[RelayRefusal]uint64)
		}
		out.Refused[RelayRefusal(why)] = count
	}
	return out
}

// Reachability says whether others can dial a node, as far as it knows.
type Reachability string

// The values of [Reachability].
const (
	// ReachabilityUnknown ("unknown"): nobody has tried yet, or the results
	// differ.
	ReachabilityUnknown Reachability = "unknown"
	// ReachabilityPublic ("public"): others can dial the node.
	ReachabilityPublic Reachability = "public"
	// ReachabilityPrivate ("private"): others can reach the node only through a
	// relay.
	ReachabilityPrivate Reachability = "private"
)

// UnmarshalText implements [encoding.TextUnmarshaler]. It refuses unknown
// values.
func (r *Reachability) UnmarshalText(text []byte) error {
	switch known := Reachability(text); known {
	case ReachabilityUnknown, ReachabilityPublic, ReachabilityPrivate:
		*r = known
		return nil
	default:
		return fmt.Errorf("p2pnode: unknown reachability %q", text)
	}
}

// AddrReachability is an address of the node, and whether others can dial it:
// [ReachabilityPublic] if peers have (also on a network of private addresses),
// [ReachabilityPrivate] if they have tried in vain, and [ReachabilityUnknown] before,
// while they disagree, and if they cannot dial addresses of that kind.
type AddrReachability struct {
	// Addr is the address, without /p2p/<id>.
	Addr         ma.Multiaddr `json:"addr"`
	Reachability Reachability `json:"reachability"`
}

func reachabilityOf(r network.Reachability) Reachability {
	return Reachability(strings.ToLower(r.String()))
}

// RelaySource says how a node came to know a relay.
type RelaySource string

// The sources.
const (
	// RelayNamed ("named"): [WithAutoRelay] or [Node.AddRelays] named it.
	RelayNamed RelaySource = "named"
	// RelayConnected ("connected"): it was connected, and offered to relay.
	RelayConnected RelaySource = "connected"
	// RelayFound ("found"): the DHT had it.
	RelayFound RelaySource = "found"
)

// RelayStatus describes a relay of [WithAutoRelay] or [Node.AddRelays], or one that
// [WithRelayDiscovery] has found and at which the node has a reservation.
type RelayStatus struct {
	ID peer.ID `json:"id"`
	// Source is how the node came to know it.
	Source RelaySource `json:"source"`
	// Reserved is true while the node holds a reservation: others can reach it
	// through the relay.
	Reserved bool `json:"reserved"`
	// Missing is why there is no reservation, as far as known.
	Missing string `json:"missing,omitempty"`
}

func relayStatus(c *relays.Client) []RelayStatus {
	var list []RelayStatus
	for _, r := range c.States() {
		s := RelayStatus{ID: r.ID, Source: RelaySource(r.Source), Reserved: r.Reserved}
		if !s.Reserved {
			s.Missing = c.Missing(r.ID)
		}
		list = append(list, s)
	}
	return list
}
