package relays

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
	protobuf "google.golang.org/protobuf/proto"

	"github.com/go-p2pnode/p2pnode/internal/nethost/hosttest"
)

// captured is a host that keeps the handler of the relay service.
type captured struct {
	host.Host
	handle network.StreamHandler
}

func (c *captured) SetStreamHandler(id protocol.ID, h network.StreamHandler) {
	if id == proto.ProtoIDv2Hop {
		c.handle = h
	}
	c.Host.SetStreamHandler(id, h)
}

// request is a stream with one message of a peer that needs no connection.
type request struct {
	network.Stream
	in   bytes.Reader
	out  bytes.Buffer
	id   peer.ID
	addr ma.Multiaddr
}

func (r *request) Read(b []byte) (int, error)       { return r.in.Read(b) }
func (r *request) Write(b []byte) (int, error)      { return r.out.Write(b) }
func (r *request) Close() error                     { return nil }
func (r *request) CloseWrite() error                { return nil }
func (r *request) Reset() error                     { return nil }
func (r *request) SetReadDeadline(time.Time) error  { return nil }
func (r *request) SetWriteDeadline(time.Time) error { return nil }
func (r *request) Scope() network.StreamScope       { return &network.NullScope{} }
func (r *request) Conn() network.Conn               { return conn{id: r.id, addr: r.addr} }
func (r *request) Stat() network.Stats              { return network.Stats{} }
func (r *request) ID() string                       { return "" }
func (r *request) As(any) bool                      { return false }
func (r *request) status(t *testing.T) pb.Status {
	t.Helper()
	size, n := binary.Uvarint(r.out.Bytes())
	var msg pb.HopMessage
	if err := protobuf.Unmarshal(r.out.Bytes()[n:n+int(size)], &msg); err != nil {
		t.Fatal(err)
	}
	return msg.GetStatus()
}

type conn struct {
	network.Conn
	id   peer.ID
	addr ma.Multiaddr
}

func (c conn) RemotePeer() peer.ID           { return c.id }
func (c conn) RemoteMultiaddr() ma.Multiaddr { return c.addr }

// madeUp returns an ID that nobody has the key of.
func madeUp(i int) peer.ID {
	sum, err := multihash.Sum(fmt.Append(nil, "peer ", i), multihash.SHA2_256, -1)
	if err != nil {
		panic(err) // the hash function is known
	}
	return peer.ID(sum)
}

// serve runs a relay, and returns what sends it a message of a peer.
func serve(t *testing.T, cfg ServiceConfig) (*Service, func(id peer.ID, addr ma.Multiaddr, msg *pb.HopMessage) *request) {
	t.Helper()
	h := hosttest.New(t)
	c := &captured{Host: h.Host}
	h.Host = c
	s, err := Serve(h, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, func(id peer.ID, addr ma.Multiaddr, msg *pb.HopMessage) *request {
		b, err := protobuf.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		r := &request{id: id, addr: addr}
		r.in.Reset(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
		c.handle(r)
		return r
	}
}

var reserve = &pb.HopMessage{Type: pb.HopMessage_RESERVE.Enum()}

func connectTo(id peer.ID) *pb.HopMessage {
	return &pb.HopMessage{Type: pb.HopMessage_CONNECT.Enum(), Peer: &pb.Peer{Id: []byte(id)}}
}

func addrOf(i int) ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/ip4/%d.%d.%d.1/tcp/1", 1+i>>16, i>>8&255, i&255))
}

// everybody admits all peers.
type everybody struct{}

func (everybody) AllowReserve(peer.ID, ma.Multiaddr) bool          { return true }
func (everybody) AllowConnect(peer.ID, ma.Multiaddr, peer.ID) bool { return true }

// 5,000 peers that were made up, each from an address of its own, leave behind what
// the limit allows: 128 reservations, and some hundred bytes for each.
func TestReservationAttemptsAreBoundedInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second: run without -short")
	}
	s, send := serve(t, ServiceConfig{ACL: everybody{}, Log: slog.New(slog.DiscardHandler)})
	const attempts = 5000
	heap := func() uint64 {
		var mem runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&mem)
		return mem.HeapAlloc
	}
	send(madeUp(-1), addrOf(attempts), reserve)
	before := heap()
	for i := range attempts {
		want := pb.Status_OK
		if i >= 127 {
			want = pb.Status_RESERVATION_REFUSED
		}
		if got := send(madeUp(i), addrOf(i), reserve).status(t); got != want {
			t.Fatalf("attempt %d: %v", i, got)
		}
	}
	grown := int64(heap()) - int64(before)
	t.Logf("%d attempts leave %d bytes", attempts, grown)
	if grown > 512<<10 {
		t.Errorf("%d attempts leave %d bytes", attempts, grown)
	}
	if c := s.Counts(); c.Reservations != 128 || c.Refused[RefusedReservations] != attempts-127 || len(c.Refused) != 1 {
		t.Errorf("%+v", c)
	}
}

