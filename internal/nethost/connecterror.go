package nethost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// maxTold bounds how many addresses the text of a [ConnectError] has.
const maxTold = 16

// ConnectError is a failed connection attempt. Its text is one line with the
// reason for every address. The swarm's own error has a line for each address, and
// none if a deadline ended the dial.
type ConnectError struct {
	ID  peer.ID
	Err error
	why string
}

// Unwrap returns Err.
func (e *ConnectError) Unwrap() error { return e.Err }

// Is makes a gater's refusal match errs.ErrBanned: of the peer, or of all its
// addresses.
func (e *ConnectError) Is(target error) bool {
	var de *swarm.DialError
	if target != errs.ErrBanned || !errors.As(e.Err, &de) || len(de.DialErrors) == 0 {
		return false // a refusal matches by itself
	}
	for _, te := range de.DialErrors {
		if !errors.Is(te.Cause, swarm.ErrGaterDisallowedConnection) {
			return false
		}
	}
	return true
}

func (e *ConnectError) Error() string {
	return "connect to " + e.ID.String() + ": " + causes.Clean(e.why)
}

// explain returns the error of an attempt, given when it began and the error with
// which it ended.
func (d Dialer) explain(p peer.AddrInfo, begun time.Time, err error) error {
	told := d.addresses(p, begun, err)
	what := d.whole(err, len(told) > 0)
	switch {
	case what == "":
		what = strings.Join(told, "; ")
	case len(told) > 0:
		what += ": " + strings.Join(told, "; ")
	}
	return &ConnectError{ID: p.ID, Err: d.withFailures(p, begun, err), why: what}
}

// errWaiting is the error of an attempt that has not ended.
var errWaiting = errors.New("no answer yet")

// Waiting returns the error of an attempt that has not ended, with what is known
// so far.
func (d Dialer) Waiting(p peer.AddrInfo, begun time.Time) error {
	return d.explain(p, begun, errWaiting)
}

// WhyNot explains why a peer that another part dials is not connected, according
// to recent dials of its addresses; "" without any.
func (h *Host) WhyNot(p peer.AddrInfo) string {
	var told []string
	for _, a := range addrs.Merge(p, peer.AddrInfo{ID: p.ID, Addrs: h.KnownAddrs(p.ID)})[0].Addrs {
		if err, ok := h.failures.of(p.ID, a, time.Time{}); ok && len(told) < maxTold {
			told = append(told, asIs(a).String()+": "+causes.Dial(err, h.private))
		}
	}
	return strings.Join(told, "; ")
}

// Explain returns an error of libp2p about a connected peer, as of opening a
// stream: libp2p may have found the connection lost, and have dialed again.
func (d Dialer) Explain(id peer.ID, begun time.Time, err error) error {
	var de *swarm.DialError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &de), errors.Is(err, swarm.ErrDialBackoff):
		return d.explain(peer.AddrInfo{ID: id}, begun, err)
	case errors.Is(err, network.ErrNoConn):
		return fmt.Errorf("the connection was lost meanwhile: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", err)
	default:
		return err
	}
}

// whole explains the failure of an attempt apart from its addresses; "" if these
// explain it.
func (d Dialer) whole(err error, told bool) string {
	var de *swarm.DialError
	dialed := errors.As(err, &de)
	switch {
	case errors.Is(err, errWaiting):
		return err.Error()
	case dialed && len(de.DialErrors) == 0 && errors.Is(de.Cause, swarm.ErrGaterDisallowedConnection):
		return "a gater of WithLibp2pOptions refuses the peer"
	case errors.Is(err, swarm.ErrNoAddresses) && d.Via == host.Host(d.Host):
		return "no address of it is known, and there is no DHT to ask (WithoutDHT); give Connect an address"
	case errors.Is(err, swarm.ErrNoAddresses), errors.Is(err, routing.ErrNotFound), errors.Is(err, errs.ErrNotFound):
		return "no address of it is known, and the DHT knows none"
	case errors.Is(err, errs.ErrNoPeers):
		return "no address of it is known, and there is nobody to ask for one: the DHT's routing table is empty"
	case ended(err) && told:
		return "no connection in the time that there was (" + endedBy(err) + ")"
	case ended(err):
		return "no address of it is known, and the DHT told none in the time that there was (" + endedBy(err) + ")"
	case dialed && told:
		return ""
	case dialed && errors.Is(de.Cause, swarm.ErrNoGoodAddresses):
		return "none of its addresses can be dialed"
	case dialed && errors.Is(de.Cause, swarm.ErrDialBackoff), errors.Is(err, swarm.ErrDialBackoff):
		return "another dial of it failed just before"
	case dialed && de.Cause != nil:
		return causes.Dial(de.Cause, d.Host.private)
	default:
		return causes.Dial(err, d.Host.private)
	}
}

