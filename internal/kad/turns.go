package kad

import (
	"context"
	"sync"
)

// turns lets one at a time deal with a key. The zero value is ready for use.
type turns struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // by key, closed when the turn ends; guarded by mu
}

// take waits until nobody else has the turn of a key, or ctx ends. The function
// that it returns ends the turn.
func (t *turns) take(ctx context.Context, key string) (done func(), err error) {
	mine := make(chan struct{})
	for {
		t.mu.Lock()
		other := t.busy[key]
		if other == nil {
			if t.busy == nil {
				t.busy = make(map[string]chan struct{})
			}
			t.busy[key] = mine
		}
		t.mu.Unlock()
		if other == nil {
			return func() {
				t.mu.Lock()
				delete(t.busy, key)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
