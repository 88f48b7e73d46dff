package causes_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/causes"
	"github.com/go-p2pnode/p2pnode/internal/golden"
)

func system(op string, e syscall.Errno) error {
	return fmt.Errorf("outer: %w", &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, e)})
}

// The numbers of Windows are understood, which package syscall's are not there.
func TestWindowsErrors(t *testing.T) {
	a := ma.StringCast("/ip4/192.0.2.1/tcp/1")
	for e, want := range map[syscall.Errno]string{10048: "in use by another program", 10049: "WithAnnounceAddrs", 10013: "does not let this process"} {
		if got := causes.Listen(a, system("bind", e)); !strings.Contains(got, want) {
			t.Errorf("listen, %d: %s", int(e), got)
		}
	}
	if !causes.InUse(system("bind", 10048)) || causes.InUse(system("bind", 10049)) {
		t.Error("WSAEADDRINUSE is not told apart")
	}
	for e, want := range map[syscall.Errno]string{10061: "connection refused", 10051: "no route", 10065: "no route"} {
		if got := causes.Dial(system("connect", e), false); !strings.Contains(got, want) {
			t.Errorf("dial, %d: %s", int(e), got)
		}
	}
}

func TestGoldenCauses(t *testing.T) {
	a, own := ma.StringCast("/ip4/192.0.2.1/tcp/1"), &causes.OwnListener{By: ma.StringCast("/ip4/0.0.0.0/tcp/1")}
	name := func(e net.DNSError) error { e.Name = "acme.test"; return &e }
	cut, garbled := errors.New("failed to negotiate security protocol: EOF"), errors.New("failed to negotiate security protocol: incoming message was too large")
	var texts []golden.Text
	for what, text := range map[string]string{
		"dial: refused":            causes.Dial(system("connect", 10061), false),
		"dial: deadline":           causes.Dial(context.DeadlineExceeded, false),
		"dial: cut":                causes.Dial(cut, false),
		"dial: cut, with a key":    causes.Dial(cut, true),
		"dial: garbled":            causes.Dial(garbled, false),
		"dial: garbled, with key":  causes.Dial(garbled, true),
		"dial: no such name":       causes.Dial(name(net.DNSError{IsNotFound: true}), false),
		"dial: a silent DNS":       causes.Dial(name(net.DNSError{IsTimeout: true}), false),
		"dial: back-off":           causes.Dial(swarm.ErrDialBackoff, false),
		"dial: black hole":         causes.Dial(swarm.ErrDialRefusedBlackHole, false),
		"dial: itself":             causes.Dial(swarm.ErrDialToSelf, false),
		"dial: no transport":       causes.Dial(swarm.ErrNoTransport, false),
		"dial: no reservation":     causes.Dial(errors.New("error opening relay circuit: NO_RESERVATION (204)"), false),
		"dial: clock":              causes.Dial(errors.New("x509: certificate has expired or is not yet valid: current time 2020-01-01T00:00:00Z is before 2026-01-01T00:00:00Z"), false),
		"dial: expired":            causes.Dial(x509.CertificateInvalidError{Cert: &x509.Certificate{NotAfter: time.Unix(1e9, 0)}, Reason: x509.Expired}, false),
		"dial: unknown authority":  causes.Dial(x509.UnknownAuthorityError{}, false),
		"dial: another name":       causes.Dial(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"node.test"}}, Host: "192.0.2.1"}, false),
		"dial: old certhash":       causes.Dial(errors.New("CRYPTO_ERROR 0x12a: cert hash not found: 01 (expected: 02)"), false),
		"listen: itself":           causes.Listen(a, own),
		"listen: without IPv6":     causes.Listen(a, syscall.EAFNOSUPPORT),
		"listen: no such name":     causes.Listen(a, name(net.DNSError{IsNotFound: true})),
		"listen: no certificate":   causes.Listen(a, errors.New("cannot listen on wss address without a tls.Config")),
		"listen: a link-local one": causes.Listen(ma.StringCast("/ip6/fe80::1/tcp/1"), syscall.EINVAL),
	} {
		texts = append(texts, golden.Text{Name: what, Text: text})
	}
	golden.Check(t, "causes", sorted(texts))
}

// What is hidden in an error that has another text is found.
func TestHandshakeLooksInside(t *testing.T) {
	err := hiding{errors.Join(errors.New("x"), fmt.Errorf("failed to negotiate security protocol: %w", syscall.ECONNRESET))}
	if garbled, cut := causes.Handshake(err); garbled || !cut {
		t.Errorf("garbled %v, cut %v", garbled, cut)
	}
}

type hiding struct{ error }

func (hiding) Error() string   { return "words" }
func (h hiding) Unwrap() error { return h.error }

func sorted(list []golden.Text) []golden.Text {
	slices.SortFunc(list, func(a, b golden.Text) int { return strings.Compare(a.Name, b.Name) })
	return list
}
