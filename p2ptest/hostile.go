package p2ptest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"
)

// gossipProtocol is a protocol that every gossipsub router supports.
const gossipProtocol = protocol.ID("/meshsub/1.1.0")

// attackTimeout bounds the writes of one attack: a victim may stop reading.
const attackTimeout = 10 * time.Second

// Hostile is a peer that attacks. It implements just enough of the protocols to
// break their rules. Its methods connect to the victim if needed. They return an
// error if they could not complete the attack, perhaps because the victim
// defends itself.
type Hostile struct {
	host.Host
	key     crypto.PrivKey
	network string
	rand    *rand.Rand

	mu   sync.Mutex
	seqs uint64 // guarded by mu
}

// Hostile adds an attacker to the network. It attacks nodes of the network
// "p2pnode" unless [RawNetwork] sets another name. It closes when tb ends.
func (n *Network) Hostile(tb testing.TB, opts ...RawOption) *Hostile {
	tb.Helper()
	cfg := rawConfig{network: "p2pnode"}
	for _, o := range opts {
		if o != nil {
			o.applyRaw(&cfg)
		}
	}
	m, h, ctx := n.rawHost(tb, "hostile")
	a := &Hostile{Host: h, key: h.Peerstore().PrivKey(h.ID()), network: cfg.network, rand: n.Rand(m.name)}
	n.mu.Lock()
	m.raw = &RawNode{Host: h}
	n.mu.Unlock()
	for _, p := range cfg.bootstrap {
		if err := h.Connect(ctx, p); err != nil {
			tb.Fatalf("p2ptest: %s: %v", m.name, err)
		}
	}
	return a
}

// open opens a stream to a victim, with a deadline.
func (a *Hostile) open(ctx context.Context, victim peer.AddrInfo, p protocol.ID) (network.Stream, error) {
	if err := a.Connect(ctx, victim); err != nil {
		return nil, err
	}
	s, err := a.NewStream(ctx, victim.ID, p)
	if err != nil {
		return nil, err
	}
	return s, s.SetDeadline(time.Now().Add(attackTimeout))
}

// send writes length-prefixed messages on a new stream.
func (a *Hostile) send(ctx context.Context, victim peer.AddrInfo, p protocol.ID, messages [][]byte) error {
	s, err := a.open(ctx, victim, p)
	if err != nil {
		return err
	}
	for i, m := range messages {
		if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(m))), m...)); err != nil {
			_ = s.Reset() // the error is the one above
			return fmt.Errorf("message %d of %d: %w", i+1, len(messages), err)
		}
	}
	return s.CloseWrite()
}

// FloodPublish sends n valid, signed messages of size random bytes on a topic,
// as fast as the connection takes them.
func (a *Hostile) FloodPublish(ctx context.Context, victim peer.AddrInfo, topic string, n, size int) error {
	var list [][]byte
	for range n {
		data := make([]byte, size)
		a.fill(data)
		rpc, err := a.publish(topic, data, true)
		if err != nil {
			return err
		}
		list = append(list, rpc)
	}
	return a.send(ctx, victim, gossipProtocol, list)
}

// InvalidSignatures sends n messages with invalid signatures on a topic.
func (a *Hostile) InvalidSignatures(ctx context.Context, victim peer.AddrInfo, topic string, n int) error {
	var list [][]byte
	for range n {
		rpc, err := a.publish(topic, []byte("not signed by its author"), false)
		if err != nil {
			return err
		}
		list = append(list, rpc)
	}
	return a.send(ctx, victim, gossipProtocol, list)
}

