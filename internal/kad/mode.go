package kad

import (
	"context"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
)

// FollowMode calls changed when the node begins or ends to answer queries.
func (d *DHT) FollowMode(group *lifecycle.Group, changed func(serves bool)) error {
	sub, err := d.cfg.Host.EventBus().Subscribe(new(event.EvtLocalProtocolsUpdated), eventbus.BufSize(256), eventbus.Name("p2pnode dht mode"))
	if err != nil {
		return err
	}
	served := d.Serves()
	started := group.Go(func(ctx context.Context) {
		defer sub.Close()
		for {
			select {
			case <-sub.Out():
				if now := d.Serves(); now != served {
					served = now
					changed(now)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if !started {
		return sub.Close()
	}
	return nil
}
