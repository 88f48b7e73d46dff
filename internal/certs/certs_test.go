package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// made is a certificate in PEM format with its key.
type made struct{ cert, key []byte }

func certificate(t testing.TB, names ...string) made {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return made{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}
}

func (m made) pair(t testing.TB) *tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// pairOfFiles is a pair on the disk, with a clock for Files.
type pairOfFiles struct {
	t         *testing.T
	cert, key string
	clock     time.Time
	log       bytes.Buffer
	*Files
}

func openFiles(t *testing.T, first made) *pairOfFiles {
	dir := t.TempDir()
	p := &pairOfFiles{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), clock: time.Now()}
	p.write(p.cert, first.cert)
	p.write(p.key, first.key)
	var err error
	p.Files, err = Open(p.cert, p.key, slog.New(slog.NewTextHandler(&p.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	p.now = func() time.Time { return p.clock }
	return p
}

// write replaces a file as those do who renew certificates.
func (p *pairOfFiles) write(name string, b []byte) {
	p.t.Helper()
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Chtimes(name+".new", p.clock, p.clock); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		p.t.Fatal(err)
	}
}

// serves reports whether a handshake after some time gets a certificate.
func (p *pairOfFiles) serves(after time.Duration, want made) bool {
	p.t.Helper()
	p.clock = p.clock.Add(after)
	c, err := p.Get(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return bytes.Equal(c.Certificate[0], want.pair(p.t).Certificate[0])
}

func TestNewFilesAreReadAtTheNextHandshake(t *testing.T) {
	one, two := certificate(t, "one.test"), certificate(t, "two.test")
	p := openFiles(t, one)
	p.write(p.cert, two.cert)
	p.write(p.key, two.key)
	if !p.serves(every/2, one) {
		t.Error("the files are looked at for every handshake")
	}
	if !p.serves(every, two) {
		t.Errorf("the old certificate is served: %s", &p.log)
	}
}

// Between the replacement of one file and the other the old pair is served, and nobody
// is warned.
func TestAHalfReplacedPairKeepsTheOldOne(t *testing.T) {
	one, two := certificate(t, "one.test"), certificate(t, "two.test")
	p := openFiles(t, one)
	p.write(p.cert, two.cert)
	if !p.serves(2*every, one) {
		t.Error("half a pair is served")
	}
	p.write(p.key, two.key)
	if !p.serves(2*every, two) {
		t.Error("the new pair is not served")
	}
	if strings.Contains(p.log.String(), "WARN") {
		t.Error(&p.log)
	}
}

func TestABrokenPairKeepsTheOldOneAndWarnsOnce(t *testing.T) {
	one, two := certificate(t, "one.test"), certificate(t, "two.test")
	for what, bad := range map[string]made{
		"mismatching": {one.cert, two.key}, "cut short": {two.cert[:len(two.cert)/2], two.key}, "empty": {},
	} {
		t.Run(what, func(t *testing.T) {
			p := openFiles(t, one)
			p.write(p.cert, bad.cert)
			p.write(p.key, bad.key)
			for range 5 {
				if !p.serves(2*settle, one) {
					t.Fatal("the old certificate is not served")
				}
			}
			if n := strings.Count(p.log.String(), "WARN"); n != 1 {
				t.Errorf("%d warnings:\n%s", n, &p.log)
			}
			if strings.Contains(p.log.String(), "do not match") != (what == "mismatching") {
				t.Errorf("the reason is not in the warning: %s", &p.log)
			}
			p.write(p.cert, two.cert)
			p.write(p.key, two.key)
			if !p.serves(2*every, two) {
				t.Errorf("it never recovers: %s", &p.log)
			}
		})
	}
}

func TestFilesThatAreGoneKeepTheOldPair(t *testing.T) {
	one := certificate(t, "one.test")
	p := openFiles(t, one)
	if err := os.Remove(p.key); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if !p.serves(2*settle, one) {
			t.Fatal("the old certificate is not served")
		}
	}
	if n := strings.Count(p.log.String(), "WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, &p.log)
	}
	p.write(p.key, one.key)
	if !p.serves(2*every, one) || !strings.Contains(p.log.String(), "new certificate\"") {
		t.Errorf("it does not recover: %s", &p.log)
	}
}

func TestOpenSaysWhatIsWrongAndNoSecret(t *testing.T) {
	one, two := certificate(t, "one.test"), certificate(t, "two.test")
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	cert, key, other, text := file("cert", one.cert), file("key", one.key), file("other", two.key), file("text", []byte("hello"))
	for _, c := range []struct{ cert, key, want string }{
		{cert, other, "do not match"},
		{cert, text, "key"},
		{text, key, "PEM"},
		{filepath.Join(dir, "none"), key, "no such file"},
	} {
		_, err := Open(c.cert, c.key, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s: %v", c.cert, c.key, err)
			continue
		}
		for _, line := range strings.Split(string(two.key)+string(one.key), "\n") {
			if len(line) > 20 && strings.Contains(err.Error(), line) && !strings.Contains(line, "PRIVATE KEY") {
				t.Errorf("a secret is in %q", err)
			}
		}
	}
}

func TestCheckFindsAKeyOfAnotherCertificate(t *testing.T) {
	one, two := certificate(t, "one.test").pair(t), certificate(t, "two.test").pair(t)
	for what, c := range map[string]tls.Certificate{
		"another key":    {Certificate: one.Certificate, PrivateKey: two.PrivateKey},
		"no key":         {Certificate: one.Certificate},
		"no certificate": {PrivateKey: one.PrivateKey},
		"no DER":         {Certificate: [][]byte{[]byte("x")}, PrivateKey: one.PrivateKey},
	} {
		if Check(c) == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if err := Check(tls.Certificate{Certificate: one.Certificate, PrivateKey: one.PrivateKey}); err != nil {
		t.Error(err)
	}
}

func TestNameIsThatOfACertificateForNoAddress(t *testing.T) {
	ip := net.ParseIP("192.0.2.1")
	for want, names := range map[string][]string{
		"node.test":  {"*.node.test", "node.test", "other.test"},
		"":           {"node.test", "192.0.2.1"},
		"other.test": {"192.0.2.2", "other.test"},
	} {
		if got := Name(certificate(t, names...).pair(t), ip); got != want {
			t.Errorf("%v: %q, want %q", names, got, want)
		}
	}
	if got := Name(certificate(t, "*.node.test").pair(t), ip); got != "" {
		t.Errorf("%q of a wildcard", got)
	}
}

// FuzzCertificateFiles: whatever is in the files, Open returns a pair or an error, and
// handshakes keep the pair that was good.
func FuzzCertificateFiles(f *testing.F) {
	good := certificate(f, "one.test")
	f.Add(good.cert, good.key)
	f.Add(good.key, good.cert)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		p := openFiles(t, good)
		p.write(p.cert, cert)
		p.write(p.key, key)
		p.clock = p.clock.Add(2 * settle)
		c, err := p.Get(nil)
		if err != nil || c == nil || Check(*c) != nil {
			t.Errorf("%v, %v", c, err)
		}
		_, err = Open(p.cert, p.key, slog.New(slog.DiscardHandler))
		if served := bytes.Equal(c.Certificate[0], good.pair(t).Certificate[0]); err != nil && !served {
			t.Errorf("a pair is served that cannot be opened: %v", err)
		}
	})
}
