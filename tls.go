package p2pnode

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/go-p2pnode/p2pnode/internal/certs"
)

// checkTLSConfig checks the argument of WithTLSConfig.
func checkTLSConfig(conf *tls.Config) error {
	if conf == nil {
		return errors.New("the configuration is nil; leave the option out for no certificate")
	}
	for i, c := range conf.Certificates {
		if err := certs.Check(c); err != nil {
			return fmt.Errorf("certificate %d of %d: %w", i+1, len(conf.Certificates), err)
		}
	}
	return nil
}

// givesCertificate reports whether a configuration has something to listen with.
func givesCertificate(conf *tls.Config) bool {
	return conf != nil && (len(conf.Certificates) > 0 || conf.GetCertificate != nil || conf.GetConfigForClient != nil)
}
