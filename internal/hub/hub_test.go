package hub

import (
	"slices"
	"sync"
	"testing"
)

// change is the addition or removal of a number.
type change struct {
	number int
	here   bool
}

func newHub(capacity int) *Hub[change] {
	return New(capacity, func(c change) (any, bool) {
		if c.number == 0 {
			return nil, false // about no state
		}
		return c.number, c.here
	})
}

// read returns the values that have already arrived.
func read(s *Sub[change], n int) (list []change, lost uint64) {
	for range n {
		ev, missing, ok := s.Next(nil, nil)
		if !ok {
			break
		}
		list, lost = append(list, ev), lost+missing
	}
	return list, lost
}

func TestHubBeginsWithTheState(t *testing.T) {
	h := newHub(8)
	for _, c := range []change{{1, true}, {0, true}, {2, true}, {3, true}, {2, false}, {4, true}, {1, true}} {
		h.Emit(c)
	}
	h.Forget(func(c change) bool { return c.number == 4 })
	from, state := h.Subscribe(false), h.Subscribe(true)
	h.Emit(change{3, false})
	if got, lost := read(state, 3); !slices.Equal(got, []change{{3, true}, {1, true}, {3, false}}) || lost != 0 {
		t.Errorf("with the state: %v, %d lost", got, lost)
	}
	if got, _ := read(from, 1); !slices.Equal(got, []change{{3, false}}) {
		t.Errorf("from now on: %v", got)
	}
	from.Close()
	from.Close()
	if got, _ := read(from, 1); len(got) != 0 || h.Subscribers() != 1 {
		t.Errorf("after Close: %v, and %d subscribers", got, h.Subscribers())
	}
}

func TestHubSlowSubscriber(t *testing.T) {
	h := newHub(4)
	s := h.Subscribe(false)
	for i := range 10 {
		h.Emit(change{i, true})
	}
	if got, lost := read(s, 4); len(got) != 4 || got[0].number != 6 || lost != 6 {
		t.Errorf("%v, %d lost", got, lost)
	}
}

// What a subscriber adds up is the state, whenever it begins.
func TestHubMissesNothingAndDoublesNothing(t *testing.T) {
	h := newHub(10_000)
	stop := make(chan struct{})
	var writer, readers sync.WaitGroup
	writer.Go(func() {
		for i := range 2000 {
			h.Emit(change{1 + i%7, i/7%2 == 0})
		}
	})
	for range 4 {
		readers.Go(func() {
			s := h.Subscribe(true)
			defer s.Close()
			here := make(map[int]bool)
			for {
				ev, lost, ok := s.Next(stop, nil)
				if !ok {
					return
				}
				if lost > 0 || here[ev.number] == ev.here {
					t.Errorf("%+v, while it is %t; %d lost", ev, here[ev.number], lost)
				}
				here[ev.number] = ev.here
			}
		})
	}
	writer.Wait()
	close(stop)
	readers.Wait()
}
