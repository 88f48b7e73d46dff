package gossip

import (
	"context"
	"encoding/json"
	"io"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsub_pb "github.com/libp2p/go-libp2p-pubsub/pb"

	"github.com/go-p2pnode/p2pnode/internal/ring"
)

// traceBuffer is how many events may wait for the writer of a trace.
const traceBuffer = 1 << 14

// trace writes gossipsub's events as lines of JSON, in the form of upstream's
// JSONTracer, which knows only files, keeps without bound what a slow one does not
// take, and cannot be awaited.
type trace struct {
	w     io.Writer
	queue *ring.Queue[*pubsub_pb.TraceEvent]
}

func newTrace(w io.Writer) *trace {
	return &trace{w, ring.New[*pubsub_pb.TraceEvent](traceBuffer)}
}

var _ pubsub.EventTracer = (*trace)(nil)

// Trace keeps an event for the writer. It runs in gossipsub's loop.
func (t *trace) Trace(e *pubsub_pb.TraceEvent) { t.queue.Push(e) }

// lostEvents takes the place of events that the writer was too slow for.
type lostEvents struct {
	Lost uint64 `json:"lost"`
}

// write writes events until ctx ends, and what waits then.
func (t *trace) write(ctx context.Context, failed func(error)) {
	out := json.NewEncoder(t.w)
	for {
		select {
		case <-t.queue.Wake():
		case <-ctx.Done():
			defer t.queue.Close()
		}
		for e, lost, ok := t.queue.Pop(); ok; e, lost, ok = t.queue.Pop() {
			if lost > 0 {
				_ = out.Encode(lostEvents{lost}) // an error returns below
			}
			if err := out.Encode(e); err != nil {
				failed(err)
				t.queue.Close()
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}
