package p2pnode

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multistream"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

// A Reset ends a Read that the peer's end of the session has interrupted, while
// the own end of it has not come.
func TestResetOfAWebTransportStreamWakesItsReader(t *testing.T) {
	a, b := pair(t, WithTransports(TransportWebTransport), WithListenAddrs("/ip4/127.0.0.1/udp/0/quic-v1/webtransport"))
	accepted := make(chan network.Stream, 1)
	a.base.SetStreamHandler("/silent", func(s network.Stream) { accepted <- s })

	// The peer's stream, as it is in QUIC.
	var conn *quic.Conn
	if !swarmOf(b).ConnsToPeer(a.ID())[0].As(&conn) {
		t.Fatal("no QUIC connection to be had")
	}
	raw, err := conn.OpenStreamSync(testContext(t))
	mustNot(t, err)
	const streamSignal, session = 0x41, 0 // the session is the first of the connection's requests
	_, err = raw.Write(quicvarint.Append(quicvarint.Append(nil, streamSignal), session))
	mustNot(t, err)
	mustNot(t, multistream.SelectProtoOrFail("/silent", raw))
	s := <-accepted
	done := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		done <- err
	}()
	const sessionGone = 0x170d7b68
	raw.CancelWrite(sessionGone)

	// The reset has arrived once data sent after it has.
	_, err = b.Ping(testContext(t), a.ID())
	mustNot(t, err)
	mustNot(t, s.Reset())
	select {
	case err := <-done:
		if err == nil {
			t.Error("it read something")
		}
	case <-testContext(t).Done():
		t.Error("it reads on")
	}
}
