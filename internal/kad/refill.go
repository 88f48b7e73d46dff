package kad

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-libdht/kad/key/bitstr"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
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
	// refillRest is how many times as long as sending records to a peer took it is
	// not asked again: a peer that always claims to have lost them gets little.
	refillRest = 10
	// refillLater is how long a peer is left alone that is being sent records, and
	// refillLatest when it is asked nevertheless, after the first of these.
	refillLater  = 10 * time.Second
	refillLatest = 5 * time.Minute
	// maxReturned bounds how many peers are about to be asked. Others that come
	// back meanwhile are left to the visits.
	maxReturned = 1 << 10
	// maxShorts bounds of how many keys it is known that peers are missing.
	maxShorts = 1 << 10
	// maxRegionBits bounds how many regions are visited.
	maxRegionBits = 10
)

// returned are the peers that have come back.
type returned struct {
	mu    sync.Mutex
	due   map[peer.ID]time.Time // when they are asked; guarded by mu
	rests map[peer.ID]time.Time // until when they are not asked again; guarded by mu
	more  chan struct{}         // there is another one
}

func newReturned() *returned {
	return &returned{due: make(map[peer.ID]time.Time), rests: make(map[peer.ID]time.Time), more: make(chan struct{}, 1)}
}

// add notes that a peer has come back.
func (r *returned) add(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.due[id]; ok || len(r.due) >= maxReturned {
		return
	}
	at := time.Now().Add(settleTime)
	if rest := r.rests[id]; at.Before(rest) {
		at = rest
	}
	r.due[id] = at
	r.wake()
}

func (r *returned) wake() {
	select {
	case r.more <- struct{}{}:
	default: // somebody is about to look
	}
}

// next waits for a peer that is due, until ctx ends.
func (r *returned) next(ctx context.Context) (peer.ID, bool) {
	for ctx.Err() == nil {
		r.mu.Lock()
		var first peer.ID
		for id, at := range r.due {
			if first == "" || at.Before(r.due[first]) {
				first = id
			}
		}
		wait := time.Until(r.due[first])
		if first != "" && wait <= 0 {
			delete(r.due, first)
			r.wake() // another one may be due
		}
		r.mu.Unlock()
		switch {
		case first == "":
			wait = time.Hour
		case wait <= 0:
			return first, true
		}
		pause(ctx, wait, r.more)
	}
	return "", false
}

// rest notes that a peer has been asked, which took a while.
func (r *returned) rest(id peer.ID, took time.Duration) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, at := range r.rests {
		if at.Before(now) {
			delete(r.rests, other)
		}
	}
	r.rests[id] = now.Add(max(refillPause, refillRest*took))
}

// later puts a peer off that could not be asked.
func (r *returned) later(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) < maxReturned {
		r.due[id] = time.Now().Add(refillLater)
		r.wake()
	}
}

// refill sends peers the records that they have lost, until ctx ends.
func (k *keeper) refill(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.visit(ctx) })
	k.d.eachReturned(ctx, "p2pnode provide", k.refillPeer)
}

