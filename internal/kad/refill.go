package kad

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-libdht/kad/key/bitstr"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multihash"
)

// Most peers keep the records that they hold in memory: when they restart, the
// records are gone, until whoever provides the content announces it again, a day
// later. A provider therefore asks a peer that comes back whether it still holds
// a record, and asks those it is not connected to once in a while. Who has lost
// records is sent those that are near to it, and nobody else is.

const (
	// settleTime is how long a peer that comes back is left alone at first: it is
	// busy, and may come and go a few times.
	settleTime = 2 * time.Second
	// refillPause is how long a peer that has been asked is not asked again.
	refillPause = time.Minute
	// refillAtOnce bounds how many peers are asked and sent records at a time.
	refillAtOnce = 2
	// visitEvery is how often the holders of one key of each region are asked.
	visitEvery = time.Hour
	// provedFor is how long a peer that has shown that it holds what it takes is
	// believed.
	provedFor = 10 * time.Minute
	// maxRegions bounds how many regions are visited.
	maxRegions = 1 << 10
)

// refill sends peers the records that they have lost, until ctx ends.
func (k *keeper) refill(ctx context.Context) {
	sub, err := k.d.cfg.Host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.BufSize(256), eventbus.Name("p2pnode provide"))
	if err != nil {
		k.d.cfg.Log.Warn("watching for peers that come back", "err", err)
		return
	}
	defer sub.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.visit(ctx) })
	work := make(chan struct{}, refillAtOnce)
	asked := make(map[peer.ID]time.Time) // when, or when it will be
	for {
		select {
		case ev := <-sub.Out():
			id := ev.(event.EvtPeerIdentificationCompleted).Peer
			now := time.Now()
			if now.Before(asked[id]) || !k.d.serves(id) {
				continue // it is about to be asked, or holds nothing
			}
			wait := max(settleTime, asked[id].Add(refillPause).Sub(now))
			for other, at := range asked {
				if now.Sub(at) > refillPause {
					delete(asked, other)
				}
			}
			asked[id] = now.Add(wait)
			wg.Go(func() {
				pause(ctx, wait, nil)
				select {
				case work <- struct{}{}:
					k.refillPeer(ctx, id)
					<-work
				case <-ctx.Done():
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

// serves reports whether a peer is a server of one of the DHTs.
func (d *DHT) serves(id peer.ID) bool {
	return d.tableOf(id) != nil
}

// tableOf returns the DHT that a peer is a server of.
func (d *DHT) tableOf(id peer.ID) *dht.IpfsDHT {
	for i, p := range d.protocols {
		if served, err := d.cfg.Host.Peerstore().SupportsProtocols(id, p); err == nil && len(served) > 0 {
			return d.tables[i]
		}
	}
	return nil
}

// refillPeer sends a peer the records that it should hold, if it does not hold
// one of them.
func (k *keeper) refillPeer(ctx context.Context, id peer.ID) {
	table := k.d.tableOf(id)
	if table == nil || !k.d.cfg.Host.Connected(id) {
		return
	}
	keys, err := k.keys.Get(ctx, k.region(ctx, id))
	if err != nil || len(keys) == 0 {
		return
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return
	}
	if k.d.holds(ctx, messenger, id, keys[rand.IntN(len(keys))]) == nil {
		return
	}
	k.sendAll(ctx, table, messenger, id, keys)
}

// sendAll sends a peer records. It stops when the peer does not take one.
func (k *keeper) sendAll(ctx context.Context, table *dht.IpfsDHT, messenger *pb.ProtocolMessenger, id peer.ID, keys []multihash.Multihash) {
	self := peer.AddrInfo{ID: k.d.self, Addrs: table.FilteredAddrs()}
	if len(self.Addrs) == 0 {
		return
	}
	sent := 0
	for _, key := range keys {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		err := messenger.PutProviderAddrs(ctx, id, key, self)
		cancel()
		if err != nil {
			k.d.cfg.Log.Debug("sending lost provider records", "peer", id, "sent", sent, "of", len(keys), "err", err)
			return
		}
		sent++
	}
	k.d.cfg.Log.Debug("sent lost provider records", "peer", id, "records", sent)
}

// region returns the prefix of the keys that a peer is among the closest to.
func (k *keeper) region(ctx context.Context, id peer.ID) bitstr.Key {
	return bits(kb.ConvertPeerID(id), k.regionBits(ctx))
}

// regionBits returns how long the prefixes are that the closest peers to a key
// have in common with it.
func (k *keeper) regionBits(ctx context.Context) int {
	length := 0
	for _, s := range k.running() {
		if st, err := s.Stats(ctx); err == nil {
			length = max(length, int(st.Schedule.AvgPrefixLength))
		}
	}
	return length
}

// bits returns the first n bits of an ID.
func bits(id kb.ID, n int) bitstr.Key {
	var b strings.Builder
	for i := range min(n, 8*len(id)) {
		if id[i/8]>>(7-i%8)&1 == 1 {
			b.WriteByte('1')
		} else {
			b.WriteByte('0')
		}
	}
	return bitstr.Key(b.String())
}

// visit asks the holders of one key of each region in turn whether they still
// hold its record.
func (k *keeper) visit(ctx context.Context) {
	for {
		length := min(k.regionBits(ctx), 10)
		regions := prefixes(length)
		for _, prefix := range regions {
			pause(ctx, visitEvery/time.Duration(len(regions)), nil)
			if ctx.Err() != nil {
				return
			}
			if err := k.visitRegion(ctx, prefix); err != nil && ctx.Err() == nil {
				k.d.cfg.Log.Debug("looking after provider records", "region", prefix, "err", err)
			}
		}
	}
}

func (k *keeper) visitRegion(ctx context.Context, prefix bitstr.Key) error {
	keys, err := k.keys.Get(ctx, prefix)
	if err != nil || len(keys) == 0 {
		return err
	}
	key := keys[rand.IntN(len(keys))]
	var failed []error
	for _, table := range k.d.active() {
		closest, err := table.GetClosestPeers(ctx, string(key))
		if err != nil {
			failed = append(failed, err)
			continue
		}
		messenger, err := pb.NewProtocolMessenger(table.MessageSender())
		if err != nil {
			return err
		}
		for _, id := range closest {
			var lost *notHeldError
			if !errors.As(k.d.holds(ctx, messenger, id, key), &lost) {
				continue // it holds the record, or cannot be asked
			}
			near := k.region(ctx, id)
			k.sendAll(ctx, table, messenger, id, slices.DeleteFunc(slices.Clone(keys), func(key multihash.Multihash) bool {
				return !strings.HasPrefix(string(bits(kb.ConvertKey(string(key)), len(near))), string(near))
			}))
			k.sendAll(ctx, table, messenger, id, []multihash.Multihash{key})
		}
	}
	return errors.Join(failed...)
}

// proving is the sender of the sweeping providers. A record has no reply: it
// asks a peer from time to time whether it holds what it has taken.
type proving struct {
	pb.MessageSender
	k *keeper
}

func (s proving) SendMessage(ctx context.Context, id peer.ID, m *pb.Message) error {
	if err := s.MessageSender.SendMessage(ctx, id, m); err != nil || m.Type != pb.Message_ADD_PROVIDER {
		return err
	}
	if err := s.k.proves(ctx, s.MessageSender, id, m.Key); err != nil {
		return err
	}
	s.k.taken(m.Key)
	return nil
}

// proves asks a peer for a record that it has taken, unless it has been asked
// lately.
func (k *keeper) proves(ctx context.Context, sender pb.MessageSender, id peer.ID, key []byte) error {
	now := time.Now()
	k.mu.Lock()
	at, ok := k.proved[id]
	k.mu.Unlock()
	if ok && now.Sub(at) < provedFor {
		return nil
	}
	messenger, err := pb.NewProtocolMessenger(sender)
	if err != nil {
		return err
	}
	if err := k.d.holds(ctx, messenger, id, key); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for other, at := range k.proved {
		if len(k.proved) > maxRegions && now.Sub(at) >= provedFor {
			delete(k.proved, other)
		}
	}
	k.proved[id] = now
	return nil
}
