package kad

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/namespace"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	sweep "github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

// sweep starts the sweeping providers, unless they run. They look around in the
// network for a while, so they start when they are needed.
func (k *keeper) sweep() error {
	k.opening.Lock()
	defer k.opening.Unlock()
	for i := len(k.running()); i < len(k.d.tables) && !k.closed; i++ {
		s, err := k.sweepOf(i)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.sweeps = append(k.sweeps, s)
		k.mu.Unlock()
	}
	return nil
}

// sweepOf builds the sweeping provider of a table.
func (k *keeper) sweepOf(i int) (*sweep.SweepingProvider, error) {
	table := k.d.tables[i]
	places := k.spreadOf(table)
	// Without WithHost: upstream would forget the addresses of peers that fail
	// once, persistent ones included.
	return sweep.New(
		sweep.WithPeerID(k.d.self),
		sweep.WithRouter(&router{table: table, k: k}),
		sweep.WithMessageSender(proving{table.MessageSender(), places, k}),
		sweep.WithSelfAddrs(table.FilteredAddrs),
		sweep.WithReplicationFactor(table.BucketSize()),
		sweep.WithKeystore(cycleKeys{k.keys, k}),
		sweep.WithDatastore(enduring{namespace.Wrap(k.store, datastore.NewKey(fmt.Sprint(i)))}),
		sweep.WithReprovideInterval(k.d.cfg.interval()),
		sweep.WithMaxReprovideDelay(min(sweep.DefaultMaxReprovideDelay, k.d.cfg.interval()/8)),
		sweep.WithOfflineDelay(neverOffline),
		sweep.WithAddLocalRecord(func(ctx context.Context, key multihash.Multihash) error {
			return k.d.storeOwn(ctx, table, key)
		}),
		sweep.WithConnectivityCallbacks(k.online.Notify, nil, nil),
	)
}

const (
	// lookupPause is how long a sweeping provider sleeps after a failed lookup.
	lookupPause = time.Second
	// provedFor is how long a peer that has shown that it holds what it takes is
	// believed.
	provedFor = 10 * time.Minute
)

// neverOffline keeps upstream from dropping its queue when the node has been
// without peers for two hours.
const neverOffline = 10 * 365 * 24 * time.Hour

// While it looks around in the network, a sweeping provider (v0.42) sleeps for a
// second after each lookup that fails, and its Close waits for that with a lock. A
// router without errors ends it, and hurry waits for the sleep before Close does.

// router finds the peers for the sweeping providers.
type router struct {
	table *dht.IpfsDHT
	k     *keeper
}

func (r *router) GetClosestPeers(ctx context.Context, key string) ([]peer.ID, error) {
	if key == string(r.k.d.self) { // that is how it checks whether there are peers
		return r.table.GetClosestPeers(ctx, key)
	}
	list, err := r.k.lookUp(ctx, r.table, key)
	if err == nil {
		return list, nil
	}
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	if r.k.hurried {
		return nil, nil
	}
	r.k.failed = time.Now()
	return nil, err
}

// hurry waits until the sweeping providers can be closed without delay.
func (k *keeper) hurry() {
	k.mu.Lock()
	k.hurried = true
	wait := time.Until(k.failed.Add(lookupPause + time.Millisecond))
	k.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
}

// end closes a sweeping provider. What it has not announced is pending: it is not
// to keep it too.
func end(s *sweep.SweepingProvider) error {
	s.Clear()
	return s.Close()
}

// restart replaces a sweeping provider that looks for peers with delays of up
// to a minute, and cannot be told that there are some.
func (k *keeper) restart(ctx context.Context, i int, old *sweep.SweepingProvider) {
	lost := failures(ctx, old)
	k.hurry()
	err := end(old)
	k.mu.Lock()
	k.hurried = false
	k.earlier += lost
	k.mu.Unlock()
	s, err2 := k.sweepOf(i)
	if err = errors.Join(err, err2); err != nil {
		k.d.cfg.Log.Warn("restarting the announcing", "err", err)
	}
	if s == nil {
		return
	}
	k.mu.Lock()
	k.sweeps[i] = s
	k.mu.Unlock()
}

// ready reports whether a sweeping provider would announce what it is given.
func ready(ctx context.Context, s *sweep.SweepingProvider) bool {
	st, err := s.Stats(ctx)
	return err == nil && st.Connectivity.Status == "online" && st.Schedule.AvgPrefixLength >= 0
}