// One address gets 8 reservations, and each peer one.
func TestReservationsPerAddressAndPeer(t *testing.T) {
	s, send := serve(t, ServiceConfig{ACL: everybody{}, Limits: Limits{ReservationTTL: 5 * time.Minute}, Log: slog.New(slog.DiscardHandler)})
	for i := range 10 {
		want := pb.Status_OK
		if i >= 8 {
			want = pb.Status_RESERVATION_REFUSED
		}
		r := send(madeUp(i), addrOf(0), reserve)
		if got := r.status(t); got != want {
			t.Errorf("peer %d: %v", i, got)
		}
	}
	if got := send(madeUp(0), addrOf(0), reserve).status(t); got != pb.Status_OK {
		t.Errorf("a renewal: %v", got)
	}
	if c := s.Counts(); c.Reservations != 8 || c.Refused[RefusedReservations] != 2 {
		t.Errorf("%+v", c)
	}
}

// IPv6 addresses of one provider count together.
func TestReservationsPerProvider(t *testing.T) {
	_, send := serve(t, ServiceConfig{ACL: everybody{}, Limits: Limits{ReservationsPerIP: 2, ReservationsPerASN: 3}, Log: slog.New(slog.DiscardHandler)})
	for i := range 5 {
		want := pb.Status_OK
		if i >= 3 {
			want = pb.Status_RESERVATION_REFUSED
		}
		if got := send(madeUp(i), ma.StringCast(fmt.Sprintf("/ip6/2a00:1450:4001:%x::1/tcp/1", i)), reserve).status(t); got != want {
			t.Errorf("peer %d: %v", i, got)
		}
	}
}

// The function of the application decides, after the list; if it panics, the answer
// is no.
func TestAccessDecidesWhoReserves(t *testing.T) {
	var asked []peer.ID
	s, send := serve(t, ServiceConfig{
		ACL: refuses(madeUp(3)), Log: slog.New(slog.DiscardHandler),
		Access: func(id peer.ID, a ma.Multiaddr) bool {
			asked = append(asked, id)
			switch id {
			case madeUp(1):
				return a.Equal(addrOf(1))
			case madeUp(2):
				panic("no idea")
			default:
				return false
			}
		},
	})
	for i, want := range []pb.Status{pb.Status_PERMISSION_DENIED, pb.Status_OK, pb.Status_PERMISSION_DENIED, pb.Status_PERMISSION_DENIED} {
		if got := send(madeUp(i), addrOf(i), reserve).status(t); got != want {
			t.Errorf("peer %d: %v", i, got)
		}
	}
	if len(asked) != 3 {
		t.Errorf("asked about %v", asked)
	}
	if c := s.Counts(); c.Reservations != 1 || c.Refused[RefusedAccess] != 3 {
		t.Errorf("%+v", c)
	}
}

// refuses admits all peers but one.
type refuses peer.ID

func (r refuses) AllowReserve(id peer.ID, _ ma.Multiaddr) bool { return id != peer.ID(r) }
func (r refuses) AllowConnect(src peer.ID, _ ma.Multiaddr, dst peer.ID) bool {
	return src != peer.ID(r) && dst != peer.ID(r)
}

// What is refused is counted by reason.
func TestRefusalsAreCountedByReason(t *testing.T) {
	s, send := serve(t, ServiceConfig{ACL: refuses(madeUp(9)), Limits: Limits{Reservations: 1}, Log: slog.New(slog.DiscardHandler)})
	send(madeUp(0), addrOf(0), reserve)
	send(madeUp(1), addrOf(1), reserve)
	send(madeUp(9), addrOf(9), reserve)
	send(madeUp(9), addrOf(9), connectTo(madeUp(0)))
	send(madeUp(1), addrOf(1), connectTo(madeUp(9)))
	send(madeUp(1), addrOf(1), connectTo(madeUp(5)))
	send(madeUp(1), addrOf(1), connectTo(madeUp(0))) // who is not connected
	send(madeUp(1), addrOf(1), &pb.HopMessage{Type: pb.HopMessage_CONNECT.Enum(), Peer: &pb.Peer{Id: []byte("nobody")}})
	send(madeUp(1), ma.StringCast("/p2p/"+madeUp(4).String()+"/p2p-circuit"), reserve)
	want := map[Refusal]uint64{RefusedAccess: 4, RefusedReservations: 1, RefusedNoReservation: 1, RefusedUnreachable: 1, RefusedMalformed: 1}
	c := s.Counts()
	if fmt.Sprint(c.Refused) != fmt.Sprint(want) || c.Reservations != 1 || c.Circuits != 0 {
		t.Errorf("%+v", c)
	}
}

// The log has the first refusal for each reason, and then one line a minute.
func TestRefusalsAreLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		s := &Service{
			cfg:  ServiceConfig{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))},
			told: make(map[Refusal]time.Time), pending: make(map[Refusal]uint64), counts: Counts{Refused: make(map[Refusal]uint64)},
		}
		for range 600 {
			s.refused(RefusedReservations)
			s.refused(RefusedAccess)
			time.Sleep(time.Second)
		}
		if n := len(log.list); n != 20 {
			t.Errorf("%d lines in ten minutes", n)
		}
		if last := log.list[len(log.list)-2]; !strings.Contains(last, "refused=60") || !strings.Contains(last, "level=WARN") {
			t.Errorf("the last line: %s", last)
		}
	})
}

type lines struct {
	mu   sync.Mutex
	list []string // guarded by mu
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, string(b))
	return len(b), nil
}
