package nethost

import (
	"context"
	"errors"
	"net"
	"slices"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	blankhost "github.com/libp2p/go-libp2p/p2p/host/blank"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/insecure"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
)

// BackDialer returns a host that dials peers back for AutoNAT: with the transports,
// the security, the limits and the gater of this one, but from other ports, so that
// the NATs in front of the peers do not take its packets for replies.
//
// Upstream makes one too, in config.makeAutoNATV2Host (v0.51), but leaves out the
// application's quicreuse.ConnManager, and gives it an identity of its own. That one
// would be refused by every node that deals only with the peers of its list, would
// appear as a peer that comes and goes, and is not needed: who asks tells the answer
// by its nonce. So this one has the identity of the host.
//
// Close the host it returns; that does not close what they share.
func (h *Host) BackDialer() (host.Host, error) {
	c := h.made
	if c == nil {
		return nil, errors.New("the host was not made for it")
	}
	key := h.Peerstore().PrivKey(h.ID())
	if key == nil {
		return nil, errors.New("the peerstore lacks the host's key")
	}
	book, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, err
	}
	d := &backDialer{}
	if err := errors.Join(book.AddPrivKey(h.ID(), key), book.AddPubKey(h.ID(), key.GetPublic())); err != nil {
		return nil, errors.Join(err, book.Close())
	}
	gater := backGater{c.ConnectionGater, h}
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(h.ID(), book, bus,
		swarm.WithConnectionGater(gater), swarm.WithResourceManager(h.swarm.ResourceManager()), swarm.WithMultiaddrResolver(h.names),
		swarm.WithDialRanker(swarm.NoDelayDialRanker), swarm.WithReadOnlyBlackHoleDetector(),
		// A failed dial says something about the peer's address, not about this node's
		// network.
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return nil, errors.Join(err, book.Close())
	}
	opts := []fx.Option{
		fx.NopLogger,
		fx.Supply(sw),
		fx.Provide(func() peer.ID { return h.ID() }),
		fx.Provide(func() crypto.PrivKey { return key }),
		fx.Provide(func() pnet.PSK { return c.PSK }),
		fx.Provide(func() connmgr.ConnectionGater { return gater }),
		fx.Provide(func() network.ResourceManager { return h.swarm.ResourceManager() }),
		fx.Provide(func() *tcpreuse.ConnMgr { return nil }), // it does not listen
		fx.Provide(func() webrtc.ListenUDPFn { return listenUDP }),
		fx.Provide(config.PrivKeyToStatelessResetKey, config.PrivKeyToTokenGeneratorKey),
		fx.Supply(c.Muxers),
		fx.Provide(fx.Annotate(tptu.New, fx.ParamTags(`name:"security"`))),
	}
	opts = append(opts, securityOf(c)...)
	if c.QUICReuse != nil {
		opts = append(opts, c.QUICReuse...)
	} else {
		opts = append(opts, fx.Provide(func(reset quic.StatelessResetKey, token quic.TokenGeneratorKey, lc fx.Lifecycle) (*quicreuse.ConnManager, error) {
			cm, err := quicreuse.NewConnManager(reset, token)
			if err == nil {
				lc.Append(fx.StopHook(cm.Close))
			}
			return cm, err
		}))
	}
	opts = append(opts, c.Transports...)
	opts = append(opts, fx.Invoke(fx.Annotate(func(all []transport.Transport) error {
		all, err := h.transports.chosen(all)
		if err != nil {
			return err
		}
		for _, t := range all {
			if err := sw.AddTransport(t); err != nil {
				return err
			}
		}
		return nil
	}, fx.ParamTags(`group:"transport"`))))
	d.app = fx.New(opts...)
	err = d.app.Err()
	if err == nil {
		err = d.app.Start(context.Background())
	}
	if err != nil {
		return nil, errors.Join(err, sw.Close(), d.app.Stop(context.Background()), book.Close())
	}
	d.BlankHost = blankhost.NewBlankHost(sw, blankhost.WithEventBus(bus))
	return d, nil
}

// securityOf provides the security protocols in the order of the configuration, as
// upstream does.
func securityOf(c *libp2p.Config) []fx.Option {
	if c.Insecure {
		return []fx.Option{fx.Provide(fx.Annotate(
			func(id peer.ID, key crypto.PrivKey) []sec.SecureTransport {
				return []sec.SecureTransport{insecure.NewWithIdentity(insecure.ID, id, key)}
			}, fx.ResultTags(`name:"security"`)))}
	}
	var opts []fx.Option
	for _, s := range c.SecurityTransports {
		name := `name:"security_` + string(s.ID) + `"`
		opts = append(opts,
			fx.Supply(fx.Annotate(s.ID, fx.ResultTags(name))),
			fx.Provide(fx.Annotate(s.Constructor, fx.ParamTags(name), fx.As(new(sec.SecureTransport)), fx.ResultTags(`group:"security"`))))
	}
	return append(opts, fx.Provide(fx.Annotate(func(all []sec.SecureTransport) []sec.SecureTransport {
		var list []sec.SecureTransport
		for _, s := range c.SecurityTransports {
			for _, t := range all {
				if t.ID() == s.ID {
					list = append(list, t)
				}
			}
		}
		return list
	}, fx.ParamTags(`group:"security"`), fx.ResultTags(`name:"security"`))))
}

func listenUDP(netw string, a *net.UDPAddr) (net.PacketConn, error) { return net.ListenUDP(netw, a) }

// backDialer is a host that only dials.
type backDialer struct {
	*blankhost.BlankHost
	app *fx.App
}

func (d *backDialer) Close() error {
	return errors.Join(d.BlankHost.Close(), d.app.Stop(context.Background()), d.Peerstore().Close())
}

// backGater refuses addresses where a stranger would send this node into networks
// that it does not come from: private addresses are dialed only for peers that are
// connected from such.
type backGater struct {
	connmgr.ConnectionGater
	h *Host
}

func (g backGater) InterceptAddrDial(id peer.ID, a ma.Multiaddr) bool {
	if !g.ConnectionGater.InterceptAddrDial(id, a) {
		return false
	}
	reach := addrs.ReachOf(a)
	return reach == addrs.Global || slices.ContainsFunc(g.h.Conns(id), func(c Conn) bool {
		return !c.Relayed && addrs.ReachOf(c.Addr) == reach
	})
}
