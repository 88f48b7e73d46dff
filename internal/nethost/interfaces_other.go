//go:build !linux

package nethost

import "errors"

// routeChanges is for systems that tell of changes.
func routeChanges(chan<- struct{}) (stop func(), err error) {
	return nil, errors.ErrUnsupported
}
