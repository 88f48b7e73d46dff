package nethost

import (
	"reflect"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/quic-go/quic-go"
)

// tune lets a peer have at least so many streams on a QUIC connection, and lets a
// handshake wait for an answer as long as a dial may take, if that is set. Libp2p
// (v0.51) allows 256 streams, quic-go 5 seconds, without options; a peer that opens
// more streams waits, whatever the resource manager would allow. The configuration for
// dialing is given out to be changed, that for listening is not: it is reached by its
// name, and is unchanged if there is none.
func tune(conns *quicreuse.ConnManager, streams int, dial time.Duration) {
	allow := func(cfg *quic.Config) {
		if cfg != nil {
			cfg.MaxIncomingStreams = max(cfg.MaxIncomingStreams, int64(streams))
			if dial > 0 {
				cfg.HandshakeIdleTimeout = dial
			}
		}
	}
	allow(conns.ClientConfig())
	if f := reflect.ValueOf(conns).Elem().FieldByName("serverConfig"); f.IsValid() && f.Type() == reflect.TypeFor[*quic.Config]() {
		allow((*quic.Config)(f.UnsafePointer()))
	}
}

// identifyWithin sets how long identify may take. Libp2p (v0.51) allows 5 seconds: its
// option for that is out of reach, so the field is set by its name, if there is one. Nobody is
// connected yet.
func identifyWithin(h host.Host, d time.Duration) {
	has, ok := h.(interface{ IDService() identify.IDService })
	if !ok {
		return
	}
	service := reflect.ValueOf(has.IDService())
	if service.Kind() != reflect.Pointer || service.Elem().Kind() != reflect.Struct {
		return
	}
	if f := service.Elem().FieldByName("timeout"); f.IsValid() && f.Type() == reflect.TypeFor[time.Duration]() {
		*(*time.Duration)(f.Addr().UnsafePointer()) = d
	}
}
