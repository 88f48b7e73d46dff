// Package certs has the certificates of WebSocket with TLS: it checks them, and reads
// them from files that are replaced while a node runs.
package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// every is how often the files are looked at, at most.
	every = time.Second
	// settle is how long files may have changed before a pair that cannot be used is
	// worth a warning: those who renew a certificate replace two files.
	settle = 10 * time.Second
)

// errMismatch is returned for a certificate and a key of two pairs.
var errMismatch = errors.New("the certificate and the key do not match: the key belongs to another certificate")

// Files is a certificate with its key, from two files in PEM format. When a handshake
// finds that the files have changed, it takes the new pair, or keeps the old one if
// they cannot be used. It is safe for concurrent use.
type Files struct {
	cert, key string
	log       *slog.Logger
	now       func() time.Time // for tests
	current   atomic.Pointer[tls.Certificate]

	mu     sync.Mutex     // held by the one handshake that looks at the files
	seen   [2]os.FileInfo // as last read, or found broken; guarded by mu
	next   time.Time      // when to look again; guarded by mu
	broken bool           // they could not be used; guarded by mu
	warned bool           // that was logged; guarded by mu
}

// Open reads the pair.
func Open(cert, key string, log *slog.Logger) (*Files, error) {
	f := &Files{cert: cert, key: key, log: log, now: time.Now}
	pair, seen, err := f.read()
	if err != nil {
		return nil, err
	}
	f.seen, f.next = seen, f.now().Add(every)
	f.current.Store(pair)
	return f, nil
}

// read reads both files, and returns what they looked like before.
func (f *Files) read() (*tls.Certificate, [2]os.FileInfo, error) {
	seen, err := f.stat()
	if err != nil {
		return nil, seen, err
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		if pem, certErr := os.ReadFile(f.cert); certErr == nil {
			if secret, keyErr := os.ReadFile(f.key); keyErr == nil && differ(pem, secret) {
				err = errMismatch
			}
		}
		return nil, seen, fmt.Errorf("certificate %s, key %s: %w", f.cert, f.key, err)
	}
	return &pair, seen, nil
}

// differ reports whether a certificate and a key are fine, but for two pairs: package
// tls has no error of its own for that.
func differ(cert, key []byte) bool {
	_, err := tls.X509KeyPair(cert, key)
	return err != nil && (err.Error() == "tls: private key does not match public key" || err.Error() == "tls: private key type does not match public key type")
}

func (f *Files) stat() (seen [2]os.FileInfo, err error) {
	for i, name := range []string{f.cert, f.key} {
		if seen[i], err = os.Stat(name); err != nil {
			return seen, err
		}
	}
	return seen, nil
}

// Get returns the pair. It fits the GetCertificate of a tls.Config.
func (f *Files) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if f.mu.TryLock() { // another handshake is looking otherwise
		f.lookLocked()
		f.mu.Unlock()
	}
	return f.current.Load(), nil
}

// Current returns the pair that the last handshake got.
func (f *Files) Current() *tls.Certificate { return f.current.Load() }

// lookLocked takes a new pair if the files have changed.
func (f *Files) lookLocked() {
	now := f.now()
	if now.Before(f.next) {
		return
	}
	f.next = now.Add(every)
	seen, err := f.stat()
	if err == nil && !f.broken && same(seen, f.seen) {
		return
	}
	f.warned = f.warned && same(seen, f.seen) // another attempt gets a warning of its own
	var pair *tls.Certificate
	if err == nil {
		pair, seen, err = f.read()
	}
	f.seen, f.broken = seen, err != nil
	switch {
	case err == nil:
		f.current.Store(pair)
		f.warned = false
		f.log.Info("new certificate", "file", f.cert, "until", pair.Leaf.NotAfter)
	case f.warned, fresh(seen, now):
	default:
		f.warned = true
		f.log.Warn("new certificate cannot be used, keeping the old one", "err", err)
	}
}

// fresh reports whether one of two files has just changed: the other may follow.
func fresh(seen [2]os.FileInfo, now time.Time) bool {
	for _, file := range seen {
		if file == nil {
			continue
		}
		if age := now.Sub(file.ModTime()); age >= 0 && age < settle {
			return true
		}
	}
	return false
}

// same reports whether files are as they were.
func same(a, b [2]os.FileInfo) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) {
			return false
		}
		if a[i] != nil && (!os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime())) {
			return false
		}
	}
	return true
}

// Check returns what is wrong with a certificate that is given with its key.
func Check(c tls.Certificate) error {
	if len(c.Certificate) == 0 {
		return errors.New("a certificate is empty")
	}
	leaf, err := leafOf(&c)
	if err != nil {
		return err
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return errors.New("a certificate has no private key")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if ok && !public.Equal(leaf.PublicKey) {
		return errMismatch
	}
	return nil
}

func leafOf(c *tls.Certificate) (*x509.Certificate, error) {
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	return x509.ParseCertificate(c.Certificate[0])
}

// Name returns the server name by which a peer that dials an IP address has to ask
// for a certificate; "" if the certificate is for that address, or for no certain name.
func Name(c *tls.Certificate, ip net.IP) string {
	leaf, err := leafOf(c)
	if err != nil || leaf.VerifyHostname(ip.String()) == nil {
		return ""
	}
	for _, name := range leaf.DNSNames {
		if !strings.Contains(name, "*") {
			return name
		}
	}
	return ""
}
