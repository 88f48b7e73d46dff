package nethost

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	"github.com/multiformats/go-multihash"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/causes"
)

const (
	// maxHosts bounds how many addresses of a name are dialed.
	maxHosts = 32
	// askAgain is after how long an address whose peer is connected, or has answered
	// before, is dialed again: it may belong to another peer now.
	askAgain = 5 * time.Second
)

// Names finds the peers of DNS names without peer IDs: it resolves the names, dials
// each address, and takes the peer ID from the handshake. Its methods are not safe
// for concurrent use.
type Names struct {
	Dialer Dialer
	Addrs  []ma.Multiaddr // each begins with a name

	known map[string]answer // by resolved address
}

type answer struct {
	id peer.ID
	at time.Time
}

// Ask reports each peer as soon as it is known, and returns the failures of names
// and addresses. It ends once every address has answered, or with ctx.
func (n *Names) Ask(ctx context.Context, found func(peer.AddrInfo)) []error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		known  = make(map[string]answer)
		failed []error
	)
	fail := func(name, at ma.Multiaddr, why string) {
		what := name.String()
		if at != nil && !at.Equal(name) {
			what += " at " + at.String()
		}
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, fmt.Errorf("%s: %s", what, why))
	}
	for _, name := range n.Addrs {
		wg.Go(func() {
			list, err := n.Dialer.Host.resolve(ctx, name)
			switch {
			case err != nil:
				fail(name, nil, causes.Dial(err, n.Dialer.Host.private))
				return
			case len(list) == 0:
				fail(name, nil, "it resolves to nothing that can be dialed; check the name and the DNS")
				return
			}
			for _, a := range list[:min(len(list), maxHosts)] {
				wg.Go(func() {
					key := string(a.Bytes())
					last := n.known[key]
					if last.id == "" || time.Since(last.at) >= askAgain {
						id, err := n.Dialer.Host.whoAnswers(ctx, a)
						if err != nil {
							fail(name, a, causes.Dial(err, n.Dialer.Host.private))
							return
						}
						last = answer{id, time.Now()}
					}
					if err := n.Dialer.Refusal(last.id); err != nil && last.id != n.Dialer.Host.ID() {
						fail(name, a, fmt.Sprintf("%s answers there: %v", last.id, err))
						return
					}
					mu.Lock()
					known[key] = last
					mu.Unlock()
					if last.id != n.Dialer.Host.ID() {
						found(peer.AddrInfo{ID: last.id, Addrs: []ma.Multiaddr{a}})
					}
				})
			}
		})
	}
	wg.Wait()
	n.known = known
	return failed
}

// resolve resolves the name with which an address begins to IP addresses.
func (h *Host) resolve(ctx context.Context, a ma.Multiaddr) ([]ma.Multiaddr, error) {
	if t, ok := h.swarm.TransportForDialing(a).(transport.Resolver); ok {
		list, err := t.Resolve(ctx, a) // for WebSocket with TLS, which records the name
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			a = list[0]
		}
	}
	if !madns.Matches(a) {
		return []ma.Multiaddr{a}, nil
	}
	return h.names.ResolveDNSComponent(ctx, a, maxHosts)
}

// whoAnswers dials an address and returns the ID of its peer. libp2p dials peers
// only by ID, so this dials an unused one: the other side proves its own ID in the
// handshake, and the error has it.
func (h *Host) whoAnswers(ctx context.Context, a ma.Multiaddr) (peer.ID, error) {
	if own, err := h.InterfaceAddrs(); err == nil && ma.Contains(own, a) {
		return h.ID(), nil
	}
	nobody, err := unusedID()
	if err != nil {
		return "", err
	}
	h.Given(peer.AddrInfo{ID: nobody})
	defer h.gate.forget(nobody)
	t := h.swarm.TransportForDialing(a)
	switch wrong := addrs.Undialable(a); {
	case wrong != nil:
		return "", wrong
	case t == nil:
		return "", fmt.Errorf("its transport, %s, is off; WithTransports switches it on", addrs.KindOf(a))
	case !h.swarm.CanDial(nobody, a):
		return "", errors.New("its subnet is banned (see Bans), a gater of WithLibp2pOptions refuses it, or dials like this have failed too often")
	}
	conn, err := t.Dial(ctx, a, nobody)
	if err == nil { // the transport does not check IDs
		id := conn.RemotePeer()
		return id, errors.Join(conn.Close(), notNobody(id, nobody))
	}
	if m, ok := errors.AsType[sec.ErrPeerIDMismatch](err); ok && m.Actual != "" {
		return m.Actual, nil
	}
	return "", err
}

func notNobody(id, nobody peer.ID) error {
	if id == nobody {
		return errors.New("the transport does not find out who answers; give the peer's ID with WithBootstrapAddrs")
	}
	return nil
}

// unusedID returns the ID of a new key that is then dropped.
func unusedID() (peer.ID, error) {
	sum := make([]byte, 32)
	if _, err := rand.Read(sum); err != nil {
		return "", err
	}
	h, err := multihash.Encode(sum, multihash.SHA2_256)
	return peer.ID(h), err
}