// MalformedRPC sends malformed gossipsub RPCs on n streams: random bytes, a
// length without a message, a message longer than its length, an absurd length,
// and empty control messages.
func (a *Hostile) MalformedRPC(ctx context.Context, victim peer.AddrInfo, n int) error {
	noise := make([]byte, 300)
	a.fill(noise)
	hollow, err := proto.Marshal(&pubsubpb.RPC{
		Subscriptions: []*pubsubpb.RPC_SubOpts{{}, {Subscribe: proto.Bool(true)}},
		Publish:       []*pubsubpb.Message{{}},
		Control: &pubsubpb.ControlMessage{
			Ihave: []*pubsubpb.ControlIHave{{}}, Iwant: []*pubsubpb.ControlIWant{{MessageIDs: []string{"", "none"}}},
			Graft: []*pubsubpb.ControlGraft{{}}, Prune: []*pubsubpb.ControlPrune{{Peers: []*pubsubpb.PeerInfo{{PeerID: noise[:7]}}}},
		},
	})
	if err != nil {
		return err
	}
	kinds := [][]byte{
		noise,
		{200},
		append([]byte{3}, noise...),
		binary.AppendUvarint(nil, 1<<62),
		append(binary.AppendUvarint(nil, uint64(len(hollow))), hollow...),
	}
	for i := range n {
		s, err := a.open(ctx, victim, gossipProtocol)
		if err != nil {
			return fmt.Errorf("stream %d of %d: %w", i+1, n, err)
		}
		// The victim may reset the stream before everything is written.
		_, _ = s.Write(kinds[i%len(kinds)])
		_ = s.CloseWrite()
	}
	return nil
}

// ProviderSpam sends provider records for n random CIDs, and for each CID a
// forged one in the name of another peer. It returns the CIDs.
func (a *Hostile) ProviderSpam(ctx context.Context, victim peer.AddrInfo, n int, other peer.ID) ([]cid.Cid, error) {
	kad := protocol.ID("/" + a.network + "/kad/1.0.0")
	var own, forged [][]byte
	var cids []cid.Cid
	for range n {
		digest := make([]byte, 32)
		a.fill(digest)
		key, err := multihash.Encode(digest, multihash.SHA2_256)
		if err != nil {
			return nil, err
		}
		cids = append(cids, cid.NewCidV1(cid.Raw, key))
		for _, id := range []peer.ID{a.ID(), other} {
			m := dhtpb.NewMessage(dhtpb.Message_ADD_PROVIDER, key, 0)
			m.ProviderPeers = dhtpb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: id, Addrs: a.Addrs()}})
			b, err := proto.Marshal(m)
			if err != nil {
				return nil, err
			}
			if id == other {
				forged = append(forged, b)
			} else {
				own = append(own, b)
			}
		}
	}
	if err := a.send(ctx, victim, kad, own); err != nil {
		return nil, err
	}
	for _, b := range forged { // the victim may reset a stream with one of these
		if err := a.send(ctx, victim, kad, [][]byte{b}); err != nil {
			return nil, err
		}
	}
	return cids, nil
}

// HalfOpen opens n streams for a protocol, sends the length of a message that
// never comes, and leaves them open.
func (a *Hostile) HalfOpen(ctx context.Context, victim peer.AddrInfo, p protocol.ID, n int) error {
	for i := range n {
		s, err := a.open(ctx, victim, p)
		if err != nil {
			return fmt.Errorf("stream %d of %d: %w", i+1, n, err)
		}
		// The first byte makes the victim start a handler.
		if _, err := s.Write([]byte{100}); err != nil {
			return fmt.Errorf("stream %d of %d: %w", i+1, n, err)
		}
	}
	return nil
}

// Subscribe announces to the victim that the attacker is subscribed to a topic,
// to receive its messages.
func (a *Hostile) Subscribe(ctx context.Context, victim peer.AddrInfo, topic string) error {
	rpc, err := proto.Marshal(&pubsubpb.RPC{Subscriptions: []*pubsubpb.RPC_SubOpts{{Subscribe: proto.Bool(true), Topicid: &topic}}})
	if err != nil {
		return err
	}
	return a.send(ctx, victim, gossipProtocol, [][]byte{rpc})
}

// publish returns an RPC with one message, signed as gossipsub does it.
func (a *Hostile) publish(topic string, data []byte, valid bool) ([]byte, error) {
	a.mu.Lock()
	a.seqs++
	seq := binary.BigEndian.AppendUint64(nil, a.seqs)
	a.mu.Unlock()
	m := &pubsubpb.Message{From: []byte(a.ID()), Data: data, Seqno: seq, Topic: &topic}
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	sig, err := a.key.Sign(append([]byte("libp2p-pubsub:"), body...))
	if err != nil {
		return nil, err
	}
	if !valid {
		sig[0] ^= 1
	}
	m.Signature = sig
	return proto.Marshal(&pubsubpb.RPC{Publish: []*pubsubpb.Message{m}})
}

func (a *Hostile) fill(b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range b {
		b[i] = byte(a.rand.Uint32())
	}
}
