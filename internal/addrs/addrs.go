// Package addrs parses and classifies multiaddrs, with errors that tell whoever
// typed the address what to correct.
package addrs

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

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
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a multiaddr: %w", s, err)
	}
	return a, nil
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
func PrivatePrefixes() []netip.Prefix {
	return []netip.Prefix{
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
}
