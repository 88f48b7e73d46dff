package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/go-p2pnode/p2pnode/internal/backoff"
	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/ring"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

const (
	// openLimit bounds how long opening a stream may take.
	openLimit = 10 * time.Second
	// A stream that ends is reopened at once, and after delays from reopenMin to
	// reopenMax if the peer keeps ending it. A stream that lasted for steady
	// resets them.
	reopenMin = 100 * time.Millisecond
	reopenMax = 2 * time.Second
	steady    = 30 * time.Second
	// sendLimit is how long sending a message may take, and goodbyeLimit how long
	// sending all waiting messages may take when the router closes.
	sendLimit    = 30 * time.Second
	goodbyeLimit = time.Second
	// firstTries is how many attempts NewStream makes: if it fails, gossipsub
	// ignores the peer until it reconnects.
	firstTries = 5
	// A connected peer whose stream has ended gets a new one from this node after
	// renewAfter: js-libp2p does not reopen its stream, but opens one when it gets
	// one. If that does not help either, the peer counts as deaf after deafAfter.
	renewAfter = time.Second
	deafAfter  = 15 * time.Second
	// leaveLimit is how long a peer may take to read the rest of a stream before the
	// next one is opened on a better connection.
	leaveLimit = time.Second
	// deafAgain is the minimum time between two reports of a peer.
	deafAgain = 10 * time.Minute
)

// errLinkOver is the error of gossipsub's stream to a disconnected peer.
var errLinkOver = errors.New("the peer has disconnected")

// errLeft is the error of a write while the stream is being replaced.
var errLeft = errors.New("the stream is being replaced")

// links sits between gossipsub and the host, and keeps both streams of a peer
// open while it is connected.
//
// Gossipsub (0.17 to 0.19) announces a node's topics at the beginning of a
// stream and never again, and forgets a peer's topics when a stream of either
// direction ends. So if only one of the two streams ends, by a reset, a message
// above the other side's limit or one of two connections closing, one side
// stays deaf; after five times in ten minutes gossipsub does not even reopen
// the stream. Here the stream that gossipsub writes to lasts as long as the
// peer is connected: when the underlying stream ends, the next replaces it and
// announces the topics again. It moves from a relayed connection to a direct one,
// whose end would be noticed. And when a peer opens a stream for the second
// time, it may have forgotten the topics, or be another process: they are
// announced to it again.
type links struct {
	host.Host
	log    *slog.Logger
	group  *lifecycle.Group
	topics func() []string // the topics to announce; a call to gossipsub's loop
	// deaf is called for a connected peer that has closed its stream and not opened
	// another. It may block.
	deaf func(ctx context.Context, id peer.ID)
	lost func(id peer.ID, messages int) // counts messages that were not sent
	// malformed is called for what a peer sends that gossipsub cannot read.
	malformed func(id peer.ID)
	// queueBytes bounds the messages that wait for one peer, and budget those for
	// all peers.
	queueBytes int64
	budget     *ring.Budget
	// relayedBytes bounds a message that is sent over a relayed connection with
	// limits; 0: topics do not use these.
	relayedBytes int
	filter       *filter
	// drained reports that fewer bytes wait for a peer, or that one is gone.
	drained signal.Signal

	mu    sync.Mutex
	peers map[peer.ID]*linked   // guarded by mu
	told  map[peer.ID]time.Time // the calls of deaf in the last deafAgain; guarded by mu
}

// linked is the state of a connected peer.
type linked struct {
	out    *outgoing      // gossipsub's stream to the peer; nil without one
	early  int64          // bytes of messages that wait in gossipsub's queue for the next stream
	in     network.Stream // the peer's newest stream; nil if it has ended
	opened int            // how many streams the peer has opened since it connected
	born   time.Time      // when it opened the newest: what it knew before, it may have forgotten
	watch  *time.Timer    // asks for another stream, then marks the peer as deaf; nil unless in is
	deaf   bool
}

