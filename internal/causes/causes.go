// Package causes explains why a dial, a DNS lookup or a listener failed: in one
// line, with the option to change. All parts use its texts for such failures.
package causes

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multistream"
)

// Dial explains why a dial of one address failed. With private, the key of a
// private network may be the cause of a failed handshake.
func Dial(err error, private bool) string {
	mismatch, isMismatch := errors.AsType[sec.ErrPeerIDMismatch](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	var unsupported multistream.ErrNotSupported[protocol.ID]
	switch {
	case isMismatch:
		return fmt.Sprintf("another peer answers there, %s (peer id mismatch)", mismatch.Actual)
	case isDNS:
		return name(dns)
	case errors.Is(err, swarm.ErrGaterDisallowedConnection):
		return "its subnet is banned (see Bans), a gater of WithLibp2pOptions refuses it, or it was learned from a stranger, who may not send this node there: give Connect the address"
	case errors.Is(err, swarm.ErrNoTransport), errors.Is(err, swarm.ErrQUICDraft29):
		return "no transport of this node dials such an address; WithTransports adds transports"
	case says(err, "websocket: bad handshake"):
		return "what answers there is not the WebSocket of a libp2p node"
	case errors.Is(err, swarm.ErrDialToSelf):
		return "it is an address of this node itself"
	case errors.Is(err, swarm.ErrDialRefusedBlackHole):
		return "it was not tried: almost all dials over UDP, or over IPv6, have failed lately"
	case errors.Is(err, swarm.ErrDialBackoff):
		return "it was not tried: another dial of it failed just before"
	case says(err, relayText) && errors.As(err, &unsupported):
		return "the peer in the middle relays for nobody; start it with WithRelayService, or name another relay"
	case says(err, "NO_RESERVATION"):
		return "the peer has no reservation at that relay; it needs WithAutoRelay with it"
	case is(err, refused):
		return "connection refused: nothing listens there"
	case is(err, unreachable):
		return "no route to it from this machine (" + Line(err) + ")"
	}
	if from, ok := NotYetValid(err); ok {
		return "its certificate holds from " + from + " on: the clock of this machine is behind, or the peer's is ahead"
	}
	if cert, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is signed by an authority that this machine does not know; name the authority in the RootCAs of WithTLSConfig (" + Line(cert) + ")"
	}
	if cert, ok := errors.AsType[x509.CertificateInvalidError](err); ok && cert.Reason == x509.Expired && cert.Cert != nil {
		return "its certificate has expired, at " + cert.Cert.NotAfter.UTC().Format(time.RFC3339) + ": it has to be renewed there, or the clock of this machine is ahead"
	}
	if cert, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is for another name: dial it by a name that the certificate has (" + Line(cert) + ")"
	}
	if says(err, "cert hash not found") {
		return "its certificate is not the one that the address names, in /certhash: the address is old, or of another peer"
	}
	garbled, cut := Handshake(err)
	raw := " (" + Line(err) + ")"
	switch {
	case remote(err) != "":
		return Line(err) + remote(err)
	case garbled && private, cut && private:
		return "the handshake breaks off, as when the keys of WithPrivateNetwork differ or the other side has none" + raw
	case garbled:
		return "what answers there makes no sense: it is no libp2p node, or it has the key of a private network (WithPrivateNetwork)" + raw
	case cut:
		return "the other side hangs up or falls silent in the handshake: it may be no libp2p node, refuse this one, have no room, or be in a private network (WithPrivateNetwork)" + raw
	case says(err, "negotiate security protocol") && errors.As(err, &unsupported):
		return "the two sides have no security protocol in common; see WithSecurity" + raw
	case says(err, "negotiate stream multiplexer") && errors.As(err, &unsupported):
		return "the two sides have no stream multiplexer in common" + raw
	case timeout(err):
		return "no answer" + raw
	default:
		return Line(err)
	}
}

// relayText is in the error of every dial that a relay refuses.
const relayText = "error opening hop stream to relay"

// name explains why a DNS name does not resolve.
func name(err *net.DNSError) string {
	switch {
	case err.IsNotFound:
		return "the name " + err.Name + " does not resolve: there is no such name, or it has no address of this kind"
	case err.IsTimeout:
		return "the name " + err.Name + " does not resolve: the DNS does not answer"
	default:
		return "the name " + err.Name + " does not resolve (" + Line(err) + ")"
	}
}

