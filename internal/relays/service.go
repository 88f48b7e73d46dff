package relays

import (
	"time"

	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Limits bounds what a relay gives away. A zero field keeps libp2p's default.
type Limits struct {
	Reservations      int
	ReservationsPerIP int
	Circuits          int
	Duration          time.Duration
	Data              int64
	Unlimited         bool // lifts Duration and Data
}

// Serve runs a relay until its Close. Libp2p's own option would start it only
// once the node is known to be public, which on a private network never
// happens. With anyAddr, the relay also announces its private addresses in
// reservations: on a private network there may be no others.
func Serve(h *nethost.Host, l Limits, acl relay.ACLFilter, anyAddr bool) (*relay.Relay, error) {
	rc := relay.DefaultResources()
	setIf(&rc.MaxReservations, l.Reservations)
	setIf(&rc.MaxReservationsPerIP, l.ReservationsPerIP)
	rc.MaxReservationsPerASN = max(rc.MaxReservationsPerASN, rc.MaxReservationsPerIP)
	setIf(&rc.MaxCircuits, l.Circuits)
	setIf(&rc.Limit.Duration, l.Duration)
	setIf(&rc.Limit.Data, l.Data)
	if l.Unlimited {
		rc.Limit = nil
	}
	opts := []relay.Option{relay.WithResources(rc), relay.WithACL(acl)}
	if anyAddr {
		opts = append(opts, relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }))
	}
	return relay.New(h, opts...)
}

func setIf[T int | int64 | time.Duration](dst *T, v T) {
	if v > 0 {
		*dst = v
	}
}
