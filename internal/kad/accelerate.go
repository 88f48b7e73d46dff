package kad

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/amino"
	"github.com/libp2p/go-libp2p-kad-dht/crawler"
	"github.com/libp2p/go-libp2p-kad-dht/fullrt"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kbucket/peerdiversity"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	manet "github.com/multiformats/go-multiaddr/net"
)

// The accelerated client is upstream's: once an hour it asks every server of the
// public DHT for all it knows, and then it knows the closest peers to any key
// without a lookup. Here it only says who they are; everything else takes the ways
// that it takes without the client.
//
// A crawl keeps to what bounds the rest of the node. Answers come through the
// node's own sender. A dial on the word of a peer whose words have led nowhere
// waits (nethost's gate), instead of being refused, which would lose the peer for
// an hour. A connection that a crawl has opened is closed when the peer has
// answered, unless somebody else has begun to use it: thousands at once would
// exceed the limits of the resource manager long before the connection manager
// trims them.

const (
	// crawlAtOnce is how many peers a crawl asks at a time.
	crawlAtOnce = 100
	// crawlDial bounds a dial of a crawl, and crawlWait how long it waits before.
	crawlDial = 5 * time.Second
	crawlWait = 5 * time.Second
	// crawlTimeout bounds a crawl, which begins once an hour.
	crawlTimeout = 45 * time.Minute
	// crawlAgain is when a crawl that found nobody is repeated.
	crawlAgain = time.Minute
	// maxCrawled bounds how many peers a crawl hears of. The public network has
	// some 10,000 servers, and as many names that lead nowhere.
	maxCrawled = 1 << 16
)

// accelerated is the accelerated client.
type accelerated struct {
	d       *DHT
	table   *dht.IpfsDHT // the Internet's
	full    *fullrt.FullRT
	crawler crawler.Crawler
	host    *crawlHost
	sender  *crawlSender
	whole   atomic.Bool // the last crawl has come to its end, and found enough
	last    int         // how many answered in the one before; only for crawl
}

// accelerate starts the accelerated client of a public DHT.
func (d *DHT) accelerate() (err error) {
	a := &accelerated{d: d, table: d.tables[0]}
	a.host = &crawlHost{bookHost: bookHost{d.cfg.Host, manet.IsPublicAddr}, opened: make(map[peer.ID]bool)}
	a.sender = &crawlSender{MessageSender: a.table.MessageSender()}
	sender := func(host.Host, []protocol.ID) pb.MessageSenderWithDisconnect { return a.sender }
	a.crawler, err = crawler.NewDefaultCrawler(a.host, crawler.WithParallelism(crawlAtOnce),
		crawler.WithConnectTimeout(crawlWait+crawlDial), crawler.WithCustomMessageSender(sender))
	if err != nil {
		return err
	}
	// Its stores, which it insists on, stay empty. It calls for bootstrap peers even
	// if there are none.
	a.full, err = fullrt.NewFullRT(a.host, amino.ProtocolPrefix, fullrt.WithCrawler(a), fullrt.DHTOption(
		dht.BucketSize(a.table.BucketSize()), dht.BootstrapPeers(), dht.WithCustomMessageSender(sender)))
	if err != nil {
		return err
	}
	d.accelerated = a
	return nil
}

// close ends the client, and a crawl that is under way.
func (a *accelerated) close() error {
	if a == nil {
		return nil
	}
	return a.full.Close()
}

// closest returns the closest peers to a key: of the public DHT those that the
// accelerated client knows, when it is ready, otherwise those of a lookup.
func (d *DHT) closest(ctx context.Context, table *dht.IpfsDHT, key string) ([]peer.ID, error) {
	if a := d.accelerated; a != nil && table == a.table && a.ready() {
		list, err := a.full.GetClosestPeers(ctx, key)
		if err == nil && len(list) >= table.BucketSize() && a.diverse(list) {
			return list, nil
		}
	}
	return table.GetClosestPeers(ctx, key)
}

// ready reports whether the client knows all servers.
func (a *accelerated) ready() bool { return a.whole.Load() && a.full.Ready() }

// diverse reports whether no more of some peers have addresses in one network than
// the routing table admits. Upstream (v0.42) has an option for that, and does
// nothing with it. Somebody with many IDs at one address should not hold a record
// alone: a lookup begins with a table where he has few.
func (a *accelerated) diverse(list []peer.ID) bool {
	count := make(map[peerdiversity.PeerIPGroupKey]int)
	for _, id := range list {
		var groups []peerdiversity.PeerIPGroupKey
		for _, addr := range a.host.Peerstore().Addrs(id) {
			ip, err := manet.ToIP(addr)
			if err != nil {
				continue
			}
			if g := peerdiversity.IPGroupKey(ip); g != "" && !slices.Contains(groups, g) {
				groups = append(groups, g)
			}
		}
		for _, g := range groups {
			if count[g]++; count[g] > amino.DefaultMaxPeersPerIPGroup {
				return false
			}
		}
	}
	return true
}

// Accelerated reports whether the accelerated client knows all servers of the
// public DHT, and how many the last crawl found. Without the client ok is false.
func (d *DHT) Accelerated() (ready bool, peers int, ok bool) {
	a := d.accelerated
	if a == nil {
		return false, 0, false
	}
	peers = len(a.full.Stat())
	return a.ready() && peers >= a.table.BucketSize(), peers, true
}

// Run crawls the network for the client, from the peers of the routing table on,
// once there are some, and again while nobody answers. It is upstream's
// crawler.Crawler.
func (a *accelerated) Run(ctx context.Context, start []*peer.AddrInfo, found crawler.HandleQueryResult, failed crawler.HandleQueryFail) {
	for a.awaitPeers(ctx) {
		if a.crawl(ctx, start, found, failed) > 0 {
			return
		}
		pause(ctx, crawlAgain, nil)
	}
	a.whole.Store(false)
}