func newLinks(h host.Host, group *lifecycle.Group, log *slog.Logger) *links {
	return &links{Host: h, log: log, group: group, peers: make(map[peer.ID]*linked), told: make(map[peer.ID]time.Time)}
}

// start starts to watch for peers that disconnect. Call stop after gossipsub has
// ended.
func (l *links) start() (stop func()) {
	changes := &network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			if isRelayed(c) {
				return
			}
			l.mu.Lock()
			var out *outgoing
			if p := l.peers[c.RemotePeer()]; p != nil {
				out = p.out
			}
			l.mu.Unlock()
			if out != nil {
				out.preferDirect()
			}
		},
		DisconnectedF: func(_ network.Network, c network.Conn) {
			if id := c.RemotePeer(); !l.connected(id) {
				l.forget(id)
			}
		},
	}
	l.Network().Notify(changes)
	return func() {
		l.Network().StopNotify(changes)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, p := range l.peers {
			if p.watch != nil {
				p.watch.Stop()
			}
		}
	}
}

// forget drops the state of a disconnected peer.
func (l *links) forget(id peer.ID) {
	l.mu.Lock()
	p := l.peers[id]
	delete(l.peers, id)
	l.mu.Unlock()
	l.filter.forget(id)
	if p == nil {
		return
	}
	if p.watch != nil {
		p.watch.Stop()
	}
	if p.out != nil {
		p.out.end()
	}
}

func (l *links) peerLocked(id peer.ID) *linked {
	p := l.peers[id]
	if p == nil {
		p = &linked{}
		l.peers[id] = p
	}
	return p
}

// NewStream opens gossipsub's stream to a peer.
func (l *links) NewStream(ctx context.Context, id peer.ID, protos ...protocol.ID) (network.Stream, error) {
	retry := backoff.Backoff{Min: reopenMin, Max: reopenMax}
	for try := 1; ; try++ {
		s, err := l.open(ctx, id, protos)
		if err == nil {
			return l.link(id, s, protos), nil
		}
		if unsupported := (multistream.ErrNotSupported[protocol.ID]{}); errors.As(err, &unsupported) || try == firstTries || !l.connected(id) {
			return nil, err
		}
		if !backoff.Sleep(ctx, retry.Next()) {
			return nil, ctx.Err()
		}
	}
}

// connected reports whether topics use a connection to a peer.
func (l *links) connected(id peer.ID) bool {
	return l.Network().Connectedness(id) == network.Connected
}

// Network returns the network as gossipsub sees it, which does not look at peers
// whose only connections have limits.
func (l *links) Network() network.Network {
	if l.relayedBytes > 0 {
		return overRelays{l.Host.Network()}
	}
	return l.Host.Network()
}

// overRelays is a network in which connections with limits are like others.
type overRelays struct{ network.Network }

func (n overRelays) Connectedness(id peer.ID) network.Connectedness {
	if c := n.Network.Connectedness(id); c != network.Limited {
		return c
	}
	return network.Connected
}

// isRelayed returns whether a connection runs through a relay. Not all of those
// are limited.
func isRelayed(c network.Conn) bool {
	_, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// open opens a stream on the connection of the peer's newest stream, because an
// older connection may be dead, but prefers a direct connection to a relayed one.
func (l *links) open(ctx context.Context, id peer.ID, protos []protocol.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	l.mu.Lock()
	var conn network.Conn
	if p := l.peers[id]; p != nil && p.in != nil {
		conn = p.in.Conn()
	}
	l.mu.Unlock()
	if l.relayedBytes > 0 {
		ctx = network.WithAllowLimitedConn(ctx, "pubsub")
	}
	if conn == nil || conn.IsClosed() || isRelayed(conn) {
		return l.Host.NewStream(network.WithNoDial(ctx, "pubsub"), id, protos...)
	}
	s, err := conn.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline) // fails only if the stream has ended, which the next step notices
	proto, err := multistream.SelectOneOf(protos, s)
	if err == nil {
		err = s.SetProtocol(proto)
	}
	if err != nil {
		_ = s.Reset()
		return nil, err
	}
	_ = s.SetDeadline(time.Time{})
	return s, nil
}

