// Package dstore keeps a node's keys and values, such as provider records, in
// one file: a [datastore.Batching] on top of bbolt.
//
// A write is on the disk when its call returns, and a batch is there as a whole
// or not at all, whenever the process is killed. Writes that wait for the disk
// at the same moment share one transaction. No goroutine runs in the background.
//
// bbolt trusts its file, which it maps into memory: a damaged one makes it panic,
// or read past a page. So each value has a checksum, the bucket has one over all
// entries, and [Open] reads the whole file once, with plain reads and bounds on
// everything, before bbolt sees it. What fails later, such as a disk that cannot
// be read, is an error of the call.
package dstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ipfs/go-datastore"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// ErrLocked is returned by Open for a file that is open elsewhere, in this
// process or another.
var ErrLocked = errors.New("another store has it open")

// ErrClosed is returned by every method after Close. It matches fs.ErrClosed.
var ErrClosed = fmt.Errorf("the datastore is closed: %w", fs.ErrClosed)

const (
	pageSize = 4096 // on every system, so that a file can be moved
	sumSize  = 4    // the checksum at the beginning of a stored value
)

// bucketName names the only bucket of the file, which holds all entries. Its
// sequence number is the sum of their checksums.
var bucketName = []byte("entries")

// Store is an open file. Its methods are safe for concurrent use.
type Store struct {
	path   string
	log    *slog.Logger
	db     *bolt.DB
	file   *os.File // bbolt's
	damage *Damage

	closed atomic.Bool
	broken atomic.Pointer[error] // why bbolt is not called anymore
	once   sync.Once             // closes
	err    error                 // of closing

	turn    chan struct{} // holds one value while somebody writes
	failing bool          // whether the last write failed; guarded by turn

	mu      sync.Mutex
	waiting []*write // for a turn; guarded by mu
}

var (
	_ datastore.Batching            = (*Store)(nil)
	_ datastore.PersistentDatastore = (*Store)(nil)
)

// Damage is what Open found wrong with a file.
type Damage struct {
	Path      string // where the file was
	Kept      string // where it is now
	Reason    error  // the first thing wrong
	Recovered int    // how many entries were whole, and are in the new file
}

func (d *Damage) Error() string {
	return fmt.Sprintf("file %q is damaged and was set aside as %q, of which %d entries are used: %v", d.Path, d.Kept, d.Recovered, d.Reason)
}

// Unwrap returns Reason.
func (d *Damage) Unwrap() error { return d.Reason }

// Damage returns what Open found wrong, or nil.
func (s *Store) Damage() *Damage { return s.damage }

// Close closes the file. Calls that are under way end first, and later ones
// return ErrClosed. Every call returns the first one's result.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.closed.Store(true)
		s.turn <- struct{}{} // and nobody gets it again: write looks at closed
		defer func() { <-s.turn }()
		if s.broken.Load() != nil {
			// bbolt may hold its own locks forever. The mapping stays.
			s.err = closeMapped(s.file)
			return
		}
		s.err = s.db.Close()
	})
	return s.err
}

// call runs f, which calls bbolt. A panic, or a fault while reading the mapped
// file, becomes an error, and bbolt is not called again.
func (s *Store) call(f func() error) (err error) {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	err = caught(f)
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return ErrClosed
	case errors.Is(err, errPanic):
		err = fmt.Errorf("file %q cannot be used until it is opened again: %w", s.path, err)
		if s.broken.CompareAndSwap(nil, &err) {
			s.log.Error("datastore lost", "file", s.path, "err", err)
		}
	}
	return err
}

var errPanic = errors.New("reading it failed")

// caught runs f and returns its panic as an error that matches errPanic.
func caught(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return f()
}

// begin is what every method does first.
func (s *Store) begin(ctx context.Context) error {
	if s.closed.Load() {
		return ErrClosed
	}
	return ctx.Err()
}

