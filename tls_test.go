package p2pnode

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
)

// tlsPair is a certificate for names and IP addresses, valid for an hour, that has
// signed itself.
func tlsPair(tb testing.TB, names ...string) tls.Certificate {
	tb.Helper()
	return tlsPairUntil(tb, time.Now().Add(time.Hour), names...)
}

func tlsPairUntil(tb testing.TB, end time.Time, names ...string) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	mustNot(tb, err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	mustNot(tb, err)
	leaf, err := x509.ParseCertificate(der)
	mustNot(tb, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// trusting is the option of a client that trusts certificates.
func trusting(list ...tls.Certificate) Option {
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c.Leaf)
	}
	return WithTLSConfig(&tls.Config{RootCAs: pool})
}

// writePair writes a certificate and its key to files.
func writePair(tb testing.TB, dir string, c tls.Certificate) (cert, key string) {
	tb.Helper()
	secret, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	mustNot(tb, err)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	mustNot(tb, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
	mustNot(tb, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key
}

// dialAt connects n to another node at one address, with that node's port in the place
// of PORT.
func dialAt(tb testing.TB, n, other *Node, addr string) error {
	tb.Helper()
	for _, a := range other.base.ListenAddrs() {
		if port, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			addr = strings.ReplaceAll(addr, "PORT", port)
		}
	}
	return n.Connect(testContext(tb), peer.AddrInfo{ID: other.ID(), Addrs: []ma.Multiaddr{ma.StringCast(addr)}})
}

// A node listens with the certificate of either option, and peers that trust its
// authority dial it, by address or name, and verify it.
func TestWebSocketWithTLSIsVerified(t *testing.T) {
	pair := tlsPair(t, "127.0.0.1", "node.test")
	cert, key := writePair(t, t.TempDir(), pair)
	listens := []string{"/ip4/127.0.0.1/tcp/0/tls/ws", "/ip4/127.0.0.1/tcp/0/wss", "/ip4/127.0.0.1/tcp/0/tls/sni/node.test/ws"}
	if testing.Short() {
		listens = listens[2:]
	}
	for what, opt := range map[string]Option{
		"WithTLSConfig": WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{pair}}),
		"WithTLSFiles":  WithTLSFiles(cert, key),
	} {
		t.Run(what, func(t *testing.T) {
			for _, listen := range listens {
				server := newNode(t, opt, WithListenAddrs(listen))
				for _, a := range []string{"/ip4/127.0.0.1/tcp/PORT/tls/ws", "/ip4/127.0.0.1/tcp/PORT/wss", "/ip4/127.0.0.1/tcp/PORT/tls/sni/node.test/ws"} {
					client := newNode(t, trusting(pair))
					mustNot(t, dialAt(t, client, server, a))
					if p, ok := client.Peer(server.ID()); !ok || p.Transport != "websocket" {
						t.Errorf("%s at %s: %+v", listen, a, p)
					}
				}
				announced := newNode(t, trusting(pair))
				mustNot(t, announced.Connect(testContext(t), server.AddrInfo()))
			}
		})
	}
}

// Why a certificate is not accepted is said in plain words.
func TestCertificatesThatAreRefusedSayWhy(t *testing.T) {
	expired := tlsPairUntil(t, time.Now().Add(-time.Hour), "127.0.0.1")
	good, other := tlsPair(t, "127.0.0.1"), tlsPair(t, "node.test")
	for _, c := range []struct {
		what   string
		server tls.Certificate
		client []Option
		want   string
	}{
		{"expired", expired, []Option{trusting(expired)}, "its certificate has expired"},
		{"unknown", good, nil, "an authority that this machine does not know; name the authority in the RootCAs of WithTLSConfig"},
		{"of another name", other, []Option{trusting(other)}, "its certificate is for another name"},
	} {
		server := newNode(t, WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{c.server}}), WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"))
		err := dialAt(t, newNode(t, c.client...), server, "/ip4/127.0.0.1/tcp/PORT/tls/ws")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q is not in: %v", c.what, c.want, err)
		}
	}
}

// The addresses that a node announces can be dialed: if the certificate is for a name
// alone, they have that name.
func TestAnnouncedAddressesNameTheCertificate(t *testing.T) {
	pair := tlsPair(t, "node.test")
	server := newNode(t, WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{pair}}), WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"))
	if list := server.AddrInfo().Addrs; len(list) != 1 || !strings.HasSuffix(list[0].String(), "/tls/sni/node.test/ws") {
		t.Errorf("announced: %v", list)
	}
	mustNot(t, newNode(t, trusting(pair)).Connect(testContext(t), server.AddrInfo()))
}

