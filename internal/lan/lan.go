// Package lan announces a node on the LAN by multicast DNS, and reports the
// peers it discovers.
package lan

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// StandardService is the service name of the specification, shared by every
// libp2p application that does not choose its own.
const StandardService = mdns.ServiceName

// Announcer announces the node until Close, and follows its addresses. It is
// safe for concurrent use.
type Announcer struct {
	host    *nethost.Host
	service string
	found   func(peer.AddrInfo)
	log     *slog.Logger

	mu      sync.Mutex
	running mdns.Service   // nil without an interface, too; guarded by mu
	told    []ma.Multiaddr // what running announces; guarded by mu
	moves   int            // of the machine, when running started; guarded by mu
	closed  bool           // guarded by mu
}

// Start announces the current addresses, or, on a machine that has no network, those
// that it gets. found is called for each peer that is discovered, from any goroutine.
func Start(h *nethost.Host, service string, found func(peer.AddrInfo), log *slog.Logger) (*Announcer, error) {
	a := &Announcer{host: h, service: service, found: found, log: log}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a, a.startLocked()
}

// HandlePeerFound is called by the mDNS service, from its own goroutine.
func (a *Announcer) HandlePeerFound(ai peer.AddrInfo) {

	ai.Addrs = nethost.OnLinks(ai.Addrs)
	a.found(ai)
}

// announced is the host as mDNS sees it: with link-local addresses, where there are no
// others.
type announced struct{ *nethost.Host }

// Network implements host.Host.
func (a announced) Network() network.Network { return announcedNetwork{a.Host.Network(), a.Host} }

type announcedNetwork struct {
	network.Network
	host *nethost.Host
}

// InterfaceListenAddresses implements network.Network.
func (n announcedNetwork) InterfaceListenAddresses() ([]ma.Multiaddr, error) {
	list, err := n.Network.InterfaceListenAddresses()
	return append(n.host.LinkAddrs(), list...), err
}

func (a *Announcer) startLocked() error {
	moves := a.host.Moves()
	told, err := a.host.InterfaceAddrs()
	if err != nil {
		return err
	}
	if !multicast() {
		a.log.Info("no interface for mDNS: waiting for one")
		a.told, a.moves = told, moves
		return nil
	}
	s := mdns.NewMdnsService(announced{a.host}, a.service, a)
	if err := s.Start(); err != nil {
		return err
	}
	a.running, a.told, a.moves = s, told, moves
	return nil
}

// multicast reports whether there is an interface to announce on.
func multicast() bool {
	list, err := net.Interfaces()
	return err != nil || slices.ContainsFunc(list, func(i net.Interface) bool {
		return i.Flags&net.FlagUp != 0 && i.Flags&net.FlagMulticast != 0
	})
}

// Follow restarts the service when the machine's interfaces or the node's addresses on
// them change: the service itself keeps to those of its start.
func (a *Announcer) Follow(ctx context.Context, moved *signal.Signal) {
	for {
		wake := moved.Wait()
		if err := a.update(); err != nil {
			a.log.Warn("restarting mDNS after a change of addresses", "err", err)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Announcer) update() error {
	now, err := a.host.InterfaceAddrs()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || len(now) == 0 || a.moves == a.host.Moves() && slices.EqualFunc(now, a.told, ma.Multiaddr.Equal) {
		return nil
	}
	if a.running != nil {
		_ = a.running.Close() // it returns nil always
		a.running = nil
	}
	return a.startLocked()
}

// Close ends the announcement.
func (a *Announcer) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	running := a.running
	if running == nil {
		return nil
	}
	a.running = nil
	return running.Close()
}
