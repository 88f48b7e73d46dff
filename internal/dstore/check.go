package dstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt's file, as far as it matters here. Numbers are in the order of the
// machine. Each page begins with a header: its number (8 bytes), kind (2), count
// of elements (2), and how many pages follow that belong to it (4). The first two
// pages are metas; the one with the higher transaction is in force.
const (
	headSize = 16
	elemSize = 16 // of branches and leaves

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSize    = 56 // before the checksum

	// Nothing that bbolt writes is this deep.
	maxDepth = 64
)

var order = binary.NativeEndian

// walk reads a file of a store without bbolt, calls each (unless it is nil) with
// every entry that is whole, and returns the first thing that is wrong. It goes
// on after that. The slices are only valid until each returns; an error of each
// ends the walk.
//
// A file in which nothing is wrong can be given to bbolt.
func walk(r io.ReaderAt, size int64, each func(key, value []byte) error) (damage, err error) {
	w := &walker{r: r, each: each}
	m := w.meta(size)
	if m == nil {
		return w.damage, nil
	}
	w.high = m.high
	w.seen = make([]uint64, m.high/64+1)
	w.take(0, 2)
	// The free pages come last, when it is known which are in use.
	if err := w.root(m.root); err != nil {
		return w.damage, err
	}
	w.free(m.freelist)
	return w.damage, nil
}

type walker struct {
	r      io.ReaderAt
	each   func(key, value []byte) error
	damage error

	high uint64   // one more than the highest page in use
	seen []uint64 // a bit for each page that was found in use
	leaf []byte   // the buffer of the leaf that is read now
	sum  uint64   // of the entries so far
}

// wrong notes what is wrong, unless something was before.
func (w *walker) wrong(format string, args ...any) {
	if w.damage == nil {
		w.damage = fmt.Errorf(format, args...)
	}
}

// metaPage is what is needed of a meta page.
type metaPage struct {
	root, freelist, high, tx uint64
}

// meta returns the meta in force, or nil.
func (w *walker) meta(size int64) (best *metaPage) {
	for i := range int64(2) {
		var b [headSize + metaSize + 8]byte
		if _, err := w.r.ReadAt(b[:], i*pageSize); err != nil {
			w.wrong("page %d: %w", i, err)
			continue
		}
		m := b[headSize:]
		hash := fnv.New64a()
		hash.Write(m[:metaSize])
		switch {
		case order.Uint32(m) != metaMagic || order.Uint32(m[4:]) != metaVersion || order.Uint64(m[metaSize:]) != hash.Sum64():
			w.wrong("page %d is not a meta page of bbolt, version %d, with the right checksum", i, metaVersion)
			continue
		case order.Uint32(m[8:]) != pageSize:
			w.wrong("its pages have %d bytes instead of %d", order.Uint32(m[8:]), pageSize)
			continue
		}
		p := &metaPage{root: order.Uint64(m[16:]), freelist: order.Uint64(m[32:]), high: order.Uint64(m[40:]), tx: order.Uint64(m[48:])}
		if best == nil || p.tx > best.tx {
			best = p
		}
	}
	if best == nil {
		return nil
	}
	if pages := uint64(size) / pageSize; best.high > pages {
		w.wrong("it has %d pages of %d", pages, best.high)
		best.high = pages
	}
	return best
}

// take notes that n pages are in use, and returns false if one of them is not a
// page, or in use already.
func (w *walker) take(id, n uint64) bool {
	if id >= w.high || n > w.high-id {
		w.wrong("page %d with %d pages is beyond the end, which is at %d", id, n, w.high)
		return false
	}
	for i := id; i < id+n; i++ {
		if w.used(i) {
			w.wrong("page %d is used twice", i)
			return false
		}
	}
	for i := id; i < id+n; i++ {
		w.seen[i/64] |= 1 << (i % 64)
	}
	return true
}

func (w *walker) used(id uint64) bool { return w.seen[id/64]&(1<<(id%64)) != 0 }

// page reads a page and those that belong to it, and takes them. A leaf is only
// valid until the next one is read.
func (w *walker) page(id uint64) (b []byte, kind uint16, ok bool) {
	if id >= w.high {
		w.wrong("page %d is beyond the end, which is at %d", id, w.high)
		return nil, 0, false
	}
	if cap(w.leaf) < pageSize {
		w.leaf = make([]byte, pageSize)
	}
	b = w.leaf[:pageSize]
	if _, err := w.r.ReadAt(b, int64(id)*pageSize); err != nil {
		w.wrong("page %d: %w", id, err)
		return nil, 0, false
	}
	kind = order.Uint16(b[8:])
	if order.Uint64(b) != id || kind != branchPage && kind != leafPage && kind != freelistPage {
		w.wrong("page %d says that it is page %d of kind %#x", id, order.Uint64(b), kind)
		return nil, 0, false
	}
	more := uint64(order.Uint32(b[12:]))
	if !w.take(id, 1+more) {
		return nil, 0, false
	}
	switch {
	case more > 0:
		b = append(make([]byte, 0, (1+more)*pageSize), b...)[:(1+more)*pageSize]
		if _, err := w.r.ReadAt(b[pageSize:], int64(id+1)*pageSize); err != nil {
			w.wrong("page %d: %w", id, err)
			return nil, 0, false
		}
	case kind == branchPage:
		b = bytes.Clone(b) // it is used while its leaves are read
	}
	return b, kind, true
}

