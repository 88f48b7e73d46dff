//go:build !linux

package nethost

// lockPort does nothing where there is no lock without a file.
func lockPort(string) (unlock func()) { return func() {} }
