// Package addrs parses and classifies multiaddrs, with errors that tell whoever
// typed the address what to correct.
package addrs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
)

// MaxLen bounds the text of one address.
const MaxLen = 2048

// Kind names the transport that an address is for.
type Kind string

// The kinds. Their text is the value of the root package's Transport type.
const (
	Unknown      Kind = ""
	TCP          Kind = "tcp"
	QUIC         Kind = "quic"
	WebSocket    Kind = "websocket"
	WebTransport Kind = "webtransport"
	WebRTCDirect Kind = "webrtc-direct"
	Circuit      Kind = "p2p-circuit"
)

// Parse reads one multiaddr.
func Parse(s string) (ma.Multiaddr, error) {
	switch {
	case s == "":
		return nil, errors.New("the address is empty")
	case len(s) > MaxLen:
		return nil, fmt.Errorf("the address has %d characters, more than %d", len(s), MaxLen)
	case !strings.HasPrefix(s, "/"):
		return nil, fmt.Errorf("%q is not a multiaddr: it must start with a slash, like /ip4/127.0.0.1/tcp/4001", s)
	}
	if err := checkParts(s); err != nil {
		return nil, fmt.Errorf("%q is not a multiaddr: %w", s, err)
	}
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a multiaddr: %w", s, err)
	}
	return a, nil
}

// checkParts finds what is most often wrong with an address, and says it as the
// parser does not: by the part that somebody wrote.
func checkParts(s string) error {
	parts := strings.Split(strings.Trim(s, "/"), "/")
	for i := 0; i < len(parts); i++ {
		proto := ma.ProtocolWithName(parts[i])
		switch {
		case proto.Code == 0:
			return fmt.Errorf("%q is not a protocol that addresses are made of", parts[i])
		case proto.Path:
			return nil // the rest is its value
		case proto.Size == 0:
			continue
		}
		i++
		if i == len(parts) || parts[i] == "" {
			return fmt.Errorf("/%s needs a value after it", proto.Name)
		}
		if err := checkPart(proto.Code, parts[i]); err != nil {
			return err
		}
	}
	return nil
}

func checkPart(code int, value string) error {
	switch code {
	case ma.P_TCP, ma.P_UDP:
		if _, err := strconv.ParseUint(value, 10, 16); err != nil {
			return fmt.Errorf("%q is not a port, which is a number up to 65535", value)
		}
	case ma.P_IP4, ma.P_IP6:
		ip, err := netip.ParseAddr(value)
		switch {
		case err != nil:
			return fmt.Errorf("%q is not an IP address; write a name as /dns/<name>", value)
		case code == ma.P_IP4 && !ip.Is4():
			return fmt.Errorf("%q is not an IPv4 address; write /ip6/%s", value, value)
		case code == ma.P_IP6 && ip.Is4():
			return fmt.Errorf("%q is not an IPv6 address; write /ip4/%s", value, value)
		case ip.Zone() != "":
			return fmt.Errorf("%q has a zone, which comes first: /ip6zone/%s/ip6/%s", value, ip.Zone(), ip.WithZone(""))
		}
	case ma.P_P2P:
		if _, err := peer.Decode(value); err != nil {
			return fmt.Errorf("%q is not a peer ID", value)
		}
	}
	return nil
}

// ParsePeer reads a multiaddr that ends in the peer's ID.
func ParsePeer(s string) (peer.AddrInfo, error) {
	a, err := Parse(s)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	ai, err := peer.AddrInfoFromP2pAddr(a)
	if err != nil {
		return peer.AddrInfo{}, fmt.Errorf("%q does not end in /p2p/<peer ID>, so the identity of the peer there cannot be verified: %w", s, err)
	}
	return *ai, nil
}

// Merge joins infos by peer ID, in order of first appearance, each address
// once. Its result shares no memory with its input.
func Merge(infos ...peer.AddrInfo) []peer.AddrInfo {
	var out []peer.AddrInfo
	at := make(map[peer.ID]int, len(infos))
	for _, ai := range infos {
		i, ok := at[ai.ID]
		if !ok {
			i = len(out)
			at[ai.ID] = i
			out = append(out, peer.AddrInfo{ID: ai.ID})
		}
		for _, a := range ai.Addrs {
			if !ma.Contains(out[i].Addrs, a) {
				out[i].Addrs = append(out[i].Addrs, a)
			}
		}
	}
	return out
}

