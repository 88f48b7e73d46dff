package p2pnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/addrs"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Connect makes sure that there is a connection to a peer. It dials the given
// addresses and those known already; without any, it looks the peer up in the
// DHT. An address through a relay, /…/p2p/<relay>/p2p-circuit, works like any
// other. Earlier failures do not hold it back. It returns once the peer is
// identified.
//
// It returns [ErrClosed] after Close, [ErrBanned] for a peer that is banned or
// not allowed, and otherwise an error with the reason for every address. A peer
// that hangs up at once, as one does that has banned this node, is an error too.
func (n *Node) Connect(ctx context.Context, p peer.AddrInfo) error {
	if n.closed() {
		return ErrClosed
	}
	if err := p.ID.Validate(); err != nil {
		return fmt.Errorf("p2pnode: connect: no peer ID given: %w", err)
	}
	if p.ID == n.id {
		return fmt.Errorf("p2pnode: connect: %s is this node itself", p.ID)
	}
	n.keeper.Want(p.ID)
	ctx, done := n.bind(ctx)
	defer done()
	if err := n.dialer.Connect(ctx, p); err != nil {
		return n.fail(err)
	}
	return nil
}

// Ping measures the round-trip time to a peer by /ipfs/ping/1.0.0, connecting
// first if needed. It returns [ErrClosed] after Close, and the errors of
// [Node.Connect].
func (n *Node) Ping(ctx context.Context, id peer.ID) (time.Duration, error) {
	if n.closed() {
		return 0, ErrClosed
	}
	if id == n.id {
		return 0, fmt.Errorf("p2pnode: ping: %s is this node itself", id)
	}
	ctx, done := n.bind(ctx)
	defer done()
	rtt, err := n.dialer.Ping(ctx, id)
	if err != nil {
		return 0, n.fail(fmt.Errorf("ping %s: %w", id, err))
	}
	return rtt, nil
}

// Peer describes a connected peer at one moment.
type Peer struct {
	ID peer.ID `json:"id"`
	// Addr is the far end of the best connection: direct before relayed, then
	// the oldest.
	Addr ma.Multiaddr `json:"addr"`
	// Transport is that of the best connection, such as "quic-v1", "tcp" or
	// "p2p-circuit".
	Transport string `json:"transport"`
	// Relayed is set when there is no direct connection.
	Relayed bool `json:"relayed"`
	// Direction is "inbound" or "outbound".
	Direction string `json:"direction"`
	// Latency is a moving average, in nanoseconds; 0 before it is measured.
	Latency time.Duration `json:"latency,omitempty"`
	// Since is when the best connection was opened.
	Since time.Time `json:"since"`
	// Agent is what the peer calls itself.
	Agent string `json:"agent,omitempty"`
	// Protocols are those that the peer says it speaks, sorted; empty until it
	// is identified.
	Protocols []protocol.ID `json:"protocols,omitempty"`
}

// peerOf is a peer as the face shows it.
func peerOf(p nethost.Peer) Peer {
	return Peer{
		ID: p.ID, Addr: p.Addr, Transport: p.Transport, Relayed: p.Relayed,
		Direction: strings.ToLower(p.Direction.String()), Latency: p.Latency,
		Since: p.Since, Agent: p.Agent, Protocols: p.Protocols,
	}
}

// Peers returns the connected peers, sorted by ID; nil after Close.
func (n *Node) Peers() []Peer {
	if n.closed() {
		return nil
	}
	return peersOf(n.base)
}

func peersOf(h *nethost.Host) []Peer {
	list := h.Peers()
	out := make([]Peer, len(list))
	for i, p := range list {
		out[i] = peerOf(p)
	}
	return out
}

// Peer returns a connected peer. It reports whether there is a connection;
// after Close there is none.
func (n *Node) Peer(id peer.ID) (Peer, bool) {
	if n.closed() {
		return Peer{}, false
	}
	p, ok := n.base.Peer(id)
	return peerOf(p), ok
}

