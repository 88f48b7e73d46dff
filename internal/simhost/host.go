package simhost

import (
	"net"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"
)

// QUIC returns the options of a libp2p host on the machine whose QUIC transport
// sends its packets over the simulated network. The host must listen on
// ListenAddr, and QUIC must be its only transport.
func (m *Machine) QUIC() []libp2p.Option {
	return []libp2p.Option{
		libp2p.QUICReuse(
			func(lc fx.Lifecycle, reset quic.StatelessResetKey, token quic.TokenGeneratorKey, opts ...quicreuse.Option) (*quicreuse.ConnManager, error) {
				cm, err := quicreuse.NewConnManager(reset, token, opts...)
				if err != nil {
					return nil, err
				}
				// Libp2p closes only its own connection manager.
				lc.Append(fx.StopHook(cm.Close))
				return cm, nil
			},
			quicreuse.OverrideListenUDP(m.ListenUDP),
			quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return ownIP{m}, nil }),
		),
	}
}

// ownIP selects the machine's only address as the source.
type ownIP struct{ m *Machine }

func (s ownIP) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) {
	return s.m.ip.AsSlice(), nil
}