// view runs f with the bucket as it is now. What f gets from it must not be
// used afterwards.
func (s *Store) view(ctx context.Context, f func(*bolt.Bucket) error) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	return s.call(func() error {
		return s.db.View(func(tx *bolt.Tx) error { return f(tx.Bucket(bucketName)) })
	})
}

// Get returns the value of a key, or datastore.ErrNotFound.
func (s *Store) Get(ctx context.Context, key datastore.Key) (value []byte, err error) {
	err = s.view(ctx, func(b *bolt.Bucket) error {
		stored := b.Get([]byte(key.String()))
		if stored == nil {
			return datastore.ErrNotFound
		}
		v, ok := decode([]byte(key.String()), stored)
		if !ok {
			return fmt.Errorf("file %q: the value of %q is damaged", s.path, key)
		}
		value = bytes.Clone(v)
		return nil
	})
	return value, err
}

// Has reports whether a key has a value.
func (s *Store) Has(ctx context.Context, key datastore.Key) (bool, error) {
	size, err := s.size(ctx, key)
	return size >= 0, err
}

// GetSize returns the size of the value of a key, or datastore.ErrNotFound.
func (s *Store) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	size, err := s.size(ctx, key)
	if err == nil && size < 0 {
		err = datastore.ErrNotFound
	}
	return size, err
}

// size returns -1 for a key without a value.
func (s *Store) size(ctx context.Context, key datastore.Key) (size int, err error) {
	size = -1
	err = s.view(ctx, func(b *bolt.Bucket) error {
		if stored := b.Get([]byte(key.String())); stored != nil {
			size = max(0, len(stored)-sumSize)
		}
		return nil
	})
	return size, err
}

// Put sets the value of a key. It is on the disk when Put returns.
func (s *Store) Put(ctx context.Context, key datastore.Key, value []byte) error {
	o, err := put(key, value)
	if err != nil {
		return err
	}
	return s.write(ctx, []op{o})
}

// Delete removes a key. One that has no value is no error.
func (s *Store) Delete(ctx context.Context, key datastore.Key) error {
	return s.write(ctx, []op{{key: []byte(key.String())}})
}

// Sync returns at once: a write that returned is on the disk.
func (s *Store) Sync(ctx context.Context, _ datastore.Key) error { return s.begin(ctx) }

// DiskUsage returns the size of the file. It grows with what is stored, and does
// not shrink: space of removed entries is used again.
func (s *Store) DiskUsage(ctx context.Context) (uint64, error) {
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	fi, err := os.Stat(s.path)
	if err != nil {
		return 0, err
	}
	return uint64(fi.Size()), nil
}

// batch collects operations. It is for one goroutine.
type batch struct {
	s   *Store
	ops []op
}

// Batch returns a batch whose Commit makes all its changes or none, and returns
// once they are on the disk.
func (s *Store) Batch(ctx context.Context) (datastore.Batch, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return &batch{s: s}, nil
}

func (b *batch) Put(ctx context.Context, key datastore.Key, value []byte) error {
	o, err := put(key, value)
	if err == nil {
		err = b.s.begin(ctx)
	}
	if err == nil {
		b.ops = append(b.ops, o)
	}
	return err
}

func (b *batch) Delete(ctx context.Context, key datastore.Key) error {
	if err := b.s.begin(ctx); err != nil {
		return err
	}
	b.ops = append(b.ops, op{key: []byte(key.String())})
	return nil
}

// Commit may be called again after an error.
func (b *batch) Commit(ctx context.Context) error {
	err := b.s.write(ctx, b.ops)
	if err == nil {
		b.ops = nil
	}
	return err
}

// op sets a key, or removes it if stored is nil.
type op struct {
	key, stored []byte
}

func put(key datastore.Key, value []byte) (op, error) {
	k := []byte(key.String())
	if len(k) == 0 || len(k) > bolt.MaxKeySize || len(value) > bolt.MaxValueSize-sumSize {
		return op{}, fmt.Errorf("a key of %d bytes with a value of %d bytes cannot be stored; a key has 1 to %d bytes", len(k), len(value), bolt.MaxKeySize)
	}
	return op{k, encode(k, value)}, nil
}

