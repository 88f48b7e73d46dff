package reach

import (
	"bufio"
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// A stranger is the other end of a stream: it says what it wants to, and then goes on
// with zeros for ever. It counts what is read and written.
type stranger struct {
	says          *bytes.Reader
	read, written int
	wrote         bytes.Buffer
}

func (s *stranger) Read(b []byte) (int, error) {
	n, err := s.says.Read(b)
	if err != nil {
		clear(b)
		n = len(b)
	}
	s.read += n
	return n, nil
}

func (s *stranger) Write(b []byte) (int, error) {
	s.written += len(b)
	return s.wrote.Write(b)
}

func delimited(t testing.TB, list ...proto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, m := range list {
		if _, err := protodelim.MarshalTo(&b, m); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func response(status pb.DialResponse_ResponseStatus, dial pb.DialStatus, index uint32) *pb.Message {
	return &pb.Message{Msg: &pb.Message_DialResponse{DialResponse: &pb.DialResponse{Status: status, DialStatus: dial, AddrIdx: index}}}
}

func dataRequest(size uint64, index uint32) *pb.Message {
	return &pb.Message{Msg: &pb.Message_DialDataRequest{DialDataRequest: &pb.DialDataRequest{NumBytes: size, AddrIdx: index}}}
}

// bufioSize is how far a bufio.Reader reads ahead.
const bufioSize = 4096

// Whatever a server answers, asking ends, reads and sends no more than the limits, and
// believes nothing without a dial-back.
func FuzzAnswer(f *testing.F) {
	for _, list := range [][]proto.Message{
		nil,
		{response(pb.DialResponse_OK, pb.DialStatus_OK, 0)},
		{response(pb.DialResponse_OK, pb.DialStatus_E_DIAL_ERROR, 0)},
		{response(pb.DialResponse_OK, pb.DialStatus_E_DIAL_BACK_ERROR, 0)},
		{response(pb.DialResponse_OK, pb.DialStatus_UNUSED, 0)},
		{response(pb.DialResponse_OK, pb.DialStatus_OK, 1)},
		{response(pb.DialResponse_E_DIAL_REFUSED, pb.DialStatus_UNUSED, 0)},
		{response(pb.DialResponse_E_REQUEST_REJECTED, pb.DialStatus_OK, 0)},
		{response(99, 99, 0)},
		{dataRequest(30_000, 0), response(pb.DialResponse_OK, pb.DialStatus_OK, 0)},
		{dataRequest(1, 0), response(pb.DialResponse_OK, pb.DialStatus_OK, 0)},
		{dataRequest(maxData, 0), dataRequest(maxData, 0), response(pb.DialResponse_OK, pb.DialStatus_OK, 0)},
		{dataRequest(maxData+1, 0), response(pb.DialResponse_OK, pb.DialStatus_OK, 0)},
		{dataRequest(10*maxData, 0)},
		{dataRequest(1<<63, 0)},
		{dataRequest(5, 7), response(pb.DialResponse_OK, pb.DialStatus_OK, 7)},
		{&pb.Message{Msg: &pb.Message_DialRequest{DialRequest: &pb.DialRequest{Nonce: 1}}}},
	} {
		f.Add(delimited(f, list...))
	}
	f.Add(binaryLength(maxAnswer + 1))
	f.Add(binaryLength(1 << 20))
	f.Add(binaryLength(1 << 62))
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	addr := ma.StringCast("/ip4/5.1.0.2/udp/4001/quic-v1")
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, says []byte) {
		s := &stranger{says: bytes.NewReader(says)}
		resp, err := exchange(s, addr, 42)
		if limit := 2 * (maxAnswer + 10 + bufioSize); s.read > limit {
			t.Errorf("%d bytes were read, more than %d", s.read, limit)
		}
		// The data, with at most 10 bytes around each message, and the question.
		if limit := maxData + 128 + 10*(maxData/dataChunk+1) + 100; s.written > limit {
			t.Errorf("%d bytes were sent, more than %d", s.written, limit)
		}
		var question pb.Message
		if err := protodelim.UnmarshalFrom(&s.wrote, &question); err != nil || question.GetDialRequest().GetNonce() != 42 {
			t.Errorf("the question was %v: %v", &question, err)
		}
		if err != nil {
			if resp != nil {
				t.Errorf("%v, and an answer: %v", err, resp)
			}
			return
		}
		if resp == nil || resp.GetAddrIdx() != 0 {
			t.Fatalf("the answer is about no address that was asked for: %v", resp)
		}
		// Nobody has dialed.
		w := &wait{addr: addr, since: time.Now(), came: make(chan struct{}, 1)}
		got, err := w.judge(gone, resp)
		switch {
		case got == dialed:
			t.Errorf("%v is believed without a dial-back", resp)
		case got == failed && (resp.GetStatus() != pb.DialResponse_OK || resp.GetDialStatus() != pb.DialStatus_E_DIAL_ERROR):
			t.Errorf("%v counts as a failure", resp)
		case err == nil && got == refused && resp.GetStatus() != pb.DialResponse_E_DIAL_REFUSED:
			t.Errorf("%v is a refusal without a reason", resp)
		}
		// Somebody has: that counts only with the word of the server.
		w.came <- struct{}{}
		if got, err := w.judge(context.Background(), resp); got == dialed && (err != nil || resp.GetStatus() != pb.DialResponse_OK) {
			t.Errorf("%v with a dial-back is %v: %v", resp, got, err)
		}
	})
}

// binaryLength is a message's length without a message.
func binaryLength(n uint64) (b []byte) {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// backStream is a stream on which a stranger says that it dialed back.
type backStream struct {
	network.Stream
	stranger
	conn  backConn
	reset bool
}

func (s *backStream) Read(b []byte) (int, error)  { return s.stranger.Read(b) }
func (s *backStream) Write(b []byte) (int, error) { return s.stranger.Write(b) }
func (s *backStream) Scope() network.StreamScope  { return &network.NullScope{} }
func (s *backStream) SetDeadline(time.Time) error { return nil }
func (s *backStream) CloseWrite() error           { return nil }
func (s *backStream) Conn() network.Conn          { return &s.conn }
func (s *backStream) Reset() error {
	s.reset = true
	return nil
}

type backConn struct {
	network.Conn
	stat  network.ConnStats
	local ma.Multiaddr
}

func (c *backConn) Stat() network.ConnStats      { return c.stat }
func (c *backConn) LocalMultiaddr() ma.Multiaddr { return c.local }

// Whatever comes as a dial-back, taking it ends, reads no more than the limit, and
// counts only if it has the nonce, and came in on a new connection to such an address.
func FuzzDialBack(f *testing.F) {
	const nonce = 0x1234567890abcdef
	f.Add(delimited(f, &pb.DialBack{Nonce: nonce}), true, int64(1), true)
	f.Add(delimited(f, &pb.DialBack{Nonce: nonce}), false, int64(1), true)
	f.Add(delimited(f, &pb.DialBack{Nonce: nonce}), true, int64(-1), true)
	f.Add(delimited(f, &pb.DialBack{Nonce: nonce}), true, int64(1), false)
	f.Add(delimited(f, &pb.DialBack{Nonce: nonce + 1}), true, int64(1), true)
	f.Add(delimited(f, &pb.DialBack{}), true, int64(1), true)
	f.Add(delimited(f, response(pb.DialResponse_OK, pb.DialStatus_OK, 0)), true, int64(1), true)
	f.Add(binaryLength(1<<20), true, int64(1), true)
	f.Add(binaryLength(maxBack+1), true, int64(1), true)
	f.Add(binaryLength(1<<62), true, int64(1), true)
	f.Add([]byte{}, true, int64(1), true)
	f.Fuzz(func(t *testing.T, says []byte, inbound bool, later int64, sameKind bool) {
		w := &wait{addr: ma.StringCast("/ip4/5.1.0.2/udp/4001/quic-v1"), since: time.Now(), came: make(chan struct{}, 1)}
		a := &asker{waits: map[uint64]*wait{nonce: w}}
		s := &backStream{stranger: stranger{says: bytes.NewReader(says)}}
		s.conn.stat.Direction, s.conn.stat.Opened = network.DirOutbound, w.since.Add(time.Duration(later))
		s.conn.local = ma.StringCast("/ip4/192.168.1.9/tcp/4001")
		if inbound {
			s.conn.stat.Direction = network.DirInbound
		}
		if sameKind {
			s.conn.local = ma.StringCast("/ip4/192.168.1.9/udp/4001/quic-v1")
		}
		a.handle(s)
		var msg pb.DialBack
		err := (protodelim.UnmarshalOptions{MaxSize: maxBack}).UnmarshalFrom(bufio.NewReader(&stranger{says: bytes.NewReader(says)}), &msg)
		want := err == nil && msg.GetNonce() == nonce && inbound && later >= 0 && sameKind
		if got := len(w.came) == 1; got != want {
			t.Errorf("%x, inbound %v, opened %d ns later, same kind %v: counts %v, want %v", says, inbound, later, sameKind, got, want)
		}
		if limit := maxBack + 10 + bufioSize + maxBack; s.read > limit {
			t.Errorf("%d bytes were read, more than %d", s.read, limit)
		}
		if !s.reset || (s.written > 0) != want {
			t.Errorf("reset %v, %d bytes sent", s.reset, s.written)
		}
	})
}