// awaitPeers waits until the routing table has a peer, and reports false when ctx
// ends.
func (a *accelerated) awaitPeers(ctx context.Context) bool {
	for ctx.Err() == nil {
		changed := a.d.cfg.Changed.Wait()
		if a.table.RoutingTable().Size() > 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return false
}

// crawl is one crawl. It returns how many peers have answered.
func (a *accelerated) crawl(ctx context.Context, start []*peer.AddrInfo, found crawler.HandleQueryResult, failed crawler.HandleQueryFail) (answered int) {
	ctx, cancel := context.WithTimeout(ctx, crawlTimeout)
	defer cancel()
	var from []*peer.AddrInfo
	known := make(map[peer.ID]bool) // upstream would ask a peer twice that is given twice
	for _, ai := range start {
		if !known[ai.ID] {
			known[ai.ID] = true
			from = append(from, ai)
		}
	}
	for _, id := range a.table.RoutingTable().ListPeers() {
		if !known[id] {
			known[id] = true
			from = append(from, &peer.AddrInfo{ID: id})
		}
	}
	a.sender.begin(known)
	a.crawler.Run(ctx, from, func(id peer.ID, list []*peer.AddrInfo) {
		answered++
		found(id, list) // it looks at the connection
		a.release(id)
	}, func(id peer.ID, err error) {
		failed(id, err)
		a.release(id)
	})
	full := a.sender.end()
	whole := ctx.Err() == nil && !full && enough(answered, len(known), a.last)
	a.whole.Store(whole)
	a.last = answered
	switch {
	case whole:
		a.d.cfg.Log.Info("crawl of the DHT ended", "answered", answered, "heard", len(known))
	case !errors.Is(context.Cause(ctx), context.Canceled) && answered > 0:
		a.d.cfg.Log.Warn("crawl of the DHT incomplete: lookups go on", "answered", answered, "heard", len(known))
	}
	return answered
}

// enough reports whether so many peers have answered of those heard of, and last
// time, that the network cannot have been lost on the way: a few of all servers
// would be taken for the closest to everything.
func enough(answered, heard, last int) bool { return answered >= heard/8 && answered >= last/2 }

// release closes the connections to a peer that a crawl has opened and nobody else
// uses.
func (a *accelerated) release(id peer.ID) {
	if !a.host.forget(id) {
		return
	}
	manager := a.host.ConnManager()
	if info := manager.GetTagInfo(id); manager.IsProtected(id, "") || info != nil && len(info.Tags) > 0 {
		return // it is in the routing table, for instance
	}
	net := a.host.Network()
	if slices.ContainsFunc(net.ConnsToPeer(id), a.used) {
		return
	}
	if err := net.ClosePeer(id); err != nil {
		a.d.cfg.Log.Debug("closing a connection of a crawl", "peer", id, "err", err)
	}
}

// used reports whether a connection is not only a crawl's.
func (a *accelerated) used(c network.Conn) bool {
	return slices.ContainsFunc(c.GetStreams(), func(s network.Stream) bool {
		return !strings.HasPrefix(string(s.Protocol()), "/ipfs/id/") && !slices.Contains(a.d.protocols, s.Protocol())
	})
}

// crawlHost is the host of a crawl.
type crawlHost struct {
	bookHost
	mu     sync.Mutex
	opened map[peer.ID]bool // peers that the crawl has connected to; guarded by mu
}

// Connect waits until the peer may be dialed, and dials it.
func (h *crawlHost) Connect(ctx context.Context, ai peer.AddrInfo) error {
	if ctx.Err() != nil || h.Connected(ai.ID) {
		return ctx.Err()
	}
	wait, cancel := context.WithTimeout(ctx, crawlWait)
	h.AwaitBelief(wait, ai.ID)
	cancel()
	h.mu.Lock()
	h.opened[ai.ID] = true
	h.mu.Unlock()
	ctx, cancel = context.WithTimeout(ctx, crawlDial)
	defer cancel()
	return h.bookHost.Connect(ctx, ai)
}

// forget reports whether the crawl has connected to a peer, once.
func (h *crawlHost) forget(id peer.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	opened := h.opened[id]
	delete(h.opened, id)
	return opened
}

// crawlSender is the node's sender for a crawl, which hears of a bounded number of
// peers.
type crawlSender struct {
	pb.MessageSender
	mu    sync.Mutex
	known map[peer.ID]bool // guarded by mu
	full  bool             // guarded by mu
}

func (s *crawlSender) begin(known map[peer.ID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.full = known, false
}

// end reports whether there were more peers than a crawl hears of.
func (s *crawlSender) end() (full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = nil
	return s.full
}

// SendRequest returns a reply with the peers for which there is room.
func (s *crawlSender) SendRequest(ctx context.Context, p peer.ID, m *pb.Message) (*pb.Message, error) {
	reply, err := s.MessageSender.SendRequest(ctx, p, m)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply.CloserPeers = slices.DeleteFunc(reply.CloserPeers, func(other *pb.Message_Peer) bool { return !s.admitLocked(peer.ID(other.GetId())) })
	return reply, nil
}

func (s *crawlSender) admitLocked(id peer.ID) bool {
	if s.known == nil || s.known[id] {
		return true
	}
	if len(s.known) >= maxCrawled {
		s.full = true
		return false
	}
	s.known[id] = true
	return true
}

// OnDisconnect does nothing: the streams are the table's.
func (s *crawlSender) OnDisconnect(context.Context, peer.ID) {}