// encode returns value as it is stored: with a copy of it.
func encode(key, value []byte) []byte {
	b := make([]byte, sumSize, sumSize+len(value))
	binary.LittleEndian.PutUint32(b, sum(key, value))
	return append(b, value...)
}

// decode returns the part of a stored value that is the caller's.
func decode(key, stored []byte) (value []byte, ok bool) {
	if len(stored) < sumSize {
		return nil, false
	}
	value = stored[sumSize:]
	return value, binary.LittleEndian.Uint32(stored) == sum(key, value)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(key, value []byte) uint32 {
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(key)))
	return crc32.Update(crc32.Update(crc32.Update(0, castagnoli, size[:]), castagnoli, key), castagnoli, value)
}

// share is what an entry adds to the sum of all: its checksum, and a number that
// makes entries count.
func share(stored []byte) uint64 {
	if len(stored) < sumSize {
		return 0
	}
	return 1<<40 + uint64(binary.LittleEndian.Uint32(stored))
}

// write is what one call wants to have written.
type write struct {
	ops  []op
	done chan error // has room for the result
}

// write makes changes durable, all or none. Who gets the turn writes what
// everybody has who waits for one. Once ctx has ended, write returns its error if
// nothing was begun.
func (s *Store) write(ctx context.Context, ops []op) error {
	if err := s.begin(ctx); err != nil || len(ops) == 0 {
		return err
	}
	w := &write{ops, make(chan error, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case s.turn <- struct{}{}:
		s.writeAll()
		<-s.turn
	case err := <-w.done:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		i := slices.Index(s.waiting, w)
		if i >= 0 {
			s.waiting = slices.Delete(s.waiting, i, i+1)
		}
		s.mu.Unlock()
		if i >= 0 {
			return ctx.Err()
		}
	}
	return <-w.done
}

// writeAll writes what waits, in one transaction. The caller has the turn.
func (s *Store) writeAll() {
	s.mu.Lock()
	group := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	if len(group) == 0 {
		return // somebody else wrote it
	}
	var all []op
	for _, w := range group {
		all = append(all, w.ops...)
	}
	err := s.commit(all)
	if err != nil && len(group) > 1 {
		// One may be too large for the disk, and the others not.
		for _, w := range group {
			w.done <- s.commit(w.ops)
		}
		return
	}
	for _, w := range group {
		w.done <- err
	}
}

var errUnchanged = errors.New("nothing to write")

// commit makes changes in one transaction. The caller has the turn.
func (s *Store) commit(ops []op) error {
	if s.closed.Load() {
		return ErrClosed
	}
	err := s.call(func() error {
		return s.db.Update(func(tx *bolt.Tx) error { return change(tx.Bucket(bucketName), ops) })
	})
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case errors.Is(err, ErrClosed):
		return err
	case err != nil:
		if !s.failing {
			s.log.Warn("datastore write failed", "file", s.path, "err", err)
		}
		s.failing = true
		return fmt.Errorf("writing %q: %w", s.path, err)
	}
	if s.failing {
		s.failing = false
		s.log.Info("datastore write succeeded again", "file", s.path)
	}
	return nil
}

// change applies operations to the bucket, and to the sum.
func change(b *bolt.Bucket, ops []op) error {
	total, changed := b.Sequence(), false
	for _, o := range ops {
		old := b.Get(o.key)
		if bytes.Equal(old, o.stored) && (old == nil) == (o.stored == nil) {
			continue
		}
		changed = true
		if old != nil {
			total -= share(old)
		}
		var err error
		if o.stored == nil {
			err = b.Delete(o.key)
		} else {
			total += share(o.stored)
			err = b.Put(o.key, o.stored)
		}
		if err != nil {
			return err
		}
	}
	if !changed {
		return errUnchanged
	}
	return b.SetSequence(total)
}