// ListenError tells why the node does not listen on an address. It matches
// syscall.EADDRINUSE through errors.Is when the port is in use.
type ListenError struct {
	Addr ma.Multiaddr
	Err  error
}

func (e *ListenError) Error() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("cannot listen on %s: the port is in use by another program or node (%v)", e.Addr, e.Err)
	}
	return fmt.Sprintf("cannot listen on %s: %v", e.Addr, e.Err)
}

// Unwrap returns Err.
func (e *ListenError) Unwrap() error { return e.Err }

type listenErrorJSON struct {
	Addr ma.Multiaddr `json:"addr"`
	Err  string       `json:"err"`
}

// MarshalJSON writes the address and the text of the error.
func (e *ListenError) MarshalJSON() ([]byte, error) {
	return json.Marshal(listenErrorJSON{e.Addr, errorText(e.Err)})
}

// UnmarshalJSON reads what MarshalJSON wrote. The error matches no other.
func (e *ListenError) UnmarshalJSON(data []byte) error {
	var in listenErrorJSON
	err := json.Unmarshal(data, &in)
	*e = ListenError{in.Addr, textError(in.Err)}
	return err
}

// checkListening decides whether what could not be bound fails New: never
// less than one address, and all of them unless the user said otherwise or
// this machine lacks an IP version of the default addresses.
func checkListening(cfg *config, failed []*ListenError) error {
	list, defaults := cfg.listenAddrs()
	var errs []error
	for _, f := range failed {
		missingIP6 := defaults && addrs.IsIP6(f.Addr) && !errors.Is(f, syscall.EADDRINUSE)
		if !cfg.partialListen && !missingIP6 || len(failed) == len(list) {
			errs = append(errs, f)
		}
	}
	return errors.Join(errs...)
}

// ParsePeers reads addresses that end in a peer ID, and joins those of one
// peer. It reports every address that it cannot read.
func ParsePeers(addresses ...string) ([]peer.AddrInfo, error) {
	var infos []peer.AddrInfo
	var errs []error
	for _, s := range addresses {
		ai, err := addrs.ParsePeer(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		infos = append(infos, ai)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return addrs.Merge(infos...), nil
}

func parseAddrs(texts []string, ifNone string, check func(ma.Multiaddr) error) ([]ma.Multiaddr, error) {
	if len(texts) == 0 {
		return nil, fmt.Errorf("no address given; %s", ifNone)
	}
	var list []ma.Multiaddr
	var errs []error
	for _, s := range texts {
		a, err := addrs.Parse(s)
		if err == nil {
			err = check(a)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !ma.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, errors.Join(errs...)
}

// checkPeers reports peers that cannot be dialled whatever the transports are.
func checkPeers(peers []peer.AddrInfo) error {
	if len(peers) == 0 {
		return errors.New("no peer given")
	}
	var errs []error
	for _, p := range peers {
		errs = append(errs, checkPeer(p))
	}
	return errors.Join(errs...)
}

func checkPeer(p peer.AddrInfo) error {
	switch {
	case p.ID == "":
		return fmt.Errorf("a peer with the addresses %s has no ID", p.Addrs)
	case !addrs.IsPeerID(p.ID):
		return notAPeerID(p.ID)
	case len(p.Addrs) == 0:
		return fmt.Errorf("peer %s has no address", p.ID)
	}
	for _, a := range p.Addrs {
		switch {
		case len(a) == 0:
			return fmt.Errorf("an address of peer %s is nil", p.ID)
		case addrs.IsListenOnly(a):
			return fmt.Errorf("%s is an address to listen on, not one to dial: it means every interface or any port; see Addrs on the other side", a)
		}
	}
	return nil
}

func checkIDs(ids []peer.ID) error {
	if len(ids) == 0 {
		return errors.New("no peer given")
	}
	for _, id := range ids {
		if !addrs.IsPeerID(id) {
			return notAPeerID(id)
		}
	}
	return nil
}

func notAPeerID(id peer.ID) error {
	return fmt.Errorf("%q is no peer ID; peer.Decode makes one of text", string(id))
}
