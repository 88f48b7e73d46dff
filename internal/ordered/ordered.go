// Package ordered answers queries of go-datastore for stores that have their keys in
// order. Its tests are go-datastore's suite, with the stores that use it.
package ordered

import (
	"path"

	"github.com/ipfs/go-datastore/query"
)

// Load reads some entries, in order, of those whose keys begin with prefix: from the
// key from on, which need not exist. It returns the key to go on from; "" at the end.
type Load func(prefix, from string) (entries []query.Entry, next string, err error)

// Query answers q with what load reads, which is called again when all that it has
// read is consumed, and no longer after an error, which is the last result. Without
// q.Orders, or with that of the keys, only what is read at a time is in memory.
func Query(q query.Query, load Load) query.Results {
	prefix := path.Clean("/" + q.Prefix)
	if prefix != "/" {
		prefix += "/"
	}
	c := &cursor{load: load, prefix: prefix, from: prefix}
	rest := q
	rest.Prefix = "" // done
	if len(q.Orders) > 0 {
		switch q.Orders[0].(type) {
		case query.OrderByKey, *query.OrderByKey:
			rest.Orders = nil // done; no two keys are equal
		}
	}
	return query.NaiveQueryApply(rest, query.ResultsFromIterator(q, query.Iterator{Next: c.next}))
}

// cursor is where a query is.
type cursor struct {
	load   Load
	prefix string
	from   string // the next key to read; "" at the end
	read   []query.Entry
}

func (c *cursor) next() (query.Result, bool) {
	if len(c.read) == 0 && c.from != "" {
		var err error
		if c.read, c.from, err = c.load(c.prefix, c.from); err != nil {
			c.read, c.from = nil, ""
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