// KindOf returns the transport that an address is for.
func KindOf(a ma.Multiaddr) Kind {
	kind := Unknown
	for _, c := range a {
		switch c.Protocol().Code {
		case ma.P_CIRCUIT:
			return Circuit
		case ma.P_TCP:
			kind = TCP
		case ma.P_QUIC_V1:
			kind = QUIC
		case ma.P_WS, ma.P_WSS:
			kind = WebSocket
		case ma.P_WEBTRANSPORT:
			kind = WebTransport
		case ma.P_WEBRTC_DIRECT:
			kind = WebRTCDirect
		}
	}
	return kind
}

// IsWSS reports whether an address is for WebSocket with TLS.
func IsWSS(a ma.Multiaddr) bool {
	tls := false
	for _, c := range a {
		switch c.Protocol().Code {
		case ma.P_TLS:
			tls = true
		case ma.P_WS:
			return tls
		case ma.P_WSS:
			return true
		}
	}
	return false
}

// AddrPort returns the protocol, "udp" or "tcp", the IP and the port with which an
// address begins.
func AddrPort(a ma.Multiaddr) (protocol string, at netip.AddrPort, ok bool) {
	if len(a) < 2 || a[1].Protocol().Code != ma.P_TCP && a[1].Protocol().Code != ma.P_UDP {
		return "", at, false
	}
	ip, isIP := netip.AddrFromSlice(a[0].RawValue())
	port, err := strconv.ParseUint(a[1].Value(), 10, 16)
	if code := a[0].Protocol().Code; !isIP || err != nil || code != ma.P_IP4 && code != ma.P_IP6 {
		return "", at, false
	}
	return a[1].Protocol().Name, netip.AddrPortFrom(ip, uint16(port)), true
}

// IsDNSAddr reports whether an address is a name that stands for others.
func IsDNSAddr(a ma.Multiaddr) bool { return len(a) > 0 && a[0].Protocol().Code == ma.P_DNSADDR }

// IsName reports whether an address begins with a name that stands for IP
// addresses.
func IsName(a ma.Multiaddr) bool {
	if len(a) == 0 {
		return false
	}
	code := a[0].Protocol().Code
	return code == ma.P_DNS || code == ma.P_DNS4 || code == ma.P_DNS6
}

// IsCircuit reports whether an address goes through a relay.
func IsCircuit(a ma.Multiaddr) bool { return KindOf(a) == Circuit }

// HasPeerID reports whether an address names a peer.
func HasPeerID(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Protocol().Code == ma.P_P2P {
			return true
		}
	}
	return false
}

// IsListenOnly reports whether an address is only for listening: with the
// unspecified IP, which means every interface, or port 0, which means any.
func IsListenOnly(a ma.Multiaddr) bool {
	for i, c := range a {
		switch c.Protocol().Code {
		case ma.P_TCP, ma.P_UDP:
			if c.Value() == "0" {
				return true
			}
		case ma.P_IP4, ma.P_IP6:
			if i == 0 && (c.Value() == "0.0.0.0" || c.Value() == "::") {
				return true
			}
		}
	}
	return false
}

// Add appends an address to a list that does not have it.
func Add(list []ma.Multiaddr, a ma.Multiaddr) []ma.Multiaddr {
	if ma.Contains(list, a) {
		return list
	}
	return append(list, a)
}

// Undialable says why nobody can dial an address, whatever transports he has;
// nil when somebody can, or when it is of a kind that is not known here. It is
// the check of all addresses that are announced, configured or learned.
func Undialable(a ma.Multiaddr) error {
	circuit := slices.IndexFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	switch {
	case len(a) == 0:
		return errors.New("it is empty")
	case circuit == 0 || circuit > 0 && a[circuit-1].Protocol().Code != ma.P_P2P:
		return errors.New("it names no relay: write /<address of the relay>/p2p/<its ID>/p2p-circuit")
	case circuit == 1: // the relay's addresses are looked up
		return nil
	case circuit > 0:
		return Undialable(a[:circuit-1])
	case IsName(a) && strings.ContainsFunc(a[0].Value(), unprintable):
		return errors.New("its name has characters that no name has")
	case IsListenOnly(a):
		return errors.New("it means every interface or any port, and is for listening alone")
	case linkLocal(a):
		return errors.New("link-local IPv6 addresses mean something on their link alone, and are dialed over TCP, with the interface: /ip6zone/<interface>/ip6/…/tcp/<port>; use another address of the machine elsewhere")
	default:
		return Misshapen(a)
	}
}