// Remote describes the code with which the other side ended a connection or a
// stream, and reports whether the code is for a limit; see
// github.com/libp2p/specs/blob/master/error-codes.
func Remote(err error) (words string, limit bool) {
	if se, ok := errors.AsType[*network.StreamError](err); ok {
		if !se.Remote {
			return "", false
		}
		switch se.ErrorCode {
		case network.StreamProtocolNegotiationFailed:
			return " (the other side gave up the negotiation of the protocol)", false
		case network.StreamResourceLimitExceeded, network.StreamRateLimited:
			return limitWords, true
		case network.StreamProtocolViolation:
			return " (the other side says that this one violated the protocol)", false
		case network.StreamShutdown:
			return closingWords, false
		case network.StreamGated:
			return gatedWords, false
		default:
			return "", false
		}
	}
	ce, ok := errors.AsType[*network.ConnError](err)
	if !ok || !ce.Remote {
		return "", false
	}
	switch ce.ErrorCode {
	case network.ConnGated:
		return gatedWords, false
	case network.ConnResourceLimitExceeded, network.ConnRateLimited:
		return limitWords, true
	case network.ConnGarbageCollected:
		return " (the other side had too many connections)", false
	case network.ConnShutdown:
		return closingWords, false
	default:
		return "", false
	}
}

const (
	limitWords   = " (the other side reached a limit)"
	gatedWords   = " (the other side has banned this node, or does not allow it)"
	closingWords = " (the other side is closing)"
)

func remote(err error) string {
	words, _ := Remote(err)
	return words
}

// garbledTexts are the errors of multistream and varint for garbled data.
var garbledTexts = []string{
	"incoming message was too large", "message did not have trailing newline", "received mismatch in protocol id",
	"varint not minimally encoded", "varints larger than uint63", "varints malformed",
}

// cutTexts are the errors of a handshake that the other side has ended, or in
// which it is silent.
var cutTexts = []string{"connection reset", "broken pipe", "EOF", "forcibly closed", "deadline exceeded", "i/o timeout"}

// Collided reports whether a handshake failed as when the other side begins one, too:
// neither with a time-out, nor because somebody else has answered.
func Collided(err error) bool {
	_, mismatch := errors.AsType[sec.ErrPeerIDMismatch](err)
	return says(err, "negotiate security protocol") && !mismatch && !timeout(err)
}

// Overtaken reports whether a dial through a relay failed because another one to the
// same peer was under way.
func Overtaken(err error) bool { return says(err, "concurrent active dial") }

// Handshake reports whether a dial failed as with different pre-shared keys: the
// received data is garbled, or the other side, for which the sent data is garbled,
// closes the connection or waits for more (cut). The latter has other causes, too.
func Handshake(err error) (garbled, cut bool) {
	visit(err, func(err error) bool {
		text := err.Error()
		in := func(s string) bool { return strings.Contains(text, s) }
		garbled = garbled || slices.ContainsFunc(garbledTexts, in)
		cut = cut || errors.Is(err, io.EOF) || in("could not read full nonce") ||
			in("negotiate security protocol") && slices.ContainsFunc(cutTexts, in)
		return false
	})
	return garbled, cut
}

// NotYetValid reports whether a dial failed because the peer's certificate, which
// libp2p dates an hour back, is not valid yet by this machine's clock, and from
// when on it is valid.
func NotYetValid(err error) (from string, ok bool) {
	ok = visit(err, func(err error) bool {
		_, text, ok := strings.Cut(err.Error(), "is not yet valid: current time ")
		if !ok {
			return false
		}
		if _, text, ok = strings.Cut(text, " is before "); !ok {
			return false // the certificate has expired, which has the same error type
		}
		end := strings.IndexFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789-:TZ+", r) })
		if end < 0 {
			end = len(text)
		}
		from = strings.TrimRight(text[:end], ":")
		return true
	})
	return from, ok
}

// Line returns an error's text in one line.
func Line(err error) string { return Clean(strings.Join(strings.Fields(err.Error()), " ")) }

// timeout reports whether an error is that of an expired deadline.
func timeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || os.IsTimeout(err) ||
		says(err, "no recent network activity") || says(err, "handshake did not complete in time")
}

// says reports whether the text of an error, or of one that it wraps, contains a
// text.
func says(err error, text string) bool {
	return visit(err, func(err error) bool { return strings.Contains(err.Error(), text) })
}

// visit calls f with an error and those that it wraps, whose texts it may hide,
// until f returns true, and reports whether it did.
func visit(err error, f func(error) bool) bool {
	if err == nil {
		return false
	}
	if f(err) {
		return true
	}
	switch e := err.(type) { //nolint:errorlint // it is this function that unwraps
	case interface{ Unwrap() error }:
		return visit(e.Unwrap(), f)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), func(err error) bool { return visit(err, f) })
	default:
		return false
	}
}
