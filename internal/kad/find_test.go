package kad

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/nethost"
	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// namedBy is a lookup in which servers, one after the other, name somebody, and others
// never answer.
type namedBy struct {
	routing.Routing
	named []peer.AddrInfo
	alone bool    // one server names all, as both DHTs may ask it
	left  peer.ID // was heard of, and is not asked
}

func (n namedBy) FindPeer(ctx context.Context, _ peer.ID) (peer.AddrInfo, error) {
	for i := range n.named {
		server := peer.ID(rune('a' + i))
		if n.alone {
			server = "a"
		}
		routing.PublishQueryEvent(ctx, &routing.QueryEvent{Type: routing.PeerResponse, ID: server,
			Responses: []*peer.AddrInfo{{ID: n.left}, &n.named[i]}})
		time.Sleep(100 * time.Millisecond)
	}
	<-ctx.Done()
	return peer.AddrInfo{}, ctx.Err()
}

// The lookup of a peer ends when three servers have named its addresses, or one has and
// 2 seconds have passed. A complete one asks all of the 20 closest servers, whose dials
// fail one after the other where they are behind NATs: Connect by ID took up to a minute
// in the laboratory.
func TestALookupEndsWhenThePeerIsNamed(t *testing.T) {
	const wanted, other = peer.ID("wanted"), peer.ID("other")
	at := []ma.Multiaddr{ma.StringCast("/ip4/5.1.0.2/tcp/4001")}
	yes, no := peer.AddrInfo{ID: wanted, Addrs: at}, peer.AddrInfo{ID: other, Addrs: at}
	const never = time.Minute
	for name, c := range map[string]struct {
		named    []peer.AddrInfo
		alone    bool
		complete bool
		want     time.Duration
	}{
		"by three":          {[]peer.AddrInfo{yes, no, yes, yes, yes}, false, false, 300 * time.Millisecond},
		"by one":            {[]peer.AddrInfo{no, yes}, false, false, 100*time.Millisecond + patience},
		"by two":            {[]peer.AddrInfo{yes, yes, no}, false, false, patience},
		"by one, thrice":    {[]peer.AddrInfo{yes, yes, yes, yes}, true, false, patience},
		"without addresses": {[]peer.AddrInfo{{ID: wanted}, {ID: wanted}, {ID: wanted}}, false, false, never},
		"somebody else":     {[]peer.AddrInfo{no, no, no}, false, false, never},
		"complete":          {[]peer.AddrInfo{yes, yes, yes}, false, true, never},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), never)
				defer cancel()
				d := &DHT{routing: namedBy{named: c.named, alone: c.alone, left: "left"}}
				begun := time.Now()
				_, answered, err := d.findPeer(ctx, wanted, c.complete)
				// The servers sleep between their answers.
				if took := time.Since(begun).Truncate(100 * time.Millisecond); took < c.want || took > c.want+200*time.Millisecond ||
					!answered || errors.Is(err, errNamed) != (c.want < never) {
					t.Errorf("after %v, want %v: %v, %v", took, c.want, answered, err)
				}
			})
		})
	}
}

// The lookup of a peer does not dial it: a dial through a relay that the lookup gives up
// as it ends makes those of the caller fail. A server in the routing table is dialed,
// which stays there.
func TestALookupDoesNotDialWhomItIsFor(t *testing.T) {
	wanted, server := newHost(t), names(t, nil)
	// A refresh of the routing table would ask a server that the test disconnects, and
	// remove it.
	d := newDHT(t, func(c *Config) { c.Options = []dht.Option{dht.DisableAutoRefresh()} })
	meet(t, d, names(t, nil, hosttest.Info(wanted)))
	meet(t, d, server)
	for _, c := range []struct {
		host  *nethost.Host
		dials bool
	}{{wanted, false}, {server, true}} {
		for name, lookup := range map[string]func(){
			"complete":    func() { _, _, _ = d.findPeer(testContext(t), c.host.ID(), true) },
			"until named": func() { _, _, _ = d.findPeer(testContext(t), c.host.ID(), false) },
			"a provider":  func() { d.addresses(testContext(t), c.host.ID()) },
		} {
			must(t, d.cfg.Host.Network().ClosePeer(server.ID())) // lookups of others dial it, too
			lookup()
			if dialed := d.cfg.Host.Connected(c.host.ID()); dialed != c.dials {
				t.Errorf("%s: dialed: %v, want %v", name, dialed, c.dials)
			}
		}
		ai, err := d.FindPeer(testContext(t), c.host.ID())
		if err != nil || len(ai.Addrs) == 0 {
			t.Errorf("%v, %v", ai, err)
		}
	}
	if d.tables[0].RoutingTable().Find(server.ID()) == "" {
		t.Error("the server is no longer in the routing table")
	}
}
