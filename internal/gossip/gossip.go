// Package gossip runs a gossipsub router and the registry of its topics: any
// number of publishers and subscriptions share one upstream topic, which is
// joined with its first user and left with its last.
package gossip

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/occasion"
	"github.com/go-p2pnode/p2pnode/internal/ring"
)

const (
	// Linger is how long an unused topic stays joined after the last message
	// published to it, so that a publisher in a loop does not join it anew for
	// each message.
	Linger = 30 * time.Second
	// MessageOverhead is what a message takes on the wire in addition to its data
	// and its topic: author, sequence number, signature and key. With a large RSA
	// key it is more; see envelope.
	MessageOverhead = 1 << 10
	// MaxTopicName is how long the name of a topic may be, in bytes: the messages
	// that announce topics hold all names.
	MaxTopicName = 1 << 10
	// outboundQueue is how many messages wait for the connection to a peer, and
	// gossipsub drops what does not fit: its own 32 are less than a burst over a
	// slow link. The queues of all peers share the messages.
	outboundQueue = 512
	// validateQueue is how many messages wait for their validation, of one peer as
	// many as places are free then: whatever some send, there is room for others.
	// Gossipsub's own 32 are less than a burst.
	validateQueue = 4096
	// validateWorkers is how many goroutines check signatures. With gossipsub's
	// own number, one per core, an author's burst arrives out of order.
	validateWorkers = 1
	// pumpBuffer is how many messages wait between gossipsub and the pump that
	// distributes them; the pump never blocks, so this covers a burst.
	pumpBuffer = 1024
)

// Config configures a [Router].
type Config struct {
	Host           host.Host
	Blacklist      pubsub.Blacklist
	MaxMessageSize int   // of a message on the wire, in bytes
	QueueBytes     int64 // of the messages that may wait for one peer, or in one subscription
	TotalBytes     int64 // of those that may wait in all
	Options        []pubsub.Option
	Scoring        *Scoring // nil for none
	Log            *slog.Logger
	Closing        <-chan struct{} // ends waiting calls, ahead of Close
	Trace          io.Writer       // gets gossipsub's events; nil for none
	RelayedBytes   int             // of a message that is sent over a relayed connection with limits; 0: none is used

	// Learned returns which addresses of a peer may be dialed on the word of another,
	// and remembers whose word that is. With [Scoring].PeerExchange only.
	Learned func(teller network.Conn, id peer.ID, addrs [][]byte) [][]byte

	// Meet keeps members of a topic connected until ctx ends. It is called for topics
	// that are opened so.
	Meet func(ctx context.Context, topic string, want int)

	// Deaf is called for a connected peer that has ended its stream of messages and
	// does not open another: it cannot be heard while it stays connected. It is told
	// once in ten minutes, in a goroutine of its own, and may wait.
	Deaf func(ctx context.Context, id peer.ID)

	// The callbacks run one after the other in a goroutine of the router's.
	Changed       func()                         // the peers or the mesh of a topic have changed
	PeerJoined    func(topic string, id peer.ID) // from now on messages reach the peer
	PeerLeft      func(topic string, id peer.ID) // messages reach the peer no longer
	TopicLeft     func(topic string)             // the topic was left, without a PeerLeft
	HealthChanged func(topic string, health Health)
	Graylisted    func(id peer.ID, score float64) // the peer is neither heard nor sent anything
	Forgiven      func(id peer.ID, score float64) // it is again, or has disconnected
}

// Router is a running gossipsub router. Its methods are safe for concurrent
// use and return errs.ErrClosed after Close.
type Router struct {
	cfg     Config
	ps      *pubsub.PubSub
	streams *links
	in      *incoming
	replays *replays
	group   *lifecycle.Group
	wake    chan struct{} // has a token when there is news

	budget   *ring.Budget
	envelope int // what a message of this node's takes in addition to data and topic

	// mu is taken in gossipsub's loop too, which upstream calls wait for:
	// nothing is called under it.
	mu      sync.Mutex
	closed  bool                // guarded by mu
	topics  map[string]*topic   // those joined, being joined or being left; guarded by mu
	held    map[string]leftover // those that upstream would not close; guarded by mu
	links   map[peer.ID]bool    // peers that gossipsub has a stream to; guarded by mu
	news    []news              // not yet told; guarded by mu
	handing int64               // bytes of the messages that calls of Publish hand to gossipsub; guarded by mu

	special  map[string]Spec      // of the topics whose Spec is not zero; guarded by mu
	perTopic bool                 // topics have signature policies of their own; set by New
	accounts map[peer.ID]*account // guarded by mu

	scoring, exchange bool                // there are scores of the node's, and PX; set by New
	scores            map[peer.ID]float64 // of connected peers, a second old; guarded by mu
	gray              map[peer.ID]bool    // those that are graylisted; guarded by mu
	ticked            uint64              // delivered, a second ago; guarded by mu
	pruned            map[edge]pruned     // guarded by mu
	prunedSweep       int                 // at how many it is swept; guarded by mu

	published, delivered, dropped, unsent, overrun atomic.Uint64
	unsentLog, overrunLog, refusedLog, panicLog    occasion.Occasion
	controlLog                                     occasion.Occasion
}

