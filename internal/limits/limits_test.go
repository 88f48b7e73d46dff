package limits

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/errs"

	"github.com/go-p2pnode/p2pnode/internal/golden"
)

// limitedFor returns a manager with limits, its log and its reports.
func limitedFor(t *testing.T, l Limits) (m *Manager, text *bytes.Buffer, reached *[]string) {
	t.Helper()
	text, reached = new(bytes.Buffer), new([]string)
	m, err := New(Config{
		Limits: l, ConnHigh: 2, Log: slog.New(slog.NewTextHandler(text, nil)),
		Reached: func(limit string, _ uint64) { *reached = append(*reached, limit) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, text, reached
}

func mustNot(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// byLimit are the counts that are not zero.
func byLimit(c Counts) map[string]uint64 {
	counts := make(map[string]uint64)
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if n := v.Field(i).Uint(); n > 0 {
			counts[v.Type().Field(i).Name] = n
		}
	}
	return counts
}

// TestPitfall40EachLimitHoldsAndIsNamed checks that exactly the limit is admitted,
// in either direction, although the resource manager has other limits.
func TestPitfall40EachLimitHoldsAndIsNamed(t *testing.T) {
	id := peer.ID("somebody")
	connFrom := func(m network.ResourceManager, dir network.Direction, host int, owner peer.ID) error {
		addr := ma.StringCast(fmt.Sprintf("/ip4/8.8.%d.%d/udp/1/quic-v1", host/250, host%250+1))
		s, err := m.OpenConnection(dir, false, addr)
		if err != nil || owner == "" {
			return err
		}
		return s.SetPeer(owner)
	}
	stream := func(m network.ResourceManager, dir network.Direction, owner peer.ID) error {
		s, err := m.OpenStream(owner, dir)
		if err != nil {
			return err
		}
		return s.SetProtocol("/app")
	}
	for _, c := range []struct {
		field  string
		limits Limits
		want   int
		open   func(m network.ResourceManager, dir network.Direction, i int) error
	}{
		{"Conns", Limits{Conns: 5000}, 5000, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, i, peer.ID(fmt.Sprint("peer", i)))
		}},
		{"Conns", Limits{Conns: 20_000}, 10_000, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, i, "") // all in their handshakes
		}},
		{"ConnsPerPeer", Limits{ConnsPerPeer: 50}, 50, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, i, id)
		}},
		{"ConnsPerPeer", Limits{ConnsPerPeer: 2}, 2, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, i, id)
		}},
		{"ConnsPerIP", Limits{ConnsPerIP: 20}, 20, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, 7, peer.ID(fmt.Sprint("peer", i)))
		}},
		{"ConnRatePerIP", Limits{Conns: 10_000, ConnsPerIP: 10_000, ConnRatePerIP: 100}, 400, func(m network.ResourceManager, dir network.Direction, i int) error {
			return connFrom(m, dir, 7, peer.ID(fmt.Sprint("peer", i)))
		}},
		{"Streams", Limits{Streams: 90_000}, 90_000, func(m network.ResourceManager, dir network.Direction, i int) error {
			return stream(m, dir, peer.ID(fmt.Sprint("peer", i/50)))
		}},
		{"StreamsPerPeer", Limits{StreamsPerPeer: 9000, Streams: 100_000}, 9000, func(m network.ResourceManager, dir network.Direction, _ int) error {
			return stream(m, dir, id)
		}},
		{"StreamsPerPeer", Limits{StreamsPerPeer: 9000}, 9000, func(m network.ResourceManager, dir network.Direction, _ int) error {
			return stream(m, dir, id)
		}},
		{"StreamsPerPeer", Limits{}, DefaultStreamsPerPeer, func(m network.ResourceManager, dir network.Direction, _ int) error {
			return stream(m, dir, id)
		}},
		{"StreamsPerPeer", Limits{StreamsPerPeer: 500}, 500, func(m network.ResourceManager, dir network.Direction, _ int) error {
			_, err := m.OpenStream(id, dir) // all of them negotiate
			return err
		}},
		{"StreamsPerPeer", Limits{StreamsPerPeer: 16}, 16, func(m network.ResourceManager, dir network.Direction, _ int) error {
			return stream(m, dir, id)
		}},
	} {
		for _, dir := range []network.Direction{network.DirInbound, network.DirOutbound} {
			synctest.Test(t, func(t *testing.T) { // no time passes, which the rate would count
				m, text, reached := limitedFor(t, c.limits)
				var err error
				n := 0
				for err == nil && n <= c.want {
					if err = c.open(m, dir, n); err == nil {
						n++
					}
				}
				if n != c.want {
					t.Errorf("%+v, %s: %d are let through", c.limits, dir, n)
				}
				if !errors.Is(err, errs.ErrLimit) || !strings.Contains(err.Error(), "WithLimits(Limits{"+c.field+": …})") {
					t.Errorf("%+v, %s: %v", c.limits, dir, err)
				}
				_ = c.open(m, dir, n)
				if got := byLimit(m.Counts()); len(got) != 1 || got[c.field] != 2 || m.Counts().Total() != 2 {
					t.Errorf("%+v, %s: %v are counted", c.limits, dir, got)
				}
				if strings.Count(text.String(), "level=WARN") != 1 {
					t.Errorf("%+v, %s: the log has %q", c.limits, dir, text)
				}
				if !slices.Equal(*reached, []string{c.field}) || m.LastRefusal().IsZero() {
					t.Errorf("%+v, %s: %q is reported", c.limits, dir, *reached)
				}
			})
		}
	}
}