// link wraps an open stream as gossipsub's stream.
func (l *links) link(id peer.ID, s network.Stream, protos []protocol.ID) network.Stream {
	o := &outgoing{
		Stream: s, links: l, id: id, protos: protos,
		turn: make(chan struct{}, 1), over: make(chan struct{}), news: make(chan struct{}, 1),
		again: make(chan struct{}, 1), ready: make(chan struct{}, 1), fresh: make(chan struct{}, 1), current: s, since: time.Now(),
	}
	l.mu.Lock()
	p := l.peerLocked(id)
	old := p.out
	p.out, o.coming, p.early = o, p.early, 0
	l.mu.Unlock()
	if old != nil {
		old.end()
	}
	if !l.group.Go(o.send) {
		o.end()
		o.drop()
	}
	l.drained.Notify()
	if !l.connected(id) { // otherwise the state would remain
		l.forget(id)
	}
	o.preferDirect() // one may have come since
	return o
}

// SetStreamHandler serves the streams that peers open.
func (l *links) SetStreamHandler(proto protocol.ID, h network.StreamHandler) {
	l.Host.SetStreamHandler(proto, l.serving(h))
}

// SetStreamHandlerMatch serves the streams that peers open.
func (l *links) SetStreamHandlerMatch(proto protocol.ID, match func(protocol.ID) bool, h network.StreamHandler) {
	l.Host.SetStreamHandlerMatch(proto, match, l.serving(h))
}

func (l *links) serving(h network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		l.came(s)
		h(&incomingStream{Stream: s, links: l}) // returns when the stream ends
		l.went(s)
	}
}

// came records a new stream of a peer.
func (l *links) came(s network.Stream) {
	id := s.Conn().RemotePeer()
	l.mu.Lock()
	p := l.peerLocked(id)
	p.in, p.deaf = s, false
	p.born = time.Now()
	p.opened++
	if p.watch != nil {
		p.watch.Stop()
		p.watch = nil
	}
	out, again := p.out, p.opened > 1
	l.mu.Unlock()
	if again {
		l.filter.forget(id) // gossipsub forgets, and hears anew
	}
	if !l.connected(id) { // otherwise the state would remain
		l.forget(id)
		return
	}
	if out != nil {
		out.peerOpened(again)
	}
}

// incomingStream notices that gossipsub gives a peer's stream up because of what it
// has read: an RPC that is none, or above a limit.
type incomingStream struct {
	network.Stream
	links *links
	ended atomic.Bool // a read has failed
}

func (s *incomingStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if err != nil {
		s.ended.Store(true)
	}
	return n, err
}

// Reset is called by the reader, and when the next stream has come.
func (s *incomingStream) Reset() error {
	id := s.Conn().RemotePeer()
	s.links.mu.Lock()
	p := s.links.peers[id]
	newest := p != nil && p.in == s.Stream
	s.links.mu.Unlock()
	if newest && !s.ended.Swap(true) && s.links.group.Context().Err() == nil {
		s.links.malformed(id)
	}
	return s.Stream.Reset()
}

// bornAt returns when a peer has opened its newest stream.
func (l *links) bornAt(id peer.ID) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.peers[id]; p != nil {
		return p.born
	}
	return time.Time{}
}

// write sends an encoded RPC to a peer, unless there is no stream to it.
func (l *links) write(id peer.ID, message []byte) {
	l.mu.Lock()
	var out *outgoing
	if p := l.peers[id]; p != nil {
		out = p.out
	}
	l.mu.Unlock()
	if out != nil {
		_, _ = out.Write(message) // fails only if the peer has gone
	}
}