// root reads the page that holds the bucket, and all below.
func (w *walker) root(id uint64) error {
	b, kind, ok := w.page(id)
	if !ok {
		return nil
	}
	if kind != leafPage || order.Uint16(b[10:]) != 1 {
		w.wrong("page %d is not the one with the bucket", id)
		return nil
	}
	flags, key, bucket, ok := leafElement(b, 0)
	if !ok || flags != 1 || !bytes.Equal(key, bucketName) || len(bucket) < 16 {
		w.wrong("page %d does not hold the bucket %q", id, bucketName)
		return nil
	}
	root, want := order.Uint64(bucket), order.Uint64(bucket[8:])
	var err error
	if root != 0 {
		err = w.tree(root, nil, nil, 0)
	} else { // a small bucket is a page within the element
		inline := bytes.Clone(bucket[16:])
		if len(inline) < headSize || order.Uint16(inline[8:]) != leafPage {
			w.wrong("page %d holds half a bucket", id)
			return nil
		}
		err = w.entries(id, inline, nil, nil)
	}
	if w.sum != want {
		w.wrong("the entries are not those that were written: their sum is %#x instead of %#x", w.sum, want)
	}
	return err
}

// tree reads a page and those below. Their keys are at least low, and less than
// high if that is not nil.
func (w *walker) tree(id uint64, low, high []byte, depth int) error {
	if depth == maxDepth {
		w.wrong("page %d is %d levels deep", id, depth)
		return nil
	}
	b, kind, ok := w.page(id)
	if !ok {
		return nil
	}
	switch kind {
	case leafPage:
		return w.entries(id, b, low, high)
	case branchPage:
	default:
		w.wrong("page %d of the tree is of kind %#x", id, kind)
		return nil
	}
	n := int(order.Uint16(b[10:]))
	if n == 0 {
		w.wrong("page %d has no branches", id)
	}
	for i := range n {
		key, child, ok := branchElement(b, i)
		if !ok {
			w.wrong("page %d: branch %d is not within it", id, i)
			continue
		}
		next := high
		if i+1 < n {
			if k, _, ok := branchElement(b, i+1); ok {
				next = k
			}
		}
		w.inOrder(id, key, low, high)
		if next != nil && bytes.Compare(key, next) >= 0 {
			w.wrong("page %d: branch %d is out of order", id, i)
		}
		if err := w.tree(child, key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// entries reads the entries of a leaf.
func (w *walker) entries(id uint64, b, low, high []byte) error {
	var last []byte
	for i := range int(order.Uint16(b[10:])) {
		flags, key, stored, ok := leafElement(b, i)
		if !ok {
			w.wrong("page %d: entry %d is not within it", id, i)
			continue
		}
		value, ok := decode(key, stored)
		if !ok || flags != 0 {
			w.wrong("page %d: entry %d has the wrong checksum", id, i)
			continue
		}
		w.inOrder(id, key, low, high)
		if last != nil && bytes.Compare(last, key) >= 0 {
			w.wrong("page %d: entry %d is out of order", id, i)
		}
		last = key
		w.sum += share(stored)
		if w.each != nil {
			if err := w.each(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) inOrder(id uint64, key, low, high []byte) {
	if bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0 {
		w.wrong("page %d has a key that belongs elsewhere", id)
	}
}

// free reads the list of free pages.
func (w *walker) free(id uint64) {
	b, kind, ok := w.page(id)
	if !ok {
		return
	}
	if kind != freelistPage {
		w.wrong("page %d is not the list of free pages", id)
		return
	}
	count, b := uint64(order.Uint16(b[10:])), b[headSize:]
	if count == 0xffff {
		count, b = order.Uint64(b), b[8:]
	}
	if count > uint64(len(b)/8) {
		w.wrong("page %d lists %d free pages, more than fit", id, count)
		return
	}
	last := uint64(0)
	for ; count > 0; count-- {
		p := order.Uint64(b)
		b = b[8:]
		if p <= last || p >= w.high || w.used(p) {
			w.wrong("page %d lists page %d as free", id, p)
			return
		}
		last = p
	}
}

// leafElement returns an element of a leaf, and whether it is within the page.
func leafElement(b []byte, i int) (flags uint32, key, value []byte, ok bool) {
	at := headSize + i*elemSize
	if at+elemSize > len(b) {
		return 0, nil, nil, false
	}
	e := b[at:]
	start, ksize, vsize := uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
	end := start + ksize + vsize
	if ksize == 0 || end > uint64(len(e)) {
		return 0, nil, nil, false
	}
	return order.Uint32(e), e[start : start+ksize], e[start+ksize : end], true
}

// branchElement returns an element of a branch, and whether it is within the page.
func branchElement(b []byte, i int) (key []byte, child uint64, ok bool) {
	at := headSize + i*elemSize
	if at+elemSize > len(b) {
		return nil, 0, false
	}
	e := b[at:]
	start, ksize := uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))
	if ksize == 0 || start+ksize > uint64(len(e)) {
		return nil, 0, false
	}
	return e[start : start+ksize], order.Uint64(e[8:]), true
}