// A pair of files is replaced while the node runs: new connections get the new
// certificate, open ones go on. A pair that does not match changes nothing.
func TestCertificateFilesAreReadAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second: run without -short")
	}
	dir := t.TempDir()
	first, second := tlsPair(t, "127.0.0.1"), tlsPair(t, "127.0.0.1")
	cert, key := writePair(t, dir, first)
	server := newNode(t, WithTLSFiles(cert, key), WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"))
	old := newNode(t, trusting(first))
	mustNot(t, old.Connect(testContext(t), server.AddrInfo()))
	writePair(t, dir, second)
	// The files are looked at once a second.
	ctx, client := testContext(t), newNode(t, trusting(second))
	for err := errors.New("not yet"); err != nil; {
		mustNot(t, ctx.Err())
		err = client.Connect(ctx, server.AddrInfo())
	}
	if !old.base.Connected(server.ID()) {
		t.Error("the old connection is lost")
	}
	_, err := old.Ping(ctx, server.ID())
	mustNot(t, err)

	secret, err := x509.MarshalPKCS8PrivateKey(first.PrivateKey)
	mustNot(t, err)
	mustNot(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	mustNot(t, newNode(t, trusting(second)).Connect(ctx, server.AddrInfo()))
}

// Files that are missing or do not match fail New, with the option's name and no
// secret.
func TestCertificateFilesThatDoNotMatchFailNew(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	cert, _ := writePair(t, one, tlsPair(t, "127.0.0.1"))
	_, key := writePair(t, two, tlsPair(t, "127.0.0.1"))
	for want, files := range map[string][2]string{"certificate and the key do not match": {cert, key}, "no such file": {cert + "x", key}} {
		_, err := New(testContext(t), loopback(), WithTLSFiles(files[0], files[1]), WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"))
		if list := OptionErrors(err); len(list) != 1 || list[0].Option != "WithTLSFiles" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestAnExpiredCertificateIsLoggedAtTheStart(t *testing.T) {
	var log bytes.Buffer
	n := newNode(t, WithLogger(slog.New(slog.NewTextHandler(&log, nil))), WithListenAddrs("/ip4/127.0.0.1/tcp/0/tls/ws"),
		WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{tlsPairUntil(t, time.Now().Add(-time.Hour), "127.0.0.1")}}))
	mustNot(t, n.Close()) // the log is written
	if !strings.Contains(log.String(), "certificate has expired") {
		t.Error(&log)
	}
}

// An application's own WebSocket transport and certificates for ours are one too many.
func TestOwnWebSocketTransportConflictsWithCertificates(t *testing.T) {
	own := WithLibp2pOptions(libp2p.Transport(websocket.New))
	_, err := New(testContext(t), loopback(), own, trusting())
	if list := OptionErrors(err); len(list) != 1 || list[0].Option != "WithTLSConfig" || !strings.Contains(err.Error(), "WithLibp2pOptions") {
		t.Errorf("%v", err)
	}
}

// TCP, WebSocket and WebSocket with TLS share a port.
func TestTCPWebSocketAndTLSShareAPort(t *testing.T) {
	_, port := silentAndClosed(t)
	pair := tlsPair(t, "127.0.0.1")
	tcp := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)
	list := []string{tcp, tcp + "/ws", tcp + "/tls/ws"}
	server := newNode(t, WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{pair}}), WithListenAddrs(list...))
	for _, a := range list {
		client := newNode(t, trusting(pair))
		mustNot(t, dialAt(t, client, server, a))
		if p, ok := client.Peer(server.ID()); !ok || strings.ReplaceAll(p.Addr.String(), "/wss", "/tls/ws") != a {
			t.Errorf("connected at %v, not %s", p.Addr, a)
		}
	}
}

// A proxy with the certificate stands in front of a node that listens without TLS and
// announces the proxy's name.
func TestWebSocketBehindAProxyWithTLS(t *testing.T) {
	pair := tlsPair(t, "localhost")
	to := new(url.URL)
	proxy := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }})
	proxy.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	proxy.StartTLS()
	t.Cleanup(proxy.CloseClientConnections)
	t.Cleanup(proxy.Close)
	_, front, err := net.SplitHostPort(proxy.Listener.Addr().String())
	mustNot(t, err)
	for _, form := range []string{"/wss", "/tls/ws"} {
		announced := "/dns4/localhost/tcp/" + front + form
		behind := newNode(t, WithListenAddrs("/ip4/127.0.0.1/tcp/0/ws"), WithAnnounceAddrs(announced))
		*to = url.URL{Scheme: "http", Host: hostPort(t, behind)}
		if list := behind.AddrInfo().Addrs; len(list) != 1 || list[0].String() != announced {
			t.Errorf("announced: %v", list)
		}
		client := newNode(t, trusting(pair))
		mustNot(t, client.Connect(testContext(t), behind.AddrInfo()))
		_, err := client.Ping(testContext(t), behind.ID())
		mustNot(t, err)
		mustNot(t, client.Close())
	}
}

func hostPort(tb testing.TB, n *Node) string {
	tb.Helper()
	port, err := n.base.ListenAddrs()[0].ValueForProtocol(ma.P_TCP)
	mustNot(tb, err)
	return "127.0.0.1:" + port
}