// went records the end of a peer's stream. A connected peer that does not open
// another is asked to, and then counts as deaf.
func (l *links) went(s network.Stream) {
	id := s.Conn().RemotePeer()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[id]
	if p == nil || p.in != s {
		return
	}
	p.in = nil
	opened := p.opened
	p.watch = time.AfterFunc(renewAfter, func() { l.renew(id, p, opened) })
}

// renew replaces gossipsub's stream to a peer that has opened no other since.
func (l *links) renew(id peer.ID, p *linked, opened int) {
	l.mu.Lock()
	if l.peers[id] != p || p.opened != opened || l.group.Context().Err() != nil {
		l.mu.Unlock()
		return
	}
	out := p.out
	p.watch = time.AfterFunc(deafAfter-renewAfter, func() {
		l.group.Go(func(ctx context.Context) {
			if l.isDeaf(id, p) {
				l.deaf(ctx, id)
			}
		})
	})
	l.mu.Unlock()
	if out != nil {
		out.renew()
	}
}

// isDeaf records a peer that has had no stream for deafAfter, and returns
// whether to report it.
func (l *links) isDeaf(id peer.ID, p *linked) bool {
	if !l.connected(id) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers[id] != p || p.in != nil {
		return false
	}
	p.deaf = true
	maps.DeleteFunc(l.told, func(_ peer.ID, at time.Time) bool { return time.Since(at) > deafAgain })
	if _, lately := l.told[id]; lately {
		return false
	}
	l.told[id] = time.Now()
	return true
}

// deafPeers returns the connected peers that are deaf, sorted.
func (l *links) deafPeers() (list []peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, p := range l.peers {
		if p.deaf {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// outgoing is gossipsub's stream to a peer. Gossipsub writes whole messages, one
// per Write, and reads only to notice the end. Messages wait here until they are
// sent, bounded in bytes: gossipsub's own queue bounds only their number.
type outgoing struct {
	network.Stream // the first stream, for methods whose results never change
	links          *links
	id             peer.ID
	protos         []protocol.ID

	turn  chan struct{} // holds a token during a write or a replacement of the stream
	over  chan struct{} // closed at the end
	once  sync.Once
	news  chan struct{} // has a token if messages wait
	again chan struct{} // has a token if the topics must be announced again
	ready chan struct{} // has a token if the peer has opened a stream
	fresh chan struct{} // has a token if the stream was replaced

	mu      sync.Mutex
	current network.Stream    // guarded by mu
	since   time.Time         // when current was opened; guarded by mu
	left    bool              // current is to be replaced at once; guarded by mu
	waiting ring.FIFO[[]byte] // messages to send; guarded by mu
	bytes   int64             // of waiting and of the message that is being sent; guarded by mu
	coming  int64             // of messages in gossipsub's queue; below 0 when one arrives before expect; guarded by mu
	done    bool              // no more messages are sent; guarded by mu
}

func (o *outgoing) stream() network.Stream {
	s, _ := o.state()
	return s
}

// state returns the current stream, and whether it is to be replaced.
func (o *outgoing) state() (s network.Stream, left bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.current, o.left
}

// Conn returns the connection of the current stream, or of the last one.
func (o *outgoing) Conn() network.Conn { return o.stream().Conn() }

// SetWriteDeadline does nothing: Write does not block.
func (o *outgoing) SetWriteDeadline(time.Time) error { return nil }

// Write queues a message. A message that cannot be sent is lost and counted, but
// does not end the stream.
func (o *outgoing) Write(message []byte) (int, error) {
	size := int64(len(message))
	announces, messages := contents(message)
	o.mu.Lock()
	if o.done {
		o.mu.Unlock()
		return 0, errLinkOver
	}
	if messages > 0 {
		o.coming -= size
	}
	tooLarge := len(message) > o.links.relayedBytes && o.current.Conn().Stat().Limited
	if full := o.bytes > 0 && o.bytes+size > o.links.queueBytes; tooLarge || full || !o.links.budget.Take(size) {
		if !announces {
			o.mu.Unlock()
			o.links.drained.Notify()
			o.links.lost(o.id, messages)
			return len(message), nil
		}
		o.links.budget.Force(size) // a change of topics is small and must not get lost
	}
	kept := pool.Get(len(message))
	copy(kept, message)
	o.waiting.Push(kept)
	o.bytes += size
	o.mu.Unlock()
	nudge(o.news)
	return len(message), nil
}

// contents returns whether an encoded RPC announces topics, and how many
// published messages it carries.
func contents(message []byte) (announces bool, published int) {
	const subscriptions, publish = 1, 2 // fields of an RPC
	_, n := protowire.ConsumeVarint(message)
	for rest := message[max(n, 0):]; len(rest) > 0; {
		field, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			break
		}
		rest = rest[n:]
		switch field {
		case subscriptions:
			announces = true
		case publish:
			published++
		}
	}
	return announces, published
}

// out returns gossipsub's stream to a peer, nil without one.
func (l *links) out(id peer.ID) *outgoing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.peers[id]; p != nil {
		return p.out
	}
	return nil
}

// queued records that gossipsub has queued messages for a peer, whose encoding has
// so many bytes.
func (l *links) queued(id peer.ID, bytes int) {
	size := int64(protowire.SizeBytes(bytes)) // with its length
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[id]
	switch {
	case p == nil:
	case p.out == nil || !p.out.expect(size):
		p.early += size
	}
}

// expect records that a message waits in gossipsub's queue, unless the stream has
// ended.
func (o *outgoing) expect(size int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return false
	}
	o.coming += size
	return true
}

