package p2ptest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/prometheus/client_golang/prometheus"
)

// RawNode is a peer assembled by hand from go-libp2p, kad-dht and pubsub,
// without this library: an implementation of somebody else on the same network.
type RawNode struct {
	host.Host
	DHT    *dht.IpfsDHT
	PubSub *pubsub.PubSub
}

// RawOption configures [Network.Raw] and [Network.Hostile].
type RawOption interface{ applyRaw(*rawConfig) }

type rawConfig struct {
	network   string
	bootstrap []peer.AddrInfo
	dht       []dht.Option
}

type rawOption func(*rawConfig)

func (o rawOption) applyRaw(c *rawConfig) { o(c) }

// RawNetwork sets the name of the network whose DHT the peer joins, overriding
// the default of "p2pnode", which is also the default of [p2pnode.WithNetwork].
func RawNetwork(name string) RawOption {
	return rawOption(func(c *rawConfig) { c.network = name })
}

// RawDHT adds options for the peer's DHT.
func RawDHT(opts ...dht.Option) RawOption {
	opts = slices.Clone(opts)
	return rawOption(func(c *rawConfig) { c.dht = append(c.dht, opts...) })
}

// RawConnect adds peers to connect to at the start. A dial that fails fails the
// test.
func RawConnect(peers ...peer.AddrInfo) RawOption {
	return rawOption(func(c *rawConfig) { c.bootstrap = append(c.bootstrap, peers...) })
}

// Raw adds a peer that does not use this library, with a DHT server and
// gossipsub at their defaults. It closes when tb ends.
func (n *Network) Raw(tb testing.TB, opts ...RawOption) *RawNode {
	tb.Helper()
	cfg := rawConfig{network: "p2pnode"}
	for _, o := range opts {
		if o != nil {
			o.applyRaw(&cfg)
		}
	}
	m, h, ctx := n.rawHost(tb, "raw")
	d, err := dht.New(h, append([]dht.Option{dht.Mode(dht.ModeServer), dht.ProtocolPrefix(protocol.ID("/" + cfg.network))}, cfg.dht...)...)
	if err != nil {
		tb.Fatalf("p2ptest: Raw: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("p2ptest: %s: %v", m.name, err)
		}
	})
	ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithRawTracer(m.mesh))
	if err != nil {
		tb.Fatalf("p2ptest: Raw: %v", err)
	}
	raw := &RawNode{Host: h, DHT: d, PubSub: ps}
	n.mu.Lock()
	m.raw = raw
	n.mu.Unlock()
	var errs []error
	for _, p := range cfg.bootstrap {
		errs = append(errs, h.Connect(ctx, p))
	}
	if err := errors.Join(errs...); err != nil {
		tb.Fatalf("p2ptest: Raw: %v", err)
	}
	return raw
}

// rawHost adds a bare libp2p host. The context ends just before the host closes.
func (n *Network) rawHost(tb testing.TB, what string) (*member, host.Host, context.Context) {
	tb.Helper()
	m := n.join(tb, what, n.public())
	opts := []libp2p.Option{
		libp2p.Identity(m.key),
		libp2p.ListenAddrStrings(m.at().ListenAddr()),
		libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		func(cfg *libp2p.Config) error {
			// The event bus registers process-wide metrics nevertheless.
			cfg.DisableMetrics, cfg.PrometheusRegisterer = true, noRegisterer{}
			return nil
		},
	}
	if n.cfg.memory {
		opts = append(opts, libp2p.NoTransports)
	} else {
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	}
	h, err := libp2p.New(append(opts, n.hostOptions(m)...)...)
	if err != nil {
		tb.Fatalf("p2ptest: %s: %v", m.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(func() {
		cancel()
		if err := h.Close(); err != nil {
			tb.Errorf("p2ptest: %s: %v", m.name, err)
		}
	})
	return m, h, ctx
}

type noRegisterer struct{}

func (noRegisterer) Register(prometheus.Collector) error  { return nil }
func (noRegisterer) MustRegister(...prometheus.Collector) {}
func (noRegisterer) Unregister(prometheus.Collector) bool { return false }
