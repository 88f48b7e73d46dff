package p2pnode

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// standardMDNSService is the service name of the specification, shared by
// every libp2p application that does not choose its own.
const standardMDNSService = mdns.ServiceName

// mdnsPart announces the node on the LAN and hands what it hears to the sink.
type mdnsPart struct {
	host    *hostPart
	service string
	found   func(peer.AddrInfo)
	log     *slog.Logger

	mu      sync.Mutex
	running mdns.Service   // guarded by mu
	told    []ma.Multiaddr // what running announces; guarded by mu
	closed  bool           // guarded by mu
}

// HandlePeerFound is called by the mDNS service, from a goroutine of its own.
func (m *mdnsPart) HandlePeerFound(ai peer.AddrInfo) { m.found(ai) }

// start announces the present addresses.
func (m *mdnsPart) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.startLocked()
}

func (m *mdnsPart) startLocked() error {
	told, err := m.host.swarm.InterfaceListenAddresses()
	if err != nil {
		return err
	}
	s := mdns.NewMdnsService(m.host, m.service, m)
	if err := s.Start(); err != nil {
		return err
	}
	m.running, m.told = s, told
	return nil
}

// follow restarts the service when the node's interfaces change: the service
// announces the addresses that it found at its start for ever.
func (m *mdnsPart) follow(ctx context.Context, moved *signal.Signal) {
	for {
		wake := moved.Wait()
		if err := m.update(); err != nil {
			m.log.Warn("mDNS does not follow the change of addresses", "err", err)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

func (m *mdnsPart) update() error {
	now, err := m.host.swarm.InterfaceListenAddresses()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || len(now) == 0 || slices.EqualFunc(now, m.told, ma.Multiaddr.Equal) {
		return nil
	}
	if m.running != nil {
		_ = m.running.Close() // it returns nil always
		m.running = nil
	}
	return m.startLocked()
}

func (m *mdnsPart) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	running := m.running
	if running == nil {
		return nil
	}
	m.running = nil
	return running.Close()
}
