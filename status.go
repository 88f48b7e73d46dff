package p2pnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/access"
	"github.com/go-p2pnode/p2pnode/internal/keeper"
	"github.com/go-p2pnode/p2pnode/internal/nethost"
)

// Status is a snapshot of a node at one moment. It shares nothing with the
// node and never changes. Its JSON form reads back to an equal Status, but for
// errors, of which the text stays.
type Status struct {
	ID peer.ID `json:"id"`
	// Network is the DHT's protocol prefix, such as "/p2pnode".
	Network string `json:"network"`
	// Addrs are those announced, each ending in /p2p/<id>.
	Addrs []ma.Multiaddr `json:"addrs,omitempty"`
	// ListenAddrs are those bound.
	ListenAddrs []ma.Multiaddr `json:"listenAddrs,omitempty"`
	// ListenErrors are what [WithPartialListen] forgave.
	ListenErrors []*ListenError `json:"listenErrors,omitempty"`
	Reachability Reachability   `json:"reachability,omitempty"`
	// Peers are those connected, sorted by ID.
	Peers []Peer `json:"peers,omitempty"`
	// DHT is nil without one.
	DHT *DHTStatus `json:"dht,omitempty"`
	// Topics are those in use, sorted by name.
	Topics []TopicStatus `json:"topics,omitempty"`
	// Bootstrap is the result of the last round; nil before the first.
	Bootstrap *BootstrapRound `json:"bootstrap,omitempty"`
	// Relays are those of [WithAutoRelay] and [Node.AddRelays].
	Relays []RelayStatus `json:"relays,omitempty"`
	// Persistent are the peers of [WithPersistentPeers] and
	// [Node.AddPersistentPeers].
	Persistent []PersistentStatus `json:"persistent,omitempty"`
	// PrivateNetwork is a fingerprint of the key of [WithPrivateNetwork], equal
	// on nodes with the same key; empty without one.
	PrivateNetwork string `json:"privateNetwork,omitempty"`
	// Bans are those that hold.
	Bans []Ban `json:"bans,omitempty"`
	// Allowed are the peers of [WithAllowedPeers] and [Node.Allow]; nil when all
	// are.
	Allowed []peer.ID `json:"allowed,omitempty"`
	// Refused is how many connections and streams each limit has refused.
	Refused Refused `json:"refused,omitzero"`
	// HandshakesFailed is how many incoming connections ended before it was
	// known whose they were: by strangers to libp2p, port scanners, or peers
	// without the key of WithPrivateNetwork.
	HandshakesFailed uint64 `json:"handshakesFailed,omitempty"`
	// Warnings are about files of [WithDataDir] that were damaged and set aside,
	// or that could not be read and were left as they are.
	Warnings []string `json:"warnings,omitempty"`
	Closed   bool     `json:"closed"`
}

// DHTStatus describes the DHT.
type DHTStatus struct {
	// Mode is as configured.
	Mode DHTMode `json:"mode"`
	// Server is set while the node answers the queries of others.
	Server bool `json:"server"`
	// Peers is how many are in the routing table.
	Peers int `json:"peers"`
}

// TopicStatus describes a topic that the node subscribes to, or has published to
// within the last 30 seconds.
type TopicStatus struct {
	Name string `json:"name"`
	// Peers are the others that get what the node publishes.
	Peers []peer.ID `json:"peers,omitempty"`
	// Subscriptions is how many this node has.
	Subscriptions int `json:"subscriptions"`
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

func peersOf(h *nethost.Host) []Peer {
	list := h.Peers()
	out := make([]Peer, len(list))
	for i, p := range list {
		out[i] = peerOf(p)
	}
	return out
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

// BootstrapRound is the result of one round of dialing bootstrap peers, and
// saved peers beside them. Rounds follow one another while the node has too few
// peers; with enough, there is one when a bootstrap peer is missing and its turn
// has come.
type BootstrapRound struct {
	At        time.Time     `json:"at"`
	Took      time.Duration `json:"took"`      // nanoseconds
	Connected []peer.ID     `json:"connected"` // the bootstrap and saved peers that are connected after the round
	Failed    []DialFailure `json:"failed"`    // those that are not, and why
	Peers     int           `json:"peers"`     // how many peers of any kind are connected after the round
}

func newBootstrapRound(r *keeper.Round) *BootstrapRound {
	if r == nil {
		return nil
	}
	out := &BootstrapRound{At: r.At, Took: r.Took, Connected: slices.Clone(r.Connected), Failed: []DialFailure{}, Peers: r.Peers}
	for _, f := range r.Failed {
		out.Failed = append(out.Failed, DialFailure(f))
	}
	return out
}

// DialFailure is a peer that could not be reached. Its JSON form holds the text
// of the error, so that an error read from JSON matches no other.
type DialFailure struct {
	ID  peer.ID
	Err error
}

type dialFailureJSON struct {
	ID  peer.ID `json:"id"`
	Err string  `json:"err,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (f DialFailure) MarshalJSON() ([]byte, error) {
	out := dialFailureJSON{ID: f.ID}
	if f.Err != nil {
		out.Err = f.Err.Error()
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (f *DialFailure) UnmarshalJSON(b []byte) error {
	var in dialFailureJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*f = DialFailure{ID: in.ID}
	if in.Err != "" {
		f.Err = errors.New(in.Err)
	}
	return nil
}

// PersistentStatus describes a persistent peer.
type PersistentStatus struct {
	ID        peer.ID `json:"id"`
	Connected bool    `json:"connected"`
	// Failures is how many dials in a row have failed, or brought a connection
	// that stood for less than a minute; LastError is why the last of them did,
	// and NextDial when the next one comes. They are zero while the peer is
	// connected.
	Failures  int       `json:"failures,omitempty"`
	LastError string    `json:"lastError,omitempty"`
	NextDial  time.Time `json:"nextDial,omitzero"`
}

func persistentStatus(k *keeper.Keeper) []PersistentStatus {
	var list []PersistentStatus
	for _, s := range k.Persistent() {
		p := PersistentStatus{ID: s.ID, Connected: s.Connected, Failures: s.Failures, NextDial: s.NextDial}
		if s.LastError != nil {
			p.LastError = s.LastError.Error()
		}
		list = append(list, p)
	}
	return list
}

// Ban shuts out a peer or a subnet: one of the two is set.
type Ban struct {
	Peer peer.ID `json:"peer,omitempty"`
	// Subnet has no bits set beyond its length.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// Until is when the ban ends; zero bans for good.
	Until time.Time `json:"until,omitzero"`
	// Reason is up to 500 bytes of printable text.
	Reason string `json:"reason,omitempty"`
}

func bansOf(list *access.List) []Ban {
	var out []Ban
	for _, b := range list.Bans() {
		out = append(out, Ban(b))
	}
	return out
}
