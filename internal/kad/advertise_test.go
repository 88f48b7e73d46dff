package kad

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/go-p2pnode/p2pnode/internal/lifecycle"
	"github.com/go-p2pnode/p2pnode/internal/signal"
)

// When there are peers again, everything is announced, but for what has just been.
func TestAdvertsHurryWhenThereArePeersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &DHT{cfg: Config{Recovered: new(signal.Signal), Changed: new(signal.Signal)}, group: lifecycle.NewGroup(t.Context())}
		a := newAdverts(d)
		d.adverts, a.runs = a, true
		d.group.Go(a.run)
		now := time.Now()
		for name, held := range map[string]time.Time{"just": now.Add(-10 * time.Second), "earlier": now.Add(-10 * time.Minute), "not": {}} {
			ad := a.add(name, now.Add(time.Hour), 1, stay) // with a call, run leaves it alone
			ad.held = held
		}
		synctest.Wait()
		d.cfg.Recovered.Notify()
		synctest.Wait()
		for name, want := range map[string]time.Duration{"just": advertisePause - 10*time.Second, "earlier": 0, "not": 0} {
			if got := a.kept[name].next.Sub(now); got != want {
				t.Errorf("%q is announced after %v, want %v", name, got, want)
			}
		}
		if err := d.group.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The interval stays below the lifetime of the records.
func TestAdvertiseInterval(t *testing.T) {
	for lifetime, want := range map[time.Duration]time.Duration{0: 3 * time.Hour, time.Hour: 30 * time.Minute, 48 * time.Hour: 3 * time.Hour} {
		if got := (&Config{Lifetime: lifetime}).advertiseInterval(); got != want {
			t.Errorf("records last %v: %v, want %v", lifetime, got, want)
		}
	}
}

// The peers that were found are remembered up to a bound, the latest longest.
func TestSightingsAreBounded(t *testing.T) {
	m := &sightings{has: make(map[peer.ID]bool), max: 3}
	for _, id := range []peer.ID{"a", "b", "a", "c", "d", "e", "d"} {
		m.add(id)
	}
	if len(m.has) != 3 || len(m.order) != 3 || !m.has["c"] || !m.has["d"] || !m.has["e"] {
		t.Errorf("it remembers %v", m.has)
	}
}
