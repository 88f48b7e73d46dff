package nethost

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	ma "github.com/multiformats/go-multiaddr"
)

// Twenty thousand peers that were connected leave nothing in the book; peers
// that are connected, and addresses that are valid, stay.
func TestPeersThatHaveLeftLeaveTheAddressBook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book, err := pstoremem.NewPeerstore()
		if err != nil {
			t.Fatal(err)
		}
		defer book.Close()
		addr := ma.StringCast("/ip4/192.0.2.1/tcp/1")
		add := func(ttl time.Duration) peer.ID {
			id, err := test.RandPeerID()
			if err != nil {
				t.Fatal(err)
			}
			book.AddAddr(id, addr, ttl)
			return id
		}
		connected := add(peerstore.ConnectedAddrTTL)
		lasting := add(peerstore.PermanentAddrTTL)
		const many = 20_000
		for range many {
			book.UpdateAddrs(add(peerstore.ConnectedAddrTTL), peerstore.ConnectedAddrTTL, peerstore.RecentlyConnectedAddrTTL)
		}
		used := func(id peer.ID) bool { return id == connected }
		if n := sweep(book, used); n != 0 {
			t.Errorf("%d are dropped while their addresses are valid", n)
		}
		time.Sleep(time.Hour)
		if n := sweep(book, used); n != many {
			t.Errorf("%d of %d are dropped", n, many)
		}
		if left := book.PeersWithAddrs(); len(left) != 2 || len(book.Addrs(lasting)) != 1 || len(book.Addrs(connected)) != 1 {
			t.Errorf("%d are left", len(left))
		}
	})
}