func TestMemoryLimitIsThatOfTheSystem(t *testing.T) {
	m, _, _ := limitedFor(t, Limits{Memory: 1 << 40})
	mustNot(t, m.ViewSystem(func(s network.ResourceScope) error {
		if l, ok := s.(rcmgr.ResourceScopeLimiter); !ok || l.Limit().GetMemoryLimit() != 1<<40 {
			t.Errorf("a %T with the limit %v", s, l)
		}
		return nil
	}))
}

// TestErrorsThatAreNoLimitsStayAsTheyAre.
func TestErrorsThatAreNoLimitsStayAsTheyAre(t *testing.T) {
	m, _, _ := limitedFor(t, Limits{Streams: 200})
	s, err := m.OpenStream("somebody", network.DirOutbound)
	mustNot(t, err)
	if err := s.SetService("app"); err == nil || strings.Contains(err.Error(), "WithLimits") {
		t.Errorf("a service before a protocol: %v", err)
	}
	mustNot(t, s.SetProtocol("/app"))
	if err := s.SetProtocol("/app"); err == nil || strings.Contains(err.Error(), "WithLimits") {
		t.Errorf("a second protocol: %v", err)
	}
	if n := m.Counts().Total(); n != 0 {
		t.Errorf("%d refusals are counted", n)
	}
	// What no option can raise names none.
	for text, field := range map[string]string{
		"system: cannot reserve file descriptor: %w":            "Files",
		"service:libp2p.ping: cannot reserve stream: %w":        "Services",
		"service:x.peer:abc: cannot reserve inbound stream: %w": "Services",
	} {
		before := byLimit(m.Counts())[field]
		err := m.c.explain(fmt.Errorf(text, network.ErrResourceLimitExceeded), true)
		if !errors.Is(err, network.ErrResourceLimitExceeded) || strings.Contains(err.Error(), "WithLimits") || byLimit(m.Counts())[field] != before+1 {
			t.Errorf("%v, and %v are counted", err, byLimit(m.Counts()))
		}
	}
	if state, ok := any(m).(rcmgr.ResourceManagerState); !ok || state.Stat().System.NumStreamsOutbound != 1 {
		t.Errorf("a %T does not tell its state", m)
	}
}

// The texts of each limit, after those of the resource manager.
func TestGoldenLimits(t *testing.T) {
	m, _, _ := limitedFor(t, Limits{})
	refused := func(scope string, conn bool) error {
		return m.c.explain(fmt.Errorf("%s: %w", scope, network.ErrResourceLimitExceeded), conn)
	}
	golden.Check(t, "limits", []golden.Text{
		golden.Of("Conns", refused("transient", true)),
		golden.Of("ConnsPerPeer", refused("peer:abc", true)),
		golden.Of("ConnsPerIP", m.c.explain(errors.New("connections per ip limit exceeded for /ip4/192.0.2.1/tcp/1"), true)),
		golden.Of("ConnRatePerIP", m.c.explain(errors.New("rate limit exceeded"), true)),
		golden.Of("Streams", refused("system", false)),
		golden.Of("StreamsPerPeer", refused("peer:abc", false)),
		golden.Of("Memory", Explain(m.ViewSystem(func(s network.ResourceScope) error {
			return s.(network.ResourceScopeSpan).ReserveMemory(math.MaxInt, network.ReservationPriorityAlways)
		}))),
		golden.Of("files", refused("system: cannot reserve file descriptor", true)),
		golden.Of("services", refused("service:libp2p.ping", false)),
	})
}

