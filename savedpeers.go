package p2pnode

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/peerfile"
)

const (
	// peersName is the file of the data directory with the saved peers.
	peersName = "peers"
	// savePeersEvery is how often they are saved while the node runs.
	savePeersEvery = 10 * time.Minute
	// savePeersAfter is how long a peer must have been connected by then.
	savePeersAfter = 5 * time.Minute
	// A node that has nobody saved does not wait that long: it may crash.
	firstSaveEvery = time.Minute
	firstSaveAfter = 30 * time.Second
)

// loadPeers reads the saved peers. A file that cannot be used never stops the
// start: it is a warning.
func (d *dataPart) loadPeers() {
	var list []peerfile.Peer
	err := d.dir.Read(peersName, func(b []byte) (err error) {
		list, err = peerfile.Parse(b)
		return err
	})
	if err != nil {
		d.log.Warn("saved peers", "err", err)
		d.warnings = append(d.warnings, "saved peers: "+err.Error())
	}
	d.peers = peerfile.Choose(time.Now(), list)
}

// saved are the peers to dial beside the bootstrap peers.
func (d *dataPart) saved(self peer.ID) []peer.AddrInfo {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []peer.AddrInfo
	for _, p := range d.peers {
		if p.ID != self {
			list = append(list, peer.AddrInfo{ID: p.ID, Addrs: slices.Clone(p.Addrs)})
		}
	}
	return list
}

// savePeers adds the good ones of the connected peers and writes the file.
func (d *dataPart) savePeers(now time.Time, h *nethost.Host, after time.Duration) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	fresh := goodPeers(now, h, after)
	d.mu.Lock()
	list := peerfile.Choose(now, d.peers, fresh)
	d.peers = list
	d.mu.Unlock()
	b, err := peerfile.Encode(list)
	if err != nil {
		return err
	}
	if len(list) == 0 && d.written == nil || bytes.Equal(b, d.written) {
		return nil // nothing new
	}
	if err := d.dir.Write(peersName, b); err != nil {
		return err
	}
	d.written = b
	return nil
}

// goodPeers are the peers that were connected directly for a while, and at
// which addresses they can be dialled.
func goodPeers(now time.Time, h *nethost.Host, after time.Duration) []peerfile.Peer {
	var list []peerfile.Peer
	for _, id := range h.PeerIDs() {
		p := peerfile.Peer{ID: id, Seen: now.UTC().Round(0)}
		add := func(a ma.Multiaddr) {
			if !addrs.IsCircuit(a) && !rotates(a) && !ma.Contains(p.Addrs, a) && len(p.Addrs) < peerfile.MaxAddrs && len(a.Bytes()) <= peerfile.MaxAddrSize {
				p.Addrs = append(p.Addrs, a)
			}
		}
		long := false
		for _, c := range h.Conns(id) {
			// Not by Limited: a relay may have no limits.
			if c.Relayed || now.Sub(c.Opened) < after {
				continue
			}
			long = true
			if ip, err := manet.ToIP(c.Addr); err == nil {
				p.IP, _ = netip.AddrFromSlice(ip)
			}
			if c.Outbound {
				add(c.Addr) // it has been dialled, so it can be
			}
		}
		if !long {
			continue
		}
		// Of those who dialled this node only what they announce is known.
		for _, a := range h.KnownAddrs(id) {
			add(a)
		}
		if len(p.Addrs) > 0 {
			list = append(list, p)
		}
	}
	return list
}

// rotates reports whether an address will not do for long: the hashes of
// certificates that WebTransport and WebRTC carry change with the days, and at
// each start.
func rotates(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CERTHASH)
	return err == nil
}

// startSavingPeers comes last, so that the peers connected at Close are saved
// while they still are.
func (n *Node) startSavingPeers() error {
	if n.data == nil {
		return nil
	}
	n.stack.Push("saved peers", closeBudget, func() error {
		return n.data.savePeers(time.Now(), n.base, 0)
	})
	group := lifecycle.NewGroup(n.ctx)
	n.stack.Push("saving peers", closeBudget, group.Close)
	group.Go(func(ctx context.Context) {
		for {
			every, after := savePeersEvery, savePeersAfter
			if len(n.data.saved(n.id)) == 0 {
				every, after = firstSaveEvery, firstSaveAfter
			}
			if !pauseFor(ctx, every) {
				return
			}
			if err := n.data.savePeers(time.Now(), n.base, after); err != nil {
				n.log.Warn("saved peers", "err", err)
			}
		}
	})
	return nil
}
