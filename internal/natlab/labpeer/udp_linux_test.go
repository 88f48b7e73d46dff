package main

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/natlab"
)

// dialer dials public nodes again and again.
type dialer struct {
	*driven
	addrs map[peer.ID][]string
}

// round dials peers, all at once, and disconnects from them. It returns how long each
// dial took, and over which transports.
func (d dialer) round(t testing.TB, ids []peer.ID) (took []time.Duration, paths []string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for _, id := range ids {
		wg.Go(func() {
			began := time.Now()
			r, err := d.call(Command{Do: "connect", Peer: id, Addrs: d.addrs[id]})
			mu.Lock()
			defer mu.Unlock()
			took, paths, errs = append(took, time.Since(began)), append(paths, r.Path), append(errs, err)
		})
	}
	wg.Wait()
	for _, id := range ids {
		_, err := d.call(Command{Do: "disconnect", Peer: id})
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return took, paths
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// Where UDP is blocked, a dial of a node that announces QUIC and TCP takes within a
// second longer at most, and nobody has to know. After a hundred dials UDP is not
// tried any more, until the machine is on another network.
func TestUDPBlocked(t *testing.T) {
	waits(t)
	lab := natlab.New(t)
	often := Options{ConnRate: 1000} // the default is less than the dials of a few seconds
	servers := startPublic(t, lab, 5, often)
	ids := idsOf(t, servers)
	addrs := map[peer.ID][]string{}
	for _, id := range ids {
		for _, a := range servers {
			if strings.HasSuffix(a, id.String()) {
				addrs[id] = append(addrs[id], a)
			}
		}
	}
	h := must(must(lab.Site("without UDP", natlab.Network{Kind: natlab.NoUDP}))(t).Host("without UDP"))(t)
	open := must(lab.Site("with UDP", natlab.Network{Kind: natlab.PortRestricted}))(t)
	blocked := dialer{start(t, h, often), addrs}
	free := dialer{start(t, must(open.Host("with UDP"))(t), often), addrs}
	for _, d := range []dialer{blocked, free} {
		// With no connection at all, UDP is tried every time.
		d.must(Command{Do: "connect", Peer: ids[0], Addrs: addrs[ids[0]]})
	}
	const few = 4
	var first, with []time.Duration
	for range few {
		took, paths := blocked.round(t, ids[1:])
		first = append(first, took...)
		if slices.Contains(paths, "quic-v1") {
			t.Fatalf("the router lets UDP through: %q", paths)
		}
		took, paths = free.round(t, ids[1:])
		with = append(with, took...)
		if !slices.Contains(paths, "quic-v1") {
			t.Fatalf("nothing goes over UDP: %q", paths)
		}
	}
	t.Logf("a dial takes %v without UDP, %v with it", median(first), median(with))
	if more := median(first) - median(with); more > busy*time.Second {
		t.Errorf("without UDP a dial takes %v longer", more)
	}
	var last []time.Duration
	for i := range 30 {
		took, _ := blocked.round(t, ids[1:])
		if i >= 30-few {
			last = append(last, took...)
		}
	}
	t.Logf("after a hundred dials one takes %v", median(last))
	if median(last) > median(first)*2/3 {
		t.Errorf("after a hundred dials one takes %v, before %v", median(last), median(first))
	}
	if found := string(blocked.must(Command{Do: "diagnose"}).Status); !strings.Contains(found, "udp-blocked") {
		t.Errorf("Diagnose does not speak of it: %s", found)
	}
	if err := errors.Join(h.Unplug(), open.Plug(h)); err != nil {
		t.Fatal(err)
	}
	keep(t, time.Now(), promise{"over UDP again", 15 * time.Second, func() error {
		if _, paths := blocked.round(t, ids[1:]); !slices.Contains(paths, "quic-v1") {
			return errors.New("over TCP")
		}
		return nil
	}})
}
