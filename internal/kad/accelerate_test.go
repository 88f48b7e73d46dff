package kad

import (
	"context"
	"fmt"
	"testing"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// naming is a sender to peers that name others without end.
type naming struct {
	pb.MessageSender
	named int
}

func (n *naming) SendRequest(context.Context, peer.ID, *pb.Message) (*pb.Message, error) {
	reply := new(pb.Message)
	for range 1000 {
		n.named++
		reply.CloserPeers = append(reply.CloserPeers, &pb.Message_Peer{Id: fmt.Append(nil, "peer ", n.named)})
	}
	return reply, nil
}

// A crawl hears of so many peers, and no more.
func TestCrawlOfEndlessNamesIsBounded(t *testing.T) {
	s := &crawlSender{MessageSender: new(naming)}
	s.begin(map[peer.ID]bool{"the first": true})
	heard := 1
	for range 2 * maxCrawled / 1000 {
		reply, err := s.SendRequest(t.Context(), "x", nil)
		must(t, err)
		heard += len(reply.CloserPeers)
	}
	if heard != maxCrawled {
		t.Errorf("heard of %d peers, not %d", heard, maxCrawled)
	}
	if !s.end() {
		t.Error("the end does not tell that there were more")
	}
	s.begin(make(map[peer.ID]bool))
	if _, err := s.SendRequest(t.Context(), "x", nil); err != nil || s.end() {
		t.Errorf("the next crawl is full too: %v", err)
	}
}

// Peers that share a network are not trusted to be all there are.
func TestClosestPeersAreDiverse(t *testing.T) {
	d := newDHT(t, func(c *Config) {
		c.Layout, c.Prefix, c.Accelerated = Public, "", true
		c.Options = []dht.Option{dht.DisableAutoRefresh()}
	})
	list := make([]peer.ID, 20)
	for i := range list {
		list[i] = newID(t)
		// Three each at 16.1, 16.2, …
		addr := ma.StringCast(fmt.Sprintf("/ip4/16.%d.1.%d/tcp/1", 1+i/3, i))
		d.cfg.Host.Peerstore().AddAddrs(list[i], []ma.Multiaddr{addr}, time.Hour)
	}
	if !d.accelerated.diverse(list) {
		t.Error("three peers in each network are too many")
	}
	d.cfg.Host.Peerstore().AddAddrs(list[19], []ma.Multiaddr{ma.StringCast("/ip4/16.1.200.1/tcp/1")}, time.Hour)
	if d.accelerated.diverse(list) {
		t.Error("a fourth peer in a network is taken")
	}
}

// A crawl during which the network was lost is not taken for all there is.
func TestCrawlOfALostNetworkIsIncomplete(t *testing.T) {
	for _, c := range []struct {
		answered, heard, last int
		want                  bool
	}{
		{9000, 21000, 0, true}, {9000, 21000, 12000, true}, {20, 25, 24, true},
		{300, 3000, 0, false}, {3000, 20000, 9000, false},
	} {
		if got := enough(c.answered, c.heard, c.last); got != c.want {
			t.Errorf("%d of %d answered, %d last time: %v", c.answered, c.heard, c.last, got)
		}
	}
}