// leftover is a topic that upstream would not close.
type leftover struct {
	up   *pubsub.Topic
	spec Spec
}

// Topic describes a joined topic.
type Topic struct {
	Name          string
	Peers         []peer.ID // those that a message reaches, sorted
	Mesh          []peer.ID // the peers with which messages are exchanged in full, sorted
	Health        Health
	Subscriptions int    // of this node
	Dropped       uint64 // messages that they have dropped
	TopicCounts
}

// TopicCounts are totals since the node joined a topic.
type TopicCounts struct {
	Overrun  uint64 // incoming messages dropped unvalidated because too many arrived at once
	Rejected uint64 // those that a validator has rejected
	Ignored  uint64 // those that a validator has ignored
	Panics   uint64 // those over which a validator has panicked

	LastOverrun time.Time
}

// Counts are totals since the start.
type Counts struct {
	Published uint64 // messages sent by Publish
	Delivered uint64 // messages that arrived on a subscribed topic
	Dropped   uint64 // messages dropped because a subscription's reader was too slow
	Unsent    uint64 // messages not sent to a peer because its queue was full
	Overrun   uint64 // incoming messages dropped unvalidated because too many arrived at once
}

// New starts gossipsub. The upstream router has no Close: its goroutines end
// shortly after [Router.Close].
func New(ctx context.Context, cfg Config) (*Router, error) {
	r := &Router{
		cfg: cfg, group: lifecycle.NewGroup(ctx), wake: make(chan struct{}, 1),
		topics: make(map[string]*topic), held: make(map[string]leftover), links: make(map[peer.ID]bool),
		special: make(map[string]Spec), accounts: make(map[peer.ID]*account), replays: newReplays(replaySize),
		scores: make(map[peer.ID]float64), gray: make(map[peer.ID]bool), pruned: make(map[edge]pruned), prunedSweep: 1024,
	}
	score, err := r.try()
	if err != nil {
		return nil, errors.Join(err, r.group.Close())
	}
	r.streams = newLinks(cfg.Host, r.group, cfg.Log)
	r.streams.malformed = r.malformed
	r.streams.filter = newFilter(r.changing, func(id peer.ID, n int) {
		r.mu.Lock()
		a := r.accountLocked(id)
		a.Topics += uint64(n)
		a.points += float64(n) * refusedPoints
		r.mu.Unlock()
		if r.refusedLog.Now() {
			cfg.Log.Warn("topics of a peer are ignored: it is on too many", "peer", id)
		}
	})
	params := pubsub.DefaultGossipSubParams()
	if !r.exchange {
		params.PrunePeers = 0 // the DHT and the keeper find peers
	}
	params.IWantFollowupTime, params.UnsubscribeBackoff = followUp, unsubscribeBackoff
	opts := slices.Concat([]pubsub.Option{
		pubsub.WithMessageSignaturePolicy(ownPolicy),
		pubsub.WithMaxMessageSize(cfg.MaxMessageSize),
		pubsub.WithMessageIdFn(defaultID),
		// Send a node's own messages to every peer on the topic, not only to its
		// mesh, which is empty until the next heartbeat: otherwise what is
		// published in the first second after a peer came is lost.
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerOutboundQueueSize(outboundQueue),
		pubsub.WithValidateQueueSize(validateQueue),
		pubsub.WithValidateWorkers(validateWorkers),
		pubsub.WithBlacklist(cfg.Blacklist),
		pubsub.WithRawTracer(tracer{r}),
		pubsub.WithAppSpecificRpcInspector(r.inspect),
		pubsub.WithSubscriptionFilter(r.streams.filter),
		pubsub.WithGossipSubParams(params),
		pubsub.WithPeerExchange(r.exchange),
	}, score.set, cfg.Options, score.inspect)
	if cfg.Trace != nil {
		t := newTrace(cfg.Trace)
		r.group.Go(func(ctx context.Context) {
			t.write(ctx, func(err error) { cfg.Log.Warn("writing the trace of pubsub has ended", "err", err) })
		})
		opts = slices.Insert(opts, 0, pubsub.WithEventTracer(t))
	}
	r.envelope, r.budget = envelope(cfg.Host), ring.NewBudget(cfg.TotalBytes)
	r.in = newIncoming(validateQueue, max(cfg.TotalBytes/4, cfg.QueueBytes), cfg.TotalBytes/2, r.budget)
	made := make(chan struct{})
	r.streams.topics = func() []string {
		select {
		case <-made:
			return r.ps.GetTopics()
		case <-r.group.Context().Done():
			return nil
		}
	}
	r.streams.lost = func(id peer.ID, n int) { r.notSent(id, n) }
	r.streams.deaf = cfg.Deaf
	r.streams.queueBytes, r.streams.budget, r.streams.relayedBytes = cfg.QueueBytes, r.budget, cfg.RelayedBytes
	if cfg.Deaf == nil {
		r.streams.deaf = func(context.Context, peer.ID) {}
	}
	stop := r.streams.start()
	if r.ps, err = pubsub.NewGossipSub(r.group.Context(), r.streams, opts...); err != nil {
		stop()
		return nil, errors.Join(err, r.group.Close())
	}
	r.perTopic = signaturePolicy(r.ps) == ownPolicy
	close(made)
	r.group.Go(r.tell)
	r.group.Go(func(ctx context.Context) {
		<-ctx.Done()
		stop()
	})
	return r, nil
}