func (o *outgoing) isOver() bool {
	select {
	case <-o.over:
		return true
	default:
		return false
	}
}

// hasRoom reports whether a peer can still be reached, and whether a message of so
// many bytes can be queued for it, ahead of which others are on their way to gossipsub. Half of the queue stays
// free, for up to 32 more in a channel of gossipsub's, and for those of others that
// the node sends on.
func (l *links) hasRoom(id peer.ID, size, ahead int64) (reached, room bool) {
	// Gossipsub hears later that a peer has disconnected.
	out := l.out(id)
	if out == nil || out.isOver() || !l.connected(id) {
		return false, false
	}
	out.mu.Lock()
	ahead += max(out.coming, 0)
	queued := ahead + out.bytes
	out.mu.Unlock()
	return true, (queued == 0 || queued+size <= l.queueBytes/2) && l.budget.Has(ahead+size)
}

// carries reports whether the connection to a peer carries messages of so many
// bytes: those that run through relays with limits only carry small ones.
func (l *links) carries(id peer.ID, size int64) bool {
	return l.relayedBytes == 0 || size <= int64(l.relayedBytes) || l.Host.Network().Connectedness(id) != network.Limited
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send sends the queued messages, and announces the topics again if needed.
func (o *outgoing) send(ctx context.Context) {
	defer o.end()
	for {
		select {
		case <-o.news:
			for o.sendNext() {
			}
		case <-o.again:
			o.announceAgain()
		case <-o.over:
			o.drop()
			return
		case <-ctx.Done():
			o.goodbye()
			return
		}
	}
}

// sendNext sends the next message, and reports whether there was one.
func (o *outgoing) sendNext() bool {
	o.mu.Lock()
	message, ok := o.waiting.Pop()
	o.mu.Unlock()
	if !ok {
		return false
	}
	size := int64(len(message))
	err := o.sendOne(message)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errLinkOver) {
		// The stream had ended: send the message on the next one. Peers recognize
		// duplicates.
		select {
		case <-o.fresh:
			err = o.sendOne(message)
		case <-time.After(reopenMax):
		case <-o.over:
		}
	}
	if err != nil && !errors.Is(err, errLinkOver) {
		_, messages := contents(message)
		o.links.lost(o.id, messages)
		o.links.log.Debug("message not sent", "peer", o.id, "err", err)
	}
	pool.Put(message)
	o.links.budget.Give(size)
	o.mu.Lock()
	o.bytes -= size
	o.mu.Unlock()
	o.links.drained.Notify()
	return err == nil || !errors.Is(err, errLinkOver)
}

