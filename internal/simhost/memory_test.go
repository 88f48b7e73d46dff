package simhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	ttransport "github.com/libp2p/go-libp2p/p2p/transport/testsuite"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/go-p2pnode/p2pnode/internal/needs"
)

// newNet returns a network with a single latency, which closes when the test
// ends.
func newNet(tb testing.TB, latency time.Duration) *Network {
	tb.Helper()
	n := New(1, func(Site, Site) time.Duration { return latency })
	tb.Cleanup(n.Close)
	return n
}

func newTransport(tb testing.TB, n *Network) *memTransport {
	tb.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return &memTransport{m: n.NewMachine(), id: id, key: key.GetPublic(), limits: &network.NullResourceManager{}}
}

// TestMemoryTransportIsATransport runs libp2p's own suite for transports. The
// deadlines of its stress tests are virtual, so they measure the transport and
// not the machine.
func TestMemoryTransportIsATransport(t *testing.T) {
	needs.Time(t)
	for _, subtest := range ttransport.Subtests {
		name := runtime.FuncForPC(reflect.ValueOf(subtest).Pointer()).Name()
		t.Run(name[strings.LastIndex(name, ".")+1:], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, 100*time.Microsecond)
				a, b := newTransport(t, n), newTransport(t, n)
				subtest(t, a, b, ma.StringCast("/ip4/"+a.m.IP().String()+"/udp/0/quic-v1"), a.id)
			})
		})
	}
}

// connect returns both ends of a connection.
func connect(tb testing.TB, n *Network) (dialed, accepted transport.CapableConn, a, b *memTransport) {
	tb.Helper()
	a, b = newTransport(tb, n), newTransport(tb, n)
	l, err := b.Listen(ma.StringCast(b.m.ListenAddr()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	dialed, err = a.Dial(context.Background(), l.Multiaddr(), b.id)
	if err != nil {
		tb.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed, accepted, a, b
}

func streams(tb testing.TB, c, d transport.CapableConn) (network.MuxedStream, network.MuxedStream) {
	tb.Helper()
	s, err := c.OpenStream(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Write([]byte("!")); err != nil {
		tb.Fatal(err)
	}
	r, err := d.AcceptStream()
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		tb.Fatal(err)
	}
	return s, r
}

func TestMemoryTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency = 30 * time.Millisecond
		n := newNet(t, latency)
		begun := time.Now()
		c, d, _, _ := connect(t, n)
		if took := time.Since(begun); took != 3*latency {
			t.Errorf("accepted after %v, want three halves of a round trip", took)
		}
		begun = time.Now()
		s, r := streams(t, c, d)
		if took := time.Since(begun); took != latency {
			t.Errorf("the first byte came after %v", took)
		}
		begun = time.Now()
		s.Write([]byte("a"))
		time.Sleep(latency / 3)
		s.Write([]byte("b"))
		b := make([]byte, 10)
		if k, err := r.Read(b); k != 1 || err != nil || time.Since(begun) != latency {
			t.Errorf("%d bytes, %v after %v", k, err, time.Since(begun))
		}
		if k, err := r.Read(b); k != 1 || err != nil || time.Since(begun) != latency+latency/3 {
			t.Errorf("%d bytes, %v after %v", k, err, time.Since(begun))
		}
		s.CloseWrite()
		if _, err := r.Read(b); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestMemoryResetReachesBothDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, time.Millisecond)
		c, d, _, _ := connect(t, n)
		s, r := streams(t, c, d)
		s.Write([]byte("never read"))
		s.ResetWithError(7)
		_, readErr := io.ReadAll(r)
		time.Sleep(time.Millisecond)
		_, writeErr := r.Write([]byte("x"))
		for _, err := range []error{readErr, writeErr} {
			var se *network.StreamError
			if !errors.As(err, &se) || se.ErrorCode != 7 || !se.Remote || !errors.Is(err, network.ErrReset) {
				t.Errorf("the other end sees %v", err)
			}
		}
	})
}

func TestMemoryWriterWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, time.Millisecond)
		c, d, _, _ := connect(t, n)
		s, r := streams(t, c, d)
		s.SetWriteDeadline(time.Now().Add(time.Second))
		k, err := s.Write(make([]byte, 2*memWindow))
		if k != memWindow || err == nil {
			t.Fatalf("wrote %d bytes without a reader: %v; the window has %d", k, err, memWindow)
		}
		s.SetWriteDeadline(time.Time{})
		done := make(chan error, 1)
		want := bytes.Repeat([]byte("z"), 3*memWindow)
		go func() {
			_, err := s.Write(want)
			s.CloseWrite()
			done <- err
		}()
		got, err := io.ReadAll(r)
		if err != nil || len(got) != memWindow+len(want) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestMemoryCutHoldsDataAndHealingDeliversIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, b := connect(t, n)
		s, r := streams(t, c, d)
		n.Partition([]*Machine{a.m}, []*Machine{b.m})
		s.Write([]byte("late"))
		r.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := r.Read(make([]byte, 9)); err == nil {
			t.Error("data crossed the cut")
		}
		n.Heal()
		r.SetReadDeadline(time.Time{})
		b9 := make([]byte, 9)
		if k, err := r.Read(b9); err != nil || string(b9[:k]) != "late" {
			t.Errorf("after healing: %q, %v", b9[:k], err)
		}
		n.Partition([]*Machine{a.m}, []*Machine{b.m})
		begun := time.Now()
		if _, err := r.Read(b9); err == nil || time.Since(begun) != idleTimeout {
			t.Errorf("%v after %v, want a timeout after %v", err, time.Since(begun), idleTimeout)
		}
		if !c.IsClosed() || !d.IsClosed() {
			t.Error("a connection outlives the cut")
		}
	})
}

func TestMemoryClosedDuringACutIsResetAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, _ := connect(t, n)
		a.m.Down()
		c.Close()
		time.Sleep(5 * time.Second)
		if d.IsClosed() {
			t.Fatal("the goodbye crossed the cut")
		}
		a.m.Up()
		time.Sleep(time.Second)
		if !d.IsClosed() {
			t.Error("the other end still thinks that it is connected")
		}
	})
}

func TestMemoryDialErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a, b := newTransport(t, n), newTransport(t, n)
		addr := ma.StringCast(b.m.ListenAddr())
		silent := func(what string) {
			t.Helper()
			begun := time.Now()
			if _, err := a.Dial(t.Context(), addr, b.id); err == nil || time.Since(begun) != handshakeTimeout {
				t.Errorf("%s: %v after %v, want silence for %v", what, err, time.Since(begun), handshakeTimeout)
			}
		}
		silent("nobody listens")
		l, err := b.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listen(addr); err == nil {
			t.Error("the port is bound twice")
		}
		b.m.Down()
		silent("cut off")
		b.m.Up()
		var wrong sec.ErrPeerIDMismatch
		if _, err := a.Dial(t.Context(), addr, a.id); !errors.As(err, &wrong) {
			t.Errorf("another peer's ID: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := a.Dial(ctx, addr, b.id); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller gave up: %v", err)
		}
		l.Close()
		silent("closed")
	})
}

func TestMemoryLossDelaysAndKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, _ := connect(t, n)
		s, r := streams(t, c, d)
		a.m.SetLink(Link{Loss: 0.3})
		begun := time.Now()
		var want []byte
		for i := range 200 {
			s.Write([]byte{byte(i)})
			want = append(want, byte(i))
		}
		s.CloseWrite()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if time.Since(begun) < 50*time.Millisecond {
			t.Errorf("nothing was delayed: %v", time.Since(begun))
		}
	})
}

// Data in flight when a machine goes down never arrives, and neither does what it
// sends later: its connections fall silent, as after a crash.
func TestMemoryCrashIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, _ := connect(t, n)
		s, r := streams(t, c, d)
		quiet, _ := streams(t, c, d)
		s.Write([]byte("under way"))
		a.m.Down()
		s.Write([]byte("never sent"))
		quiet.Reset()
		c.Close()
		begun := time.Now()
		r.SetReadDeadline(begun.Add(20 * time.Second))
		if k, err := r.Read(make([]byte, 99)); k != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes of a crashed machine arrive, %v", k, err)
		}
		r.SetReadDeadline(time.Time{})
		_, err := r.Read(make([]byte, 99))
		if took := time.Since(begun); !errors.Is(err, os.ErrDeadlineExceeded) || took != idleTimeout {
			t.Errorf("%v after %v, want a timeout after %v", err, took, idleTimeout)
		}
	})
}

// A machine that is up again within the timeout answers with a reset, and has
// dropped the data that it had to send.
func TestMemoryCrashedMachineThatIsBackResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, _ := connect(t, n)
		s, r := streams(t, c, d)
		a.m.Down()
		s.Write([]byte("never sent"))
		c.Close()
		time.Sleep(5 * time.Second)
		a.m.Up()
		begun := time.Now()
		k, err := r.Read(make([]byte, 99))
		var reset *network.ConnError
		if k != 0 || !errors.As(err, &reset) || !reset.Remote || time.Since(begun) != 20*time.Millisecond {
			t.Errorf("%d bytes, %v after %v", k, err, time.Since(begun))
		}
	})
}

// A direction that loses all packets ends connections like a cut.
func TestMemoryDeadDirectionIsACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		c, d, a, b := connect(t, n)
		n.SetPath(a.m, b.m, Path{Loss: 1})
		time.Sleep(idleTimeout - 1)
		if c.IsClosed() || d.IsClosed() {
			t.Error("the loss is noticed before the timeout")
		}
		time.Sleep(2 * time.Nanosecond)
		if !c.IsClosed() || !d.IsClosed() {
			t.Error("a connection outlives its path")
		}
	})
}

func TestMemoryNeighbors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 10*time.Millisecond)
		a := newTransport(t, n)
		b, c := newTransport(t, n), newTransport(t, n)
		c.m = b.m.NewNeighbor()
		for _, x := range []*memTransport{b, c} {
			l, err := x.Listen(ma.StringCast(x.m.ListenAddr()))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			conn, err := a.Dial(t.Context(), l.Multiaddr(), x.id)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if accepted, err := l.Accept(); err != nil {
				t.Error(err)
			} else {
				defer accepted.Close()
			}
		}
		if _, err := c.Listen(ma.StringCast(b.m.ListenAddr())); err == nil {
			t.Error("a port is bound twice at one address")
		}
	})
}
