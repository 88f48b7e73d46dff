package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// One connection over TCP leaves from the listen port, so that a peer tells the node its
// address outside. Others do not: a dial that a router drops would keep the port from
// punching a hole to the same peer, for two minutes.
func TestOneDialOverTCPLeavesFromTheListenPort(t *testing.T) {
	lab := natlab.New(t)
	listen := publicListen[:1] // TCP
	var peers []*driven
	var addrs []string
	for i := range 3 {
		h := must(lab.Host(fmt.Sprint("public ", i)))(t)
		p := start(t, h, Options{Server: true, Listen: listen})
		peers = append(peers, p)
		addrs = append(addrs, fmt.Sprintf("/ip4/%s/tcp/4001/p2p/%s", h.Addr4, p.id))
	}
	n := start(t, must(lab.Host("dialer"))(t), Options{Traversal: true, Listen: listen})
	for i, p := range peers {
		n.must(Command{Do: "connect", Peer: p.id, Addrs: addrs[i : i+1]})
		from := p.mustAwait("connection", opened(n.id, false)).Addrs[0]
		if own := strings.HasSuffix(from, "/tcp/4001"); own != (i == 0) {
			t.Errorf("dial %d comes from %s", i+1, from)
		}
	}
}
