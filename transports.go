package p2pnode

import (
	"slices"
	"strings"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Transport names a transport; see [WithTransports].
type Transport string

// The transports. The first three are on by default.
const (
	// TransportTCP ("tcp") is TCP with the protocols of [WithSecurity].
	TransportTCP = Transport(addrs.TCP)
	// TransportQUIC ("quic") is QUIC version 1, RFC 9000.
	TransportQUIC = Transport(addrs.QUIC)
	// TransportWebSocket ("websocket") is WebSocket over TCP with the protocols of
	// [WithSecurity].
	TransportWebSocket = Transport(addrs.WebSocket)
	// TransportWebTransport ("webtransport") is WebTransport over QUIC, for
	// browsers.
	TransportWebTransport = Transport(addrs.WebTransport)
	// TransportWebRTCDirect ("webrtc-direct") is WebRTC without a signaling
	// server, for browsers.
	TransportWebRTCDirect = Transport(addrs.WebRTCDirect)
)

// Security names a security protocol of the TCP and WebSocket transports; see
// [WithSecurity]. The other transports bring their own.
type Security string

// The security protocols, both on by default.
const (
	// SecurityNoise ("noise") is /noise. Specification:
	// github.com/libp2p/specs/tree/master/noise.
	SecurityNoise Security = "noise"
	// SecurityTLS ("tls") is /tls/1.0.0, which uses TLS 1.3. Specification:
	// github.com/libp2p/specs/blob/master/tls/tls.md.
	SecurityTLS Security = "tls"
)

var allTransports = []Transport{TransportTCP, TransportQUIC, TransportWebSocket, TransportWebTransport, TransportWebRTCDirect}

func (t Transport) known() bool { return slices.Contains(allTransports, t) }

// canPrivate reports whether a transport can carry a pre-shared key.
func (t Transport) canPrivate() bool { return t == TransportTCP || t == TransportWebSocket }

// anyPort is the transport's part of an address with any free port.
func (t Transport) anyPort() string {
	return map[Transport]string{
		TransportTCP:          "/tcp/0",
		TransportQUIC:         "/udp/0/quic-v1",
		TransportWebSocket:    "/tcp/0/ws",
		TransportWebTransport: "/udp/0/quic-v1/webtransport",
		TransportWebRTCDirect: "/udp/0/webrtc-direct",
	}[t]
}

// onUDP is what follows the UDP port in an address of a transport for browsers.
func (t Transport) onUDP() string { return strings.TrimPrefix(t.anyPort(), "/udp/0") }

// constant is the name of the transport's constant, for error texts.
func (t Transport) constant() string {
	return map[Transport]string{
		TransportTCP:          "TransportTCP",
		TransportQUIC:         "TransportQUIC",
		TransportWebSocket:    "TransportWebSocket",
		TransportWebTransport: "TransportWebTransport",
		TransportWebRTCDirect: "TransportWebRTCDirect",
	}[t]
}