// errTried ends the trial of options.
var errTried = errors.New("all options are good")

// scoreOptions make gossipsub keep scores: some come before the options of the
// application, some after.
type scoreOptions struct{ set, inspect []pubsub.Option }

// try applies the application's options to a router that does not start. One that
// fails, or panics, would leave a goroutine of gossipsub's running, which ends with
// a router that has started. It returns the options for the scores.
func (r *Router) try() (scoreOptions, error) {
	var score scoreOptions
	var params *pubsub.PeerScoreParams
	if s := r.cfg.Scoring; s != nil {
		params = s.Peer(r.score)
		score.set = []pubsub.Option{pubsub.WithPeerScore(params, s.Thresholds())}
	}
	if len(r.cfg.Options) == 0 {
		return r.keepScores(score), nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	router := pubsub.DefaultGossipSubRouter(r.cfg.Host)
	var made *pubsub.PubSub
	var foreign, inspected bool
	opts := slices.Concat([]pubsub.Option{func(ps *pubsub.PubSub) error {
		made = ps
		return nil
	}}, score.set, r.cfg.Options, []pubsub.Option{func(*pubsub.PubSub) error {
		if params != nil {
			foreign, inspected = ownScore(router, params)
		}
		return errTried
	}})
	defer func() { router.Attach(made) }()
	_, err := pubsub.NewGossipSubWithRouter(ctx, r.cfg.Host, router, opts...)
	switch {
	case !errors.Is(err, errTried):
		return score, err
	case inspected:
		return score, errOwnInspect
	case foreign:
		return score, ErrOwnScore
	}
	return r.keepScores(score), nil
}

func (r *Router) keepScores(score scoreOptions) scoreOptions {
	if score.set != nil {
		r.scoring, r.exchange = true, r.cfg.Scoring.PeerExchange
		score.inspect = []pubsub.Option{pubsub.WithPeerScoreInspect(r.scored, scoreInterval)}
	}
	return score
}

// Close closes the subscriptions, leaves the topics so that the neighbors learn
// of it, and ends the router.
func (r *Router) Close() error {
	r.mu.Lock()
	r.closed = true
	list := r.sortedLocked()
	r.mu.Unlock()
	for _, t := range list {
		r.evict(t)
	}
	return r.group.Close()
}

// PubSub returns the upstream router.
func (r *Router) PubSub() *pubsub.PubSub { return r.ps }

// Speaks reports whether a protocol is gossipsub's.
func Speaks(p protocol.ID) bool { return strings.HasPrefix(string(p), "/meshsub/") }

// Counts returns the totals.
func (r *Router) Counts() Counts {
	return Counts{
		Published: r.published.Load(), Delivered: r.delivered.Load(), Dropped: r.dropped.Load(),
		Unsent: r.unsent.Load(), Overrun: r.overrun.Load(),
	}
}

// Deaf returns the connected peers that cannot be heard, sorted: they have ended
// the stream of their messages and not opened another.
func (r *Router) Deaf() []peer.ID { return r.streams.deafPeers() }

// Topics returns the topics that the node uses, sorted by name.
func (r *Router) Topics() []Topic {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Topic
	for _, t := range r.sortedLocked() {
		if t.leaving {
			continue
		}
		list = append(list, r.stateLocked(t))
	}
	return list
}

// Topic describes a topic, and reports whether it is joined at all.
func (r *Router) Topic(name string) (Topic, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.topics[name]
	if t == nil || t.leaving {
		return Topic{}, false
	}
	return r.stateLocked(t), true
}

func (r *Router) sortedLocked() []*topic {
	list := slices.Collect(maps.Values(r.topics))
	slices.SortFunc(list, func(a, b *topic) int { return strings.Compare(a.name, b.name) })
	return list
}

// envelope is what a message of this host's takes on the wire at most, in
// addition to its data and topic.
func envelope(h host.Host) int {
	key := h.Peerstore().PubKey(h.ID())
	if key == nil {
		return MessageOverhead // gossipsub will not start
	}
	signature, _ := key.Raw() // an RSA signature is shorter than its key, all others than MessageOverhead
	m := &pubsub_pb.Message{From: []byte(h.ID()), Seqno: make([]byte, 8), Signature: signature}
	if _, err := h.ID().ExtractPublicKey(); err != nil { // the ID does not contain the key
		m.Key, _ = crypto.MarshalPublicKey(key) // nothing to marshal would fail gossipsub's start
	}
	const lengths = 64 // of data, topic, message, and the whole
	return max(MessageOverhead, proto.Size(m)+lengths)
}
