package p2pnode

import (
	"github.com/go-p2pnode/p2pnode/internal/limits"
)

// Limits bound what others can make a node do. A field that is zero keeps its
// default; the defaults in all are scaled to the memory and the open files of
// the machine, as libp2p does it. What is beyond a limit is refused at once,
// with an error on this side; [WithConnLimits], in contrast, is where
// connections begin to be trimmed, and should be well below Conns.
type Limits struct {
	// Conns is how many connections there may be in all, at least twice the
	// upper limit of WithConnLimits. Half as many may be in their handshakes.
	Conns int `json:"conns,omitempty"`
	// ConnsPerPeer is how many connections one peer may have; default 8.
	ConnsPerPeer int `json:"connsPerPeer,omitempty"`
	// ConnsPerIP is how many connections there may be with one IPv4 address or
	// IPv6 /56; default 8.
	ConnsPerIP int `json:"connsPerIP,omitempty"`
	// ConnRatePerIP is how many connections a second may be opened with one of
	// those, after 64 (or four times as many) at once; default 1.
	ConnRatePerIP int `json:"connRatePerIP,omitempty"`
	// Streams is how many streams there may be in all, at least 128. An eighth
	// of them may be waiting for their protocol.
	Streams int `json:"streams,omitempty"`
	// StreamsPerPeer is how many streams one peer may have, of one protocol or
	// of several; at least 16, for the node itself has some.
	StreamsPerPeer int `json:"streamsPerPeer,omitempty"`
	// Memory is how many bytes the buffers of connections and streams may take
	// in all; at least 16 MiB.
	Memory int64 `json:"memory,omitempty"`
}

// Refused counts the connections and streams that each limit has refused, in
// either direction, by its field in [Limits].
type Refused struct {
	Conns          uint64 `json:"conns,omitempty"`
	ConnsPerPeer   uint64 `json:"connsPerPeer,omitempty"`
	ConnsPerIP     uint64 `json:"connsPerIP,omitempty"`
	ConnRatePerIP  uint64 `json:"connRatePerIP,omitempty"`
	Streams        uint64 `json:"streams,omitempty"`
	StreamsPerPeer uint64 `json:"streamsPerPeer,omitempty"`
	Memory         uint64 `json:"memory,omitempty"`
	// Files is for the limit of open files, which the process has.
	Files uint64 `json:"files,omitempty"`
	// Services is for the streams of libp2p's own protocols, whose limits have
	// no option.
	Services uint64 `json:"services,omitempty"`
}

// Total is how much was refused by any limit.
func (r Refused) Total() uint64 { return limits.Counts(r).Total() }
