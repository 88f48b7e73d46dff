package nethost

import (
	"reflect"

	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/quic-go/quic-go"
)

// allowStreams lets a peer have at least so many streams on a QUIC connection.
// Libp2p (v0.51) allows 256, without an option; a peer that opens more waits,
// whatever the resource manager would allow. The configuration for dialing is
// given out to be changed, that for listening is not: it is reached by its name,
// and is unchanged if there is none.
func allowStreams(conns *quicreuse.ConnManager, n int) {
	allow := func(cfg *quic.Config) {
		if cfg != nil {
			cfg.MaxIncomingStreams = max(cfg.MaxIncomingStreams, int64(n))
		}
	}
	allow(conns.ClientConfig())
	if f := reflect.ValueOf(conns).Elem().FieldByName("serverConfig"); f.IsValid() && f.Type() == reflect.TypeFor[*quic.Config]() {
		allow((*quic.Config)(f.UnsafePointer()))
	}
}
