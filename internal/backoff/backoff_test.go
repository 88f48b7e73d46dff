package backoff

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestStepsDoubleUpToMax(t *testing.T) {
	top := Backoff{Min: time.Second, Max: 30 * time.Second, Rand: func() float64 { return 1 }}
	bottom := Backoff{Min: time.Second, Max: 30 * time.Second, Rand: func() float64 { return 0 }}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		want *= time.Second
		if got := top.Next(); got != want {
			t.Errorf("step %d: at most %v, want %v", i, got, want)
		}
		if got := bottom.Next(); got != want/2 {
			t.Errorf("step %d: at least %v, want %v", i, got, want/2)
		}
	}
	top.Reset()
	if got := top.Next(); got != time.Second {
		t.Errorf("after Reset %v", got)
	}
}

func TestDelaysStayWithinTheirStep(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		low := time.Duration(1 + r.Int64N(int64(time.Minute)))
		b := Backoff{Min: low, Max: low + time.Duration(r.Int64N(int64(time.Hour))), Rand: r.Float64}
		for step := low; ; step = min(2*step, b.Max) {
			if d := b.Next(); d < step/2 || d > step {
				t.Fatalf("seed %d: %v is not within [%v, %v]", seed, d, step/2, step)
			}
			if step == b.Max {
				break
			}
		}
	}
}

func TestHugeStepsDoNotOverflow(t *testing.T) {
	const max = time.Duration(1<<63 - 1)
	b := Backoff{Min: max / 3, Max: max}
	for range 10 {
		if d := b.Next(); d <= 0 {
			t.Fatalf("delay %v", d)
		}
	}
}

func TestZeroRandIsRandom(t *testing.T) {
	b := Backoff{Min: time.Hour, Max: time.Hour}
	first := b.Next()
	for range 100 {
		if b.Next() != first {
			return
		}
	}
	t.Error("a hundred equal delays")
}