// ended reports whether a context ended an attempt. The swarm's error then leaves
// out the addresses.
func ended(err error) bool {
	var de *swarm.DialError
	return !errors.As(err, &de) && (errors.Is(err, errWaiting) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled))
}

func endedBy(err error) string {
	if errors.Is(err, context.Canceled) {
		return context.Canceled.Error()
	}
	return context.DeadlineExceeded.Error()
}

// addresses explains for each address of a peer why its dial failed.
func (d Dialer) addresses(p peer.AddrInfo, begun time.Time, err error) []string {
	var told []string
	seen := make(map[string]bool)
	tell := func(a ma.Multiaddr, why string) {
		if seen[string(a.Bytes())] = true; why != "" {
			told = append(told, asIs(a).String()+": "+why)
		}
	}
	var de *swarm.DialError
	if errors.As(err, &de) {
		for _, te := range de.DialErrors {
			cause := te.Cause
			if f, ok := d.Host.failures.of(p.ID, te.Address, begun); ok && errors.Is(cause, swarm.ErrDialBackoff) {
				cause = f
			}
			why := causes.Dial(cause, d.Host.private)
			if wrong := addrs.Undialable(te.Address); wrong != nil {
				why = wrong.Error()
			} else if kind := addrs.KindOf(te.Address); errors.Is(cause, swarm.ErrNoTransport) && kind != addrs.Unknown {
				why = fmt.Sprintf("its transport, %s, is off; WithTransports switches it on", kind)
			}
			tell(te.Address, why)
		}
	} else if !ended(err) {
		return nil // no address was dialed
	}
	var silent []ma.Multiaddr
	for _, a := range slices.Concat(forDialing(p.Addrs), d.Host.KnownAddrs(p.ID)) {
		if seen[string(a.Bytes())] || len(a) == 0 {
			continue
		}
		if f, ok := d.Host.failures.of(p.ID, a, begun); ok {
			tell(a, causes.Dial(f, d.Host.private))
		} else if why := addrs.Undialable(a); why != nil {
			tell(a, why.Error())
		} else {
			silent = addrs.Add(silent, a)
		}
	}
	for _, a := range silent {
		switch {
		case madns.Matches(a) && len(silent)+len(told) > 1: // what it resolves to is there too
		case madns.Matches(a):
			tell(a, "it resolves to nothing that can be dialed; check the name and the DNS")
		case ended(err) && d.Host.private:
			tell(a, "no answer, as also when the keys of WithPrivateNetwork differ")
		case ended(err):
			tell(a, "no answer")
		}
	}
	if more := len(told) - maxTold; more > 0 {
		told = append(told[:maxTold:maxTold], fmt.Sprintf("and %d more", more))
	} else if de != nil && de.Skipped > 0 {
		told = append(told, fmt.Sprintf("and %d more", de.Skipped))
	}
	return told
}

// withFailures adds to the error of a context the known failures of addresses, for
// errors.Is and errors.As.
func (d Dialer) withFailures(p peer.AddrInfo, begun time.Time, err error) error {
	if !ended(err) {
		return err
	}
	all := []error{err}
	for _, a := range slices.Concat(p.Addrs, d.Host.KnownAddrs(p.ID)) {
		if f, ok := d.Host.failures.of(p.ID, a, begun); ok && len(all) <= maxTold {
			all = append(all, f)
		}
	}
	if len(all) == 1 {
		return err
	}
	return errors.Join(all...)
}

// forPeer reports whether the failure of an address concerns a peer, and not
// another one that was also expected there.
func forPeer(id peer.ID, err error) bool {
	m, ok := errors.AsType[sec.ErrPeerIDMismatch](err)
	return !ok || m.Expected == id
}
