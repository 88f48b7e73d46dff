package p2pnode

import (
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

// Limits bounds what other peers can make a node do; see [WithLimits]. A zero
// field keeps its default. Like libp2p's, the default totals scale with the
// machine's memory and open files. The node refuses what exceeds a limit
// immediately, with an error on this side that matches [ErrLimit]; only
// [Node.OpenStream] waits. Raising one field also raises libp2p's other limits if
// needed, except for fields that are set. [WithConnLimits], in contrast, is where
// the node starts closing old connections; keep it well below Conns.
type Limits struct {
	// Conns is how many connections there may be in all; at least twice the
	// upper limit of [WithConnLimits]. Half as many may be in their handshakes;
	// beyond a limit, the node closes the oldest incoming connection over TCP that
	// has not finished its own, and takes the new one.
	Conns int `json:"conns,omitempty"`
	// ConnsPerPeer is how many connections one peer may have; default 8.
	ConnsPerPeer int `json:"connsPerPeer,omitempty"`
	// ConnsPerIP is how many connections one IPv4 address or IPv6 /56 may have;
	// default 8.
	ConnsPerIP int `json:"connsPerIP,omitempty"`
	// ConnRatePerIP is how many connections per second may be opened with one IPv4
	// address or IPv6 /56, from either side and counting dials that fail, after a
	// burst of 64 (or four times the rate, if that is more); default 1.
	ConnRatePerIP int `json:"connRatePerIP,omitempty"`
	// Streams is how many streams there may be in all; at least 128. The default
	// is at least 4096, or twice StreamsPerPeer. An eighth of them, and at least
	// those of one peer, may be negotiating their protocol.
	Streams int `json:"streams,omitempty"`
	// StreamsPerPeer is how many streams one peer may have, of one protocol or
	// of several, counting those of both directions; at least 16, because the
	// node itself needs some. The default is 2048, enough for 1,000 concurrent
	// requests in each direction; with [WithIPFS] it is libp2p's, some hundreds,
	// and 64 to 128 of one protocol. Over QUIC a peer may open at least 256.
	StreamsPerPeer int `json:"streamsPerPeer,omitempty"`
	// Memory is how many bytes the buffers of connections and streams may take
	// in all; at least 16 MiB. Over TCP and WebSocket each stream counts as 256
	// KiB, used or not, so 1,000 take 250 MiB: more than the default of machines
	// with less than 2 GiB. Raising StreamsPerPeer also raises the default.
	Memory int64 `json:"memory,omitempty"`
	// PubSub is how many bytes of pubsub messages may wait in all: for peers that
	// read too slowly, in subscriptions that are read too slowly, and for validation.
	// At most half may wait for validation, and a quarter from one peer. The default
	// is a 32nd of the memory of the machine, or of the limit of the process's
	// control group, and at least four times PubSubQueue. Further messages are
	// dropped, and counted by [Subscription.Dropped], [Message].Lost,
	// [TopicStatus].Overrun and [WithMetrics].
	PubSub int64 `json:"pubSub,omitempty"`
	// PubSubQueue is how many bytes of pubsub messages may wait for one peer, or in
	// one subscription; default 8 MiB, or four times [WithMaxMessageSize], if that
	// is more; at least [WithMaxMessageSize].
	PubSubQueue int64 `json:"pubSubQueue,omitempty"`
	// ProviderRecords is how many bytes of provider records the node keeps for
	// others; beyond that, it drops those of the peers that have sent most. The
	// default is a 32nd of the memory, as for PubSub, and at least 64 MiB, some
	// 150,000 records. A datastore set by [WithDHTOptions] has no such bound.
	ProviderRecords int64 `json:"providerRecords,omitempty"`
	// ValueRecords is how many bytes of value records (IPNS names, signed records,
	// public keys, what [WithValidator] accepts) the node keeps for others; beyond
	// that, those whose keys are farthest from its ID, as the DHT measures distance,
	// make room for closer ones, and a record that is the farthest itself is refused.
	// What the node puts itself does not count and is never dropped; what the
	// application puts through [Node.DHT] counts as a record of others. Each counts
	// with its key and 256 bytes more. The default is a 32nd of the memory, as for
	// PubSub, and at least 64 MiB, some 90,000 IPNS names. A datastore set by
	// [WithDHTOptions] has no such bound.
	ValueRecords int64 `json:"valueRecords,omitempty"`
}

// Refused counts the connections and streams that each limit of [Limits] has
// refused, in either direction, since the start, including connections that the
// node closed in their handshakes to make room for others.
type Refused struct {
	Conns          uint64 `json:"conns,omitempty"`
	ConnsPerPeer   uint64 `json:"connsPerPeer,omitempty"`
	ConnsPerIP     uint64 `json:"connsPerIP,omitempty"`
	ConnRatePerIP  uint64 `json:"connRatePerIP,omitempty"`
	Streams        uint64 `json:"streams,omitempty"`
	StreamsPerPeer uint64 `json:"streamsPerPeer,omitempty"`
	Memory         uint64 `json:"memory,omitempty"`
	// Files is for the process's limit of open files.
	Files uint64 `json:"files,omitempty"`
	// Services is for the limits of libp2p's own protocols, which have no
	// option.
	Services uint64 `json:"services,omitempty"`
}

// Total returns the sum over all limits.
func (r Refused) Total() uint64 { return limits.Counts(r).Total() }
