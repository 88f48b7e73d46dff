package ring

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueKeepsOrderAcrossGrowth(t *testing.T) {
	q := New[int](100)
	next := 0
	for i := range 70 {
		if q.Push(i) > 0 {
			t.Fatalf("element %d dropped another: the queue was not full", i)
		}
		if i%3 == 0 { // so that the head moves before the buffer grows
			if v, _, ok := q.Pop(); !ok || v != next {
				t.Fatalf("Pop = %d, %t; want %d", v, ok, next)
			}
			next++
		}
	}
	for q.Len() > 0 {
		if v, lost, ok := q.Pop(); !ok || v != next || lost != 0 {
			t.Fatalf("Pop = %d, %d lost, %t; want %d", v, lost, ok, next)
		}
		next++
	}
	if next != 70 {
		t.Fatalf("popped %d elements of 70", next)
	}
}

func TestQueueTellsOnceHowManyWereDropped(t *testing.T) {
	q := New[int](4)
	dropped := 0
	for i := range 10 {
		dropped += q.Push(i)
	}
	if dropped != 6 {
		t.Fatalf("%d drops reported to the writer, want 6", dropped)
	}
	if v, lost, _ := q.Pop(); v != 6 || lost != 6 {
		t.Fatalf("first Pop = %d after %d lost, want 6 after 6", v, lost)
	}
	if v, lost, _ := q.Pop(); v != 7 || lost != 0 {
		t.Fatalf("second Pop = %d after %d lost, want 7 after 0", v, lost)
	}
}

func TestQueueWakesEveryReader(t *testing.T) {
	const readers, each = 4, 100
	q := New[int](readers * each)
	var wg sync.WaitGroup
	taken := make(chan int, readers*each)
	done := make(chan struct{})
	for range readers {
		wg.Go(func() {
			for {
				select {
				case <-q.Wake():
				case <-done:
					return
				}
				for {
					v, _, ok := q.Pop()
					if !ok {
						break
					}
					taken <- v
				}
			}
		})
	}
	for i := range readers * each {
		q.Push(i)
	}
	seen := make(map[int]bool)
	for len(seen) < readers*each {
		v := <-taken
		if seen[v] {
			t.Fatalf("%d was delivered twice", v)
		}
		seen[v] = true
	}
	close(done)
	wg.Wait()
}

func FuzzQueue(f *testing.F) {
	f.Add(uint8(3), []byte{1, 1, 1, 0, 1, 1, 0, 0})
	f.Fuzz(func(t *testing.T, capacity uint8, ops []byte) {
		size := max(int(capacity), 1)
		q := New[int](size)
		var want []int
		var lost uint64
		for i, op := range ops {
			if op%2 == 1 {
				full := len(want) == size
				if full {
					want = want[1:]
					lost++
				}
				want = append(want, i)
				if q.Push(i) > 0 != full {
					t.Fatalf("op %d: Push dropped = %t with %d of %d queued", i, !full, len(want), size)
				}
				continue
			}
			v, l, ok := q.Pop()
			if ok != (len(want) > 0) {
				t.Fatalf("op %d: Pop ok = %t with %d queued", i, ok, len(want))
			}
			if !ok {
				continue
			}
			if v != want[0] || l != lost {
				t.Fatalf("op %d: Pop = %d after %d lost, want %d after %d", i, v, l, want[0], lost)
			}
			want, lost = want[1:], 0
		}
	})
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	total := NewBudget(100)
	size := func(n int) int64 { return int64(n) }
	a, b := NewSized(10, 60, total, size), NewSized(10, 60, total, size)
	for range 3 {
		if n := a.Push(20); n != 0 {
			t.Fatalf("%d dropped within the limit", n)
		}
	}
	if n := a.Push(25); n != 2 || a.Len() != 2 || total.Used() != 45 {
		t.Errorf("%d dropped for 25 bytes, %d left, %d bytes in all", n, a.Len(), total.Used())
	}
	if n := b.Push(56); n != 1 || b.Len() != 0 || total.Used() != 45 {
		t.Errorf("beyond the total: %d dropped, %d left, %d bytes in all", n, b.Len(), total.Used())
	}
	if n := b.Push(55); n != 0 || total.Used() != 100 {
		t.Errorf("%d dropped, %d bytes in all", n, total.Used())
	}
	if n := b.Push(54); n != 1 || b.Len() != 1 || total.Used() != 99 {
		t.Errorf("the own oldest makes room: %d dropped, %d left, %d bytes in all", n, b.Len(), total.Used())
	}
	if v, lost, ok := b.Pop(); v != 54 || lost != 2 || !ok {
		t.Errorf("Pop = %d, %d lost, %t", v, lost, ok)
	}
	a.Close()
	if a.Len() != 0 || total.Used() != 0 || a.Push(1) != 0 || a.Len() != 0 {
		t.Errorf("closed: %d left, %d bytes in all", a.Len(), total.Used())
	}
	// A single element above the limit is taken.
	if n := NewSized(10, 5, nil, size).Push(50); n != 0 {
		t.Error("a large element is dropped from an empty queue")
	}
}

func TestQueueDropsTheNewestAndSaysWhere(t *testing.T) {
	q := New[int](2)
	q.WhenFull(DropNewest, 0, nil)
	for i := range 4 {
		if dropped := q.Push(i); dropped != max(0, min(1, i-1)) {
			t.Errorf("element %d: %d dropped", i, dropped)
		}
	}
	want := func(v int, lost uint64) {
		t.Helper()
		if got, l, ok := q.Pop(); got != v || l != lost || !ok {
			t.Errorf("Pop = %d after %d lost, %t; want %d after %d", got, l, ok, v, lost)
		}
	}
	want(0, 0)
	q.Push(4) // the two that were dropped came before it
	want(1, 0)
	want(4, 2)
}

func TestQueueElementsWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		expired := 0
		total := NewBudget(7)
		q := NewSized(2, 6, total, func(int) int64 { return 1 })
		q.WhenFull(Wait, time.Second, func() { expired++ })
		want := func(v int, lost uint64) {
			t.Helper()
			if got, l, ok := q.Pop(); got != v || l != lost || !ok {
				t.Errorf("Pop = %d after %d lost, %t; want %d after %d", got, l, ok, v, lost)
			}
		}
		for i := range 4 { // 2 and 3 wait
			if q.Push(i) != 0 {
				t.Errorf("element %d was dropped", i)
			}
		}
		if q.Len() != 2 {
			t.Errorf("%d queued", q.Len())
		}
		time.Sleep(time.Second)
		want(0, 0) // 2 gets its place just in time
		q.Push(4)
		time.Sleep(time.Millisecond)
		want(1, 0) // 3 has waited for too long, 4 gets the place
		if expired != 1 {
			t.Errorf("%d expired", expired)
		}
		want(2, 0)
		want(4, 1)
		for i := range 7 {
			if dropped := q.Push(i); dropped != i/6 { // the seventh exceeds the bytes
				t.Errorf("element %d: %d dropped", i, dropped)
			}
		}
		time.Sleep(2 * time.Second)
		want(0, 0)
		want(1, 0)
		q.Push(9)
		want(9, 5) // four that have waited, and the seventh
		if total.Used() != 0 {
			t.Errorf("%d bytes are held", total.Used())
		}
		q.Push(1)
		q.Close()
		if _, _, ok := q.Pop(); ok || total.Used() != 0 {
			t.Error("closed, the queue holds something")
		}
	})
}