// proving is the sender of the sweeping providers: see spread for whom it sends
// records to. A record has no reply: it asks a peer from time to time whether it
// holds what it has taken.
type proving struct {
	pb.MessageSender
	spread *spread
	k      *keeper
}

func (s proving) SendMessage(ctx context.Context, id peer.ID, m *pb.Message) (err error) {
	if m.Type != pb.Message_ADD_PROVIDER {
		return s.MessageSender.SendMessage(ctx, id, m)
	}
	var failed peer.ID
	for range spreadTries {
		to, last := s.spread.to(id, m.Key)
		if to == "" || to == failed {
			break
		}
		err = s.record(ctx, to, m)
		if err == nil && last {
			s.spread.done(m.Key)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.spread.fails(to)
		failed = to
	}
	return err
}

// record sends a peer a record.
func (s proving) record(ctx context.Context, id peer.ID, m *pb.Message) error {
	s.k.sends(id)
	if err := s.MessageSender.SendMessage(ctx, id, m); err != nil {
		return err
	}
	if err := s.k.proves(ctx, s.MessageSender, id, m.Key); err != nil {
		return err
	}
	s.k.taken(id, m.Key)
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
		if now.Sub(at) >= provedFor {
			delete(k.proved, other)
		}
	}
	k.proved[id] = now
	return nil
}

// taken notes that a peer has taken a record, as far as is known: see confirm.
func (k *keeper) taken(id peer.ID, key []byte) {
	k.mu.Lock()
	d := k.doubts[id]
	waited := k.waiting[string(key)] && (d.times < maxDoubts || time.Since(d.at) >= provedFor)
	if waited {
		delete(k.waiting, string(key))
		k.moved++
		k.takers[id] = append(k.takers[id], key)
	}
	k.mu.Unlock()
	if waited {
		k.took.Notify()
	}
}

const (
	// confirmAtOnce bounds how many peers are asked at a time.
	confirmAtOnce = 16
	// maxDoubts is how often in a row a peer may not hold what it has taken.
	maxDoubts = 2
)

// confirm asks the peers that were the first to take keys for the last one of them, and
// returns those of which none has come. A record has no reply: when the node crashes, or
// loses the connection, what it has written last may never have been sent. What is on
// one stream comes in order.
func (k *keeper) confirm(ctx context.Context, takers map[peer.ID][]multihash.Multihash) (lost []multihash.Multihash) {
	var mu sync.Mutex // guards lost
	var wg sync.WaitGroup
	room := make(chan struct{}, confirmAtOnce)
	for id, keys := range takers {
		room <- struct{}{} // each question ends within its timeout
		wg.Go(func() {
			defer func() { <-room }()
			err := errNoDHT
			if table := k.d.tableOf(id); table != nil {
				var messenger *pb.ProtocolMessenger
				if messenger, err = pb.NewProtocolMessenger(table.MessageSender()); err == nil {
					err = k.d.holds(ctx, messenger, id, keys[len(keys)-1])
				}
			}
			k.doubt(id, err)
			if err != nil {
				k.d.cfg.Log.Debug("a peer does not hold what it has taken", "peer", id, "records", len(keys), "err", err)
				mu.Lock()
				lost = append(lost, keys...)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return lost
}

// doubted is how often in a row a peer did not hold what it had taken, and when that was
// last.
type doubted struct {
	times int
	at    time.Time
}

// doubt notes whether a peer holds what it has taken. What one takes that often does not
// is left for others to take, for provedFor: it would hold up what they hold.
func (k *keeper) doubt(id peer.ID, err error) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for other, d := range k.doubts {
		if now.Sub(d.at) >= provedFor {
			delete(k.doubts, other)
		}
	}
	var lost *notHeldError
	switch {
	case err == nil:
		delete(k.doubts, id)
	case errors.As(err, &lost):
		k.doubts[id] = doubted{k.doubts[id].times + 1, now}
	}
}

var errNoDHT = errors.New("it serves none of the DHTs any more")

// failures returns how many keys no peer has taken from a sweeping provider.
func failures(ctx context.Context, s *sweep.SweepingProvider) uint64 {
	st, err := s.Stats(ctx)
	if err != nil {
		return 0
	}
	return uint64(st.Operations.Past.KeysFailed) //nolint:gosec // a count
}