// eachReturned calls f for servers of the DHTs that come back, a few at a time,
// until ctx ends. When f returns false, it is called again later.
func (d *DHT) eachReturned(ctx context.Context, name string, f func(context.Context, peer.ID) bool) {
	var wg sync.WaitGroup
	defer wg.Wait()
	sub, err := d.cfg.Host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.BufSize(256), eventbus.Name(name))
	if err != nil {
		d.cfg.Log.Warn("watching for peers that come back", "err", err)
		return
	}
	defer sub.Close()
	r := newReturned()
	for _, id := range d.cfg.Host.Network().Peers() {
		if d.serves(id) {
			r.add(id) // it may have come after the first announcement looked for peers
		}
	}
	for range refillAtOnce {
		wg.Go(func() {
			for {
				id, ok := r.next(ctx)
				if !ok {
					return
				}
				begun := time.Now()
				if f(ctx, id) {
					r.rest(id, time.Since(begun))
				} else {
					r.later(id)
				}
			}
		})
	}
	for {
		select {
		case ev := <-sub.Out():
			if id := ev.(event.EvtPeerIdentificationCompleted).Peer; d.serves(id) {
				r.add(id)
			}
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
// one of them. It reports false when the peer is to be asked later.
func (k *keeper) refillPeer(ctx context.Context, id peer.ID) bool {
	table := k.d.tableOf(id)
	if table == nil || !k.d.cfg.Host.Connected(id) {
		return true
	}
	if n, err := k.keys.Size(ctx); err != nil || n == 0 {
		return true
	}
	if k.sending(id) {
		return false // what it is being sent it will hold
	}
	region, known := k.regionOf(ctx, table, id)
	if !known {
		return false // it would get everything
	}
	near := k.near(table, id)
	key := k.shortest(near)
	if key == nil {
		var err error
		if key, err = k.pick(ctx, region, near); err != nil || key == nil {
			return true
		}
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return true
	}
	if k.d.holds(ctx, messenger, id, key) == nil {
		k.holdsToo(key)
	} else {
		k.resend(ctx, table, messenger, id, region, key)
	}
	return true
}

// short notes how many more peers should hold a key than took it. One that was
// announced before the node knew its network may be with a single peer: these are
// what peers that come are asked for first.
func (k *keeper) short(key multihash.Multihash, missing int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.shorts[string(key)]; missing <= 0 {
		delete(k.shorts, string(key))
	} else if ok || len(k.shorts) < maxShorts {
		k.shorts[string(key)] = missing
	}
}

// holdsToo notes that one more peer holds a key.
func (k *keeper) holdsToo(key multihash.Multihash) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shorts[string(key)]--; k.shorts[string(key)] <= 0 {
		delete(k.shorts, string(key))
	}
}

// shortest returns the key that the most peers are missing of those that near is true
// of, nil if none is known to be short of peers.
func (k *keeper) shortest(near func(multihash.Multihash) bool) (key multihash.Multihash) {
	k.mu.Lock()
	defer k.mu.Unlock()
	most := 0
	for other, missing := range k.shorts {
		if missing > most && near(multihash.Multihash(other)) {
			key, most = multihash.Multihash(other), missing
		}
	}
	return key
}

// sent is when a sweeping provider has sent records to a peer, without a pause of
// refillLater.
type sent struct{ first, last time.Time }

// sends notes that a record is sent to a peer.
func (k *keeper) sends(id peer.ID) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.sent[id]
	if ok && now.Sub(s.last) < refillLater {
		s.last = now
		k.sent[id] = s
		return
	}
	for other, s := range k.sent {
		if now.Sub(s.last) >= refillLater {
			delete(k.sent, other)
		}
	}
	k.sent[id] = sent{now, now}
}

// sending reports whether a peer is being sent records, unless that lasts long.
func (k *keeper) sending(id peer.ID) bool {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.sent[id]
	return ok && now.Sub(s.last) < refillLater && now.Sub(s.first) < refillLatest
}

// near returns a function that reports whether a peer may be among the closest to a
// key: fewer servers than hold a record are closer that are connected, or were found
// lately.
func (k *keeper) near(table *dht.IpfsDHT, id peer.ID) func(multihash.Multihash) bool {
	self := kb.ConvertPeerID(id)
	there := make(map[peer.ID]bool)
	for _, other := range table.RoutingTable().ListPeers() {
		there[other] = k.d.cfg.Host.Connected(other)
	}
	for _, other := range k.spreadOf(table).lately() {
		there[other] = true
	}
	var others []kb.ID
	for other, live := range there {
		if live && other != id {
			others = append(others, kb.ConvertPeerID(other))
		}
	}
	return func(key multihash.Multihash) bool {
		closer, to := 0, kb.ConvertKey(string(key))
		for _, other := range others {
			if closerTo(to, other, self) {
				closer++
			}
		}
		return closer < table.BucketSize()
	}
}

// closerTo reports whether a is closer to an ID than b.
func closerTo(to, a, b kb.ID) bool {
	for i := range to {
		if x, y := to[i]^a[i], to[i]^b[i]; x != y {
			return x < y
		}
	}
	return false
}

// resend sends a peer a record, and if it then holds that, all of a region. It
// stops when the peer does not take one.
func (k *keeper) resend(ctx context.Context, table *dht.IpfsDHT, messenger *pb.ProtocolMessenger, id peer.ID, region bitstr.Key, first multihash.Multihash) {
	self := peer.AddrInfo{ID: k.d.self, Addrs: table.FilteredAddrs()}
	if len(self.Addrs) == 0 {
		return
	}
	near, count := k.near(table, id), 0
	send := func(key multihash.Multihash) error {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		err := messenger.PutProviderAddrs(ctx, id, key, self)
		if err == nil {
			count++
		}
		return err
	}
	err := send(first)
	if err == nil {
		err = k.d.holds(ctx, messenger, id, first)
	}
	if err == nil {
		k.holdsToo(first)
		err = k.each(ctx, region, func(keys []multihash.Multihash) error {
			for _, key := range keys {
				if !near(key) || slices.Equal(key, first) {
					continue
				}
				if err := send(key); err != nil {
					return err
				}
			}
			return nil
		})
	}
	k.d.cfg.Log.Debug("sent lost provider records", "peer", id, "records", count, "err", err)
}

