package kad

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/ipns"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// closerPeers is how many peers a DHT server names along with a record.
const closerPeers = 20

// Validators returns the validators of public keys and IPNS names, which every
// libp2p network knows, and own. One of own that panics refuses the record.
func Validators(h host.Host, own map[string]record.Validator, log *slog.Logger) record.NamespacedValidator {
	v := record.NamespacedValidator{
		"pk":   record.PublicKeyValidator{},
		"ipns": ipns.Validator{KeyBook: h.Peerstore()},
	}
	for namespace, validator := range own {
		v[namespace] = guard{validator, namespace, log}
	}
	return v
}

// guard keeps a panic of an application's validator from ending the process:
// records come from strangers.
type guard struct {
	validator record.Validator
	namespace string
	log       *slog.Logger
}

func (g guard) Validate(key string, value []byte) (err error) {
	defer g.caught("Validate", &err)
	return g.validator.Validate(key, value)
}

func (g guard) Select(key string, values [][]byte) (best int, err error) {
	defer g.caught("Select", &err)
	best, err = g.validator.Select(key, values)
	if err == nil && (best < 0 || best >= len(values)) {
		return 0, fmt.Errorf("the validator of %q selected record %d of %d", g.namespace, best, len(values))
	}
	return best, err
}

func (g guard) caught(method string, err *error) {
	if r := recover(); r != nil {
		g.log.Error("validator panicked", "namespace", g.namespace, "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = fmt.Errorf("the validator of %q panicked: %v", g.namespace, r)
	}
}

// MaxRecord returns the size of the largest record, in bytes, that is sure to
// reach those who ask for the key: with the peers that a server names beside it,
// a message has no more than network.MessageSizeMax.
func MaxRecord(key string) int {
	rec := record.MakePutRecord(key, nil)
	rec.TimeReceived = time.Unix(0, 1).UTC().Format(time.RFC3339Nano) // the longest form
	message := pb.NewMessage(pb.Message_GET_VALUE, []byte(key), 0)
	message.Record = rec
	// The envelope, the tag and length of the value (which also makes that of
	// the record longer), and the peers, each with tag and length.
	envelope := proto.Size(message) + 2*protowire.SizeVarint(network.MessageSizeMax) + 1
	return max(0, network.MessageSizeMax-envelope-closerPeers*(1+protowire.SizeBytes(pb.MaxPeerRecordSize)))
}

// PutValue stores a record, and returns nil once another peer has proved to hold
// it. It is put again until StopPutting, also if nobody was there to hold it.
func (d *DHT) PutValue(ctx context.Context, key string, value []byte) error {
	ctx, done := d.bind(ctx)
	defer done()
	if err := d.checkKey(key); err != nil {
		return err
	}
	if len(value) == 0 {
		return errors.New("the record is empty")
	}
	if limit := MaxRecord(key); len(value) > limit {
		return fmt.Errorf("%w: the record has %d bytes; with this key a DHT message carries %d", errs.ErrTooLarge, len(value), limit)
	}
	if err := d.tables[0].Validator.Validate(key, value); err != nil {
		return err
	}
	err := d.awaitTable(ctx)
	if err == nil {
		err = d.put(ctx, key, value)
	}
	next := time.Now()
	switch {
	case err == nil:
		next = next.Add(d.cfg.interval())
	case errors.Is(err, errs.ErrClosed) || ctx.Err() == nil && !errors.Is(err, errs.ErrNoPeers):
		return err
	case d.Size() > 0:
		next = next.Add(retryMax)
	}
	return errors.Join(err, d.closing(d.values.keep(context.WithoutCancel(ctx), key, &kept{value: bytes.Clone(value), next: next})))
}

// put stores a record in each active DHT.
func (d *DHT) put(ctx context.Context, key string, value []byte) error {
	return d.inActive(func(t *dht.IpfsDHT) error { return d.putIn(ctx, t, key, value) })
}

// putIn stores a record in one DHT, and asks for it, because upstream does not
// report which peers accepted it.
func (d *DHT) putIn(ctx context.Context, table *dht.IpfsDHT, key string, value []byte) error {
	if err := table.PutValue(asOwn(ctx), key, value); err != nil {
		// Upstream refuses it if this node itself holds a better one.
		if best, _ := table.GetValue(ctx, key); d.prefers(key, best, value) {
			return d.newer(key, value, best)
		}
		return err
	}
	messenger, err := pb.NewProtocolMessenger(table.MessageSender())
	if err != nil {
		return err
	}
	closest, err := d.closest(ctx, table, key)
	if err != nil {
		return err
	}
	var better []byte
	for _, p := range closest {
		rec, _, err := messenger.GetValue(ctx, p, key)
		switch {
		case err != nil || rec == nil:
		case bytes.Equal(rec.Value, value):
			return nil
		case better == nil && d.prefers(key, rec.Value, value):
			better = rec.Value
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case better != nil:
		return d.newer(key, value, better)
	}
	return fmt.Errorf("%w: none of the %d closest peers holds the record", errs.ErrNoPeers, len(closest))
}

// GetValue returns the best record under a key, as judged by its validator.
func (d *DHT) GetValue(ctx context.Context, key string) (best []byte, err error) {
	for value, err := range d.SearchValue(ctx, key) {
		if err != nil {
			return nil, err
		}
		best = value
	}
	return best, nil
}

// SearchValue yields the records under a key, each better than the one before,
// as judged by its validator. A pair with an error is the last one.
func (d *DHT) SearchValue(ctx context.Context, key string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		ctx, done := d.bind(ctx)
		defer done()
		if err := d.checkKey(key); err != nil {
			yield(nil, err)
			return
		}
		searchCtx, cancel := context.WithCancel(ctx)
		results := make(chan []byte)
		var answered bool
		var err error
		go func() { // awaited below: results is closed at its end
			defer close(results)
			answered, err = d.searchValue(searchCtx, key, results)
		}()
		defer func() {
			cancel()
			for range results {
			}
		}()
		var best []byte
		for value := range results {
			if best != nil {
				if i, err := d.tables[0].Validator.Select(key, [][]byte{best, value}); err != nil || i == 0 {
					continue
				}
			}
			if best = value; !yield(value, nil) {
				return
			}
		}
		switch {
		case ctx.Err() != nil:
			yield(nil, d.ended(ctx, context.Cause(ctx)))
		case best != nil:
		case err != nil:
			yield(nil, d.explain(err))
		case !answered:
			yield(nil, d.unanswered())
		default:
			yield(nil, errs.ErrNotFound)
		}
	}
}

// searchValue sends what the DHTs find, as they find it, until ctx ends, and
// reports whether a peer answered.
func (d *DHT) searchValue(ctx context.Context, key string, results chan<- []byte) (bool, error) {
	var answered atomic.Bool
	var searches sync.WaitGroup
	failed := make([]error, len(d.tables))
	for i, t := range d.tables {
		searches.Go(func() {
			var c caller
			_, ok, err := follow(ctx, d, key, watch{busy: c.busy}, func(ctx context.Context) (struct{}, error) {
				found, err := t.SearchValue(ctx, key)
				if err != nil {
					return struct{}{}, err
				}
				for value := range found {
					give(ctx, &c, results, value)
				}
				return struct{}{}, nil
			})
			failed[i] = err
			if ok {
				answered.Store(true)
			}
		})
	}
	searches.Wait()
	return answered.Load(), errors.Join(failed...)
}

// checkKey refuses a key whose namespace has no validator: upstream would find
// nothing. Validators added by Config.Options are not known here.
func (d *DHT) checkKey(key string) error {
	namespace, rest, err := record.SplitKey(key)
	if err != nil {
		return errors.New("a key must look like /<namespace>/<name>, with a namespace of WithValidator or WithSignedRecords, or pk or ipns")
	}
	if MaxRecord(key) == 0 {
		return fmt.Errorf("%w: the key has %d bytes; a DHT message carries %d", errs.ErrTooLarge, len(key), network.MessageSizeMax)
	}
	switch {
	case namespace == "pk" || namespace == "ipns":
		if _, err := peer.Decode(rest); err == nil { // some texts look like binary forms
			return fmt.Errorf("behind /%s/ comes the binary form of a peer ID, not its text: write \"/%s/\" + string(id)", namespace, namespace)
		}
		if _, err := peer.IDFromBytes([]byte(rest)); err == nil {
			return nil
		}
		return fmt.Errorf("what is behind /%s/ is not the binary form of a peer ID: write \"/%s/\" + string(id)", namespace, namespace)
	case d.validators[namespace] != nil || len(d.cfg.Options) > 0:
		return nil
	default:
		return fmt.Errorf("no validator for the namespace %q; give WithValidator or WithSignedRecords on every node", namespace)
	}
}
