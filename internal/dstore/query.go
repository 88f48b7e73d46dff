package dstore

import (
	"bytes"
	"context"
	"fmt"
	"path"

	"github.com/ipfs/go-datastore/query"
	bolt "go.etcd.io/bbolt"
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
	prefix := path.Clean("/" + q.Prefix)
	if prefix != "/" {
		prefix += "/"
	}
	c := &cursor{s: s, ctx: ctx, prefix: []byte(prefix), keysOnly: q.KeysOnly}
	c.from = c.prefix
	rest := q
	rest.Prefix = "" // done
	if len(q.Orders) > 0 {
		switch q.Orders[0].(type) {
		case query.OrderByKey, *query.OrderByKey:
			rest.Orders = nil // done; no two keys are equal
		}
	}
	return query.NaiveQueryApply(rest, query.ResultsFromIterator(q, query.Iterator{Next: c.next})), nil
}

// cursor is where a query is.
type cursor struct {
	s        *Store
	ctx      context.Context // go-datastore gives it only to Query
	prefix   []byte
	keysOnly bool

	from []byte // the next key to read; nil at the end
	read []query.Entry
}

func (c *cursor) next() (query.Result, bool) {
	if len(c.read) == 0 && c.from != nil {
		if err := c.s.view(c.ctx, c.load); err != nil {
			c.from, c.read = nil, nil
			return query.Result{Error: err}, true
		}
	}
	if len(c.read) == 0 {
		return query.Result{}, false
	}
	e := c.read[0]
	c.read[0] = query.Entry{} // its value can be freed
	c.read = c.read[1:]
	return query.Result{Entry: e}, true
}

// load reads the next entries.
func (c *cursor) load(b *bolt.Bucket) error {
	cur, size := b.Cursor(), 0
	for k, stored := cur.Seek(c.from); k != nil && bytes.HasPrefix(k, c.prefix); k, stored = cur.Next() {
		if len(c.read) == chunkEntries || size > chunkBytes {
			c.from = bytes.Clone(k)
			return nil
		}
		value, ok := decode(k, stored)
		if !ok {
			return fmt.Errorf("file %q: the value of %q is damaged", c.s.path, k)
		}
		e := query.Entry{Key: string(k), Size: len(value)}
		size += len(k)
		if !c.keysOnly {
			e.Value = bytes.Clone(value)
			size += len(value)
		}
		c.read = append(c.read, e)
	}
	c.from = nil
	return nil
}