// each calls f with the keys of a region that peers hold, some at a time, until it
// fails.
func (k *keeper) each(ctx context.Context, region bitstr.Key, f func([]multihash.Multihash) error) error {
	n, err := k.keys.Size(ctx)
	if err != nil {
		return err
	}
	for _, rest := range prefixes(max(0, split(n, listKeys)-len(region))) {
		keys, err := k.announced(ctx, region+rest)
		if err == nil {
			err = f(keys)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// announced returns the keys with a prefix that are not pending: these are about to
// be announced.
func (k *keeper) announced(ctx context.Context, prefix bitstr.Key) ([]multihash.Multihash, error) {
	return k.passOver(ctx, k.keys, prefix, nil)
}

// pick returns a random key of a region that peers hold and near is true of, or nil
// if there is none.
func (k *keeper) pick(ctx context.Context, region bitstr.Key, near func(multihash.Multihash) bool) (multihash.Multihash, error) {
	n, err := k.keys.Size(ctx)
	if err != nil {
		return nil, err
	}
	parts := prefixes(max(0, split(n, listKeys)-len(region)))
	start := rand.IntN(len(parts))
	for i := range parts {
		keys, err := k.announced(ctx, region+parts[(start+i)%len(parts)])
		if err != nil {
			return nil, err
		}
		for _, j := range rand.Perm(len(keys)) {
			if near == nil || near(keys[j]) {
				return keys[j], nil
			}
		}
	}
	return nil, nil
}

// regionBits returns how long the prefixes are that the closest peers to a key
// have in common with it, at most, if that is known.
func (k *keeper) regionBits(ctx context.Context) (length int, known bool) {
	for _, s := range k.running() {
		if n, ok := prefixBits(ctx, s); ok {
			length, known = max(length, n), true
		}
	}
	return length, known
}

// prefixBits returns how long the prefixes of a sweeping provider's regions are, if
// it knows.
func prefixBits(ctx context.Context, s *sweep.SweepingProvider) (length int, known bool) {
	st, err := s.Stats(ctx)
	if err != nil || st.Closed || st.Schedule.AvgPrefixLength < 0 {
		return 0, false
	}
	return int(st.Schedule.AvgPrefixLength), true
}

// regionOf returns the region around a server, if it is known: the server is one of
// the closest to keys of that region alone. When there are fewer servers than hold a
// record, that is the whole key space. Upstream (v0.42) has a region with whatever
// prefix their IDs happen to have in common then, and half of the keys, or more, in
// none with a server.
func (k *keeper) regionOf(ctx context.Context, table *dht.IpfsDHT, id peer.ID) (region bitstr.Key, known bool) {
	sweeps, i := k.running(), slices.Index(k.d.tables, table)
	if i >= len(sweeps) {
		return "", false
	}
	length, known := prefixBits(ctx, sweeps[i])
	if !known || length == 0 {
		return "", known
	}
	few, known := k.spreadOf(table).few()
	if !known {
		list, err := k.lookUp(ctx, table, string(id))
		if err != nil {
			return "", false
		}
		few = len(list) < table.BucketSize()
	}
	if few {
		return "", true
	}
	return prefixOf(kb.ConvertPeerID(id), length), true
}

// lookUp returns the closest peers to a key, and notes them.
func (k *keeper) lookUp(ctx context.Context, table *dht.IpfsDHT, key string) ([]peer.ID, error) {
	list, err := k.d.closest(ctx, table, key)
	if err == nil {
		k.spreadOf(table).found(key, list)
	}
	return list, err
}

// prefixOf returns the first n bits of an ID.
func prefixOf(id []byte, n int) bitstr.Key {
	var b strings.Builder
	for i := range min(n, 8*len(id)) {
		b.WriteByte('0' + id[i/8]>>(7-i%8)&1)
	}
	return bitstr.Key(b.String())
}

// visit asks the holders of one key of each region in turn whether they still
// hold its record.
func (k *keeper) visit(ctx context.Context) {
	for {
		length, _ := k.regionBits(ctx)
		regions := prefixes(min(length, maxRegionBits))
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
	key, err := k.pick(ctx, prefix, nil)
	if err != nil || key == nil {
		return err
	}
	var failed []error
	for _, table := range k.d.active() {
		closest, err := k.lookUp(ctx, table, string(key))
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
			if region, known := k.regionOf(ctx, table, id); known {
				k.resend(ctx, table, messenger, id, region, key)
			}
		}
	}
	return errors.Join(failed...)
}
