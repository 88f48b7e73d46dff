package addrs

import (
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestReachOf(t *testing.T) {
	for text, want := range map[string]Reach{
		"/ip4/127.0.0.1/tcp/80/ws":                                        Loopback,
		"/ip4/127.9.9.9/udp/1/quic-v1":                                    Loopback,
		"/ip4/0.0.0.0/tcp/80":                                             Loopback,
		"/ip6/::1/tcp/80":                                                 Loopback,
		"/ip6/::ffff:127.0.0.1/tcp/80":                                    Loopback,
		"/ip6/64:ff9b::7f00:1/tcp/80":                                     Loopback,
		"/dns4/localhost/tcp/80/ws":                                       Loopback,
		"/dns/a.LocalHost./tcp/80/ws":                                     Loopback,
		"/ip4/169.254.169.254/tcp/80/ws":                                  LinkLocal,
		"/ip6/fe80::1/tcp/80":                                             LinkLocal,
		"/ip6zone/eth0/ip6/fe80::1/tcp/80":                                LinkLocal,
		"/ip4/224.0.0.251/udp/1/quic-v1":                                  LinkLocal,
		"/ip4/255.255.255.255/udp/1/quic-v1":                              LinkLocal,
		"/ip4/10.0.0.1/tcp/80":                                            Private,
		"/ip4/100.100.100.200/tcp/80":                                     Private,
		"/ip6/fd00:ec2::254/tcp/80":                                       Private,
		"/ip4/8.8.8.8/tcp/80":                                             Global,
		"/ip6/2001:db8::1/tcp/80":                                         Global,
		"/dns4/example.com/tcp/80":                                        Global,
		"/dns4/notlocalhost/tcp/80":                                       Global,
		"/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit": Global,
		"/ip4/127.0.0.1/tcp/80/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit": Loopback,
	} {
		if got := ReachOf(ma.StringCast(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
		if got, ok := ReachOfBytes(ma.StringCast(text).Bytes()); ok != (strings.HasPrefix(text, "/ip4/") || strings.HasPrefix(text, "/ip6/")) || ok && got != want {
			t.Errorf("the bytes of %s: %d, %t, want %d", text, got, ok, want)
		}
	}
	if got := ReachOf(nil); got != Global {
		t.Errorf("nil: %d", got)
	}
}

// The binary form, which strangers send, has the same reach as what is parsed of
// it.
func FuzzReachOfBytes(f *testing.F) {
	for _, text := range []string{"/ip4/10.1.2.3/tcp/1", "/ip6/::1/udp/1/quic-v1", "/dns/localhost/tcp/1", "/ip6zone/x/ip6/fe80::1/tcp/1"} {
		f.Add(ma.StringCast(text).Bytes())
	}
	f.Add([]byte{4, 127, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := ReachOfBytes(b)
		if a, err := ma.NewMultiaddrBytes(b); ok && err == nil && ReachOf(a) != got {
			t.Errorf("%s: %d, parsed %d", a, got, ReachOf(a))
		}
	})
}
