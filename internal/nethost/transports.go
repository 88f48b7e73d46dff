package nethost

import (
	"crypto/tls"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/fx"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// transports makes the host's transports and remembers them, so that the
// application's replace them: the swarm refuses two for one protocol.
type transports struct {
	ours    []transport.Transport
	ranker  *ranker // nil if no holes are punched
	streams int     // that a peer may open; 0 for libp2p's default

	dial time.Duration // how long a dial may take; 0 for libp2p's defaults

	tls, dialTLS *tls.Config // of WebSocket; nil for none, and for the system's roots
}

// option returns the libp2p option for one of the node's transports.
func (t *transports) option(kind addrs.Kind) libp2p.Option {
	switch kind {
	case addrs.TCP:
		return libp2p.Transport(func(u transport.Upgrader, rm network.ResourceManager, share *tcpreuse.ConnMgr) (transport.Transport, error) {
			var opts []tcp.Option
			if t.dial > 0 {
				opts = append(opts, tcp.WithConnectionTimeout(t.dial))
			}
			made, err := tcp.NewTCPTransport(u, rm, share, opts...)
			if err != nil || t.ranker == nil {
				return t.keep(linkTCP{made}, err)
			}
			fresh, err := tcp.NewTCPTransport(u, rm, nil, append(opts, tcp.DisableReuseport())...)
			return t.keep(freshTCP{linkTCP{made}, fresh, t.ranker}, err)
		})
	case addrs.QUIC:
		return libp2p.Transport(func(key crypto.PrivKey, conns *quicreuse.ConnManager, psk pnet.PSK, gater connmgr.ConnectionGater, rm network.ResourceManager) (transport.Transport, error) {
			tune(conns, t.streams, t.dial)
			return t.keep(quic.NewTransport(key, conns, psk, gater, rm))
		})
	case addrs.WebSocket:
		return libp2p.Transport(func(u transport.Upgrader, rm network.ResourceManager, share *tcpreuse.ConnMgr) (transport.Transport, error) {
			var opts []websocket.Option
			if t.dial > 0 {
				opts = append(opts, websocket.WithHandshakeTimeout(t.dial))
			}
			if t.tls != nil {
				opts = append(opts, websocket.WithTLSConfig(t.tls))
			}
			if t.dialTLS != nil {
				opts = append(opts, websocket.WithTLSClientConfig(t.dialTLS))
			}
			return t.keep(websocket.New(u, rm, share, opts...))
		})
	case addrs.WebTransport:
		return libp2p.Transport(func(key crypto.PrivKey, psk pnet.PSK, conns *quicreuse.ConnManager, gater connmgr.ConnectionGater, rm network.ResourceManager) (transport.Transport, error) {
			tune(conns, t.streams, t.dial)
			return t.keep(newWebTransport(key, psk, conns, gater, rm))
		})
	default: // addrs.WebRTCDirect; there are no others
		return libp2p.Transport(func(key crypto.PrivKey, psk pnet.PSK, gater connmgr.ConnectionGater, rm network.ResourceManager, listen webrtc.ListenUDPFn) (transport.Transport, error) {
			return t.keep(webrtc.New(key, psk, gater, rm, listen))
		})
	}
}

func (t *transports) keep(made transport.Transport, err error) (transport.Transport, error) {
	if err != nil {
		return nil, err
	}
	t.ours = append(t.ours, made)
	return made, nil
}

// ErrWebSocketReplaced is returned if another transport for WebSocket takes the place
// of the one that the certificates were for.
var ErrWebSocketReplaced = errors.New("a transport of WithLibp2pOptions replaces WebSocket, which this option configures; drop one of the two")

// yield removes the node's transports whose protocols another transport serves.
func (t *transports) yield() libp2p.Option {
	return libp2p.WithFxOption(fx.Decorate(fx.Annotate(
		t.chosen, fx.ParamTags(`group:"transport"`), fx.ResultTags(`group:"transport"`),
	)))
}

// chosen leaves out of all transports the node's own for which there is another.
func (t *transports) chosen(all []transport.Transport) ([]transport.Transport, error) {
	taken := make(map[int]bool)
	for _, other := range all {
		if !slices.Contains(t.ours, other) {
			for _, p := range other.Protocols() {
				taken[p] = true
			}
		}
	}
	if taken[ma.P_WS] && (t.tls != nil || t.dialTLS != nil) {
		return nil, ErrWebSocketReplaced
	}
	return slices.DeleteFunc(slices.Clone(all), func(one transport.Transport) bool {
		return slices.Contains(t.ours, one) && slices.ContainsFunc(one.Protocols(), func(p int) bool { return taken[p] })
	}), nil
}
