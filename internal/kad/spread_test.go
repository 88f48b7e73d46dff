package kad

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
)

// spreadPeers returns n peers, and a spread that knows them.
func spreadPeers(n int) ([]peer.ID, *spread) {
	var list []peer.ID
	for i := range n {
		list = append(list, peer.ID(fmt.Sprint("peer ", i)))
	}
	s := newSpread(closest)
	s.found("key", list)
	return list, s
}

func closestTo(list []peer.ID, key string) []peer.ID {
	return kb.SortClosestPeers(slices.Clone(list), kb.ConvertKey(key))
}

// announceBy sends a key's records as upstream does, to peers of its choice. It returns who
// got them.
func announceBy(s *spread, key string, chosen []peer.ID, dead map[peer.ID]bool) (got []peer.ID) {
	for _, id := range chosen {
		for range spreadTries {
			to, last := s.to(id, []byte(key))
			if to == "" {
				break
			}
			if dead[to] {
				s.fails(to)
				continue
			}
			if last {
				s.done([]byte(key))
			}
			got = append(got, to)
			break
		}
	}
	slices.Sort(got)
	return got
}

// Whichever peers upstream sends a record to, the closest get it, once, also the second
// time; and those after them if some of these have failed.
func TestSpread(t *testing.T) {
	for _, n := range []int{1, 20, 21, 39, 300} {
		list, s := spreadPeers(n)
		for i := range 50 {
			key := fmt.Sprint("key ", i)
			near := closestTo(list, key)
			dead := map[peer.ID]bool{}
			if n > 2*closest {
				dead[near[i%closest]], dead[near[i%7]] = true, true
			}
			want := slices.DeleteFunc(slices.Clone(near), func(id peer.ID) bool { return dead[id] })
			want = slices.Sorted(slices.Values(want[:min(len(want), closest)]))
			for turn := range 2 {
				chosen := slices.Clone(near[:min(n, 2*closest)])
				rand.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
				if got := announceBy(s, key, chosen[:min(n, closest)], dead); !slices.Equal(got, want) {
					t.Errorf("%d peers, key %d, turn %d: %d got it, and %d should have: %v, %v", n, i, turn, len(got), len(want), got, want)
				}
			}
			s.found(key, near[:min(n, closest)]) // they are back
		}
		if len(s.sent) != 0 {
			t.Errorf("%d peers: %d keys are still held", n, len(s.sent))
		}
	}
}

// Where upstream chooses the closest, nothing changes.
func TestSpreadLeavesTheClosest(t *testing.T) {
	list, s := spreadPeers(100)
	for _, id := range closestTo(list, "x")[:closest] {
		if to, _ := s.to(id, []byte("x")); to != id {
			t.Errorf("%s goes to %s", id, to)
		}
	}
}

// A lookup that does not find a peer it would have shows that the peer is gone.
func TestSpreadForgetsWhoIsGone(t *testing.T) {
	list, s := spreadPeers(100)
	near := closestTo(list, "x")
	s.found("x", append(slices.Clone(near[:3]), near[4:closest+1]...))
	if len(s.peers) != 99 || slices.ContainsFunc(s.peers, func(c candidate) bool { return c.id == near[3] }) {
		t.Errorf("%d peers are known", len(s.peers))
	}
}

// If nobody can be reached, upstream sees that with the peers of its choice.
func TestSpreadOfNobody(t *testing.T) {
	list, s := spreadPeers(100)
	for _, id := range list {
		s.fails(id)
	}
	for _, id := range list[:5] {
		if to, _ := s.to(id, []byte("x")); to != id {
			t.Errorf("%s goes to %q", id, to)
		}
	}
}

// What is remembered ends: peers, failures, and keys that too few were sent.
func TestSpreadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, s := spreadPeers(100)
		for i := range 2000 {
			s.to(list[0], fmt.Append(nil, i))
		}
		if len(s.sent)+len(s.before) != 2000 {
			t.Errorf("%d keys are held", len(s.sent)+len(s.before))
		}
		for i := range 2 {
			time.Sleep(spreadFor)
			s.to(list[0], fmt.Append(nil, "later ", i))
		}
		if held := len(s.sent) + len(s.before); held != 2 {
			t.Errorf("%d keys are held", held)
		}
		for i := range 3 * maxSpread {
			id := peer.ID(fmt.Sprint(i))
			if i%50 == 0 {
				s.found(string(id), []peer.ID{id})
			}
			s.fails(id)
		}
		if len(s.peers) > maxSpread+1 || len(s.failed) > maxSpread+1 {
			t.Errorf("%d peers are known, %d as failed", len(s.peers), len(s.failed))
		}
	})
}

// BenchmarkSpread is the choice of a peer for one message.
func BenchmarkSpread(b *testing.B) {
	list, s := spreadPeers(1000)
	key := []byte("a key of some thirty-four bytes...")
	near := closestTo(list, string(key))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, last := s.to(near[i%40], key); last {
			s.done(key)
		}
	}
}

// A network with few peers is one for as long as a lookup is recent: it may grow.
func TestSpreadKnowsAFewPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		list, _ := spreadPeers(closest)
		s := newSpread(closest)
		for _, step := range []struct {
			found      int // by a lookup; none if negative
			wait       time.Duration
			few, known bool
		}{
			{-1, 0, true, false},
			{3, 0, true, true},
			{-1, foundFor - 1, true, true},
			{-1, 1, true, false},
			{closest, 0, false, true},
			{-1, 24 * time.Hour, false, true},
			{closest - 1, 0, true, true},
		} {
			if step.found >= 0 {
				s.found("key", list[:step.found])
			}
			time.Sleep(step.wait)
			if few, known := s.few(); few != step.few || known != step.known {
				t.Errorf("%+v: few %v, known %v", step, few, known)
			}
		}
	})
}
