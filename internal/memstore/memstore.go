// Package memstore keeps keys and values in memory, in the order of the keys: a
// [datastore.Batching] that answers a query for a prefix without looking at other
// keys. go-datastore's own, a map, looks at all of them: with 170,000 provider
// records, each search that reaches a DHT server would take it some ten milliseconds.
package memstore

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/tidwall/btree"

	"github.com/go-p2pnode/p2pnode/internal/ordered"
)

// ErrClosed is returned by every method after Close. It matches fs.ErrClosed.
var ErrClosed = fmt.Errorf("the datastore is closed: %w", fs.ErrClosed)

// A query reads this many entries at a time.
const chunk = 256

// Store is a datastore in memory. Its methods are safe for concurrent use.
type Store struct {
	mu     sync.RWMutex
	closed bool
	values btree.Map[string, []byte] // guarded by mu
}

// New returns an empty store.
func New() *Store { return new(Store) }

// Close frees what is kept.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.values.Clear()
	return nil
}

// check is called with the lock held.
func (s *Store) check(ctx context.Context) error {
	if s.closed {
		return ErrClosed
	}
	return ctx.Err()
}

// Get returns a value, or datastore.ErrNotFound. The caller may keep it and change it.
func (s *Store) Get(ctx context.Context, key datastore.Key) ([]byte, error) {
	value, err := s.get(ctx, key)
	return bytes.Clone(value), err
}

func (s *Store) get(ctx context.Context, key datastore.Key) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	value, ok := s.values.Get(key.String())
	if !ok {
		return nil, datastore.ErrNotFound
	}
	return value, nil
}

// Has reports whether there is a value.
func (s *Store) Has(ctx context.Context, key datastore.Key) (bool, error) {
	_, err := s.get(ctx, key)
	if err == datastore.ErrNotFound { //nolint:errorlint // ours
		return false, nil
	}
	return err == nil, err
}

// GetSize returns the length of a value, or -1 and datastore.ErrNotFound.
func (s *Store) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	value, err := s.get(ctx, key)
	if err != nil {
		return -1, err
	}
	return len(value), nil
}

// Put keeps a copy of a value.
func (s *Store) Put(ctx context.Context, key datastore.Key, value []byte) error {
	value = append([]byte{}, value...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return err
	}
	s.values.Set(key.String(), value)
	return nil
}

// Delete removes a value, if there is one.
func (s *Store) Delete(ctx context.Context, key datastore.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx); err != nil {
		return err
	}
	s.values.Delete(key.String())
	return nil
}

// Sync does nothing.
func (s *Store) Sync(ctx context.Context, _ datastore.Key) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.check(ctx)
}

// Batch returns a batch, whose operations happen one after the other when it is committed.
func (s *Store) Batch(context.Context) (datastore.Batch, error) {
	return datastore.NewBasicBatch(s), nil
}

// Query returns the entries whose keys are below q.Prefix, in the order of their keys
// unless q.Orders says otherwise. It reads some entries at a time and holds no lock in
// between: an entry that is written or removed meanwhile may be among the results or
// not. A query that ctx or Close ends has that error as its last result.
func (s *Store) Query(ctx context.Context, q query.Query) (query.Results, error) {
	s.mu.RLock()
	err := s.check(ctx)
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return ordered.Query(q, func(prefix, from string) ([]query.Entry, string, error) {
		return s.load(ctx, prefix, from, q.KeysOnly)
	}), nil
}

// load reads the next entries of a query.
func (s *Store) load(ctx context.Context, prefix, from string, keysOnly bool) (entries []query.Entry, next string, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.check(ctx); err != nil {
		return nil, "", err
	}
	s.values.Ascend(from, func(key string, value []byte) bool {
		switch {
		case !strings.HasPrefix(key, prefix):
			return false
		case len(entries) == chunk:
			next = key
			return false
		}
		e := query.Entry{Key: key, Size: len(value)}
		if !keysOnly {
			e.Value = bytes.Clone(value)
		}
		entries = append(entries, e)
		return true
	})
	return entries, next, nil
}