func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// Misshapen says what an address lacks, or has too much, of what its transport
// needs; nil for one that is complete, or of a kind that is not known here.
func Misshapen(a ma.Multiaddr) error {
	if len(a) == 0 {
		return errors.New("it is empty")
	}
	has := make(map[int]bool, len(a))
	for _, c := range a {
		has[c.Protocol().Code] = true
	}
	switch a[0].Protocol().Code {
	case ma.P_TCP, ma.P_UDP:
		return errors.New("it has no IP address or name in front of the port")
	case ma.P_IP4, ma.P_IP6, ma.P_IP6ZONE, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
	default:
		return nil
	}
	tcp, udp := has[ma.P_TCP], has[ma.P_UDP]
	switch {
	case !tcp && !udp:
		return errors.New("it has no port: write /tcp/<port>, or /udp/<port>/quic-v1")
	case has[ma.P_QUIC]:
		return errors.New("/quic is QUIC draft-29, which is not spoken any more: write /quic-v1")
	case tcp && !udp && (has[ma.P_QUIC_V1] || has[ma.P_WEBTRANSPORT] || has[ma.P_WEBRTC_DIRECT]):
		return errors.New("QUIC, WebTransport and WebRTC need /udp in place of /tcp")
	case udp && !tcp && (has[ma.P_WS] || has[ma.P_WSS]):
		return errors.New("WebSocket needs /tcp in place of /udp")
	case has[ma.P_WEBTRANSPORT] && !has[ma.P_QUIC_V1]:
		return errors.New("WebTransport needs /quic-v1 in front of it")
	case udp && !tcp && bare(a):
		return errors.New("it has no transport on its UDP port: append /quic-v1")
	}
	return nil
}

// bare reports whether an address ends in a port, or in a port and a peer's ID.
func bare(a ma.Multiaddr) bool {
	last := a[len(a)-1].Protocol().Code
	if last == ma.P_P2P && len(a) > 1 {
		last = a[len(a)-2].Protocol().Code
	}
	return last == ma.P_TCP || last == ma.P_UDP
}

// linkLocal reports whether an address starts with a link-local IPv6 address,
// with its zone or without.
func linkLocal(a ma.Multiaddr) bool {
	for _, c := range a[:min(len(a), 2)] {
		if ip, err := netip.ParseAddr(c.Value()); c.Protocol().Code == ma.P_IP6 && err == nil {
			return ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast()
		}
	}
	return false
}

// IsZoned reports whether an address is a link-local IPv6 one, with its zone, of TCP:
// this machine can dial it, and others on the link, each with a zone of its own.
func IsZoned(a ma.Multiaddr) bool {
	return KindOf(a) == TCP && len(a) > 2 && a[0].Protocol().Code == ma.P_IP6ZONE && a[1].Protocol().Code == ma.P_IP6 &&
		linkLocal(a) && Misshapen(a) == nil
}

// IsIP6 reports whether an address starts with an IPv6 address.
func IsIP6(a ma.Multiaddr) bool {
	return len(a) > 0 && (a[0].Protocol().Code == ma.P_IP6 || a[0].Protocol().Code == ma.P_IP6ZONE)
}

// maxPeerID bounds a peer ID, in bytes. Those of keys have 34 to 42.
const maxPeerID = 128

// IsPeerID reports whether an ID is valid by the peer ID spec: a key, or the
// SHA-256 of one. The text of an ID happens to be a multihash too, of another
// kind.
func IsPeerID(id peer.ID) bool {
	if len(id) > maxPeerID {
		return false
	}
	h, err := multihash.Decode([]byte(id))
	return err == nil && (h.Code == multihash.IDENTITY || h.Code == multihash.SHA2_256)
}

// PrivatePrefixes are the address ranges that are not routed on the Internet:
// loopback, RFC 1918, RFC 6598, link-local and unique local.
func PrivatePrefixes() []netip.Prefix { return slices.Clone(privatePrefixes) }

var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
}
