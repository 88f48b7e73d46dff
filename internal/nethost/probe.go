package nethost

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// Probe dials peers, all at once and until ctx ends, and returns why dials
// failed; each error is a [ConnectError]. A peer counts as reached once it
// responds, or has been connected for settled: a peer that bans this node hangs
// up some time after the handshake. The dials belong to group; once that is
// closing, peers are left out.
func (d Dialer) Probe(ctx context.Context, group *lifecycle.Group, peers []peer.AddrInfo, settled time.Duration) map[peer.ID]error {
	var (
		dials  sync.WaitGroup
		mu     sync.Mutex
		failed = make(map[peer.ID]error) // guarded by mu
	)
	for _, p := range peers {
		if d.Host.ConnectedFor(p.ID, settled) {
			continue
		}
		dials.Add(1)
		started := group.Go(func(context.Context) {
			defer dials.Done()
			err := d.probe(ctx, p)
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			failed[p.ID] = err
		})
		if !started {
			dials.Done()
		}
	}
	dials.Wait()
	return failed
}

// probe connects to a peer and waits for a response.
func (d Dialer) probe(ctx context.Context, p peer.AddrInfo) error {
	err := d.Connect(ctx, p)
	if d.Host.Connected(p.ID) { // it may have dialed this node
		_, asked := d.Host.Ping(ctx, p.ID)
		var unsupported multistream.ErrNotSupported[protocol.ID]
		if asked == nil || errors.As(asked, &unsupported) {
			return nil
		}
	}
	if err == nil {
		err = d.explain(p, time.Now(), ErrLostAtOnce)
	}
	return err
}