// sendOne makes one attempt to send a message.
func (o *outgoing) sendOne(message []byte) error {
	select {
	case <-o.fresh: // only later replacements matter
	default:
	}
	return o.locked(func() error {
		s, left := o.state()
		if left {
			return errLeft
		}
		_ = s.SetWriteDeadline(time.Now().Add(sendLimit)) // fails only if the stream has ended; then Write fails, too
		_, err := s.Write(message)
		if err != nil {
			_ = s.Reset() // half of the message may be sent; Read replaces the stream
		}
		return err
	})
}

// goodbye sends the waiting messages when the router closes, such as those that
// leave topics.
func (o *outgoing) goodbye() {
	s := o.stream()
	_ = s.SetWriteDeadline(time.Now().Add(goodbyeLimit))
	o.mu.Lock()
	list := o.waiting.All()
	o.mu.Unlock()
	for _, message := range list {
		if _, err := s.Write(message); err != nil {
			break
		}
	}
	_ = s.CloseWrite() // unlike a reset, it does not drop what was written
	o.drop()
}

// drop releases what waits. Messages for a peer that is gone count as not sent.
func (o *outgoing) drop() {
	o.mu.Lock()
	unsent := 0
	for _, message := range o.waiting.All() {
		_, n := contents(message)
		unsent += n
		o.links.budget.Give(int64(len(message)))
		pool.Put(message)
	}
	o.waiting, o.bytes, o.done = ring.FIFO[[]byte]{}, 0, true
	o.mu.Unlock()
	o.links.drained.Notify()
	if unsent > 0 && o.links.group.Context().Err() == nil {
		o.links.lost(o.id, unsent)
	}
}

// peerOpened is called after the peer has opened a stream, with again unless it
// was the first. It does not block.
func (o *outgoing) peerOpened(again bool) {
	nudge(o.ready)
	if again {
		nudge(o.again)
	}
}

// announceAgain announces the topics on the current stream, or has it replaced by
// one on the peer's new connection.
func (o *outgoing) announceAgain() {
	s := o.stream()
	o.links.mu.Lock()
	p := o.links.peers[o.id]
	elsewhere := p != nil && p.in != nil && p.in.Conn() != s.Conn() && (!isRelayed(p.in.Conn()) || isRelayed(s.Conn()))
	o.links.mu.Unlock()
	if elsewhere {
		if isRelayed(s.Conn()) {
			o.leave(s)
		} else {
			o.renew() // the peer may have crashed, and nobody reads the stream
		}
		return
	}
	err := o.locked(func() error {
		if s, left := o.state(); !left { // otherwise the next stream begins with the topics
			return o.announce(s)
		}
		return nil
	})
	if err != nil {
		o.links.log.Debug("announcing topics again", "peer", o.id, "err", err)
		_ = s.Reset()
	}
}

// preferDirect leaves a relayed connection if there is a direct one. It does not
// block.
func (o *outgoing) preferDirect() {
	s := o.stream()
	direct := func(c network.Conn) bool { return !isRelayed(c) && !c.IsClosed() }
	if isRelayed(s.Conn()) && slices.ContainsFunc(o.links.Network().ConnsToPeer(o.id), direct) {
		o.links.group.Go(func(context.Context) { o.leave(s) })
	}
}

// leave has a stream replaced once the peer has read what was sent on it.
func (o *outgoing) leave(s network.Stream) {
	timer := time.NewTimer(leaveLimit)
	defer timer.Stop()
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-o.over:
		return
	case <-timer.C: // a write is stuck
		o.renew()
		return
	}
	o.mu.Lock()
	leave := o.current == s && !o.left
	o.left = o.left || leave
	o.mu.Unlock()
	if !leave {
		return
	}
	_ = s.CloseWrite()
	_ = s.SetReadDeadline(time.Now().Add(leaveLimit)) // if these fail, the stream has ended
}

