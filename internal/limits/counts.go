package limits

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/go-p2pnode/p2pnode/internal/errs"
)

// tellEvery is how often [Config.Reached] is called for one limit.
const tellEvery = time.Minute

// Counts is how much each limit has refused: connections, streams and buffers.
type Counts struct {
	Conns, ConnsPerPeer, ConnsPerIP, ConnRatePerIP uint64
	Streams, StreamsPerPeer, Memory                uint64
	Files                                          uint64 // open files of the process
	Services                                       uint64 // streams of libp2p's own protocols
}

// Total adds the counts up.
func (c Counts) Total() uint64 {
	return c.Conns + c.ConnsPerPeer + c.ConnsPerIP + c.ConnRatePerIP + c.Streams + c.StreamsPerPeer + c.Memory + c.Files + c.Services
}

// Handshakes counts the incoming connections that failed in their handshake.
type Handshakes struct {
	Failed uint64
	Last   time.Time // zero when none has failed
}

// counter counts what limits refuse. It is safe for concurrent use.
type counter struct {
	log     *slog.Logger
	reached func(limit string, refused uint64)

	mu         sync.Mutex
	counts     Counts               // guarded by mu
	last       time.Time            // of any refusal; guarded by mu
	told       map[string]time.Time // when Reached was last called, by limit; guarded by mu
	handshakes Handshakes           // guarded by mu
}

func (c *counter) field(limit string) *uint64 {
	switch limit {
	case "Conns":
		return &c.counts.Conns
	case "ConnsPerPeer":
		return &c.counts.ConnsPerPeer
	case "ConnsPerIP":
		return &c.counts.ConnsPerIP
	case "ConnRatePerIP":
		return &c.counts.ConnRatePerIP
	case "Streams":
		return &c.counts.Streams
	case "StreamsPerPeer":
		return &c.counts.StreamsPerPeer
	case "Memory":
		return &c.counts.Memory
	case "files":
		return &c.counts.Files
	default:
		return &c.counts.Services
	}
}

// record counts a refusal, and reports whether it was the first by its limit.
// It is also called under locks of the resource manager, and calls nobody.
func (c *counter) record(limit string) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.field(limit)
	*n++
	c.last = time.Now()
	return *n == 1
}

// due reports whether Reached is to be called now, and returns how much this
// limit has refused.
func (c *counter) due(limit string) (refused uint64, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if at, known := c.told[limit]; known && now.Sub(at) < tellEvery {
		return 0, false
	}
	c.told[limit] = now
	return *c.field(limit), true
}

func (c *counter) handshakeFailed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handshakes.Failed++
	c.handshakes.Last = time.Now()
}

// explain adds the limit that refused to an error, and counts it. The resource
// manager has no types for most of its errors, so their texts decide, which
// name the scope: "system", "transient", "peer:…", "protocol:….peer:…".
func (c *counter) explain(err error, conn bool) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	_, memory := errors.AsType[*rcmgr.ErrMemoryLimitExceeded](err)
	in := func(s string) bool { return strings.Contains(text, s) }
	var what, limit, do string
	switch {
	case in("rate limit"):
		what, limit = "new connections with one address", "ConnRatePerIP"
	case in("per ip"):
		what, limit = "connections with one address", "ConnsPerIP"
	case !errors.Is(err, network.ErrResourceLimitExceeded):
		return err
	case memory:
		return Explain(err) // memoryReporter has counted it
	case in("file descriptor"):
		what, limit, do = "open files", "files", "raise the process's limit (ulimit -n)"
	case in("service:"):
		what, limit, do = "streams of libp2p's own services", "services", "no option raises it"
	case conn && in("peer:"):
		what, limit = "connections with one peer", "ConnsPerPeer"
	case conn:
		what, limit = "connections in all", "Conns"
	case in("peer:"):
		what, limit = "streams with one peer", "StreamsPerPeer"
	default:
		what, limit = "streams in all", "Streams"
	}
	if do == "" {
		do = fmt.Sprintf("WithLimits(Limits{%s: …}) raises it", limit)
	}
	first := c.record(limit)
	if refused, due := c.due(limit); due {
		c.reached(limit, refused)
	}
	if first {
		c.log.Warn("limit reached; Status counts further refusals", "limit", what, "do", do, "err", err)
	}
	return &limitError{err, fmt.Sprintf(" (limit of %s; %s)", what, do)}
}

// limitError is a refusal that names its limit. It matches errs.ErrLimit.
type limitError struct {
	err  error
	note string
}

func (e *limitError) Error() string        { return e.err.Error() + e.note }
func (e *limitError) Unwrap() error        { return e.err }
func (e *limitError) Is(target error) bool { return target == errs.ErrLimit }

// Explain adds the memory limit to an error that came through a transport,
// which the resource manager's own errors do not. What another resource manager
// refuses matches errs.ErrLimit too. Other errors are returned as they are.
func Explain(err error) error {
	if !errors.Is(err, network.ErrResourceLimitExceeded) || errors.Is(err, errs.ErrLimit) {
		return err
	}
	note := ""
	if _, memory := errors.AsType[*rcmgr.ErrMemoryLimitExceeded](err); memory {
		note = " (limit of memory; WithLimits(Limits{Memory: …}) raises it)"
	}
	return &limitError{err, note}
}

// memoryReporter counts the buffers that the memory limit refuses: the
// transports request them internally, and make do with less or give up.
type memoryReporter struct{ c *counter }

// BlockMemory is called under locks of the resource manager: it only counts.
func (r memoryReporter) BlockMemory(int) { r.c.record("Memory") }

func (memoryReporter) AllowConn(network.Direction, bool)      {}
func (memoryReporter) BlockConn(network.Direction, bool)      {}
func (memoryReporter) AllowStream(peer.ID, network.Direction) {}
func (memoryReporter) BlockStream(peer.ID, network.Direction) {}
func (memoryReporter) AllowPeer(peer.ID)                      {}
func (memoryReporter) BlockPeer(peer.ID)                      {}
func (memoryReporter) AllowProtocol(protocol.ID)              {}
func (memoryReporter) BlockProtocol(protocol.ID)              {}
func (memoryReporter) BlockProtocolPeer(protocol.ID, peer.ID) {}
func (memoryReporter) AllowService(string)                    {}
func (memoryReporter) BlockService(string)                    {}
func (memoryReporter) BlockServicePeer(string, peer.ID)       {}
func (memoryReporter) AllowMemory(int)                        {}