// Each connection that ends in its handshake counts, whatever its address; one
// whose peer is known does not, however it ends (two dials of one peer leave
// from the same port).
func TestHandshakesCountByConnection(t *testing.T) {
	m, _, _ := limitedFor(t, Limits{Conns: 100})
	addr := ma.StringCast("/ip4/127.0.0.1/tcp/4001")
	for range 3 {
		known, err := m.OpenConnection(network.DirInbound, true, addr)
		mustNot(t, err)
		stranger, err := m.OpenConnection(network.DirInbound, true, addr)
		mustNot(t, err)
		own, err := m.OpenConnection(network.DirOutbound, true, addr)
		mustNot(t, err)
		mustNot(t, known.SetPeer("somebody"))
		for _, s := range []network.ConnManagementScope{known, stranger, own, stranger} {
			s.Done()
		}
	}
	if h := m.Handshakes(); h.Failed != 3 || h.Last.IsZero() {
		t.Errorf("%+v, want 3 failed", h)
	}
}

// A yamux stream reserves its window: as many as a peer may have must fit into
// the memory of a peer, and of the node when the field is raised.
func TestStreamsPerPeerMakesRoomInMemory(t *testing.T) {
	const raised = 40_000 // whose windows are more than this machine's default
	for _, c := range []struct {
		limits Limits
		want   int
	}{
		{Limits{}, 1000},
		{Limits{StreamsPerPeer: raised}, raised},
		{Limits{StreamsPerPeer: raised, Memory: 256 << 20}, 1024}, // which is set, and holds
	} {
		m, _, _ := limitedFor(t, c.limits)
		conn, err := m.OpenConnection(network.DirInbound, false, ma.StringCast("/ip4/8.8.8.8/tcp/1"))
		mustNot(t, err)
		mustNot(t, conn.SetPeer("somebody"))
		opened := 0
		for err == nil && opened < c.want+1 {
			var span network.ResourceScopeSpan
			if span, err = conn.PeerScope().BeginSpan(); err == nil {
				err = span.ReserveMemory(streamWindow, network.ReservationPriorityAlways)
			}
			if err == nil {
				opened++
			}
		}
		if opened < c.want || c.limits.Memory > 0 && opened > c.want {
			t.Errorf("%+v: %d streams have memory, then %v", c.limits, opened, err)
		}
		conn.Done()
	}
}

// Connections over TCP are files: a raised number of them makes room for those,
// as far as the process may open files.
func TestConnsMakeRoomForFiles(t *testing.T) {
	partial := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{FD: 300}, Transient: rcmgr.ResourceLimits{FD: 64}, PeerDefault: rcmgr.ResourceLimits{FD: 4},
	}
	(Limits{Conns: 500, ConnsPerPeer: 1000}).applyTo(&partial, true)
	if partial.System.FD != 300 || partial.Transient.FD != 250 || partial.PeerDefault.FD != 300 {
		t.Errorf("%+v", partial)
	}
}

// On the public network the number of streams of a peer stays as libp2p has it.
func TestStreamsPerPeerOnThePublicNetwork(t *testing.T) {
	for l, want := range map[Limits]int{{}: 0, {StreamsPerPeer: 300}: 300} {
		if got := l.PeerStreams(true); got != want {
			t.Errorf("%+v: %d", l, got)
		}
	}
	partial := rcmgr.PartialLimitConfig{PeerDefault: rcmgr.ResourceLimits{Streams: 512, StreamsInbound: 256}}
	before := partial
	(Limits{}).applyTo(&partial, true)
	if !reflect.DeepEqual(partial, before) {
		t.Errorf("%+v became %+v", before, partial)
	}
}

// Connections through one relay do not count for its address: a node can have as many
// as its other limits let it, and dial as often as it wants.
func TestRelayedConnectionsAreNotThoseOfTheRelaysAddress(t *testing.T) {
	for _, public := range []bool{false, true} {
		relayedConnections(t, public)
	}
}

func relayedConnections(t *testing.T, public bool) {
	m, err := New(Config{ConnHigh: 192, Public: public, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const relay = "/ip4/5.3.0.2/tcp/4001/p2p/12D3KooWDcwV3DErwJbXJ9PqKjGwUibMALJQqzgncvFee5HbFp18"
	direct := 0
	for range 32 {
		for addr, n := range map[string]*int{relay: &direct, relay + "/p2p-circuit": nil} {
			s, err := m.OpenConnection(network.DirOutbound, false, ma.StringCast(addr))
			switch {
			case err == nil:
				defer s.Done()
				if n != nil {
					*n++
				}
			case n == nil:
				t.Fatalf("a relayed connection: %v", err)
			}
		}
	}
	if direct >= 32 {
		t.Error("direct connections are not bounded by address: the test shows nothing")
	}
	for i := range 500 {
		s, err := m.OpenConnection(network.DirOutbound, false, ma.StringCast(relay+"/p2p-circuit"))
		if err != nil {
			t.Fatalf("dial %d through a relay: %v", i, err)
		}
		s.Done()
	}
}
