package kad

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A sweeping provider (v0.42) does not send records to the closest peers. It finds
// all peers of a region, 20 to 40 of them, and has the keys there, and compares both
// bit by bit: keys from their first bit on, but peers from the first one after the
// region's prefix. So all keys of a region go to much the same 20 peers, and of a
// key's 20 closest only some get it. spread puts that right. Upstream sends as many
// messages for a key as there should be records: each of them goes to another one of
// the closest peers, to the one that upstream has chosen if it is among them. When
// upstream has chosen well, nothing changes.

const (
	// spreadTries is how many peers are tried for a message when they fail.
	spreadTries = 3
	// spreadFor is how long, at least, it is known who has been sent a record, of
	// those that fewer peers have been sent than should hold it.
	spreadFor = 30 * time.Minute
	// maxSpread bounds how many peers are known. When there are more, they are all
	// forgotten: the lookups come before the records.
	maxSpread = 1 << 15
	// spreadRanks is how many peers are candidates for a key.
	spreadRanks = 64
	// foundFor is how long a peer that a lookup has found counts as there, although
	// the node may not be connected to it.
	foundFor = time.Minute
)

// spread chooses which peers get the records of a table.
type spread struct {
	size int // how many peers should hold a record

	mu     sync.Mutex
	peers  []candidate          // that lookups have found, by place; guarded by mu
	sent   map[uint64]uint64    // by the key's place, the ranks of the peers that it was sent to; guarded by mu
	before map[uint64]uint64    // those of the time before; guarded by mu
	begun  time.Time            // when sent was begun; guarded by mu
	failed map[peer.ID]struct{} // peers that could not be sent a record since they were found; guarded by mu
	looked time.Time            // when a lookup ended last; guarded by mu
	last   int                  // how many peers it found; guarded by mu
}

// candidate is a peer, its place in the key space, which is the first bits of its ID
// there, and when it was found.
type candidate struct {
	place uint64
	id    peer.ID
	found time.Time
}

func newSpread(size int) *spread {
	return &spread{size: size, sent: make(map[uint64]uint64), failed: make(map[peer.ID]struct{})}
}

// placeOf returns the place of a key, or of a peer ID.
func placeOf[T ~string | ~[]byte](key T) uint64 {
	sum := sha256.Sum256([]byte(key))
	return binary.BigEndian.Uint64(sum[:])
}

// found notes the closest peers to a key. Others that would be among them are gone.
func (s *spread) found(key string, list []peer.ID) {
	target := placeOf(key)
	fresh := make([]candidate, len(list))
	var farthest uint64
	now := time.Now()
	for i, id := range list {
		fresh[i] = candidate{placeOf(id), id, now}
		farthest = max(farthest, fresh[i].place^target)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked, s.last = now, len(list)
	if len(s.peers) > maxSpread {
		s.peers = nil
	}
	s.peers = slices.DeleteFunc(s.peers, func(c candidate) bool {
		return c.place^target <= farthest
	})
	for _, c := range fresh {
		i, _ := slices.BinarySearchFunc(s.peers, c.place, candidate.compare)
		s.peers = slices.Insert(s.peers, i, c)
		delete(s.failed, c.id)
	}
}

func (c candidate) compare(place uint64) int { return cmp.Compare(c.place, place) }

// to returns whom a record goes to that upstream sends to a peer, and whether that
// is the last one for now. It is nobody, "", if all of the closest that have not
// failed were sent it.
func (s *spread) to(id peer.ID, key []byte) (to peer.ID, last bool) {
	at := placeOf(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) <= s.size || s.size > spreadRanks/2 {
		return id, false // all get everything, or more peers than are ranked
	}
	var room [spreadRanks]uint64
	distances := room[:0]
	for _, c := range s.near(at) {
		distances = append(distances, c.place^at)
	}
	slices.Sort(distances)
	s.turn()
	sent := s.sent[at] | s.before[at]
	delete(s.before, at)
	chosen, ranked, missing, own := -1, 0, 0, placeOf(id)^at
	for rank, distance := range distances[:min(len(distances), spreadRanks)] {
		if s.hasFailed(distance ^ at) {
			continue
		}
		if sent>>rank&1 == 0 {
			missing++
			if chosen < 0 || distance == own {
				chosen = rank
			}
		}
		if ranked++; ranked == s.size {
			break
		}
	}
	switch {
	case ranked == 0:
		return id, false // upstream is to see that nobody can be reached
	case missing == 0:
		delete(s.sent, at)
		return "", true
	}
	s.sent[at] = sent | 1<<chosen
	return s.peerAt(distances[chosen] ^ at).id, missing == 1
}

// done notes that all of the closest have been sent a record. The next message is
// one of another time.
func (s *spread) done(key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sent, placeOf(key))
}

// fails notes that a peer could not be sent a record.
func (s *spread) fails(id peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) > maxSpread {
		clear(s.failed)
	}
	s.failed[id] = struct{}{}
}

// lately returns the peers that were found lately.
func (s *spread) lately() (list []peer.ID) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.peers {
		if _, failed := s.failed[c.id]; !failed && now.Sub(c.found) < foundFor {
			list = append(list, c.id)
		}
	}
	return list
}

// few reports whether there are fewer peers than should hold a record, if that is
// known: a lookup finds as many if they are there. In a network that grows it is
// true for a short time only.
func (s *spread) few() (few, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	few = s.last < s.size
	return few, !s.looked.IsZero() && (!few || time.Since(s.looked) < foundFor)
}

// turn forgets, after a time, whom records were sent to. It is called with the lock held.
func (s *spread) turn() {
	if now := time.Now(); now.Sub(s.begun) >= spreadFor {
		s.begun, s.sent, s.before = now, make(map[uint64]uint64), s.sent
	}
}

// near returns the peers of the smallest region around a place that has as many that
// have not failed as should hold a record, all if there are fewer. It is called with
// the lock held.
func (s *spread) near(at uint64) []candidate {
	region := s.peers
	for bit := uint64(1) << 63; bit > 0; bit >>= 1 { // all in the region share the bits before
		half, _ := slices.BinarySearchFunc(region, at&^(bit-1)|bit, candidate.compare)
		smaller := region[:half]
		if at&bit != 0 {
			smaller = region[half:]
		}
		if s.well(smaller) < s.size {
			break
		}
		region = smaller
	}
	return region
}

// peerAt returns the peer at a place. It is called with the lock held.
func (s *spread) peerAt(place uint64) candidate {
	i, _ := slices.BinarySearchFunc(s.peers, place, candidate.compare)
	return s.peers[i]
}

// hasFailed reports whether the peer at a place has. It is called with the lock held.
func (s *spread) hasFailed(place uint64) bool {
	if len(s.failed) == 0 {
		return false
	}
	_, failed := s.failed[s.peerAt(place).id]
	return failed
}

// well returns how many of some peers have not failed. It is called with the lock held.
func (s *spread) well(list []candidate) int {
	n := len(list)
	if len(s.failed) == 0 || n < s.size {
		return n
	}
	for _, c := range list {
		if _, failed := s.failed[c.id]; failed {
			n--
		}
	}
	return n
}
