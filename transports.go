package p2pnode

import (
	"slices"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// Transport names a transport that WithTransports can enable.
type Transport string

// The transports. The first three are on by default.
const (
	TransportTCP          = Transport(addrs.TCP)
	TransportQUIC         = Transport(addrs.QUIC) // QUIC version 1, RFC 9000
	TransportWebSocket    = Transport(addrs.WebSocket)
	TransportWebTransport = Transport(addrs.WebTransport)
	TransportWebRTCDirect = Transport(addrs.WebRTCDirect)
)

// Security names a security protocol for the stream transports, TCP and
// WebSocket. The others bring their own.
type Security string

// The security protocols, both on by default.
const (
	SecurityNoise Security = "noise" // /noise
	SecurityTLS   Security = "tls"   // /tls/1.0.0, which is TLS 1.3
)

var allTransports = []Transport{TransportTCP, TransportQUIC, TransportWebSocket, TransportWebTransport, TransportWebRTCDirect}

func (t Transport) known() bool { return slices.Contains(allTransports, t) }

// canPrivate reports whether a transport can carry a pre-shared key.
func (t Transport) canPrivate() bool { return t == TransportTCP || t == TransportWebSocket }

// anyPort is the transport's part of an address that takes any free port.
func (t Transport) anyPort() string {
	return map[Transport]string{
		TransportTCP:          "/tcp/0",
		TransportQUIC:         "/udp/0/quic-v1",
		TransportWebSocket:    "/tcp/0/ws",
		TransportWebTransport: "/udp/0/quic-v1/webtransport",
		TransportWebRTCDirect: "/udp/0/webrtc-direct",
	}[t]
}

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
