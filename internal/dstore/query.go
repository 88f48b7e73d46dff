package dstore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/ipfs/go-datastore/query"
	bolt "go.etcd.io/bbolt"

	"github.com/go-p2pnode/p2pnode/internal/ordered"
)

// A query reads this much at a time.
const (
	chunkEntries = 256
	chunkBytes   = 256 << 10
)

// Query returns the entries whose keys are below q.Prefix, in the order of their
// keys unless q.Orders says otherwise; only other orders need all results in
// memory. It reads some entries at a time and holds nothing in between, so that
// writers never wait for a query: an entry that is written or removed meanwhile
// may be among the results or not.
//
// A query that ctx or Close ends has that error as its last result.
func (s *Store) Query(ctx context.Context, q query.Query) (query.Results, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return ordered.Query(q, func(prefix, from string) (entries []query.Entry, next string, err error) {
		err = s.view(ctx, func(b *bolt.Bucket) error {
			entries, next, err = s.load(b, prefix, from, q.KeysOnly)
			return err
		})
		return entries, next, err
	}), nil
}

// load reads the next entries of a query.
func (s *Store) load(b *bolt.Bucket, prefix, from string, keysOnly bool) (entries []query.Entry, next string, err error) {
	cur, size := b.Cursor(), 0
	for k, stored := cur.Seek([]byte(from)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, stored = cur.Next() {
		if len(entries) == chunkEntries || size > chunkBytes {
			return entries, string(k), nil
		}
		value, ok := decode(k, stored)
		if !ok {
			return nil, "", fmt.Errorf("file %q: the value of %q is damaged", s.path, k)
		}
		e := query.Entry{Key: string(k), Size: len(value)}
		size += len(k)
		if !keysOnly {
			e.Value = bytes.Clone(value)
			size += len(value)
		}
		entries = append(entries, e)
	}
	return entries, "", nil
}