// renew has the stream replaced, at once.
func (o *outgoing) renew() {
	o.mu.Lock()
	s := o.current
	o.left = true
	o.mu.Unlock()
	_ = s.Reset()
}

func (o *outgoing) Close() error { o.end(); return nil }
func (o *outgoing) Reset() error { o.end(); return nil }

func (o *outgoing) ResetWithError(network.StreamErrorCode) error { o.end(); return nil }

// end ends the stream; it is not replaced.
func (o *outgoing) end() {
	o.once.Do(func() {
		close(o.over)
		_ = o.stream().Reset()
	})
}

// Read waits for the end, and replaces the stream until then. Peers send nothing
// on it.
func (o *outgoing) Read([]byte) (int, error) {
	defer o.end()
	ctx := o.links.group.Context()
	retry := backoff.Backoff{Min: reopenMin, Max: reopenMax}
	for {
		s := o.stream()
		_, _ = s.Read(make([]byte, 1)) // any return means that the stream has ended
		_ = s.Reset()
		o.mu.Lock()
		left, lasted := o.left, time.Since(o.since)
		o.left = false
		o.mu.Unlock()
		switch {
		case left:
		case lasted > steady:
			retry.Reset()
		default:
			o.pause(ctx, retry.Next())
		}
		if !o.replace(ctx, &retry) {
			return 0, errLinkOver
		}
	}
}

// pause waits for d, or less if the peer opens a stream: then it is ready.
func (o *outgoing) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-o.ready:
	case <-o.over:
	case <-ctx.Done():
	}
}

// replace opens the next stream and announces the topics on it. It returns false
// if the stream is not to be replaced.
func (o *outgoing) replace(ctx context.Context, retry *backoff.Backoff) bool {
	for {
		if !o.links.connected(o.id) || ctx.Err() != nil {
			return false
		}
		err := o.locked(func() error {
			s, err := o.links.open(ctx, o.id, o.protos)
			if err != nil {
				return err
			}
			if err := o.announce(s); err != nil {
				_ = s.Reset()
				return err
			}
			o.mu.Lock()
			// What was to be replaced meanwhile is the stream before.
			missed := o.left
			o.current, o.since, o.left = s, time.Now(), false
			o.mu.Unlock()
			if missed {
				nudge(o.again) // it looks again on which connection the stream belongs
			}
			select {
			case <-o.over: // end has reset only the previous stream
				_ = s.Reset()
				return errLinkOver
			default:
				return nil
			}
		})
		if err == nil {
			o.links.log.Debug("pubsub stream replaced", "peer", o.id)
			nudge(o.fresh)
			o.preferDirect()
			return true
		}
		o.links.log.Debug("reopening pubsub stream", "peer", o.id, "err", err)
		if unsupported := (multistream.ErrNotSupported[protocol.ID]{}); errors.As(err, &unsupported) || errors.Is(err, errLinkOver) {
			return false
		}
		o.pause(ctx, retry.Next())
	}
}

// locked runs f while no other goroutine writes.
func (o *outgoing) locked(f func() error) error {
	select {
	case o.turn <- struct{}{}:
	case <-o.over:
		return errLinkOver
	}
	defer func() { <-o.turn }()
	return f()
}

// announce sends all topics to the peer. Changes that gossipsub has queued follow
// and have no effect; later changes follow in order.
func (o *outgoing) announce(s network.Stream) error {
	_ = s.SetWriteDeadline(time.Now().Add(openLimit))
	yes := true
	for some := range slices.Chunk(o.links.topics(), 500) {
		rpc := &pubsub_pb.RPC{}
		for _, t := range some {
			rpc.Subscriptions = append(rpc.Subscriptions, &pubsub_pb.RPC_SubOpts{Topicid: &t, Subscribe: &yes})
		}
		if _, err := protodelim.MarshalTo(s, rpc); err != nil {
			return fmt.Errorf("announcing topics: %w", err)
		}
	}
	return nil
}
